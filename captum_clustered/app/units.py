"""The files of one image are one unit: they belong to one image, and are replaced together."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captum_clustered._files import is_full

__all__ = ["belongs_to", "read_record", "replaced", "unique_stems"]

_LONGEST = 120  # bytes of a stem; a file's name has 255, of which methods and layers need some


def unique_stems(
    paths: Sequence[Path], is_free: Callable[[Path, str], bool] = lambda _path, _name: True
) -> Iterator[str]:
    """Names for the results of images: the file's stem, with a number if another file has it.

    Of a stem that leaves no room for what is added to it only the beginning is taken.

    Args:
        paths (sequence of Path): The images.
        is_free (callable, optional): Whether the results of a path may have a name. It is asked
            when the name is needed, so that it knows what has been written by then.

    Yields:
        A name for each.

    Example::

        >>> list(unique_stems([Path("a/cat.png"), Path("b/Cat.jpg"), Path("cat-2.png")]))
        ['cat', 'Cat-3', 'cat-2']
    """
    stems = [_beginning(path.stem.removesuffix(".nii")) for path in paths]  # of .nii.gz
    taken = {stem.casefold() for stem in stems}  # some file systems do not tell Cat from cat
    seen: set[str] = set()
    for path, stem in zip(paths, stems, strict=True):
        name, number = stem, 2
        while name.casefold() in (seen if name == stem else seen | taken) or not is_free(
            path, name
        ):
            name, number = f"{stem}-{number}", number + 1
        seen.add(name.casefold())
        yield name


def _beginning(stem: str) -> str:
    while len(os.fsencode(stem)) > _LONGEST:
        stem = stem[:-1]
    return stem


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of a unit; None if there is none, or the file is not one of ours."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and {"image", "files"} <= set(record) else None


def belongs_to(record: Path, image: str, digest: str) -> bool:
    """Whether a record may be written: there is none, or it is of the same image.

    Args:
        record (Path): ``STEM.json``.
        image (str): What the record says as ``"image"``.
        digest (str): Of the image's content. A relative path may mean two images.

    Returns:
        *bool*: False for a record of another image, and for a file that is no record of ours.
    """
    if not record.exists():
        return True
    found = read_record(record)
    if found is None:
        return False
    known = found.get("image_digest")
    return known == digest or (known is None and found["image"] == image)


@contextmanager
def replaced(out: Path, stem: str) -> Iterator[Path]:
    """Gives an empty folder for the files of a unit; at the end they take the place of the old.

    After an error the old unit is as it was. The record comes last, so that a record stands for a
    whole unit.
    """
    part = out / f".{stem}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
    part.mkdir()
    try:
        yield part
        last = f"{stem}.json"
        for old in [last, *_files(out / last, stem)]:
            (out / old).unlink(missing_ok=True)
        for file in sorted(part.iterdir(), key=lambda path: path.name == last):
            os.replace(file, out / file.name)
    except OSError as error:
        if not is_full(error):
            raise
        raise OSError(
            f"{out} cannot be written ({error.strerror}). The results before this one are safe; "
            "make room, and start the same command again with --resume."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _files(record: Path, stem: str) -> list[str]:
    """The files that a record lists; only names that this unit can have."""
    found = read_record(record) or {}
    several = found.get("methods", {}).values()
    listed = [found.get("files", {}), *(one.get("files", {}) for one in several)]
    names = [str(name) for files in listed for name in files.values()]
    return [name for name in names if Path(name).name == name and name.startswith(f"{stem}.")]
