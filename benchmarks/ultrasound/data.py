"""Ultrasound as it is published, and one's own: lesions with contours, patients and labels.

A data set is a value of :data:`DATASETS`, which says how its folder is read and what its labels
mean:

- **BUS-BRA** as released: ``bus_data.csv``, ``5-fold-cv.csv``, ``Images/`` and ``Masks/``. The
  labels are biopsies, and the folds are the release's.
- **BUSI** as released: folders ``benign``, ``malignant`` and ``normal``; ``NAME.png`` with
  ``NAME_mask.png``, ``NAME_mask_1.png``, which are joined. Patients are not told apart.
- **DDTI** as released: ``N.xml`` for each case, in the folder or in ``xml/``, and ``N_M.jpg``
  anywhere below. A mark's polygons are one nodule each. TI-RADS 2 and 3 count as benign, 4a to 5 as
  malignant: that is the radiologist's impression, not pathology.
- **TN3K**: ``trainval-image/`` and ``trainval-mask/``, ``test-image/`` and ``test-mask/`` with
  pictures of equal names, and CSV files in whose lines the picture's name is the first cell, or the
  first with a picture's ending, and 0 or benign, 1 or malignant the last. Both parts number their
  pictures from 0: a CSV file with ``trainval`` or ``test`` in its name is for that part, any other
  for a part that has none. It does not say which pictures are of one patient, so each counts as its
  own.
- **a CSV file**, alone or as ``*_table.csv`` in a folder, with a lesion a line and the columns
  ``image`` or ``path`` (relative to the file), and where known ``case``, ``label`` or ``class`` (0
  or benign, 1 or malignant), ``fold``, ``tags`` (words), and ``contour`` (``x y; x y; …`` in
  pixels) or ``mask`` (a picture of the frame's size, bright on the lesion).

What cannot be used is listed with its reason and stops nothing.
"""

from __future__ import annotations

import csv
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.ultrasound.contours import Contour, area, binary, clipped
from captum_clustered._checks import check_choice

__all__ = ["DATASETS", "DataSet", "Lesion", "Skipped", "read"]

_PICTURES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff"}
_TIRADS = {"1": 0, "2": 0, "3": 0, "4": 1, "4a": 1, "4b": 1, "4c": 1, "5": 1}
_PARTS = ("trainval", "test")
_LABELS = {"0": 0, "1": 1, "benign": 0, "malignant": 1}
_SMALLEST = 16.0  # square pixels: less is a slip of the mouse


@dataclass(frozen=True)
class Lesion:
    """One lesion in one frame.

    Attributes:
        name (str): Unlike all others.
        image (Path): The frame.
        case (str): The patient.
        label (int or None): 0 for benign, 1 for malignant, None where nobody told.
        contour (tuple or None): Points `(x, y)` in pixels of the frame.
        masks (tuple[Path, ...]): Pictures of the frame's size, bright on the lesion; joined.
        fold (int or None): The part of the release's own cross-validation.
        tags (tuple[str, ...]): What else is known, such as ``"with_artifacts"``.
    """

    name: str
    image: Path
    case: str
    label: int | None
    contour: Contour | None = None
    masks: tuple[Path, ...] = ()
    fold: int | None = None
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """What could not be used, and why."""

    what: str
    reason: str


Found = tuple[list[Lesion], list[Skipped]]


@dataclass(frozen=True)
class DataSet:
    """How a data set is read, and what its labels are.

    Attributes:
        title (str): What the tables call it.
        labels (str): Where its labels come from.
        read (callable): From its folder, or a CSV file, to lesions and what was left out.
    """

    title: str
    labels: str
    read: Callable[[Path], Found]


def read(data: Path, dataset: str = "csv") -> Found:
    """Finds the lesions of a data set.

    Args:
        data (Path): Its folder, a folder that has it in one named like `dataset`, or a CSV file.
        dataset (str, optional): A key of :data:`DATASETS`. Default: ``"csv"``

    Returns:
        *tuple*: The lesions, in a fixed order, and what was left out.

    Raises:
        ValueError: If there is no such data set, its layout is another, or no lesion is left.
    """
    check_choice("dataset", dataset, tuple(DATASETS))
    place = data / dataset if (data / dataset).is_dir() else data
    reader = _read_table if place.is_file() else DATASETS[dataset].read
    lesions, skipped = reader(place)
    if not lesions:
        first = f" The first reason: {skipped[0].what}: {skipped[0].reason}." if skipped else ""
        raise ValueError(f"`data` must have lesions that can be used; {data} has none.{first}")
    return lesions, skipped


def _table_in(data: Path) -> Path | None:
    """The one table of a folder that was prepared by someone."""
    tables = sorted(data.glob("*_table.csv"))
    return tables[0] if len(tables) == 1 else None


def _must(holds: object, data: Path, name: str, layout: str) -> None:
    if not holds:
        raise ValueError(
            f"`data` must be {name}: a folder with {layout}, or a CSV file; got {data}"
            + (", which has none." if data.is_dir() else ", which does not exist.")
        )


# --- breast ---------------------------------------------------------------------------------------


def _read_busbra(data: Path) -> Found:
    if table := _table_in(data):
        return _read_table(table)
    _must((data / "bus_data.csv").is_file(), data, "BUS-BRA", "bus_data.csv, Images/ and Masks/")
    folds: dict[str, int | None] = {}
    table = data / "5-fold-cv.csv"
    if table.is_file():
        for number, row in enumerate(_lines(table, ("ID", "kFold")), start=2):
            folds[Path(row["ID"]).stem] = _fold(row["kFold"], table, number)
    lesions: list[Lesion] = []
    skipped: list[Skipped] = []
    for row in _lines(data / "bus_data.csv", ("ID", "Case", "Pathology")):
        name = Path(row["ID"]).stem
        image = data / "Images" / f"{name}.png"
        mask = data / "Masks" / f"{name.replace('bus_', 'mask_')}.png"
        label = _LABELS.get(row["Pathology"].lower())
        problem = _problem_of(image, (mask,))
        if problem:
            skipped.append(Skipped(name, problem))
        else:
            fold = folds.get(name)
            case = row["Case"] or name
            lesions.append(Lesion(name, image, case, label, masks=(mask,), fold=fold))
    return lesions, skipped


def _read_busi(data: Path) -> Found:
    if table := _table_in(data):
        return _read_table(table)
    classes = ("benign", "malignant")
    _must(any((data / name).is_dir() for name in classes), data, "BUSI", "benign/ and malignant/")
    lesions: list[Lesion] = []
    skipped: list[Skipped] = []
    for name in classes:
        pictures = _pictures(data / name)
        for image in pictures:
            if "_mask" in image.stem:
                continue
            masks = tuple(p for p in pictures if re.fullmatch(
                re.escape(image.stem) + r"_mask(_\d+)?", p.stem))  # fmt: skip
            problem = _problem_of(image, masks)
            if problem:
                skipped.append(Skipped(image.stem, problem))
            else:
                own = re.sub(r"\W+", "-", image.stem).strip("-")
                lesions.append(Lesion(own, image, own, _LABELS[name], masks=masks))
    return lesions, skipped


def _lines(table: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The lines of a table of a release, which must have these columns."""
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        there = [name.strip() for name in reader.fieldnames or ()]
        if not set(columns) <= set(there):
            raise ValueError(
                f"`data` must have the columns {', '.join(columns)} in {table}; it has "
                f"{', '.join(there) or 'none'}. Use the file as it was released."
            )
        reader.fieldnames = there
        return [{name: (row[name] or "").strip() for name in columns} for row in reader]


def _fold(text: str, table: Path, line: int) -> int | None:
    """A fold as it is written, `3` or `3.0`; None where nothing is."""
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not number.is_integer():
        raise ValueError(
            f"`fold` must be whole numbers; line {line} of {table} has {text!r}. Correct it, or "
            "remove the column."
        )
    return int(number)


# --- DDTI -----------------------------------------------------------------------------------------


def _case_files(data: Path) -> list[Path]:
    files = [*data.glob("*.xml"), *data.glob("xml/*.xml")]
    return sorted(files, key=lambda path: (len(path.stem), path.stem))


def _read_ddti(data: Path) -> Found:
    _must(_case_files(data), data, "DDTI", "XML files")
    frames = {
        path.stem: path
        for path in sorted(data.rglob("*"))
        if path.suffix.lower() in _PICTURES and re.fullmatch(r"\d+_\d+", path.stem)
    }
    lesions: list[Lesion] = []
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
                lesions += _outlined(
                    skipped,
                    path,
                    polygons,
                    name=frame,
                    case=number,
                    label=_TIRADS.get(tirads),
                    tags=() if folder in ("images", data.name) else (folder,),
                )
    return lesions, skipped


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
) -> list[Lesion]:
    """A lesion for each polygon that is one; several get numbers."""
    size = _size(image)
    if isinstance(size, str):
        skipped.append(Skipped(name, size))
        return []
    lesions = []
    for number, polygon in enumerate(polygons, start=1):
        own = name if len(polygons) == 1 else f"{name}-{number}"
        inside, problem = _checked(polygon, size)
        if problem:
            skipped.append(Skipped(own, problem))
        else:
            lesions.append(Lesion(own, image, contour=inside, **known))
    return lesions


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
    there = any((data / f"{part}-image").is_dir() for part in _PARTS)
    _must(there, data, "TN3K", "trainval-image/ or test-image/")
    lesions: list[Lesion] = []
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
            problem = _problem_of(path, () if mask is None else (mask,))
            if problem or mask is None:
                skipped.append(Skipped(name, problem))
            else:
                label = labels.get(path.stem)
                lesions.append(Lesion(name, path, name, label, masks=(mask,), tags=(part,)))
        skipped += [Skipped(f"{part}-{name}", "no picture of that name") for name in masks]
    return lesions, skipped


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


def _problem_of(image: Path, masks: Sequence[Path]) -> str:
    from PIL import Image

    if not masks:
        return "no mask of that name"
    size = _size(image)
    if isinstance(size, str):
        return size
    empty = True
    for mask in masks:
        try:
            with Image.open(mask) as file:
                found = binary(file)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return "the mask cannot be read"
        if found.size != size:
            return f"the mask has size {found.size}, the picture {size}"
        empty = empty and not found.getbbox()
    return "the mask is empty" if empty else ""


# --- a table --------------------------------------------------------------------------------------


_ALIASES = MappingProxyType({"path": "image", "class": "label"})


def _read_csv(data: Path) -> Found:
    table = _table_in(data)
    _must(table, data, "a table", "one *_table.csv")
    assert table is not None
    return _read_table(table)


def _read_table(table: Path) -> Found:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            names = [name.strip().lower() for name in reader.fieldnames or ()]
            columns = [_ALIASES.get(name, name) for name in names]
            reader.fieldnames = names if len(set(columns)) < len(columns) else columns
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"`data` must be a CSV file in UTF-8; got {table} ({error})."
            ) from error
    if "image" not in columns or not {"contour", "mask"} & set(columns):
        raise ValueError(
            "`data` must have the columns image and contour or mask, and may have case, label and "
            f"fold; {table} has {', '.join(names) or 'none'}."
        )
    lesions: list[Lesion] = []
    skipped: list[Skipped] = []
    for number, row in enumerate(rows, start=1):
        given = {name: (value or "").strip() for name, value in row.items() if name}
        image = table.parent / given["image"]
        name = f"{number:04d}-{Path(given['image']).stem}"
        known: dict[str, Any] = {
            "case": given.get("case") or given["image"],  # two lesions of a frame are one patient's
            "tags": tuple(given.get("tags", "").split()),
            "fold": _fold(given.get("fold", ""), table, number + 1),
        }
        label = given.get("label", "").lower()
        if label and label not in _LABELS:
            skipped.append(Skipped(name, f"label {label!r} is none of {', '.join(_LABELS)}"))
        elif given.get("contour"):
            polygon = _points(given["contour"])
            if polygon is None:
                skipped.append(Skipped(name, "the contour cannot be read"))
            else:
                lesions += _outlined(
                    skipped, image, [polygon], name=name, label=_LABELS.get(label), **known
                )
        elif given.get("mask"):
            masks = (table.parent / given["mask"],)
            problem = _problem_of(image, masks)
            if problem:
                skipped.append(Skipped(name, problem))
            else:
                lesions.append(Lesion(name, image, label=_LABELS.get(label), masks=masks, **known))
        else:
            skipped.append(Skipped(name, "no contour"))
    return lesions, skipped


def _points(text: str) -> Contour | None:
    try:
        points = [tuple(map(float, point.split())) for point in text.split(";") if point.strip()]
    except ValueError:
        return None
    return tuple((p[0], p[1]) for p in points) if all(len(p) == 2 for p in points) else None


DATASETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "busbra": DataSet("BUS-BRA", "biopsy", _read_busbra),
        "busi": DataSet("BUSI", "the release's", _read_busi),
        "ddti": DataSet("DDTI", "TI-RADS", _read_ddti),
        "tn3k": DataSet("TN3K", "the release's", _read_tn3k),
        "phantom": DataSet("Phantom", "drawn", _read_csv),
        "csv": DataSet("CSV", "the user's", _read_csv),
    }
)
"""The data sets by name."""
