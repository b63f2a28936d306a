"""What a notebook shows of a result: a piece of HTML with pictures inside, and no script.

It takes the notebook's own colours of text and ground, so that it can be read on a dark one too.
It imports nothing of this package: the results, on which much stands, stand on it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_BAR = 110  # pixels of the longest bar


@dataclass(frozen=True)
class Panel:
    """A map in its colours.

    Attributes:
        picture (array): `(H, W, 3)`, float in [0, 1].
        low (float): The value that has the darkest colour.
        high (float): The value that has the brightest.
        note (str or None): What is wrong with the map.
    """

    picture: np.ndarray
    low: float
    high: float
    note: str | None = None


@dataclass(frozen=True)
class GroupRow:
    """A line of the table of groups.

    Attributes:
        panel (Panel): The mean of its maps.
        size (int): How many maps it has.
        drop (float): How far the score falls without it.
        weight (float): Its weight.
        colour (str): Of the bar, as CSS writes it.
    """

    panel: Panel
    size: int
    drop: float
    weight: float
    colour: str


def picture_uri(picture: np.ndarray) -> str:
    """A picture `(H, W, 3)`, float in [0, 1], as ``data:`` address of a PNG file."""
    from PIL import Image

    pixels = np.round(255 * np.clip(picture, 0, 1)).astype(np.uint8)
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def words(*lines: str) -> str:
    """Lines of text as HTML; whatever is put in is escaped.

    Example::

        >>> words("a < b", "c")
        '<div>a &lt; b<br>c</div>'
    """
    return f"<div>{'<br>'.join(escape(line) for line in lines)}</div>"


def fragment(
    head: str,
    panel: Panel,
    scale: np.ndarray,
    *,
    rows: Sequence[GroupRow] = (),
    summary: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """A heat map and the groups with the largest drops.

    Args:
        head (str): A line above.
        panel (Panel): The heat map.
        scale (array): The colours from `low` to `high`, `(n, 3)`, float in [0, 1].
        rows (sequence of GroupRow, optional): The groups. Default: ()
        summary (str, optional): A line above the groups. Default: None (no table)
        notes (sequence of str, optional): Lines beneath. Default: ()

    Returns:
        *str*: A ``<div>``. All text is escaped.
    """
    below = [panel.note, *notes]
    return (
        f"<div><div><b>{escape(head)}</b></div>"
        '<div style="display:flex;flex-wrap:wrap;gap:4px 28px;align-items:flex-start">'
        f"<div>{_image(panel.picture, 'heat map')}{_scale(panel, scale)}</div>"
        f"{'' if summary is None else _table(rows, summary)}</div>"
        f"{''.join(words(note) for note in below if note)}</div>"
    )


def _image(picture: np.ndarray, alt: str) -> str:
    height, width = picture.shape[:2]
    size = f'width="{width}" height="{height}"'
    return f'<img src="{picture_uri(picture)}" {size} alt="{escape(alt)}">'


def _scale(panel: Panel, colours: np.ndarray) -> str:
    strip = np.broadcast_to(colours, (9, *colours.shape))
    return f"<div>{_number(panel.low)} {_image(strip, 'to')} {_number(panel.high)}</div>"


def _table(rows: Sequence[GroupRow], summary: str) -> str:
    reach = max((abs(row.drop) for row in rows if math.isfinite(row.drop)), default=0) or 1
    heads = "".join(f"<th>{head}</th>" for head in ("group", "maps", "drop", "", "weight"))
    lines = "".join(_row(row, reach) for row in rows)
    return (
        f"<div>{words(summary)}"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _row(row: GroupRow, reach: float) -> str:
    length = round(_BAR * abs(row.drop) / reach) if math.isfinite(row.drop) else 0
    bar = f'<div style="width:{length}px;height:9px;background:{escape(row.colour)}"></div>'
    thumb = _image(row.panel.picture, row.panel.note or "mean of its maps")
    drop = ("+" if row.drop > 0 else "") + _number(row.drop)
    cells = (thumb, str(row.size), drop, bar, _number(row.weight))
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not a number"
