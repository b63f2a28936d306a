"""Every example in a docstring runs and prints what it says."""

import doctest
import importlib
import pkgutil

import pytest

import captum_clustered

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _examples():
    names = [captum_clustered.__name__]
    names += [
        module.name
        for module in pkgutil.walk_packages(captum_clustered.__path__, "captum_clustered.")
        if not module.name.endswith("__main__")
    ]
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in names for test in finder.find(importlib.import_module(name), name)]
    return [pytest.param(test, id=test.name) for test in found if test.examples]


def _run(test):
    report = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    failed = runner.run(test, out=report.append, clear_globs=False).failed
    return failed, "".join(report)


@pytest.mark.parametrize("example", _examples())
def test_docstring_example(example):
    failed, report = _run(example)
    assert not failed, report


def test_a_wrong_example_fails():
    wrong = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    failed, report = _run(wrong)
    assert failed == 1
    assert "Expected:\n    3\nGot:\n    2" in report
