"""Several classes, colours, overlays without words."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from captum_clustered import ClusteredLayerAblation
from captum_clustered.app.alike import ALIKE, alike
from captum_clustered.app.explain import _targets
from command_line import explain, load_net, one_error


def test_names_and_indices_may_stand_between_commas():
    prepared = SimpleNamespace(target=_found_in(["hen", "crane, the bird", "cock"]), n_classes=3)
    assert _targets(prepared, "crane, the bird") == [1]
    assert _targets(prepared, "hen, 2,predicted,top:2") == [0, 2, "predicted", "top:2"]
    with pytest.raises(ValueError, match="got nosuch"):
        _targets(prepared, "hen, nosuch")


def _found_in(names):
    def target(word):
        if word.isdecimal():
            return int(word)
        if word not in names:
            raise ValueError(f"got {word}")
        return names.index(word)

    return target


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


def test_classes_with_nearly_the_same_map_are_named(folder):
    """Class 2 weighs the maps like class 0, twice; class 3 weighs them the other way round."""
    (folder / "alike.py").write_text(
        "from nets import Net, transform\n"
        "def net():\n"
        "    model = Net()\n"
        "    weight, bias = model.head.weight.data, model.head.bias.data\n"
        "    weight[2], weight[3], bias[:] = 2 * weight[0], -weight[0], 3\n"
        "    return model, transform\n"
    )
    options = ["--target", "0,1,2,3", "--method", "grad-cam,clustered-cam,sum-of-maps", "--html"]
    result = explain("cat.png", *options, model="alike:net")
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if "note: " in line]
    assert notes == [
        f"captum-clustered: note: cat.png: {title} gives class (0) and class (2) nearly the same "
        "map (correlation 1.00): it shows what these classes share, not what tells them apart"
        for title in ("Grad-CAM", "Clustered-CAM")  # of a control it would say nothing
    ]
    record = json.loads((folder / "out/cat.json").read_text())
    assert [one["classes"] for one in record["alike"]] == [[0, 2], [0, 2]]
    assert [one["method"] for one in record["alike"]] == ["grad-cam", "clustered-cam"]
    assert all(one["correlation"] > 0.98 for one in record["alike"])
    for name, says in {"cat": True, "cat.class1": False, "cat.class2": True}.items():
        page = (folder / f"out/{name}.html").read_text()
        assert ("Clustered-CAM gives class (0) and class (2) nearly the same map" in page) == says
        assert "Grad-CAM gives" not in page


@pytest.mark.parametrize(("noise", "says"), [(0.1, True), (0.5, False)])
def test_how_much_alike_maps_must_be(noise, says):
    """The correlation of a map with itself and noise of a share of its deviation."""
    rng = np.random.default_rng(0)
    maps = rng.random((2, 40, 50))
    maps[1] = maps[0] + noise * maps[1]
    r = np.corrcoef(maps.reshape(2, -1))[0, 1]
    assert (r > ALIKE) == says
    panel = SimpleNamespace(name="m", title="M", method=SimpleNamespace(control=False))
    found = alike([SimpleNamespace(panel=panel, target=t, heatmap=maps[t]) for t in (0, 1)])
    assert [one.correlation for one in found] == pytest.approx([r] if says else [])


def test_flat_maps_are_not_called_alike():
    panel = SimpleNamespace(name="m", title="M", method=SimpleNamespace(control=False))
    flat = [SimpleNamespace(panel=panel, target=t, heatmap=np.zeros((2, 3))) for t in (0, 1)]
    assert alike(flat) == []
