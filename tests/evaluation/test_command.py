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
from captum.attr import LayerGradCam
from PIL import Image
from typer.testing import CliRunner

import captum_clustered
from captum_clustered.app import cli
from captum_clustered.clustering import CLUSTERERS
from captum_clustered.evaluation import Settings, command, running
from captum_clustered.evaluation import evaluate as run_evaluation
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.plan import FILLS, SCORES, TARGETS
from captum_clustered.evaluation.records import read_rows
from captum_clustered.methods import METHODS
from captum_clustered.metrics import Black, confidences
from captum_clustered.weighting import WEIGHTINGS

MODEL = '''
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


def labels():
    return nn.Sequential(Net(), nn.Sigmoid()), transform


def binary():
    net = Net()
    net.head = nn.Linear(8, 1)
    return net, transform


N = 6


class Twice:
    """Makes a map of another scale."""

    def __init__(self, model, layer):
        self.layer = layer

    def attribute(self, inputs, target):
        if (inputs.flatten(1).mean(1) > 1).any():
            raise KeyError("too bright to explain")
        return 2 * self.layer(inputs).mean(1, keepdim=True)


def brightness(model, images, heatmaps, target):
    return images.flatten(1).mean(1)


brightness.higher_is_better = True


def certainty(model, images, heatmaps, target):
    if (images.flatten(1).mean(1) > 1).any():
        raise KeyError("too bright to judge")
    return model(images).max(1).values


def drawn():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), transform
'''
N_IMAGES = 6
ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="there no process is forked")


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
    given = ["evaluate", "--data", data, "--model", model, "--out", out]
    given += ["--clusters", "2,3", "--device", "cpu"]
    given += [] if "--layer" in more else ["--layer", "features"]  # which would be a second one
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


PLAIN = ["--method", "clustered-cam,ablation-cam"]
FAST = [*PLAIN, "--metric", "adc,pic,ag"]


# What is written


def test_the_rows_are_what_the_classes_compute(folder):
    result = evaluate(*FAST, "--weighting", "drop", "--clusterer", "cosine", "--no-controls")
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
    options = ["--method", "clustered-score-cam", "--no-controls", "--mask-fill", mask_fill]
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
    result = evaluate(*PLAIN, "--metric", "adc,pic,insertion,deletion", "--step", 240)
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "out").iterdir()} - {".lock"}
    pictures = {f"{n}.{s}" for n in ("intervals", "insertion", "deletion") for s in ("png", "pdf")}
    texts = {
        "rows.jsonl",
        "inputs.json",
        "summary.csv",
        "summary.md",
        "summary.tex",
        "differences.csv",
    }
    assert names == pictures | texts | {"config.json"}
    for name in names - {"inputs.json"}:
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
    result = evaluate("--method", method, "--no-controls", "--limit", 2, "--batch-size", 2)
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["status"] for row in rows} == {"ok"}, rows
    assert {row["method"] for row in rows} == {method}


def test_a_table_with_classes_cases_and_boxes(folder):
    with open("data.csv", "w") as file:
        file.write("path,class,case,boxes\n")
        for i in range(N_IMAGES):
            file.write(f"images/{i}.png,{i % 4},{i // 2},{'0 0 20 30' if i else ''}\n")
    result = evaluate(
        *PLAIN, "--metric", "adc,energy,pointing,iou", "--target", "given", data="data.csv"
    )
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert all(row["target"] == row["label"] == int(row["image"][7]) % 4 for row in rows)
    assert all((row["energy"] is None) == (row["image"] == "images/0.png") for row in rows)
    assert 0 < rows[-1]["energy"] < 100
    assert table("out")[0]["energy_n"] == str(N_IMAGES - 1)
    assert all((row["object"] == "not_given") == (row["energy"] is None) for row in rows)
    summary = (folder / "out/summary.md").read_text()
    assert "bootstrap over 3 cases" in summary
    assert f"(n={N_IMAGES - 1})" in summary
    assert table("out")[0]["no_object"] == "1"


def test_help_names_every_choice():
    text = CliRunner().invoke(cli.app, ["evaluate", "--help"]).stdout
    words = re.sub(r"[,.;:]", " ", re.sub(r"-\n\s+", "-", text)).split()
    for choices in (METHODS, METRICS, CLUSTERERS, WEIGHTINGS, FILLS, SCORES, TARGETS):
        assert set(choices) - {"area"} <= set(words)


# Each method's own


def test_each_method_keeps_its_own_clusterer_unless_one_is_named(folder):
    for out, options in (("own", []), ("kmeans", ["--clusterer", "kmeans"])):
        chosen = ["--method", "clustered-score-cam", "--no-controls", "--limit", 1, *options]
        result = evaluate(*chosen, out=out)
        assert result.exit_code == 0, result.output
    import evaluated_nets

    model, transform = evaluated_nets.net()
    model.eval()
    x = transform(Image.open("images/0.png"))[None]
    target = model(x).argmax(1)
    black = Black((0.5,) * 3, (0.25,) * 3)
    for out, settings in (("own", {}), ("kmeans", {"clusterer": "kmeans"})):
        cam = captum_clustered.ClusteredLayerScore(model, model.features, n_clusters=3, **settings)
        expected = confidences(model, x, cam.attribute(x, target), target, fill=black)
        row = read_rows(folder / out)["0.png", "clustered-score-cam", 3, None]
        assert row["masked_score"] == pytest.approx(expected.masked.item(), rel=1e-6)
    config = json.loads((folder / "own/config.json").read_text())["compared"]
    assert config["clusterer"] == "own"


def test_a_clusterer_that_ignores_the_number_has_one_row(folder):
    result = evaluate(*PLAIN, "--clusterer", "every-map", "--limit", 1)
    assert result.exit_code == 0, result.output
    found = [(row["method"], row["clusters"]) for row in numbers("out")]
    assert found.count(("clustered-cam", None)) == 1
    assert found.count(("random-groups", None)) == 1
    assert ("contiguous-groups", 2) in found  # whose clusterer is its own
    assert ("contiguous-groups", 3) in found


def test_options_may_be_repeated(folder):
    options = ["--method", "grad-cam", "--method", "clustered-cam,egrad-cam", "--no-controls"]
    options += ["--metric", "adc", "--metric", "ag", "--clusters", "4", "--limit", 1]
    result = evaluate(*options)
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert [(row["method"], row["clusters"]) for row in rows] == [
        ("grad-cam", None), ("clustered-cam", 2), ("clustered-cam", 3), ("clustered-cam", 4),
        ("egrad-cam", None),
    ]  # fmt: skip
    assert {"adc", "ag"} <= set(rows[0])
    assert "pic" not in rows[0]


def test_one_class_for_all_images(folder):
    result = evaluate("--method", "grad-cam", "--no-controls", "--limit", 3, "--target", "2")
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["target"] for row in rows} == {2}
    assert rows[0]["conventions"]["target"] == "2"
    assert "score of class 2;" in (folder / "out/summary.md").read_text()


# From outside


def test_methods_and_metrics_from_outside(folder):
    pytest.importorskip("jinja2", reason="needs jinja2")
    result = evaluate(
        "--method", "evaluated_nets:Twice,captum.attr:LayerGradCam,grad-cam", "--no-controls",
        "--metric", "evaluated_nets:brightness,adc", "--html",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    import evaluated_nets

    model, transform = evaluated_nets.net()
    model.eval()
    rows = read_rows(folder / "out")
    for i in range(N_IMAGES):
        row = rows[f"{i}.png", "evaluated_nets:Twice", None, None]
        x = transform(Image.open(f"images/{i}.png"))[None]
        assert row["evaluated_nets:brightness"] == pytest.approx(x.mean().item(), abs=1e-6)
        target = model(x).argmax(1)
        heat = LayerGradCam(model, model.features).attribute(x, target).detach()
        expected = confidences(model, x, heat, target, fill=Black((0.5,) * 3, (0.25,) * 3))
        row = rows[f"{i}.png", "captum.attr:LayerGradCam", None, None]
        assert row["masked_score"] == pytest.approx(expected.masked.item(), rel=1e-5)
    config = json.loads((folder / "out/config.json").read_text())["compared"]
    assert config["metrics"] == ["adc", "area", "evaluated_nets:brightness"]
    assert config["variants"][0] == "evaluated_nets:Twice"
    summary = (folder / "out/summary.md").read_text()
    assert "| Method | images | ADC ↓ | Area | evaluated_nets:brightness ↑ |" in summary
    assert "| evaluated_nets:Twice |" in summary
    page = (folder / "out/report.html").read_text()
    assert "evaluated_nets:Twice" in page
    assert ">evaluated_nets:brightness</button>" in page


def test_maps_from_outside_may_be_arrays_without_a_channel(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / "arrays.py").write_text(
        "class Flat:\n"
        "    def __init__(self, model, layer):\n        pass\n"
        "    def attribute(self, inputs, target):\n"
        "        return inputs.mean(1).numpy()\n"
    )
    result = evaluate("--method", "arrays:Flat", "--no-controls", "--limit", 2, "--html")
    assert result.exit_code == 0, result.output
    assert [row["status"] for row in numbers("out")] == ["ok", "ok"]


def test_what_is_wrong_from_outside_names_itself(folder):
    Image.new("RGB", (40, 30), (220, 220, 220)).save("images/b.png")
    result = evaluate(
        "--method", "evaluated_nets:Twice,grad-cam", "--no-controls", "--batch-size", 3,
        "--metric", "evaluated_nets:certainty",
    )  # fmt: skip
    assert result.exit_code == 2, result.output
    failed = {row["method"]: row for row in numbers("out") if row["status"] == "failed"}
    assert len(failed) == 2
    lines = MODEL.splitlines()
    for name, begin, verb, indent in (
        ("evaluated_nets:Twice", "`method` evaluated_nets:Twice", "explain", " " * 12),
        ("grad-cam", "`metric` evaluated_nets:certainty", "judge", " " * 8),
    ):
        row = failed[name]
        words = f"too bright to {verb}"
        number = lines.index(f'{indent}raise KeyError("{words}")') + 1
        assert row["reason"] == (
            f"ValueError: {begin} failed (KeyError: '{words}'; evaluated_nets.py:{number})."
        )
        assert row["place"] == f"evaluated_nets.py:{number}"


def test_mappings_in_python(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    settings = Settings(
        data=Path("images"), model="evaluated_nets:net", out=Path("out"), layer="features",
        device="cpu", methods=("theirs", "grad-cam"), metrics=("one", "adc"), controls=False,
        limit=2,
    )  # fmt: skip
    outcome = run_evaluation(
        settings,
        lambda line: None,
        methods={**METHODS, "theirs": LayerGradCam},
        metrics={**METRICS, "one": lambda model, images, heatmaps, target: [1.0] * len(images)},
    )
    assert (outcome.rows, outcome.failed_rows) == (4, 0)
    assert {row["one"] for row in numbers("out")} == {1.0}
    assert table("out")[0]["method"] == "theirs"


# DICOM and volumes


def _dicom(path, pixels):
    pydicom = pytest.importorskip("pydicom", reason="needs pydicom")
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, UltrasoundImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UltrasoundImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName = "Doe^Secret"
    data.NumberOfFrames = len(pixels)
    data.Rows, data.Columns = pixels.shape[1:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation = 7, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)


def test_dicom_files_are_read_with_their_frame_and_mask(folder):
    frames = np.random.default_rng(0).integers(0, 255, (2, 30, 40), np.uint8)
    (folder / "scans").mkdir()
    _dicom(folder / "scans/a.dcm", frames)
    _dicom(folder / "scans/noname", frames[::-1].copy())
    masks = np.zeros((2, 30, 40), np.uint8)
    masks[1, :, :20] = 255
    _dicom(folder / "scans/mask.dcm", masks)
    Path("data.csv").write_text(
        "path,mask\nscans/a.dcm,scans/mask.dcm\nscans/noname,scans/mask.dcm\n"
    )
    options = ["--method", "clustered-cam,sum-of-maps", "--no-controls", "--frame", 2]
    result = evaluate(*options, "--metric", "adc,energy", "--html", data="data.csv")
    assert result.exit_code == 0, result.output
    rows = read_rows(folder / "out")
    assert {row["status"] for row in rows.values()} == {"ok"}
    import evaluated_nets

    model, transform = evaluated_nets.net()
    for name, frame in (("scans/a.dcm", frames[1]), ("scans/noname", frames[0])):
        x = transform(Image.fromarray(frame).convert("RGB"))[None]
        row = rows[name, "sum-of-maps", None, None]
        assert row["original_score"] == pytest.approx(model(x).softmax(1).max().item(), rel=1e-5)
        assert 0 < row["energy"] < 100  # of the second frame; the mask's first is empty
    for path in (folder / "out").rglob("*"):
        assert not path.is_file() or b"Secret" not in path.read_bytes()
    # in a folder they are found by their suffix
    result = evaluate("--method", "grad-cam", "--no-controls", data="scans", out="new")
    assert {row["image"] for row in numbers("new")} == {"a.dcm", "mask.dcm"}


VOLUMES = """
import torch
from torch import nn


def volumes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
                          nn.Linear(6, 2))
    return model, lambda volume: torch.from_numpy(volume)[None] * 2 - 1
"""


def test_volumes_through_a_network_of_three_dimensions(folder):
    (folder / "evaluated_volumes.py").write_text(VOLUMES)
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    np.save("scans/a.npy", rng.random((7, 8, 9)).astype(np.float32))
    np.save("scans/b.npy", rng.random((7, 8, 9)).astype(np.float32))
    (folder / "masks").mkdir()
    mask = np.zeros((7, 8, 9))
    mask[:3] = 5
    np.save("masks/a.npy", mask)
    Path("data.csv").write_text("path,mask\nscans/a.npy,masks/a.npy\nscans/b.npy,\n")
    metrics = "adc,pic,ag,complement,adcc,coherency,insertion,deletion,pointing,energy,iou"
    methods = "clustered-cam,ablation-cam,grad-cam,clustered-score-cam"
    result = evaluate(
        "--method", methods, "--metric", metrics, "--layer", "1", "--step", 100, "--html",
        model="evaluated_volumes:volumes", data="data.csv",
    )  # fmt: skip
    sys.modules.pop("evaluated_volumes", None)
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["status"] for row in rows} == {"ok"}, rows
    assert all((row["energy"] is None) == (row["image"] == "scans/b.npy") for row in rows)
    ones = next(row for row in rows if row["method"] == "fake-cam")
    assert ones["energy"] == pytest.approx(100 * 3 / 7, abs=2)
    config = json.loads((folder / "out/config.json").read_text())["conventions"]
    assert config["fill"] == "Black(mean=(0.5,), std=(0.5,))"
    assert "<img" in (folder / "out/pages/1.html").read_text()


def test_images_and_volumes_do_not_mix(folder):
    np.save("images/v.npy", np.zeros((2, 3, 4), np.float32))
    line = one_error(evaluate(*PLAIN))
    assert re.search(r"images must be all volumes or none; got images/v\.npy and images/0", line)


# What goes wrong


def test_a_failing_image_has_its_reason_and_the_run_goes_on(folder):
    (folder / "images/a.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 30), "white").save("images/b.png")
    result = evaluate(*FAST, "--no-controls", "--batch-size", 4, model="evaluated_nets:fussy")
    assert result.exit_code == 2, result.output  # as that of explain
    words = "2 images failed: rows.jsonl says why, and --retry-failed tries again"
    assert words in result.stdout
    assert "  b.png: RuntimeError: too bright\n" in result.stdout
    summary = Path("out/summary.md").read_text()
    assert "2 of 8 images failed" in summary
    assert "italics" not in summary  # there are no controls
    reasons = {row["image"]: row.get("reason") for row in numbers("out")}
    assert reasons["a.png"].startswith("ValueError: image must be in a format that Pillow reads")
    assert reasons["b.png"] == "RuntimeError: too bright"
    failed = {row["image"]: row for row in numbers("out") if row["status"] == "failed"}
    assert failed["b.png"]["error"] == "RuntimeError"
    line = MODEL.splitlines().index('            raise RuntimeError("too bright")') + 1
    assert failed["b.png"]["place"] == f"evaluated_nets.py:{line}"
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
        (["--method", "clustered"], "`methods` must be among clustered-cam,"),
        (["--method", "nowhere:cam"], "`method` 'nowhere:cam' cannot be imported (ModuleNotFound"),
        (
            ["--metric", "evaluated_nets:no"],
            "`metric` must name something in module evaluated_nets",
        ),
        (["--target", "7"], "`target` must be a class from 0 to 3, since the model has 4; got 7."),
        (["--weighting", "dorp"], "`weighting` must be one of"),
        (["--clusterer", "kmean"], "`clusterer` must be one of"),
        (["--metric", "adc,iou"], "got iou, but no image has a mask or boxes"),
        (["--target", "given"], "6 of 6 have none, the first being 0.png."),
        (["--fill", "white"], "`fill` must be one of 'black', 'mean', 'blur'"),
        (["--score", "identity", "--metric", "ag"], "`score` must be a probability"),
        (
            ["--model", "evaluated_nets:certain", "--layer", "0.features"],
            "`score` must be identity for a model that returns probabilities; got softmax.",
        ),
        (["--layer", "fetures"], "`layer` must be the name of a module in the model"),
        (["--data", "gone"], "`data` must be a folder, an image or a CSV file; got gone"),
        (["--out", "evaluated_nets.py"], "`out` must be a folder; got evaluated_nets.py"),
        (["--device", "tpu"], "`device` must be one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_wish_is_one_line(folder, options, words):
    assert words in one_error(evaluate(*options))
    assert not (folder / "out").exists()


@pytest.mark.parametrize("model", ["certain", "labels"])
def test_probabilities_are_judged_as_they_are(folder, model):
    refused = evaluate("--layer", "0.features", model=f"evaluated_nets:{model}")
    assert "`score` must be identity for a model that returns probabilities" in one_error(refused)
    result = evaluate(
        *FAST, "--no-controls", "--layer", "0.features", "--score", "identity",
        model=f"evaluated_nets:{model}",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["conventions"]["score"] for row in rows} == {"probabilities"}
    for row in rows:
        before, after = row["original_score"], row["masked_score"]
        gain = 100 * max(after - before, 0) / (1 - before)
        assert row["ag"] == pytest.approx(gain, abs=1e-6)


def test_one_logit_is_judged_by_its_sigmoid(folder):
    result = evaluate(
        "--method", "clustered-cam,group-cam", "--no-controls", "--metric", "adc,ag",
        model="evaluated_nets:binary",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    rows = numbers("out")
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["conventions"]["score"] for row in rows} == {"sigmoid"}
    assert all(0 < row["original_score"] < 1 for row in rows)
    config = json.loads((folder / "out/config.json").read_text())
    assert config["compared"]["score"] == "sigmoid"


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
    assert evaluate("--method", "ablation-cam", "--limit", 2).exit_code == 0
    first = numbers("out")
    assert evaluate("--method", "grad-cam,ablation-cam", "--limit", 2).exit_code == 0
    both = numbers("out")
    assert [row for row in both if row["method"] != "grad-cam"] == sorted(first, key=both.index)
    assert table("out")[0]["method"] == "grad-cam"
    assert evaluate("--method", "grad-cam,ablation-cam", "--limit", 2, out="new").exit_code == 0
    assert numbers("new") == both
    assert table("new") == table("out")


def test_metrics_can_be_added_later(folder):
    options = ["--method", "ablation-cam", "--limit", 2, "--no-controls"]
    assert evaluate(*options, "--metric", "adc").exit_code == 0
    first = numbers("out")
    result = evaluate(*options, "--metric", "adc,deletion,pic")
    assert result.exit_code == 0, result.output
    both = numbers("out")
    assert [{name: row[name] for name in old} for old, row in zip(first, both, strict=True)] == [
        {**old, "conventions": row["conventions"]} for old, row in zip(first, both, strict=True)
    ]
    assert evaluate(*options, "--metric", "adc,deletion,pic", out="new").exit_code == 0
    assert numbers("new") == both
    assert table("new") == table("out")
    assert "out has 2 of 2 rows" in evaluate(*options, "--metric", "adc,deletion,pic").stderr


def test_some_of_the_methods_and_metrics_can_be_shown(folder):
    options = ["--limit", 2, "--no-controls"]
    every = ["--method", "ablation-cam,grad-cam", "--metric", "adc,deletion"]
    assert evaluate(*options, *every).exit_code == 0
    whole, tables = (folder / "out/rows.jsonl").read_bytes(), table("out")
    result = evaluate(*options, "--method", "grad-cam", "--metric", "deletion")
    assert result.exit_code == 0, result.output
    assert (
        "out also has the variants ablation-cam: their numbers stay, and are not" in result.stderr
    )
    assert "out also has the metrics adc: their numbers stay, and are not shown" in result.stderr
    assert "out has 2 of 2 rows" in result.stderr
    assert sorted((folder / "out/rows.jsonl").read_bytes().splitlines()) == sorted(
        whole.splitlines()
    )
    (line,) = table("out")
    assert line["method"] == "grad-cam"
    assert "adc" not in line
    assert line == {name: tables[1][name] for name in line}
    # what is added to a part is added to the rows that are there
    assert evaluate(*options, "--method", "grad-cam", "--metric", "pic").exit_code == 0
    result = evaluate(*options, *every)
    assert "out has 4 of 4 rows" in result.stderr
    assert table("out") == tables
    config = json.loads((folder / "out/config.json").read_text())["compared"]
    assert config["metrics"] == ["adc", "deletion", "area", "pic"]
    assert config["step"] == 224


def test_an_image_that_changed_is_not_mixed_with_the_old_one(folder):
    options = ["--method", "ablation-cam", "--limit", 2, "--no-controls"]
    assert evaluate(*options).exit_code == 0
    before = (folder / "out/rows.jsonl").read_bytes()
    Image.new("RGB", (40, 30), (9, 9, 9)).save("images/0.png")
    line = one_error(evaluate("--method", "grad-cam,ablation-cam", *options[2:]))
    assert line == (
        "`data` must be the files of which out has rows; 0.png has another content now. Name "
        "another folder, or put the old files back."
    )
    assert (folder / "out/rows.jsonl").read_bytes() == before


def test_failed_rows_are_tried_again_when_asked(folder):
    good = (folder / "images/0.png").read_bytes()
    (folder / "images/0.png").write_bytes(b"no picture")
    options = ["--method", "ablation-cam,grad-cam", "--limit", 2, "--no-controls"]
    assert evaluate(*options).exit_code == 2
    (folder / "images/0.png").write_bytes(good)
    assert evaluate(*options).exit_code == 2
    result = evaluate(*options, "--retry-failed")
    assert result.exit_code == 0, result.output
    assert "2 failed rows tried again" in result.stderr
    assert evaluate(*options, out="new").exit_code == 0
    assert numbers("out") == numbers("new")
    assert "0 failed rows tried again" in evaluate(*options, "--retry-failed").stderr


def test_the_results_may_lie_in_the_data(folder):
    for _ in range(2):
        result = evaluate("--method", "grad-cam", "--no-controls", "--html", out="images/out")
        assert result.exit_code == 0, result.output
    assert len(numbers("images/out")) == N_IMAGES


def test_what_is_to_be_done_is_said_before_it_starts(folder):
    result = evaluate("--method", "grad-cam", "--no-controls")
    assert f"note: {N_IMAGES} images x 1 variant = {N_IMAGES} rows\n" in result.stderr


def test_what_all_will_cost_is_said_after_the_first_rows(folder, monkeypatch):
    monkeypatch.setattr(command, "_SOON", 0)
    result = evaluate("--method", "grad-cam,ablation-cam", "--no-controls", "--batch-size", 2)
    assert result.exit_code == 0, result.output
    found = re.search(
        rf"note: {N_IMAGES} images x 2 variants, each row as long as (\d+) forward passes of an "
        r"image: about \d+ seconds? to go\n",
        result.stderr,
    )
    assert found, result.stderr
    assert int(found[1]) >= 1


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=ON_LINUX)])
def test_images_are_read_ahead_with_the_same_rows(folder, monkeypatch, workers):
    monkeypatch.syspath_prepend(folder)
    Path("images/1.png").write_bytes(b"no picture")
    given = []
    loader = running.DataLoader
    monkeypatch.setattr(
        running, "DataLoader", lambda *a, **k: given.append(k["num_workers"]) or loader(*a, **k)
    )
    settings = {"data": Path("images"), "model": "evaluated_nets:net", "layer": "features"}
    settings |= {"methods": ("grad-cam",), "controls": False, "device": "cpu", "batch_size": 2}
    for out, number in (("ahead", workers), ("alone", 0)):
        run_evaluation(Settings(**settings, out=Path(out), workers=number), lambda line: None)
    assert given == [workers] * (workers > 0)
    ahead, alone = numbers("ahead"), numbers("alone")
    assert ahead == alone
    assert [row["status"] for row in ahead].count("failed") == 1
    assert json.loads(Path("ahead/config.json").read_text())["machine"]["workers"] == workers


def test_a_class_that_the_model_does_not_have_is_named(folder):
    Path("data.csv").write_text("path,class\nimages/0.png,2\nimages/1.png,heron\n")
    line = one_error(evaluate("--method", "grad-cam", "--target", "given", data="data.csv"))
    assert "images/1.png in line 3 has 'heron', which is no name and no index of its" in line


def test_an_evaluation_has_one_class_for_each_image(folder):
    for target in ("0,1", "top:2"):
        line = one_error(evaluate("--method", "grad-cam", "--target", target))
        assert line.startswith("`target` must be one class of each image in an evaluation; got ")
    assert not (folder / "out").exists()


def test_random_weights_are_the_same_in_every_run(folder):
    named = {"model": "evaluated_nets:drawn"}
    command = ["--method", "grad-cam", "--layer", "0", "--no-controls", "--limit", 2]
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


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_says_how_to_go_on(folder, how):
    if signal.getsignal(how) is signal.SIG_IGN:
        pytest.skip("the shell has its commands in the background ignore it")
    rows = folder / "out/rows.jsonl"
    process = start("captum_clustered", *arguments(*LONG), PAUSE="0.02")
    deadline = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(how)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "stopped; the same command goes on from here" in output
    assert "Traceback" not in output


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


def test_every_method_and_control_is_calibrated(folder):
    done = evaluate("--method", "calibrated-cam", *FAST[2:], "--calibrate", "--limit", 3)
    assert done.exit_code == 0, done.output
    assert {row["method"] for row in table("out")} > {"calibrated-cam", "fake-cam", "random-map"}
    assert all(
        row[f"{name}_calibrated"] != "" for row in table("out") for name in ("adc", "pic", "ag")
    )
    summary = Path("out/summary.md").read_text()
    assert "| ADC ↓ | ADC, calibrated ↓ |" in summary
    assert "- Calibrated: each map on the one of a few rising curves" in summary
    again = evaluate("--method", "calibrated-cam", *FAST[2:], "--limit", 3)
    assert again.exit_code == 0
    assert "out also has the metrics adc_calibrated" in again.stderr
