"""The scores without each group, by running again only what lies behind the layer.

The *suffix* path maps over the group index with `torch.vmap`: only operations that depend on the
ablated activations get the extra axis, the frozen prefix is handed out instead of being computed.
Maps are switched off as far behind the layer as that is the same, see
:class:`captum_clustered.engine.capture.Site`.
Where `vmap` cannot go, the *full* path repeats the inputs as Captum does. Both give the same
numbers.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_structure, tree_unflatten

from captum_clustered.clustering import Groups
from captum_clustered.engine.capture import Call, Capture, LayerIO, Site, capture
from captum_clustered.engine.model import Model, borrowed
from captum_clustered.targets import repeat_target, select

__all__ = ["Ablation", "Replay", "chunks", "fitting", "replay"]

BUDGET = {"cpu": 28 * 2**20, "other": 256 * 2**20}
"""Bytes of ablated activations that are held at a time, where the caller does not say, by device.

On the CPU, what is much larger is fetched from the system and zeroed anew for each chunk.
"""

_FEW = 256
"""Groups times values per map, or times examples, below which a linear layer is sent copies."""


@dataclass(frozen=True)
class Ablation:
    """What is switched off: in each of the layer's tensors, the maps of group `k`.

    Attributes:
        activations (list[Tensor]): The layer's tensors.
        labels (list[Tensor]): For each, its labels `(N, C)`; the groups of all tensors are numbered
            through.
        baselines (list[Tensor]): For each, what takes the place of an ablated map.
        channel_dims (list[int]): For each, the axis of its maps.
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
        """Memory for that many copies, to be used again: fresh memory costs more than copying."""
        return [tensor.new_empty(copies, *tensor.shape) for tensor in self.activations]

    def without(self, groups: range, room: list[Tensor] | None = None) -> list[Tensor]:
        """Copies of the tensors, the i-th without the i-th of the groups; a new first axis.

        To copy everything and then to write the baseline where it belongs is several times faster
        than to choose between the two value by value, since most of a copy is never touched.
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
        """The groups one after the other, each with all before it.

        Args:
            rank (Tensor): int64 `(n_groups,)`, the place of each group.
        """
        steps = torch.cat([rank, rank.new_tensor([self.n_groups])])  # what is in no group stays
        labels = [steps.to(part.device)[part] for part in self.labels]
        return replace(self, labels=labels, cumulative=True)

    def at(self, site: Site) -> Ablation | _Summed | None:
        """The same ablation further on; None where it is another, or would not be faster."""
        if self.channel_dims != [1]:
            return None
        (activation,), (baseline,) = self.activations, self.baselines
        n = baseline.shape[0] if baseline.ndim == activation.ndim else 1
        ablated = baseline.expand(n, *activation.shape[1:]).clone()
        for module in site.modules:
            ablated = module(ablated)
        if site.linear is None:
            return replace(self, activations=[site.activations], baselines=[ablated])
        change = site.activations - ablated
        change = change.reshape(*change.shape[:2], -1)
        n, _, s = change.shape
        if self.cumulative or self.n_groups * (n if s == 1 else s) < _FEW:
            return None
        assert site.output is not None
        return _Summed(
            site.output, site.linear.weight.detach(), change, self.labels[0], self.n_groups
        )

    def float(self) -> Ablation:
        """The same in float32."""
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
            groups (list[Groups]): The groups of each.
            channel_dims (list[int]): For each, the axis of its maps.
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
class _Summed:
    """An ablation behind a linear layer: its output is a sum over maps, less the part of a group.

    The weights are read once, for all groups. For few groups with few values it is faster to send
    copies through the layer.

    Attributes:
        output (Tensor): Of the layer, `(N, F)`.
        weight (Tensor): `(F, C S)`.
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
        """Memory for that many copies."""
        return [self.output.new_empty(copies, *self.output.shape)]

    def without(self, groups: range, room: list[Tensor]) -> list[Tensor]:
        """The layer's output without each of the groups; a new first axis."""
        copies = room[0][: len(groups)]
        copy = self.labels - groups.start
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

        A sum of weighted rows of a table is what an embedding bag is: one for each copy.
        """
        n, c, _ = self.change.shape
        example = torch.arange(n, device=copy.device).unsqueeze(1)
        bags, order = torch.where(copy < k, copy * n + example, k * n).flatten().sort(stable=True)
        starts = torch.searchsorted(bags, torch.arange(k * n + 1, device=copy.device))
        if copy.device.type == "cpu":  # elsewhere to read how many are in no copy would be to wait
            order = order[: int(starts[-1])]
        change = self.change.flatten().to(precise)[order]
        rows = fitting(c * precise.itemsize, copy.device)
        for start in range(0, len(self.weight), rows):
            at = slice(start, start + rows)
            table = self.weight[at].to(precise).T.contiguous()
            sums = functional.embedding_bag(
                order % c, table, starts, mode="sum", per_sample_weights=change
            )
            yield at, sums[:-1].unflatten(0, (k, n))

    def _parts(self, copy: Tensor, k: int, precise: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The same for maps of several values, whose weights are next to each other."""
        n, c, s = self.change.shape
        rows = fitting(8 * self.weight[0].nbytes, self.weight.device)  # so that they fit the cache
        for start in range(0, len(self.weight), rows):
            at = slice(start, start + rows)
            weight = self.weight[at].to(precise)
            sums = weight.new_zeros(n, len(weight), k + 1)
            for i in range(n):
                part = (weight * self.change[i].flatten().to(precise)).reshape(-1, c, s).sum(2)
                sums[i].index_add_(1, copy[i], part)
            yield at, sums[:, :, :-1].movedim(2, 0)

    def float(self) -> _Summed:
        """The same in float32."""
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
    """Fills copies with the activation, the i-th without the maps whose label is `start + i`."""
    copies.copy_(activation)
    copy = labels - start  # the copy in which a map is switched off
    here = (copy >= 0) & (copy < len(copies))
    shape = [size if axis in (0, channel_dim) else 1 for axis, size in enumerate(activation.shape)]
    # a map that is in none of the copies is written into the first as it is: no index is looked at
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
    """The same, but the i-th copy lacks all maps whose label is at most `start + i`."""
    shape = [size if axis in (0, channel_dim) else 1 for axis, size in enumerate(activation.shape)]
    for i, copy in enumerate(copies):
        torch.where((labels <= start + i).reshape(shape), baseline, activation, out=copy)
    return copies


def _baselines(baselines: Any, activations: list[Tensor]) -> list[Tensor]:
    given = baselines if isinstance(baselines, tuple) else (baselines,) * len(activations)
    if len(given) != len(activations):
        raise ValueError(
            f"`layer_baselines` must have one entry for each of the layer's {len(activations)} "
            f"tensors; got {len(given)}."
        )
    ready = []
    for baseline, activation in zip(given, activations, strict=True):
        if baseline is None:
            baseline = 0
        if not isinstance(baseline, (int, float, Tensor)):
            raise TypeError(
                "`layer_baselines` must be a number or a tensor, or a tuple of these; got "
                f"{type(baseline).__name__}."
            )
        tensor = torch.as_tensor(baseline, dtype=activation.dtype, device=activation.device)
        try:
            fits = torch.broadcast_shapes(tensor.shape, activation.shape) == activation.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"`layer_baselines` must broadcast against the layer's output "
                f"{tuple(activation.shape)}; got shape {tuple(tensor.shape)}."
            )
        ready.append(tensor.detach())
    return ready


@dataclass(frozen=True)
class Replay:
    """Scores without each group, and the path that computed them.

    Attributes:
        scores (Tensor): `(N,)`, or `(1,)` if the model gives one score for the batch; computed by
            the same path, so that rounding cancels in the differences.
        ablated_scores (Tensor): `(N, K)` or `(1, K)`.
        path (str): ``"suffix"`` or ``"full"``.
        reason (str or None): Why the full path was taken.
    """

    scores: Tensor
    ablated_scores: Tensor
    path: Literal["suffix", "full"]
    reason: str | None = None


def replay(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    captured: Capture,
    ablation: Ablation,
    *,
    mode: Literal["auto", "suffix", "full"] = "auto",
    chunk: int | None = None,
    check: bool = True,
    tick: Callable[[int], object] = lambda groups: None,  # noqa: ARG005
) -> Replay:
    """Computes the score without each group.

    Args:
        model (Model): The model with its inputs.
        io (LayerIO): The layer.
        target (Tensor or None): From :func:`captum_clustered.targets.format_target`.
        captured (Capture): What the first pass recorded.
        ablation (Ablation): The groups.
        mode (str, optional): ``"auto"`` falls back to the full path with a warning, ``"suffix"``
            raises instead, ``"full"`` asks for it. Default: ``"auto"``
        chunk (int, optional): Groups at a time. Default: None (as many as fit :data:`BUDGET`)
        check (bool, optional): Whether the suffix path has to reproduce the score of the plain
            forward pass from a copy without ablation; reads one value. Default: True
        tick (callable, optional): Called with the number of groups done. Default: nothing

    Returns:
        *Replay*: The scores.

    Raises:
        RuntimeError: If ``mode="suffix"`` was asked for and cannot be had.
    """
    if mode == "full":
        reason = "it was asked for"
    elif captured.stochastic:
        reason = "a module in training mode makes the output random, or dependent on the batch"
    else:
        found = _suffix(model, io, target, captured, ablation, chunk, check, tick)
        if isinstance(found, Replay):
            return found
        reason = found
    if mode == "suffix":
        raise RuntimeError(
            "`replay` must be 'auto' or 'full' for this model and layer; got 'suffix', which "
            f"cannot be taken: {reason}."
        )
    if mode == "auto" and not captured.stochastic:
        warnings.warn(
            f"The whole model runs again for each group, because: {reason}. The numbers are the "
            "same, only slower to get. Pass replay='full' to ask for that without this warning.",
            UserWarning,
            stacklevel=5,
        )
    if chunk is None:  # a copy of the inputs grows to many times its size inside the model
        chunk = fitting(8 * (ablation.nbytes + model.nbytes), captured.scores.device)
    if captured.stochastic or len(captured.scores) != len(ablation.activations[0]):
        chunk = 1  # copies would be normalised, or scored, together
    scores = _full(model, io, target, captured, ablation, chunk, tick)
    return Replay(captured.scores, scores, "full", reason)


def _suffix(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    captured: Capture,
    ablation: Ablation,
    chunk: int | None,
    check: bool,
    tick: Callable[[int], object],
) -> Replay | str:
    """The scores by `torch.vmap`, or why they cannot be had that way."""

    def run(
        io: LayerIO, prefix: list[Call], ablation: Ablation | _Summed, spread: bool
    ) -> Replay | str:
        return _mapped(
            model, io, target, captured, prefix, ablation, chunk, check, tick, spread=spread
        )

    for site in captured.sites:
        moved = ablation.at(site)
        found = moved and run(site.io, site.prefix, moved, False)
        if isinstance(found, Replay):
            return found
    found = run(io, captured.prefix, ablation, False)
    if isinstance(found, Replay) or found == _DISAGREES:
        return found
    prefix = captured.prefix
    if not captured.whole:  # something that the model lets go of may be needed after all
        with borrowed() as seen:
            prefix = capture(model, io, target, seen, whole=True).prefix
        found = run(io, prefix, ablation, False)
        if isinstance(found, Replay) or found == _DISAGREES:
            return found
    # what depends on the group cannot be written in place into what does not: so let all that is
    # known depend on it as well, at the price of computing more
    return run(io, prefix, ablation, True)


_DISAGREES = "running only what lies behind the layer did not reproduce the score"


def _mapped(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    captured: Capture,
    prefix: list[Call],
    ablation: Ablation | _Summed,
    chunk: int | None,
    check: bool,
    tick: Callable[[int], object],
    *,
    spread: bool,
) -> Replay | str:
    device = captured.scores.device
    mixed = torch.is_autocast_enabled(device.type)
    if mixed:  # autocast does not reach what vmap runs: there, all is computed in float32
        ablation = ablation.float()
    chunk = chunk or fitting(ablation.nbytes, device)
    outputs = [call.output for call in prefix]
    spec = tree_structure((outputs, model.args))

    def score(ablated: list[Tensor], known: list[Any]) -> Tensor:
        outputs, args = tree_unflatten(known, spec)
        hand_out(outputs)
        handle = io.hook(lambda _: ablated)
        try:
            return select(model.forward_func(*args), target)
        finally:
            handle.remove()

    def run(groups: range) -> Tensor:
        known = tree_leaves((outputs, model.fresh()))
        if mixed:
            known = [_float(leaf) for leaf in known]
        dims = [0 if spread and isinstance(leaf, Tensor) else None for leaf in known]
        if spread:
            known = [
                leaf.expand(len(groups), *leaf.shape) if isinstance(leaf, Tensor) else leaf
                for leaf in known
            ]
        ablated = ablation.without(groups, room)
        # cloned, should the score be a view into what the next chunk writes over
        return torch.vmap(score, (0, dims), randomness="same")(ablated, known).clone()

    with _frozen(prefix) as hand_out, _batchable(device.type, mixed):
        # there is no group -1: the first copy stays whole
        first, *others = chunks(range(-1, ablation.n_groups), chunk)
        room = ablation.room(len(first))
        try:
            scores = run(first)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if scores.is_meta:
            return "the score needs what was not computed again"
        if check and not _agrees(scores[0], captured):
            return _DISAGREES
        tick(len(first) - 1)
        parts = [scores[1:]]
        for groups in others:
            parts.append(run(groups))
            tick(len(groups))
    return Replay(scores[0], torch.cat(parts).T, "suffix")


def _float(leaf: Any) -> Any:
    low = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
    return leaf.float() if low else leaf


def fitting(nbytes: int, device: torch.device) -> int:
    """How many copies of that many bytes fit the budget, at least one."""
    return max(1, BUDGET.get(device.type, BUDGET["other"]) // max(1, nbytes))


def chunks(groups: range, size: int) -> list[range]:
    """The groups, at most `size` at a time."""
    return [groups[start : start + size] for start in range(0, len(groups), size)]


def _agrees(scores: Tensor, captured: Capture) -> bool:
    """Whether a copy without ablation has the plain forward's score, up to rounding.

    This is the only place of the engine that reads a value from the device.
    """
    dtypes = [captured.scores.dtype, *(tensor.dtype for tensor in captured.activations)]
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    tolerance = eps**0.6 * captured.scale  # 7e-5 in float32, 4e-10 in float64, 5e-2 in bfloat16
    close = (scores - captured.scores).abs() <= tolerance
    return bool((close | ~scores.isfinite() & ~captured.scores.isfinite()).all())


@contextmanager
def _batchable(device_type: str, mixed: bool) -> Iterator[None]:
    """Operations in the form that `vmap` can batch, and no word about those that it cannot."""
    warn = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    with ExitStack() as stack:
        if mixed:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        # the fused kernels of attention have no batching rule: they would run group by group
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(warn, True)
        warn(False)
        yield


@contextmanager
def _frozen(prefix: list[Call]) -> Iterator[Callable[[list[Any]], None]]:
    """Hands out recorded outputs in place of the recorded calls, in this thread only.

    Yields:
        A function to call before each forward pass, with the outputs to hand out.
    """
    owner = threading.get_ident()
    places = {(call.module, call.number): place for place, call in enumerate(prefix)}
    outputs: list[Any] = []
    numbers: Counter[nn.Module] = Counter()

    def start(given: list[Any]) -> None:
        outputs[:] = given
        numbers.clear()

    def stub(module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != owner:
                return original(*args, **kwargs)
            place = places.get((module, numbers[module]))
            numbers[module] += 1
            if place is None:
                return original(*args, **kwargs)
            numbers.update(prefix[place].inside)  # these calls do not happen, but they count
            return outputs[place]

        return forward

    modules = {call.module for call in prefix}
    own = {module: module.__dict__.get("forward") for module in modules}
    try:
        for module in modules:
            module.__dict__["forward"] = stub(module, module.forward)
        yield start
    finally:
        for module, original in own.items():
            if original is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = original


def _full(
    model: Model,
    io: LayerIO,
    target: Tensor | None,
    captured: Capture,
    ablation: Ablation,
    chunk: int,
    tick: Callable[[int], object],
) -> Tensor:
    parts = []
    for groups in chunks(range(ablation.n_groups), chunk):
        times = len(groups)
        ablated = [tensor.flatten(0, 1) for tensor in ablation.without(groups)]
        handle = io.hook(lambda _, ablated=ablated: ablated)  # type: ignore[misc]
        try:
            scores = select(model.copies(times), repeat_target(target, times))
        finally:
            handle.remove()
        parts.append(scores.reshape(times, -1))
        tick(times)
    return torch.cat(parts).T.to(captured.scores.dtype)
