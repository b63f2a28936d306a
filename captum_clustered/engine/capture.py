"""The first stage: one ordinary forward pass that records all that the later stages need.

Recorded are the layer's activations, the target score and the *frozen prefix*: the outputs of the
outermost module calls that had finished before the layer's own call began. The replay hands these
out again instead of computing them, see :mod:`captum_clustered.engine.replay`.

Most of them are needed by nobody: the next module has taken them, and the model has let them go. To
keep those nevertheless would cost a tenth of a forward pass on the CPU, in memory that is fetched
anew from the system. In their place a tensor without values is handed out, on the device
``"meta"``: a model that needs the values after all fails there, and is run again with all kept.

On the CPU several images pass through the prefix channels-last, which saves a tenth to a third of
the time: a convolution reads and writes that form anyway. At the layer the values are laid out as
usual again, so that what lies behind, and whoever calls, sees no difference.

Recorded is also a *site* further on, where there is one: modules such as pooling and activations
treat each map alone, so that to switch a map off before them or behind them is the same, and behind
a pooling layer a copy is a fraction of the size.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import TensorWeakRef

from captum_clustered.engine.model import Model, ModuleStates
from captum_clustered.targets import check_target, select

__all__ = ["MAPWISE", "Call", "Capture", "LayerIO", "Site", "capture"]

MAPWISE: dict[type[nn.Module], int | None] = {
    **dict.fromkeys((nn.AdaptiveAvgPool1d, nn.AvgPool1d, nn.BatchNorm1d, nn.Dropout1d), 3),
    **dict.fromkeys((nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.BatchNorm2d, nn.Dropout2d), 4),
    **dict.fromkeys((nn.AdaptiveAvgPool3d, nn.AvgPool3d, nn.BatchNorm3d, nn.Dropout3d), 5),
    **dict.fromkeys((nn.AdaptiveMaxPool1d, nn.MaxPool1d), 3),
    **dict.fromkeys((nn.AdaptiveMaxPool2d, nn.MaxPool2d), 4),
    **dict.fromkeys((nn.AdaptiveMaxPool3d, nn.MaxPool3d), 5),
    **dict.fromkeys((nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish)),
    **dict.fromkeys((nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.Tanh)),
    **dict.fromkeys((nn.Identity, nn.Dropout)),
}
"""Modules that, in evaluation mode, make each map of that map alone, where maps are on axis 1; with
the number of axes for which that holds, None for any."""

_UNTOUCHED = (nn.Flatten, nn.Dropout, nn.Identity)
"""Modules that may leave flattened maps as they are."""


@dataclass(frozen=True)
class LayerIO:
    """Where a layer's activations are read and written: its output, or its input.

    The layer's value may be a tensor, a tuple or a list of tensors; `unpack` turns it into a list
    and `pack` turns a list back into the form that the layer gave.
    """

    layer: nn.Module
    at_input: bool = False

    def hook(self, replace: Callable[[list[Tensor]], list[Tensor] | None]) -> Any:
        """Registers a hook that calls `replace` with the tensors, and returns its handle.

        The hook acts in the registering thread only. What `replace` returns takes the tensors'
        place, None leaves them as they are.
        """
        owner = threading.get_ident()

        def apply(value: Any) -> Any:
            tensors = replace(self.unpack(value))
            return None if tensors is None else self.pack(tensors, value)

        def before(_: nn.Module, args: tuple[Any, ...]) -> Any:
            return apply(args) if threading.get_ident() == owner else None

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return apply(output) if threading.get_ident() == owner else None

        if self.at_input:
            return self.layer.register_forward_pre_hook(before)
        return self.layer.register_forward_hook(after)

    def unpack(self, value: Any) -> list[Tensor]:
        """The tensors of the layer's value."""
        tensors = list(value) if isinstance(value, (tuple, list)) else [value]
        if tensors and all(isinstance(tensor, Tensor) for tensor in tensors):
            return tensors
        got = ", ".join(type(item).__name__ for item in tensors) or "none"
        side = "positional input" if self.at_input else "output"
        raise TypeError(
            f"`layer` must have a tensor, or a tuple or list of tensors, as its {side}; got {got}. "
            "Choose a module inside or next to it that has one."
        )

    @staticmethod
    def pack(tensors: list[Tensor], like: Any) -> Any:
        """The tensors in the form of `like`."""
        if isinstance(like, Tensor):
            return tensors[0]
        if hasattr(like, "_make"):  # a named tuple
            return like._make(tensors)
        return type(like)(tensors)


@dataclass
class Call:
    """One call of a module that finished before the layer's began, with what it returned."""

    module: nn.Module
    number: int  # the how-manieth call of this module in the forward pass
    output: Any
    inside: list[nn.Module]  # the calls that it made in turn, which do not happen if it is skipped
    versions: list[int | None]
    lent: TensorWeakRef | None = None

    def unchanged(self) -> bool:
        """Whether nothing wrote into the output after the call returned."""
        return all(version is not None for version in self.versions) and (
            self.versions == _versions(self.output)
        )

    def without_values(self) -> Call:
        """The same call, with tensors on the device ``"meta"`` in place of what it returned."""
        empty = tree_map_only(Tensor, _without_values, self.output)
        return replace(self, output=empty, versions=_versions(empty))

    def lend(self) -> None:
        """Keeps the output only for as long as somebody else does."""
        self.lent = TensorWeakRef(self.output)
        self.output = _without_values(self.output)

    def take_back(self) -> None:
        """Ends :meth:`lend`."""
        output = None if self.lent is None else self.lent()
        if output is not None and self.versions == _versions(output):
            self.output = output
        elif self.lent is not None:
            self.versions = _versions(self.output)


@dataclass(frozen=True)
class Site:
    """A place behind the layer where to switch a map off has the same effect as in the layer.

    Attributes:
        io (LayerIO): The module after whose call maps are switched off.
        activations (Tensor): Its output, `(N, C, …)`, or the input of `linear`, before it was
            flattened.
        modules (list[nn.Module]): What lies between the layer and there, in order.
        prefix (list[Call]): What had finished when it had, as the frozen prefix. In place of what
            holds maps that nothing is switched off in there are tensors without values.
        linear (nn.Linear or None): The module itself, if it is one: its output is a sum over maps.
        output (Tensor or None): What `linear` returned, `(N, F)`.
    """

    io: LayerIO
    activations: Tensor
    modules: list[nn.Module]
    prefix: list[Call]
    linear: nn.Linear | None = None
    output: Tensor | None = None


@dataclass(frozen=True)
class Capture:
    """What one forward pass left behind.

    Attributes:
        activations (list[Tensor]): The layer's tensors, copied before anything could change them.
        scores (Tensor): Target scores, `(N,)`, or `(1,)` if the model gives one for the batch;
            with their graph if gradients are enabled.
        scale (Tensor): Largest magnitude in the model's output, `(N,)` or `(1,)`, against which
            rounding is judged.
        prefix (list[Call]): The frozen prefix.
        whole (bool): Whether all outputs of the prefix were kept, needed or not.
        overwrites (bool): Whether the model wrote into its arguments.
        stochastic (bool): Whether a module in training mode makes the model's output random or
            dependent on the rest of the batch.
        sites (tuple[Site, ...]): Places further on that are as good as the layer, the last first: a
            linear layer, and the last module before it that treats each map alone.
    """

    activations: list[Tensor]
    scores: Tensor
    scale: Tensor
    prefix: list[Call]
    whole: bool
    overwrites: bool
    stochastic: bool
    sites: tuple[Site, ...] = ()


def capture(
    model: Model, io: LayerIO, target: Tensor | None, seen: ModuleStates, *, whole: bool = False
) -> Capture:
    """Runs the model once and records what the replay needs.

    Args:
        model (Model): The model with its inputs.
        io (LayerIO): The layer, and which side of it.
        target (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        seen (ModuleStates): Remembers the modules that run.
        whole (bool, optional): Whether to keep all outputs of the prefix. Default: False

    Returns:
        *Capture*: The activations, the scores and the frozen prefix.

    Raises:
        ValueError: If the layer does not run, or runs more than once, or folds the batch away, or
            if the number of scores is neither that of the examples nor one.
    """
    if not torch.is_grad_enabled():
        laid = _channels_last(model.args)
        if any(map(operator.is_not, laid, model.args)):
            # what takes its input apart by `view` wants it laid out as usual
            with suppress(RuntimeError):
                return _run(model, io, target, seen, whole, laid, lay_out=True)
    return _run(model, io, target, seen, whole, model.fresh())


def _channels_last(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copies of the arguments, those with several images laid out channels-last, if it pays.

    For a single image the weights, which oneDNN lays out anew in each call, cost what it saves.
    Double precision is computed without oneDNN, and is slower so.
    """
    precisions = (torch.float32, torch.bfloat16, torch.float16)

    def pays(arg: Any) -> bool:
        several = isinstance(arg, Tensor) and arg.ndim == 4 and len(arg) > 1
        return several and arg.device.type == "cpu" and arg.dtype in precisions

    if not torch.backends.mkldnn.is_available() or not any(map(pays, args)):
        return args
    return tuple(
        arg.clone(memory_format=torch.channels_last if pays(arg) else torch.preserve_format)
        if isinstance(arg, Tensor)
        else arg
        for arg in args
    )


def _run(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    seen: ModuleStates,
    whole: bool,
    args: tuple[Any, ...],
    *,
    lay_out: bool = False,
) -> Capture:
    """The first pass; with `lay_out`, what is channels-last is so no more from the layer on."""
    recorder = _Recorder(io, seen, whole)
    activations: list[list[Tensor]] = []

    def keep(tensors: list[Tensor]) -> None:
        for tensor in tensors if lay_out else ():
            if tensor.is_contiguous(memory_format=torch.channels_last) and not tensor._is_view():
                tensor.data = tensor.contiguous()  # for all who hold it, unlike a copy
        # cloned, since an in-place operation further on may overwrite the original
        activations.append([tensor.detach().clone() for tensor in tensors])

    # the prefix is fixed before the model's own hooks run, the activations are read after them
    with recorder.active():
        handle = io.hook(keep)
        try:
            output = model.forward_func(*args)
        finally:
            handle.remove()
    if not activations:
        raise ValueError(
            "`layer` must run when `forward_func` is called; it did not. Pass a module of the "
            "model that `forward_func` runs, and not one inside a TorchScript module."
        )
    if len(activations) > 1:
        raise ValueError(
            f"`layer` must run once in a forward pass; it ran {len(activations)} times, so that "
            "its maps have no single meaning. Pass the module around one of its uses, or give each "
            "use a module of its own (for example a new nn.ReLU())."
        )
    _check_batch(activations[0], model.n)
    check_target(output, target)
    scores = select(output, target)
    if not torch.is_grad_enabled():
        scores = scores.detach()  # the model may have enabled gradients for itself
    if len(scores) not in (1, model.n):
        raise ValueError(
            "`forward_func` must give one score per example, or one for the batch; got "
            f"{len(scores)} scores for {model.n} examples."
        )
    return Capture(
        activations=activations[0],
        scores=scores,
        scale=_scale(output, scores.detach()),
        # the layer's own output is replaced anyway, so that it may have changed
        prefix=[call for call in recorder.prefix if call.module is io.layer or call.unchanged()],
        whole=whole,
        overwrites=any(version != 0 for arg in args for version in _versions(arg)),
        stochastic=any(_is_stochastic(module) for module in seen.attributes),
        sites=recorder.finish(),
    )


def _check_batch(activations: list[Tensor], n: int) -> None:
    for tensor in activations:
        if tensor.ndim == 0 or len(tensor) != n:
            raise ValueError(
                f"`layer` must give tensors whose first axis is the batch of {n} examples; got "
                f"shape {tuple(tensor.shape)}. Choose a layer before the batch is folded into "
                "other axes, or after it is unfolded again."
            )


class _Recorder:
    """Knows from module hooks which calls had finished when the layer's call began.

    Behind the layer it follows its value for as long as nothing but modules that treat each map
    alone takes it.
    """

    def __init__(self, io: LayerIO, seen: ModuleStates, whole: bool) -> None:
        self.io = io
        self.seen = seen
        self.whole = whole
        self.prefix: list[Call] = []
        self.begun = False
        self.numbers: Counter[nn.Module] = Counter()
        # one frame per open call: the calls it has finished so far; the first is the caller itself
        self.frames: list[list[Call]] = [[]]
        self.open: list[tuple[nn.Module, int, bool]] = []
        # behind the layer: its value, the modules that made it what it is, what it was before
        self.value: Tensor | None = None
        self.version: int | None = None
        self.passed: list[nn.Module] = []
        self.stale: list[Tensor] = []
        self.sites: list[Site] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        owner = threading.get_ident()

        def before(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == owner:
                self._before(module, args)

        def after(module: nn.Module, _: Any, output: Any) -> None:
            if threading.get_ident() == owner:
                self._after(module, output)

        handles = [
            register_module_forward_pre_hook(before),
            register_module_forward_hook(after),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> tuple[Site, ...]:
        """The last places as good as the layer, at most one of each kind."""
        # the module must run once, since a hook acts there in every call
        last = {s.linear is None: s for s in self.sites if self.numbers[s.io.layer] == 1}
        return tuple(
            replace(s, prefix=[c for c in s.prefix if c.module is s.io.layer or c.unchanged()])
            for s in reversed(last.values())
        )

    def _before(self, module: nn.Module, args: Any) -> None:
        self.seen.remember(module)
        number = self.numbers[module]
        self.numbers[module] += 1
        if self.begun:
            self._follow(module, args)
            if self.value is None:
                return
        else:
            self._lend(args)
        if module is self.io.layer and not self.begun:
            self.prefix = self._finished()
            for call in self.prefix:
                call.take_back()
            if self.io.at_input:
                self.begun = True
                self._watch(args[0] if len(args) == 1 and not _has_parts(module) else None)
                self._follow(module, args)
                if self.value is None:
                    return
        # what is called inside is handed out again only if the layer is called there as well; to
        # keep all of it would be to have fresh memory fetched all the time
        kept = not self.open or self.open[-1][2]
        self.open.append((module, number, kept and (self.begun or self._has_layer(module))))
        self.frames.append([])

    def _after(self, module: nn.Module, output: Any) -> None:
        if self.begun and self.value is None:
            return
        module, number, _ = self.open.pop()
        inside = [ran for call in self.frames.pop() for ran in (call.module, *call.inside)]
        kept = not self.open or self.open[-1][2]
        call = Call(module, number, output, inside, _versions(output))
        self.frames[-1].append(call if kept else Call(module, number, None, inside, [None]))
        if self.begun:
            self._pass(call)
        elif module is self.io.layer:
            # the layer itself need not run again either: a hook replaces what it returns
            self.prefix.append(call)
            self.begun = True
            self._watch(output)

    def _finished(self) -> list[Call]:
        """The outermost calls that have finished, in order."""
        return [call for frame in self.frames for call in frame]

    def _lend(self, args: Any) -> None:
        """A module takes the output of the call before: most often nobody else needs it."""
        last = self.frames[-1][-1] if self.frames[-1] else None
        if self.whole or last is None or len(args) != 1 or args[0] is not last.output:
            return
        if isinstance(last.output, Tensor):
            last.lend()

    def _has_layer(self, module: nn.Module) -> bool:
        return any(part is self.io.layer for part in module.modules())

    def _watch(self, value: Any) -> None:
        """Follows a tensor from here on; None, or what is no such tensor, ends it."""
        known = isinstance(value, Tensor) and not value.is_inference()
        self.value = value if known else None
        self.version = value._version if known else None

    def _follow(self, module: nn.Module, args: Any) -> None:
        """A call begins behind the layer: does it leave each map to itself?"""
        value = self.value
        if value is None or _has_parts(module):
            return  # what is inside will show
        plain = len(args) == 1 and value._version == self.version and self._is_plain(module)
        if plain and args[0] is value and self._is_mapwise(module, value):
            return
        if plain and type(module) is nn.Flatten and args[0] is value:
            return
        if plain and type(module) in (*_UNTOUCHED, nn.Linear) and _is_flat(args[0], value):
            return
        self._watch(None)

    def _is_plain(self, module: nn.Module) -> bool:
        """Whether a module does what its type says, and nothing else."""
        ours = module is self.io.layer  # our own hook is on it
        return (
            "forward" not in module.__dict__
            and not module._forward_hooks
            and len(module._forward_pre_hooks) == ours
        )

    def _is_mapwise(self, module: nn.Module, value: Tensor) -> bool:
        return (
            type(module) in MAPWISE
            and MAPWISE[type(module)] in (None, value.ndim)
            and not getattr(module, "return_indices", False)
        )

    def _pass(self, call: Call) -> None:
        """A call behind the layer has finished."""
        value = self.value
        assert value is not None
        same = call.output is value or _is_flat(call.output, value)
        if _has_parts(call.module):
            # the call as a whole is handed out again: it must have done nothing else
            if type(call.module) is not nn.Sequential or not same:
                self._watch(None)
            return
        if type(call.module) in _UNTOUCHED and _is_flat(call.output, value):
            return
        if type(call.module) is nn.Flatten:  # in another way
            self._watch(None)
            return
        if not (self.io.at_input and not self.passed):  # others may see the layer's input as it is
            self.stale.append(value)
        linear = call.module if type(call.module) is nn.Linear else None
        self._watch(call.output)
        if self.value is None:
            return
        if linear is None:
            self.passed.append(call.module)
        elif len({value.dtype, linear.weight.dtype, self.value.dtype}) > 1:  # autocast
            self._watch(None)
            return
        self.sites.append(
            Site(
                LayerIO(call.module),
                (self.value if linear is None else value).detach().clone(),
                list(self.passed),
                [self._without_stale(done, call) for done in self._finished()],
                linear,
                None if linear is None else self.value.detach().clone(),
            )
        )
        if linear is not None:
            self._watch(None)

    def _without_stale(self, call: Call, site: Call) -> Call:
        leaves = tree_leaves(call.output)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if call is site or not any(_share(leaf, old) for leaf in tensors for old in self.stale):
            return call
        return call.without_values()


def _is_flat(tensor: Any, value: Tensor) -> bool:
    """Whether a tensor is the value seen as `(N, F)`, or the value itself if that is its shape."""
    return bool(
        isinstance(tensor, Tensor)
        and tensor.shape == (len(value), value.numel() // max(1, len(value)))
        and _share(tensor, value)
        and tensor.storage_offset() == value.storage_offset()
        and tensor.is_contiguous()
        and value.is_contiguous()
    )


def _share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same memory."""
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")


def _versions(output: Any) -> list[int | None]:
    """The version counters of the tensors in a module's output."""
    # None, for what cannot be watched, never counts as unchanged
    if isinstance(output, Tensor):
        return [None if output.is_inference() else output._version]
    return [
        leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else None
        for leaf in tree_leaves(output)
        if not isinstance(leaf, (type(None), bool, int, float, str))
    ]


def _scale(output: Any, scores: Tensor) -> Tensor:
    if isinstance(output, Tensor) and output.ndim > 1:
        return output.detach().abs().flatten(1).amax(1).to(scores.dtype)
    return scores.abs()


def _is_stochastic(module: nn.Module) -> bool:
    return module.training and isinstance(
        module, (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    )
