"""The command evaluate as a whole: started, killed, started again, and in several processes."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import captum_clustered
from captum_clustered.app import cli
from captum_clustered.clustering import CLUSTERERS
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.plan import FILLS, SCORES, TARGETS
from captum_clustered.evaluation.records import read_rows
from captum_clustered.methods import METHODS
from captum_clustered.metrics import Black, confidences
from captum_clustered.weighting import WEIGHTINGS

MODEL = """
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        if "RANK" in os.environ:
            Path("seen-by-" + os.environ["RANK"]).touch()
        time.sleep(float(os.environ.get("PAUSE", 0)))
        return self.head(4 * self.pool(self.features(x)).flatten(1))


def transform(image):  # torchvision takes long to load
    pixels = torch.from_numpy(np.array(image.resize((24, 20)))).movedim(2, 0)
    return (pixels / 255 - 0.5) / 0.25


def net():
    return Net(), transform


class Fussy(Net):
    def forward(self, x):
        if x.shape[0] and (x.flatten(1).mean(1) > 1.5).any():
            raise RuntimeError("too bright")
        return super().forward(x)


def fussy():
    return Fussy(), transform


def certain():
    return nn.Sequential(Net(), nn.Softmax(1)), transform


def drawn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), transform
"""
N_IMAGES = 6


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of models and a folder of images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "evaluated_nets", raising=False)
    (tmp_path / "evaluated_nets.py").write_text(MODEL)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for i in range(N_IMAGES):
        pixels = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 30)).save(tmp_path / f"images/{i}.png")
    yield tmp_path
    sys.modules.pop("evaluated_nets", None)


def arguments(*more, model="evaluated_nets:net", out="out", data="images"):
    given = ["evaluate", "--data", data, "--model", model, "--layer", "features", "--out", out]
    given += ["--clusters", "2,3", "--device", "cpu"]
    return [str(argument) for argument in (*given, *more)]


def evaluate(*more, **named):
    return CliRunner().invoke(cli.app, arguments(*more, **named))


def one_error(result):
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("captum-clustered: error: ")
    return line.removeprefix("captum-clustered: error: ")


def table(out):
    """The summary without the times, which no two runs share."""
    with open(f"{out}/summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    return [{name: v for name, v in row.items() if name != "seconds_median"} for row in rows]


def numbers(out):
    """All rows without the times, in the order of the file."""
    text = Path(out, "rows.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


FAST = ["--methods", "clustered-cam,ablation-cam", "--metrics", "adc,pic,ag"]


# What is written


def test_the_rows_are_what_the_classes_compute(folder):
    result = evaluate(*FAST, "--weightings", "drop", "--clusterer", "cosine", "--no-controls")
    assert result.exit_code == 0, result.output
    import evaluated_nets

    model, transform = evaluated_nets.net()
    model.eval()
    black = Black((0.5,) * 3, (0.25,) * 3)
    rows = read_rows(folder / "out")
    assert len(rows) == N_IMAGES * 3
    for i in range(N_IMAGES):
        x = transform(Image.open(f"images/{i}.png"))[None]
        target = model(x).argmax(1)
        for k in (2, 3):
            cam = captum_clustered.ClusteredLayerAblation(
                model, model.features, clusterer="cosine", n_clusters=k, weighting="drop"
            )
            expected = confidences(model, x, cam.attribute(x, target), fill=black)
            row = rows[f"{i}.png", "clustered-cam", k, "drop"]
            assert row["status"] == "ok"
            assert row["target"] == target.item()
            assert row["adc"] == pytest.approx(expected.average_drop.item(), abs=1e-4)
            assert row["pic"] == expected.increase_in_confidence.item()
            assert row["ag"] == pytest.approx(expected.average_gain.item(), abs=1e-4)
            assert row["area"] == pytest.approx(expected.area.item(), abs=1e-4)
            assert row["conventions"] == {
                "score": "softmax",
                "target": "predicted",
                "fill": "Black(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))",
                "normalize": "minmax",
                "interpolation": "bilinear",
            }


@pytest.mark.parametrize(("mask_fill", "own"), [("own", True), ("black", False)])
def test_what_masks_the_image_fills_as_it_is_told(folder, mask_fill, own):
    options = ["--methods", "clustered-score-cam", "--no-controls", "--mask-fill", mask_fill]
    result = evaluate(*options, "--clusters", "3", "--limit", "1", "--clusterer", "agglomerative")
    assert result.exit_code == 0, result.output
    import evaluated_nets

    model, transform = evaluated_nets.net()
    model.eval()
    black = Black((0.5,) * 3, (0.25,) * 3)
    x = transform(Image.open("images/0.png"))[None]
    cam = captum_clustered.ClusteredLayerScore(
        model, model.features, n_clusters=3, fill=0.0 if own else black
    )
    target = model(x).argmax(1)
    expected = confidences(model, x, cam.attribute(x, target), target, fill=black)
    row = read_rows(folder / "out")["0.png", "clustered-score-cam", 3, None]
    assert row["masked_score"] == pytest.approx(expected.masked.item(), rel=1e-6)


def test_tables_figures_and_settings_are_written(folder):
    result = evaluate(*FAST, "--metrics", "adc,pic,insertion,deletion", "--step", 240)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "out").iterdir()} - {".lock"}
    pictures = {f"{n}.{s}" for n in ("intervals", "insertion", "deletion") for s in ("png", "pdf")}
    texts = {"rows.jsonl", "summary.csv", "summary.md", "summary.tex", "differences.csv"}
    assert names == pictures | texts | {"config.json"}
    for name in names:
        assert str(folder.joinpath("out", name).relative_to(folder)) in result.stdout
    config = json.loads((folder / "out/config.json").read_text())
    assert config["compared"]["versions"]["torch"] == torch.__version__
    assert config["compared"]["layer"] == "features"
    assert config["conventions"]["step"] == 240
    assert config["machine"]["processes"] == 1


def test_controls_stand_beside_the_methods(folder):
    assert evaluate(*FAST, "--limit", 2).exit_code == 0
    lines = table("out")
    found = {line["method"] for line in lines if line["control"] == "1"}
    assert found >= {"fake-cam", "random-map", "centre-gaussian", "sum-of-maps"}
    assert found >= {"random-groups", "contiguous-groups"}
    assert {line["images"] for line in lines} == {"2"}
    # not one random map for all images
    maps = [row for row in numbers("out") if row["method"] == "random-map"]
    assert maps[0]["area"] != maps[1]["area"]


@pytest.mark.parametrize("method", ["egrad-cam", "group-cam", "score-cam", "grad-cam"])
def test_every_method_can_be_evaluated(folder, method):
    result = evaluate("--methods", method, "--no-controls", "--limit", 2, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["status"] for row in rows} == {"ok"}, rows
    assert {row["method"] for row in rows} == {method}


def test_a_table_with_classes_cases_and_boxes(folder):
    with open("data.csv", "w") as file:
        file.write("path,class,case,boxes\n")
        for i in range(N_IMAGES):
            file.write(f"images/{i}.png,{i % 4},{i // 2},0 0 20 {30 if i else 0}\n")
    result = evaluate(
        *FAST, "--metrics", "adc,energy,pointing,iou", "--target", "given", data="data.csv"
    )
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert all(row["target"] == row["label"] == int(row["image"][7]) % 4 for row in rows)
    assert all((row["energy"] is None) == (row["image"] == "images/0.png") for row in rows)
    assert 0 < rows[-1]["energy"] < 100
    assert table("out")[0]["energy_n"] == str(N_IMAGES - 1)
    assert "bootstrap over 3 cases" in (folder / "out/summary.md").read_text()


def test_help_names_every_choice():
    text = CliRunner().invoke(cli.app, ["evaluate", "--help"]).stdout
    words = re.sub(r"-\n\s+", "-", text).replace(",", " ").replace(".", " ").split()
    for choices in (METHODS, METRICS, CLUSTERERS, WEIGHTINGS, FILLS, SCORES, TARGETS):
        assert set(choices) - {"area"} <= set(words)


# What goes wrong


def test_a_failing_image_has_its_reason_and_the_run_goes_on(folder):
    (folder / "images/a.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 30), "white").save("images/b.png")
    result = evaluate(*FAST, "--no-controls", "--batch-size", 4, model="evaluated_nets:fussy")
    assert result.exit_code == 0, result.output
    assert "2 images failed, rows.jsonl says why" in result.stdout
    reasons = {row["image"]: row.get("reason") for row in numbers("out")}
    assert reasons["a.png"].startswith("ValueError: image must be in a format that Pillow reads")
    assert reasons["b.png"] == "RuntimeError: too bright"
    assert {reasons[f"{i}.png"] for i in range(N_IMAGES)} == {None}
    assert {(line["images"], line["failed"]) for line in table("out")} == {("8", "2")}


def test_if_every_image_fails_the_command_does(folder):
    for i in range(N_IMAGES):
        Image.new("RGB", (40, 30), "white").save(f"images/{i}.png")
    result = evaluate(*FAST, "--no-controls", model="evaluated_nets:fussy")
    assert "every image failed, the first because of RuntimeError: too bright" in one_error(result)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "clustered"], "`methods` must be among clustered-cam,"),
        (["--weightings", "dorp"], "`weighting` must be one of"),
        (["--clusterer", "kmean"], "`clusterer` must be one of"),
        (["--metrics", "adc,iou"], "got iou, but no image has a mask or boxes"),
        (["--target", "given"], "6 of 6 have none, the first being 0.png."),
        (["--fill", "white"], "`fill` must be one of 'black', 'mean', 'blur'"),
        (["--score", "identity", "--metrics", "ag"], "`score` must be a probability"),
        (
            ["--model", "evaluated_nets:certain", "--layer", "0.features"],
            "`score` must be identity for a model that returns probabilities; got softmax.",
        ),
        (["--layer", "fetures"], "`layer` must be the name of a module in the model"),
        (["--data", "gone"], "`data` must be a folder or a CSV file; got gone"),
        (["--out", "evaluated_nets.py"], "`out` must be a folder; got evaluated_nets.py"),
        (["--device", "tpu"], "`device` must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_wish_is_one_line(folder, options, words):
    assert words in one_error(evaluate(*options))
    assert not (folder / "out").exists()


def test_other_settings_do_not_mix(folder):
    assert evaluate(*FAST, "--no-controls", "--limit", 2).exit_code == 0
    before = (folder / "out/rows.jsonl").read_bytes()
    result = evaluate(*FAST, "--no-controls", "--limit", 2, "--fill", "blur", "--seed", 1)
    line = one_error(result)
    assert re.search(r"fill \(Black\(.* there, Blur\(.* now\); seed \(0 there, 1 now\)", line)
    assert "Name another folder" in line
    line = one_error(evaluate(*FAST, "--no-controls"))
    assert "data (2 images" in line
    assert "limit (2 there, null now)" in line
    line = one_error(evaluate("--methods", "ablation-cam", "--no-controls", "--limit", 2))
    assert "variants (there also clustered-cam K=2 drop_per_map" in line
    other = evaluate(*FAST, "--no-controls", "--limit", 2, model="evaluated_nets:fussy")
    assert "model (evaluated_nets:net there, evaluated_nets:fussy now)" in one_error(other)
    assert (folder / "out/rows.jsonl").read_bytes() == before


def test_other_weights_do_not_mix(folder):
    assert evaluate(*FAST, "--no-controls", "--limit", 2).exit_code == 0
    text = (folder / "evaluated_nets.py").read_text().replace("manual_seed(3)", "manual_seed(4)")
    (folder / "evaluated_nets.py").write_text(text)
    del sys.modules["evaluated_nets"]
    assert "parameters (" in one_error(evaluate(*FAST, "--no-controls", "--limit", 2))


def test_methods_can_be_added_later(folder):
    assert evaluate("--methods", "ablation-cam", "--limit", 2).exit_code == 0
    first = numbers("out")
    assert evaluate("--methods", "grad-cam,ablation-cam", "--limit", 2).exit_code == 0
    both = numbers("out")
    assert [row for row in both if row["method"] != "grad-cam"] == sorted(first, key=both.index)
    assert table("out")[0]["method"] == "grad-cam"
    assert evaluate("--methods", "grad-cam,ablation-cam", "--limit", 2, out="new").exit_code == 0
    assert numbers("new") == both
    assert table("new") == table("out")


def test_random_weights_are_the_same_in_every_run(folder):
    named = {"model": "evaluated_nets:drawn"}
    command = ["--methods", "grad-cam", "--layer", "0", "--no-controls", "--limit", 2]
    assert evaluate(*command, **named).exit_code == 0
    assert evaluate(*command, **named).exit_code == 0
    assert evaluate(*command, out="new", **named).exit_code == 0
    assert numbers("new") == numbers("out")


# Interruptions and processes


LONG = [*FAST, "--no-controls", "--clusters", "2,3,4,5", "--batch-size", "2"]


@pytest.fixture
def reference(folder):
    """An uninterrupted run in one process."""
    result = evaluate(*LONG, out="reference")
    assert result.exit_code == 0, result.output
    return "reference"


def test_a_killed_run_goes_on_and_ends_with_the_same_table(folder, reference):
    rows = folder / "out/rows.jsonl"
    command = ["captum_clustered", *arguments(*LONG)]
    process = start(*command, PAUSE="0.01")
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 10):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = rows.read_bytes()
    n_whole = left.count(b"\n")
    assert 10 <= n_whole < len(numbers(reference))
    # as if it had been killed while it wrote
    rows.write_bytes(left[: left.rfind(b"\n") + 1] + b'{"image": "0.p')

    result = evaluate(*LONG)
    assert result.exit_code == 0, result.output
    assert f"out has {n_whole} of {len(numbers(reference))} rows" in result.stderr
    # times and all, what was there is there
    assert set(left.splitlines()[:n_whole]) <= set(rows.read_bytes().splitlines())
    assert numbers("out") == numbers(reference)
    assert table("out") == table(reference)


def test_two_processes_end_with_the_same_table(folder, reference):
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "captum_clustered", *arguments(*LONG)]
    process = start(*torchrun, *command)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert (folder / "seen-by-0").exists()
    assert (folder / "seen-by-1").exists()
    assert json.loads((folder / "out/config.json").read_text())["machine"]["processes"] == 2
    assert not list(folder.glob("out/rows.*.jsonl"))
    assert numbers("out") == numbers(reference)
    assert table("out") == table(reference)


def test_one_process_goes_on_where_three_stopped(folder, reference):
    lines = (folder / reference / "rows.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "out").mkdir()
    (folder / "out/config.json").write_bytes((folder / reference / "config.json").read_bytes())
    for rank, name in enumerate(("rows.jsonl", "rows.1.jsonl", "rows.2.jsonl")):
        part = lines[rank::4]
        (folder / "out" / name).write_bytes(b"".join(part)[:-9])  # all were writing
    assert evaluate(*LONG).exit_code == 0
    assert numbers("out") == numbers(reference)
    assert table("out") == table(reference)
    assert not list(folder.glob("out/rows.*.jsonl"))


def test_a_full_disk_ends_the_run_with_the_rows_safe(folder, reference):
    resource = pytest.importorskip("resource", reason="there are no such limits")
    room = 5000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        result = evaluate(*LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    words = "out/rows.jsonl cannot be written (File too large). All rows before this one are safe"
    assert words in one_error(result)
    text = (folder / "out/rows.jsonl").read_bytes()
    assert 0 < len(text) <= room
    assert text.endswith(b"\n")
    assert evaluate(*LONG).exit_code == 0
    assert numbers("out") == numbers(reference)
