"""The region of interest: the nodule with a small margin, as large as the network wants it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.files import write_table
from benchmarks.thyroid.contours import binary, filled
from benchmarks.thyroid.data import Nodule, Skipped
from captum_clustered._files import whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MARGIN", "SIZE", "crop", "crop_mask", "prepare", "region"]

Box = tuple[int, int, int, int]

MARGIN = 0.08
"""Share of the nodule's width and height that is added on each side; the paper's."""

SIZE = 224
"""Width and height of a region in pixels; the paper's."""


_COLUMNS = ("name", "path", "mask", "case", "label", "tags", "width", "height")


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
    from tqdm import tqdm

    for folder in ("regions", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = [_cut(nodule, out) for nodule in tqdm(nodules, desc="regions", mininterval=2)]
    write_table(out / "skipped.csv", ["what", "reason"], [vars(line) for line in skipped])
    write_table(out / "nodules.csv", _COLUMNS, rows)
    counts = []
    for word, label in (("benign", 0), ("malignant", 1), ("without label", "")):
        own = [row for row in rows if row["label"] == label]
        counts.append(f"{len(own)} {word} ({len({row['case'] for row in own})} cases)")
    say(
        f"{len(rows)} nodules of {len({row['case'] for row in rows})} cases: {', '.join(counts)}; "
        f"{len(skipped)} left out, see {out / 'skipped.csv'}"
    )
    return rows


def _cut(nodule: Nodule, out: Path) -> dict[str, Any]:
    """Writes the region and the mask of a nodule; returns its line of ``nodules.csv``."""
    from PIL import Image

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
    for path, picture in ((paths["path"], crop(image, box)), (paths["mask"], crop_mask(mask, box))):
        with whole(out / path) as part:
            picture.save(part, format="PNG")
    return {
        "name": nodule.name,
        **paths,
        "case": nodule.case,
        "label": "" if nodule.label is None else nodule.label,
        "tags": " ".join(nodule.tags),
        "width": box[2] - box[0],
        "height": box[3] - box[1],
    }
