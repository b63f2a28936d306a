"""Tables of images for an evaluation: made from a list of boxes, and cut in halves.

Settings are chosen on one half and reported on the other, so that no number was picked by what it
shows.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.files import write_table
from captum_clustered._files import check_file

__all__ = ["HALVES", "half", "join_boxes", "read_table"]

HALVES = ("first", "second")
"""The halves of a table: its rows of even and of odd index, counted from 0."""

_SIDES = ("x0", "y0", "x1", "y1")


def join_boxes(boxes: Path, images: Path, to: Path) -> int:
    r"""Turns a list with one box a line into the CSV file that an evaluation takes.

    Args:
        boxes (Path): CSV with the columns `file`, `label`, `x0`, `y0`, `x1` and `y1`, in pixels of
            the image. Further columns are left out.
        images (Path): The folder that the files are in.
        to (Path): The table to write, with the columns `path`, `class` and `boxes`.

    Returns:
        *int*: The number of images.

    Raises:
        ValueError: If there is no such file, or a column is missing.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "boxes.csv"
        ...     _ = path.write_text("file,label,x0,y0,x1,y1\na.png,3,0,0,4,4\na.png,3,5,5,8,8\n")
        ...     join_boxes(path, Path("/images"), Path(folder) / "table.csv")
        ...     (Path(folder) / "table.csv").read_text()
        1
        'path,class,boxes\n/images/a.png,3,0 0 4 4; 5 5 8 8\n'
    """
    found: dict[str, dict[str, str]] = {}
    for row in read_table(boxes, ("file", "label", *_SIDES), "boxes"):
        path = str(images.resolve() / row["file"])
        box = " ".join(row[side] for side in _SIDES)
        known = found.setdefault(path, {"path": path, "class": row["label"], "boxes": ""})
        known["boxes"] = f"{known['boxes']}; {box}" if known["boxes"] else box
    write_table(to, ("path", "class", "boxes"), found.values())
    return len(found)


def half(
    data: Path,
    which: str,
    to: Path,
    keep: Callable[[Path, Mapping[str, str]], bool] | None = None,
) -> int:
    """Writes one half of a table of images.

    Args:
        data (Path): CSV with a column `path`, as for an evaluation.
        which (str): One of :data:`HALVES`.
        to (Path): The table to write. Its paths are absolute.
        keep (callable, optional): Takes the path and the row of an image of this half; False leaves
            the image out. Default: None (all are kept)

    Returns:
        *int*: The number of images.

    Raises:
        ValueError: If there is no such table, or nothing is left.
    """
    rows = []
    for row in read_table(data)[HALVES.index(which) :: len(HALVES)]:
        path = (data.parent / row["path"]).resolve()
        if keep is None or keep(path, row):
            rows.append({**row, "path": str(path)})
    if not rows:
        raise ValueError(
            f"`data` must have images in its {which} half that can be judged; {data} has none. "
            "Name a longer table."
        )
    write_table(to, list(rows[0]), rows)
    return len(rows)


def read_table(
    table: Path, columns: Sequence[str] = ("path",), argument: str = "data"
) -> list[dict[str, str]]:
    """Reads a CSV file with a line of column names.

    Args:
        table (Path): The file.
        columns (sequence of str, optional): What it must have. Default: ``("path",)``
        argument (str, optional): What the error message calls it. Default: ``"data"``

    Returns:
        *list*: The rows.

    Raises:
        ValueError: If there is no such file, or a column is missing.
    """
    check_file(f"`{argument}`", table)
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(
            f"`{argument}` must have the columns {', '.join(columns)}; {table} lacks "
            f"{', '.join(missing)}."
        )
    return rows
