"""HTML pages that need nothing but a browser: one file each, no network, no server.

Everything is inside the file: pictures as PNG, maps as bytes, from which a script of our own paints
them. A content security policy keeps the page from loading anything. All text is escaped. Jinja2
(extra ``html``) loads when a page is made.
"""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np

from captum_clustered._files import require

__all__ = ["picture_uri", "render"]


def render(template: str, **values: Any) -> str:
    """Fills a template of this package; whatever is put in is escaped."""
    jinja = require("jinja2", "html", "to write HTML pages")
    environment = jinja.Environment(
        loader=jinja.PackageLoader(__name__, "templates"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html: str = environment.get_template(template).render(**values)
    return html


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
