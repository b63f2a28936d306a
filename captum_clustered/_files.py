"""Files that are written whole, JSON that every reader accepts, optional libraries."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a file to write to: at the end it becomes `path`, after an error it is removed.

    Raises:
        ValueError: If there is something other than a file, such as a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"`path` must be a file; got {path}, which is none. Name another.")
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def make_folder(path: Path, name: str = "folder") -> None:
    """Makes a folder, with those around it, unless it is there; `name` is the caller's argument."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"`{name}` must be a folder; got {path}, where a file is. Name another."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes a text, whole or not at all.

    The name of a file that is not UTF-8 has characters that UTF-8 does not have; they are written
    as JSON writes them.
    """
    with whole(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")


def digest_of(path: Path) -> str:
    """What tells the content of a file from that of others: 32 digits of its SHA-256.

    Raises:
        OSError: If it cannot be read.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()[:32]


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a NumPy file, whole or not at all."""
    import numpy as np

    with whole(path) as part, part.open("wb") as file:
        np.save(file, array)


def write_figure(path: Path, figure: Figure) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with whole(path) as part:
        figure.savefig(part, format="png")


def to_json(value: Any, name: str = "record") -> str:
    """A text of JSON that every reader accepts; `name` is the caller's argument.

    It is indented, has null for NaN, and ends with a new line.
    """
    try:
        text = json.dumps(without_nan(value), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must hold what JSON can hold: str, int, float, bool, None, list and dict; "
            f"{error}. Turn it into one of them."
        ) from error
    return text + "\n"


def without_nan(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return value


def require(module: str, extra: str, purpose: str) -> Any:
    """Imports an optional library; if it is missing, the error names the extra to install."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{module} is needed {purpose}; pip install 'captum-clustered[{extra}]'", name=module
        ) from error


def check_file(name: str, path: Path) -> None:
    """Raises where `path` is no file; `name` begins the message."""
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"{name} must be a file; got {path}, which {what}.")


def first_line(error: BaseException) -> str:
    """An error in one line: its type and the first line of its message."""
    text = str(error).strip()
    kind = type(error).__name__
    return f"{kind}: {text.splitlines()[0].rstrip('.')}" if text else kind


def is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, says that there is no room for what is written.

    Example::

        >>> is_full(OSError(errno.ENOSPC, "No space left on device")), is_full(OSError("gone"))
        (True, False)
    """
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(isinstance(one, OSError) and one.errno in full for one in (error, error.__cause__))


def printable(text: str) -> str:
    r"""A text in which characters that do not show, or steer a terminal, are written out.

    Example::

        >>> printable("a new\nline and a \x1b[31mcolour")
        'a new\\nline and a \\x1b[31mcolour'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def place_of(error: BaseException) -> str | None:
    """Where an error was raised first: a file on the import path, and the line.

    Example::

        >>> import json
        >>> try:
        ...     json.loads("{")
        ... except ValueError as error:
        ...     place_of(error).partition(":")[0]
        'json/decoder.py'
    """
    while error.__cause__ is not None:  # the error that ours describes
        error = error.__cause__
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return None
    file = frames[-1].filename
    folders = [os.path.join(os.path.abspath(folder), "") for folder in sys.path]
    inside = [folder for folder in folders if file.startswith(folder)]
    return f"{file.removeprefix(max(inside, key=len, default=''))}:{frames[-1].lineno}"
