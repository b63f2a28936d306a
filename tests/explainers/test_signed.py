"""Maps with two signs in every method: evidence by hand, identities, neighbours in a batch."""

import re

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn
from torch.nn import functional as F

from captum_clustered import (
    ClusteredLayerAblation,
    ClusteredLayerOptimization,
    ClusteredLayerScore,
    LayerAblationCam,
    LayerEGradCam,
    LayerGroupCam,
    LayerScoreCam,
)
from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import RandomGroups
from captum_clustered.shapley import Shapley
from captum_clustered.stability import stability
from small_models import split_cnn

WEIGHTINGS = ["drop", "drop_per_map", "drop_per_mass", "drop_per_norm", "drop_by_activation"]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


# Evidence by hand


class TwoObjects(nn.Module):
    """Two maps are negative where an object is; one of them speaks for the class, one against.

    The first class is read with the weights -1 and 1: what the first map says below zero is
    evidence for it, what the second says is evidence against. For the second class it is the
    other way round. The third map is not read.
    """

    def __init__(self):
        super().__init__()
        self.maps = nn.Conv2d(2, 3, 1, bias=False)
        with torch.no_grad():
            self.maps.weight[:] = torch.tensor([[-1.0, 0], [0, -1], [0.5, 0]]).view(3, 2, 1, 1)

    def forward(self, x):
        a = self.maps(x).mean((2, 3))
        score = -a[:, 0] + a[:, 1]
        return torch.stack([score, -score], 1)


def _objects():
    x = torch.zeros(1, 2, 6, 6)
    x[0, 0, 1:3, 1:3] = 9
    x[0, 1, 3:5, 3:5] = 5
    return x


def _places(heat, target):
    """The heat on the object that speaks for the class, on the one against it, and elsewhere."""
    assert heat.shape == (1, 1, 6, 6)
    objects = heat[0, 0, 1:3, 1:3], heat[0, 0, 3:5, 3:5]
    rest = torch.ones(6, 6, dtype=torch.bool)
    rest[1:3, 1:3] = rest[3:5, 3:5] = False
    return objects[target], objects[1 - target], heat[0, 0][rest]


def _raw_drop(scores, ablated_scores, labels, activations):
    return scores.unsqueeze(1) - ablated_scores


ABLATIONS = {
    "Ablation-CAM": lambda m, **s: LayerAblationCam(m, m.maps, **s),
    "Ablation-CAM by norm": lambda m, **s: LayerAblationCam(
        m, m.maps, weighting="drop_per_norm", **s
    ),
    "Adaptive": lambda m, **s: ClusteredLayerAblation(m, m.maps, clusterer=Adaptive(8), **s),
    **{
        f"Clustered-CAM, {weighting if isinstance(weighting, str) else 'a callable'}": (
            lambda m, weighting=weighting, **s: ClusteredLayerAblation(
                m, m.maps, clusterer="kmeans", n_clusters=4, weighting=weighting, **s
            )
        )
        for weighting in (*WEIGHTINGS, _raw_drop)
    },
    **{
        f"Shapley, {weighting}": (
            lambda m, weighting=weighting, **s: ClusteredLayerAblation(
                m, m.maps, clusterer="every-map", weighting=Shapley(2, weighting), **s
            )
        )
        for weighting in WEIGHTINGS
    },
}


@pytest.mark.parametrize("parts", ["signed", "whole"])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("method", ABLATIONS)
def test_what_speaks_for_the_class_is_lit_and_what_speaks_against_it_is_not(method, target, parts):
    model = TwoObjects().eval()
    cam = ABLATIONS[method](model, parts=parts)
    lit, dark, elsewhere = _places(cam.attribute(_objects(), target), target)
    assert (lit > 0).all()
    assert dark.count_nonzero() == elsewhere.count_nonzero() == 0
    raw = cam.attribute(_objects(), target, relu_attributions=False)
    lit, dark, elsewhere = _places(raw, target)
    assert (lit > 0).all()
    assert (dark < 0).all()
    assert elsewhere.count_nonzero() == 0


@pytest.mark.parametrize("parts", ["signed", "whole"])
@pytest.mark.parametrize("target", [0, 1])
def test_the_drops_and_weights_of_the_example_by_hand(target, parts):
    model = TwoObjects().eval()
    result = LayerAblationCam(model, model.maps, parts=parts).explain(_objects(), target)
    sign = 1 - 2 * target
    score, means = sign * (1 - 5 / 9), (sign * 1, -sign * 5 / 9)  # of 36 pixels, 4 are 9, or 5
    assert result.scores.item() == pytest.approx(score, abs=1e-6)
    if parts == "signed":
        assert result.labels.tolist() == [[-1, -1, 0]]
        assert result.labels_below.tolist() == [[1, 2, -1]]
        assert result.parts.shape == (1, 6, 6, 6)
    else:
        assert result.labels.tolist() == result.labels_below.tolist() == [[0, 1, 2]]
        assert result.parts.shape == (1, 3, 6, 6)
    for k in range(2):
        below = result.labels_below[0, k]
        assert result.drops[0, below].item() == pytest.approx(means[k], abs=1e-6)
        weight = means[k] / abs(score)
        assert result.channel_weights_below[0, k].item() == pytest.approx(weight, abs=1e-5)
        above = weight if parts == "whole" else 0
        assert result.channel_weights[0, k].item() == pytest.approx(above, abs=1e-5)
    heat = result.activations.abs()[0, :2] * torch.tensor(means).view(2, 1, 1) / abs(score)
    torch.testing.assert_close(result.attributions[0, 0], heat.sum(0).relu())


@pytest.mark.parametrize("parts", ["signed", "whole"])
@pytest.mark.parametrize("target", [0, 1])
def test_several_groupings_agree_on_the_example(target, parts):
    model = TwoObjects().eval()
    cam = ClusteredLayerAblation(
        model, model.maps, clusterer=RandomGroups(3), weighting="drop", parts=parts
    )
    found = stability(cam, _objects(), target, seeds=(0, 1, 2))
    lit, dark, elsewhere = _places(found.mean, target)
    assert (lit == 1).all()
    assert dark.count_nonzero() == elsewhere.count_nonzero() == 0
    assert found.std.count_nonzero() == 0
    assert (found.agreement == 1).all()  # each part is a group of its own


def test_agreement_is_of_parts():
    """Groupings that differ below zero only do not agree; whole maps count once."""
    model = TwoObjects().eval()
    x = torch.randn(1, 2, 6, 6)
    cam = ClusteredLayerAblation(model, model.maps)
    same = torch.tensor([0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 0, 1])
    found = stability(cam, x, 0, clusterers=same)
    assert found.agreement[0, 0, 1] < 1
    whole = torch.tensor([0, 0, 1]), torch.tensor([1, 1, 0])
    found = stability(cam, x, 0, clusterers=whole)
    assert found.agreement[0, 0, 1] == 1
    half = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1])
    found = stability(cam, x, 0, clusterers=half)
    assert found.agreement[0, 0, 1] == pytest.approx(-0.5)  # as of three maps, not of six parts


MASKINGS = {
    "Score-CAM": lambda m, **s: LayerScoreCam(m, m.maps, **s),
    "Score-CAM of the code": lambda m, **s: LayerScoreCam(m, m.maps, variant="probability", **s),
    "groups, softmax": lambda m, **s: ClusteredLayerScore(m, m.maps, n_clusters=4, **s),
    "groups, gain": lambda m, **s: ClusteredLayerScore(
        m, m.maps, clusterer="every-map", weigh_by="gain", **s
    ),
    "groups, score": lambda m, **s: ClusteredLayerScore(
        m, m.maps, clusterer="kmeans", n_clusters=4, weigh_by="score", share="map", **s
    ),
    "optimization": lambda m, **s: ClusteredLayerOptimization(m, m.maps, n_clusters=4, **s),
}


@pytest.mark.parametrize("parts", ["signed", "whole"])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("method", MASKINGS)
def test_masks_are_made_of_what_maps_say_below_zero(method, target, parts):
    model = TwoObjects().eval()
    cam = MASKINGS[method](model, parts=parts)
    result = cam.explain(_objects(), target)
    lit, other, elsewhere = _places(result.attributions, target)
    assert (lit > 0).all()
    assert lit.sum() > 1.5 * other.sum()
    if "gain" in method or method == "groups, score":  # not, or less than not, worth a mask
        assert (other == 0).all()
    assert elsewhere.count_nonzero() == 0
    assert result.valid.any(1).all()


GRADIENTS = {
    "Grad-CAM": lambda m: LayerGradCam(m, m.maps),
    "EGrad-CAM": lambda m: LayerEGradCam(m, m.maps, threshold=0.0),
    "Group-CAM": lambda m: LayerGroupCam(m, m.maps, clusterer="every-map", fill=0.0),
}


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("method", GRADIENTS)
def test_methods_with_gradients_are_right_by_definition(method, target):
    """A gradient times a map is evidence for the class where both are negative."""
    model = TwoObjects().eval()
    cam = GRADIENTS[method](model)
    settings = {"relu_attributions": True} if method == "Grad-CAM" else {}
    heat = cam.attribute(_objects(), target, **settings).detach()
    lit, dark, elsewhere = _places(heat, target)
    assert (lit > 0).all()
    assert dark.count_nonzero() == elsewhere.count_nonzero() == 0


# Identities


@pytest.fixture
def x():
    return torch.rand(3, 3, 8, 7, dtype=torch.float64) - 0.3


CLUSTERERS = ["kmeans", "cosine", "agglomerative", "contiguous", "random", "every-map", Adaptive(6)]


def _name(value):
    """A name for a test: without addresses, which differ between processes."""
    if isinstance(value, torch.Tensor):
        return f"{len(value)} labels"
    return re.sub(r" at 0x\w+", "", getattr(value, "__name__", str(value)))


@pytest.mark.parametrize("weighting", [*WEIGHTINGS, _raw_drop, Shapley(2)], ids=_name)
@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=_name)
def test_behind_a_relu_maps_are_their_own_parts(x, clusterer, weighting):
    model = split_cnn(channels=9)
    signed, whole = (
        ClusteredLayerAblation(
            model, model[0], clusterer=clusterer, n_clusters=4, weighting=weighting, parts=parts
        ).explain(x, 1)
        for parts in ("signed", "whole")
    )
    assert torch.equal(signed.parts, signed.activations)
    assert (signed.labels_below == -1).all()
    assert signed.channel_weights_below.count_nonzero() == 0
    for name in ("labels", "scores", "ablated_scores", "channel_weights", "attributions", "valid"):
        assert torch.equal(getattr(signed, name), getattr(whole, name)), name
    for one, other in zip(signed.groups(1), whole.groups(1), strict=True):
        assert (one.members, one.below, one.size) == (other.members, (), other.size)
        assert len(one.members) == one.size


class Signed(nn.Module):
    """Signed maps before pooling and a linear layer."""

    def __init__(self, seed=0, channels=6):
        super().__init__()
        torch.manual_seed(seed)
        self.maps = nn.Conv2d(3, channels, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, 4)
        self.double().eval()

    def forward(self, x):
        return self.fc(self.pool(self.maps(x)).flatten(1))


@pytest.mark.parametrize("replay", ["suffix", "full"])
@pytest.mark.parametrize("baseline", [None, 0.3, -0.7, "maps"])
def test_before_a_pooled_linear_head_the_heat_is_gradient_times_deviation(x, baseline, replay):
    model = Signed()
    if baseline == "maps":
        baseline = torch.randn(6, 1, 1, dtype=torch.float64)
    cam = ClusteredLayerAblation(
        model, model.maps, clusterer="every-map", weighting="drop_per_mass", replay=replay
    )
    result = cam.explain(x, [0, 3, 1], layer_baselines=baseline, relu_attributions=False)
    with torch.no_grad():
        maps = model.maps(x)
        rest = torch.as_tensor(0 if baseline is None else baseline, dtype=maps.dtype)
        rest = rest.expand_as(maps)
        slopes = model.fc.weight[[0, 3, 1]][:, :, None, None] / maps[0, 0].numel()
        heat = (slopes * (maps - rest)).sum(1, keepdim=True)
        left = model.fc(model.pool(rest).flatten(1))[range(3), [0, 3, 1]]
    assert (maps < 0).any()
    heat = heat / result.scores.abs().view(3, 1, 1, 1)
    torch.testing.assert_close(result.attributions, heat, **EXACT)
    total = (result.scores - left) / result.scores.abs()
    torch.testing.assert_close(result.attributions.sum((1, 2, 3)), total, **EXACT)


class Flipped(nn.Module):
    """A model that reads its maps with other signs."""

    def __init__(self, signs, channels=6):
        super().__init__()
        torch.manual_seed(1)
        self.maps = nn.Conv2d(3, channels, 3)
        self.tail = nn.Sequential(
            nn.Conv2d(channels, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(20, 4),
        )  # fmt: skip
        self.double().eval()
        with torch.no_grad():
            self.maps.weight *= signs.view(-1, 1, 1, 1)
            self.maps.bias *= signs
            self.tail[0].weight *= signs.view(1, -1, 1, 1)

    def forward(self, x):
        return self.tail(self.maps(x))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("clusterer", ["every-map", "agglomerative", Adaptive(8)], ids=str)
def test_the_sign_of_a_map_is_a_convention(x, clusterer, weighting):
    """These clusterers do not hang on the order of parts; the others draw other numbers."""
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64)
    flipped, plain = (
        ClusteredLayerAblation(
            model, model.maps, clusterer=clusterer, n_clusters=4, weighting=weighting
        ).explain(x, [0, 3, 1], layer_baselines=0)
        for model in (Flipped(signs), Flipped(torch.ones_like(signs)))
    )
    torch.testing.assert_close(flipped.attributions, plain.attributions, **EXACT)
    above, below = flipped.channel_weights, flipped.channel_weights_below
    expected = torch.where(signs < 0, below, above)
    torch.testing.assert_close(plain.channel_weights, expected, **EXACT)
    expected = torch.where(signs < 0, above, below)
    torch.testing.assert_close(plain.channel_weights_below, expected, **EXACT)


@pytest.mark.parametrize("make", ["score", "score-cam", "optimization"])
def test_the_sign_of_a_map_is_a_convention_of_masks_too(x, make):
    signs = torch.tensor([1.0, -1, -1, 1, -1, 1], dtype=torch.float64)
    kinds = {
        "score": lambda m: ClusteredLayerScore(m, m.maps, n_clusters=4),
        "score-cam": lambda m: LayerScoreCam(m, m.maps),
        "optimization": lambda m: ClusteredLayerOptimization(m, m.maps, n_clusters=4),
    }
    flipped, plain = (
        kinds[make](model).attribute(x, [0, 3, 1])
        for model in (Flipped(signs), Flipped(torch.ones_like(signs)))
    )
    assert (plain.amax((1, 2, 3)) > plain.amin((1, 2, 3))).all()
    torch.testing.assert_close(flipped, plain, rtol=1e-7, atol=1e-9)


# Neighbours


def _mixed():
    """Three examples; the maps of the second are nowhere negative."""
    model = Flipped(torch.ones(6, dtype=torch.float64))
    x = torch.randn(3, 3, 8, 7, dtype=torch.float64)
    with torch.no_grad():  # the maps are the image's channels, twice, with two signs
        model.maps.weight.zero_()
        model.maps.bias.zero_()
        for k in range(6):
            model.maps.weight[k, k % 3, 1, 1] = 1 + 0.3 * k
    x[1] = x[1].abs()
    maps = model.maps(x)
    assert (maps[[0, 2]].amin((2, 3)) < 0).all()
    assert (maps[1] >= 0).all()
    return model, x


def _every_third(features):
    return torch.arange(features.shape[1]).remainder(3).expand(len(features), -1)


def _by_size(features):
    return (features.sum(2) > features.sum(2).mean(1, keepdim=True)).long()


NEIGHBOURS = [
    "contiguous", "random", "kmeans", "cosine", "agglomerative", "every-map", Adaptive(6),
    _every_third, _by_size, RandomGroups(like=_by_size), torch.tensor([0, 1, 1, 2, 0, 2]),
    torch.tensor([0, 1, 1, 2, 0, 2, 0, 3, 3, 1, 2, -1]),
]  # fmt: skip


@pytest.mark.parametrize("n_clusters", [4, 8])  # fewer than maps, and more
@pytest.mark.parametrize(
    ("clusterer", "parts"),
    [
        *((clusterer, "signed") for clusterer in NEIGHBOURS),
        *((clusterer, "whole") for clusterer in NEIGHBOURS[:-1]),  # the last are labels of parts
    ],
    ids=_name,
)
def test_an_example_does_not_depend_on_its_neighbours(clusterer, parts, n_clusters):
    model, x = _mixed()
    cam = ClusteredLayerAblation(
        model, model.maps, clusterer=clusterer, n_clusters=n_clusters, parts=parts
    )
    target = [0, 3, 1]
    batch = cam.explain(x, target)
    for i in range(3):
        alone = cam.explain(x[i : i + 1], target[i])
        k = alone.ablated_scores.shape[1]
        assert torch.equal(batch.labels[i], alone.labels[0])
        assert torch.equal(batch.labels_below[i], alone.labels_below[0])
        torch.testing.assert_close(batch.drops[i, :k], alone.drops[0], **EXACT)
        assert batch.drops[i, k:].count_nonzero() == 0
        assert torch.equal(batch.valid[i, :k], alone.valid[0])
        assert not batch.valid[i, k:].any()
        torch.testing.assert_close(batch.attributions[i], alone.attributions[0], **EXACT)
        assert batch.counts(i) == alone.counts()
        for one, other in zip(batch.groups(i), alone.groups(), strict=True):
            assert (one.members, one.below) == (other.members, other.below)


@pytest.mark.parametrize(
    "make",
    [
        lambda m, c: ClusteredLayerScore(m, m.maps, clusterer=c, n_clusters=4),
        lambda m, c: ClusteredLayerScore(m, m.maps, clusterer=c, n_clusters=8, weigh_by="gain"),
        lambda m, c: LayerScoreCam(m, m.maps, clusterer=c, n_clusters=4),
        lambda m, c: ClusteredLayerOptimization(m, m.maps, clusterer=c, n_clusters=4),
    ],
    ids=["softmax", "gain", "score-cam", "optimization"],
)
@pytest.mark.parametrize("clusterer", ["contiguous", "random", "kmeans", _every_third], ids=_name)
def test_masks_do_not_depend_on_neighbours(clusterer, make):
    model, x = _mixed()
    cam = make(model, clusterer)
    target = [0, 3, 1]
    batch = cam.explain(x, target)
    for i in range(3):
        alone = cam.explain(x[i : i + 1], target[i])
        assert torch.equal(batch.labels[i], alone.labels[0])
        assert torch.equal(batch.labels_below[i], alone.labels_below[0])
        torch.testing.assert_close(
            batch.attributions[i], alone.attributions[0], rtol=1e-7, atol=1e-9
        )


# Masks and results


def test_masks_of_parts_by_hand(x):
    model = Flipped(torch.ones(6, dtype=torch.float64))
    labels = torch.tensor([0, 1, 1, 2, 0, 2, 3, 3, 1, 2, -1, 0])
    cam = ClusteredLayerScore(
        model, model.maps, clusterer=labels, weigh_by="gain", share="map", score="identity"
    )
    result = cam.explain(x, [0, 3, 1], relu_attributions=False)
    with torch.no_grad():
        maps = model.maps(x)
        parts = torch.cat([maps.clamp(min=0), (-maps).clamp(min=0)], 1)
        for i, cls in enumerate([0, 3, 1]):
            hidden = model(torch.zeros_like(x[i : i + 1]))[0, cls]
            heat = torch.zeros_like(maps[0, 0])
            for k in range(4):
                joint = parts[i, labels == k].sum(0)
                torch.testing.assert_close(result.group_maps[i, k], joint, **EXACT)
                large = F.interpolate(joint[None, None], x.shape[2:], mode="bilinear")[0]
                mask = (large - large.min()) / (large.max() - large.min())
                score = model((x[i] * mask)[None])[0, cls]
                torch.testing.assert_close(result.masked_scores[i, k], score, **EXACT)
                heat += (score - hidden).clamp(min=0) / (labels == k).sum() * joint
            torch.testing.assert_close(result.attributions[i, 0], heat, **EXACT)
    assert result.valid.all()


def test_masks_whose_maps_cancel_are_masks(x):
    """Of whole maps with opposite signs the sum is flat; what they say is not."""
    model = Flipped(torch.ones(6, dtype=torch.float64))
    with torch.no_grad():
        model.maps.weight[3:] = -model.maps.weight[:3]
        model.maps.bias[3:] = -model.maps.bias[:3]
    labels = torch.zeros(6, dtype=torch.int64)
    for cam in (
        ClusteredLayerScore(model, model.maps, clusterer=labels),
        ClusteredLayerOptimization(model, model.maps, clusterer=labels),
    ):
        result = cam.explain(x, [0, 3, 1])
        assert result.valid.all()
        expected = model.maps(x).detach().abs().sum(1, keepdim=True)
        shares = expected / expected.sum((2, 3), keepdim=True)
        torch.testing.assert_close(result.attributions, shares, **EXACT)


@pytest.mark.parametrize("clusterer", ["kmeans", "every-map", "contiguous", Adaptive(8)], ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_labels_of_a_result_make_it_again(clusterer, negative):
    model, x = _mixed()
    x = x if negative else x.abs()
    found = ClusteredLayerAblation(model, model.maps, clusterer=clusterer, n_clusters=4).explain(
        x, [0, 3, 1], layer_baselines=-0.1 if negative else None
    )
    labels = torch.cat([found.labels, found.labels_below], 1)
    again = ClusteredLayerAblation(model, model.maps, clusterer=labels).explain(
        x, [0, 3, 1], layer_baselines=-0.1 if negative else None
    )
    assert torch.equal(again.labels, found.labels)
    assert torch.equal(again.labels_below, found.labels_below)
    near = {"rtol": 1e-5, "atol": 1e-7}  # Adaptive keeps drops in float32
    torch.testing.assert_close(again.drops, found.drops, **near)
    torch.testing.assert_close(again.attributions, found.attributions, **near)


@pytest.mark.parametrize("relu", [False, True])
def test_without_the_sum_the_parts_of_a_map_are_added(x, relu):
    model = Flipped(torch.ones(6, dtype=torch.float64))
    cam = ClusteredLayerAblation(model, model.maps, n_clusters=5)
    result = cam.explain(x, 1, attr_dim_summation=False, relu_attributions=relu)
    maps = model.maps(x).detach()
    expected = (
        result.channel_weights[..., None, None] * maps.clamp(min=0)
        + result.channel_weights_below[..., None, None] * (-maps).clamp(min=0)
    )  # fmt: skip
    assert (expected < 0).any()
    expected = expected.relu() if relu else expected
    torch.testing.assert_close(result.attributions, expected, **EXACT)
    if not relu:
        summed = cam.attribute(x, 1, relu_attributions=False)
        torch.testing.assert_close(expected.sum(1, keepdim=True), summed, **EXACT)


def test_a_weighting_sees_labels_and_values_of_parts(x):
    seen = {}

    def watch(scores, ablated_scores, labels, activations):
        seen.update(labels=labels, activations=activations)
        return scores.unsqueeze(1) - ablated_scores

    model = Flipped(torch.ones(6, dtype=torch.float64))
    result = ClusteredLayerAblation(model, model.maps, n_clusters=3, weighting=watch).explain(x, 1)
    assert torch.equal(seen["labels"], torch.cat([result.labels, result.labels_below], 1))
    assert torch.equal(seen["activations"], result.parts)
    assert result.parts.shape == (3, 12, 6, 5)


def test_groups_are_of_parts(x):
    model = Flipped(torch.ones(6, dtype=torch.float64))
    result = ClusteredLayerAblation(model, model.maps, n_clusters=4).explain(x, 1)
    for i in range(3):
        groups = result.groups(i)
        members = [k for group in groups for k in group.members]
        below = [k for group in groups for k in group.below]
        assert sorted(members) == (result.labels[i] >= 0).nonzero().flatten().tolist()
        assert sorted(below) == (result.labels_below[i] >= 0).nonzero().flatten().tolist()
        for group in groups:
            assert group.size == len(group.members) + len(group.below)
            maps = result.activations[i]
            values = [maps[k].clamp(min=0) for k in group.members]
            values += [(-maps[k]).clamp(min=0) for k in group.below]
            torch.testing.assert_close(group.mean_map, torch.stack(values).mean(0))
            assert group.drop == pytest.approx(float(result.drops[i, group.number]))
    assert any(group.below for group in result.groups())
    assert result.counts() == {"maps": 6, "dead_maps": 0, "maps_in_no_group": 0}


# The weighting "auto"


def _weighed(model, x, weighting, **settings):
    cam = ClusteredLayerAblation(
        model, model[0], n_clusters=3, weighting=weighting, unpainted="keep", **settings
    )
    return cam.explain(x, [0] * len(x), relu_attributions=False)


def _tanh_head(channels=6):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Identity(), nn.Conv2d(channels, 4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)
    ).double()


@pytest.mark.parametrize("parts", ["signed", "whole"])
def test_each_example_has_the_weighting_of_its_signs(parts):
    model, x = _tanh_head(), torch.randn(3, 6, 3, 3).double()
    x[1] = x[1].abs()
    found = _weighed(model, x, "auto", parts=parts)
    for row, name in enumerate(["drop_per_norm", "drop_per_map", "drop_per_norm"]):
        expected = _weighed(model, x[row : row + 1], name, parts=parts)
        torch.testing.assert_close(found.attributions[row], expected.attributions[0], **EXACT)
        k = expected.group_weights.shape[1]
        torch.testing.assert_close(found.group_weights[row, :k], expected.group_weights[0], **EXACT)


@pytest.mark.parametrize("baseline", [None, -1.0])
def test_behind_a_relu_it_is_drop_per_map_to_the_last_bit(baseline):
    model, x = split_cnn(), torch.rand(2, 3, 9, 9).double()
    for weighting in ("auto", Shapley(4)):
        plain = "drop_per_map" if weighting == "auto" else Shapley(4, "drop_per_map")
        one, other = (
            ClusteredLayerAblation(model, model[0], n_clusters=4, weighting=name).explain(
                x, [0, 1], layer_baselines=baseline
            )
            for name in (weighting, plain)
        )
        assert torch.equal(one.attributions, other.attributions)
        assert torch.equal(one.group_weights, other.group_weights)


def test_shapley_values_have_it_as_well():
    model, x = _tanh_head(), torch.randn(2, 6, 3, 3).double()
    found, expected = (
        _weighed(model, x, Shapley(4, name)).attributions for name in ("auto", "drop_per_norm")
    )
    torch.testing.assert_close(found, expected, **EXACT)
