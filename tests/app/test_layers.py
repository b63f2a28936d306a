"""Several layers, and numbers of groups that are chosen."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from captum_clustered import ClusteredLayerAblation
from captum_clustered.clustering import Agglomerative
from command_line import explain, load_net, one_error, run

TWO = """
import torch
from torch import nn
from nets import transform


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU())
        self.second = nn.Conv2d(10, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.pool(self.second(self.first(x))).tanh().flatten(1))


def net():
    return Two(), transform
"""


@pytest.fixture
def two(folder):
    (folder / "two.py").write_text(TWO)
    return folder


def _data(page):
    found = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    return json.loads(found.group(1))


# Layers


@pytest.mark.parametrize("layers", [["second,first"], ["second", "--layer", "first"]])
def test_several_layers_stand_side_by_side(two, layers):
    result = explain("cat.png", "--layer", *layers, "--target", "1", model="two:net")
    assert result.exit_code == 0, result.output
    names = {path.name for path in (two / "out").iterdir()}
    endings = ("overlay.png", "heatmap.npy", "map.npy", "json")
    expected = {f"cat.{layer}.{ending}" for layer in ("second", "first") for ending in endings}
    assert names == expected | {"cat.overlay.png", "cat.json"}
    record = json.loads((two / "out/cat.json").read_text())
    assert record["settings"]["layer_asked_for"] == ["second", "first"]
    assert "layer" not in record["settings"]
    assert list(record["methods"]) == ["second", "first"]
    for layer in ("second", "first"):
        assert record["methods"][layer]["settings"]["layer"] == layer
        own = json.loads((two / f"out/cat.{layer}.json").read_text())
        assert own["settings"]["layer"] == layer
    loaded = load_net(two, "two:net")
    x = loaded.transform(Image.open("cat.png"))[None]
    for layer in ("second", "first"):
        cam = ClusteredLayerAblation(loaded.model, getattr(loaded.model, layer))
        expected_map = cam.attribute(x, target=1)[0, 0]
        np.testing.assert_allclose(np.load(f"out/cat.{layer}.map.npy"), expected_map, atol=1e-6)


def _size(path):
    with Image.open(path) as picture:
        return picture.size


def test_layers_are_columns_of_one_method_and_rows_of_several(two):
    options = ["--layer", "second,first", "--target", "1"]
    assert explain("cat.png", *options, model="two:net", out="one").exit_code == 0
    methods = [*options, "--method", "clustered-cam,grad-cam"]
    assert explain("cat.png", *methods, model="two:net", out="both").exit_code == 0
    names = {path.name for path in (two / "both").glob("*.map.npy")}
    assert names == {
        f"cat.{method}.{layer}.map.npy"
        for method in ("clustered-cam", "grad-cam")
        for layer in ("second", "first")
    }
    (wide, low), (_, high) = _size("one/cat.overlay.png"), _size("both/cat.overlay.png")
    assert wide > 2 * low
    assert high > 1.4 * low


def test_every_layer_and_class_has_a_page(two):
    options = ["--layer", "second,first", "--target", "1,3", "--method", "clustered-cam,grad-cam"]
    result = explain("cat.png", *options, "--html", model="two:net")
    assert result.exit_code == 0, result.output
    pages = {
        (1, "second"): "cat.html",
        (3, "second"): "cat.class3.html",
        (1, "first"): "cat.first.html",
        (3, "first"): "cat.first.class3.html",
    }
    assert {path.name for path in (two / "out").glob("*.html")} == set(pages.values())
    for (target, layer), name in pages.items():
        page = (two / "out" / name).read_text()
        other = {1: 3, 3: 1}[target], {"first": "second", "second": "first"}[layer]
        links = set(re.findall(r'<a href="(.*?)"', page))
        assert links == {pages[other[0], layer], pages[target, other[1]]}
        assert f'<strong aria-current="page">{layer}</strong>' in page
        assert f'<th scope="row">settings: layer</th><td class="any">{layer}</td>' in page
        assert "This page shows Clustered-CAM; cat.overlay.png also shows Grad-CAM." in page
        own = np.load(two / f"out/cat.clustered-cam.{layer}.class{target}.map.npy")
        data = _data(two / "out" / name)
        shown = data["levels"][data["chosen"]]["map"]
        assert shown["grid"][1:] == list(own.shape)
        np.testing.assert_allclose(shown["range"], [own.min(), own.max()], rtol=1e-4, atol=1e-6)
    files = json.loads((two / "out/cat.json").read_text())["files"]
    assert files["page.first.class3"] == "cat.first.class3.html"


def test_a_layer_is_explained_once(two):
    """`auto` may be the layer that is named as well."""
    explain("cat.png", "--layer", "auto", model="two:net", out="auto")
    auto = json.loads((two / "auto/cat.json").read_text())["settings"]["layer"]
    result = explain("cat.png", "--layer", f"auto,{auto}", model="two:net")
    assert result.exit_code == 0, result.output
    record = json.loads((two / "out/cat.json").read_text())
    assert record["settings"]["layer"] == auto
    assert "methods" not in record


def test_resume_knows_the_layers(two):
    options = ["--layer", "second,first", "--target", "1", "--resume"]
    assert explain("cat.png", *options, model="two:net").exit_code == 0
    again = explain("cat.png", *options, model="two:net")
    assert "1 image of 1 had been explained before" in again.stdout
    other = explain("cat.png", "--layer", "second", "--resume", model="two:net")
    assert "explained before" not in other.stdout
    assert not list((two / "out").glob("cat.first.*"))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        ("second,secnd", "`layer` must be the name of a module in the model; got 'secnd"),
        (",", "`layer` must have at least one entry; got none."),
    ],
)
def test_a_wrong_layer_among_several_is_one_line(two, layer, words):
    assert words in one_error(explain("cat.png", "--layer", layer, model="two:net"))
    assert not (two / "out").exists()


def test_an_evaluation_has_one_layer(two):
    line = one_error(
        run("evaluate", "--data", ".", "--model", "two:net", "--layer", "first,second")
    )
    assert line == (
        "`layer` must be one layer in an evaluation; got first, second. Evaluate each layer into a "
        "folder of its own."
    )


# Numbers of groups


def test_the_number_of_groups_may_be_chosen_for_each_image(folder):
    result = explain("cat.png", "--clusters", "auto", "--html")
    assert result.exit_code == 0, result.output
    loaded = load_net(folder)
    maps = loaded.model.features(loaded.transform(Image.open("cat.png"))[None]).detach().flatten(2)
    (number,) = Agglomerative().tree(maps).largest_gap()
    assert 1 < number < 12
    record = json.loads((folder / "out/cat.json").read_text())
    assert record["clusters_chosen"] == len(record["groups"]) == number
    assert record["settings"]["clusters"] == "auto"
    assert record["settings"]["clusterer_settings"].startswith("Agglomerative(n_clusters='auto'")
    assert f"; {number} groups, see out/cat.overlay.png" in result.stdout
    data = _data(folder / "out/cat.html")
    chosen = data["levels"][data["chosen"]]
    assert chosen["asked"] == len(chosen["groups"]) == number
    assert [level["asked"] for level in data["levels"]] == sorted({2, 4, 8, number})


def test_methods_say_which_number_was_chosen(folder):
    methods = "clustered-cam,clustered-score-cam,adaptive-ablation-cam,grad-cam"
    result = explain("cat.png", "--clusters", "auto", "--method", methods)
    assert result.exit_code == 0, result.output
    found = json.loads((folder / "out/cat.json").read_text())["methods"]
    number = found["clustered-cam"]["clusters_chosen"]
    words = f"{number} groups for Clustered-CAM; {number} groups for Clustered Score-CAM, see"
    assert words in result.stdout
    # these have no tree that could be cut anywhere
    assert found["adaptive-ablation-cam"]["settings"]["clusters"] == 32
    assert "clusters_chosen" not in found["adaptive-ablation-cam"]
    assert "clusters_chosen" not in found["grad-cam"]


def test_only_a_tree_has_a_number_of_its_own(folder):
    line = one_error(explain("cat.png", "--clusters", "auto", "--clusterer", "kmeans"))
    assert "must be an int for clusterer='kmeans'; got 'auto'" in line
    line = one_error(explain("cat.png", "--clusters", "automatic"))
    assert line == (
        "`clusters` must be whole numbers or auto, with commas between them; got 'automatic'."
    )


# Other numbers of groups on the page


def test_a_tree_is_cut_again_where_maps_have_two_signs(two):
    options = ["--layer", "second", "--clusterer", "agglomerative", "--clusters", "6", "--html"]
    result = explain("cat.png", *options, model="two:net")
    assert result.exit_code == 0, result.output
    data = _data(two / "out/cat.html")
    assert [level["asked"] for level in data["levels"]] == [2, 4, 6, 8]
    assert [len(level["groups"]) for level in data["levels"]] == [2, 4, 6, 8]


def test_random_groups_are_as_many_as_the_page_says(folder):
    options = ["--method", "random-groups", "--clusters", "3", "--html"]
    assert explain("cat.png", *options).exit_code == 0
    levels = _data(folder / "out/cat.html")["levels"]
    assert [level["asked"] for level in levels] == [len(level["groups"]) for level in levels]
    assert len(levels) > 2
