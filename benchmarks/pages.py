"""Pages whose words are written by hand and whose tables are generated."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["document"]


def document(page: str, tables: Mapping[str, str]) -> str:
    """Puts tables between their marks.

    Args:
        page (str): Markdown with ``<!-- table NAME -->`` … ``<!-- end -->``.
        tables (mapping): Tables by their names.

    Returns:
        *str*: The page; marks of tables that are not given keep what is there.

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
