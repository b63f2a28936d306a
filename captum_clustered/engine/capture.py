"""The first stage: one ordinary forward pass that records all that the later stages need.

It records the layer's activations, the target scores and the *frozen prefix*: what the outermost
module calls returned that had finished before the layer's own call began. The replay hands these
outputs out instead of computing them again, see :mod:`captum_clustered.engine.replay`.

Nobody needs most of these outputs again: the next module has taken them, and the model has let them
go. To keep them all would cost a tenth of a forward pass on the CPU, because their memory could not
be used again. A tensor without values, on the device ``"meta"``, takes the place of an output that
is gone. A model that needs the values after all fails at that tensor, and is run again with
everything kept.

On the CPU, several images pass through the prefix channels-last, which saves a tenth to a third of
the time, because convolutions read and write that form anyway. At the layer the values are laid out
as usual again. The part after the layer, and the caller, see no difference. A model whose answer
may hang on the layout is stopped where that shows, and runs again as it is.

Private parts of PyTorch: `Tensor._is_view`, which tells views from tensors that own their memory,
the base classes of its norm and dropout layers, `_NormBase` and `_DropoutNd`, and
`_global_forward_hooks_with_kwargs`, which notes the hooks on all modules that get keywords.
"""

from __future__ import annotations

import operator
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from captum_clustered._copies import scale_of, tolerance
from captum_clustered._layout import LayoutMatters, Overheard, channels_last, unheard
from captum_clustered.engine.calls import Call, LayerIO, tensors_in, versions
from captum_clustered.engine.effects import Held, effects, held
from captum_clustered.engine.model import Model
from captum_clustered.engine.sites import Follower, Site, mixes, settled, share
from captum_clustered.targets import as_scores, example_scores, plain

__all__ = ["FirstPass", "capture", "check_kind"]

_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softplus)
"""Modules whose output is nowhere negative."""


@dataclass(frozen=True, eq=False)
class FirstPass:
    """What one forward pass left behind, and one pass back where gradients were asked for.

    Attributes:
        model (Model): The model with its inputs.
        io (LayerIO): The layer, and which side of it.
        target (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        activations (list[Tensor]): The layer's tensors, copied before anything could change them.
        scores (Tensor): Target scores, `(N,)`, or `(1,)` if the model gives one for the batch;
            with their graph if gradients are enabled.
        output (Any): What the model returned, detached if it is a tensor.
        scale (Tensor): Largest magnitude in the model's output, `(N,)` or `(1,)`, against which
            rounding is judged.
        prefix (list[Call]): The frozen prefix.
        whole (bool): Whether all outputs of the prefix were kept, needed or not.
        output_shape (torch.Size or None): The shape of the model's output; None if that is no
            tensor.
        stochastic (bool): Whether a module in training mode makes the model's output random or
            dependent on the rest of the batch.
        mixes (bool): Whether a module normalises over the batch in evaluation mode, too.
        rectified (bool): Whether the layer's value is known to be nowhere negative, because it is
            the very output of a ReLU or the like. It is known without reading a value.
        largest (int): Bytes of the largest value that a module behind the layer returned.
        sites (tuple[Site, ...]): Places further on that are as good as the layer, the last first: a
            linear layer, and the last module before it that treats each map alone.
        maps (list[Tensor]): The activations as `(N, C, *spatial)`, added by the explainer.
        gradients (list[Tensor]): The gradients of the scores in the same form; empty if they were
            not asked for.
    """

    model: Model
    io: LayerIO
    target: Tensor | None
    activations: list[Tensor]
    scores: Tensor
    output: Any
    scale: Tensor
    prefix: list[Call]
    whole: bool
    output_shape: torch.Size | None
    stochastic: bool
    mixes: bool
    rectified: bool
    largest: int
    sites: tuple[Site, ...]
    maps: list[Tensor]
    gradients: list[Tensor]

    @property
    def has_joint_score(self) -> bool:
        """Whether the model gives one score for the whole batch."""
        return len(self.scores) != self.model.n

    @property
    def couples(self) -> bool:
        """Whether it is known that examples in one batch do not leave each other alone."""
        return self.has_joint_score or self.stochastic or self.mixes

    @property
    def tolerance(self) -> Tensor:
        """How much a score may differ by rounding, `(N,)` or `(1,)`."""
        return self.rounding(self.scale)

    def rounding(self, scale: Tensor) -> Tensor:
        """How much scores of some size may differ by rounding."""
        dtypes = [self.scores.dtype, *(tensor.dtype for tensor in self.activations)]
        return tolerance(scale, dtypes)


def capture(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    *,
    whole: bool = False,
    lay_out: bool = True,
) -> FirstPass:
    """Runs the model once and records what the replay needs.

    Args:
        model (Model): The model with its inputs.
        io (LayerIO): The layer, and which side of it.
        target (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        whole (bool, optional): Whether to keep all outputs of the prefix. Default: False
        lay_out (bool, optional): Whether images may be laid out channels-last. Default: True

    Returns:
        *FirstPass*: The activations, the scores and the frozen prefix; no maps yet.

    Raises:
        ValueError: If the layer does not run, or runs more than once, or folds the batch away, or
            if the number of scores is neither that of the examples nor one.
    """
    return model.settled(lambda: _captured(model, io, target, whole, lay_out))


def _captured(
    model: Model, io: LayerIO, target: Tensor | None, whole: bool, lay_out: bool
) -> FirstPass:
    if lay_out and not torch.is_grad_enabled():
        laid = [channels_last(arg) if isinstance(arg, Tensor) else arg for arg in model.args]
        if any(map(operator.is_not, laid, model.args)):
            args = tuple(map(_own, laid, model.args))
            # a model may refuse the layout with an error of its own; any other comes again
            with suppress(Exception, LayoutMatters):
                return _run(model, io, target, whole, args, Overheard())
    return _run(model, io, target, whole, model.fresh())


def _own(laid: Any, arg: Any) -> Any:
    """An argument that the model may write into."""
    return laid.clone() if laid is arg and isinstance(arg, Tensor) else laid


def _run(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    whole: bool,
    args: tuple[Any, ...],
    overheard: Overheard | None = None,
) -> FirstPass:
    """The first pass; overheard, it gives channels-last tensors the usual layout at the layer."""
    recorder = _Recorder(io, whole, overheard)
    activations: list[list[Tensor]] = []
    rectified: list[bool] = []

    def keep(tensors: list[Tensor]) -> list[Tensor] | None:
        rectified.extend(map(recorder.is_rectified, tensors))
        for tensor in tensors if overheard else ():
            if tensor.is_contiguous(memory_format=torch.channels_last) and not tensor._is_view():
                tensor.data = tensor.contiguous()  # for everyone who holds it, unlike a copy
        # cloned, because an in-place operation further on may overwrite the original
        activations.append([plain(tensor, "layer").detach().clone() for tensor in tensors])
        return recorder.rename(tensors)

    # the prefix is fixed before the model's own hooks run, the activations are read after them
    with recorder.active():
        handle = io.hook(unheard(keep) if overheard else keep)
        try:
            output = model.forward_func(*args, within=overheard)
        finally:
            handle.remove()
    _check_layer(activations, model.n)
    output = as_scores(output)
    scores = _scores(output, target, model.n)
    overwrites = any(version != 0 for arg in args for version in versions(arg))
    return FirstPass(
        model=replaced(model, overwrites=overwrites),
        io=io,
        target=target,
        activations=activations[0],
        scores=scores,
        output=output.detach() if isinstance(output, Tensor) else output,
        scale=scale_of(output, scores.detach()),
        prefix=settled(recorder.prefix, io.layer, whole),
        whole=whole,
        output_shape=output.shape if isinstance(output, Tensor) else None,
        stochastic=any(map(_is_stochastic, recorder.numbers)),
        mixes=any(map(mixes, recorder.numbers)),
        rectified=all(rectified),
        largest=recorder.largest,
        sites=recorder.follower.found(recorder.numbers),
        maps=[],
        gradients=[],
    )


def _check_layer(activations: list[list[Tensor]], n: int) -> None:
    if not activations:
        raise ValueError(
            "`layer` must run when `forward_func` is called; it did not. Pass a module of the "
            "model that `forward_func` runs, not of a copy of it, and not one inside a TorchScript "
            "module or an exported program (`torch.export.unflatten` makes modules of it again)."
        )
    if len(activations) > 1:
        raise ValueError(
            f"`layer` must run once in a forward pass; it ran {len(activations)} times, so that "
            "its maps have no single meaning. Pass the module around one of its uses, or give each "
            "use a module of its own (for example a new nn.ReLU())."
        )
    for tensor in activations[0]:
        check_kind(tensor)
        if tensor.ndim == 0 or len(tensor) != n:
            raise ValueError(
                f"`layer` must give tensors whose first axis is the batch of {n} examples; got "
                f"shape {tuple(tensor.shape)}. Choose a layer before the batch is folded into "
                "other axes, or after it is unfolded again. Where one example is a bag of images, "
                "such as the slices of a scan, pass the bag as the batch, with one score for all: "
                "inputs `bag[0]`, forward_func `lambda images: model(images[None])`."
            )


def check_kind(tensor: Tensor) -> None:
    """Raises a TypeError where the layer's tensor is none whose maps can be switched off."""
    if _is_dense(tensor) and tensor.is_floating_point() and tensor.itemsize > 1:
        return
    kind = "nested" if tensor.is_nested else str(tensor.layout)
    raise TypeError(
        "`layer` must give floating point tensors, dense and of at least 16 bits; got "
        f"{tensor.dtype}, {kind}. Choose a layer that gives feature maps; in a quantised model, "
        "the one that dequantises."
    )


def _scores(output: Any, target: Tensor | None, n: int) -> Tensor:
    scores = example_scores(output, target, n)
    # the model may have enabled gradients for itself
    return scores if torch.is_grad_enabled() else scores.detach()


def _holds(call: Call, tensor: Tensor) -> bool:
    """Whether a tensor lies in the memory of what a call returned."""
    return any(tensor is output or share(tensor, output) for output in call.held())


def _is_dense(tensor: Tensor) -> bool:
    special = tensor.is_nested or tensor.is_quantized
    return tensor.layout is torch.strided and not special


def _is_stochastic(module: nn.Module) -> bool:
    kinds = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    return isinstance(module, kinds) and module.training


@dataclass(slots=True)
class _Open:
    """A call that has begun: the tensors that it was given, and how often each was written to."""

    module: nn.Module
    number: int
    held: Held | None  # what the module itself holds
    kept: bool = False  # whether the outputs of the calls inside are kept
    given: list[Tensor] = field(default_factory=list)
    versions: list[int | None] = field(default_factory=list)
    sets: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)
    """By it and the calls inside."""
    inside: list[nn.Module] = field(default_factory=list)  # the calls that it made in turn
    writes: bool = False  # whether it or a call inside wrote more than that into its module


class _Recorder:
    """Learns from module hooks which calls had finished when the layer's call began.

    After the layer it tells the :class:`captum_clustered.engine.sites.Follower` of the calls.
    """

    def __init__(self, io: LayerIO, whole: bool, overheard: Overheard | None) -> None:
        self.io = io
        self.whole = whole
        self.overheard = overheard
        self.prefix: list[Call] = []
        self.begun = False
        self.numbers: Counter[nn.Module] = Counter()
        self.around: dict[nn.Module, bool] = {}
        # one frame per open call: the calls it has finished so far; the first is the caller itself
        self.frames: list[list[Call]] = [[]]
        self.open: list[_Open] = []
        self.follower = Follower(io)
        self.largest = 0
        self.last_rectified: tuple[weakref.ref[Tensor], list[int | None]] | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        owner = threading.get_ident()

        def before(module: nn.Module, args: Any) -> None:
            if threading.get_ident() == owner:
                if self.overheard and isinstance(module, torch.jit.ScriptModule):
                    raise LayoutMatters  # for all that is heard of it
                self._before(module, args)

        def after(module: nn.Module, _: Any, kwargs: Any, output: Any) -> None:
            if threading.get_ident() == owner:
                self._after(module, kwargs, output)

        hooks = (unheard(before), unheard(after)) if self.overheard else (before, after)
        handles = [
            register_module_forward_hook(hooks[1], with_kwargs=True),
            register_module_forward_pre_hook(hooks[0]),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            # torch forgets that, and would then say that there is a hook on all modules
            torch_module._global_forward_hooks_with_kwargs.pop(handles[0].id, None)

    def _before(self, module: nn.Module, args: Any) -> None:
        number = self.numbers.get(module, 0)
        self.numbers[module] = number + 1
        if not self.begun:
            self._lend(args)
            if module is self.io.layer:
                self._reach_layer(args)
        if self.begun:
            self.follower.begin(module, args)
            if not self.follower.active:
                return
        begun = _Open(module, number, held(module, versions))
        if self._is_kept():
            begun.given = tensors_in(args)
            begun.versions = [count for tensor in begun.given for count in versions(tensor)]
            # what is called inside is handed out again only if the layer is called there as well;
            # its memory can then be used again
            around = self._has_layer(module) and module is not self.io.layer
            begun.kept = self.begun or around
        self.open.append(begun)
        self.frames.append([])

    def _reach_layer(self, args: Any) -> None:
        """The layer's call begins, and with it the prefix ends."""
        self.prefix = self._finished()
        for call in self.prefix:
            call.take_back()
        if self.io.at_input:
            self.begun = True
            if len(args) == 1 and next(self.io.layer.children(), None) is None:
                self.follower.watch(Call(self.io.layer, -1, args[0], [], versions(args[0])))

    def _after(self, module: nn.Module, kwargs: Any, output: Any) -> None:
        if self.begun and isinstance(output, Tensor):
            self.largest = max(self.largest, output.nbytes)
        if self.begun and not self.follower.active:
            return
        begun = self.open.pop()
        number = begun.number
        if begun.held is not None or begun.sets or begun.writes:
            self._note_effects(begun)
        self.frames.pop()
        inside = begun.inside
        if self.open:
            self.open[-1].inside += (module, *inside)
        if not self.begun and type(module) in _RECTIFIERS and isinstance(output, Tensor):
            # weakly, since it must not keep the memory in use
            self.last_rectified = weakref.ref(output), versions(output)
        kept = self._is_kept()
        if not (kept or self.begun or module is self.io.layer):
            return
        call = Call(module, number, output, inside, versions(output), sets=begun.sets)
        if begun.writes:
            call.writes = "other"
        if kept:
            self._trace(call, begun, kwargs)
            self.frames[-1].append(call)
        if self.begun:
            self.follower.end(call, self._finished)
        elif module is self.io.layer:
            # the layer itself need not run again either: a hook replaces what it returns
            self.prefix.append(call)
            self.begun = True
            self.follower.watch(call)

    def _note_effects(self, begun: _Open) -> None:
        """Notes what a call wrote into its module, for the calls around it as well."""
        found = effects(begun.module, begun.held, versions)
        if found is None:
            begun.writes = True
        elif found:
            begun.sets.append((begun.module, found))
        if self.open:
            self.open[-1].writes |= begun.writes
            self.open[-1].sets += begun.sets

    def _trace(self, call: Call, begun: _Open, kwargs: dict[str, Any]) -> None:
        """Notes whose memory a call returned, and whose it wrote into."""
        given, before = begun.given, begun.versions
        if kwargs:  # a hook sees them only now: that they were ever written to has to do
            named = tensors_in(kwargs)
            given, before = [*given, *named], [*before, *[0] * len(named)]
        for tensor, version in zip(given, before, strict=True):
            written = versions(tensor) != [version]
            returned = _holds(call, tensor)
            if not (written or returned):
                continue
            owners = [done for done in self._finished() if done.own and _holds(done, tensor)]
            if returned and not owners:
                call.own = False
            if written:
                call.writes = "recorded" if owners and call.writes != "other" else "other"
                for owner in owners:
                    owner.rewritten = True

    def rename(self, tensors: list[Tensor]) -> list[Tensor] | None:
        """Gives the layer's value a name of its own, as long as it is followed.

        Whoever has it by another name, such as the input of a layer that works in place, then does
        not pass for somebody who takes what the layer returned.
        """
        if not self.follower.active:
            return None
        (value,) = tensors
        if torch.is_grad_enabled() or plain(value, "layer") is not value or not _is_dense(value):
            self.follower.watch(None)
            return None
        other = value.view_as(value)
        self.follower.rename(value, other)
        return [other]

    def is_rectified(self, value: Tensor) -> bool:
        """Whether a value is what the last ReLU or the like returned, and has not changed since."""
        if self.last_rectified is None:
            return False
        output, before = self.last_rectified
        return output() is value and None not in before and versions(value) == before

    def _is_kept(self) -> bool:
        """Whether what is called now is handed out again."""
        return not self.open or self.open[-1].kept

    def _finished(self) -> list[Call]:
        """The outermost calls that have finished, in order."""
        return [call for frame in self.frames for call in frame]

    def _lend(self, args: Any) -> None:
        """A module takes the output of the call before; most often nobody else needs it."""
        last = self.frames[-1][-1] if self.frames[-1] else None
        if self.whole or last is None or len(args) != 1 or args[0] is not last.output:
            return
        if isinstance(last.output, Tensor):
            last.lend()

    def _has_layer(self, module: nn.Module) -> bool:
        """Whether the layer is the module or inside it."""
        if module not in self.around:
            self.around[module] = False  # in case it is a part of itself
            inside = module is self.io.layer or any(map(self._has_layer, module.children()))
            self.around[module] = inside
        return self.around[module]
