"""The fair comparison on a tiny network, and its tables."""

import json
import sys

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from benchmarks import __main__ as command_line
from benchmarks import fair, report, results
from captum_clustered.methods import METHODS
from captum_clustered.statistics import paired_difference


class _Models:
    """Stands for a module that holds a network."""

    @staticmethod
    def net():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 20, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(20, 4),
        ), _transform


def _transform(picture):
    pixels = torch.frombuffer(bytearray(picture.resize((16, 16)).tobytes()), dtype=torch.uint8)
    return pixels.view(16, 16, 3).movedim(2, 0) / 255 - 0.5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the results of a run, and what the run showed."""
    folder = tmp_path_factory.mktemp("fair")
    lines = ["path,class,boxes"]
    for number in range(6):
        picture = Image.radial_gradient("L").resize((16, 16)).rotate(60 * number)
        Image.merge("RGB", (picture, picture.rotate(90), picture)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number % 4},2 2 9 9")
    (folder / "images.csv").write_text("\n".join(lines) + "\n")
    case = {"model": "tiny_for_fair:net", "step": 64}
    methods = ("calibrated-cam", "refined-cam", "grad-cam", "clustered-cam", "torchcam-layer-cam")
    cases = {
        "tiny": fair.Case("4", methods, **case),
        "tiny, few": fair.Case(
            "4", methods[:3], ("adcc", "sensitivity", "infidelity"), limit=2, controls=(), **case
        ),
        "tiny, frontier": fair.Case(
            "4",
            ("calibrated-cam", "floor-3", "area_weight-8", "grad-cam"),
            controls=(),
            calibrate=False,
            **case,
        ),
    }
    words = ["fair", "--data", folder / "images.csv", "--half", "second", "--report"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tiny_for_fair", _Models)
        patch.setattr(fair, "CASES", cases)
        words = [str(word) for word in (*words, "--out", folder / "out")]
        done = CliRunner().invoke(command_line.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder, done.stdout


def _rows(folder, case="tiny"):
    return [row for row in results.read(folder / "out")["fair"]["rows"] if row["case"] == case]


def test_every_method_and_control_has_its_numbers_before_and_after(made):
    rows = _rows(made[0])
    assert [row["method"] for row in rows if row["control"]] == list(fair._CONTROLS)
    assert {row["images"] for row in rows} == {3}
    assert not [row for row in rows if row["failed"]]
    for row in rows:
        by_value = ("adc", "pic", "ag", "energy", "area")
        twice = {f"{name}{suffix}" for name in by_value for suffix in ("", "_calibrated")}
        assert set(row["metrics"]) == {"insertion", "deletion", *twice}
    assert {row["images"] for row in _rows(made[0], "tiny, few")} == {2}
    assert str(made[0]) not in (made[0] / "out" / "fair.json").read_text()


def test_the_recipe_has_the_order_of_the_refined_map(made):
    recipe, refined = (row["metrics"] for row in _rows(made[0])[:2])
    for name in ("insertion", "deletion"):
        assert recipe[name]["mean"] == pytest.approx(refined[name]["mean"])


def test_other_settings_move_either_the_order_or_the_values(made):
    recipe, floor, price, _ = (row["metrics"] for row in _rows(made[0], "tiny, frontier"))
    assert "adc_calibrated" not in recipe
    assert floor["insertion"]["mean"] != pytest.approx(recipe["insertion"]["mean"])
    assert price["insertion"]["mean"] == pytest.approx(recipe["insertion"]["mean"])
    assert fair._ADDED["area_weight-8"].settings["area_weight"] == 8


def test_differences_are_paired(made):
    folder = made[0] / "out"
    lines = (folder / "evaluations" / "fair-second-tiny" / "rows.jsonl").read_text().splitlines()
    judged = [json.loads(line) for line in lines]
    ours, theirs = (
        [row["adc_calibrated"] for row in judged if row["method"] == name]
        for name in ("clustered-cam", "grad-cam")
    )
    expected = paired_difference(ours, theirs)
    row = next(row for row in _rows(made[0]) if row["method"] == "clustered-cam")
    assert row["less_base"]["adc_calibrated"]["mean"] == pytest.approx(expected.estimate)
    assert "area" not in row["less_best"]


def test_the_best_of_the_others_is_no_control_and_no_part_of_the_recipe():
    def row(method, mean, control=False):
        return {"method": method, "control": control, "metrics": {"adc_calibrated": {"mean": mean}}}

    rows = [row("fake-cam", 0.0, True), row("refined-cam", 1.0), row("grad-cam", 3.0)]
    rows += [row("hires-cam", 2.0), row("ablation-cam", None)]
    assert fair._best("adc_calibrated", "calibrated-cam", rows) == "hires-cam"
    assert fair._best("adc_calibrated", "hires-cam", rows) == "grad-cam"


def test_the_page_shows_both(made):
    folder, shown = made
    page = report.page({"fair": results.read(folder / "out")["fair"]})
    assert page in shown
    assert "| less Grad-CAM | AD | AI | AG | area | energy | insertion | deletion |" in page
    row = _rows(folder)[3]["metrics"]
    before, after = (f"{row[name]['mean']:.1f}" for name in ("adc", "adc_calibrated"))
    assert f"| {before} → {after} |" in page


def test_the_guide_gets_the_tables(made, tmp_path):
    guide = tmp_path / "which-method.md"
    guide.write_text("Before.\n<!-- table fair tiny -->old<!-- end -->\nAfter.\n")
    assert guide in report.write(made[0] / "out", tmp_path)
    text = guide.read_text()
    assert text.startswith("Before.\n<!-- table fair tiny -->\n\n3 images.\n\n|")
    assert "old" not in text
    assert "| less Grad-CAM |" in text
    assert report.fair({}) == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"half": "third"}, "`half` must be one of 'first', 'second'; got 'third'"),
        ({"cases": ("lite1",)}, "`cases` must be among lite0; .*got lite1"),
        ({"cases": ()}, "`cases` must be among .*got none"),
    ],
)
def test_wrong_plans(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fair.Plan(**{"data": tmp_path, "half": "first", **changes})


def test_all_that_is_named_is_known():
    for case in fair.CASES.values():
        assert all(name in METHODS or name in fair._ADDED for name in case.methods)
        assert all(METHODS[name].control for name in case.controls)
