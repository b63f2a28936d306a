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
    "check_enlarged",
    "crop_of",
    "example_of",
    "pixel_scale",
    "probe",
    "read_image",
    "read_mask",
    "read_picture",
]


_REMEDY = "Save it as PNG of 8 or 16 bits, scaled as it is to be seen."
_RAMP_ERROR = 2 / 255  # what 8 bits and an interpolation make of a straight line


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
            a camera recorded is applied. What is transparent shows white. If the file has several
            frames, the first is read, and a warning says so.

    Returns:
        *PIL.Image.Image*: In mode ``"RGB"``.

    Raises:
        ValueError: If the file is missing, damaged or not an image.
    """
    from PIL import Image

    image = _opened(Path(path), "image")
    if image.mode == "F":
        raise ValueError(f"image must have 8 or 16 bits a channel; {path} holds floats. {_REMEDY}")
    if image.mode.startswith("I"):
        values: Any = image.convert("I").getextrema()  # of one channel, as two numbers
        low, high = values
        if low < 0 or high > 2**16 - 1:
            raise ValueError(
                f"image must have values from 0 to 65535; {path} has {low:g} to {high:g}. {_REMEDY}"
            )
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image.convert("RGB")


def read_mask(path: str | Path) -> Image.Image:
    """Reads where the object is: an image file that is not black there.

    Args:
        path (str or Path): The file. Any value but 0 counts, such as 1 in 16 bits, or a number that
            is not whole; of several channels any. Of a JPEG file, whose compression leaves small
            values around an object, those count that are more than half of the largest. What is
            transparent is not the object.

    Returns:
        *PIL.Image.Image*: In mode ``"L"``, 255 on the object and 0 elsewhere.

    Raises:
        ValueError: If the file is missing, damaged or not an image.
    """
    from PIL import Image

    image = _opened(Path(path), "mask")
    is_lossy = image.format in ("JPEG", "MPO")
    if image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("P", "CMYK", "YCbCr", "LAB", "HSV"):  # in which 0 is not black
        image = image.convert("RGB")
    values = np.asarray(image)  # (H, W) or (H, W, channels)
    inside = values > values.max() / 2 if is_lossy else values != 0
    if inside.ndim == 3:
        seen = inside[..., 3] if image.mode == "RGBA" else True
        inside = inside[..., :3].any(-1) & seen
    return Image.fromarray(np.where(inside, 255, 0).astype(np.uint8))


def _opened(path: Path, what: str) -> Image.Image:
    """An image as it is stored, but turned as the camera was held; `what` begins the messages."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    check_file(what, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                # the second frame of a camera's MPO is no other picture
                frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
                file.load()
                image = ImageOps.exif_transpose(file)
                image.format = file.format  # which a copy has not
    except UnidentifiedImageError as error:
        raise ValueError(
            f"{what} must be in a format that Pillow reads; got {path}. Save it as PNG or JPEG."
        ) from error
    except Exception as error:  # a decoder may raise anything on a damaged file
        raise ValueError(f"{what} {path} cannot be read: {first_line(error)}.") from error
    if frames > 1:
        warnings.warn(f"{path} has {frames} frames; the first is taken", stacklevel=3)
    return image


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


def check_enlarged(transform: Any, size: tuple[int, int]) -> None:
    """Refuses an image that a transform would enlarge beyond what memory holds.

    A step `Resize` with one number scales the shorter side to it. Of a picture of 1 x 12,000 pixels
    that makes one of 256 x 3,072,000.

    Args:
        transform (callable): The model's transform. Steps that are not known are not looked at.
        size (tuple[int, int]): Width and height of the image.

    Raises:
        ValueError: If a picture in between would have more pixels than Pillow reads.
    """
    from PIL import Image

    most = Image.MAX_IMAGE_PIXELS
    for side, longest in _resized(transform):
        scale = side / max(min(size), 1)
        if longest:
            scale = min(scale, longest / max(size))
        enlarged = [max(1, round(scale * length)) for length in size]
        if most is not None and max(size) > min(size) and enlarged[0] * enlarged[1] > most:
            raise ValueError(
                f"image must not be that narrow; got {size[0]} x {size[1]} pixels, of which the "
                f"model's transform would make {enlarged[0]} x {enlarged[1]} before it crops. Cut "
                "the image into pieces that are less narrow."
            )


def _resized(transform: Any) -> list[tuple[int, int | None]]:
    """The sides to which the steps of a transform scale the shorter side, with their limits."""
    steps = getattr(transform, "transforms", None)
    if steps is not None:
        return [found for step in steps for found in _resized(step)]
    size = getattr(transform, "resize_size", None)  # of torchvision's presets
    if size is None and type(transform).__name__ == "Resize":
        size = getattr(transform, "size", None)
    sides = [size] if isinstance(size, int) else list(size or ())
    if len(sides) != 1 or not isinstance(sides[0], int):
        return []
    longest = getattr(transform, "max_size", None)
    return [(sides[0], longest if isinstance(longest, int) else None)]


def crop_of(
    transform: Callable[[Any], Tensor], size: tuple[int, int]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Where the model's input lies in an image: found by sending the coordinates through.

    Args:
        transform (callable): Turns an image into the model's input, `(C, H, W)`.
        size (tuple[int, int]): Width and height of the image.

    Returns:
        *tuple* or *None*: For the columns and for the rows scale and offset: the point at `u`
        pixels from the left of the input lies at `scale * u + offset` in the image. None if the
        transform does more than to cut and to scale.

    Example::

        >>> from torchvision import transforms
        >>> cut = transforms.Compose([transforms.CenterCrop(20), transforms.ToTensor()])
        >>> [tuple(round(v) for v in axis) for axis in crop_of(cut, (60, 40))]
        [(1, 20), (1, 10)]
    """
    from PIL import Image

    ends = black_and_white(transform)
    if ends is None:
        return None
    black, white = (end.view(-1, 1, 1) for end in ends)  # (C, 1, 1)
    # with noise, the mean of a line knows a place better than its 256 steps do
    noise = np.random.default_rng(0).random(size[::-1], np.float32)  # (H, W)
    lines = []
    for axis, length in enumerate(size):
        steps = 255 * (np.arange(length, dtype=np.float32) + 0.5) / length
        ramp = np.floor((steps if axis == 0 else steps[:, None]) + noise)  # (H, W)
        image = Image.fromarray(np.minimum(ramp, 255).astype(np.uint8)).convert("RGB")
        shares = ((transform(image).detach().double() - black) / (white - black)).mean(0)  # (H, W)
        line = _line_through(shares.numpy() if axis == 0 else shares.numpy().T)
        if line is None:
            return None
        lines.append((line[0] * length, line[1] * length))
    return lines[0], lines[1]


def _line_through(shares: np.ndarray) -> tuple[float, float] | None:
    """Slope and value at 0 of what grows along the last axis alone; None if it does not."""
    places = np.arange(shares.shape[1]) + 0.5
    inner = slice(len(places) // 8, len(places) - len(places) // 8)  # filters bend the ends
    if len(places[inner]) < 2:
        return None
    slope, begin = np.polyfit(places[inner], shares.mean(0)[inner], 1)
    far = np.abs(shares[:, inner] - (slope * places + begin)[inner]).max()
    return None if far > _RAMP_ERROR or not slope else (float(slope), float(begin))
