"""What the network sees: the lesion with a small margin, or the whole frame, in its size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.files import write_json, write_table
from benchmarks.ultrasound.contours import binary, filled, joined
from benchmarks.ultrasound.data import Lesion, Skipped
from captum_clustered._checks import check_choice
from captum_clustered._files import whole

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["MARGIN", "SIZE", "VIEWS", "crop", "crop_mask", "prepare", "region", "view_of"]

Box = tuple[int, int, int, int]

MARGIN = 0.08
"""Share of the lesion's width and height that is added on each side; the paper's."""

SIZE = 224
"""Width and height of a region in pixels; the paper's."""


VIEWS = ("region", "frame")
"""What is cut out: the lesion's box with :data:`MARGIN`, as in the paper, or nothing."""

_COLUMNS = ("name", "path", "mask", "case", "label", "fold", "tags", "width", "height")


def region(box: Sequence[float], size: tuple[int, int], margin: float = MARGIN) -> Box:
    """The bounding box of a lesion with a margin, clipped to the frame.

    Args:
        box (sequence of float): Left, top, right and bottom of the lesion.
        size (tuple[int, int]): Width and height of the frame.
        margin (float, optional): Share of the lesion's width on the left and on the right, and of
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
    """The region of a mask: a pixel is on the lesion if half of it is."""
    from PIL import Image

    scaled = binary(mask).resize((size, size), Image.Resampling.BILINEAR, box=box)
    return scaled.point(lambda value: 255 * (value >= 128))


def prepare(
    lesions: Sequence[Lesion],
    skipped: Sequence[Skipped],
    out: Path,
    say: Callable[[str], object] = print,
    view: str = "region",
) -> list[dict[str, Any]]:
    """Cuts the regions out and writes them down.

    Args:
        lesions (sequence of Lesion): From :func:`benchmarks.ultrasound.data.read`.
        skipped (sequence of Skipped): Likewise; listed in ``skipped.csv``.
        out (Path): Folder for ``regions/``, ``masks/``, ``lesions.csv``, ``skipped.csv`` and
            ``prepared.json``.
        say (callable, optional): Told in a line what was found. Default: print
        view (str, optional): One of :data:`VIEWS`. Default: ``"region"``

    Returns:
        *list*: The lines of ``lesions.csv``: name, path, mask, case, label, fold, tags, and the
        width and height of the region in the frame.

    Raises:
        ValueError: If `view` is none of those, or `out` has another.
    """
    check_choice("view", view, VIEWS)
    if view_of(out) not in (None, view):
        raise ValueError(
            f"`out` must have one view of the data; {out} has {view_of(out)!r}, not {view!r}. Name "
            "another folder."
        )
    from tqdm import tqdm

    for folder in ("regions", "masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = [_cut(lesion, out, view) for lesion in tqdm(lesions, desc="regions", mininterval=2)]
    write_table(out / "skipped.csv", ["what", "reason"], [vars(line) for line in skipped])
    write_table(out / "lesions.csv", _COLUMNS, rows)
    write_json(out / "prepared.json", {"view": view})
    counts = []
    for word, label in (("benign", 0), ("malignant", 1), ("without label", "")):
        own = [row for row in rows if row["label"] == label]
        counts.append(f"{len(own)} {word} ({len({row['case'] for row in own})} cases)")
    say(
        f"{len(rows)} lesions of {len({row['case'] for row in rows})} cases: {', '.join(counts)}; "
        f"{len(skipped)} left out, see {out / 'skipped.csv'}"
    )
    return rows


def view_of(out: Path) -> str | None:
    """What was cut out, one of :data:`VIEWS`; None if nothing was yet."""
    path = out / "prepared.json"
    return json.loads(path.read_text(encoding="utf-8"))["view"] if path.is_file() else None


def _cut(lesion: Lesion, out: Path, view: str) -> dict[str, Any]:
    """Writes the region and the mask of a lesion; returns its line of ``lesions.csv``."""
    from PIL import Image

    with Image.open(lesion.image) as file:
        image = file.convert("RGB")
    if lesion.contour is not None:
        mask = filled(lesion.contour, image.size)
        x, y = np.array(lesion.contour).T
        bounds = (x.min(), y.min(), x.max(), y.max())
    else:
        mask = joined(lesion.masks)
        found = mask.getbbox()
        assert found is not None  # the reader left empty masks out
        bounds = found
    box = region(bounds, image.size) if view == "region" else (0, 0, *image.size)
    paths = {"path": f"regions/{lesion.name}.png", "mask": f"masks/{lesion.name}.png"}
    for path, picture in ((paths["path"], crop(image, box)), (paths["mask"], crop_mask(mask, box))):
        with whole(out / path) as part:
            picture.save(part, format="PNG")
    return {
        "name": lesion.name,
        **paths,
        "case": lesion.case,
        "label": "" if lesion.label is None else lesion.label,
        "fold": "" if lesion.fold is None else lesion.fold,
        "tags": " ".join(lesion.tags),
        "width": box[2] - box[0],
        "height": box[3] - box[1],
    }
