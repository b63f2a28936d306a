"""Masked images, and the fill: what replaces the part of an image that a heat map hides."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_clustered._checks import check_number

__all__ = ["Black", "Blur", "Fill", "describe", "fill_image", "masked"]


@dataclass(frozen=True)
class Black:
    """Black pixels, for a model whose input is normalised as `(pixel - mean) / std`.

    Args:
        mean (float or tuple[float, ...], optional): The mean that the normalisation subtracts, for
            all channels or for each, with pixels in [0, 1]. Default: 0.0
        std (float or tuple[float, ...], optional): The number that it divides by, for all channels
            or for each. Default: 1.0

    Raises:
        ValueError: If `mean` and `std` have different lengths, or `std` has a 0.

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
                f"{self.std}. Give both the same length, or one number for all channels."
            )
        if 0 in (self.std if isinstance(self.std, tuple) else (self.std,)):
            raise ValueError(
                f"`std` must not be 0; got {self.std}. Pass what the normalisation divides by."
            )

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
    """The image itself, blurred by a Gaussian; border pixels are repeated outside the image.

    The default is the blur of Group-CAM (Zhang et al. 2021), which leaves almost no detail.

    Args:
        kernel_size (int, optional): Length of the kernel in pixels, odd. Default: 51
        sigma (float, optional): Standard deviation in pixels. Default: 50.0

    Raises:
        ValueError: If `kernel_size` is not an odd int >= 1, or `sigma` is not > 0.

    Example::

        >>> image = torch.tensor([[[0.0, 3.0, 0.0]]])
        >>> fill_image(Blur(kernel_size=3, sigma=100.0), image)
        tensor([[[1.0000, 1.0000, 1.0000]]])
    """

    kernel_size: int = 51
    sigma: float = 50.0

    def __post_init__(self) -> None:
        size = self.kernel_size
        if not isinstance(size, int) or size < 1 or not size % 2:
            raise ValueError(f"`kernel_size` must be an odd int >= 1; got {size!r}. Add or take 1.")
        check_number("sigma", self.sigma, above=0)


Fill = float | Sequence[float] | Tensor | Black | Blur | Literal["mean", "blur"]
"""What a caller may pass as ``fill``; see :func:`fill_image`."""


def fill_image(fill: Fill, inputs: Tensor) -> Tensor:
    """Makes the image that is seen where a heat map is 0.

    Args:
        fill (float, sequence, Tensor, Black, Blur or str): A number; a sequence with one number for
            each channel; a tensor that broadcasts to the inputs; :class:`Black`, for black in a
            normalised input; :class:`Blur`; ``"mean"``, which is 0, the mean colour of a normalised
            input; or ``"blur"``, which is ``Blur()``.
        inputs (Tensor): The images as the model takes them, `(N, C, *spatial)`.

    Returns:
        *Tensor*: Broadcasts to the inputs; has their dtype and device.

    Raises:
        TypeError: If `fill` has none of these types.
        ValueError: If its name is unknown or its shape does not fit the inputs.

    Example::

        >>> fill_image(Black(mean=(0.5, 0.4), std=0.2), torch.zeros(1, 2, 4, 4)).flatten()
        tensor([-2.5000, -2.0000])
    """
    if isinstance(fill, str):
        fill = _by_name(fill)
    if isinstance(fill, Blur):
        return _blurred(inputs, fill)
    values = _values(fill, inputs)
    if values.ndim == 1 and len(values) in (1, inputs.shape[1]):
        values = values.reshape(-1, *[1] * (inputs.ndim - 2))  # (C, 1, …)
    try:
        fits = torch.broadcast_shapes(values.shape, inputs.shape) == inputs.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"`fill` must have one number for each of the {inputs.shape[1]} channels, or broadcast "
            f"to the inputs {tuple(inputs.shape)}; got shape {tuple(values.shape)}. Pass one "
            "number to fill all channels alike."
        )
    return values


_ACCEPTED = "a number, one number per channel, a tensor, Black(mean, std), Blur(), 'mean' or 'blur'"


def _by_name(name: str) -> float | Blur:
    if name == "black":
        raise ValueError(
            "`fill` must say where black lies in the model's input; got 'black'. Pass "
            "Black(mean, std) with the model's normalisation, or 0.0 for images in [0, 1]."
        )
    if name not in ("mean", "blur"):
        raise ValueError(f"`fill` must be {_ACCEPTED}; got {name!r}.")
    return 0.0 if name == "mean" else Blur()


def _values(fill: Any, inputs: Tensor) -> Tensor:
    """The fill as a tensor, of any shape."""
    if isinstance(fill, Tensor):
        return fill.detach().to(device=inputs.device, dtype=inputs.dtype)
    if isinstance(fill, Black):
        fill = fill.values
    elif isinstance(fill, numbers.Real):
        fill = (fill,)
    elif not isinstance(fill, Sequence) or not all(isinstance(x, numbers.Real) for x in fill):
        raise TypeError(f"`fill` must be {_ACCEPTED}; got {type(fill).__name__} {fill!r}.")
    return torch.tensor([float(x) for x in fill], dtype=inputs.dtype, device=inputs.device)


def describe(fill: Fill) -> str:
    """Describes a fill in a few words, for a table.

    Args:
        fill (float, sequence, Tensor, Black, Blur or str): As for :func:`fill_image`.

    Returns:
        *str*: The description.

    Example::

        >>> describe("mean"), describe(0.5)
        ('mean colour', '0.5')
    """
    if isinstance(fill, Tensor):
        return f"tensor of shape {tuple(fill.shape)}"
    if isinstance(fill, str):
        return "mean colour" if fill == "mean" else repr(Blur())
    if isinstance(fill, (Black, Blur)):
        return repr(fill)
    return repr(tuple(fill)) if isinstance(fill, Sequence) else f"{float(fill):g}"


def masked(inputs: Tensor, maps: Tensor, fill: Tensor) -> Tensor:
    """Masks the images with their maps: `inputs * maps + fill * (1 - maps)`.

    Args:
        inputs (Tensor): `(N, C, *spatial)`.
        maps (Tensor): `(N, 1, *spatial)`, in [0, 1].
        fill (Tensor): The result of :func:`fill_image`.

    Returns:
        *Tensor*: `(N, C, *spatial)`, in the inputs' dtype.

    Example::

        >>> image, heat = torch.tensor([[[[8.0, 8.0]]]]), torch.tensor([[[[1.0, 0.25]]]])
        >>> masked(image, heat, fill_image(4.0, image))
        tensor([[[[8., 5.]]]])
    """
    keep = maps.to(inputs.dtype)  # (N, 1, *spatial)
    return (inputs * keep).add_(fill * (1 - keep))  # in place: it is as large as the images


def _blurred(images: Tensor, blur: Blur) -> Tensor:
    """A Gaussian blur along each spatial axis."""
    radius = blur.kernel_size // 2
    result = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    offsets = torch.arange(-radius, radius + 1, dtype=result.dtype, device=result.device)
    kernel = torch.softmax(-(offsets**2) / (2 * blur.sigma**2), 0).reshape(1, 1, -1)
    for axis in range(2, images.ndim):
        rows = result.movedim(axis, -1)
        lines = rows.reshape(-1, 1, rows.shape[-1])  # (rows, 1, length)
        lines = F.pad(lines, (radius, radius), mode="replicate")
        result = F.conv1d(lines, kernel).reshape(rows.shape).movedim(-1, axis)
    return result.to(images.dtype)
