"""HTML pages that need nothing but a browser: one file each, no network, no server.

Everything is inside the file: pictures as PNG, and maps as bytes that a script of ours paints. A
content security policy keeps the page from loading anything. All text is escaped. Jinja2 (extra
``html``) loads when a page is made.
"""

from __future__ import annotations

from typing import Any

from captum_clustered._files import require
from captum_clustered._notebook import picture_uri

__all__ = ["picture_uri", "render"]


def render(template: str, **values: Any) -> str:
    """Fills a template of this package; whatever is put in is escaped."""
    jinja = require("jinja2", "html", "to write HTML pages")

    class ByKey(jinja.Environment):  # type: ignore[name-defined, misc]
        """Of a dict, `value.clear` is the entry, not the method."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, dict):
                return self.getitem(obj, attribute)
            return super().getattr(obj, attribute)

    environment = ByKey(
        loader=jinja.PackageLoader(__name__, "templates"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html: str = environment.get_template(template).render(**values)
    return html
