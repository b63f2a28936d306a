"""What all tests of the command line stand in."""

import sys

import numpy as np
import pytest
from PIL import Image

from command_line import MODEL


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of models and two photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (tmp_path / "nets.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    yield tmp_path
    sys.modules.pop("nets", None)
