"""A linear map of copies of the layer's value, without running it on each copy.

What a convolution or a linear layer makes of a copy is what it makes of the whole value, less what
it makes of the group's own maps. Each map is in one group, or each of its two parts is. So the maps
are summed once for all groups together, or twice, and not once for each group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LINEAR", "VIEWS", "LinearMap", "Summands"]

LINEAR = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d)
"""Functions that sum over maps: :class:`LinearMap` takes their arguments."""

VIEWS = (
    *(Tensor.transpose, torch.transpose, Tensor.permute, torch.permute),
    *(Tensor.flatten, torch.flatten),
)
"""Functions that put the axes of a value into another order or join some, whatever their sizes."""

_REST = 0.1
"""The share of the value that a copy must keep if it is to be had by subtraction. Of less, too many
digits would be lost."""


@dataclass(frozen=True, eq=False, repr=False)  # vmap prints what it runs, weights and all
class LinearMap:
    """A call of a linear layer or a convolution.

    Attributes:
        func (callable): One of :data:`LINEAR`.
        weight (Tensor): `(F, C, …)`.
        bias (Tensor or None): `(F,)`.
        settings (dict[str, Any]): Its other arguments.
    """

    func: Callable[..., Tensor]
    weight: Tensor
    bias: Tensor | None
    settings: dict[str, Any]

    @classmethod
    def of(
        cls,
        func: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor | None = None,
        *rest: Any,
        **kwargs: Any,
    ) -> LinearMap:
        """The call with these arguments, behind the value."""
        names = ("stride", "padding", "dilation", "groups")
        return cls(func, weight, bias, {**dict(zip(names, rest, strict=False)), **kwargs})

    def __call__(self, value: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What it makes of a value, by its own weight or by a part of it."""
        return self.func(value, weight, bias, **self.settings)

    def matrix(self, value: Tensor) -> Tensor | None:
        """The value as a matrix, `(maps, places)`, with the places of the output.

        None if an output takes more than one place, as with a kernel of 3 x 3.

        Args:
            value (Tensor): Of one example, with any number of maps.
        """
        if self.func is functional.linear:
            return value.flatten(0, -2).T
        padding, stride = self.settings.get("padding", 0), self.settings.get("stride", 1)
        padded = padding == "same" or (padding != "valid" and any(_each(padding)))
        if padded or self.weight[0, 0].numel() > 1:
            return None
        steps = _each(stride) * (1 if len(_each(stride)) > 1 else value.ndim - 2)
        return value[0][(slice(None), *(slice(None, None, step) for step in steps))].flatten(1)

    def less(self, before: Tensor, own: Tensor, weight: Tensor, out: Tensor) -> None:
        """Writes what is left of an output without some maps, in one step and no other memory.

        Args:
            before (Tensor): The output for one example.
            own (Tensor): `(maps, places)`, from :meth:`matrix`.
            weight (Tensor): `(F, maps, …)`.
            out (Tensor): Where it is written, like `before` and contiguous.
        """
        weight = weight.flatten(1)
        if self.func is functional.linear:
            before, out = (one.reshape(-1, len(weight)) for one in (before, out))  # (places, F)
            torch.addmm(before, own.T, weight.T, alpha=-1, out=out)
        else:
            before, out = (one.flatten(1) for one in (before, out))  # (F, places)
            torch.addmm(before, weight, own, alpha=-1, out=out)

    def same(self, other: LinearMap) -> bool:
        """Whether another call did the same."""
        tensors = self.weight is other.weight and self.bias is other.bias
        return tensors and self.func is other.func and self.settings == other.settings

    def sums(self, value: Tensor, examples: int, maps: int) -> bool:
        """Whether it sums over the maps of a value.

        Args:
            value (Tensor): The value.
            examples (int): Its axis of examples.
            maps (int): Its axis of maps.
        """
        if not value.dtype == self.weight.dtype in (torch.float32, torch.float64):
            return False
        if self.func is functional.linear:
            return maps == value.ndim - 1 and self.weight.ndim == 2
        plain = self.settings.get("groups", 1) == 1 and value.ndim == self.weight.ndim
        return plain and (examples, maps) == (0, 1)


def _each(setting: int | tuple[int, ...]) -> tuple[int, ...]:
    return (setting,) if isinstance(setting, int) else tuple(setting)


@dataclass(frozen=True, eq=False)
class Summands:
    """One of the layer's tensors, taken apart into what each group takes from it.

    Attributes:
        value (Tensor): The tensor without a change, in a view such as the model has of it.
        change (Tensor): What the ablation of each part takes from it, in the same view, with a
            place for each part where the value has one for each map.
        axes (Tensor): Stands for the view: strides tell the axes of examples and of maps.
        order (Tensor): `(N, P)`, the parts in the order of their groups.
        ends (list[list[int]]): For each example the places in that order where group 0 begins,
            where group 1 begins, …
        drowned (list[list[bool]]): For each example and group whether its copy keeps so little of
            the value that it must not be had by subtraction.
        cumulative (bool): Whether the copy for a group lacks the groups before it as well.
    """

    value: Tensor
    change: Tensor
    axes: Tensor
    order: Tensor
    ends: list[list[int]]
    drowned: list[list[bool]]
    cumulative: bool

    @classmethod
    def of(
        cls, value: Tensor, change: Tensor, labels: Tensor, dim: int, k: int, cumulative: bool
    ) -> Summands:
        """The summands of one tensor. It reads the sizes of the groups from the device.

        Args:
            value (Tensor): The tensor.
            change (Tensor): What the ablation of each part takes from it.
            labels (Tensor): `(N, P)`; a part in no group has the label `k`.
            dim (int): The axis of the maps.
            k (int): Number of groups.
            cumulative (bool): As the attribute.
        """
        strides = [1 if axis == 0 else 2 if axis == dim else 0 for axis in range(change.ndim)]
        axes = torch.empty_strided((2, *change.shape[1:]), strides, device="meta")
        sizes = torch.stack([one.bincount(minlength=k + 1)[:k] for one in labels])  # (N, K)
        ends = functional.pad(sizes.cumsum(1), (1, 0))
        taken = change.abs().movedim(dim, 1).unsqueeze(-1).flatten(2).sum(2)  # (N, P)
        taken = taken.new_zeros(len(taken), k + 1).scatter_add_(1, labels, taken)[:, :k]
        if cumulative:
            taken = taken.cumsum(1)
        total = value.abs().flatten(1).sum(1, keepdim=True)  # (N, 1)
        return cls(
            value,
            change,
            axes,
            labels.argsort(dim=1, stable=True),
            ends.tolist(),
            (~(total - taken >= _REST * total)).tolist(),  # also where one is not finite
            cumulative,
        )

    def seen(self, view: Callable[[Tensor], Tensor]) -> Summands:
        """The same in a further view."""
        value, change, axes = map(view, (self.value, self.change, self.axes))
        return replace(self, value=value, change=change, axes=axes)

    def axes_for(self, linear: LinearMap) -> tuple[int, int] | None:
        """The axes of examples and of maps; None if they are lost, or not what is summed over."""
        shape, strides = self.axes.shape, self.axes.stride()
        own = {s: axis for axis, s in enumerate(strides) if s and shape[axis] > 1}
        if own.keys() != {1, 2} or (shape[own[1]], shape[own[2]]) != (2, self.order.shape[1]):
            return None
        return (own[1], own[2]) if linear.sums(self.value, own[1], own[2]) else None

    def without(
        self,
        groups: range,
        linear: LinearMap,
        axes: tuple[int, int],
        whole: Tensor,
        copies: Tensor,
    ) -> Tensor:
        """What a linear map makes of the copies that lack each of the groups.

        Args:
            groups (range): Numbers of groups; -1 is no group, and comes first.
            linear (LinearMap): The map.
            axes (tuple[int, int]): From :meth:`axes_for`.
            whole (Tensor): What it makes of the value without a change.
            copies (Tensor): The copies, in the view.

        Returns:
            *Tensor*: `(len(groups), *whole.shape)`.
        """
        examples, maps = axes
        shape = whole.select(examples, 0).shape
        found = whole.new_empty(len(groups), whole.shape[examples], *shape)
        for n, (ends, drowned) in enumerate(zip(self.ends, self.drowned, strict=True)):
            # the parts that the groups take, one group after the other
            at = start = 0 if self.cumulative else ends[max(groups.start, 0)]
            parts = self.order[n, start : ends[groups.stop]]
            change = self.change.narrow(examples, n, 1).index_select(maps, parts)
            weight = linear.weight.index_select(1, parts % linear.weight.shape[1])
            matrix = linear.matrix(change)  # (parts, places)
            before = whole.select(examples, n)
            for group, one, copy in zip(groups, found[:, n], copies, strict=True):
                size = ends[group + 1] - at
                if group >= 0 and drowned[group]:
                    copy = copy.narrow(examples, n, 1)
                    one.copy_(linear(copy, linear.weight, linear.bias).select(examples, 0))
                elif size and matrix is not None:
                    own = matrix.narrow(0, at - start, size)
                    linear.less(before, own, weight.narrow(1, at - start, size), one)
                elif size:
                    own = change.narrow(maps, at - start, size)
                    part = linear(own, weight.narrow(1, at - start, size), None)
                    torch.sub(before, part.select(examples, 0), out=one)
                else:
                    one.copy_(before)
                at += size
                before = one if self.cumulative else before
        return found.movedim(1, examples + 1)
