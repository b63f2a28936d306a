"""Random programs: the fast path, the full path and a run by hand give the same scores."""

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("jsonschema", reason="the extra benchmarks is not installed")

from benchmarks import fuzz, results
from benchmarks.__main__ import app
from benchmarks.programs import Program, Step, smaller
from benchmarks.sections import SECTIONS
from captum_clustered.engine.sites import Follower

CASE = fuzz.Case(
    seed=0,
    steps=(),
    layer=0.0,
    at_input=False,
    n=2,
    groups=0,
    shapley=False,
    parts="whole",
    chunk=None,
    dtype=torch.float64,
    sums=True,
)

# The smallest program of each fault that was found, what is explained, and the path that is taken.
FOUND = {
    "the model goes on with the input of an in-place layer": (
        (Step("conv"), Step("relu_", keep="discard"), Step("pooled")),
        {"layer": 0.5, "seed": 1},
        "suffix",
    ),
    "a module between takes the input of an in-place layer": (
        (Step("conv"), Step("hardtanh_"), Step("max_pool", a=-2), Step("normed")),
        {"layer": 0.0, "seed": 1},
        "suffix",
    ),
    "an in-place layer whose input is explained": (
        (Step("relu_", keep="discard"), Step("normed")),
        {"layer": 0.0, "at_input": True, "seed": 183},
        "full",
    ),
    "a call that is skipped does not write": (
        (
            Step("f.tanh"),
            Step("leaky_", keep="discard"),
            Step("conv", a=-2),
            Step("f.add", a=-1, b=-2),
            Step("flat"),
        ),
        {"layer": 0.3},
        "suffix",
    ),
    "what is seen once for all copies is written to": (
        (
            Step("conv"),
            Step("again", a=-2, k=10),
            Step("dropout_"),
            Step("elu_", a=-3),
            Step("f.channel_relu_", k=1, keep="replace"),
            Step("leaky_"),
            Step("f.masked_fill_", a=-3, b=-1),
            Step("normed"),
        ),
        {"layer": 0.5853180792204166, "seed": 4572, "chunk": 2, "groups": 2},
        "suffix",
    ),
    "a mask without values": (
        (
            Step("conv", keep="replace"),
            Step("alias_pair"),
            Step("max_pool", b=-3, k=2),
            Step("f.masked_fill_", a=-3, b=-1, keep="replace"),
            Step("leaky_", a=-3),
            Step("f.masked_fill_", a=-1, b=-3),
            Step("pooled"),
        ),
        {"layer": 0.8713740310300315, "seed": 6769, "n": 1, "parts": "signed", "groups": 3},
        "suffix",
    ),
    "a value before the site is written to": (
        (
            Step("dropout_", b=-1, k=3),
            Step("elu_", a=-3, b=-2),
            Step("f.copy_", a=-2, b=-3, keep="replace"),
            Step("pooled"),
        ),
        {"layer": 0.3066751307393484, "seed": 12306, "chunk": 2},
        "full",
    ),
    "a view in the model is a copy of another layout": (
        (
            Step("turned", keep="replace"),
            Step("f.flat_view"),
            Step("f.index_add_", b=-3, k=2),
            Step("f.relu_", a=-3, b=-2, k=3),
            Step("rectified"),
        ),
        {"layer": 0.0, "seed": 13906, "dtype": torch.float32, "parts": "signed", "chunk": 2},
        "full",
    ),
    "what a skipped call keeps is read later": (
        (Step("remembers"), Step("recall", keep="replace"), Step("flat")),
        {"layer": 0.375, "seed": 37096, "n": 1, "dtype": torch.float32},
        "suffix",
    ),
}


@pytest.mark.parametrize("fault", FOUND)
def test_smallest_programs_of_faults(fault):
    steps, settings, path = FOUND[fault]
    outcome, about = fuzz.compare(fuzz.replace(CASE, steps=steps, **settings))
    assert outcome == path, about


@pytest.mark.parametrize("first", range(0, 120, 40))
def test_random_programs(first):
    (row,) = fuzz.measure(f"{first}-{first + 39}")
    assert row["wrong"] == []
    assert row["outcomes"]["suffix"] > 20, "else the fast path is not looked at"


def test_a_fault_is_found_and_made_small(monkeypatch):
    monkeypatch.setattr(Follower, "rename", lambda *_: None)  # then an alias passes for the value
    steps = (Step("conv"), Step("tanh", keep="discard"), *FOUND[next(iter(FOUND))][0][1:])
    case = fuzz.replace(CASE, steps=steps, layer=0.9, seed=1)
    outcome, about = fuzz.compare(case)
    assert (outcome, about.partition(":")[0]) == ("differs", "auto (suffix)")
    assert [step.op for step in fuzz.minimal(case).steps] == ["conv", "relu_", "pooled"]


def test_what_does_not_run_does_not_count():
    steps = (Step("spread"), Step("f.mul_"), Step("pooled"))
    outcome, about = fuzz.compare(fuzz.replace(CASE, steps=steps))
    assert (outcome, about.partition(":")[0]) == ("void", "RuntimeError")


def test_smaller_programs_lack_a_step_or_a_block():
    block = (Step("tanh"), Step("view"))
    steps = (Step("conv"), Step("block", steps=block))
    assert [[step.op for step in fewer] for fewer in smaller(steps)] == [
        ["block"],
        ["conv"],
        ["conv", "tanh", "view"],
        ["conv", "block"],
        ["conv", "block"],
    ]


def test_programs_by_hand():
    model = Program((Step("f.mul_"), Step("f.square", a=0), Step("pooled")))
    x = torch.ones(1, 4, 6, 6)
    expected = model.parts[2](torch.full_like(x, 0.3 * 0.49))
    torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(x, torch.full_like(x, -0.7))


def test_the_command_writes_rows_and_goes_on(tmp_path):
    words = ["fuzz", "--seeds", "3", "--start", "7", "--out", str(tmp_path)]
    outcome = CliRunner().invoke(app, words, catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    found = results.read(tmp_path)["fuzz"]
    assert [row["case"] for row in found["rows"]] == ["7-9"]
    assert sum(found["rows"][0]["outcomes"].values()) == 3
    title, section = SECTIONS["fuzz"]
    assert "random programs that run" in section(found)[0], title


def test_seeds_in_pieces():
    assert fuzz.cases(600, 100) == ["100-349", "350-599", "600-699"]
