"""ADCC: average drop, coherency and complexity in one number.

Source: Poppi, Cornia, Baraldi, Cucchiara, "Revisiting The Evaluation of Class Activation Mapping
for Explainability", CVPR Workshops 2021. All parts are in percent here.

There are two ways to aggregate, with different results: the harmonic mean of each image's parts,
averaged over images (`per_image`), and the harmonic mean of the parts' averages (`of_means`).
:func:`adcc_score` computes both, from numbers per image or from means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.metrics.confidence import confidences
from captum_clustered.metrics.maps import Interpolation, Normalization, prepare
from captum_clustered.metrics.scoring import Conventions, split
from captum_clustered.targets import Score, Target

__all__ = ["AdccParts", "adcc", "adcc_score", "coherency"]


def adcc_score(coherency: Tensor, complexity: Tensor, average_drop: Tensor) -> Tensor:
    """The harmonic mean of coherency, 100 - complexity and 100 - average drop.

    Args:
        coherency (Tensor): In percent, any shape.
        complexity (Tensor): In percent, same shape: the mean of the map.
        average_drop (Tensor): In percent, same shape.

    Returns:
        *Tensor*: In percent, same shape; higher is better. 0 where one of the three is 0.

    Example::

        >>> adcc_score(torch.tensor(90.0), torch.tensor(40.0), torch.tensor(10.0))
        tensor(77.1429)
    """
    return 3 / (1 / coherency + 1 / (100 - complexity) + 1 / (100 - average_drop))


@torch.no_grad()
def coherency(
    explain: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
) -> Tensor:
    """Whether a method gives the same map again for the image seen through its map.

    This is Pearson's correlation between the map of the image and the map of the masked image,
    scaled from [-1, 1] to 0 to 100 percent.

    Args:
        explain (callable): The method, called as ``explain(inputs, target=target)``, such as
            `attribute` of a Captum method. Returns heat maps as for :func:`confidences`.
        inputs (Tensor or tuple[Tensor, ...]): The first one is the images, `(N, C, *spatial)`.
        heatmaps (Tensor or array): What the method returned for the inputs.
        target (int, tuple, Tensor or list, optional): Passed on to `explain`. With None the method
            may choose another class for the masked image than for the image. Default: None
        normalize (str or None, optional): As for :func:`confidences`. Default: ``"minmax"``
        interpolation (str or None, optional): As for :func:`confidences`. Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): As for :func:`confidences`.
            Default: 0.0

    Returns:
        *Tensor*: In percent, `(N,)`; higher is better. 50 where a map is flat, as nothing
        correlates with it.

    Example::

        >>> def explain(images, target):
        ...     return images.sum(1, keepdim=True)
        >>> images = torch.tensor([[[[0.0, 1.0, 2.0]]]])
        >>> coherency(explain, images, explain(images, target=0), target=0)
        tensor([98.0384])
    """
    image, others = split(inputs)

    def ready(maps: Any) -> Tensor:
        return prepare(
            maps,
            image.shape[2:],
            n_examples=len(image),
            device=image.device,
            normalize=normalize,
            interpolation=interpolation,
        ).values

    first = ready(heatmaps)  # (N, 1, *spatial)
    shown = masked(image.detach(), first, fill_image(fill, image))
    with torch.enable_grad():  # the method may need gradients
        again = explain((shown, *others) if others else shown, target=target)
    second = ready(again)
    return 50 * (_correlation(first.flatten(1), second.flatten(1)) + 1)


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of the rows, `(N,)`; 0 where a row is constant."""
    return (_direction(first) * _direction(second)).sum(1).clamp(-1, 1)


def _direction(rows: Tensor) -> Tensor:
    low, high = rows.aminmax(dim=1, keepdim=True)
    # rounding can make the mean of equal numbers differ from them
    offsets = torch.where(low == high, 0, rows - rows.mean(1, keepdim=True))
    return F.normalize(offsets)


@dataclass(frozen=True, eq=False)
class AdccParts:
    """ADCC and its parts for a batch of `N` images, all in percent.

    Attributes:
        coherency (Tensor): `(N,)`, higher is better.
        complexity (Tensor): `(N,)`, the mean of the map, lower is better.
        average_drop (Tensor): `(N,)`, lower is better.
        status (Tensor): int8 `(N,)`, a :class:`~captum_clustered.metrics.Status` for each map.
        conventions (Conventions): How the numbers were made.
    """

    coherency: Tensor
    complexity: Tensor
    average_drop: Tensor
    status: Tensor
    conventions: Conventions

    @property
    def per_image(self) -> Tensor:
        """ADCC of each image, `(N,)`."""
        return adcc_score(self.coherency, self.complexity, self.average_drop)

    @property
    def of_means(self) -> Tensor:
        """ADCC of the parts' means over these images, a single number."""
        return adcc_score(self.coherency.mean(), self.complexity.mean(), self.average_drop.mean())


def adcc(
    forward_func: Callable[..., Any],
    explain: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "softmax",
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
    fill: Fill = 0.0,
) -> AdccParts:
    """Average drop, coherency and complexity in one number: a map can hardly cheat all three.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        explain (callable): The method, called as ``explain(inputs, target=target)`` with the
            classes of the images without a mask.
        inputs (Tensor or tuple[Tensor, ...]): As for :func:`confidences`, like all that follow.
        heatmaps (Tensor or array): What the method returned for the inputs.
        target (int, tuple, Tensor or list, optional): Default: None (the predicted class)
        additional_forward_args (Any, optional): For `forward_func`, not for `explain`.
            Default: None
        score (str or callable, optional): Default: ``"softmax"``
        normalize (str or None, optional): Default: ``"minmax"``
        interpolation (str or None, optional): Default: ``"bilinear"``
        fill (float, sequence, Tensor, Black, Blur or str, optional): Default: 0.0

    Returns:
        *AdccParts*: The parts, and both aggregates.

    Example::

        >>> def logits(x):
        ...     return torch.stack([x.sum((1, 2, 3)), torch.zeros(len(x))], 1)
        >>> def explain(images, target):
        ...     return images.sum(1, keepdim=True)
        >>> images = torch.tensor([[[[0.0, 1.0, 2.0]]]])
        >>> found = adcc(logits, explain, images, explain(images, target=0), target=0)
        >>> found.complexity, found.per_image
        (tensor([50.]), tensor([74.0599], dtype=torch.float64))
    """
    found = confidences(
        forward_func,
        inputs,
        heatmaps,
        target,
        additional_forward_args=additional_forward_args,
        score=score,
        normalize=normalize,
        interpolation=interpolation,
        fill=fill,
        complement=False,
    )
    coherent = coherency(
        explain,
        inputs,
        heatmaps,
        found.target if target is None else target,
        normalize=normalize,
        interpolation=interpolation,
        fill=fill,
    )
    return AdccParts(
        coherency=coherent,
        complexity=found.area,
        average_drop=found.average_drop,
        status=found.status,
        conventions=found.conventions,
    )
