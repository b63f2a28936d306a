"""Insertion and deletion: the score as pixels are put in or taken out in the order of the map.

Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018. Only the order of a map's values counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from captum_clustered._borrow import lent_to
from captum_clustered._checks import check_int
from captum_clustered._copies import Parted
from captum_clustered.fills import Blur, Fill, describe, fill_image
from captum_clustered.metrics.maps import Interpolation, prepare
from captum_clustered.metrics.scoring import (
    Conventions,
    ImageModel,
    Mixed,
    as_labels,
    at_a_time,
    check_score,
    name_of_target,
    resolve_target,
)
from captum_clustered.targets import Score, Target, target_scores

__all__ = ["Curve", "deletion", "insertion"]


@dataclass(frozen=True, eq=False)
class Curve:
    """Scores of a batch of `N` images at `T` stages, from one image to another.

    Attributes:
        kind (str): ``"insertion"`` or ``"deletion"``.
        fractions (Tensor): `(T,)`, the share of pixels that are changed, from 0 to 1.
        scores (Tensor): `(N, T)`.
        target (Tensor or None): int64 `(N,)`: the classes, as in
            :class:`~captum_clustered.metrics.Confidences`.
        status (Tensor): int8 `(N,)`, a :class:`~captum_clustered.metrics.Status` for each map.
        conventions (Conventions): How the numbers were made.
    """

    kind: Literal["insertion", "deletion"]
    fractions: Tensor
    scores: Tensor
    target: Tensor | None
    status: Tensor
    conventions: Conventions

    @property
    def area(self) -> Tensor:
        """100 times the area under each curve, `(N,)`, by trapezoids: percent for probabilities."""
        return 100 * torch.trapezoid(self.scores, self.fractions, dim=1)


def insertion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "softmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = Blur(11, 5.0),  # noqa: B008  a frozen value
    step: int = 224,
    seed: int | None = None,
    max_examples_per_batch: int | None = None,
) -> Curve:
    """Puts the pixels of the image into a blurred image, those with the largest values first.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        inputs (Tensor or tuple[Tensor, ...]): As for :func:`~captum_clustered.metrics.confidences`.
        heatmaps (Tensor or array): As there; only the order of a map's values counts.
        target (int, tuple, Tensor or list, optional): As there.
            Default: None (the class that the model predicts for the whole image)
        additional_forward_args (Any, optional): As there. A tensor with one row per image is
            indexed together with the images. Default: None
        score (str or callable, optional): As there. Default: ``"softmax"``
        interpolation (str or None, optional): As there. Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): The image to start from.
            Default: ``Blur(11, 5.0)``
        step (int, optional): Number of pixels that change at a time. Default: 224 (a row of an
            image of this width, as in the paper: 225 forward passes per image)
        seed (int, optional): Puts equal pixels in a random order, with this seed. Default: None
            (reading order, which favours the top of the image if much of a map is zero)
        max_examples_per_batch (int, optional): Images in one forward pass; changes memory and time,
            never the result. Default: None (as many as fit a budget)

    Returns:
        *Curve*: The curve and its area; a larger area is better.

    Raises:
        TypeError: If an argument, or what the model returns, has a wrong type.
        ValueError: If a shape or a value does not fit; the message says what to change.

    Example::

        >>> def logits(x):
        ...     return x.sum((1, 2, 3))
        >>> image = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]])
        >>> curve = insertion(logits, image, image, score="identity", fill=0.0, step=1)
        >>> curve.scores
        tensor([[0.0000, 0.4000, 0.7000, 0.9000, 1.0000]], dtype=torch.float64)
        >>> curve.area
        tensor([62.5000], dtype=torch.float64)
    """
    model = ImageModel.of(forward_func, inputs, additional_forward_args)
    chunk = at_a_time(model.image, max_examples_per_batch)
    with lent_to(model) as model:
        return _curve(
            "insertion", model, heatmaps, target, score, interpolation, fill, step, seed, chunk
        )


def deletion(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "softmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
    step: int = 224,
    seed: int | None = None,
    max_examples_per_batch: int | None = None,
) -> Curve:
    """Takes pixels out of the image, those with the largest values first.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        inputs (Tensor or tuple[Tensor, ...]): As for :func:`insertion`, like all arguments.
        heatmaps (Tensor or array): Only the order of a map's values counts.
        target (int, tuple, Tensor or list, optional): Default: None (the predicted class)
        additional_forward_args (Any, optional): Default: None
        score (str or callable, optional): Default: ``"softmax"``
        interpolation (str or None, optional): Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): What replaces a pixel.
            Default: 0.0
        step (int, optional): Number of pixels that change at a time. Default: 224
        seed (int, optional): Puts equal pixels in a random order. Default: None (reading order)
        max_examples_per_batch (int, optional): Images in one forward pass. Default: None

    Returns:
        *Curve*: The curve and its area; a smaller area is better.

    Example::

        >>> def logits(x):
        ...     return x.sum((1, 2, 3))
        >>> image = torch.tensor([[[[0.1, 0.2, 0.3, 0.4]]]])
        >>> deletion(logits, image, image, score="identity", step=2).scores
        tensor([[1.0000, 0.3000, 0.0000]], dtype=torch.float64)
    """
    model = ImageModel.of(forward_func, inputs, additional_forward_args)
    chunk = at_a_time(model.image, max_examples_per_batch)
    with lent_to(model) as model:
        return _curve(
            "deletion", model, heatmaps, target, score, interpolation, fill, step, seed, chunk
        )


@torch.no_grad()
def _curve(
    kind: Literal["insertion", "deletion"],
    model: ImageModel,
    heatmaps: Any,
    target: Target,
    score: Score,
    interpolation: Interpolation,
    fill: Fill,
    step: int,
    seed: int | None,
    chunk: int,
) -> Curve:
    check_int("step", step, 1)
    image = model.image  # (N, C, *spatial)
    n, size = len(image), image.shape[2:]
    maps = prepare(heatmaps, size, n_examples=n, device=image.device, interpolation=interpolation)
    ranks = _ranks(maps.values.flatten(1), seed)  # (N, pixels)
    background = fill_image(fill, image).expand_as(image)
    before, after = (background, image) if kind == "insertion" else (image, background)

    output = model(image)
    name = check_score(score, output, model)
    classes = resolve_target(output, target)
    pixels = size.numel()
    counts = torch.arange(-(-pixels // step) + 1, device=image.device) * step  # (T,)
    counts = counts.clamp(max=pixels)
    # one end of the curve is the image itself
    others = counts[:-1] if kind == "insertion" else counts[1:]  # (T - 1,)

    def shown(pairs: Tensor) -> tuple[Tensor, Tensor]:
        rows, stages = pairs % n, pairs // n
        changed = (ranks[rows] < others[stages, None]).view(-1, 1, *size)  # (pairs, 1, *spatial)
        ends = (after, before) if n == 1 else (after[rows], before[rows])
        return torch.where(changed, *ends), rows

    def scored(output: Tensor, rows: Tensor) -> Tensor:
        return target_scores(output, None if classes is None else classes[rows], score)

    pairs = torch.arange(n * len(others), device=image.device)
    known = scored(output, torch.arange(n, device=image.device)).view(1, n)
    scores = [known[0, :0]]
    if len(pairs):
        first = pairs[: max(1, chunk - 3)]  # three more go along
        mixed, found = model.mixed(*shown(first), output)
        try:
            if found is None:
                scores += _each(mixed, shown, scored, pairs.split(n))
            else:
                rest = pairs[len(first) :].split(chunk) if len(first) < len(pairs) else ()
                scores += [scored(found, first % n), *_each(mixed, shown, scored, rest)]
        except Parted as parted:
            scores = _each(model.parted(parted), shown, scored, pairs.split(n))
    stages = torch.cat(scores).view(len(others), n)  # (T - 1, N)
    joined = torch.cat([stages, known] if kind == "insertion" else [known, stages]).T  # (N, T)
    return Curve(
        kind=kind,
        fractions=counts.to(joined.dtype) / pixels,
        scores=joined,
        target=as_labels(classes),
        status=maps.status,
        conventions=Conventions(
            score=name,
            target=name_of_target(target, classes),
            fill=describe(fill),
            normalize="ranks",
            interpolation=interpolation or "none",
            step=step,
            ties="reading order" if seed is None else f"random, seed {seed}",
        ),
    )


def _each(
    mixed: Mixed,
    shown: Callable[[Tensor], tuple[Tensor, Tensor]],
    scored: Callable[[Tensor, Tensor], Tensor],
    lots: Iterable[Tensor],
) -> list[Tensor]:
    """The scores of lots of images, a pass for each."""
    pairs = map(shown, lots)
    return [scored(mixed(images, rows), rows) for images, rows in pairs]


def _ranks(values: Tensor, seed: int | None) -> Tensor:
    """The rank of each pixel, int32 `(N, pixels)`; 0 for the largest value."""
    pixels = values.shape[1]
    if seed is None:
        order = values.argsort(dim=1, descending=True, stable=True)
    else:
        generator = torch.Generator().manual_seed(seed)
        mixed = torch.randperm(pixels, generator=generator).to(values.device)
        order = mixed[values[:, mixed].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(pixels, dtype=torch.int32, device=values.device)
    ranks = torch.empty(order.shape, dtype=torch.int32, device=values.device)
    return ranks.scatter_(1, order, places.expand_as(order))
