"""Doors: what is wrong with an argument, in one grammar: the rule, then the value; warnings."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import FrameType


def _folders() -> tuple[str, ...]:
    captum = find_spec("captum")
    found = [Path(__file__).parent, *((captum and captum.submodule_search_locations) or ())]
    return tuple(f"{folder}{os.sep}" for folder in found)


_INSIDE = (*_folders(), contextlib.__file__)
"""Where a caller's own code is not: this package, Captum, and what enters context managers."""


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises where `value` is none of `choices`."""
    # `in` compares: an array would give an array, and True equals 1
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"`{name}` must be one of {listed}; got {value!r}.")


def check_int(name: str, value: object, minimum: int) -> None:
    """Raises where `value` is no int of at least `minimum`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"`{name}` must be an int >= {minimum}; got {value!r}.")


def warn(message: str) -> None:
    """Warns with the file and line of the caller's own code, outside this package and Captum."""
    frame: FrameType | None = sys._getframe(1)
    level = 2
    while frame is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level)
