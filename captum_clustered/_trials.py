"""What is learnt of a layer by running the model on other values.

The modules tell which layer returns maps or tokens, but not whether these still reach what the
model returns, nor whether each lies in the image where a heat map would paint it. So the model runs
again with other values, at the layer or in a part of the image, and what changes is looked at. What
cannot run so is not refused.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from captum_clustered.engine.calls import LayerIO, flatten

if TYPE_CHECKING:
    from captum_clustered._borrow import Lent

__all__ = ["Lend", "in_rows", "matters", "parameters_among", "shape_of", "tokens_of"]

_PROBES = (1 / 4, 5 / 8, 7 / 8, 3 / 8, 1 / 8)
"""Where the image is changed, as shares of its sides: in each probe they begin with another one."""


Lend = Callable[[], AbstractContextManager["Lent"]]
"""Lends the model in evaluation mode, without gradients."""


def matters(lend: Lend, io: LayerIO, prefix: int, inputs: Tensor, output: Any) -> bool:
    """Whether other values of the layer's maps change what the model returns.

    Args:
        lend (callable): Lends the model.
        io (LayerIO): The layer.
        prefix (int): Number of tokens before those of the image.
        inputs (Tensor): What the model ran on.
        output (Any): What it returned.
    """
    before = _scores(output)
    if before is None or before.is_meta:
        return True  # there is nothing to compare

    def changes(given: Tensor) -> bool:
        with suppress(Exception), lend() as lent_model:
            after = _scores(lent_model(given))
            return after is None or not torch.equal(before, after)
        return True

    def disturb(tensors: list[Tensor]) -> list[Tensor]:
        return [_disturbed(tensor, prefix) for tensor in tensors]

    hook = io.hook(disturb)
    try:
        changed = changes(inputs)
    finally:
        hook.remove()
    # nothing changes what a new head of zeros returns
    return changed or not changes(_disturbed(inputs))


def parameters_among(lend: Lend, inputs: Tensor) -> dict[int, Tensor]:
    """Which tokens begin as parameters and not as parts of the image, by the number of tokens.

    These are the same for two different images where a module first takes them.

    Args:
        lend (callable): Lends the model.
        inputs (Tensor): What it takes; the first example is looked at.
    """
    fixed: dict[int, Tensor] = {}
    owner = threading.get_ident()

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        if not (args and isinstance(args[0], Tensor)) or threading.get_ident() != owner:
            return
        number = tokens_of(shape_of(args[0]))
        # on the meta device there is nothing to compare
        if number is not None and len(args[0]) == 2 and not args[0].is_meta:
            fixed.setdefault(number, args[0][0].eq(args[0][1]).all(1))

    images = torch.cat([inputs[:1], _disturbed(inputs[:1])])

    def noted() -> Any:
        fixed.clear()
        hook = register_module_forward_pre_hook(note)
        try:
            return lent_model(images.clone())
        finally:
            hook.remove()

    with suppress(Exception), lend() as lent_model:
        lent_model.settled(noted, lambda: (images.clone(),))
    return fixed


def in_rows(
    lend: Lend,
    ios: Sequence[LayerIO],
    grid: Callable[[Tensor], Tensor],
    images: Tensor,
    *others: Any,
    reach: int = 0,
) -> bool:
    """Whether maps lie as the image does, or tokens where a grid has them.

    Some models keep the tokens of a window together, as Hiera does, and a grid of rows would paint
    them elsewhere; some transpose, flip or pad their maps. A small part of the image is changed, in
    five places in turn. If most times the cell of that place changes by less than a quarter of what
    another one does, maps or tokens lie elsewhere. (Some may lie in their places by chance.)

    Where most times all tokens change alike, as they may behind an attention, nothing is learnt.
    Then the tokens before them tell it. If these do not either, rows are assumed.

    Args:
        lend (callable): Lends the model.
        ios (sequence of LayerIO): The layer, and of tokens before it what else gives as many, the
            latest first.
        grid (callable): Makes maps `(N, C, *spatial)` of what they give.
        images (Tensor): `(N, C, *spatial)`. The first is looked at.
        *others (Any): What else the model takes.
        reach (int, optional): How many cells beside its own a change may lie, as behind a
            convolution. Default: 0
    """
    maps: dict[int, Tensor] = {}

    def keep(place: int, tensors: list[Tensor]) -> None:
        maps[place] = grid(tensors[0].detach()).clone()

    def run(given: Tensor) -> dict[int, Tensor]:
        maps.clear()
        lent_model(given, *others)
        return dict(maps)

    here, elsewhere = [Counter[int]() for _ in range(2)]
    hooks = [io.hook(partial(keep, place)) for place, io in enumerate(ios)]
    try:
        with suppress(Exception), lend() as lent_model:
            before = lent_model.settled(
                lambda: run(images.clone()), lambda: (images.clone(), *others)
            )
            cells, pixels = before[0].shape[2:], images.shape[2:]
            # of images whose channels come last, the axes are others
            if images.is_meta or len(cells) != len(pixels) or any(map(operator.gt, cells, pixels)):
                return True
            for first in range(len(_PROBES)):
                shares = [_PROBES[(first + axis) % len(_PROBES)] for axis in range(len(cells))]
                cell = [int(share * size) for share, size in zip(shares, cells, strict=True)]
                if len(cell) > 1:  # a scan that turns back in every second row has the others right
                    cell[-2] = min(cell[-2] | 1, cells[-2] - 1)
                around = tuple(slice(max(at - reach, 0), at + reach + 1) for at in cell)
                changed = images.clone()
                part = changed[_pixels_of(cell, cells, pixels)]
                part.copy_(_redrawn(part, images))
                after = run(changed)
                for place, values in before.items():
                    change = (after[place] - values)[0].norm(dim=0)  # (*spatial)
                    much = ~(change < change.amax() / 4)  # all of it, where one is not a number
                    if not much[around].any():
                        elsewhere[place] += 1
                    elif not much.all():
                        here[place] += 1
    finally:
        for hook in hooks:
            hook.remove()
    most = len(_PROBES) // 2
    told = (place for place in range(len(ios)) if here[place] + elsewhere[place] > most)
    return elsewhere[next(told, 0)] <= most


def _pixels_of(cell: Sequence[int], cells: Sequence[int], pixels: Sequence[int]) -> Any:
    """The pixels of the image that a cell of the grid covers, which is no smaller than a pixel."""
    sides = zip(cell, cells, pixels, strict=True)
    return (..., *(slice(at * p // n, at * p // n + p // n) for at, n, p in sides))


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for anything else."""
    return tuple(value.shape) if isinstance(value, Tensor) else None


def tokens_of(shape: tuple[int, ...] | None) -> int | None:
    """The number of tokens, if it is the shape of tokens."""
    return shape[1] if shape is not None and len(shape) == 3 else None


def _disturbed(values: Tensor, untouched: int = 0) -> Tensor:
    """Quite other values; those of the first tokens stay the same."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(values.shape, generator=generator).to(values)
    if untouched:
        noise[:, :untouched] = 0
    return values + noise * (1 + values.abs().amax())


def _redrawn(part: Tensor, images: Tensor) -> Tensor:
    """Other values in the range of the images, since a model may refuse those outside of it."""
    low, high = images.aminmax()
    if low == high:  # as in zeros
        return _disturbed(part)
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(part.shape, generator=generator).to(part)


def _scores(output: Any) -> Tensor | None:
    """The scores in what a model returned; often hidden states follow them."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    leaves = flatten(getattr(output, "logits", output))[0]
    return next((leaf for leaf in leaves if isinstance(leaf, Tensor)), None)
