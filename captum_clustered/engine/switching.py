"""What is switched off, and the copies of the layer's tensors without it.

A map has one variant without its part above the baseline, one without its part below, and one
without both, which is the baseline. A copy still only receives whole maps: the variants are made
once, and each is written where it belongs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from captum_clustered._layout import fitting
from captum_clustered.engine.linear import Summands

if TYPE_CHECKING:
    from captum_clustered.clustering import Groups
    from captum_clustered.engine.sites import Site

__all__ = ["Ablation", "Summed", "as_baselines"]

_FEW = 256
"""Groups times values per map, or times examples, below which a linear layer is sent copies."""


@dataclass(frozen=True)
class Ablation:
    """What is switched off: in each of the layer's tensors, the parts of group `k`.

    Attributes:
        activations (list[Tensor]): The layer's tensors.
        labels (list[Tensor]): The labels of each tensor, `(N, C)` for whole maps, `(N, 2 C)` for
            parts, those above the baseline first. The numbers go on from one tensor to the next; a
            part in no group has the label `n_groups`.
        variants (list[tuple[Tensor, ...]]): For each tensor what replaces a map: the baseline, if
            the whole map is switched off; and for parts also the map without its part above the
            baseline, and the map without its part below. All broadcast against the tensor.
        channel_dims (list[int]): The axis of the maps, for each tensor.
        n_groups (int): Number of groups of all tensors together.
        cumulative (bool): Whether the copy for group `k` lacks the groups before it as well.
    """

    activations: list[Tensor]
    labels: list[Tensor]
    variants: list[tuple[Tensor, ...]]
    channel_dims: list[int]
    n_groups: int
    cumulative: bool = False

    def room(self, copies: int) -> list[Tensor]:
        """Memory for that many copies, to be used again: fresh memory costs more than copying.

        Returns:
            *list[Tensor]*: `(copies, N, …)` for each of the layer's tensors.
        """
        return [tensor.new_empty(copies, *tensor.shape) for tensor in self.activations]

    def without(self, groups: range, room: list[Tensor] | None = None) -> list[Tensor]:
        """Copies of the tensors: copy `i` lacks the `i`-th of the groups.

        It is several times faster to copy everything and then to write the baseline where it
        belongs than to choose value by value, because most of a copy is never touched.

        Args:
            groups (range): Numbers of groups. -1 is no group: its copy lacks nothing.
            room (list[Tensor], optional): From :meth:`room`, for at least as many copies.
                Default: None (fresh memory)

        Returns:
            *list[Tensor]*: `(len(groups), N, …)` for each of the layer's tensors.
        """
        switch_off = _switch_off_up_to if self.cumulative else _switch_off
        return [
            switch_off(copies[: len(groups)], activation, labels, variants, dim, groups.start)
            for copies, activation, labels, variants, dim in zip(
                self.room(len(groups)) if room is None else room,
                self.activations,
                self.labels,
                self.variants,
                self.channel_dims,
                strict=True,
            )
        ]

    def in_order(self, rank: Tensor) -> Ablation:
        """The same groups, switched off one after the other in an order, each with all before it.

        Args:
            rank (Tensor): int64 `(n_groups,)`, the rank of each group in the order.
        """
        steps = torch.cat([rank, rank.new_tensor([self.n_groups])])  # maps in no group stay
        labels = [steps.to(part.device)[part] for part in self.labels]
        return replace(self, labels=labels, cumulative=True)

    def at(self, site: Site) -> Ablation | Summed | None:
        """The same ablation at a site; None where it would be another, or would not be faster."""
        if self.channel_dims != [1]:
            return None
        n, s = len(site.activations), site.activations[0, 0].numel()
        few = self.n_groups * (n if s == 1 else s) < _FEW
        if site.output is not None and (self.cumulative or few):
            return None
        moved = tuple(self._through(site, variant) for variant in self.variants[0])
        if site.output is None:
            return replace(self, activations=[site.activations], variants=[moved])
        change = _changes(site.activations, self.labels[0], moved, 1).flatten(2)  # (N, P, S)
        weight = site.module.get_parameter("weight").detach()
        return Summed(site.output, weight, change, self.labels[0], self.n_groups)

    def _through(self, site: Site, variant: Tensor) -> Tensor:
        """A variant of the maps as it is at a site, `(N or 1, C, …)`."""
        (activation,) = self.activations
        n = variant.shape[0] if variant.ndim == activation.ndim else 1
        variant = variant.expand(n, *activation.shape[1:]).clone()
        for module in site.between:
            variant = module(variant)
        return variant

    def summands(self) -> list[Callable[[], Summands]]:
        """Makes what linear maps of the copies need, of each tensor; empty where that takes long.

        That is on an accelerator, where to read the sizes of the groups means to wait.
        """
        if self.activations[0].device.type != "cpu":
            return []
        places = range(len(self.activations))
        return [functools.cache(functools.partial(self._summands, place)) for place in places]

    def _summands(self, place: int) -> Summands:
        activation, labels = self.activations[place], self.labels[place]
        variants, dim = self.variants[place], self.channel_dims[place]
        change = _changes(activation, labels, variants, dim)
        if len(variants) > 1:  # what is taken as a whole is taken once
            above, below = labels.chunk(2, dim=1)
            below = below.masked_fill(_is_whole(labels), self.n_groups)
            labels = torch.cat([above, below], 1)
        return Summands.of(activation, change, labels, dim, self.n_groups, self.cumulative)

    def float(self) -> Ablation:
        """The same ablation in float32."""
        return replace(
            self,
            activations=[tensor.float() for tensor in self.activations],
            variants=[tuple(one.float() for one in variants) for variants in self.variants],
        )

    @classmethod
    def of(
        cls,
        activations: list[Tensor],
        groups: list[Groups],
        channel_dims: list[int],
        baselines: list[Tensor],
    ) -> Ablation:
        """Brings groups and baselines into the shapes of the layer's tensors.

        Args:
            activations (list[Tensor]): The layer's tensors, as it gave them.
            groups (list[Groups]): The groups of each tensor, of whole maps or of parts.
            channel_dims (list[int]): The axis of the maps, for each tensor.
            baselines (list[Tensor]): From :func:`as_baselines`.

        Returns:
            *Ablation*: What to switch off.
        """
        total = sum(grouped.n_groups for grouped in groups)
        labels = []
        offset = 0
        for grouped in groups:
            labels.append(torch.where(grouped.labels < 0, total, grouped.labels + offset))
            offset += grouped.n_groups
        variants = [
            _variants(activation, baseline, grouped.labels.shape[1] > activation.shape[dim])
            for activation, baseline, grouped, dim in zip(
                activations, baselines, groups, channel_dims, strict=True
            )
        ]
        return cls(activations, labels, variants, channel_dims, total)

    @property
    def nbytes(self) -> int:
        """Bytes of one ablated copy."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.activations)


@dataclass(frozen=True)
class Summed:
    """An ablation behind a linear layer: a group's part is taken from the sum over maps.

    The weights are read once for all groups. With few groups and few values it is faster to send
    copies through the layer.

    Attributes:
        output (Tensor): The layer's output, `(N, F)`.
        weight (Tensor): Its weight, `(F, C * S)`.
        change (Tensor): What the ablation of each part takes from the layer's input, `(N, P, S)`;
            `P` is `C` for whole maps, `2 C` for parts.
        labels (Tensor): `(N, P)`.
        n_groups (int): Number of groups.
    """

    output: Tensor
    weight: Tensor
    change: Tensor
    labels: Tensor
    n_groups: int

    @property
    def nbytes(self) -> int:
        """Bytes of one ablated copy."""
        return self.output.numel() * self.output.element_size()

    def summands(self) -> list[Callable[[], Summands]]:
        """None, because the copies are sums already."""
        return []

    def room(self, copies: int) -> list[Tensor]:
        """Memory for that many copies, `(copies, N, F)`."""
        return [self.output.new_empty(copies, *self.output.shape)]

    def without(self, groups: range, room: list[Tensor]) -> list[Tensor]:
        """The layer's output without each of the groups, `(len(groups), N, F)`."""
        copies = room[0][: len(groups)]
        copy = self.labels - groups.start  # (N, P): the copy in which a part is switched off
        copy = torch.where((copy >= 0) & (copy < len(groups)), copy, len(groups))
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        parts = self._single_parts if self.change.shape[2] == 1 else self._parts
        for at, part in parts(copy, len(groups), precise):
            torch.sub(self.output[:, at], part, out=copies[:, :, at])
        return [copies]

    def _single_parts(
        self, copy: Tensor, k: int, precise: torch.dtype
    ) -> Iterator[tuple[slice, Tensor]]:
        """What each group adds to some of the features, `(k, N, rows)`, where a map is one value.

        A group's part is a sum of weighted rows of a table. An embedding bag is just that, and
        computes all copies at once.
        """
        n, p, s = self.change.shape
        c = self.weight.shape[1] // s
        example = torch.arange(n, device=copy.device).unsqueeze(1)
        # (N * P,): parts sorted by copy and example; those that are in no copy come last
        bags, order = torch.where(copy < k, copy * n + example, k * n).flatten().sort(stable=True)
        starts = torch.searchsorted(bags, torch.arange(k * n + 1, device=copy.device))
        if copy.device.type == "cpu":  # on other devices, to read this number means to wait
            order = order[: int(starts[-1])]
        change = self.change.flatten().to(precise)[order]
        rows = fitting(c * precise.itemsize, copy.device)
        for start in range(0, len(self.weight), rows):
            at = slice(start, start + rows)
            table = self.weight[at].to(precise).T.contiguous()  # (C, rows)
            sums = functional.embedding_bag(
                order % p % c, table, starts, mode="sum", per_sample_weights=change
            )
            yield at, sums[:-1].unflatten(0, (k, n))

    def _parts(self, copy: Tensor, k: int, precise: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The same for maps of several values, whose weights lie next to each other in memory."""
        n, _, s = self.change.shape
        sides = self.change.reshape(n, -1, self.weight.shape[1])  # (N, 1 or 2, C * S)
        rows = fitting(8 * self.weight[0].nbytes, self.weight.device)  # so that they fit the cache
        for start in range(0, len(self.weight), rows):
            at = slice(start, start + rows)
            weight = self.weight[at].to(precise)
            sums = weight.new_zeros(n, len(weight), k + 1)  # the last column is in no copy
            for i in range(n):
                for side, at_side in zip(sides[i], copy[i].reshape(len(sides[i]), -1), strict=True):
                    part = (weight * side.to(precise)).reshape(len(weight), -1, s).sum(2)
                    sums[i].index_add_(1, at_side, part)
            yield at, sums[:, :, :-1].movedim(2, 0)

    def float(self) -> Summed:
        """The same ablation in float32."""
        return replace(
            self,
            output=self.output.float(),
            weight=self.weight.float(),
            change=self.change.float(),
        )


def _variants(activation: Tensor, baseline: Tensor, two_sided: bool) -> tuple[Tensor, ...]:
    if not two_sided:
        return (baseline,)
    return (
        baseline,
        torch.minimum(activation, baseline),
        torch.maximum(activation, baseline),
    )


def _is_whole(labels: Tensor) -> Tensor:
    """Bool `(N, C)`: whether both parts of a map are in one group, for labels `(N, 2 C)`."""
    above, below = labels.chunk(2, dim=1)
    return above == below


def _changes(
    activation: Tensor, labels: Tensor, variants: tuple[Tensor, ...], channel_dim: int
) -> Tensor:
    """What the ablation of each part takes away, with `P` in place of `C`."""
    off = activation - variants[0]  # (N, …)
    if len(variants) == 1:
        return off
    whole = _by_map(_is_whole(labels), activation, channel_dim)
    above = torch.where(whole, off, activation - variants[1])
    below = torch.where(whole, 0, activation - variants[2])
    return torch.cat([above, below], channel_dim)


def _switch_off(
    copies: Tensor,
    activation: Tensor,
    labels: Tensor,
    variants: tuple[Tensor, ...],
    channel_dim: int,
    start: int,
) -> Tensor:
    """Fills copies with the activation; copy `i` lacks the parts whose label is `start + i`."""
    copies.copy_(activation)  # (k, N, …)
    if len(variants) == 1:
        _write(copies, activation, labels, variants[0], channel_dim, start)
        return copies
    whole = _by_map(_is_whole(labels), activation, channel_dim)
    for side, variant in zip(labels.chunk(2, dim=1), variants[1:], strict=True):
        # the first copy may have been written to already, so it is the first copy that stays
        replaced = torch.where(whole, variants[0], variant)
        _write(copies, copies[0], side, replaced, channel_dim, start)
    return copies


def _write(
    copies: Tensor,
    otherwise: Tensor,
    labels: Tensor,
    variant: Tensor,
    channel_dim: int,
    start: int,
) -> None:
    """Writes a variant of each map into the copy that its label `(N, C)` names.

    A map that is in none of the copies is written into the first one as `otherwise` has it, so that
    no index has to be read from the device.
    """
    copy = labels - start  # (N, C): the copy in which a map is switched off
    here = (copy >= 0) & (copy < len(copies))
    values = torch.where(_by_map(here, otherwise, channel_dim), variant, otherwise)
    example = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    channel = torch.arange(labels.shape[1], device=labels.device)
    at = torch.where(here, copy, 0), example, channel
    copies.movedim(channel_dim + 1, 2)[at] = values.movedim(channel_dim, 1)


def _by_map(values: Tensor, activation: Tensor, channel_dim: int) -> Tensor:
    """Values `(N, C)` in a shape that broadcasts against the activation."""
    return values.reshape(
        [size if axis in (0, channel_dim) else 1 for axis, size in enumerate(activation.shape)]
    )


def _switch_off_up_to(
    copies: Tensor,
    activation: Tensor,
    labels: Tensor,
    variants: tuple[Tensor, ...],
    channel_dim: int,
    start: int,
) -> Tensor:
    """The same, but copy `i` lacks all parts whose label is at most `start + i`."""
    for i, copy in enumerate(copies):
        off = labels <= start + i  # (N, P)
        if len(variants) == 1:
            where = _by_map(off, activation, channel_dim)
            torch.where(where, variants[0], activation, out=copy)
            continue
        above, below = (_by_map(side, activation, channel_dim) for side in off.chunk(2, dim=1))
        one = torch.where(above, variants[1], torch.where(below, variants[2], activation))
        torch.where(above & below, variants[0], one, out=copy)
    return copies


def _is_ordinary(tensor: Tensor) -> bool:
    special = tensor.is_quantized or tensor.is_complex() or tensor.is_nested
    return not special and tensor.layout is torch.strided


def as_baselines(baselines: Any, activations: list[Tensor]) -> list[Tensor]:
    """Turns what a caller passed into one tensor for each of the layer's tensors.

    Args:
        baselines (scalar, Tensor, tuple or None): What replaces a map that is switched off.
        activations (list[Tensor]): The layer's tensors, as it gave them.

    Returns:
        *list[Tensor]*: Each broadcasts against its activation.

    Raises:
        TypeError: If a baseline is neither a number nor a tensor.
        ValueError: If it does not broadcast against the layer's tensor.
    """
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(activations)
    if len(given) != len(activations):
        raise ValueError(
            f"`layer_baselines` must have one entry for each of the layer's {len(activations)} "
            f"tensors; got {len(given)}. Pass a number to use it for all of them."
        )
    ready = []
    for baseline, activation in zip(given, activations, strict=True):
        if baseline is None:
            baseline = 0
        if not isinstance(baseline, (int, float, Tensor)):
            raise TypeError(
                "`layer_baselines` must be a number or a tensor, or a tuple of these; got "
                f"{type(baseline).__name__}. Convert it with `torch.as_tensor`."
            )
        if isinstance(baseline, Tensor) and not _is_ordinary(baseline):
            raise TypeError(
                "`layer_baselines` must be real, dense tensors; got one that is "
                f"{baseline.dtype}, {baseline.layout}. Convert it, for example with "
                "`.dequantize()` or `.to_dense()`."
            )
        tensor = torch.as_tensor(baseline, dtype=activation.dtype, device=activation.device)
        try:
            fits = torch.broadcast_shapes(tensor.shape, activation.shape) == activation.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"`layer_baselines` must broadcast against the layer's output "
                f"{tuple(activation.shape)}; got shape {tuple(tensor.shape)}. Give each axis "
                "the same size, or 1."
            )
        ready.append(tensor.detach())
    return ready
