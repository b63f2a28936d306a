"""HTML pages that need nothing but a browser: one file each, no network, no server.

Everything is inside the file: pictures as PNG, and maps as bytes that a script of ours paints. A
content security policy keeps the page from loading anything. All text is escaped. Jinja2 (extra
``html``) loads when a page is made.
"""

from __future__ import annotations

from typing import Any

from captum_clustered._files import require
from captum_clustered._notebook import picture_uri

__all__ = ["environment", "picture_uri", "render"]


def render(template: str, **values: Any) -> str:
    """Fills a template of this package; whatever is put in is escaped."""
    html: str = environment().get_template(template).render(**values)
    return html


def environment() -> Any:
    """Jinja's environment of the templates.

    Returns:
        *jinja2.Environment*: Of a dict, ``value.clear`` is the entry of that name, not the method.

    Raises:
        ImportError: If Jinja2 is missing.
    """
    jinja = require("jinja2", "html", "to write HTML pages")

    class ByKey(jinja.Environment):  # type: ignore[name-defined, misc]
        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, dict):
                return (
                    obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
                )
            return super().getattr(obj, attribute)

    return ByKey(
        loader=jinja.PackageLoader(__name__, "templates"),
        autoescape=True,
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
