"""The images of an evaluation: their files, their classes, and where the objects are in them."""

from __future__ import annotations

import codecs
import csv
import io
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered.models.images import black_and_white, read_mask, read_picture
from captum_clustered.models.loading import resolve_target
from captum_clustered.models.medical import DICOM_SUFFIXES, is_dicom, is_volume

if TYPE_CHECKING:
    from PIL import Image

    from captum_clustered.models.prepared import Prepared

__all__ = [
    "OBJECTS",
    "Item",
    "Loaded",
    "find_images",
    "image_files",
    "labels_of",
    "load_image",
    "load_mask",
    "unknown_class",
]

_SUFFIXES = {
    *(".bmp", ".gif", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
    *(".jpeg", ".jpg", ".jpe", ".jfif", ".jp2"),
    *(".avif", ".heic", ".heif"),  # which Pillow may not read; then a line says so
    *DICOM_SUFFIXES,
}
_COLUMNS = ("path", "class", "case", "mask", "boxes")
_KNOWN = {*_COLUMNS, ""}
_WRITTEN_AS_FLOAT = re.compile(r"(?<=\d)\.0$")  # an index in a column that also has empty cells
OBJECTS = ("inside", "not_given", "empty", "cut_off")
"""What became of an image's object: it is in the model's input; the data give none; its mask is
black or its boxes have no pixel; the model's transform leaves nothing of it."""

_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image or a volume as the model takes it.

    Attributes:
        pixels (Tensor): `(C, *spatial)`.
        inside (Tensor or None): bool `(1, *spatial)`, where the object is.
        object (str or None): One of :data:`OBJECTS`; None if nobody asked for the object.
    """

    pixels: Tensor
    inside: Tensor | None = None
    object: str | None = None


@dataclass(frozen=True)
class Item:
    """One image or volume that has not been read yet.

    Attributes:
        name (str): Its name in the results: the path inside the data.
        path (Path): The file.
        label (str or None): The class in the data's words: an index, a name, or a folder's name.
        case (str or None): Which images belong together.
        boxes (tuple): `(x0, y0, x1, y1)` in pixels of the image, each.
        mask (Path or None): An image or a volume that is not 0 on the object.
        line (int or None): The line of the table that names it.
    """

    name: str
    path: Path
    label: str | None = None
    case: str | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    mask: Path | None = None
    line: int | None = field(default=None, compare=False)

    @property
    def has_object(self) -> bool:
        """Whether the data say where the object is."""
        return bool(self.boxes) or self.mask is not None

    def files(self, with_mask: bool) -> list[Path]:
        """The files that are read for it."""
        return [self.path, self.mask] if with_mask and self.mask is not None else [self.path]


def find_images(data: Path, limit: int | None = None, apart: Path | None = None) -> list[Item]:
    """Finds the images and volumes; none is read.

    By their names these are images that Pillow reads, DICOM files (.dcm, .dicom, .ima), and volumes
    (.npy, .nii, .nii.gz). A CSV file may also list DICOM files of other names.

    Args:
        data (Path): One of

            - an image, or a folder of images;
            - a folder with a folder for each class, as torchvision's `ImageFolder` wants it;
            - a CSV file with a column ``path`` (relative to the file) and, where known, ``class``
              (an index or a name), ``case`` (images of one case are not independent), ``mask`` (an
              image or volume that is not 0 on the object), ``boxes`` (four numbers each, x0 y0 x1
              y1 in pixels, with a semicolon between boxes).
        limit (int, optional): How many of them, spread evenly over the whole. Default: None (all)
        apart (Path, optional): A folder inside whose pictures do not count, such as that of the
            results. Default: None

    Returns:
        *list[Item]*: In the order of the file, or of the names.

    Raises:
        ValueError: If there are no images, or the file is not as described.
    """
    if data.is_dir():
        items = _in_folder(data, apart)
    elif _is_image(data):
        items = [Item(data.name, data)]
    elif data.is_file():
        items = _in_table(data)
    else:
        raise ValueError(
            f"`data` must be a folder, an image or a CSV file; got {data}, which does not exist."
        )
    if not items:
        raise ValueError(f"`data` must have images; got none in {data}.")
    if limit is not None and limit < len(items):
        items = [items[i * len(items) // limit] for i in range(limit)]
    return items


def image_files(folder: Path, apart: Path | None = None) -> list[Path]:
    """The images and volumes in a folder and the folders inside, sorted; none is read.

    Args:
        folder (Path): The folder. What is hidden is left out.
        apart (Path, optional): A folder inside whose pictures do not count, such as that of the
            results. Default: None

    Returns:
        *list[Path]*: The files.

    Raises:
        ValueError: If there are none.
    """
    found = _files_in(folder, apart)
    if not found:
        raise ValueError(f"`images` must be files or folders of images; got none in {folder}.")
    return found


def _files_in(folder: Path, apart: Path | None) -> list[Path]:
    without = None if apart is None else apart.resolve()
    found: list[Path] = []
    if folder.resolve() == without:
        return found
    for place, folders, files in os.walk(folder, onerror=_say_unreadable):
        folders[:] = [
            name for name in folders if name[0] != "." and Path(place, name).resolve() != without
        ]
        found += [path for name in files if _is_image(path := Path(place, name))]
    return sorted(found)


def _say_unreadable(error: OSError) -> None:
    warnings.warn(
        f"{error.filename} cannot be read ({error.strerror}); what it holds is left out",
        stacklevel=2,
    )


def _in_folder(folder: Path, apart: Path | None) -> list[Item]:
    direct = [path for path in folder.iterdir() if _is_image(path)]
    classes = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    inside = {path: _files_in(path, apart) for path in classes}
    if direct and any(inside.values()):
        raise ValueError(
            f"`data` must be a folder of images, or of folders of images; {folder} has both. Move "
            "one kind away, or list the images in a CSV file."
        )
    if direct:
        return [Item(path.name, path) for path in sorted(direct)]
    return [
        Item(path.relative_to(folder).as_posix(), path, label=name.name)
        for name in sorted(classes)
        for path in inside[name]
    ]


def _is_image(path: Path) -> bool:
    known = path.suffix.lower() in _SUFFIXES or is_volume(path)
    return known and path.name[0] != "." and path.is_file()


def _in_table(table: Path) -> list[Item]:
    columns, rows = _columns_and_rows(table, _text_of(table))
    items: dict[Path, Item] = {}
    for line, row in rows:
        if len(row) > len(columns) and any(cell.strip() for cell in row[len(columns) :]):
            raise ValueError(
                f"`data` must have {len(columns)} fields in each line, as its head; line {line} "
                f"of {table} has {len(row)}. Put a field that has commas into quotation marks."
            )
        given = dict.fromkeys(columns, "") | {
            column: cell.strip() for column, cell in zip(columns, row, strict=False)
        }
        name = given["path"]
        path = table.parent / name
        if not name or path in items:
            what = f"{name} a second time" if name else "no path"
            raise ValueError(
                f"`data` must name each image once; line {line} of {table} has {what}."
            )
        mask = given.get("mask")
        items[path] = Item(
            name=name,
            path=path,
            label=_WRITTEN_AS_FLOAT.sub("", given.get("class", "")) or None,
            case=given.get("case") or None,
            boxes=_boxes(given.get("boxes", ""), f"line {line} of {table}"),
            mask=table.parent / mask if mask else None,
            line=line,
        )
    return list(items.values())


def _text_of(table: Path) -> str:
    """What a table says: in UTF-8, or in UTF-16 if it begins as a spreadsheet writes that."""
    raw = table.read_bytes()
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"`data` must be a CSV file in UTF-8; line {line} of {table} has the byte "
            f"0x{raw[error.start]:02x}, which is none of UTF-8. Save the table as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(
            f"`data` must be a CSV file; line {line} of {table} has a character with the code 0. "
            "Save the table as text in UTF-8."
        )
    return text


def _columns_and_rows(table: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Reads a table that has commas, semicolons or tabs between its fields.

    Returns:
        *tuple*: The columns, and each other row that is not empty with the number of its line.
    """
    heads: list[list[str]] = []
    unknown: list[str] = []
    for delimiter in (",", ";", "\t"):
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            found = [(reader.line_num, row) for row in reader if any(map(str.strip, row))]
        except csv.Error as error:
            raise ValueError(
                f"`data` must be a CSV file; line {reader.line_num} of {table} cannot be read "
                f"({error})."
            ) from error
        head, *rows = found or [(1, [])]
        columns = [column.strip().casefold() for column in head[1]]
        heads.append(head[1])
        if "path" not in columns:
            continue
        unknown = [repr(column) for column in head[1] if column.strip().casefold() not in _KNOWN]
        if not unknown:
            if len(set(columns) - {""}) < len([column for column in columns if column]):
                raise ValueError(
                    f"`data` must have each column once; {table} has {', '.join(columns)}."
                )
            return columns, rows
        break
    most = sorted(heads, key=lambda head: -len(head))[0]
    shown = ", ".join(map(repr, most)) or "none"
    remedy = "Rename the columns, and put commas between them."
    if unknown:
        remedy = f"Rename the columns {', '.join(unknown)}, or take them out."
    raise ValueError(
        f"`data` must have a column path, and may have {', '.join(_COLUMNS[1:])}; {table} has "
        f"{shown}. {remedy}"
    )


def _boxes(text: str, where: str) -> tuple[tuple[float, ...], ...]:
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) % 4 or re.sub(r"[\s,;\[\]()]", "", _NUMBER.sub("", text)):
        raise ValueError(
            f"`boxes` must be four numbers each, such as '10 20 110 90; 5 5 30 40'; {where} has "
            f"{text!r}."
        )
    boxes = tuple(tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4))
    for box in boxes:
        if box[0] >= box[2] or box[1] >= box[3]:
            raise ValueError(
                f"`boxes` must be x0 y0 x1 y1 with x0 < x1 and y0 < y1; {where} has {text!r}. If "
                "these are x, y, width and height, add x to the width and y to the height."
            )
        if min(box) >= 0 and max(box) <= 1:
            raise ValueError(
                f"`boxes` must be in pixels; {where} has {text!r}, which looks like shares of the "
                "image. Multiply them by its width and height."
            )
    return boxes


# --- classes --------------------------------------------------------------------------------------


def labels_of(
    items: Sequence[Item], n_classes: int, class_names: Sequence[str] | None
) -> tuple[list[int | None], str]:
    """Finds the index of each image's class.

    Args:
        items (sequence of Item): The images.
        n_classes (int): Number of classes of the model.
        class_names (sequence of str or None): Their names, if the model has them.

    Returns:
        *tuple*: A list with an index or None for each image, and how the words were read:
        ``"name"``, ``"index"``, ``"order"`` (as in `ImageFolder`: all classes are there, and their
        names are sorted), or ``"unknown"``.
    """
    words = sorted({item.label for item in items if item.label is not None})
    if not words:
        return [None] * len(items), "unknown"
    index: dict[str, int] = {}
    folded = {name.casefold() for name in class_names or ()}
    if all(word.casefold() in folded for word in words):
        how = "name"
    elif all(word.isdecimal() and int(word) < n_classes for word in words):
        how = "index"
    elif len(words) == n_classes:
        how = "order"
        index = {word: i for i, word in enumerate(words)}
    else:
        return [None] * len(items), "unknown"
    if not index:
        scores = torch.zeros(n_classes)
        index = {word: resolve_target(word, scores, class_names) for word in words}
    return [None if item.label is None else index[item.label] for item in items], how


def unknown_class(
    items: Sequence[Item], n_classes: int, class_names: Sequence[str] | None
) -> Item | None:
    """The first image whose class is neither a name nor an index of the model's."""
    folded = {name.casefold() for name in class_names or ()}
    for item in items:
        word = item.label
        if word is None or word.casefold() in folded:
            continue
        if not word.isdecimal() or int(word) >= n_classes:
            return item
    return None


# --- pixels ---------------------------------------------------------------------------------------


def load_image(
    item: Item, prepared: Prepared, frame: int = 1, needs_object: bool = False
) -> Loaded:
    """Reads an image or a volume as the model takes it.

    Args:
        item (Item): The image.
        prepared (Prepared): The model with its transform.
        frame (int, optional): Which frame of a DICOM file, counted from 1. Default: 1
        needs_object (bool, optional): Whether it matters where the object is. Default: False

    Returns:
        *Loaded*: The model's input, on its device, and where the object is.

    Raises:
        ValueError: If the image or its mask cannot be read or does not fit.
    """
    picture = read_picture(item.path, frame)
    pixels = prepared.input(picture)[0]
    if not needs_object:
        return Loaded(pixels)
    transform: Any = prepared.loaded.transform
    inside, what = load_mask(item, picture.pixels, transform, pixels.shape[1:], frame)
    return Loaded(pixels, inside, what)


def load_mask(
    item: Item,
    pixels: Image.Image | np.ndarray,
    transform: Callable[[Any], Tensor],
    size: Sequence[int],
    frame: int = 1,
) -> tuple[Tensor, str]:
    """Where the object is in the model's input. The mask goes through the model's own transform.

    Args:
        item (Item): With boxes or a mask; without both, the object is nowhere.
        pixels (PIL.Image.Image or array): The image, or the volume `(D, H, W)` or `(C, D, H, W)`,
            that they belong to.
        transform (callable): Turns it into the model's input, `(C, *spatial)`.
        size (sequence of int): The spatial size of that input.
        frame (int, optional): Which frame of a mask in a DICOM file of several. Default: 1

    Returns:
        *tuple*: bool `(1, *size)`, and which of :data:`OBJECTS` it is.

    Raises:
        ValueError: If the mask has another size than the image, if a box lies outside of it, if a
            volume has boxes, or if the transform does not keep black and white apart.
    """
    nowhere = torch.zeros(1, *size, dtype=torch.bool)
    if not item.has_object:
        return nowhere, "not_given"
    if isinstance(pixels, np.ndarray):
        drawn: Any = _mask_of_volume(item, pixels)
        ends = black_and_white(transform, drawn)
    else:
        drawn = _mask_of_image(item, pixels, frame)
        ends = black_and_white(transform)
    if not np.any(drawn):
        return nowhere, "empty"
    if ends is None:
        raise ValueError(
            "the model's transform must scale each channel by itself to show where a mask or box "
            f"is; that of {item.name} does not. Leave the metrics that need one out."
        )
    black, white = (end.reshape(-1, *[1] * len(size)) for end in ends)  # (C, 1, ..., 1)
    inside = (transform(drawn).detach().double() - black) / (white - black)  # (C, *size)
    found = inside.mean(0, keepdim=True) > 0.5
    return found, "inside" if bool(found.any()) else "cut_off"


def _mask_of_image(item: Item, image: Image.Image, frame: int) -> Image.Image:
    from PIL import Image

    if item.mask is None:
        drawn = Image.new("L", image.size)
    else:
        if is_volume(item.mask):
            raise ValueError(
                f"mask must be an image, as {item.name} is; got {item.mask}, which is a volume by "
                "its name. Save it as PNG."
            )
        mask: Any = _read_mask(item.mask, frame)
        drawn = mask.convert("L").point(lambda value: 255 if value else 0)
        if drawn.size != image.size:
            raise ValueError(
                f"mask {item.mask} must have the image's size {image.size}; got {drawn.size}."
            )
    for x0, y0, x1, y1 in item.boxes:
        if x0 >= image.width or y0 >= image.height or x1 <= 0 or y1 <= 0:
            box = " ".join(f"{edge:g}" for edge in (x0, y0, x1, y1))
            raise ValueError(
                f"`boxes` must lie in the image; {item.name} is {image.width} x {image.height} "
                f"pixels, got {box}."
            )
        # a pixel belongs to a box if its centre lies inside
        left, top, right, bottom = (_first_inside(edge) for edge in (x0, y0, x1, y1))
        if left < right and top < bottom:
            drawn.paste(255, (max(left, 0), max(top, 0), max(right, 0), max(bottom, 0)))
    return drawn.convert("RGB")


def _mask_of_volume(item: Item, volume: np.ndarray) -> np.ndarray:
    if item.boxes or item.mask is None:
        raise ValueError(f"`boxes` must be empty for the volume {item.name}; give a mask instead.")
    mask = _read_mask(item.mask, 1)
    shape = mask.shape if isinstance(mask, np.ndarray) else mask.size
    if shape != volume.shape[-3:]:
        raise ValueError(
            f"mask {item.mask} must have the volume's shape {volume.shape[-3:]}; got {shape}."
        )
    inside = (np.asarray(mask) != 0).astype(np.float32)  # (D, H, W)
    return np.array(np.broadcast_to(inside, volume.shape))  # a copy, which may be written to


def _read_mask(path: Path, frame: int) -> Any:
    """A mask; of a DICOM file with several frames the image's own."""
    if not (is_dicom(path) or is_volume(path)):
        return read_mask(path)
    picture = read_picture(path)
    if frame > 1 and picture.frames > 1:
        picture = read_picture(path, frame)
    return picture.pixels


def _first_inside(edge: float) -> int:
    """The first pixel whose centre lies at or behind an edge."""
    return -int(-(edge - 0.5) // 1)
