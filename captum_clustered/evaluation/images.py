"""The images of an evaluation: where they are, what is on them, and what the model gets of them."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_clustered.fills import Black
from captum_clustered.models import read_image, resolve_target

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Item", "black_and_white", "find_images", "labels_of", "load_mask", "pixel_scale"]

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_COLUMNS = ("path", "class", "case", "mask", "boxes")
_NUMBER = re.compile(r"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Item:
    """One image, unread.

    Attributes:
        name (str): What the image is called in the results: its path inside the data.
        path (Path): The file.
        label (str or None): The class in the data's words: an index, a name, or a folder's name.
        case (str or None): Which images belong together.
        boxes (tuple): `(x0, y0, x1, y1)` in pixels of the image, each.
        mask (Path or None): An image that is not 0 on the object.
    """

    name: str
    path: Path
    label: str | None = None
    case: str | None = None
    boxes: tuple[tuple[float, ...], ...] = ()
    mask: Path | None = None

    @property
    def has_object(self) -> bool:
        """Whether the data say where the object is."""
        return bool(self.boxes) or self.mask is not None


def find_images(data: Path, limit: int | None = None) -> list[Item]:
    """Finds the images; none is read.

    Args:
        data (Path): One of

            - a folder of images;
            - a folder with a folder for each class, as torchvision's `ImageFolder` wants it;
            - a CSV file with a column ``path`` (relative to the file) and, where known, ``class``
              (an index or a name), ``case`` (images of one case are not independent), ``mask`` (an
              image that is not black on the object), ``boxes`` (four numbers each, x0 y0 x1 y1 in
              pixels, with a semicolon between boxes).
        limit (int, optional): How many of them, spread evenly over the whole. Default: None (all)

    Returns:
        *list[Item]*: In the order of the file, or of the names.

    Raises:
        ValueError: If there are no images, or the file is not as described.
    """
    if data.is_dir():
        items = _in_folder(data)
    elif data.is_file():
        items = _in_table(data)
    else:
        raise ValueError(
            f"`data` must be a folder or a CSV file; got {data}, which does not exist."
        )
    if not items:
        raise ValueError(f"`data` must have images; got none in {data}.")
    if limit is not None and limit < len(items):
        items = [items[i * len(items) // limit] for i in range(limit)]
    return items


def _in_folder(folder: Path) -> list[Item]:
    direct = [path for path in folder.iterdir() if _is_image(path)]
    classes = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    inside = {path: sorted(file for file in path.rglob("*") if _is_image(file)) for path in classes}
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
    return path.suffix.lower() in _SUFFIXES and path.name[0] != "." and path.is_file()


def _in_table(table: Path) -> list[Item]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = reader.fieldnames or ()
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"`data` must be a CSV file in UTF-8; got {table} ({error})."
            ) from error
    unknown = [column for column in columns if column not in _COLUMNS]
    if "path" not in columns or unknown:
        raise ValueError(
            f"`data` must have a column path, and may have {', '.join(_COLUMNS[1:])}; {table} has "
            f"{', '.join(columns) or 'none'}."
        )
    items: dict[str, Item] = {}
    for line, row in enumerate(rows, start=2):
        given = {column: (value or "").strip() for column, value in row.items() if column}
        name = given["path"]
        if not name or name in items:
            what = f"{name} a second time" if name else "no path"
            raise ValueError(
                f"`data` must name each image once; line {line} of {table} has {what}."
            )
        mask = given.get("mask")
        items[name] = Item(
            name=name,
            path=table.parent / name,
            label=given.get("class") or None,
            case=given.get("case") or None,
            boxes=_boxes(given.get("boxes", ""), f"line {line} of {table}"),
            mask=table.parent / mask if mask else None,
        )
    return list(items.values())


def _boxes(text: str, where: str) -> tuple[tuple[float, ...], ...]:
    numbers = [float(number) for number in _NUMBER.findall(text)]
    if len(numbers) % 4 or re.sub(r"[\s,;\[\]()]", "", _NUMBER.sub("", text)):
        raise ValueError(
            f"`boxes` must be four numbers each, such as '10 20 110 90; 5 5 30 40'; {where} has "
            f"{text!r}."
        )
    return tuple(tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4))


# --- classes --------------------------------------------------------------------------------------


def labels_of(
    items: Sequence[Item], n_classes: int, class_names: Sequence[str] | None
) -> tuple[list[int | None], str]:
    """The index of each image's class, and in words how it was come by.

    Args:
        items (sequence of Item): The images.
        n_classes (int): Number of classes of the model.
        class_names (sequence of str or None): Their names, if the model has them.

    Returns:
        *tuple*: A list with an index or None for each image, and how the words became indices:
        ``"name"``, ``"index"``, ``"order"`` (as in `ImageFolder`: all classes are there, and their
        sorted names are counted), or ``"unknown"``.
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


# --- pixels ---------------------------------------------------------------------------------------


def black_and_white(transform: Callable[[Image.Image], Tensor]) -> tuple[Tensor, Tensor] | None:
    """Where a transform puts black and white, one value for each channel.

    Args:
        transform (callable): PIL image to the model's input, `(C, H, W)`.

    Returns:
        *tuple* or *None*: Two tensors `(C,)`; None if the transform gives a plain image more than
        one value, or does not tell black from white.
    """
    from PIL import Image

    ends = []
    for colour in ("black", "white"):
        pixels = transform(Image.new("RGB", (256, 256), colour)).detach().double().flatten(1)
        if not torch.allclose(pixels, pixels[:, :1].expand_as(pixels)):
            return None
        ends.append(pixels[:, 0])
    black, white = ends
    return None if bool((white == black).any()) else (black, white)


def pixel_scale(transform: Callable[[Image.Image], Tensor]) -> Black | None:
    """Mean and deviation of a transform's normalisation, measured on a black and a white image.

    Args:
        transform (callable): PIL image to the model's input, `(C, H, W)`.

    Returns:
        *Black* or *None*: None where the transform does not normalise channel by channel.

    Example::

        >>> def transform(image):
        ...     return torch.full((1, 4, 4), (image.getpixel((0, 0))[0] / 255 - 0.5) / 0.25)
        >>> pixel_scale(transform)
        Black(mean=(0.5,), std=(0.25,))
    """
    ends = black_and_white(transform)
    if ends is None:
        return None
    black, white = ends
    std = 1 / (white - black)
    # float32 leaves 0.48500001
    return Black(*(tuple(round(v, 6) for v in part.tolist()) for part in (-black * std, std)))


def load_mask(
    item: Item, image: Image.Image, transform: Callable[[Image.Image], Tensor], size: Sequence[int]
) -> Tensor:
    """Where the object is in the model's input: the mask goes through the model's own transform.

    Args:
        item (Item): With boxes or a mask; without, the object is nowhere.
        image (PIL.Image.Image): The image that they were drawn on.
        transform (callable): PIL image to the model's input, `(C, H, W)`.
        size (sequence of int): Height and width of that input.

    Returns:
        *Tensor*: bool `(1, *size)`.

    Raises:
        ValueError: If the mask has another size than the image, or the transform does not keep
            black and white apart.
    """
    from PIL import Image

    if not item.has_object:
        return torch.zeros(1, *size, dtype=torch.bool)
    drawn = Image.new("L", image.size) if item.mask is None else _mask_file(item.mask, image)
    for x0, y0, x1, y1 in item.boxes:
        # a pixel belongs to a box if its centre lies inside
        left, top, right, bottom = (_first_inside(edge) for edge in (x0, y0, x1, y1))
        if left < right and top < bottom:
            drawn.paste(255, (max(left, 0), max(top, 0), max(right, 0), max(bottom, 0)))
    ends = black_and_white(transform)
    if ends is None:
        raise ValueError(
            "the model's transform must scale each channel by itself to show where a mask or box "
            "comes to lie; it does not. Leave the metrics that need one out."
        )
    black, white = (end.view(-1, 1, 1) for end in ends)
    inside = (transform(drawn.convert("RGB")).detach().double() - black) / (white - black)
    return inside.mean(0, keepdim=True) > 0.5


def _first_inside(edge: float) -> int:
    """The first pixel whose centre lies at or behind an edge."""
    return -int(-(edge - 0.5) // 1)


def _mask_file(path: Path, image: Image.Image) -> Any:
    mask = read_image(path).convert("L").point(lambda value: 255 if value else 0)
    if mask.size != image.size:
        raise ValueError(f"mask {path} must have the image's size {image.size}; got {mask.size}.")
    return mask
