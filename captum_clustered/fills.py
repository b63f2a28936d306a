"""Images seen through maps: what fills the part that a map hides."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Black", "Blur", "Fill", "describe", "fill_image", "masked"]


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
