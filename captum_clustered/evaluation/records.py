"""Rows on disk: one line for each image and variant, never changed once it is written.

While an evaluation runs, process 0 appends to ``rows.jsonl`` and process R to ``rows.R.jsonl``. If
a run is killed, these files stay, perhaps with an incomplete last line. The next run reads them
all, whatever its number of processes, and goes on. At the end all rows are in ``rows.jsonl``, in
the order of the plan. ``inputs.json`` knows the files from which the rows were made.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from captum_clustered._files import digest_of, whole, without_nan
from captum_clustered.evaluation.rows import Key, Row

__all__ = [
    "Rows",
    "check_config",
    "check_inputs",
    "forget_failed",
    "merge",
    "read_rows",
    "sole_user",
]

_ROWS = "rows.jsonl"
_CONFIG = "config.json"
_INPUTS = "inputs.json"
_LOCK = ".lock"
_ROW_FILE = re.compile(r"rows(\.[1-9]\d*)?\.jsonl")  # no other file is read, merged or deleted
# these may grow: more variants leave the other rows as they are, more metrics add to them
_GROWING = ("variants", "metrics")
_STEP = "step"


class Rows:
    """Appends rows to a file. A line that cannot be written whole is removed again.

    Args:
        folder (Path): Folder of the results.
        rank (int, optional): Number of the process; each has its own file. Default: 0

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
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes the file."""
        self._file.close()

    def append(self, row: Row) -> None:
        """Writes a row. When this returns, the row has left this process.

        Raises:
            OSError: If it cannot be written, as on a full disk. The file is then as it was before.
        """
        line = memoryview(_line(row))
        begin = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(begin)  # this needs no space
            raise OSError(
                f"{self.path} cannot be written ({error.strerror}). All rows before this one are "
                "safe; make room and start the same command again."
            ) from error


def _line(row: Row) -> bytes:
    text = json.dumps(without_nan(row), ensure_ascii=False, allow_nan=False)
    # a file name that is not UTF-8 has lone surrogates, which JSON can hold as \udc80
    return text.encode(errors="backslashreplace") + b"\n"


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
    """Reads all rows in a folder, of any number of processes. An incomplete last line is ignored.

    If a metric was added later, an image and variant has two rows, which become one.

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
                rows[key] = _together(rows[key], row) if key in rows else row
    return rows


def _together(one: Row, other: Row) -> Row:
    """Two rows of one image and variant as one; the numbers of the first stay."""
    failed = [row for row in (one, other) if row.get("status") == "failed"]
    if failed:  # as if all metrics had been measured at once
        return failed[0]
    row = {**other, **one}
    if "conventions" in one and "conventions" in other:
        row["conventions"] = {**other["conventions"], **one["conventions"]}
    return row


def forget_failed(folder: Path) -> int:
    """Removes the rows that failed, so that their images are tried again.

    Args:
        folder (Path): The folder.

    Returns:
        *int*: How many rows were removed.
    """
    rows = read_rows(folder)
    kept = {key: row for key, row in rows.items() if row["status"] == "ok"}
    if len(kept) < len(rows):
        merge(folder, kept, list(kept))
    return len(rows) - len(kept)


def merge(folder: Path, rows: Mapping[Key, Row], order: Sequence[Key]) -> None:
    """Writes all rows into one file, in the given order, and deletes the others.

    Args:
        folder (Path): The folder.
        rows (mapping): All rows.
        order (sequence): Their keys, in the order of the file.
    """
    with whole(folder / _ROWS) as part, part.open("wb") as file:
        for key in order:
            if key in rows:
                file.write(_line(rows[key]))
    for path in _files(folder):
        if path.name != _ROWS:
            path.unlink()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _ROW_FILE.fullmatch(path.name))


# --- settings -------------------------------------------------------------------------------------


def check_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``, unless the folder has rows that were made with other settings.

    Args:
        folder (Path): Folder of the results.
        config (mapping): What :func:`json.dumps` can write. The entry ``"compared"`` holds what
            must be equal, by name; in it, ``"variants"`` and ``"metrics"`` may grow, since neither
            changes a number that is there. All other entries are only a record.

    Raises:
        ValueError: If the folder has rows of other settings. The message names the differences.
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
        if name in _GROWING:
            lost = [one for one in before or [] if one not in (now or [])]
            if lost:
                more = ", …" if len(lost) > 3 else ""
                found.append(f"{name} (there also {', '.join(lost[:3])}{more})")
        elif name == _STEP and before is None:
            continue  # the first curve is among the metrics that were added
        elif isinstance(before, dict) and isinstance(now, dict):
            found += [f"{name}: {inner}" for inner in _differences(before, now)]
        elif before != now:
            found.append("{} ({} there, {} now)".format(name, *_shortened(before, now)))
    return found


def _shortened(*values: Any) -> list[str]:
    """Values as texts, cut so that what differs can be seen."""
    texts = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    pairs = zip(*texts, strict=False)
    same = sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, pairs))
    begin = same - 20 if same > 40 else 0
    lead = "…" if begin else ""
    ends = [lead + text[begin:] for text in texts]
    return [text if len(text) <= 60 else f"{text[:57]}…" for text in ends]


# --- files ----------------------------------------------------------------------------------------


def check_inputs(
    folder: Path, inputs: Mapping[str, Sequence[Path]], rows: Mapping[Key, Row]
) -> None:
    """Writes ``inputs.json``, unless a file of which there are rows has another content now.

    A file is read only if its size or its time is not the one that is known.

    Args:
        folder (Path): Folder of the results.
        inputs (mapping): From the name of each image to its files.
        rows (mapping): All rows in the folder. Where all rows of an image failed, its files may
            have changed.

    Raises:
        ValueError: If a file has another content now. The message names the image.
    """
    path = folder / _INPUTS
    known: dict[str, Any] = {}
    if path.exists():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"`out` must be a new folder, since {path} cannot be read. Name another folder."
            ) from error
    judged = {key[0] for key, row in rows.items() if row["status"] == "ok"}
    found: dict[str, list[list[Any]]] = {}
    changed = []
    for image, files in inputs.items():
        before = known.get(image, [])
        found[image] = [
            _stamp(file, before[i] if i < len(before) else None) for i, file in enumerate(files)
        ]
        pairs = zip(before, found[image], strict=False)
        if image in judged and any(old[2] != new[2] for old, new in pairs):
            changed.append(image)
    if changed:
        more = f" and {len(changed) - 1} more have" if len(changed) > 1 else " has"
        raise ValueError(
            f"`data` must be the files of which {folder} has rows; {changed[0]}{more} another "
            "content now. Name another folder, or put the old files back."
        )
    if found != known:
        with whole(path) as part:
            part.write_bytes(json.dumps(found).encode())


def _stamp(file: Path, known: Sequence[Any] | None) -> list[Any]:
    """Size, time and digest of a file; None each if it cannot be read."""
    try:
        status = file.stat()
        if known is not None and list(known[:2]) == [status.st_size, status.st_mtime_ns]:
            return list(known)
        return [status.st_size, status.st_mtime_ns, digest_of(file)]
    except OSError:
        return [None, None, None]


# --- locks ----------------------------------------------------------------------------------------


@contextmanager
def sole_user(folder: Path) -> Iterator[None]:
    """Keeps a second evaluation out of a folder while the first one runs.

    An empty file ``.lock`` stays in the folder afterwards; to delete it would let two evaluations
    in that start at the same moment. A process that was killed does not keep the folder locked. On
    a file system without locks nothing is kept out.

    Args:
        folder (Path): The folder of the results.

    Raises:
        ValueError: If another evaluation is writing there.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"`out` must not be in use; another evaluation is writing to {folder}. Wait for it, or "
            "name another folder."
        ) from error
    except NotImplementedError:  # a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()
