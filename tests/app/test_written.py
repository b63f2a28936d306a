"""What `explain` writes: files, records, and numbers that are those of the classes."""

import json
import platform
from pathlib import Path

import captum
import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import captum_clustered
from captum_clustered import ClusteredLayerAblation
from captum_clustered.app import units
from captum_clustered.clustering import KMeans
from captum_clustered.heatmap import normalize
from command_line import explain, load_net, one_error


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
