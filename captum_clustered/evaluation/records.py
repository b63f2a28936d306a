"""Rows on disk: one line for each image and variant, there for good once it is written.

While an evaluation runs, process 0 appends to ``rows.jsonl`` and process R to ``rows.R.jsonl``. A
run that was killed leaves them, perhaps with a torn last line; the next one reads them all,
whatever its number of processes, and goes on. At the end all rows are in ``rows.jsonl``, in the
order of the plan.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from captum_clustered._files import whole, without_nan
from captum_clustered.evaluation.plan import Variant

__all__ = ["Key", "Row", "Rows", "check_config", "key_of", "merge", "read_rows", "sole_user"]

Row = dict[str, Any]
Key = tuple[str, str, int | None, str | None]

_ROWS = "rows.jsonl"
_CONFIG = "config.json"
# what may grow without changing what a row says
_GROWING = "variants"


def key_of(image: str, variant: Variant) -> Key:
    """What tells a row from all others."""
    return image, variant.method, variant.clusters, variant.weighting


class Rows:
    """Appends rows to a file. A line is written in one go; one that cannot be is taken back.

    Args:
        folder (Path): Where the files of the rows are.
        rank (int): Number of the process, each of which has a file of its own.

    Example::

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Rows(Path(folder)) as rows:
        ...         rows.append({"image": "a.png", "method": "x", "clusters": 2, "weighting": None})
        ...     list(read_rows(Path(folder)))
        [('a.png', 'x', 2, None)]
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self.path = folder / (f"rows.{rank}.jsonl" if rank else _ROWS)
        self._file = self.path.open("ab", buffering=0)
        self._file.truncate(_whole_lines(self.path))

    def __enter__(self) -> Rows:
        """Is itself what to append to."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def append(self, row: Row) -> None:
        """Writes a row; it has left this process when this returns.

        Raises:
            RuntimeError: If it cannot be written, as on a full disk. The file is as before then.
        """
        line = memoryview(_line(row))
        begin = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(begin)  # this needs no room
            raise RuntimeError(
                f"{self.path} cannot be written ({error.strerror}). All rows before this one are "
                "safe; make room and start the same command again."
            ) from error


def _line(row: Row) -> bytes:
    return json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _whole_lines(path: Path) -> int:
    """The length of a file up to the end of its last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 2**16)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
    return 0


def read_rows(folder: Path) -> dict[Key, Row]:
    """All rows in a folder, of however many processes; a torn last line is left out.

    Args:
        folder (Path): The folder.

    Returns:
        *dict*: The rows by their keys.

    Raises:
        ValueError: If a line is no row.
    """
    rows: dict[Key, Row] = {}
    for path in _files(folder):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    break
                try:
                    row = json.loads(line)
                    key = row["image"], row["method"], row["clusters"], row["weighting"]
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(
                        f"{path} must have a row in each line; line {number} is none. Remove it; "
                        "its image is evaluated again."
                    ) from error
                rows.setdefault(key, row)
    return rows


def merge(folder: Path, rows: Mapping[Key, Row], order: Sequence[Key]) -> None:
    """Leaves one file, with the rows in the given order.

    Args:
        folder (Path): The folder.
        rows (mapping): All rows.
        order (sequence): Their keys, as they are to follow each other.
    """
    with whole(folder / _ROWS) as part, part.open("wb") as file:
        for key in order:
            if key in rows:
                file.write(_line(rows[key]))
    for path in _files(folder):
        if path.name != _ROWS:
            path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("rows*.jsonl"))


# --- settings -------------------------------------------------------------------------------------


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses rows of other settings; writes the settings down if there are no rows yet.

    More variants than before are welcome, since they leave the rows of the others as they are.

    Args:
        folder (Path): Where the rows are, or will be.
        config (mapping): What :func:`json.dumps` can write. The entry ``"compared"`` holds what
            must be equal, by name; within it, ``"variants"`` may grow. Everything else is a record.

    Raises:
        ValueError: If the folder has rows of other settings. The message names them.
    """
    path = folder / _CONFIG
    config = without_nan(json.loads(json.dumps(config)))
    if any(file.stat().st_size for file in _files(folder)):
        differing = _differences(_read_config(path), config["compared"])
        if differing:
            raise ValueError(
                f"`out` must be a new folder, since {folder} has rows of other settings: "
                f"{'; '.join(differing)}. Name another folder, or go on with the settings there."
            )
    with whole(path) as part:
        part.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_config(path: Path) -> dict[str, Any]:
    try:
        compared: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["compared"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`out` must be a new folder, since {path.parent} has rows, but no {path.name} that "
            "says of which settings. Name another folder."
        ) from error
    return compared


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = []
    for name in dict.fromkeys([*old, *new]):
        before, now = old.get(name), new.get(name)
        if name == _GROWING:
            lost = [variant for variant in before or [] if variant not in (now or [])]
            if lost:
                more = ", …" if len(lost) > 3 else ""
                found.append(f"{name} (there also {', '.join(lost[:3])}{more})")
        elif before != now:
            found.append(f"{name} ({_short(before)} there, {_short(now)} now)")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keeps a second evaluation out of a folder; a killed one leaves nothing behind.

    Raises:
        ValueError: If another evaluation is writing there.
    """
    lock = _locker()
    with (folder / ".lock").open("w") as file:
        try:
            lock(file.fileno())
        except BlockingIOError as error:
            raise ValueError(
                f"`out` must not be in use; another evaluation is writing to {folder}. Wait for "
                "it, or name another folder."
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def _locker() -> Callable[[int], object]:
    try:
        import fcntl
    except ImportError:  # Windows
        return lambda _: None
    return lambda descriptor: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
