"""Thyroid ultrasound as it is published, and one's own: nodules with contours, patients and labels.

Three layouts are known; :func:`read` tells them apart:

- **DDTI** as released: ``N.xml`` for each case, in the folder or in ``xml/``, and ``N_M.jpg``
  anywhere below. A mark's polygons are one nodule each. TI-RADS 2 and 3 count as benign, 4a to 5 as
  malignant: that is the radiologist's impression, not pathology.
- **TN3K**: ``trainval-image/`` and ``trainval-mask/``, ``test-image/`` and ``test-mask/`` with
  pictures of equal names, and CSV files in whose lines the picture's name is the first cell, or the
  first with a picture's ending, and 0 or benign, 1 or malignant the last. Both parts number their
  pictures from 0: a CSV file with ``trainval`` or ``test`` in its name is for that part, any other
  for a part that has none. It does not say which pictures are of one patient, so each counts as its
  own.
- **a CSV file** with a nodule a line and the columns ``image`` (relative to the file), and where
  known ``case``, ``label`` (0 or benign, 1 or malignant), ``tags`` (words), and ``contour``
  (``x y; x y; …`` in pixels) or ``mask`` (a picture of the frame's size, bright on the nodule).

What cannot be used is listed with its reason and stops nothing.
"""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.thyroid.contours import Contour, area, binary, clipped

__all__ = ["Nodule", "Skipped", "read"]

_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}
_TIRADS = {"1": 0, "2": 0, "3": 0, "4": 1, "4a": 1, "4b": 1, "4c": 1, "5": 1}
_PARTS = ("trainval", "test")
_LABELS = {"0": 0, "1": 1, "benign": 0, "malignant": 1}
_SMALLEST = 16.0  # square pixels: less is a slip of the mouse


@dataclass(frozen=True)
class Nodule:
    """One nodule in one frame.

    Attributes:
        name (str): Unlike all others.
        image (Path): The frame.
        case (str): The patient.
        label (int or None): 0 for benign, 1 for malignant, None where nobody told.
        contour (tuple or None): Points `(x, y)` in pixels of the frame.
        mask (Path or None): A picture of the frame's size, bright on the nodule.
        tags (tuple[str, ...]): What else is known, such as ``"with_artifacts"``.
    """

    name: str
    image: Path
    case: str
    label: int | None
    contour: Contour | None = None
    mask: Path | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """What could not be used, and why."""

    what: str
    reason: str


Found = tuple[list[Nodule], list[Skipped]]


def read(data: Path) -> Found:
    """Finds the nodules of a data set.

    Args:
        data (Path): A folder in the layout of DDTI or TN3K, or a CSV file.

    Returns:
        *tuple*: The nodules, in a fixed order, and what was left out.

    Raises:
        ValueError: If the layout is none of those, or no nodule is left.
    """
    if data.is_file():
        found = _read_table(data)
    elif _case_files(data):
        found = _read_ddti(data)
    elif any((data / f"{part}-image").is_dir() for part in _PARTS):
        found = _read_tn3k(data)
    else:
        raise ValueError(
            "`data` must be a CSV file, or a folder with XML files (DDTI) or with trainval-image/ "
            f"or test-image/ (TN3K); got {data}"
            + (", which has none." if data.is_dir() else ", which does not exist.")
        )
    nodules, skipped = found
    if not nodules:
        first = f" The first reason: {skipped[0].what}: {skipped[0].reason}." if skipped else ""
        raise ValueError(f"`data` must have nodules that can be used; {data} has none.{first}")
    return nodules, skipped


# --- DDTI -----------------------------------------------------------------------------------------


def _case_files(data: Path) -> list[Path]:
    files = [*data.glob("*.xml"), *data.glob("xml/*.xml")]
    return sorted(files, key=lambda path: (len(path.stem), path.stem))


def _read_ddti(data: Path) -> Found:
    frames = {
        path.stem: path
        for path in sorted(data.rglob("*"))
        if path.suffix.lower() in _PICTURES and re.fullmatch(r"\d+_\d+", path.stem)
    }
    nodules: list[Nodule] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for file in _case_files(data):
        try:
            case = ElementTree.parse(file).getroot()
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:
            skipped.append(Skipped(file.name, f"not XML ({error})"))
            continue
        number = (case.findtext("number") or file.stem).strip()
        tirads = (case.findtext("tirads") or "").strip().lower()
        for mark in case.iter("mark"):
            frame = f"{number}_{(mark.findtext('image') or '').strip()}"
            polygons = _polygons(mark.findtext("svg"))
            if isinstance(polygons, str):
                skipped.append(Skipped(frame, polygons))
            elif not polygons:
                skipped.append(Skipped(frame, "no contour"))
            elif frame not in frames:
                skipped.append(Skipped(frame, "no picture of that name"))
            elif frame in seen:
                skipped.append(Skipped(frame, f"marked twice, again in {file.name}"))
            else:
                seen.add(frame)
                path = frames[frame]
                folder = path.parent.name
                nodules += _outlined(
                    skipped,
                    path,
                    polygons,
                    name=frame,
                    case=number,
                    label=_TIRADS.get(tirads),
                    tags=() if folder in ("images", data.name) else (folder,),
                )
    return nodules, skipped


def _polygons(svg: str | None) -> list[Contour] | str:
    """The polygons of a mark, or what is wrong with them."""
    if not svg or not svg.strip():
        return "no contour"
    try:
        return [
            tuple((float(point["x"]), float(point["y"])) for point in shape["points"])
            for shape in json.loads(svg)
        ]
    except (ArithmeticError, ValueError, TypeError, KeyError) as error:
        return f"the contour cannot be read ({type(error).__name__})"


def _outlined(
    skipped: list[Skipped], image: Path, polygons: Sequence[Contour], name: str, **known: Any
) -> list[Nodule]:
    """A nodule for each polygon that is one; several get numbers."""
    size = _size(image)
    if isinstance(size, str):
        skipped.append(Skipped(name, size))
        return []
    nodules = []
    for number, polygon in enumerate(polygons, start=1):
        own = name if len(polygons) == 1 else f"{name}-{number}"
        inside, problem = _checked(polygon, size)
        if problem:
            skipped.append(Skipped(own, problem))
        else:
            nodules.append(Nodule(own, image, contour=inside, **known))
    return nodules


def _checked(polygon: Contour, size: tuple[int, int]) -> tuple[Contour, str]:
    """The part of a polygon within the frame, and what is wrong with it."""
    if len(polygon) < 3:
        return (), f"the contour has {len(polygon)} points"
    if not np.isfinite(polygon).all():
        return (), "the contour has points that are no numbers"
    if area(polygon) < _SMALLEST:
        return (), "the contour has no area"
    inside = clipped(polygon, size)
    if area(inside) < _SMALLEST:
        return (), "the contour lies outside the frame"
    return inside, ""


def _size(image: Path) -> tuple[int, int] | str:
    """Width and height of a frame, or why it cannot be used."""
    from PIL import Image

    try:
        with Image.open(image) as file:
            file.load()  # a file that is cut short has a size as well
            if file.mode[0] in "IF":
                return f"the picture has more than 8 bits a pixel (mode {file.mode})"
            return file.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "the picture cannot be read"


# --- TN3K -----------------------------------------------------------------------------------------


def _read_tn3k(data: Path) -> Found:
    nodules: list[Nodule] = []
    skipped: list[Skipped] = []
    tables = sorted(data.glob("*.csv"))
    ours = [path for path in tables if any(part in path.stem.lower() for part in _PARTS)]
    for part in _PARTS:
        named = [path for path in tables if part in path.stem.lower()]
        labels = _labels(named or [path for path in tables if path not in ours], skipped)
        masks = {path.stem: path for path in _pictures(data / f"{part}-mask")}
        for path in _pictures(data / f"{part}-image"):
            name = f"{part}-{path.stem}"
            mask = masks.pop(path.stem, None)
            problem = "no mask of that name" if mask is None else _problem_of(path, mask)
            if problem:
                skipped.append(Skipped(name, problem))
            else:
                label = labels.get(path.stem)
                nodules.append(Nodule(name, path, name, label, mask=mask, tags=(part,)))
        skipped += [Skipped(f"{part}-{name}", "no picture of that name") for name in masks]
    return nodules, skipped


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in _PICTURES)


def _labels(tables: Iterable[Path], skipped: list[Skipped]) -> dict[str, int]:
    """From each line that has a picture's name and ends with 0 or 1."""
    found: dict[str, int] = {}
    for table in tables:
        try:
            with table.open(encoding="utf-8-sig", newline="") as file:
                for row in csv.reader(file):
                    cells = [cell.strip() for cell in row if cell.strip()]
                    if len(cells) > 1 and cells[-1].lower() in _LABELS:
                        names = [c for c in cells[:-1] if Path(c).suffix.lower() in _PICTURES]
                        name = (names or cells)[0]
                        found[Path(name).stem] = _LABELS[cells[-1].lower()]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            skipped.append(Skipped(table.name, f"not a table ({error})"))
    return found


def _problem_of(image: Path, mask: Path) -> str:
    from PIL import Image

    size = _size(image)
    if isinstance(size, str):
        return size
    try:
        with Image.open(mask) as file:
            found = binary(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return "the mask cannot be read"
    if found.size != size:
        return f"the mask has size {found.size}, the picture {size}"
    return "" if found.getbbox() else "the mask is empty"


# --- a table --------------------------------------------------------------------------------------


def _read_table(table: Path) -> Found:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = [name.strip().lower() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"`data` must be a CSV file in UTF-8; got {table} ({error})."
            ) from error
    if "image" not in columns or not {"contour", "mask"} & set(columns):
        raise ValueError(
            "`data` must have the columns image and contour or mask, and may have case and label; "
            f"{table} has {', '.join(columns) or 'none'}."
        )
    nodules: list[Nodule] = []
    skipped: list[Skipped] = []
    for number, row in enumerate(rows, start=1):
        given = {name: (value or "").strip() for name, value in row.items() if name}
        image = table.parent / given["image"]
        name = f"{number:04d}-{Path(given['image']).stem}"
        known: dict[str, Any] = {
            "case": given.get("case") or name,
            "tags": tuple(given.get("tags", "").split()),
        }
        label = given.get("label", "").lower()
        if label and label not in _LABELS:
            skipped.append(Skipped(name, f"label {label!r} is none of {', '.join(_LABELS)}"))
        elif given.get("contour"):
            polygon = _points(given["contour"])
            if polygon is None:
                skipped.append(Skipped(name, "the contour cannot be read"))
            else:
                nodules += _outlined(
                    skipped, image, [polygon], name=name, label=_LABELS.get(label), **known
                )
        elif given.get("mask"):
            mask = table.parent / given["mask"]
            problem = _problem_of(image, mask)
            if problem:
                skipped.append(Skipped(name, problem))
            else:
                nodules.append(Nodule(name, image, label=_LABELS.get(label), mask=mask, **known))
        else:
            skipped.append(Skipped(name, "no contour"))
    return nodules, skipped


def _points(text: str) -> Contour | None:
    try:
        points = [tuple(map(float, point.split())) for point in text.split(";") if point.strip()]
    except ValueError:
        return None
    return tuple((p[0], p[1]) for p in points) if all(len(p) == 2 for p in points) else None
