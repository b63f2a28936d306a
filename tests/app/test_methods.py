"""Several methods side by side, from the registry and from outside."""

import json
import re

import numpy as np
from PIL import Image

from captum_clustered.methods import METHODS
from command_line import explain, load_net, one_error


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


OUTSIDE = """
class Array:
    shape = (1, 5, 6)

    def __init__(self, model, layer):
        pass

    def attribute(self, inputs, target):
        return inputs.new_ones(self.shape).numpy() * target


class Nothing(Array):
    def attribute(self, inputs, target):
        return inputs.new_full((1, 1, 5, 6), float("nan"))


class Two(Array):
    shape = (2, 5, 6)


class Called:
    def __init__(self, model, layer):
        pass

    def __call__(self, inputs):
        return inputs


class ExplainsOtherwise(Array):
    def explain(self, *arguments):
        raise RuntimeError("of another library")
"""


def test_what_a_method_from_outside_returns_may_be_an_array(folder):
    (folder / "outside.py").write_text(OUTSIDE)
    methods = "outside:Array,outside:ExplainsOtherwise"
    result = explain("cat.png", "--method", methods, "--target", "3")
    assert result.exit_code == 0, result.output
    found = np.load(folder / "out/cat.outside-Array.map.npy")
    assert (found == 3).all()
    assert found.shape == (5, 6)
    words = "note: cat.png: outside:Array of class (3): flat map: the same value everywhere\n"
    assert words in result.stderr


def test_a_map_of_no_numbers_is_said(folder):
    (folder / "outside.py").write_text(OUTSIDE)
    result = explain("cat.png", "--method", "outside:Nothing,grad-cam,fake-cam", "--target", "3")
    assert result.exit_code == 0, result.output
    words = "note: cat.png: outside:Nothing of class (3): no map: every value is NaN\n"
    assert words in result.stderr
    assert "fake-cam" not in result.stderr  # a control is flat on purpose


def test_what_a_method_from_outside_must_be_is_said(folder):
    (folder / "outside.py").write_text(OUTSIDE)
    for name, words in (
        ("Two", "must return a tensor (N, 1, H, W) or (N, H, W), one map for each image; got "
         "Tensor of shape (2, 5, 6) for 1 image."),
        ("Called", "must make something that has attribute(inputs, target), as Captum's methods "
         "have; got Called. Wrap it in a class that has."),
    ):  # fmt: skip
        line = one_error(explain("cat.png", "--method", f"outside:{name}"))
        assert line.removeprefix("cat.png: ") == f"`method` outside:{name} {words}"


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


def test_a_method_from_outside_must_take_what_the_layer_needs(folder):
    (folder / "needy.py").write_text(
        "class Mine:\n"
        "    def __init__(self, model, layer):\n"
        "        pass\n"
        "    def attribute(self, inputs, target):\n"
        "        return inputs[:, :1]\n"
        "class Any(Mine):\n"
        "    def attribute(self, inputs, target, **more):\n"
        "        assert more == {'attribute_to_layer_input': True}\n"
        "        return inputs[:, :1]\n"
    )
    line = one_error(explain("cat.png", "--method", "needy:Mine", model="nets:shared"))
    assert line == (
        "`method` needy:Mine must take attribute_to_layer_input in `attribute` for this layer, "
        "since the maps are the input of pool; it does not. Take it, or name a layer whose output "
        "has the maps."
    )
    assert not (folder / "out").exists()
    result = explain("cat.png", "--method", "needy:Any", model="nets:shared")
    assert result.exit_code == 0, result.output
    result = explain(
        "cat.png", "--method", "needy:Mine", "--layer", "features", model="nets:shared"
    )
    assert result.exit_code == 0, result.output
