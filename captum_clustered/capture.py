"""The first stage: one ordinary forward pass that records all that the later stages need.

Recorded are the layer's activations, the target score and the *frozen prefix*: the outputs of the
outermost module calls that had finished before the layer's own call began. The replay hands these
out again instead of computing them, see :mod:`captum_clustered.replay`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.utils._pytree import tree_leaves

from captum_clustered.forward import Model, ModuleStates
from captum_clustered.targets import check_target, select

__all__ = ["Call", "Capture", "LayerIO", "capture"]


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

    def unchanged(self) -> bool:
        """Whether nothing wrote into the output after the call returned."""
        return all(version is not None for version in self.versions) and (
            self.versions == _versions(self.output)
        )


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
        overwrites (bool): Whether the model wrote into its arguments.
        stochastic (bool): Whether a module in training mode makes the model's output random or
            dependent on the rest of the batch.
    """

    activations: list[Tensor]
    scores: Tensor
    scale: Tensor
    prefix: list[Call]
    overwrites: bool
    stochastic: bool


def capture(model: Model, io: LayerIO, target: Tensor | None, seen: ModuleStates) -> Capture:
    """Runs the model once and records what the replay needs.

    Args:
        model (Model): The model with its inputs.
        io (LayerIO): The layer, and which side of it.
        target (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        seen (ModuleStates): Remembers the modules that run.

    Returns:
        *Capture*: The activations, the scores and the frozen prefix.

    Raises:
        ValueError: If the layer does not run, or runs more than once, or folds the batch away, or
            if the number of scores is neither that of the examples nor one.
    """
    recorder = _Recorder(io, seen)
    args = model.fresh()
    activations: list[list[Tensor]] = []

    def keep(tensors: list[Tensor]) -> None:
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
        overwrites=any(version != 0 for arg in args for version in _versions(arg)),
        stochastic=any(_is_stochastic(module) for module in seen.attributes),
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
    """Knows from module hooks which calls had finished when the layer's call began."""

    def __init__(self, io: LayerIO, seen: ModuleStates) -> None:
        self.io = io
        self.seen = seen
        self.prefix: list[Call] = []
        self.begun = False
        self.numbers: Counter[nn.Module] = Counter()
        # one frame per open call: the calls it has finished so far; the first is the caller itself
        self.frames: list[list[Call]] = [[]]
        self.open: list[tuple[nn.Module, int]] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        owner = threading.get_ident()

        def before(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == owner:
                self._before(module)

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

    def _before(self, module: nn.Module) -> None:
        self.seen.remember(module)
        if self.begun:
            return
        if module is self.io.layer:
            self.prefix = [call for frame in self.frames for call in frame]
            if self.io.at_input:
                self.begun = True
                return
        self.open.append((module, self.numbers[module]))
        self.numbers[module] += 1
        self.frames.append([])

    def _after(self, module: nn.Module, output: Any) -> None:
        if self.begun:
            return
        module, number = self.open.pop()
        inside = [ran for call in self.frames.pop() for ran in (call.module, *call.inside)]
        call = Call(module, number, output, inside, _versions(output))
        self.frames[-1].append(call)
        if module is self.io.layer:
            # the layer itself need not run again either: a hook replaces what it returns
            self.prefix.append(call)
            self.begun = True


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
