"""Heat maps of any library in one form: of the images' size, in [0, 1], faulty ones marked.

Every metric gets its heat maps from :func:`prepare`, so all maps are resized, scaled and checked by
the same rules. No value is read from a tensor, unless the maps must already lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered import heatmap
from captum_clustered._checks import check_choice
from captum_clustered.targets import plain

__all__ = ["Interpolation", "Maps", "Normalization", "Status", "prepare"]

Normalization = Literal["minmax", "max"] | None
Interpolation = Literal["bilinear", "nearest"] | None


class Status(IntEnum):
    """What is wrong with a heat map, if anything. A faulty map is still judged.

    Attributes:
        OK: Nothing is wrong.
        FLAT: All values are equal up to rounding, before or after resizing. The map is not scaled
            but clamped to [0, 1]: zeros show the fill alone, ones the whole image.
        NOT_FINITE: The map has a NaN or an infinity. It counts as a map of zeros, which shows
            nothing.
        NEGATIVE: No value is above zero, so that nothing supports the class.
            ``normalize="minmax"`` scales it like any other map, ``"max"`` makes it zero.
    """

    OK = 0
    FLAT = 1
    NOT_FINITE = 2
    NEGATIVE = 3


@dataclass(frozen=True, eq=False)
class Maps:
    """Heat maps that are ready to be judged.

    Attributes:
        values (Tensor): `(N, 1, *spatial)`, in [0, 1], float32 (or float64 if they were given so).
        status (Tensor): int8 `(N,)`, a :class:`Status` for each image.
    """

    values: Tensor
    status: Tensor


def prepare(
    heatmaps: Any,
    size: Sequence[int],
    *,
    n_examples: int | None = None,
    device: torch.device | str | None = None,
    normalize: Normalization = "minmax",
    interpolation: Interpolation = "bilinear",
) -> Maps:
    """Brings heat maps of any library to the images' size and to [0, 1].

    Args:
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`, floating point, of any
            range and any resolution.
        size (sequence of int): Spatial size of the images.
        n_examples (int, optional): Number of images. Default: None (the number of maps)
        device (torch.device or str, optional): Device of the result.
            Default: None (the device of the maps)
        normalize (str or None, optional): ``"minmax"`` scales each map to [0, 1] by its minimum and
            maximum; ``"max"`` sets negative values to zero and divides by the maximum, so that zero
            stays zero; None takes the maps as they are, which must lie in [0, 1] (to check this,
            one number is read from the device). Default: ``"minmax"``
        interpolation (str or None, optional): How a map of another size is resized, before it is
            scaled: ``"bilinear"`` (linear along each axis, with ``align_corners=False`` as Captum's
            `LayerAttribution.interpolate`), ``"nearest"``, or None to raise an error.
            Default: ``"bilinear"``

    Returns:
        *Maps*: The maps, and for each whether something is wrong with it.

    Raises:
        TypeError: If the maps are not a floating point tensor or array.
        ValueError: If their shape does not fit, or `normalize` is None and a value lies outside
            [0, 1].

    Example::

        >>> maps = prepare(torch.tensor([[[0.0, 4.0]], [[3.0, 3.0]]]), size=(1, 2))
        >>> maps.values.flatten(1)
        tensor([[0., 1.],
                [1., 1.]])
        >>> [Status(status).name for status in maps.status.tolist()]
        ['OK', 'FLAT']
    """
    check_choice("normalize", normalize, ("minmax", "max", None))
    check_choice("interpolation", interpolation, ("bilinear", "nearest", None))
    given = _as_tensor(heatmaps)
    raw = _with_channel(given, len(size), n_examples)  # (N, 1, *spatial)
    device = torch.device(raw.device if device is None else device)
    wide = raw.dtype == torch.float64 and device.type != "mps"
    raw = raw.to(device=device, dtype=torch.float64 if wide else torch.float32)

    column = (-1, *[1] * (raw.ndim - 1))
    finite = raw.isfinite().flatten(1).all(1)
    raw = torch.where(finite.view(column), raw, 0)
    low, high = raw.flatten(1).aminmax(dim=1)  # (N,) each, before resizing
    eps = torch.finfo(given.dtype).eps
    if normalize is None:
        _check_range(low, high, eps)

    values = _resized(raw, size, interpolation)
    bottom, top = values.flatten(1).aminmax(dim=1)  # (N,) each, after resizing
    # resizing takes weighted sums, which differ by rounding even for equal numbers
    rounding = 2 * eps * torch.maximum(low.abs(), high.abs())
    flat = (high - low <= rounding) | (top - bottom <= rounding)
    if normalize == "minmax":
        values = heatmap.normalize(values)
    elif normalize == "max":
        values = values.clamp(min=0) / torch.where(top > 0, top, 1).view(column)
    values = torch.where(flat.view(column), top.view(column), values).clamp(0, 1)

    status = torch.where(high <= 0, Status.NEGATIVE.value, Status.OK.value)
    status = torch.where(flat, Status.FLAT.value, status)
    status = torch.where(finite, status, Status.NOT_FINITE.value)
    return Maps(values, status.to(torch.int8))


def resize(
    heatmaps: Any,
    size: Sequence[int],
    n_examples: int,
    device: torch.device,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Resizes maps to the size of the images without scaling their values.

    Args:
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`, floating point.
        size (sequence of int): Spatial size of the images.
        n_examples (int): Number of images.
        device (torch.device): Device of the result.
        interpolation (str or None, optional): As for :func:`prepare`. Default: ``"bilinear"``

    Returns:
        *Tensor*: `(N, 1, *size)`; zeros for a map with a NaN or an infinity.

    Raises:
        TypeError: If the maps are not a floating point tensor or array.
        ValueError: If their shape does not fit.
    """
    check_choice("interpolation", interpolation, ("bilinear", "nearest", None))
    raw = _with_channel(_as_tensor(heatmaps), len(size), n_examples).to(device)
    finite = raw.isfinite().flatten(1).all(1).view(-1, *[1] * (raw.ndim - 1))
    return _resized(torch.where(finite, raw, 0), size, interpolation)


def _as_tensor(heatmaps: Any) -> Tensor:
    heatmaps = plain(heatmaps, "heatmaps")
    if not isinstance(heatmaps, Tensor) and hasattr(heatmaps, "__array__"):
        heatmaps = _of_array(np.asarray(heatmaps))
    if not isinstance(heatmaps, Tensor):
        raise TypeError(
            f"`heatmaps` must be a tensor or an array; got {type(heatmaps).__name__}. Stack the "
            "maps of all images."
        )
    if not heatmaps.is_floating_point():
        raise TypeError(_not_floating(heatmaps.dtype))
    return heatmaps.detach().to_dense()


def _of_array(array: np.ndarray) -> Tensor:
    """A copy, of any order of bytes and axes; NIfTI files often give another than torch takes."""
    if array.dtype.kind not in "biuf":
        raise TypeError(_not_floating(array.dtype))
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8  # long double
    kind = np.dtype(float) if wide else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, kind, order="C"))


def _not_floating(kind: Any) -> str:
    return (
        f"`heatmaps` must be floating point; got {kind}. Convert them, for example with "
        "`.float()`; values from 0 to 255 need no scaling."
    )


def _with_channel(maps: Tensor, n_axes: int, n_examples: int | None) -> Tensor:
    if maps.ndim == n_axes + 1:
        maps = maps.unsqueeze(1)
    if maps.ndim != n_axes + 2 or maps.shape[1] != 1 or 0 in maps.shape[2:]:
        axes = ", ".join(("D", "H", "W")[-n_axes:]) if n_axes <= 3 else "*spatial"
        raise ValueError(
            f"`heatmaps` must have shape (N, 1, {axes}) or (N, {axes}); got {tuple(maps.shape)}. "
            "Sum a map of several channels first, for example with `.sum(1, keepdim=True)`."
        )
    if n_examples is not None and len(maps) != n_examples:
        raise ValueError(
            f"`heatmaps` must have one map for each of the {n_examples} images; got {len(maps)}. "
            "Pass the maps of these images only."
        )
    return maps


def _resized(maps: Tensor, size: Sequence[int], interpolation: Interpolation) -> Tensor:
    if maps.shape[2:] == tuple(size):
        return maps
    if interpolation is None:
        raise ValueError(
            f"`heatmaps` must have the size {tuple(size)} of the images; got "
            f"{tuple(maps.shape[2:])}. Pass interpolation='bilinear' to resize them."
        )
    if interpolation == "nearest":
        return F.interpolate(maps, tuple(size), mode="nearest")
    return heatmap.enlarge(maps, size)


def _check_range(low: Tensor, high: Tensor, eps: float) -> None:
    if bool(((low < -2 * eps) | (high > 1 + 2 * eps)).any()):
        raise ValueError(
            f"`heatmaps` must lie in [0, 1] with normalize=None; got values from "
            f"{float(low.min()):g} to {float(high.max()):g}. Pass normalize='minmax' to scale them."
        )
