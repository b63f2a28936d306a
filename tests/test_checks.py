import math

import numpy as np
import pytest

from captum_clustered._checks import check_choice, check_int, check_number


def _says(text):
    return pytest.raises(ValueError, match=f"^{text}$")


@pytest.mark.parametrize("value", ["a", None, True])
def test_a_choice_is_one_of_the_list(value):
    check_choice("x", value, ("a", None, True))


@pytest.mark.parametrize("value", ["b", 1, np.zeros(2), ["a"]])
def test_other_choices_are_refused(value):
    with pytest.raises(ValueError, match=r"^`x` must be one of 'a', None, True; got .*\. Do\.$"):
        check_choice("x", value, ("a", None, True), "Do.")


def test_an_int_has_a_minimum():
    check_int("x", 2, 2)
    check_int("x", None, 2, or_none=True)
    with _says(r"`x` must be an int >= 2; got 1\. Take more\."):
        check_int("x", 1, 2, remedy="Take more.")
    with _says(r"`x` must be an int >= 2, or be None; got 2\.0\."):
        check_int("x", 2.0, 2, or_none=True)
    for value in (None, True, "2", [2]):
        with pytest.raises(ValueError, match="`x` must be an int >= 0; got "):
            check_int("x", value, 0)


@pytest.mark.parametrize(
    ("ends", "inside", "outside", "rule"),
    [
        ({"above": 0}, (1e-9, 5), (0, -1), "a number > 0"),
        ({"at_least": 0}, (0, 5), (-1e-9,), "a number >= 0"),
        ({"above": 0, "at_most": 1}, (0.1, 1), (0, 1.1), "a number > 0 and <= 1"),
        ({"at_least": 0, "below": 100}, (0, 99.9), (-1, 100), "a number >= 0 and < 100"),
        ({}, (-5, 0, np.float32(2)), (), "a finite number"),
    ],
)
def test_a_number_lies_between_its_ends(ends, inside, outside, rule):
    for value in inside:
        check_number("x", value, **ends)
    for value in (*outside, math.nan, math.inf, True, "1", None, [0.5]):
        with pytest.raises(ValueError, match=rf"^`x` must be {rule}; got .*\. Do\.$"):
            check_number("x", value, **ends, remedy="Do.")


def test_none_is_a_number_only_where_it_is_allowed():
    check_number("x", None, above=0, or_none=True)
    with _says(r"`x` must be a number > 0, or be None; got 0\."):
        check_number("x", 0, above=0, or_none=True)
