"""Heat maps at the door, and images that are masked by them.

Every metric reads its heat maps through :func:`prepare`, so that a map is resized, scaled and
judged by one rule. No value is read from a tensor on the way, except where a map must already lie
in [0, 1].
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered import heatmap

__all__ = [
    "Black",
    "Blur",
    "Fill",
    "Interpolation",
    "Maps",
    "Normalization",
    "Status",
    "fill_image",
    "masked",
    "prepare",
]

Normalization = Literal["minmax", "max"] | None
Interpolation = Literal["bilinear", "nearest"] | None


class Status(IntEnum):
    """What is wrong with a heat map, one of these per image; such a map is judged all the same.

    Attributes:
        OK: Nothing.
        FLAT: One value everywhere, to rounding, at the images' size. It is clamped to [0, 1] and
            kept, since there is nothing to scale: zeros show the fill alone, ones the whole image.
        NOT_FINITE: It holds a NaN or an infinity. It counts as a map of zeros, which shows nothing.
        NEGATIVE: No value is above zero, so nothing speaks for the class. ``normalize="minmax"``
            scales it as any other map, ``"max"`` makes it zero.
    """

    OK = 0
    FLAT = 1
    NOT_FINITE = 2
    NEGATIVE = 3


# --- what fills the masked part -------------------------------------------------------------------


@dataclass(frozen=True)
class Black:
    """Black pixels, for a model whose input is normalised as `(pixel - mean) / std`.

    Args:
        mean (float or tuple[float, ...], optional): The mean, one for all channels or one for each,
            in units where pixels lie in [0, 1]. Default: 0.0
        std (float or tuple[float, ...], optional): The divisor, likewise. Default: 1.0

    Example::

        >>> Black(mean=0.5, std=0.25).values
        (-2.0,)
        >>> Black((0.5, 0.4), (0.25, 0.2)).values
        (-2.0, -2.0)
    """

    mean: float | tuple[float, ...] = 0.0
    std: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            given = getattr(self, name)
            if not isinstance(given, numbers.Real):
                object.__setattr__(self, name, tuple(float(value) for value in given))
        sizes = {len(part) for part in (self.mean, self.std) if isinstance(part, tuple)}
        if len(sizes) > 1 or 0 in sizes:
            raise ValueError(
                f"`mean` and `std` must have one entry for each channel; got {self.mean} and "
                f"{self.std}. Give both the same length, or numbers."
            )
        if 0 in (self.std if isinstance(self.std, tuple) else (self.std,)):
            raise ValueError(f"`std` must not be 0; got {self.std}.")

    @property
    def values(self) -> tuple[float, ...]:
        """The value of black in each channel of the normalised input."""
        mean = self.mean if isinstance(self.mean, tuple) else (self.mean,)
        std = self.std if isinstance(self.std, tuple) else (self.std,)
        length = max(len(mean), len(std))
        pairs = zip(mean * (length // len(mean)), std * (length // len(std)), strict=True)
        return tuple(-m / s for m, s in pairs)


@dataclass(frozen=True)
class Blur:
    """The image itself, blurred by a Gaussian; the border pixel is repeated outside the image.

    The default is the blur of Group-CAM (Zhang et al. 2021), which leaves next to no detail.

    Args:
        kernel_size (int, optional): Length of the kernel in pixels, odd. Default: 51
        sigma (float, optional): Standard deviation in pixels. Default: 50.0
    """

    kernel_size: int = 51
    sigma: float = 50.0

    def __post_init__(self) -> None:
        if (
            not isinstance(self.kernel_size, int)
            or self.kernel_size < 1
            or not self.kernel_size % 2
        ):
            raise ValueError(f"`kernel_size` must be an odd int >= 1; got {self.kernel_size!r}.")
        if not self.sigma > 0:
            raise ValueError(f"`sigma` must be > 0; got {self.sigma!r}.")


Fill = float | Sequence[float] | Tensor | Black | Blur | Literal["mean", "blur"]
"""What a caller may pass as ``fill``; see :func:`fill_image`."""


def fill_image(fill: Fill, inputs: Tensor) -> Tensor:
    """Makes what shows where a heat map is 0.

    Args:
        fill (float, sequence, Tensor, Black, Blur or str): A number; a sequence with one number for
            each channel; a tensor that broadcasts against the inputs; :class:`Black`, which knows
            where black lies for a normalised input; :class:`Blur`; ``"mean"``, which is 0, the mean
            colour of a normalised input; or ``"blur"``, which is ``Blur()``.
        inputs (Tensor): The images as the model takes them, `(N, C, *spatial)`.

    Returns:
        *Tensor*: Broadcasts against the inputs; their dtype and device.

    Raises:
        TypeError: If `fill` is of no accepted type.
        ValueError: If its name is unknown or it does not fit the inputs.

    Example::

        >>> fill_image(Black(mean=(0.5, 0.4), std=0.2), torch.zeros(1, 2, 4, 4)).flatten()
        tensor([-2.5000, -2.0000])
    """
    if isinstance(fill, str):
        name: str = fill
        if name == "black":
            raise ValueError(
                "`fill` must say where black lies in the model's input; got 'black'. Pass "
                "Black(mean, std) with the model's normalisation, or 0.0 for images in [0, 1]."
            )
        if name not in ("mean", "blur"):
            raise ValueError(
                "`fill` must be a number, one number per channel, a tensor, Black(mean, std), "
                f"Blur(), 'mean' or 'blur'; got {fill!r}."
            )
        fill = 0.0 if fill == "mean" else Blur()
    if isinstance(fill, Blur):
        return _blurred(inputs, fill)
    if isinstance(fill, Tensor):
        values = fill.detach().to(device=inputs.device, dtype=inputs.dtype)
    elif isinstance(fill, Black):
        values = _on(fill.values, inputs)
    elif isinstance(fill, numbers.Real):
        values = _on((float(fill),), inputs)
    elif isinstance(fill, Sequence) and all(isinstance(value, numbers.Real) for value in fill):
        values = _on([float(value) for value in fill], inputs)
    else:
        raise TypeError(
            "`fill` must be a number, one number per channel, a tensor, Black(mean, std), Blur(), "
            f"'mean' or 'blur'; got {type(fill).__name__}."
        )
    if values.ndim == 1 and len(values) in (1, inputs.shape[1]):
        values = values.reshape(-1, *[1] * (inputs.ndim - 2))
    try:
        fits = torch.broadcast_shapes(values.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"`fill` must have one number for each of the {inputs.shape[1]} channels, or broadcast "
            f"against the inputs {tuple(inputs.shape)}; got shape {tuple(values.shape)}."
        )
    return values


def describe(fill: Fill) -> str:
    """Says what `fill` is, in a few words for a table."""
    if isinstance(fill, Tensor):
        return f"tensor of shape {tuple(fill.shape)}"
    if isinstance(fill, str):
        return "mean colour" if fill == "mean" else repr(Blur())
    if isinstance(fill, (Black, Blur)):
        return repr(fill)
    return repr(tuple(fill)) if isinstance(fill, Sequence) else f"{float(fill):g}"


def _on(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _blurred(images: Tensor, blur: Blur) -> Tensor:
    """A Gaussian blur along each spatial axis."""
    radius = blur.kernel_size // 2
    result = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    offsets = torch.arange(-radius, radius + 1, dtype=result.dtype, device=result.device)
    kernel = torch.softmax(-(offsets**2) / (2 * blur.sigma**2), 0).reshape(1, 1, -1)
    for axis in range(2, images.ndim):
        rows = result.movedim(axis, -1)
        lines = F.pad(rows.reshape(-1, 1, rows.shape[-1]), (radius, radius), mode="replicate")
        result = F.conv1d(lines, kernel).reshape(rows.shape).movedim(-1, axis)
    return result.to(images.dtype)


# --- heat maps ------------------------------------------------------------------------------------


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
        size (sequence of int): The spatial size that is needed.
        n_examples (int, optional): The number of maps that is needed. Default: None (any)
        device (torch.device or str, optional): Where they are needed.
            Default: None (where they are)
        normalize (str or None, optional): ``"minmax"`` scales each map from its minimum and maximum
            to [0, 1]; ``"max"`` sets negative values to zero and divides by the maximum, so that
            zero stays zero; None takes the maps as they are, which must lie in [0, 1] (to check
            this, one number is read from the device). Default: ``"minmax"``
        interpolation (str or None, optional): How a map of another size is resized, before it is
            scaled: ``"bilinear"`` (linear along each axis, corners not aligned, as Captum's
            `LayerAttribution.interpolate`), ``"nearest"``, or None to refuse it.
            Default: ``"bilinear"``

    Returns:
        *Maps*: The maps and what is wrong with them, if anything.

    Raises:
        TypeError: If the maps are no floating point tensor or array.
        ValueError: If their shape does not fit, or a value lies outside [0, 1] and None was given.

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
    raw = _with_channel(given, len(size), n_examples)
    device = torch.device(raw.device if device is None else device)
    wide = raw.dtype == torch.float64 and device.type != "mps"
    raw = raw.to(device=device, dtype=torch.float64 if wide else torch.float32)

    column = (-1, *[1] * (raw.ndim - 1))
    finite = raw.isfinite().flatten(1).all(1)
    raw = torch.where(finite.view(column), raw, 0)
    low, high = raw.flatten(1).aminmax(dim=1)
    eps = torch.finfo(given.dtype).eps
    if normalize is None:
        _check_range(low, high, eps)

    values = _resized(raw, size, interpolation)
    bottom, top = values.flatten(1).aminmax(dim=1)
    # what the weighted sum of equal numbers leaves is no shape
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
    """Brings maps to the images' size with their own values; a map with a NaN becomes zeros."""
    check_choice("interpolation", interpolation, ("bilinear", "nearest", None))
    raw = _with_channel(_as_tensor(heatmaps), len(size), n_examples).to(device)
    finite = raw.isfinite().flatten(1).all(1).view(-1, *[1] * (raw.ndim - 1))
    return _resized(torch.where(finite, raw, 0), size, interpolation)


def masked(inputs: Tensor, maps: Tensor, fill: Tensor) -> Tensor:
    """The images seen through their maps: `inputs * maps + fill * (1 - maps)`.

    Args:
        inputs (Tensor): `(N, C, *spatial)`.
        maps (Tensor): `(N, 1, *spatial)`, in [0, 1].
        fill (Tensor): What :func:`fill_image` made.

    Returns:
        *Tensor*: `(N, C, *spatial)`, of the inputs' dtype.

    Example::

        >>> image, heat = torch.tensor([[[[8.0, 8.0]]]]), torch.tensor([[[[1.0, 0.25]]]])
        >>> masked(image, heat, fill_image(4.0, image))
        tensor([[[[8., 5.]]]])
    """
    keep = maps.to(inputs.dtype)
    return inputs * keep + fill * (1 - keep)


def _as_tensor(heatmaps: Any) -> Tensor:
    if not isinstance(heatmaps, Tensor) and hasattr(heatmaps, "__array__"):
        heatmaps = torch.tensor(heatmaps)
    if not isinstance(heatmaps, Tensor):
        raise TypeError(
            f"`heatmaps` must be a tensor or an array; got {type(heatmaps).__name__}. Pass one map "
            "per image, stacked."
        )
    if not heatmaps.is_floating_point():
        raise TypeError(
            f"`heatmaps` must be floating point; got {heatmaps.dtype}. Convert them, for example "
            "with `.float()`; a map of 0 to 255 is scaled like any other."
        )
    return heatmaps.detach()


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
            f"`heatmaps` must have one map for each of the {n_examples} images; got {len(maps)}."
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
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps, tuple(size), mode=linear, align_corners=False)


def _check_range(low: Tensor, high: Tensor, eps: float) -> None:
    if bool(((low < -2 * eps) | (high > 1 + 2 * eps)).any()):
        raise ValueError(
            f"`heatmaps` must lie in [0, 1] with normalize=None; got values from "
            f"{float(low.min()):g} to {float(high.max()):g}. Pass normalize='minmax' to scale them."
        )


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises where `value` is none of `choices`."""
    # `in` compares: an array would give an array, and True equals 1
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}; got {value!r}.")


def check_int(name: str, value: object, minimum: int) -> None:
    """Raises where `value` is no int of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an int >= {minimum}; got {value!r}.")
