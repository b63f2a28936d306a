"""Checks of what a user passed. Each error says: argument, rule, value that came, remedy."""

from __future__ import annotations

import difflib
import math
import numbers
import operator
from collections.abc import Iterable, Sequence
from typing import NoReturn

_COMPARE = {">=": operator.ge, ">": operator.gt, "<=": operator.le, "<": operator.lt}


def check_choice(name: str, value: object, choices: Sequence[object], remedy: str = "") -> None:
    """Raises an error unless `value` is one of `choices`.

    Args:
        name (str): The argument.
        value (object): What was passed.
        choices (sequence): What may be passed.
        remedy (str, optional): A sentence about what to do. Default: ""

    Raises:
        ValueError: If `value` is none of them.

    Example::

        >>> check_choice("start", "uniform", ("uniform", "drops"))
    """
    # not `in`: it compares arrays element by element, and finds that True equals 1
    if not any(
        value is choice or (isinstance(value, str) and value == choice) for choice in choices
    ):
        listed = ", ".join(repr(choice) for choice in choices)
        _refuse(name, f"be one of {listed}", value, remedy)


def check_int(
    name: str, value: object, minimum: int, *, or_none: bool = False, remedy: str = ""
) -> None:
    """Raises an error unless `value` is an int of at least `minimum`.

    Args:
        name (str): The argument.
        value (object): What was passed; a bool is not an int here.
        minimum (int): The smallest int that is allowed.
        or_none (bool, optional): Whether None is allowed too. Default: False
        remedy (str, optional): A sentence about what to do. Default: ""

    Raises:
        ValueError: If `value` breaks the rule.

    Example::

        >>> check_int("step", 224, 1)
    """
    if value is None and or_none:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        _refuse(name, f"be an int >= {minimum}" + ", or be None" * or_none, value, remedy)


def check_number(
    name: str,
    value: object,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    or_none: bool = False,
    remedy: str = "",
) -> None:
    """Raises an error unless `value` is a finite number between the given ends.

    Args:
        name (str): The argument.
        value (object): What was passed; a bool is not a number here.
        at_least (float, optional): The smallest number that is allowed. Default: None
        above (float, optional): In place of `at_least`: what the number must exceed. Default: None
        at_most (float, optional): The largest number that is allowed. Default: None
        below (float, optional): In place of `at_most`: what it must stay under. Default: None
        or_none (bool, optional): Whether None is allowed too. Default: False
        remedy (str, optional): A sentence about what to do. Default: ""

    Raises:
        ValueError: If `value` breaks the rule.

    Example::

        >>> check_number("keep_fraction", 0.5, above=0, at_most=1)
        >>> check_number("keep_fraction", 0, above=0, at_most=1, or_none=True)
        Traceback (most recent call last):
        ValueError: `keep_fraction` must be a number > 0 and <= 1, or be None; got 0.
    """
    if value is None and or_none:
        return
    ends = {">=": at_least, ">": above, "<=": at_most, "<": below}
    given = {sign: end for sign, end in ends.items() if end is not None}
    number = _finite(value)
    if number is None or not all(_COMPARE[sign](number, end) for sign, end in given.items()):
        limits = " and ".join(f"{sign} {end}" for sign, end in given.items())
        rule = f"be a number {limits}" if given else "be a finite number"
        _refuse(name, rule + ", or be None" * or_none, value, remedy)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A sentence with names similar to `name`, or "" if there are none.

    Example::

        >>> did_you_mean("fetures", ["features", "classifier"])
        ' Close are: features.'
        >>> did_you_mean("GradCAM", ["grad-cam", "opti"])
        ' Close are: grad-cam.'
    """
    known = {own.casefold(): own for own in names}
    close = difflib.get_close_matches(name.casefold(), list(known), n=4, cutoff=0.5)
    return f" Close are: {', '.join(known[own] for own in close)}." if close else ""


def _finite(value: object) -> float | None:
    if isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def _refuse(name: str, rule: str, value: object, remedy: str) -> NoReturn:
    raise ValueError(f"`{name}` must {rule}; got {value!r}.{remedy and ' ' + remedy}")
