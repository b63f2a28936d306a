"""What is switched off, and the copies of the layer's tensors without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from captum_clustered.engine.model import fitting

if TYPE_CHECKING:
    from captum_clustered.clustering import Groups
    from captum_clustered.engine.sites import Site

__all__ = ["Ablation", "Summed"]

_FEW = 256
"""Groups times values per map, or times examples, below which a linear layer is sent copies."""


@dataclass(frozen=True)
class Ablation:
    """What is switched off: in each of the layer's tensors, the maps of group `k`.

    Attributes:
        activations (list[Tensor]): The layer's tensors.
        labels (list[Tensor]): The labels `(N, C)` of each tensor. The numbers go on from one tensor
            to the next; a map in no group has the label `n_groups`.
        baselines (list[Tensor]): What replaces an ablated map, for each tensor.
        channel_dims (list[int]): The axis of the maps, for each tensor.
        n_groups (int): Number of groups of all tensors together.
        cumulative (bool): Whether the copy for group `k` lacks the groups before it as well.
    """

    activations: list[Tensor]
    labels: list[Tensor]
    baselines: list[Tensor]
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
            switch_off(copies[: len(groups)], activation, labels, baseline, dim, groups.start)
            for copies, activation, labels, baseline, dim in zip(
                self.room(len(groups)) if room is None else room,
                self.activations,
                self.labels,
                self.baselines,
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
        (activation,), (baseline,) = self.activations, self.baselines
        n = baseline.shape[0] if baseline.ndim == activation.ndim else 1
        ablated = baseline.expand(n, *activation.shape[1:]).clone()  # (N or 1, C, *spatial)
        for module in site.between:
            ablated = module(ablated)
        if site.output is None:
            return replace(self, activations=[site.activations], baselines=[ablated])
        change = site.activations - ablated
        change = change.reshape(*change.shape[:2], -1)  # (N, C, S)
        n, _, s = change.shape
        if self.cumulative or self.n_groups * (n if s == 1 else s) < _FEW:
            return None
        weight = site.module.get_parameter("weight").detach()
        return Summed(site.output, weight, change, self.labels[0], self.n_groups)

    def float(self) -> Ablation:
        """The same ablation in float32."""
        return replace(
            self,
            activations=[tensor.float() for tensor in self.activations],
            baselines=[tensor.float() for tensor in self.baselines],
        )

    @classmethod
    def of(
        cls,
        activations: list[Tensor],
        groups: list[Groups],
        channel_dims: list[int],
        baselines: Any,
    ) -> Ablation:
        """Brings groups and baselines into the shapes of the layer's tensors.

        Args:
            activations (list[Tensor]): The layer's tensors, as it gave them.
            groups (list[Groups]): The groups of each tensor.
            channel_dims (list[int]): The axis of the maps, for each tensor.
            baselines (scalar, Tensor, tuple or None): What the caller passed.

        Returns:
            *Ablation*: What to switch off.

        Raises:
            TypeError: If a baseline is neither a number nor a tensor.
            ValueError: If it does not broadcast against the layer's tensor.
        """
        total = sum(grouped.n_groups for grouped in groups)
        labels = []
        offset = 0
        for grouped in groups:
            labels.append(torch.where(grouped.labels < 0, total, grouped.labels + offset))
            offset += grouped.n_groups
        return cls(activations, labels, _baselines(baselines, activations), channel_dims, total)

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
        change (Tensor): What an ablation takes from the layer's input, `(N, C, S)`.
        labels (Tensor): `(N, C)`.
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

    def room(self, copies: int) -> list[Tensor]:
        """Memory for that many copies, `(copies, N, F)`."""
        return [self.output.new_empty(copies, *self.output.shape)]

    def without(self, groups: range, room: list[Tensor]) -> list[Tensor]:
        """The layer's output without each of the groups, `(len(groups), N, F)`."""
        copies = room[0][: len(groups)]
        copy = self.labels - groups.start  # (N, C): the copy in which a map is switched off
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
        n, c, _ = self.change.shape
        example = torch.arange(n, device=copy.device).unsqueeze(1)
        # (N * C,): maps sorted by copy and example; maps that are in no copy come last
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
                order % c, table, starts, mode="sum", per_sample_weights=change
            )
            yield at, sums[:-1].unflatten(0, (k, n))

    def _parts(self, copy: Tensor, k: int, precise: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The same for maps of several values, whose weights lie next to each other in memory."""
        n, c, s = self.change.shape
        rows = fitting(8 * self.weight[0].nbytes, self.weight.device)  # so that they fit the cache
        for start in range(0, len(self.weight), rows):
            at = slice(start, start + rows)
            weight = self.weight[at].to(precise)
            sums = weight.new_zeros(n, len(weight), k + 1)  # the last column is in no copy
            for i in range(n):
                part = (weight * self.change[i].flatten().to(precise)).reshape(-1, c, s).sum(2)
                sums[i].index_add_(1, copy[i], part)
            yield at, sums[:, :, :-1].movedim(2, 0)

    def float(self) -> Summed:
        """The same ablation in float32."""
        return replace(
            self,
            output=self.output.float(),
            weight=self.weight.float(),
            change=self.change.float(),
        )


def _switch_off(
    copies: Tensor,
    activation: Tensor,
    labels: Tensor,
    baseline: Tensor,
    channel_dim: int,
    start: int,
) -> Tensor:
    """Fills copies with the activation; copy `i` lacks the maps whose label is `start + i`."""
    copies.copy_(activation)  # (k, N, …)
    copy = labels - start  # (N, C): the copy in which a map is switched off
    here = (copy >= 0) & (copy < len(copies))
    shape = [size if axis in (0, channel_dim) else 1 for axis, size in enumerate(activation.shape)]
    # a map that is in none of the copies is written unchanged into the first one, so that no index
    # has to be read from the device; values are (N, C, …)
    values = torch.where(here.reshape(shape), baseline, activation).movedim(channel_dim, 1)
    example = torch.arange(len(labels), device=labels.device).unsqueeze(1)
    channel = torch.arange(labels.shape[1], device=labels.device)
    copies.movedim(channel_dim + 1, 2)[torch.where(here, copy, 0), example, channel] = values
    return copies


def _switch_off_up_to(
    copies: Tensor,
    activation: Tensor,
    labels: Tensor,
    baseline: Tensor,
    channel_dim: int,
    start: int,
) -> Tensor:
    """The same, but copy `i` lacks all maps whose label is at most `start + i`."""
    shape = [size if axis in (0, channel_dim) else 1 for axis, size in enumerate(activation.shape)]
    for i, copy in enumerate(copies):
        torch.where((labels <= start + i).reshape(shape), baseline, activation, out=copy)
    return copies


def _baselines(baselines: Any, activations: list[Tensor]) -> list[Tensor]:
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
