"""The documents name what is there: modules, functions, pages. `make docs` builds them."""

import ast
import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest

import captum_clustered
from captum_clustered.weighting import WEIGHTINGS

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PAGES = [*sorted(DOCS.glob("*.md")), *TUTORIALS]
CELL = re.compile(r"^```\{code-cell\} ipython3\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"\{py:(?:class|func|meth|mod|data)\}`~?([\w.]+)`")
THREAD = re.compile(r"\[(?:[\w.-]+ )?#(\d+)\]\(https://github\.com/[\w.-]+/[\w.-]+/\w+/(\d+)\)")


def _reference():
    spec = importlib.util.spec_from_file_location("docs_reference", DOCS / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _reference()


def _find(dotted):
    """The object behind a dotted name."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(dotted)


def _code(path):
    """The cells of a notebook, without lines that only IPython reads."""
    cells = CELL.findall(path.read_text(encoding="utf-8"))
    lines = [line for line in "\n".join(cells).splitlines() if not line.startswith(("%", ":tags:"))]
    return "\n".join(lines)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_functions_that_a_page_names_exist(path):
    for name in ROLE.findall(path.read_text(encoding="utf-8")):
        assert _find(name) is not None, name


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_compiles_and_imports_what_exists(path):
    code = _code(path)
    imports = [n for n in ast.walk(ast.parse(code)) if isinstance(n, ast.ImportFrom)]
    own = [n for n in imports if n.module.split(".")[0] == "captum_clustered"]
    assert own, "a tutorial uses the library"
    for node in own:
        for alias in node.names:
            assert hasattr(import_module(node.module), alias.name), f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_can_be_downloaded_and_is_in_the_contents(path):
    assert f"{{nb-download}}`{path.stem}.ipynb`" in path.read_text(encoding="utf-8")
    assert f"\ntutorials/{path.stem}\n" in (DOCS / "index.md").read_text(encoding="utf-8")


def test_links_to_threads_lead_to_the_thread_that_they_name():
    links = THREAD.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(links) > 10
    assert [link for link in links if link[0] != link[1]] == []


def test_every_public_name_stands_in_the_reference_once():
    placed = [name for names in reference.chapters().values() for name in names]
    assert len(placed) == len(set(placed))
    documented = [
        id(getattr(import_module(module), name))
        for module in placed
        for name in reference.exported(module)
        if callable(getattr(import_module(module), name))
    ]
    wanted = {
        id(found)
        for module in reference.public_modules()
        for name in getattr(import_module(module), "__all__", ())
        if callable(found := getattr(import_module(module), name))
    }
    assert set(documented) == wanted
    assert len(documented) == len(set(documented))


def test_chapters_name_modules_that_exist():
    modules = {name.removeprefix("captum_clustered.") for name in reference.public_modules()}
    assert {name for names in reference.CHAPTERS.values() for name in names} <= modules


def test_the_reference_is_written_and_stale_pages_go(tmp_path):
    stale = tmp_path / "captum_clustered.gone.md"
    stale.write_text("gone")
    reference.write(tmp_path)
    assert not stale.exists()
    assert "ClusteredLayerAblation" in (tmp_path / "captum_clustered.md").read_text()
    assert "--clusters" in (tmp_path / "captum_clustered.app.cli.md").read_text()
    contents = (tmp_path / "index.md").read_text() + (tmp_path / "inner.md").read_text()
    for page in tmp_path.glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in contents, page.name
    before = {page: page.stat().st_mtime_ns for page in tmp_path.glob("*.md")}
    reference.write(tmp_path)  # nothing has changed: nothing is written, nothing is built anew
    assert {page: page.stat().st_mtime_ns for page in tmp_path.glob("*.md")} == before


def test_the_method_page_names_every_explainer_and_weighting():
    text = (DOCS / "method.md").read_text(encoding="utf-8")
    explainers = [name for name in captum_clustered.__all__ if "Layer" in name]
    assert len(explainers) >= 5
    for name in explainers:
        assert f"`captum_clustered.{name}`" in text
    for name in WEIGHTINGS:
        assert f"`~captum_clustered.weighting.{name}`" in text


def test_the_start_page_has_one_picture_and_one_example():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    assert text.count("![") == 1
    assert text.count("```python") == 1


def test_names_of_other_libraries_in_the_table_exist():
    pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam")
    methods = pytest.importorskip("torchcam.methods")
    text = (DOCS / "tutorials" / "moving.md").read_text(encoding="utf-8")
    theirs = re.findall(r"^\| `(\w+)\(model, target_layers", text, re.MULTILINE)
    assert len(theirs) >= 3
    assert [name for name in theirs if not hasattr(pytorch_grad_cam, name)] == []
    theirs = re.findall(r"^\| `(?:with )?(\w+)\(model, \"layer4\"", text, re.MULTILINE)
    assert len(theirs) >= 2
    assert [name for name in theirs if not hasattr(methods, name)] == []
