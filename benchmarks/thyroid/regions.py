"""The region of interest: the nodule with a small margin, as large as the network wants it."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._files import whole

if TYPE_CHECKING:
    from PIL import Image

    from benchmarks.thyroid.data import Nodule, Skipped

__all__ = [
    "MARGIN",
    "SIZE",
    "Contour",
    "area",
    "binary",
    "clipped",
    "crop",
    "crop_mask",
    "filled",
    "prepare",
    "region",
]

Contour = tuple[tuple[float, float], ...]
Box = tuple[int, int, int, int]

MARGIN = 0.08
"""Share of the nodule's width and height that is added on each side; the paper's."""

SIZE = 224
"""Width and height of a region in pixels; the paper's."""


_COLUMNS = ("name", "path", "mask", "case", "label", "tags", "width", "height")


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


def region(box: Sequence[float], size: tuple[int, int], margin: float = MARGIN) -> Box:
    """The bounding box of a nodule with a margin, clipped to the frame.

    Args:
        box (sequence of float): Left, top, right and bottom of the nodule.
        size (tuple[int, int]): Width and height of the frame.
        margin (float, optional): Share of the nodule's width on the left and on the right, and of
            its height above and below. Default: 0.08

    Returns:
        *tuple*: Left, top, right and bottom in whole pixels, the latter two exclusive; nothing of
        the margin is lost by rounding.

    Example::

        >>> region((100, 50, 200, 100), (560, 360))
        (92, 46, 208, 104)
        >>> region((0, 50, 200, 360), (560, 360))
        (0, 25, 216, 360)
    """
    left, top, right, bottom = box
    if (
        not (left < right and top < bottom and left < size[0] and top < size[1])
        or min(right, bottom) <= 0
    ):
        raise ValueError(
            f"`box` must have an area within the frame; got {tuple(box)} in a frame of {size}."
        )
    x, y = margin * (right - left), margin * (bottom - top)
    outer = np.array([left - x, top - y, right + x, bottom + y]).round(6)
    low = np.maximum(np.floor(outer[:2]), 0).astype(int)
    high = np.minimum(np.ceil(outer[2:]), size).astype(int)
    return int(low[0]), int(low[1]), int(high[0]), int(high[1])


def filled(contour: Contour, size: tuple[int, int]) -> Image.Image:
    """A picture of that width and height, 255 on the nodule and 0 elsewhere."""
    from PIL import Image, ImageDraw

    mask = Image.new("L", size)
    ImageDraw.Draw(mask).polygon(list(contour), fill=255)
    return mask


def binary(mask: Image.Image) -> Image.Image:
    """A mask as 0 and 255: a pixel is on the nodule if it is brighter than half of the brightest.

    So masks of 0 and 1 are read as well as those of 0 and 255, and the noise that JPEG leaves
    around an edge is not.
    """
    from PIL import Image

    values = np.asarray(mask if mask.mode[0] in "IF" else mask.convert("L"))
    return Image.fromarray(np.where(values > values.max() / 2, np.uint8(255), np.uint8(0)))


def crop(image: Image.Image, box: Box, size: int = SIZE) -> Image.Image:
    """The region in colours, bicubic."""
    from PIL import Image

    return image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC, box=box)


def crop_mask(mask: Image.Image, box: Box, size: int = SIZE) -> Image.Image:
    """The region of a mask: a pixel is on the nodule if half of it is."""
    from PIL import Image

    scaled = binary(mask).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return scaled.point(lambda value: 255 * (value >= 128))


def prepare(
    nodules: Sequence[Nodule],
    skipped: Sequence[Skipped],
    out: Path,
    say: Callable[[str], object] = print,
) -> list[dict[str, Any]]:
    """Cuts the regions out and writes them down.

    Args:
        nodules (sequence of Nodule): From :func:`benchmarks.thyroid.data.read`.
        skipped (sequence of Skipped): Likewise; listed in ``skipped.csv``.
        out (Path): Folder for ``regions/``, ``masks/``, ``nodules.csv`` and ``skipped.csv``.
        say (callable, optional): Told in a line what was found. Default: print

    Returns:
        *list*: The lines of ``nodules.csv``: name, path, mask, case, label, tags, and the width and
        height of the region in the frame.
    """
    from PIL import Image
    from tqdm import tqdm

    for folder in ("regions", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for nodule in tqdm(nodules, desc="regions", mininterval=2):
        with Image.open(nodule.image) as file:
            image = file.convert("RGB")
        if nodule.contour is not None:
            mask = filled(nodule.contour, image.size)
            x, y = np.array(nodule.contour).T
            bounds = (x.min(), y.min(), x.max(), y.max())
        else:
            assert nodule.mask is not None
            with Image.open(nodule.mask) as file:
                mask = binary(file)
            found = mask.getbbox()
            assert found is not None  # the reader left empty masks out
            bounds = found
        box = region(bounds, image.size)
        paths = {"path": f"regions/{nodule.name}.png", "mask": f"masks/{nodule.name}.png"}
        for path, picture in (
            (paths["path"], crop(image, box)),
            (paths["mask"], crop_mask(mask, box)),
        ):
            with whole(out / path) as part:
                picture.save(part, format="PNG")
        rows.append(
            {
                "name": nodule.name,
                **paths,
                "case": nodule.case,
                "label": "" if nodule.label is None else nodule.label,
                "tags": " ".join(nodule.tags),
                "width": box[2] - box[0],
                "height": box[3] - box[1],
            }
        )
    _write(out / "skipped.csv", ["what", "reason"], [vars(line) for line in skipped])
    _write(out / "nodules.csv", _COLUMNS, rows)
    words = {"benign": 0, "malignant": 1, "without label": ""}
    counts = {word: [r for r in rows if r["label"] == label] for word, label in words.items()}
    say(
        f"{len(rows)} nodules of {len({row['case'] for row in rows})} cases: "
        + ", ".join(
            f"{len(found)} {word} ({len({row['case'] for row in found})} cases)"
            for word, found in zip(
                ("benign", "malignant", "without label"), counts.values(), strict=True
            )
        )
        + f"; {len(skipped)} left out, see {out / 'skipped.csv'}"
    )
    return rows


def _write(path: Path, columns: Sequence[str], rows: Sequence[Any]) -> None:
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
