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
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from captum_clustered._files import digest_of, whole, without_nan
from captum_clustered.evaluation.rows import Grid, Key, Row

__all__ = [
    "Done",
    "Rows",
    "check_config",
    "check_inputs",
    "each_row",
    "find_done",
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
# of these all may be named, or some: other variants have rows of their own, metrics add to a row
_GROWING = ("variants", "metrics")
_STEP = "step"
_BEHIND_METRICS = b', "original_score": '  # cannot be part of a text, which has \" for its quotes


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
        for row in each_row(path):
            key = _key(row)
            rows[key] = _together(rows[key], row) if key in rows else row
    return rows


def each_row(path: Path) -> Iterator[Row]:
    """Reads a file of rows, one at a time. An incomplete last line is ignored.

    Raises:
        ValueError: If a line is no row.
    """
    return (row for _, row in _lines(path, json.loads))


def _lines(path: Path, parse: Callable[[bytes], Row]) -> Iterator[tuple[bytes, Row]]:
    """The whole lines of a file, each with what was parsed of it."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = parse(line)
                _key(row)
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path} must have a row in each line; line {number} is none. Remove it; "
                    "its image is evaluated again."
                ) from error
            yield line, row


def _numbers_of(line: bytes) -> Row:
    """A row up to its metrics, without what is long: scores, maps, curves and conventions."""
    begin, found, _ = line.partition(_BEHIND_METRICS)
    row: Row = json.loads(begin + b"}" if found else line)
    return row


def _key(row: Row) -> Key:
    return row["image"], row["method"], row["clusters"], row["weighting"]


def _together(one: Row, other: Row) -> Row:
    """Two rows of one image and variant as one; the numbers of the first stay.

    What was measured stays when a metric that was added later fails.
    """
    failed = [row.get("status") == "failed" for row in (one, other)]
    if any(failed):
        return other if failed == [True, False] else one
    row = {**other, **one}
    if "conventions" in one and "conventions" in other:
        row["conventions"] = {**other["conventions"], **one["conventions"]}
    first = dict.fromkeys(name for part in (one, other) for name in takewhile(_is_before, part))
    return {**{name: row[name] for name in first}, **row}


def _is_before(name: str) -> bool:
    """Whether a part of a row stands before what :func:`_numbers_of` leaves out."""
    return name != "original_score"


def forget_failed(folder: Path, grid: Grid) -> int:
    """Removes the rows that failed, so that their images are tried again.

    Args:
        folder (Path): The folder.
        grid (Grid): Of which images and variants.

    Returns:
        *int*: How many images and variants had such a row.
    """
    failed = {
        _key(row)
        for path in _files(folder)
        for _, row in _lines(path, _numbers_of)
        if row["status"] != "ok" and grid.place(_key(row)) is not None
    }
    if failed:
        for path in _files(folder):
            with whole(path) as part, part.open("wb") as file:
                file.writelines(
                    line for line, row in _lines(path, _numbers_of) if _key(row) not in failed
                )
    return len(failed)


# --- what is there --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Done:
    """Which rows of a plan need nothing more: a set of keys, one byte each.

    Attributes:
        grid (Grid): The images and variants.
        there (array): bool `(images, variants)`.
        judged (set[str]): The images that have numbers, of any variant.
    """

    grid: Grid
    there: NDArray[np.bool_]
    judged: Collection[str] = ()

    def __contains__(self, key: object) -> bool:
        """Whether the row of a key needs nothing more."""
        place = self.grid.place(key)
        return place is not None and bool(self.there[place])

    def __len__(self) -> int:
        """How many rows need nothing more."""
        return int(self.there.sum())


def find_done(folder: Path, grid: Grid, metrics: Iterable[str]) -> Done:
    """Finds the rows that need nothing more: they failed, or have all metrics.

    The rows are looked at one by one. What is kept of each is a byte for each metric.

    Args:
        folder (Path): The folder.
        grid (Grid): The images and variants.
        metrics (iterable of str): The metrics.

    Returns:
        *Done*: The keys of these rows.

    Raises:
        ValueError: If a line is no row.
    """
    names = list(metrics)
    there = np.zeros((len(names), *grid.shape), dtype=bool)
    judged = set()
    for path in _files(folder):
        for _, row in _lines(path, _numbers_of):
            ok = row["status"] == "ok"
            if ok:
                judged.add(row["image"])
            place = grid.place(_key(row))
            if place is not None:
                # of a metric that was added later there is a second row
                there[(slice(None), *place)] |= [not ok or name in row for name in names]
    return Done(grid, np.all(there, axis=0), judged)


def merge(folder: Path, grid: Grid) -> list[Row]:
    """Brings all rows into one file, in the order of the plan, and deletes the others.

    Rows of other images and variants come behind. Where each line is, not what it says, is kept in
    memory.

    Args:
        folder (Path): The folder.
        grid (Grid): The images, and the variants of each, in the order of the file.

    Returns:
        *list*: The failed rows that are not kept, since their image and variant has numbers: what
        was added to them failed.
    """
    missed: list[Row] = []
    files = _files(folder)
    index = _Index.of(files, grid)
    order = np.lexsort((index.begin, index.file, index.variant, index.image, index.apart))
    same = (np.diff(index.image[order]) == 0) & (np.diff(index.variant[order]) == 0)
    if (
        [path.name for path in files] == [_ROWS]
        and not same.any()
        and bool(np.all(np.diff(order) > 0))
    ):
        return missed  # as it should be
    with ExitStack() as stack, whole(folder / _ROWS) as part, part.open("wb") as file:
        opened = [stack.enter_context(path.open("rb")) for path in files]
        above: bytes | None = None
        for k, again in zip(order, [False, *same], strict=True):
            source = opened[index.file[k]]
            source.seek(index.begin[k])
            line = source.readline()
            if again and above is not None:
                pair = [json.loads(above), json.loads(line)]
                above = _line(_together(*pair))
                if pair[0]["status"] != pair[1]["status"]:
                    missed += [row for row in pair if row["status"] == "failed"]
                continue
            if above is not None:
                file.write(above)
            above = line
        if above is not None:
            file.write(above)
    for path in files:
        if path.name != _ROWS:
            path.unlink()
    return missed


@dataclass(frozen=True, eq=False)
class _Index:
    """Where each line is, and what it is of; an array `(lines,)` each."""

    file: NDArray[Any]
    begin: NDArray[Any]
    image: NDArray[Any]
    variant: NDArray[Any]
    apart: NDArray[Any]  # whether it is of another plan

    @classmethod
    def of(cls, files: Sequence[Path], grid: Grid) -> _Index:
        images, variants = dict(grid.places), dict(grid.lines)  # which others join
        found = [array(kind) for kind in "iqii"]
        for number, path in enumerate(files):
            begin = 0
            for line, row in _lines(path, _numbers_of):
                key = _key(row)
                i = images.setdefault(key[0], len(images))
                v = variants.setdefault(key[1:], len(variants))
                for column, value in zip(found, (number, begin, i, v), strict=True):
                    column.append(value)
                begin += len(line)
        which, begins, image, variant = (np.asarray(column) for column in found)
        apart = (image >= grid.shape[0]) | (variant >= grid.shape[1])
        return cls(which, begins, image, variant, apart)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _ROW_FILE.fullmatch(path.name))


# --- settings -------------------------------------------------------------------------------------


def check_config(folder: Path, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Writes ``config.json``, unless the folder has rows that were made with other settings.

    Args:
        folder (Path): Folder of the results.
        config (mapping): What :func:`json.dumps` can write. The entry ``"compared"`` holds what
            must be equal, by name; in it, ``"variants"`` and ``"metrics"`` may be others, since
            neither changes a number that is there: written are all that were ever named. All other
            entries are only a record.

    Returns:
        *dict*: The variants and metrics that are there and were not named now.

    Raises:
        ValueError: If the folder has rows of other settings. The message names the differences.
    """
    path = folder / _CONFIG
    config = without_nan(json.loads(json.dumps(config)))
    more: dict[str, list[str]] = {}
    if any(file.stat().st_size for file in _files(folder)):
        old, new = _read_config(path), config["compared"]
        differing = _differences(old, new)
        if differing:
            raise ValueError(
                f"`out` must be a new folder, since {folder} has rows of other settings: "
                f"{'; '.join(differing)}. Name another folder, or go on with the settings there."
            )
        for name in _GROWING:
            more[name] = [one for one in old.get(name) or [] if one not in (new.get(name) or [])]
            if more[name]:
                new[name] = [*(new.get(name) or []), *more[name]]
        if new.get(_STEP) is None and old.get(_STEP) is not None:
            new[_STEP] = old[_STEP]  # that of the curves that are there
    with whole(path) as part:
        part.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return {name: names for name, names in more.items() if names}


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
        if name in _GROWING or (name == _STEP and None in (before, now)):
            continue  # the step is that of the curves, if there are any
        if isinstance(before, dict) and isinstance(now, dict):
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
    folder: Path, inputs: Mapping[str, Sequence[Path]], judged: Collection[str]
) -> None:
    """Writes ``inputs.json``, unless a file of which there are rows has another content now.

    A file is read only if its size or one of its times is not the one that is known. The time at
    which it was last touched in any way cannot be set back, as that of the last change can.

    Args:
        folder (Path): Folder of the results.
        inputs (mapping): From the name of each image to its files.
        judged (collection of str): The images of which there are rows with numbers. The files of
            others may have changed.

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
        found[image] += before[len(files) :]  # a mask that this run does not need
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
    """Size, time of the last change, digest and time of the last touch; None if unreadable."""
    try:
        status = file.stat()
        size, changed, touched = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if known is not None and [*known[:2], *known[3:]] == [size, changed, touched]:
            return list(known)
        return [size, changed, digest_of(file), touched]
    except OSError:
        return [None, None, None, None]


# --- locks ----------------------------------------------------------------------------------------


_held: list[FileLock] = []


def _let_go() -> None:
    """Closes, in a forked process, the files by which its parent holds locks.

    Otherwise a lock would outlive a parent that is killed. Private part of filelock: `_context`.
    """
    for lock in _held:
        file = getattr(getattr(lock, "_context", None), "lock_file_fd", None)
        if file is not None:
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


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
    _held.append(lock)
    try:
        yield
    finally:
        lock.release()
        _held.remove(lock)
