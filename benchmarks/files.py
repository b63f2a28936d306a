"""Files that appear whole or not at all, and whether they were made with the same settings."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from captum_clustered._files import whole, without_nan

__all__ = ["differing", "inside", "write_json", "write_table", "write_text"]


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a value as JSON; NaN and infinity become null."""
    write_text(path, json.dumps(without_nan(value), indent=1, ensure_ascii=False) + "\n")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file with a line of column names."""
    with whole(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the settings of `now` that had another value before, or none.

    Example::

        >>> differing({"seed": 0, "folds": 5}, {"seed": 1, "folds": 5, "epochs": 3})
        ['seed', 'epochs']
    """
    return [name for name in now if name not in before or before[name] != now[name]]


def inside(package: str, file: Path, what: str, remedy: str) -> Path:
    """A file in an installed package, which is not imported.

    Raises:
        ImportError: If the package is not installed; the message says what to do.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is needed for {what}; {remedy}", name=package)
    return Path(spec.origin).parent / file
