"""Where a lesion is: polygons in the frame, and the masks that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Contour", "area", "binary", "clipped", "filled", "joined"]

Contour = tuple[tuple[float, float], ...]


def area(contour: Contour) -> float:
    """The area inside a polygon, in square pixels.

    Example::

        >>> area(((0, 0), (4, 0), (4, 3), (0, 3)))
        12.0
    """
    if len(contour) < 3:
        return 0.0
    x, y = np.array(contour).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def clipped(contour: Contour, size: tuple[int, int]) -> Contour:
    """The part of a polygon within a frame of that width and height.

    Sutherland and Hodgman, "Reentrant polygon clipping", 1974: one side after the other.

    Example::

        >>> clipped(((-2, 0), (2, 0), (2, 2), (-2, 2)), (10, 10))
        ((0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0))
    """
    width, height = size
    points = [(float(x), float(y)) for x, y in contour]
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        kept: list[tuple[float, float]] = []
        for i, here in enumerate(points):
            before = points[i - 1]
            inside, was_inside = (sign * (p[axis] - limit) >= 0 for p in (here, before))
            if inside != was_inside:
                share = (limit - before[axis]) / (here[axis] - before[axis])
                other = before[1 - axis] + share * (here[1 - axis] - before[1 - axis])
                kept.append((float(limit), other) if axis == 0 else (other, float(limit)))
            if inside:
                kept.append(here)
        points = kept
    return tuple(points)


def filled(contour: Contour, size: tuple[int, int]) -> Image.Image:
    """A picture of that width and height, 255 on the lesion and 0 elsewhere."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(list(contour), fill=255)
    return mask


def binary(mask: Image.Image) -> Image.Image:
    """A mask as 0 and 255: a pixel is on the lesion if it is brighter than half of the brightest.

    So masks of 0 and 1 are read as well as those of 0 and 255, and the noise that JPEG leaves
    around an edge is not.
    """
    from PIL import Image

    values = np.asarray(mask if mask.mode[0] in "IF" else mask.convert("L"))
    return Image.fromarray(np.where(values > values.max() / 2, np.uint8(255), np.uint8(0)))


def joined(masks: Sequence[Path]) -> Image.Image:
    """The masks of one frame as one: 255 where any of them is."""
    from PIL import Image, ImageChops

    found = Image.Image()
    for number, path in enumerate(masks):
        with Image.open(path) as file:
            mask = binary(file)
        found = ImageChops.lighter(found, mask) if number else mask
    return found
