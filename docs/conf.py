"""Sphinx configuration: `make docs` builds the pages, and a warning is an error."""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # `reference` beside this file; an unbuilt checkout

from docutils import nodes  # noqa: E402
from latex2mathml.converter import convert  # noqa: E402

import captum_clustered  # noqa: E402
import reference  # noqa: E402

project = "captum_clustered"
author = "captum_clustered contributors"
copyright = author
version = release = captum_clustered.__version__

extensions = [
    "myst_nb",  # Markdown pages, and notebooks as text that run while the pages are built
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["**/.ipynb_checkpoints"]

# --- look -----------------------------------------------------------------------------------------

html_theme = "furo"
html_title = f"captum_clustered {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"  # see `setup`: browsers show it without a script or a network
html_copy_source = True  # every page's Markdown can be downloaded
copybutton_prompt_text = r">>> |\.\.\. |\$ |In \[\d*\]: "
copybutton_prompt_is_regexp = True

# --- Markdown and notebooks -----------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"  # outputs are never older than the library
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300  # seconds for a cell, on a busy machine
nb_merge_streams = True
nb_render_markdown_format = "myst"  # tables in outputs are tables
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm, in every notebook

# --- reference ------------------------------------------------------------------------------------

default_role = "code"  # `(N, C)` in a docstring is code
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say the types, with shapes and defaults
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Names of this package must lead somewhere. Other libraries' are not looked up: no network.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!captum_clustered\.).*")]


def _escape_stars(_app, _what, _name, _obj, _options, lines):
    """`field (Tensor): * The map` marks a field with a star; it begins no list."""
    lines[:] = [line.replace("): * ", r"): \* ") for line in lines]


def _public_bases(_app, _name, _obj, _options, bases):
    """A base class that is not documented is replaced by the nearest one that is public."""
    for i, base in enumerate(bases):
        public = (b for b in getattr(base, "__mro__", ()) if not b.__name__.startswith("_"))
        bases[i] = next(public, base)


def _inline_math(translator, node):
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block_math(translator, node):
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app):
    """Writes the pages of the reference before Sphinx looks for its sources."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("config-inited", lambda *_: reference.write(HERE / "api"))
    app.connect("autodoc-process-docstring", _escape_stars, priority=100)  # before napoleon
    app.connect("autodoc-process-bases", _public_bases)
