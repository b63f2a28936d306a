"""The Python blocks of the README and of the documents run as they stand there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHAPE = re.compile(r"^(\w+(?:\.\w+)*\.shape)  # (\([\d, ]+\))", re.MULTILINE)


def _blocks(path):
    """The blocks of a document, each pushed down so that its line numbers are the document's."""
    text = path.read_text(encoding="utf-8")
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in BLOCK.finditer(text)]


DOCUMENTS = [
    path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))] if _blocks(path)
]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_blocks_run_and_shapes_are_true(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": path.stem}
    for block in _blocks(path):  # in order: a later block may use what an earlier one made
        exec(compile(block, path, "exec"), names)
        for expression, shape in SHAPE.findall(block):
            assert str(tuple(eval(expression, names))) == shape, expression


def test_the_readme_has_something_to_check():
    blocks = _blocks(ROOT / "README.md")
    assert len(blocks) >= 4
    assert sum(len(SHAPE.findall(block)) for block in blocks) >= 5


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=str)
def test_links_lead_somewhere(path):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []
