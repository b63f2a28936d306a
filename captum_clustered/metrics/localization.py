"""Does the heat map lie on the object? Pointing game, energy inside, intersection over union."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered._checks import check_number
from captum_clustered.metrics.maps import Interpolation, prepare
from captum_clustered.targets import plain

__all__ = ["boxes_to_masks", "energy_inside", "iou", "pointing_game"]


def boxes_to_masks(
    boxes: Sequence[Any],
    size: tuple[int, int],
    *,
    image_size: tuple[int, int] | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Turns boxes into masks: one mask per image, with all its boxes.

    Args:
        boxes (sequence): For each image its boxes `(n, 4)`, as `x0, y0, x1, y1` in pixels from the
            upper left corner of the image. A pixel belongs to a box if its centre lies inside.
        size (tuple[int, int]): Height and width of the masks.
        image_size (tuple[int, int], optional): Height and width of the images that the boxes were
            drawn on. Default: None (the size of the masks)
        device (torch.device or str, optional): Device of the masks. Default: None (the CPU)

    Returns:
        *Tensor*: bool `(N, 1, height, width)`; False everywhere for an image without boxes.

    Raises:
        ValueError: If a box does not have four numbers.

    Example::

        >>> boxes_to_masks([[[1, 0, 3, 1]]], (2, 4)).int()
        tensor([[[[0, 1, 1, 0],
                  [0, 0, 0, 0]]]], dtype=torch.int32)
    """
    height, width = size
    rows, columns = image_size or size
    # centres of the mask's pixels, in pixels of the image
    y = (torch.arange(height, device=device) + 0.5) * (rows / height)
    x = (torch.arange(width, device=device) + 0.5) * (columns / width)
    masks = torch.zeros(len(boxes), 1, height, width, dtype=torch.bool, device=device)
    for mask, given in zip(masks, boxes, strict=True):
        corners = torch.as_tensor(given, dtype=torch.float32, device=device)
        corners = corners.reshape(-1, 4) if corners.numel() == 0 or corners.ndim == 1 else corners
        if corners.ndim != 2 or corners.shape[1] != 4:
            raise ValueError(
                "`boxes` must have a list of boxes for each image, four numbers each (x0, y0, x1, "
                f"y1); got shape {tuple(corners.shape)} for one image. Pass [] if it has none."
            )
        x0, y0, x1, y1 = corners[:, :, None].unbind(1)  # (n, 1) each
        inside_y, inside_x = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)  # (n, height), (n, width)
        mask[0] = (inside_y[:, :, None] & inside_x[:, None, :]).any(0)
    return masks


def pointing_game(
    heatmaps: Any,
    masks: Tensor,
    *,
    tolerance: float = 15,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Whether the largest value of the map lies on the object, or within `tolerance` pixels of it.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018. If several
    pixels have the largest value, the result is the share of them that hits. So a flat map gets
    what pointing at random would get.

    Args:
        heatmaps (Tensor or array): `(N, 1, H, W)` or `(N, H, W)`, of any range and resolution.
        masks (Tensor): `(N, 1, H, W)` or `(N, H, W)`, of volumes `(N, 1, D, H, W)`; True or not 0
            on the object. :func:`boxes_to_masks` makes them from boxes.
        tolerance (float, optional): Euclidean distance in pixels of the mask. Default: 15
        interpolation (str or None, optional): How a map of another size is resized.
            Default: ``"bilinear"``

    Returns:
        *Tensor*: 0 to 100, `(N,)`, higher is better; NaN where the mask is empty.

    Raises:
        TypeError: If the maps are not floating point, or the masks not a tensor.
        ValueError: If shapes do not fit or the tolerance is negative.

    Example::

        >>> heat, mask = torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([[[1, 1, 0]]])
        >>> pointing_game(heat, mask, tolerance=0), pointing_game(heat, mask, tolerance=1)
        (tensor([0.]), tensor([100.]))
    """
    check_number("tolerance", tolerance, at_least=0)
    maps, objects = _pair(heatmaps, masks, interpolation)
    near = _dilated(objects, float(tolerance))
    peak = maps == maps.flatten(1).amax(1).reshape(-1, *[1] * (maps.ndim - 1))
    return _share(peak & near, peak, objects)


def energy_inside(
    heatmaps: Any, masks: Tensor, *, interpolation: Interpolation = "bilinear"
) -> Tensor:
    """The share of the map's sum that lies on the object.

    Source: Wang et al., "Score-CAM", CVPR Workshops 2020, who call it energy-based pointing game.

    Args:
        heatmaps (Tensor or array): `(N, 1, H, W)` or `(N, H, W)`; scaled to [0, 1] by minimum and
            maximum.
        masks (Tensor): `(N, 1, H, W)` or `(N, H, W)`, of volumes `(N, 1, D, H, W)`; True or not 0
            on the object.
        interpolation (str or None, optional): How a map of another size is resized.
            Default: ``"bilinear"``

    Returns:
        *Tensor*: In percent, `(N,)`, higher is better; 0 for a map of zeros, NaN where the mask is
        empty.

    Raises:
        TypeError: If the maps are not floating point, or the masks not a tensor.
        ValueError: If shapes do not fit.

    Example::

        >>> energy_inside(torch.tensor([[[0.0, 1.0, 3.0]]]), torch.tensor([[[1, 1, 0]]]))
        tensor([25.0000])
    """
    maps, objects = _pair(heatmaps, masks, interpolation)
    return _share(maps * objects, maps, objects)


def iou(
    heatmaps: Any,
    masks: Tensor,
    *,
    threshold: float = 0.5,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Intersection over union of the object and the pixels where the map is >= `threshold`.

    Args:
        heatmaps (Tensor or array): `(N, 1, H, W)` or `(N, H, W)`; scaled to [0, 1] by minimum and
            maximum.
        masks (Tensor): `(N, 1, H, W)` or `(N, H, W)`, of volumes `(N, 1, D, H, W)`; True or not 0
            on the object.
        threshold (float, optional): In (0, 1]. Default: 0.5
        interpolation (str or None, optional): How a map of another size is resized.
            Default: ``"bilinear"``

    Returns:
        *Tensor*: In percent, `(N,)`, higher is better; NaN where the mask is empty.

    Raises:
        TypeError: If the maps are not floating point, or the masks not a tensor.
        ValueError: If shapes do not fit or the threshold lies outside (0, 1].

    Example::

        >>> iou(torch.tensor([[[0.0, 2.0, 3.0]]]), torch.tensor([[[1, 1, 0]]]))
        tensor([33.3333])
    """
    check_number("threshold", threshold, above=0, at_most=1)
    maps, objects = _pair(heatmaps, masks, interpolation)
    shown = maps >= threshold
    return _share(shown & objects, shown | objects, objects)


def _pair(heatmaps: Any, masks: Tensor, interpolation: Interpolation) -> tuple[Tensor, Tensor]:
    """Maps and masks, both `(N, 1, *spatial)`."""
    masks = plain(masks, "masks")
    if not isinstance(masks, Tensor):
        raise TypeError(
            f"`masks` must be a tensor; got {type(masks).__name__}. Convert arrays with "
            "`torch.as_tensor`, boxes with `boxes_to_masks`."
        )
    objects = masks.unsqueeze(1) if masks.ndim == 3 else masks
    if objects.ndim not in (4, 5) or objects.shape[1] != 1:
        raise ValueError(
            "`masks` must have shape (N, 1, H, W) or (N, H, W), or (N, 1, D, H, W) for volumes; "
            f"got {tuple(masks.shape)}. Pass one mask per image."
        )
    maps = prepare(
        heatmaps,
        objects.shape[2:],
        n_examples=len(objects),
        device=objects.device,
        interpolation=interpolation,
    )
    return maps.values, objects != 0


def _share(part: Tensor, whole: Tensor, objects: Tensor) -> Tensor:
    """`part` of `whole` in percent, `(N,)`; 0 where both are 0, NaN without an object."""
    dtype = part.dtype if part.is_floating_point() else torch.float32
    parts, wholes = (values.to(dtype).flatten(1).sum(1) for values in (part, whole))
    share = 100 * parts / torch.where(wholes == 0, 1, wholes)
    return torch.where(objects.flatten(1).any(1), share, torch.nan)


def _dilated(objects: Tensor, tolerance: float) -> Tensor:
    """All pixels whose distance from the object is at most `tolerance`."""
    radius = int(min(tolerance, max(objects.shape[2:])))  # the image is not larger
    if radius == 0:
        return objects
    if objects.ndim == 5:  # a ball as kernel would be too large
        from scipy.ndimage import distance_transform_edt

        outside = (~objects[:, 0]).cpu().numpy()  # (N, D, H, W)
        near = np.stack([distance_transform_edt(one) <= tolerance for one in outside])
        near &= ~outside.all((1, 2, 3), keepdims=True)  # without an object nothing is near it
        return torch.from_numpy(near).unsqueeze(1).to(objects.device)
    offsets = torch.arange(-radius, radius + 1, device=objects.device)
    disc = offsets[:, None] ** 2 + offsets**2 <= tolerance**2  # (2 * radius + 1) squared
    found = F.conv2d(objects.float(), disc.float()[None, None], padding=radius)
    return found > 0.5
