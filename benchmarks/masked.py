"""Methods that run the whole model on many masked images, beside plain passes and other libraries.

All mask the image equally often: `number` times, or as often as the size of the image allows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.methods import Method, Part, difference, first_maps
from benchmarks.peers import quantus_pixel_flipping, torchcam_insertion_and_deletion
from captum_clustered import ClusteredLayerScore, LayerScoreCam
from captum_clustered._layout import channels_last
from captum_clustered.metrics import deletion, insertion

__all__ = ["TOGETHER", "masked_methods"]

TOGETHER = 6
"""Images of a pass, of 224 x 224 pixels, whose values inside fit the cache of a processor."""


def masked_methods(case: Case, number: int) -> Iterator[Method]:
    """The methods on a case.

    Args:
        case (Case): The case.
        number (int): Masks of each image.

    Yields:
        *Method*: One after the other.
    """
    yield Method(
        f"{number} forward passes, an image each", "torch", partial(_one_by_one, case, number)
    )
    yield Method(
        f"{number} forward passes, {TOGETHER} images each, channels-last",
        "torch",
        partial(_together, case, number),
    )
    yield from _score_cams(case, number)
    if case.inputs.ndim == 4:
        yield from _curves(case, number)


@torch.no_grad()
def _one_by_one(case: Case, number: int) -> None:
    for image in case.inputs.split(1):
        for _ in range(number):
            case.model(image)


@torch.no_grad()
def _together(case: Case, number: int) -> None:
    """The floor of what masks the image: the same passes in batches, and nothing else."""
    for image in case.inputs.split(1):
        for images in image.expand(number, *image.shape[1:]).split(TOGETHER):
            case.model(channels_last(images))


def _score_cams(case: Case, number: int) -> Iterator[Method]:
    clustered = ClusteredLayerScore(
        case.model, case.layer, clusterer="contiguous", n_clusters=number, **case.settings
    )
    yield Method(
        f"ClusteredLayerScore contiguous K={number}",
        "captum_clustered",
        partial(clustered.attribute, case.inputs, target=case.target),
        clusters=number,
        clusterer="contiguous",
    )
    done = min(number, case.maps)
    alone = LayerScoreCam(case.model, case.layer, clusterer=first_maps(case, done), **case.settings)
    yield Method(
        "LayerScoreCam",
        "captum_clustered",
        partial(alone.attribute, case.inputs, target=case.target),
        clusters=case.maps,
        part=None if done == case.maps else Part(done, case.maps, 1),
    )


def _curves(case: Case, number: int) -> Iterator[Method]:
    n, pixels = len(case.inputs), case.inputs.shape[2:].numel()
    generator = torch.Generator().manual_seed(0)
    ranks = [torch.randperm(pixels, generator=generator) for _ in range(n)]  # without ties
    heat = torch.stack(ranks).view(n, 1, *case.inputs.shape[2:]).to(case.inputs) / pixels
    judged = partial(_judge, case, heat)

    step = math.ceil(pixels / number)
    yield Method(
        f"insertion and deletion in {math.ceil(pixels / step)} steps",
        "captum_clustered",
        lambda: [judged(metric, step).area for metric in (insertion, deletion)],
    )
    yield Method(
        "torchcam DeletionInsertionMetric",
        "torchcam",
        partial(
            torchcam_insertion_and_deletion, case.model, case.inputs, case.target, heat, number
        ),
        same_as="insertion and deletion with the same steps",
        error=lambda areas: difference(
            torch.tensor(areas),
            torch.stack([judged(m, step).area.mean() for m in (insertion, deletion)]).cpu(),
        ),
        settings={"batch_size": 32},
    )
    if find_spec("quantus") is None:  # which is no dependency
        return
    # Quantus changes values, of which each pixel has three, and as many as divide the pixels
    values = next(d for d in range(pixels // number, 0, -1) if pixels % d == 0)
    channels = case.inputs.shape[1]
    finer = math.ceil(values / channels)
    yield Method(
        f"deletion in {math.ceil(pixels / finer)} steps",
        "captum_clustered",
        partial(judged, deletion, finer),
    )
    yield Method(
        f"quantus PixelFlipping in {channels * pixels // values} steps",
        "quantus",
        partial(quantus_pixel_flipping, case.model, case.inputs, case.target, heat, values),
        same_as="deletion, where as many pixels are gone",
        error=lambda scores: difference(
            scores[:, channels - 1 :: channels], judged(deletion, values).scores[:, 1:].cpu()
        ),
    )


def _judge(case: Case, heat: Tensor, metric: Any, step: int) -> Any:
    return metric(case.model, case.inputs, heat, case.target, fill=0.0, step=step)
