"""Doors: what is wrong with an argument, in one grammar: the rule, then the value."""

from __future__ import annotations

from collections.abc import Sequence


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
