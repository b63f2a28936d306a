"""Results: their numbers by hand, what they draw, what they write, and what they refuse."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.explainers.results import Attribution, ClusteredAttribution
from captum_clustered.page import picture_uri
from captum_clustered.visualization import overlay

GRAY = np.full((6, 8, 3), 0.4)
VOLUME = np.full((4, 6, 8, 3), 0.4)
NAN = float("nan")


def _result(**changes):
    """Two examples of five maps: one dead, one left out; the second lacks the group 0."""
    maps = torch.arange(1.0, 6.0).view(1, 5, 1, 1) * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    maps = torch.stack([maps[0], 10 * maps[0]])  # (2, 5, 2, 2)
    maps[:, 4] = 0
    fields = {
        "attributions": torch.tensor([[[[0.0, 1.0], [2.0, 4.0]]], [[[4.0, 2.0], [1.0, 0.0]]]]),
        "activations": maps,
        "parts": maps,
        "labels": torch.tensor([[0, 1, 1, -1, -1], [2, 1, 2, 2, -1]]),
        "labels_below": torch.full((2, 5), -1),
        "scores": torch.tensor([8.0, 4.0]),
        "ablated_scores": torch.tensor([[5.0, 9.0, 7.0], [3.0, 1.0, 6.0]]),
        "group_weights": torch.tensor([[0.5, -0.25, 0.0], [0.0, 0.75, 2.0]]),
        "valid": torch.tensor([[True, True, False], [False, True, True]]),
        "channel_weights": torch.zeros(2, 5),
        "channel_weights_below": torch.zeros(2, 5),
        "replay": "suffix",
    }
    return ClusteredAttribution(**(fields | changes))


def _of_two_tensors():
    one = _result()
    other = _result(attributions=torch.zeros(2, 1, 2, 2), ablated_scores=torch.zeros(2, 3))
    shared = {"scores", "replay", "replay_reason", "standard_errors"}
    names = set(ClusteredAttribution.__dataclass_fields__) - shared
    return replace(one, **{name: (getattr(one, name), getattr(other, name)) for name in names})


def _heat(grid, size):
    grid = torch.as_tensor(grid)[None, None]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    large = torch.nn.functional.interpolate(grid, size, mode=mode)[0, 0]
    return ((large - large.min()) / (large.max() - large.min())).numpy()


# Numbers


def test_drops_are_zero_for_groups_that_an_example_does_not_have():
    assert _result().drops.tolist() == [[3.0, -1.0, 0.0], [0.0, 3.0, -2.0]]


def test_groups_are_those_of_one_example_and_the_largest_comes_first():
    first, second = _result().groups()
    assert (first.number, first.members) == (1, (1, 2))
    assert (first.drop, first.ablated_score, first.weight) == (-1.0, 9.0, -0.25)
    assert first.mean_map.tolist() == [[2.5, 5.0], [7.5, 10.0]]  # of the maps times 2 and times 3
    assert (second.number, second.members, second.drop) == (0, (0,), 3.0)
    found = _result().groups(1)
    assert [(g.number, g.members, g.drop) for g in found] == [(2, (0, 2, 3), -2.0), (1, (1,), 3.0)]
    assert [g.members for g in _result().groups(-1)] == [g.members for g in found]


def test_dead_maps_are_told_from_maps_in_no_group():
    assert _result().counts() == {"maps": 5, "dead_maps": 1, "maps_in_no_group": 1}
    assert _result().counts(1) == {"maps": 5, "dead_maps": 1, "maps_in_no_group": 0}


def test_a_dead_map_in_a_group_is_not_subtracted_from_those_left_out():
    labels = torch.tensor([[0, 1, 1, -1, 0], [2, 1, 2, 2, -1]])
    assert _result(labels=labels).counts()["maps_in_no_group"] == 1


def _signed(**changes):
    """One example of four maps: above and below; below; above alone in no group; dead."""
    maps = torch.tensor([[3.0, -1.0], [-2.0, -4.0], [5.0, 0.0], [0.0, 0.0]]).view(1, 4, 1, 2)
    fields = {
        "attributions": torch.zeros(1, 1, 1, 2),
        "activations": maps,
        "parts": torch.cat([maps.clamp(min=0), (-maps).clamp(min=0)], 1),
        "labels": torch.tensor([[1, -1, -1, -1]]),
        "labels_below": torch.tensor([[0, 0, -1, -1]]),
        "scores": torch.tensor([8.0]),
        "ablated_scores": torch.tensor([[6.0, 9.0]]),
        "group_weights": torch.tensor([[0.5, -0.25]]),
        "valid": torch.tensor([[True, True]]),
        "channel_weights": torch.zeros(1, 4),
        "channel_weights_below": torch.zeros(1, 4),
    }
    return _result(**(fields | changes))


def test_groups_of_signed_maps_name_their_parts():
    below, above = _signed().groups()
    assert (below.number, below.members, below.below, below.size) == (0, (), (0, 1), 2)
    assert (below.drop, below.ablated_score, below.weight) == (2.0, 6.0, 0.5)
    assert below.mean_map.tolist() == [[1.0, 2.5]]  # of (0, 1) and (2, 4)
    assert (above.number, above.members, above.below, above.size) == (1, (0,), (), 1)
    assert above.mean_map.tolist() == [[3.0, 0.0]]
    assert _signed().counts() == {"maps": 4, "dead_maps": 1, "maps_in_no_group": 1}
    both = torch.tensor([[1, -1, 0, -1]]), torch.tensor([[1, 0, -1, -1]])
    first, second = _signed(labels=both[0], labels_below=both[1]).groups()
    assert (first.members, first.below, first.size) == ((2,), (1,), 2)
    assert (second.members, second.below, second.size) == ((0,), (0,), 2)


def test_groups_of_whole_maps_count_a_map_once():
    maps = _signed().activations
    labels = torch.tensor([[0, 0, 1, -1]])
    result = _signed(parts=maps.abs(), labels=labels, labels_below=labels)
    first, second = result.groups()
    assert (first.members, first.below, first.size) == ((0, 1), (0, 1), 2)
    assert first.mean_map.tolist() == [[2.5, 2.5]]
    assert (second.members, second.below, second.size) == ((2,), (2,), 1)
    assert result.counts() == {"maps": 4, "dead_maps": 1, "maps_in_no_group": 0}


def test_the_record_of_signed_maps_counts_both_sides(tmp_path):
    record = json.loads(_signed().save(tmp_path)["record"].read_text())
    assert [(g["maps"], g["maps_below"]) for g in record["groups"]] == [(0, 2), (1, 0)]


def test_one_score_for_the_whole_batch_holds_for_each_example():
    class Total(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Identity()

        def forward(self, x):
            return self.maps(x).sum().view(1)

    model = Total().eval()
    cam = ClusteredLayerAblation(model, model.maps, clusterer=torch.tensor([0, 1, 1]))
    x = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1).expand(2, 3, 2, 2).contiguous()
    result = cam.explain(x)
    assert result.scores.tolist() == [48.0]
    assert result.drops.tolist() == [[8.0, 40.0]] * 2
    for example in (0, 1):
        assert [group.drop for group in result.groups(example)] == [40.0, 8.0]
        assert result.groups(example)[0].ablated_score == 8.0
    assert "score 48" in result._repr_html_()


def test_half_precision_is_read_as_single():
    small = {
        name: getattr(_result(), name).bfloat16()
        for name in ("attributions", "parts", "scores", "ablated_scores", "group_weights")
    }
    result = _result(**small)
    assert result.drops.dtype == torch.bfloat16
    assert result.groups()[0].mean_map.dtype == torch.float32
    assert result.map_of().dtype == torch.float32
    assert [group.drop for group in result.groups()] == [-1.0, 3.0]


# Several tensors


def test_one_of_several_tensors_is_selected():
    both = _of_two_tensors()
    assert [drops.tolist() for drops in both.drops] == [
        _result().drops.tolist(),
        [[8.0, 8.0, 0.0], [0.0, 4.0, 4.0]],
    ]
    chosen = both.select(1)
    assert chosen.attributions.tolist() == both.attributions[1].tolist()
    assert chosen.scores is both.scores
    assert chosen.drops.tolist() == both.drops[1].tolist()
    assert _result().select(0).groups()[0].members == (1, 2)
    with pytest.raises(ValueError, match=r"`index` must be .* 2 tensors, from 0; got 2"):
        both.select(2)
    with pytest.raises(ValueError, match=r"`index` must be .* 1 tensor, from 0; got -1"):
        _result().select(-1)


@pytest.mark.parametrize(
    "act",
    [
        lambda result, folder: result.show(GRAY),
        lambda result, folder: result.save(folder, GRAY),
        lambda result, folder: result.groups(),
        lambda result, folder: result.counts(),
        lambda result, folder: result.map_of(),
    ],
    ids=["show", "save", "groups", "counts", "map_of"],
)
def test_several_tensors_are_refused_with_the_remedy(act, tmp_path):
    with pytest.raises(ValueError, match=r"layer gives 2\. .* `result\.select\(0\)`"):
        act(_of_two_tensors(), tmp_path)
    assert not list(tmp_path.iterdir())
    act(_of_two_tensors().select(0), tmp_path)


def test_a_real_layer_of_two_tensors():
    class Two(nn.Module):
        def forward(self, x):
            return x, 2 * x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = Two()

        def forward(self, x):
            first, second = self.two(x)
            return first.flatten(1).sum(1, keepdim=True) + second.flatten(1).sum(1, keepdim=True)

    model = Model().eval()
    x = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2).contiguous()
    cam = ClusteredLayerAblation(model, model.two, clusterer="every-map")
    result = cam.explain(x, target=0)
    assert [d.tolist() for d in result.drops] == [[[4.0, 8.0]], [[8.0, 16.0]]]
    assert [group.drop for group in result.select(1).groups()] == [8.0, 16.0]


# Pictures


def test_show_lays_the_map_of_an_example_over_the_image():
    figure = _result().show(GRAY, 1, title="daisy")
    image, heat, _bar = figure.axes
    np.testing.assert_array_equal(image.images[0].get_array(), GRAY)
    expected = overlay(GRAY, _heat([[4.0, 2.0], [1.0, 0.0]], (6, 8)))
    np.testing.assert_allclose(heat.images[0].get_array(), expected, atol=1e-6)
    assert figure.get_suptitle() == "daisy"


def test_show_without_an_image_draws_the_map_in_its_own_resolution():
    figure = _result().show(title="daisy")
    (picture,) = figure.axes[0].images
    assert picture.get_array().shape == (2, 2, 3)
    assert picture.get_array()[0, 0].sum() < picture.get_array()[1, 1].sum()
    assert figure.axes[0].get_title() == "daisy"
    assert figure.axes[1].get_ylim() == (0, 1)


def test_show_takes_the_slice_of_a_volume_with_the_most_heat():
    grid = torch.zeros(1, 1, 2, 3, 4)
    grid[0, 0, 1] = torch.arange(12.0).view(3, 4)
    found = Attribution(grid)
    figure = found.show(VOLUME, title="scan")
    assert figure.get_suptitle() == "scan, slice 4 of 4"
    expected = overlay(VOLUME[3], _heat(grid[0, 0], (4, 6, 8))[3])
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), expected, atol=1e-6)
    assert found.show().axes[0].get_title() == "slice 2 of 2"


@pytest.mark.parametrize(
    ("fill", "words"),
    [(2.0, "flat map: the same value everywhere"), (NAN, "no map: every value is NaN")],
)
@pytest.mark.parametrize("image", [GRAY, None], ids=["image", "alone"])
def test_a_flat_or_broken_map_is_named(fill, words, image):
    figure = Attribution(torch.full((1, 1, 2, 2), fill)).show(image)
    assert words in [ax.get_xlabel() for ax in figure.axes]


def test_a_map_with_a_gradient_can_be_shown():
    found = Attribution(torch.rand(1, 1, 2, 2, requires_grad=True))
    assert len(found.show(GRAY).axes) == 3
    assert "<img" in found._repr_html_()


@pytest.mark.parametrize(
    ("attributions", "image", "example", "message"),
    [
        (torch.zeros(2, 1, 2, 2), GRAY, 2, r"`example` must be one of 2; got 2\. The first is 0"),
        (torch.zeros(2, 1, 2, 2), GRAY, -3, r"`example` must be one of 2; got -3"),
        (torch.zeros(2, 1, 2, 2), GRAY, "a", r"`example` must be one of 2; got 'a'"),
        (torch.zeros(2, 3, 2, 2), GRAY, 0, r"must have shape .* got \(2, 3, 2, 2\)\. .* True"),
        (torch.zeros(2, 1), None, 0, r"must have shape .* got \(2, 1\)\. Choose a layer"),
        (torch.zeros(2, 1, 2, 2), VOLUME, 0, r"`image` must have shape \(H, W, 3\); got \(4, 6"),
        (
            torch.zeros(2, 1, 2, 2, 2),
            GRAY,
            0,
            r"`image` must have shape \(D, H, W, 3\), .* got \(6",
        ),
        (torch.zeros(2, 1, 2, 2), 255 * GRAY, 0, r"`image` must lie in \[0, 1\]; got .* 102 to"),
    ],
)
def test_what_cannot_be_drawn_is_refused(attributions, image, example, message, tmp_path):
    found = Attribution(attributions)
    with pytest.raises(ValueError, match=message):
        found.show(image, example)
    with pytest.raises(ValueError, match=message):
        found.save(tmp_path / "new", image, example)
    assert not list(tmp_path.iterdir())


def test_examples_are_numbers_of_numpy_too():
    assert _result().map_of(np.int64(1)).tolist() == [[4.0, 2.0], [1.0, 0.0]]


# Files


def test_save_writes_picture_arrays_and_record(tmp_path):
    paths = _result().save(tmp_path / "new", GRAY, 1, name="cat", title="daisy")
    assert {kind: path.name for kind, path in paths.items()} == {
        "overlay": "cat.overlay.png",
        "heatmap": "cat.heatmap.npy",
        "map": "cat.map.npy",
        "record": "cat.json",
    }
    assert {path.name for path in (tmp_path / "new").iterdir()} == {p.name for p in paths.values()}
    heatmap, grid = np.load(paths["heatmap"]), np.load(paths["map"])
    assert heatmap.dtype == grid.dtype == np.float32
    np.testing.assert_allclose(heatmap, _heat([[4.0, 2.0], [1.0, 0.0]], (6, 8)), atol=1e-6)
    np.testing.assert_array_equal(grid, [[4, 2], [1, 0]])
    record = json.loads(paths["record"].read_text(encoding="utf-8"))
    assert record["heatmap"]["shape"] == [6, 8]
    assert record["heatmap"]["note"] is None
    assert record["map"]["shape"] == [2, 2]
    assert record["map"]["range"] == [0.0, 4.0]
    none = {"maps_below": 0}
    assert record["groups"] == [
        {"group": 2, "maps": 3, "drop": -2.0, "score_without": 6.0, "weight": 2.0, **none},
        {"group": 1, "maps": 1, "drop": 3.0, "score_without": 1.0, "weight": 0.75, **none},
    ]
    assert (record["maps"], record["dead_maps"], record["maps_in_no_group"]) == (5, 1, 0)
    assert record["replay"] == {"path": "suffix", "reason": None}
    assert record["files"] == {k: path.name for k, path in paths.items() if k != "record"}


def test_save_without_an_image_keeps_the_layers_resolution(tmp_path):
    paths = Attribution(torch.tensor([[[[1.0, 3.0]]]])).save(tmp_path)
    assert list(paths) == ["heatmap", "map", "record"]
    assert np.load(paths["heatmap"]).tolist() == [[0.0, 1.0]]
    record = json.loads(paths["record"].read_text(encoding="utf-8"))
    assert set(record) == {"heatmap", "map", "files"}
    assert "enlarged" not in record["heatmap"]["meaning"]


def test_save_of_a_volume_writes_all_slices(tmp_path):
    found = Attribution(torch.arange(24.0).view(1, 1, 2, 3, 4))
    paths = found.save(tmp_path, VOLUME)
    assert np.load(paths["heatmap"]).shape == (4, 6, 8)
    np.testing.assert_array_equal(np.load(paths["map"]), np.arange(24.0).reshape(2, 3, 4))


def test_the_callers_record_goes_over_the_results_own(tmp_path):
    given = {"seconds": 1.5, "replay": "mine", "files": {"page": "cat.html"}, "title": "Café"}
    paths = _result().save(tmp_path, name="cat", record=given)
    text = paths["record"].read_text(encoding="utf-8")
    record = json.loads(text)
    assert "Café" in text
    assert (record["seconds"], record["replay"], record["maps"]) == (1.5, "mine", 5)
    assert record["files"] == {
        "heatmap": "cat.heatmap.npy",
        "map": "cat.map.npy",
        "page": "cat.html",
    }
    assert given["files"] == {"page": "cat.html"}


def test_nan_is_null_in_the_record(tmp_path):
    grid = torch.tensor([[[[NAN, 1.0]]]] * 2)
    ablated = torch.full((2, 3), NAN)
    paths = _result(attributions=grid, ablated_scores=ablated).save(tmp_path, GRAY)

    def refuse(name):
        raise AssertionError(name)

    text = paths["record"].read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=refuse)
    assert record["map"]["range"] == [None, None]
    assert record["groups"][0]["drop"] is None
    assert record["heatmap"]["note"] == "no map: every value is NaN"


def test_nothing_is_written_for_a_record_that_cannot_be(tmp_path):
    with pytest.raises(TypeError, match=r"`record` must hold what JSON can hold: .* object"):
        _result().save(tmp_path / "new", GRAY, record={"model": object()})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a/b", "../cat", "a/"])
def test_a_name_is_no_path(tmp_path, name):
    with pytest.raises(ValueError, match=rf"`name` must be a file name .* got {name!r}\. Pass"):
        _result().save(tmp_path, name=name)
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(ValueError, match=r"`folder` must be a folder; got .*out, where a file is"):
        _result().save(tmp_path / "out")


def test_a_failed_write_leaves_no_part_and_no_record(tmp_path, monkeypatch):
    def full(file, array):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="No space left"):
        _result().save(tmp_path, GRAY)
    assert [path.name for path in tmp_path.iterdir()] == ["explanation.overlay.png"]


# Notebooks


class _Tags(HTMLParser):
    """Tags, addresses and text; opened tags must be closed in order."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.text, self.open = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]
        assert not [k for k, _ in attributes if k.startswith("on")]
        if tag not in ("img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_a_notebook_shows_the_map_and_the_groups_and_loads_nothing():
    page = _Tags(_result()._repr_html_())
    assert page.addresses
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert set(page.tags) <= {
        *["div", "b", "img", "table", "thead", "tbody", "tr", "th", "td", "br"]
    }
    text = " | ".join(part.strip() for part in page.text if part.strip())
    assert text.startswith("ClusteredAttribution, example 0 of 2 | 0 | 4 | score 8; 5 maps in 2 gr")
    assert "all shown; 1 dead (zero everywhere); 1 in no group" in text
    assert "| 1 | +3 | 0.5 | 2 | -1 | -0.25" in text  # maps, drop, weight; the largest drop first
    assert len(page.addresses) == 4  # map, scale, two groups


def test_bars_of_a_notebook_are_as_long_as_their_drops():
    bars = re.findall(r"width:(\d+)px;height:9px;background:(#\w+)", _result()._repr_html_())
    (long, favour), (short, against) = bars
    assert int(long) == pytest.approx(3 * int(short), abs=2)
    assert against != favour


def test_a_notebook_shows_the_eight_groups_with_the_largest_drops():
    maps = torch.rand(1, 10, 2, 2) + 0.1
    fields = {"activations": maps, "parts": maps, "scores": torch.ones(1)}
    fields |= {"labels": torch.arange(10)[None], "labels_below": torch.full((1, 10), -1)}
    ten = {"ablated_scores": torch.zeros(1, 10), "group_weights": torch.ones(1, 10)}
    ten["valid"] = torch.ones(1, 10, dtype=torch.bool)
    result = _result(attributions=torch.rand(1, 1, 2, 2), **fields, **ten)
    page = result._repr_html_()
    assert "10 maps in 10 groups, the 8 with the largest drops shown" in page
    assert page.count("<tr>") == 9
    assert "example" not in page


def test_text_in_a_notebook_is_escaped():
    page = _result(replay="full", replay_reason="<script>alert(1)</script> & 'x'")._repr_html_()
    assert "The whole model ran again: &lt;script&gt;alert(1)&lt;/script&gt; &amp; " in page
    assert "script" not in _Tags(page).tags


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (2.0, "flat map: the same value everywhere"),
        (NAN, "no map: every value is NaN"),
    ],
)
def test_a_notebook_names_a_flat_or_broken_map(fill, words):
    result = _result(
        attributions=torch.full((2, 1, 2, 2), fill), ablated_scores=torch.full((2, 3), fill)
    )
    page = result._repr_html_()
    _Tags(page)
    assert words in page
    assert ("not a number" in page) == np.isnan(fill)


def test_a_notebook_shows_each_of_several_tensors():
    page = _of_two_tensors()._repr_html_()
    _Tags(page)
    assert "ClusteredAttribution, tensor 0 of 2, example 0 of 2" in page
    assert "ClusteredAttribution, tensor 1 of 2, example 0 of 2" in page


def test_a_notebook_shows_a_slice_of_a_volume():
    grid = torch.zeros(1, 1, 3, 2, 2)
    grid[0, 0, 2] = 1 + torch.arange(4.0).view(2, 2)
    page = Attribution(grid)._repr_html_()
    _Tags(page)
    assert "Slice 3 of 3, the one with the most heat." in page
    assert page == Attribution(grid[:, :, 2])._repr_html_().replace(
        "</div></div></div></div>",
        "</div></div></div><div>Slice 3 of 3, the one with the most heat.</div></div>",
    )


def test_a_notebook_names_the_shape_of_what_it_cannot_draw():
    page = Attribution(torch.zeros(2, 5))._repr_html_()
    assert page == "<div>Attribution, example 0 of 2<br>attributions (2, 5)</div>"


def test_a_notebooks_map_is_as_wide_as_the_map_itself():
    page = Attribution(torch.arange(8.0).view(1, 1, 2, 4))._repr_html_()
    assert 'width="288" height="144"' in page


def test_a_picture_is_a_png_in_an_address():
    import base64
    import io

    from PIL import Image

    address = picture_uri(np.array([[[1.0, 0.0, 0.5], [0.0, 0.0, 0.0]]]))
    head, _, data = address.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 128)
