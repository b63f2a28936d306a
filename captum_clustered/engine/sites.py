"""Sites: places after the layer where to switch a map off has the same effect as in the layer.

Pooling, activations and batch norm make each map of that map alone. So a map may as well be
switched off behind them, and behind a pooling layer a copy is a fraction of the size. Behind a
linear layer that takes the flattened maps, a group's part can be taken from the sum.

Private parts of PyTorch: `UntypedStorage._cdata`, which tells memory apart, the hooks of a module,
`_forward_hooks` and `_forward_pre_hooks`, and the base class of batch norm, `_BatchNorm`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from captum_clustered.engine.calls import Call, LayerIO

__all__ = ["MAPWISE", "Follower", "Site", "mixes", "settled", "share"]

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
"""Modules that, in evaluation mode, make each map of that map alone, where maps are on axis 1.

The value is the number of axes for which that holds, None for any.
"""

_UNTOUCHED = (nn.Flatten, nn.Dropout, nn.Identity)
"""Modules that may leave flattened maps as they are."""


@dataclass(frozen=True)
class Site:
    """A place after the layer where to switch a map off has the same effect as in the layer.

    Attributes:
        module (nn.Module): After its call maps are switched off.
        activations (Tensor): Its output, `(N, C, …)`; of a linear layer its input, before that was
            flattened.
        between (list[nn.Module]): The modules from the layer to there, in order.
        prefix (list[Call]): The calls that had finished by then, as the frozen prefix. A tensor
            that holds maps of before, in which nothing is switched off, has no values in it.
        output (Tensor or None): What a linear layer returned, `(N, F)`; None for other modules.
    """

    module: nn.Module
    activations: Tensor
    between: list[nn.Module]
    prefix: list[Call]
    output: Tensor | None = None


class Follower:
    """Follows the layer's value for as long as only modules take it that leave each map to itself.

    Args:
        io (LayerIO): The layer, and which side of it.
    """

    def __init__(self, io: LayerIO) -> None:
        self.io = io
        self.last: Call | None = None  # the call that gave the value as it is now
        self.passed: list[nn.Module] = []
        self.stale: list[Tensor] = []  # the value as it was before the modules passed
        self.sites: list[Site] = []

    @property
    def active(self) -> bool:
        """Whether the value is still followed."""
        return self.last is not None

    def watch(self, call: Call | None) -> None:
        """Follows the output of a call from here on; None, or what cannot be followed, ends it."""
        known = call is not None and isinstance(call.output, Tensor) and call.unchanged()
        self.last = call if known else None

    def rename(self, value: Tensor, other: Tensor) -> None:
        """Follows another tensor in place of the value, if the value is what is followed.

        Args:
            value (Tensor): What a call returned.
            other (Tensor): A view of it, so that a write to one counts for both.
        """
        if self.last is not None and self.last.output is value:
            self.watch(replace(self.last, output=other))
        else:
            self.watch(None)

    def begin(self, module: nn.Module, args: Any) -> None:
        """A call begins after the layer: does it leave each map to itself?"""
        if self.last is None or _has_children(module):
            return  # the calls inside will tell
        value = self.last.output
        if len(args) == 1 and self.last.unchanged() and self._is_plain(module):
            if args[0] is value and (_is_mapwise(module, value) or type(module) is nn.Flatten):
                return
            if type(module) in (*_UNTOUCHED, nn.Linear) and _is_flat(args[0], value):
                return
        self.watch(None)

    def _is_plain(self, module: nn.Module) -> bool:
        """Whether a module does what its type says, and nothing else."""
        ours = module is self.io.layer  # our own hook is on it
        return (
            "forward" not in module.__dict__
            and not module._forward_hooks
            and len(module._forward_pre_hooks) == ours
        )

    def end(self, call: Call, finished: Callable[[], list[Call]]) -> None:
        """A call that began after the layer has finished.

        Args:
            call (Call): The call.
            finished (callable): Gives the outermost calls that have finished, in order.
        """
        assert self.last is not None
        value = self.last.output
        call.writes = ""  # if it writes, then into the value, in place of which copies come
        flat = _is_flat(call.output, value)
        if _has_children(call.module):
            # the call as a whole is handed out again: it must have done nothing else
            if type(call.module) is not nn.Sequential or not (call.output is value or flat):
                self.watch(None)
            return
        if type(call.module) in _UNTOUCHED and flat:
            return
        if type(call.module) is nn.Flatten:  # along other axes
            self.watch(None)
            return
        if not (self.io.at_input and not self.passed):  # others may see the layer's input as it is
            self.stale.append(value)
        self._add_site(value, call, finished)

    def _add_site(self, value: Tensor, call: Call, finished: Callable[[], list[Call]]) -> None:
        linear = call.module if type(call.module) is nn.Linear else None
        self.watch(call)
        if self.last is None:
            return
        if linear is None:
            self.passed.append(call.module)
        elif len({value.dtype, linear.weight.dtype, call.output.dtype}) > 1:  # autocast
            self.watch(None)
            return
        done = finished()
        if any(one.writes == "other" and self._is_stale(one) for one in done):
            return  # that call runs again, and would give a value in which nothing is switched off
        self.sites.append(
            Site(
                call.module,
                (call.output if linear is None else value).detach().clone(),
                list(self.passed),
                [
                    one.without_values(sealed=True)
                    if one is not call and self._is_stale(one)
                    else one
                    for one in done
                ],
                None if linear is None else call.output.detach().clone(),
            )
        )
        if linear is not None:
            self.watch(None)

    def _is_stale(self, call: Call) -> bool:
        """Whether a call returned the value as it was before."""
        return any(share(tensor, old) for tensor in call.tensors() for old in self.stale)

    def found(self, numbers: Mapping[nn.Module, int]) -> tuple[Site, ...]:
        """The last sites: a linear layer first, then the last module before it.

        Args:
            numbers (mapping): How often each module was called. A site must be called once, because
                a hook acts in every call.
        """
        last = {site.output is None: site for site in self.sites if numbers[site.module] == 1}
        return tuple(
            replace(site, prefix=settled(site.prefix, site.module, whole=False))
            for site in reversed(last.values())
        )


def settled(calls: list[Call], replaced: nn.Module, whole: bool) -> list[Call]:
    """The calls that need not run again, with what is to be handed out in their place.

    A call that is skipped does not write. So what it wrote into is handed out without values, and a
    model that needs these fails. With `whole`, such calls run again, and so do those before them.

    Args:
        calls (list[Call]): The calls that had finished, in order.
        replaced (nn.Module): The module whose output is replaced, so that it may have changed.
        whole (bool): Whether all outputs are handed out with values.
    """
    kept = []
    for call in calls:
        if call.writes == "other" or (call.writes and whole):
            continue
        if call.module is replaced or call.unchanged():
            kept.append(call)
        elif call.rewritten and not whole:
            kept.append(call.without_values())
    return kept


def share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of the same memory; of a sparse one there are no views."""
    try:
        return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)
    except NotImplementedError:
        return one is other


def _is_mapwise(module: nn.Module, value: Tensor) -> bool:
    return (
        type(module) in MAPWISE
        and MAPWISE[type(module)] in (None, value.ndim)
        and not getattr(module, "return_indices", False)
        and not mixes(module)
    )


def mixes(module: nn.Module) -> bool:
    """Whether a module normalises over the batch in evaluation mode, for lack of statistics."""
    return (
        isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.running_mean is None
        and module.running_var is None
    )


def _is_flat(tensor: Any, value: Tensor) -> bool:
    """Whether a tensor is the value seen as `(N, F)`, or the value itself if that is its shape."""
    return bool(
        isinstance(tensor, Tensor)
        and tensor.shape == (len(value), value.numel() // max(1, len(value)))
        and share(tensor, value)
        and tensor.storage_offset() == value.storage_offset()
        and tensor.is_contiguous()
        and value.is_contiguous()
    )


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
