"""Pictures from files: images, DICOM frames and volumes, and how a transform scales their pixels.

Pillow is imported only when an image is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import check_file, first_line
from captum_clustered.fills import Black
from captum_clustered.models.medical import is_dicom, is_volume, read_dicom, read_volume

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "Picture",
    "black_and_white",
    "example_of",
    "pixel_scale",
    "probe",
    "read_image",
    "read_picture",
]


@dataclass(frozen=True, eq=False)
class Picture:
    """The content of a file: an image, or a volume.

    Attributes:
        pixels (PIL.Image.Image or array): The image in mode ``"RGB"``, or the volume as float32
            `(D, H, W)` or `(C, D, H, W)`.
        frames (int): The number of frames in the file.
        is_dicom (bool): Whether the file is DICOM.
    """

    pixels: Image.Image | np.ndarray
    frames: int = 1
    is_dicom: bool = False

    @property
    def size(self) -> dict[str, int]:
        """The length of each spatial axis, by name."""
        if isinstance(self.pixels, np.ndarray):
            return dict(zip(("depth", "height", "width"), self.pixels.shape[-3:], strict=True))
        return {"width": self.pixels.width, "height": self.pixels.height}


def read_picture(path: str | Path, frame: int = 1) -> Picture:
    """Reads an image, a frame of a DICOM file, or a volume. The file itself says which it is.

    Args:
        path (str or Path): The file.
        frame (int, optional): Which frame of a DICOM file, counted from 1. Default: 1

    Returns:
        *Picture*: The content of the file.

    Raises:
        ValueError: If the file cannot be read, or has no such frame.
        ImportError: If a package is missing. The message says what to install.
    """
    path = Path(path)
    if is_dicom(path):
        image, frames = read_dicom(path, frame)
        return Picture(image, frames, is_dicom=True)
    if frame != 1:
        raise ValueError(f"`frame` must be 1 for a file that is not DICOM; got {frame} for {path}.")
    return Picture(read_volume(path) if is_volume(path) else read_image(path))


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file.

    Args:
        path (str or Path): The file. Grey images of 16 bits are scaled to 8 bits. The rotation that
            a camera recorded is applied. If the file has several frames, the first is read.

    Returns:
        *PIL.Image.Image*: In mode ``"RGB"``.

    Raises:
        ValueError: If the file is missing, damaged or not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    check_file("image", path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"image must be in a format that Pillow reads; got {path}.") from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise ValueError(f"image {path} cannot be read: {first_line(error)}.") from error
    if image.mode == "F":
        raise ValueError(f"image must have 8 or 16 bits a channel; {path} holds floats.")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def example_of(paths: Sequence[Path]) -> np.ndarray | None:
    """An empty volume as large as the first one that can be read; None if the files are images.

    Args:
        paths (sequence of Path): The files.

    Returns:
        *array* or *None*: Zeros, `(D, H, W)` or `(C, D, H, W)`.

    Raises:
        ValueError: If there are both images and volumes, since no model takes both; or if none of
            the volumes can be read.
    """
    volumes = [path for path in paths if is_volume(path)]
    if volumes and len(volumes) < len(paths):
        other = next(path for path in paths if not is_volume(path))
        raise ValueError(f"images must be all volumes or none; got {volumes[0]} and {other}.")
    for i, path in enumerate(volumes):
        try:
            return np.zeros_like(read_volume(path))
        except ValueError:
            if i == len(volumes) - 1:
                raise
    return None


# --- what a transform does to pixels --------------------------------------------------------------


def probe(example: np.ndarray | None = None) -> Any:
    """A picture whose pixels all differ from their neighbours, to ask a transform what it does.

    Args:
        example (array, optional): A volume of the size to come. Default: None (an image)

    Returns:
        *PIL.Image.Image* or *array*: An image of 256 x 256 pixels, or a volume like the example
        with values from 0 to 1.
    """
    if example is not None:
        return np.linspace(0, 1, example.size, dtype=np.float32).reshape(example.shape)
    from PIL import Image

    ramp = Image.linear_gradient("L")
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


def black_and_white(
    transform: Callable[[Any], Tensor], example: np.ndarray | None = None
) -> tuple[Tensor, Tensor] | None:
    """The values to which a transform takes black and white, one for each channel.

    Args:
        transform (callable): Turns a picture into the model's input, `(C, *spatial)`.
        example (array, optional): A volume of the size to come; black is then 0 and white is 1.
            Default: None (an image)

    Returns:
        *tuple* or *None*: Two tensors `(C,)`. None if the transform gives a picture of one colour
        more than one value in a channel, or gives black and white the same value.
    """
    ends = []
    for blank in _blanks(example):
        pixels = transform(blank).detach().double().flatten(1)  # (C, pixels)
        if not torch.allclose(pixels, pixels[:, :1].expand_as(pixels)):
            return None
        ends.append(pixels[:, 0])
    black, white = ends
    return None if bool((white == black).any()) else (black, white)


def _blanks(example: np.ndarray | None) -> list[Any]:
    if example is not None:
        return [np.zeros_like(example), np.ones_like(example)]
    from PIL import Image

    return [Image.new("RGB", (256, 256), colour) for colour in ("black", "white")]


def pixel_scale(
    transform: Callable[[Any], Tensor], example: np.ndarray | None = None
) -> Black | None:
    """Mean and standard deviation of a transform's normalisation, measured on black and white.

    Args:
        transform (callable): Turns a picture into the model's input, `(C, *spatial)`.
        example (array, optional): As for :func:`black_and_white`. Default: None (an image)

    Returns:
        *Black* or *None*: None if the transform does not normalise each channel by itself.

    Example::

        >>> def transform(image):
        ...     return torch.full((1, 4, 4), (image.getpixel((0, 0))[0] / 255 - 0.5) / 0.25)
        >>> pixel_scale(transform)
        Black(mean=(0.5,), std=(0.25,))
    """
    ends = black_and_white(transform, example)
    if ends is None:
        return None
    black, white = ends
    std = 1 / (white - black)
    # float32 leaves 0.48500001
    return Black(*(tuple(round(v, 6) for v in part.tolist()) for part in (-black * std, std)))
