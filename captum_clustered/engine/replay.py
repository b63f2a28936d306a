"""The scores without each group, by running again only the part after the layer.

The *suffix* path maps over the groups with `torch.vmap`. Only operations that depend on the ablated
activations get the extra axis; the frozen prefix is handed out instead of being computed. Maps are
switched off as far after the layer as that has the same effect, see
:class:`captum_clustered.engine.sites.Site`. Where `vmap` cannot go, the *full* path repeats the
inputs as Captum does, see :mod:`captum_clustered.engine.copies`. Both paths give the same numbers.

Private parts of PyTorch: `torch._C._functorch`, to silence the warning about operations that `vmap`
cannot batch.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from captum_clustered._copies import READS, UNSTEADY, agree
from captum_clustered._layout import fitting, fitting_inputs
from captum_clustered._warn import warn
from captum_clustered.engine.calls import Call, LayerIO, Valueless, flatten
from captum_clustered.engine.capture import FirstPass, capture
from captum_clustered.engine.copies import Copied, Copies, steady
from captum_clustered.engine.model import chunks
from captum_clustered.engine.rules import Rules
from captum_clustered.engine.switching import Ablation, Summed
from captum_clustered.targets import plain, select

__all__ = ["Replay", "Replaying", "replay"]


def _ignore(groups: int) -> None:
    """Does nothing with the number of groups that are done."""


@dataclass(frozen=True)
class Replaying:
    """How a replay is done.

    Attributes:
        mode (str): ``"auto"`` falls back to the full path with a warning, ``"suffix"`` raises
            instead, ``"full"`` asks for it.
        chunk (int or None): Groups at a time; None for as many as fit
            ``captum_clustered._layout.BUDGET``.
        check (bool): Whether the suffix path has to reproduce the score of the plain forward pass
            from a copy without ablation. This reads one value from the device.
        tick (callable): Told the number of groups that are done.
    """

    mode: Literal["auto", "suffix", "full"] = "auto"
    chunk: int | None = None
    check: bool = True
    tick: Callable[[int], object] = _ignore


@dataclass(frozen=True)
class Replay:
    """Scores without each group, and the path that computed them.

    Attributes:
        scores (Tensor): `(N,)`, or `(1,)` if the model gives one score for the batch. The same path
            computed them, so that rounding cancels in the differences.
        ablated_scores (Tensor): `(N, K)` or `(1, K)`.
        path (str): ``"suffix"`` or ``"full"``.
        reason (str or None): Why the full path was taken.
    """

    scores: Tensor
    ablated_scores: Tensor
    path: Literal["suffix", "full"]
    reason: str | None = None


def replay(first: FirstPass, ablation: Ablation, how: Replaying = Replaying()) -> Replay:
    """Computes the score without each group.

    Args:
        first (FirstPass): What the first pass recorded.
        ablation (Ablation): The groups.
        how (Replaying, optional): The path, the size of chunks, the self-check.
            Default: ``Replaying()``

    Returns:
        *Replay*: The scores.

    Raises:
        RuntimeError: If ``mode="suffix"`` was asked for and cannot be had.
    """
    if how.mode == "full":
        reason = "it was asked for"
    elif first.stochastic:
        reason = "a module in training mode makes the output random, or dependent on the batch"
    else:
        found = _suffix(first, ablation, how)
        if isinstance(found, Replay):
            return found
        reason = found
    if how.mode == "suffix":
        if reason == _DISAGREES and not steady(first):
            reason = _UNSTEADY
        raise RuntimeError(
            "`replay` must be 'auto' or 'full' for this model and layer; got 'suffix', which "
            f"cannot be taken: {reason}."
        )
    copied = _full(first, ablation, how)
    remark = copied.remark
    if how.mode == "auto" and not first.stochastic and copied.doubt is None:
        alone = "" if copied.alone in (None, reason) else f" One at a time, because {copied.alone}."
        remark = (
            f"The whole model runs again for each group, because: {reason}.{alone} The numbers are "
            "the same, only slower to get. Pass replay='full' to ask for that without this warning."
        )
    if remark is not None:
        warn(remark)
    ablated = copied.scores.T.to(first.scores.dtype)
    return Replay(first.scores, ablated, "full", _UNSTEADY if copied.doubt == UNSTEADY else reason)


# --- the suffix path ------------------------------------------------------------------------------


_UNSTEADY = "the model gives another score when it runs again with the same inputs"
_DISAGREES = "running only the part after the layer did not reproduce the score"


def _suffix(first: FirstPass, ablation: Ablation, how: Replaying) -> Replay | str:
    """The scores by `torch.vmap`, or why they cannot be had that way."""
    for site in first.sites:
        moved = ablation.at(site)
        found = moved and _mapped(first, LayerIO(site.module), site.prefix, moved, how)
        if isinstance(found, Replay):
            return found
    prefix = first.prefix
    found = _mapped(first, first.io, prefix, ablation, how)
    if isinstance(found, Replay) or found == _DISAGREES:
        return found
    if not first.whole:  # the model may need something again that it let go of
        prefix = capture(first.model, first.io, first.target, whole=True).prefix
        found = _mapped(first, first.io, prefix, ablation, how)
        if isinstance(found, Replay) or found == _DISAGREES:
            return found
    # what depends on the group cannot be written in place into what does not; so all that is known
    # is made to depend on it as well, at the price of computing more
    return _mapped(first, first.io, prefix, ablation, how, spread=True)


def _mapped(
    first: FirstPass,
    io: LayerIO,
    prefix: list[Call],
    ablation: Ablation | Summed,
    how: Replaying,
    *,
    spread: bool = False,
) -> Replay | str:
    """The scores with maps switched off at `io`, where `prefix` had finished."""
    device = first.scores.device
    mixed = torch.is_autocast_enabled(device.type)
    if mixed:  # autocast does not reach what vmap runs: there, everything is computed in float32
        ablation = ablation.float()
    outputs = [call.handed_out(device) for call in prefix]
    # there is no group -1: the first copy stays whole
    # the part after the layer may hold larger values; after a site further on, fewer
    nbytes = max(ablation.nbytes, first.largest if io is first.io else 0)
    lots = chunks(range(-1, ablation.n_groups), how.chunk or fitting(nbytes, device))
    room = ablation.room(len(lots[0]))
    rules = Rules(ablation.summands())

    def run(groups: range) -> Tensor:  # (len(groups), N)
        known, unflatten = flatten((outputs, first.model.fresh()))
        known = [leaf if isinstance(leaf, Valueless) else plain(leaf, "layer") for leaf in known]
        if mixed:
            known = [_float(leaf) for leaf in known]
        dims = [0 if spread and isinstance(leaf, Tensor) else None for leaf in known]
        if spread:
            known = [_spread(leaf, len(groups), first.model.overwrites) for leaf in known]

        def score(ablated: list[Tensor], known: list[Any]) -> Tensor:
            outputs, args = unflatten(known)
            hand_out(outputs)
            handle = io.hook(lambda _: rules.follow(ablated))
            try:
                with rules:
                    return select(first.model.forward_func(*args), first.target)
            finally:
                handle.remove()

        ablated = ablation.without(groups, room)
        rules.start(groups, ablated)
        # cloned, in case the score is a view into memory that the next chunk writes over
        return torch.vmap(score, (0, dims), randomness="same")(ablated, known).clone()

    with _frozen(prefix) as hand_out, _batchable(device.type, mixed):
        try:
            scores = run(lots[0])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            if "data-dependent control flow" in str(error):
                return READS
            return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if scores.is_meta:
            return "the score needs what was not computed again"
        if how.check and not agree(scores[0], first.scores, first.tolerance):
            return _DISAGREES
        how.tick(len(lots[0]) - 1)
        parts = [scores[1:]]
        for groups in lots[1:]:
            parts.append(run(groups))
            how.tick(len(groups))
    return Replay(scores[0], torch.cat(parts).T, "suffix")


def _float(leaf: Any) -> Any:
    low = isinstance(leaf, Tensor) and leaf.dtype in (torch.bfloat16, torch.float16)
    return leaf.float() if low else leaf


def _spread(leaf: Any, copies: int, own: bool) -> Any:
    """A tensor once for each copy: the same memory, or one's own for what is written to."""
    if not isinstance(leaf, Tensor):
        return leaf
    seen = leaf.expand(copies, *leaf.shape)
    return seen.clone(memory_format=torch.contiguous_format) if own else seen


@contextmanager
def _batchable(device_type: str, mixed: bool) -> Iterator[None]:
    """Has operations take a form that `vmap` can batch, and says nothing of those without one."""
    warn_of_fallbacks = torch._C._functorch._set_vmap_fallback_warning_enabled  # type: ignore[attr-defined]
    with ExitStack() as stack:
        if mixed:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        # the fused kernels of attention have no batching rule: they would run group by group
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        stack.callback(warn_of_fallbacks, True)
        warn_of_fallbacks(False)
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
            for one, attributes in prefix[place].sets:
                one.__dict__.update(attributes)
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


# --- the full path --------------------------------------------------------------------------------


def _full(first: FirstPass, ablation: Ablation, how: Replaying) -> Copied:
    """The ablated scores, `(K, N)` or `(K, 1)`, by the whole model on repeated inputs."""

    def run(values: list[Tensor], times: int, repeated: frozenset[int]) -> Any:
        laid = [_laid_out(*pair) for pair in zip(values, ablation.activations, strict=True)]
        handle = first.io.hook(lambda _: laid)
        try:
            return first.model.copies(times, repeated)
        finally:
            handle.remove()

    # a copy of the inputs grows to many times its size inside the model
    chunk = how.chunk or fitting_inputs(ablation.nbytes + first.model.nbytes, first.scores.device)
    copies = Copies(first, ablation.activations, ablation.without, run)
    return copies.scores(ablation.n_groups, chunk, how.tick)


def _laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """The same values, with the axes in the order in which they lie in another tensor's memory.

    It decides whether `reshape` gives the model a view, through which it may write, or a copy.
    """
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    if like.is_contiguous() or channels_last:
        return tensor
    order = sorted(range(like.ndim), key=lambda axis: like.stride()[axis], reverse=True)
    back = sorted(range(like.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous().permute(back)
