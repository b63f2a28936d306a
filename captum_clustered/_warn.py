"""Warnings that point at the caller's own line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import FrameType


def _folders() -> tuple[str, ...]:
    captum = find_spec("captum")
    found = [Path(__file__).parent, *((captum and captum.submodule_search_locations) or ())]
    return tuple(f"{folder}{os.sep}" for folder in found)


_INSIDE = (*_folders(), contextlib.__file__)
"""Where a caller's own code is not: this package, Captum, and what enters context managers."""


def warn(message: str) -> None:
    """Warns with the file and line of the caller's own code, outside this package and Captum."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)
