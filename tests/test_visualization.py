"""Pictures: the values in them, the words on them, and what is refused."""

import sys

import numpy as np
import pytest
import torch
from captum.attr import visualization as captums
from matplotlib import colormaps
from matplotlib.text import Text
from PIL import Image
from torch import nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.visualization import (
    compare,
    describe,
    groups,
    overlay,
    plain,
    sweep,
    to_captum,
)

GRAY = np.full((6, 8, 3), 0.4)
RAMP = np.linspace(0, 1, 48).reshape(6, 8)


def _drawn(figure):
    """The pixels of a figure, as a file would have them."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


def _inside(figure):
    """Whether all text lies inside the figure and no two texts lie over each other."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    beyond = {  # labels of ticks outside the limits exist, but are not drawn
        tick.label1
        for ax in figure.axes
        for axis in (ax.xaxis, ax.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = set(figure.findobj(Text)) - beyond
    boxes = [t.get_window_extent(renderer) for t in texts if t.get_visible() and t.get_text()]
    whole = figure.bbox
    contained = all(
        box.x0 >= -1 and box.y0 >= -1 and box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1
        for box in boxes
    )
    apart = not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    return contained and apart


# Overlay


def test_overlay_is_the_weighted_mean_of_image_and_colour():
    picture = overlay(GRAY, RAMP, cmap="viridis", alpha=0.25)
    expected = 0.75 * 0.4 + 0.25 * colormaps["viridis"](RAMP)[..., :3]
    np.testing.assert_allclose(picture, expected, atol=1e-12)
    assert picture.dtype == np.float64


def test_overlay_takes_the_images_colours_unless_told_otherwise():
    red = np.broadcast_to((1.0, 0.0, 0.0), (2, 2, 3))
    heatmap = np.zeros((2, 2))
    kept = overlay(red, heatmap, cmap="gray", alpha=0.5, gray=False)
    np.testing.assert_allclose(kept[0, 0], (0.5, 0, 0))
    bled = overlay(red, heatmap, cmap="gray", alpha=0.5)
    np.testing.assert_allclose(bled[0, 0], [0.5 * 0.299] * 3)


def test_the_hottest_pixel_is_the_brightest():
    picture = overlay(GRAY, RAMP)
    light = picture @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(light.ravel()) > 0).all()


def test_overlay_leaves_the_image_bare_where_the_map_is_nan():
    heatmap = RAMP.copy()
    heatmap[2, 3] = np.nan
    image = np.random.default_rng(0).random((6, 8, 3))
    picture = overlay(image, heatmap)
    np.testing.assert_array_equal(picture[2, 3], image[2, 3])
    assert not np.isnan(picture).any()


@pytest.mark.parametrize(
    "heatmap",
    [
        RAMP.astype(np.float32),
        torch.from_numpy(RAMP).requires_grad_(),
        torch.from_numpy(RAMP).bfloat16(),
        RAMP + np.where(RAMP == 1, 1e-7, 0),
    ],
    ids=["float32", "tensor with gradient", "bfloat16", "rounding"],
)
def test_overlay_takes_arrays_and_tensors(heatmap):
    picture = overlay(GRAY, heatmap)
    np.testing.assert_allclose(picture, overlay(GRAY, RAMP), atol=0.02)
    assert picture.min() >= 0
    assert picture.max() <= 1


@pytest.mark.parametrize(
    ("image", "heatmap", "error", "message"),
    [
        (
            GRAY,
            (RAMP * 255).astype(np.uint8),
            TypeError,
            r"`heatmap` must be floating .* got uint8",
        ),
        (
            GRAY,
            RAMP * 2,
            ValueError,
            r"`heatmap` must lie in \[0, 1\]; got values from 0 to 2\. Use",
        ),
        (GRAY, RAMP - 0.1, ValueError, r"got values from -0\.1 to 0\.9\."),
        (GRAY, RAMP[None], ValueError, r"image's size \(6, 8\); got shape \(1, 6, 8\)\. Enlarge"),
        (GRAY, RAMP[:3, :4], ValueError, r"image's size \(6, 8\); got shape \(3, 4\)"),
        (GRAY[..., 0], RAMP, ValueError, r"`image` must have shape \(H, W, 3\); got \(6, 8\)"),
        (GRAY.transpose(2, 0, 1), RAMP, ValueError, r"shape \(H, W, 3\); got \(3, 6, 8\)"),
        ((GRAY * 255).astype(np.uint8), RAMP, TypeError, r"`image` must be .*uint8\. Divide bytes"),
        (GRAY * 5, RAMP, ValueError, r"`image` must lie in \[0, 1\]; got values from 2 to 2\."),
    ],
)
def test_overlay_refuses_what_it_would_have_to_guess(image, heatmap, error, message):
    with pytest.raises(error, match=message):
        overlay(image, heatmap)


def test_overlay_refuses_a_wrong_share():
    with pytest.raises(ValueError, match=r"`alpha` must lie in \[0, 1\]; got 1\.5"):
        overlay(GRAY, RAMP, alpha=1.5)


@pytest.mark.parametrize(
    ("heatmap", "words"),
    [
        (RAMP, None),
        (np.zeros((2, 3)), "flat map: the same value everywhere"),
        (np.full((2, 3), np.nan), "no map: every value is NaN"),
        (np.array([[0, np.nan], [1, np.nan]]), "broken map: 2 of 4 values are NaN"),
    ],
)
def test_what_is_wrong_with_a_map(heatmap, words):
    assert describe(heatmap) == words


# Comparison


def test_compare_shows_image_and_maps_on_one_scale():
    figure = compare(GRAY, {"Grad-CAM": RAMP, "Clustered-CAM": RAMP[::-1]}, title="daisy (985)")
    image, first, second, bar = figure.axes
    assert [ax.get_title() for ax in (image, first, second)] == [
        "image",
        "Grad-CAM",
        "Clustered-CAM",
    ]
    np.testing.assert_array_equal(image.images[0].get_array(), GRAY)
    np.testing.assert_array_equal(first.images[0].get_array(), overlay(GRAY, RAMP))
    np.testing.assert_array_equal(second.images[0].get_array(), overlay(GRAY, RAMP[::-1]))
    assert bar.get_ylim() == (0, 1)
    assert figure.get_supxlabel() == "each map: 0 is its minimum, 1 its maximum"
    assert figure.get_suptitle() == "daisy (985)"


@pytest.mark.parametrize("shape", [(64, 64), (40, 120), (120, 40)])
def test_compare_can_be_read(shape):
    image = np.full((*shape, 3), 0.4)
    maps = {"Grad-CAM": np.zeros(shape), "Clustered-CAM": np.full(shape, np.nan)}
    assert _inside(compare(image, maps, title="a class with a long name (985), probability 0.32"))


def test_compare_says_that_a_map_is_flat_or_nan():
    maps = {"flat": np.zeros((6, 8)), "none": np.full((6, 8), np.nan), "good": RAMP}
    figure = compare(GRAY, maps)
    notes = [ax.get_xlabel() for ax in figure.axes[1:4]]
    assert notes == ["flat map: the same value everywhere", "no map: every value is NaN", ""]
    assert _drawn(figure).shape[2] == 4


def test_compare_needs_a_map():
    with pytest.raises(ValueError, match="`heatmaps` must have at least one"):
        compare(GRAY, {})


def test_figures_are_files_without_pyplot(tmp_path):
    loaded = "matplotlib.pyplot" in sys.modules
    compare(GRAY, {"map": RAMP}).savefig(tmp_path / "compare.png")
    with Image.open(tmp_path / "compare.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300
    assert ("matplotlib.pyplot" in sys.modules) == loaded


# Groups


def _result(labels, dead=()):
    """A result with maps, scores and drops that can be worked out by hand."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(len(labels) * 4, 1, bias=False))
    weights = (
        torch.arange(1.0, len(labels) + 1)
        * torch.tensor([1.0, -1.0]).repeat(len(labels))[: len(labels)]
    )
    model[2].weight.data = weights.repeat_interleave(4)[None]
    x = torch.zeros(1, len(labels), 2, 2)
    for channel in range(len(labels)):
        x[0, channel, channel % 2, 0] = 0.0 if channel in dead else channel + 1.0
    cam = ClusteredLayerAblation(model.eval(), model[0], clusterer=torch.tensor(labels))
    return cam.explain(x, target=0)


def test_the_groups_with_the_largest_drops_are_shown_first():
    # channels weigh 1, -2, 3, -4, 5 and respond with 1, 2, 3, 4, 0 (dead): 1 - 4 + 9 - 16 = -10
    result = _result([0, 1, 1, 1, 0], dead=[4])
    figure = groups(result, n=8, image=GRAY, title="daisy")
    first, second, bars = figure.axes
    assert [first.get_title(), second.get_title()] == ["1: 1 map", "2: 3 maps"]
    assert [round(bar.get_width(), 4) for bar in bars.patches] == [1, -11]
    assert [text.get_text() for text in bars.texts] == ["+1", "-11"]
    assert bars.get_title() == "how far the score of -10 drops"
    assert figure.get_suptitle() == "daisy\n5 maps in 2 groups, all shown; 1 dead (zero everywhere)"
    # the mean of the maps with 2, 3 and 4 at their own places, from 0 to (2 + 4) / 3
    assert second.get_xlabel() == "mean activation 0 to 2"
    assert first.get_xlabel() == "mean activation 0 to 1"


def test_groups_show_where_the_group_responds():
    picture = groups(_result([0, 0, 0, 0]), cmap="gray").axes[0].images[0].get_array()
    # mean over channels 1 to 4: rows (1 + 3) / 4 and (2 + 4) / 4, in the left column
    np.testing.assert_allclose(picture[..., 0], [[2 / 3, 0], [1, 0]], atol=0.01)


def test_groups_lie_over_the_image():
    figure = groups(_result([0, 0]), image=GRAY)
    assert figure.axes[0].images[0].get_array().shape == GRAY.shape


def test_signs_of_drops_have_their_own_colours():
    *_, bars = groups(_result([0, 1])).axes
    up, down = (bar.get_facecolor() for bar in bars.patches)
    assert up != down


def test_no_more_groups_than_asked_for():
    # channels respond with 1, 2, 3 and weigh 1, -2, 3
    figure = groups(_result([0, 1, 2, -1]), n=2)
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.axes[-1].texts] == ["+9", "+1"]
    assert figure.get_suptitle() == (
        "4 maps in 3 groups, the 2 with the largest drops shown; 1 in no group"
    )


@pytest.mark.parametrize(
    ("shown", "rows", "columns"), [(1, 1, 1), (4, 1, 4), (5, 2, 3), (6, 2, 3), (7, 2, 4), (8, 2, 4)]
)
def test_groups_fill_their_rows(shown, rows, columns):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 16, 2)).eval()
    cam = ClusteredLayerAblation(model, model[1], clusterer="every-map")
    figure = groups(cam.explain(torch.rand(1, 3, 6, 6), target=0), n=shown)
    assert len(figure.axes) == shown + 1
    grid = figure.axes[0].get_subplotspec().get_gridspec()
    assert grid.get_geometry() == (rows, columns + 1)  # the bars have a column of their own


def test_a_colour_map_that_matplotlib_does_not_know_is_refused():
    for draw in (
        lambda: overlay(GRAY, np.zeros(GRAY.shape[:2]), cmap="infreno"),
        lambda: plain(np.zeros((2, 2)), cmap="infreno"),
        lambda: compare(GRAY, {"a": np.zeros(GRAY.shape[:2])}, cmap="infreno"),
        lambda: groups(_result([0, 1]), cmap="infreno"),
    ):
        with pytest.raises(
            ValueError, match=r"`cmap` must be .*; got 'infreno'. Close are: inferno"
        ):
            draw()


def test_images_may_have_labels():
    images = np.stack([GRAY, GRAY])
    maps = {"a": np.zeros(images.shape[:3])}
    figure = compare(images, maps, labels=["cat", "dog"])
    assert [figure.axes[i].get_title() for i in (0, 2)] == ["cat", "dog"]
    with pytest.raises(ValueError, match="`labels` must have one entry for each of the 2 images"):
        compare(images, maps, labels=["cat"])


@pytest.mark.parametrize("n_groups", [1, 3, 8])
def test_groups_can_be_read(n_groups):
    image = np.full((64, 96, 3), 0.4)
    assert _inside(groups(_result(list(range(n_groups))), image=image, title="daisy (985)"))


@pytest.mark.filterwarnings("ignore:The heat maps of examples .* are not finite")
@pytest.mark.parametrize("fill", [0.0, np.nan])
def test_groups_of_dead_or_broken_maps_are_no_error(fill):
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 1)).eval()
    cam = ClusteredLayerAblation(model, model[0], clusterer=torch.tensor([0, 0, 1]), replay="full")
    figure = groups(cam.explain(torch.full((1, 3, 2, 2), fill), target=0))
    assert _drawn(figure).size
    if fill == 0:
        assert figure.get_suptitle() == "3 maps in 0 groups, all shown; 3 dead (zero everywhere)"
    else:
        assert figure.axes[0].get_xlabel() == "no map: every value is NaN"


def test_groups_refuses_what_has_no_picture():
    flat = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).eval()
    result = ClusteredLayerAblation(flat, flat[0], n_clusters=2).explain(torch.rand(1, 3), target=0)
    with pytest.raises(ValueError, match=r"two dimensions .* activations of shape \(1, 4\)"):
        groups(result)
    with pytest.raises(ValueError, match=r"`example` must be one of 1; got 1"):
        groups(_result([0, 1]), example=1)


def test_compare_has_images_in_rows_and_methods_in_columns():
    images = np.stack([GRAY, GRAY, GRAY])
    maps = np.stack([RAMP, RAMP[::-1], np.zeros_like(RAMP)])
    figure = compare(
        images,
        {"a": maps, "b": torch.from_numpy(maps)},
        scores=[0.8, 0.5, 0.2],
        masked_scores={"a": [0.4, 0.6, 0.1]},
        outlines=[RAMP > 0.5, [[1, 1, 4, 5]], None],
    )
    titles = [ax.get_title() for ax in figure.axes[:9]]
    assert titles[:3] == ["image: 0.80", "a: 0.40, drop 50 %", "b"]
    assert titles[4] == "a: 0.60, drop 0 %"
    assert figure.axes[7].get_xlabel() == "flat map: the same value everywhere"
    np.testing.assert_allclose(
        figure.axes[4].images[0].get_array(), overlay(GRAY, maps[1], outline=[[1, 1, 4, 5]])
    )
    assert _inside(figure)


@pytest.mark.parametrize("name", ["scores", "outlines"])
def test_compare_wants_an_entry_for_each_image(name):
    with pytest.raises(ValueError, match=rf"`{name}` must have one entry for each of the 1 images"):
        compare(GRAY, {"a": RAMP}, **{name: [1, 2]})
    with pytest.raises(ValueError, match=r"`heatmaps\['a'\]` must have one entry .*; got 1"):
        compare(np.stack([GRAY, GRAY]), {"a": RAMP[None]})


def test_outlines_are_white_in_black():
    box = overlay(GRAY, RAMP, outline=[[2, 1, 6, 5]])
    mask = np.zeros((6, 8), bool)
    mask[1:5, 2:6] = True
    np.testing.assert_array_equal(box, overlay(GRAY, RAMP, outline=mask))
    plain = overlay(GRAY, RAMP)
    assert (box[1, 2:6] == 1).all()
    assert (box[0, 2:6] == 0).all()
    np.testing.assert_array_equal(box[2:4, 3:5], plain[2:4, 3:5] * 0)  # within four pixels of edge
    with pytest.raises(ValueError, match=r"`outline` must be a mask of shape \(6, 8\) or boxes"):
        overlay(GRAY, RAMP, outline=np.ones((3, 3)))


def test_an_overlay_goes_into_axes():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    picture = overlay(GRAY, RAMP, ax=ax)
    np.testing.assert_array_equal(ax.images[0].get_array(), picture)


# Captum's own functions

MAPS = {
    "mixed": torch.linspace(-2, 3, 12).view(1, 1, 3, 4),
    "zero": torch.zeros(3, 4),
    "flat": torch.full((1, 3, 4), 0.7),
    "positive": torch.rand(3, 4).requires_grad_(),
    "negative": -torch.rand(3, 4).half() - 0.1,
    "faint": torch.rand(3, 4) * 1e-9,
    "single": torch.ones(1, 1),
}
METHODS = ("heat_map", "blended_heat_map", "original_image", "masked_image", "alpha_scaling")
SIGNS = ("positive", "absolute_value", "negative", "all")


@pytest.mark.parametrize("heat", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("image", [GRAY, GRAY[..., :1], GRAY[..., 0]], ids=["rgb", "one", "gray"])
def test_captum_draws_every_map_in_every_method_and_sign(heat, image):
    given = to_captum(heat, image)
    assert given["attr"].shape == (6, 8, 1)
    assert np.abs(given["attr"]).max() <= 1
    for method in METHODS:
        for sign in SIGNS:
            if sign == "all" and method in {"masked_image", "alpha_scaling"}:
                continue  # refused by design
            captums.visualize_image_attr(**given, method=method, sign=sign, use_pyplot=False)
    methods = [m for m in METHODS for s in SIGNS if s != "all"]
    signs = [s for m in METHODS for s in SIGNS if s != "all"]
    _figure, axes = captums.visualize_image_attr_multiple(
        **given, methods=methods, signs=signs, use_pyplot=False
    )
    assert len(axes) == 15


def test_captum_gets_the_map_as_large_as_the_image_and_without_outliers():
    heat = torch.rand(1, 1, 3, 4) + 0.1
    attr = to_captum(heat, GRAY)["attr"][..., 0]
    large = torch.nn.functional.interpolate(heat, (6, 8), mode="bilinear")[0, 0].numpy()
    expected = large / large.max()
    touched = ~np.isclose(attr, expected, atol=1e-6)
    assert touched.sum() == 1  # the faintest pixel, for the sign that is missing
    assert attr[touched] == pytest.approx(-1e-4)
    assert expected[touched] == expected.min()
    _, ax = captums.visualize_image_attr(
        **to_captum(heat, GRAY), method="heat_map", sign="positive", use_pyplot=False
    )
    np.testing.assert_allclose(ax.images[0].get_array(), attr.clip(0), atol=1e-6)


def test_captum_gets_no_nan():
    heat = torch.tensor([[0.0, torch.nan], [1.0, -torch.inf]])
    with pytest.warns(UserWarning, match="broken map: 1 of 4 values are NaN; drawn as 0"):
        given = to_captum(heat, GRAY)
    captums.visualize_image_attr(**given, method="heat_map", sign="all", use_pyplot=False)


def test_captum_gets_one_map_only():
    with pytest.raises(ValueError, match=r"`heat` must have shape .*; got \(2, 3, 4\)"):
        to_captum(torch.zeros(2, 3, 4), GRAY)


# Sweep


def test_sweep_shows_each_number_of_groups():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 24, 2))
    nn.init.uniform_(model[3].weight)  # each map speaks for the class
    x = torch.rand(1, 3, 6, 8)
    results = {
        k: ClusteredLayerAblation(model.eval(), model[1], n_clusters=k).explain(x, target=0)
        for k in (16, 2, 4, 8)
    }
    figure = sweep(GRAY, results, title="a sweep")
    titles = [ax.get_title() for ax in figure.axes if ax.get_visible()]
    assert titles[:5] == ["image", "K=2", "K=4", "K=8", "K=16"]
    notes = [ax.get_xlabel() for ax in figure.axes[1:5]]
    assert notes[0].startswith("2 groups, largest drop ")
    assert "\nr = " not in notes[0]
    heats = [_enlarged(results[k]) for k in (2, 4)]
    r = np.corrcoef(heats[0].ravel(), heats[1].ravel())[0, 1]
    assert notes[1].endswith(f"\nr = {r:.2f} with the one before")
    assert _inside(figure)


def _enlarged(result):
    return torch.nn.functional.interpolate(result.attributions, (6, 8), mode="bilinear").numpy()


def test_sweep_says_that_a_map_is_flat():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 2))
    nn.init.zeros_(model[3].weight)
    result = ClusteredLayerAblation(model.eval(), model[1]).explain(torch.rand(1, 3, 6, 8), 0)
    figure = sweep(GRAY, {64: result})
    assert figure.axes[1].get_xlabel() == "flat map: the same value everywhere"


def test_sweep_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`results` must have at least one result; got none"):
        sweep(GRAY, {})
