"""Markdown: tables, numbers with intervals, and pages whose words are written by hand."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from benchmarks.files import write_text

__all__ = ["document", "interval", "renew", "table"]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table.

    Args:
        head (sequence of str): The titles of the columns.
        rows (iterable): The cells of each line.
        left (int, optional): How many columns are words; the others are numbers and stand on the
            right. Default: 1

    Example::

        >>> print(table(["method", "time"], [["Grad-CAM", "9 ms"]]))
        | method | time |
        | --- | ---: |
        | Grad-CAM | 9 ms |
    """
    ruler = ["---" if i < left else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))


def interval(estimate: float, low: float, high: float, digits: int) -> str:
    """A number with its interval.

    Example::

        >>> interval(34.1, 30.21, 38.0, digits=1)
        '34.1 [30.2, 38.0]'
    """
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def document(page: str, tables: Mapping[str, str]) -> str:
    """Puts tables between their marks.

    Args:
        page (str): Markdown with ``<!-- table NAME -->`` … ``<!-- end -->``.
        tables (mapping): Tables by their names.

    Returns:
        *str*: The page. Where no table of that name is given, it stays as it is.

    Example::

        >>> print(document("<!-- table a -->old<!-- end -->", {"a": "new"}))
        <!-- table a -->
        <BLANKLINE>
        new
        <BLANKLINE>
        <!-- end -->
    """

    def put(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in tables:
            return match.group(0)
        return f"<!-- table {name} -->\n\n{tables[name]}\n\n<!-- end -->"

    return re.sub(r"<!-- table (.+?) -->.*?<!-- end -->", put, page, flags=re.DOTALL)


def renew(page: Path, tables: Mapping[str, str]) -> None:
    """Puts tables between their marks in a file.

    Raises:
        ValueError: If there is no such file. What is no ordinary file, such as a device, is left
            alone.
    """
    if not page.is_file():
        raise ValueError(f"`page` must be a Markdown file; {page} is none.")
    write_text(page, document(page.read_text(encoding="utf-8"), tables))
