"""Parts: taking maps apart, and what is switched off, against clamping by hand."""

import copy
from unittest import mock

import pytest
import torch
from captum.attr import LayerFeatureAblation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import captum_clustered.engine.copies as copies_module
import captum_clustered.engine.replay as replay_module
import captum_clustered.engine.switching as switching
from captum_clustered import ClusteredLayerAblation
from captum_clustered._borrow import borrowed
from captum_clustered.clustering import RandomGroups, as_clusterer
from captum_clustered.engine.calls import LayerIO
from captum_clustered.engine.capture import capture
from captum_clustered.engine.model import Model
from captum_clustered.engine.parts import as_parts
from captum_clustered.heatmap import vit_reshape_transform
from captum_clustered.shapley import Shapley
from captum_clustered.targets import format_target
from reference import off, parts_cam

WEIGHTINGS = ["drop", "drop_per_map", "drop_per_mass", "drop_per_norm", "drop_by_activation"]
EXACT = {"rtol": 1e-9, "atol": 1e-10}


# Taking apart


def test_parts_by_hand():
    maps = torch.tensor([[[2.0, -3.0], [-1.0, -1.0], [0.0, 0.0]], [[1.0, 0.0]] * 3])
    parts = as_parts(maps, None)
    assert parts.values.tolist() == [
        [[2, 0], [0, 0], [0, 0], [0, 3], [1, 1], [0, 0]],
        [[1, 0]] * 3 + [[0, 0]] * 3,
    ]
    assert parts.features is parts.values or torch.equal(parts.features, parts.values)
    assert (parts.n_maps, parts.two_sided, parts.whole) == (3, True, False)
    assert parts.signed.tolist() == [True, False]
    whole = as_parts(maps, None, whole=True)
    assert torch.equal(whole.values, maps.abs())
    assert torch.equal(whole.features, maps)  # opposite maps are not alike
    assert (whole.two_sided, whole.whole) == (False, True)


def test_maps_that_are_nowhere_below_are_their_only_parts():
    maps = torch.rand(2, 3, 4, 4)
    for whole in (False, True):
        parts = as_parts(maps, None, whole=whole)
        assert parts.values is maps
        assert not parts.two_sided
        assert not parts.signed.any()
    shifted = as_parts(maps - 5, torch.tensor(-5.0))
    torch.testing.assert_close(shifted.values, maps)
    both = as_parts(maps, None, both=True)
    assert torch.equal(both.values, torch.cat([maps, torch.zeros_like(maps)], 1))


def test_a_map_is_its_baseline_and_what_its_parts_say():
    maps, baseline = torch.randn(2, 3, 4, 5), torch.randn(1, 3, 1, 1)
    parts = as_parts(maps, baseline)
    above, below = parts.values.split(3, dim=1)
    assert (parts.values >= 0).all()
    assert (above * below).count_nonzero() == 0
    torch.testing.assert_close(baseline + above - below, maps)


def test_what_is_known_of_parts_by_map():
    maps = torch.tensor([[[1.0, -1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 2.0]]])
    values = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    above, below = as_parts(maps, None).by_map(values, -1)
    assert (above.tolist(), below.tolist()) == ([[1, 2], [5, 6]], [[3, 4], [7, 8]])
    above, below = as_parts(maps, None, whole=True).by_map(values[:, :2], -1)
    # the second example has nothing below
    assert (above.tolist(), below.tolist()) == ([[1, 2], [5, 6]], [[1, 2], [-1, -1]])
    above, below = as_parts(maps.abs(), None).by_map(values[:, :2], 0)
    assert (above.tolist(), below.tolist()) == ([[1, 2], [5, 6]], [[0, 0], [0, 0]])


@pytest.mark.parametrize("relu", [False, True])
def test_painting_by_hand(relu):
    maps = torch.tensor([[[[2.0, -3.0]], [[-1.0, 4.0]]]])
    weights = torch.tensor([[1.0, 10.0, 100.0, -1000.0]])
    heat = as_parts(maps, None).paint(weights, relu, sum_maps=True)
    expected = torch.tensor([[[[2.0 - 1000, 300.0 + 40]]]])
    assert torch.equal(heat, expected.relu() if relu else expected)
    each = as_parts(maps, None).paint(weights, relu, sum_maps=False)
    expected = torch.tensor([[[[2.0, 300.0]], [[-1000.0, 40.0]]]])
    assert torch.equal(each, expected.relu() if relu else expected)


@pytest.mark.parametrize("sign", [-1, 1])
def test_an_infinite_baseline_leaves_the_magnitude(sign):
    maps = torch.tensor([[[1.0, -2.0], [0.0, 3.0]]])
    baseline = torch.tensor([sign * float("inf"), 1.0]).view(1, 2, 1)
    parts = as_parts(maps, baseline)
    own = [[0, 0], [0, 2]], [[0, 0], [1, 0]]
    own[sign > 0][0][:] = [1, 2]  # below a baseline of +inf, above one of -inf
    assert parts.values.tolist() == [[own[0][0], own[0][1], own[1][0], own[1][1]]]


# Switching off: random layers and heads


class Head(nn.Module):
    """What lies behind the layer; the score of the example's class."""

    def __init__(self, kind, channels, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.pool = nn.AdaptiveAvgPool2d(2 if kind in ("wide", "chain") else 1)
        self.most = nn.MaxPool2d(2, 1)
        self.norm = nn.BatchNorm2d(channels)
        self.act = {"chain": nn.GELU(), "relu": nn.ReLU(), "most": nn.Tanh()}.get(kind)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels * (4 if kind in ("wide", "chain") else 1), 3)
        self.conv = nn.Conv2d(channels, 4, 2)
        self.out = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.5, 0.5)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.weight.uniform_(-2, 2)
            self.norm.weight[0] = -1.5  # turns what lies above into what lies below
            self.norm.bias.uniform_(-1, 1)

    def forward(self, maps):
        if self.kind == "conv":
            return self.out(self.conv(maps).tanh().amax((2, 3)))
        if self.kind == "squares":
            return self.fc((maps.square() - maps).mean((2, 3))) ** 2
        if self.kind == "norm":
            maps = self.norm(maps)
        elif self.kind == "relu":
            maps = self.act(self.norm(maps))
        elif self.kind == "chain":
            maps = self.norm(self.act(self.norm(maps)))
        elif self.kind == "most":
            maps = self.most(self.act(maps))
        return self.fc(self.flatten(self.pool(maps)))


KINDS = ["linear", "wide", "norm", "relu", "chain", "most", "conv", "squares"]
LINEAR = ["linear", "wide", "norm", "relu", "chain", "most"]  # these end in one linear layer


def _model(kind, channels, seed=0):
    model = nn.Sequential(nn.Identity(), Head(kind, channels, seed))
    return model.double().eval()


def _maps(n, c, seed, signs="signed", size=(2, 3)):
    """Maps of which some values equal zero and some maps, or all of an example, have one sign."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(n, c, *size, dtype=torch.float64, generator=generator)
    maps[torch.rand(maps.shape, generator=generator) < 0.15] = 0
    if signs == "one example nowhere negative":
        maps[-1].abs_()
    elif signs == "one-sided maps":
        maps[:, 0] = maps[:, 0].abs()
        maps[:, -1] = -maps[:, -1].abs()
    elif signs == "all below":
        maps = -maps.abs()
    elif signs == "a dead map":
        maps[:, 0] = 0
    return maps


def _baseline(kind, maps, seed):
    shapes = {"maps": (maps.shape[1], 1, 1), "tensor": maps.shape}
    if kind in shapes:
        generator = torch.Generator().manual_seed(seed + 1)
        return torch.randn(shapes[kind], dtype=torch.float64, generator=generator) / 2
    return {"none": None, "zero": 0, "number": 0.3, "low": -2.5}[kind]


def _by_hand(model, x, target, result, weighting, baseline, whole=False):
    """Heat maps and ablated scores of each example from :func:`reference.parts_cam`."""
    full = torch.as_tensor(0 if baseline is None else baseline, dtype=x.dtype).expand_as(x)
    found = []
    for i in range(len(x)):
        row = [*result.labels[i].tolist(), *result.labels_below[i].tolist()]
        head = lambda maps, i=i: model[1](maps[0])[0, target[i]]  # noqa: E731
        heats, ablated = parts_cam(head, [x[i]], [row], weighting, [full[i]], whole=whole)
        found.append((heats[0], ablated[0]))
    return found


def _assert_by_hand(model, x, target, result, weighting, baseline, whole=False):
    by_hand = _by_hand(model, x, target, result, weighting, baseline, whole)
    for i, (heat, ablated) in enumerate(by_hand):
        expected = torch.tensor(ablated, dtype=torch.float64)
        torch.testing.assert_close(result.ablated_scores[i, : len(ablated)], expected, **EXACT)
        assert (result.drops[i, len(ablated) :] == 0).all()
        torch.testing.assert_close(result.attributions[i, 0], heat, **EXACT)


CLUSTERERS = st.sampled_from(["every-map", "contiguous", "kmeans", "random", "agglomerative"])


@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4)),
    signs=st.sampled_from(
        ["signed", "one example nowhere negative", "one-sided maps", "all below", "a dead map"]
    ),
    kind=st.sampled_from(KINDS),
    clusterer=st.one_of(CLUSTERERS, st.just("labels of parts"), st.just("labels of maps")),
    weighting=st.sampled_from(WEIGHTINGS),
    baseline=st.sampled_from(["none", "zero", "number", "low", "maps", "tensor"]),
    parts=st.sampled_from(["signed", "signed", "whole"]),
    chunk=st.sampled_from([None, 1, 2, 5]),
    few=st.sampled_from([0, 256]),
    data=st.data(),
)
@settings(max_examples=150)
def test_scores_and_heat_are_those_of_clamping_by_hand(
    seed, shape, signs, kind, clusterer, weighting, baseline, parts, chunk, few, data
):
    n, c = shape
    model, x = _model(kind, c, seed), _maps(n, c, seed, signs)
    target = [(seed + i) % 3 for i in range(n)]
    given_baseline = _baseline(baseline, x, seed)
    if clusterer.startswith("labels"):
        p = c if clusterer == "labels of maps" else 2 * c
        parts = "whole" if p == c else "signed"  # as the labels say
        rows = st.lists(st.integers(-1, 3), min_size=p, max_size=p)
        clusterer = torch.tensor(data.draw(st.lists(rows, min_size=n, max_size=n)))
    with torch.no_grad():
        scores = model(x)[range(n), target]
    assume((scores.abs() > 1e-3).all())  # or dividing by it blows rounding up
    for replay in ("suffix", "full"):
        cam = ClusteredLayerAblation(
            model, model[0], clusterer=clusterer, n_clusters=3, weighting=weighting, parts=parts,
            replay=replay,
        )  # fmt: skip
        with mock.patch.object(switching, "_FEW", few):
            result = cam.explain(
                x, target, layer_baselines=given_baseline, relu_attributions=False,
                perturbations_per_eval=chunk,
            )  # fmt: skip
        assert result.replay == replay
        _assert_by_hand(model, x, target, result, weighting, given_baseline, parts == "whole")


@pytest.mark.parametrize("few", [0, 10**9])
@pytest.mark.parametrize("kind", LINEAR)
def test_sites_are_taken_for_parts(kind, few, monkeypatch):
    """Or the test above would not see them."""
    taken = []
    mapped = replay_module._mapped

    def watch(first, io, prefix, ablation, *args, **settings):
        found = mapped(first, io, prefix, ablation, *args, **settings)
        if isinstance(found, replay_module.Replay):
            taken.append((io.layer, type(ablation).__name__))
        return found

    monkeypatch.setattr(replay_module, "_mapped", watch)
    monkeypatch.setattr(switching, "_FEW", few)
    model, x = _model(kind, 4), _maps(2, 4, 0)
    cam = ClusteredLayerAblation(model, model[0], clusterer="every-map", weighting="drop")
    result = cam.explain(x, [0, 2], relu_attributions=False)
    head = model[1]
    assert taken == [(head.fc, "Summed") if few == 0 else (head.pool, "Ablation")]
    assert (result.labels_below >= 0).any()
    _assert_by_hand(model, x, [0, 2], result, "drop", None)


class Pair(nn.Module):
    """A layer of two tensors, of different sizes."""

    def forward(self, x):
        return x[:, :2].contiguous(), x[:, 2:, :, :2].contiguous()


class OfPair(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.pair = Pair()
        self.one, self.other = Head(kind, 2, 1), Head("conv", 3, 2)

    def heads(self, maps):
        return self.one(maps[0]) * self.other(maps[1]).exp() + self.other(maps[1])

    def forward(self, x):
        return self.heads(self.pair(x))


@given(
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["linear", "chain", "squares"]),
    clusterer=st.sampled_from(["every-map", "kmeans", "contiguous"]),
    weighting=st.sampled_from(WEIGHTINGS),
    baseline=st.sampled_from([None, 0.3, (0.3, None), (None, -0.2)]),
    chunk=st.sampled_from([None, 1, 3]),
)
@settings(max_examples=30)
def test_several_tensors_by_hand(seed, kind, clusterer, weighting, baseline, chunk):
    model = OfPair(kind).double().eval()
    x = _maps(2, 5, seed)
    x[:, 2:] = x[:, 2:].abs() if seed % 3 == 0 else x[:, 2:]  # one tensor has no parts below
    values = baseline if isinstance(baseline, tuple) else (baseline, baseline)
    maps = model.pair(x)
    for replay in ("suffix", "full"):
        cam = ClusteredLayerAblation(
            model, model.pair, clusterer=clusterer, n_clusters=2, weighting=weighting, replay=replay
        )
        result = cam.explain(
            x, [0, 2], layer_baselines=baseline, relu_attributions=False,
            perturbations_per_eval=chunk,
        )  # fmt: skip
        for i, cls in enumerate([0, 2]):
            rows = [
                [*above[i].tolist(), *below[i].tolist()]
                for above, below in zip(result.labels, result.labels_below, strict=True)
            ]
            own = [tensor[i] for tensor in maps]
            full = [torch.full_like(tensor, v or 0) for tensor, v in zip(own, values, strict=True)]
            heats, ablated = parts_cam(
                lambda given, cls=cls: model.heads(given)[0, cls], own, rows, weighting, full
            )
            for t in range(2):
                expected = torch.tensor(ablated[t], dtype=torch.float64)
                found = result.ablated_scores[t][i, : len(expected)]
                torch.testing.assert_close(found, expected, **EXACT)
                torch.testing.assert_close(result.attributions[t][i, 0], heats[t], **EXACT)


@pytest.mark.parametrize("replay", ["suffix", "full"])
@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("kind", KINDS)
def test_groups_switched_off_one_after_the_other_by_hand(kind, few, replay, monkeypatch):
    monkeypatch.setattr(switching, "_FEW", few)
    model, x = _model(kind, 4), _maps(2, 4, 3)
    labels = torch.tensor([[0, 1, 2, -1, 0, 2, 3, 1], [3, 0, 0, 1, -1, 2, 1, 0]])
    shapley = Shapley(n_permutations=4, weighting="drop")
    cam = ClusteredLayerAblation(
        model, model[0], clusterer=labels, weighting=shapley, replay=replay
    )
    result = cam.explain(x, [0, 2], layer_baselines=0.2, perturbations_per_eval=3)
    baselines = torch.full_like(x, 0.2)

    @torch.no_grad()
    def run(rank):
        """The scores, and those without the groups of ranks 0; 0 and 1; and so on."""
        scores = torch.stack([model(x[i : i + 1])[0, cls] for i, cls in enumerate([0, 2])])
        rows = []
        for i, cls in enumerate([0, 2]):
            row = []
            for step in range(4):
                gone = {k for k in range(4) if rank[k] <= step}
                (copy,) = off([x[i]], [labels[i].tolist()], gone, [baselines[i]])
                row.append(model[1](copy[None])[0, cls])
            rows.append(torch.stack(row))
        return scores, torch.stack(rows)

    expected, errors = shapley.measure(4, run)
    torch.testing.assert_close(result.scores[:, None] - result.ablated_scores, expected, **EXACT)
    torch.testing.assert_close(result.standard_errors, errors, **EXACT)


@pytest.mark.parametrize("chunk", [None, 1])
@pytest.mark.parametrize("kind", ["linear", "chain", "conv"])
def test_bfloat16_is_as_near_as_it_can_be(kind, chunk):
    model, x = _model(kind, 4), _maps(2, 4, 5).bfloat16()
    low = copy.deepcopy(model).bfloat16()
    rounded = copy.deepcopy(low).double()
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    arguments = {"target": [0, 2], "layer_baselines": 0.25, "relu_attributions": False}
    found, expected = (
        ClusteredLayerAblation(one, one[0], clusterer=labels, weighting="drop_per_map").explain(
            inputs, perturbations_per_eval=chunk, **arguments
        )
        for one, inputs in ((low, x), (rounded, x.double()))
    )
    assert found.replay == "suffix"
    assert found.attributions.dtype == found.parts.dtype == torch.bfloat16
    size = float(expected.scores.abs().max())
    torch.testing.assert_close(found.drops.double(), expected.drops, rtol=0.05, atol=0.05 * size)
    torch.testing.assert_close(found.parts.double(), expected.parts, rtol=1e-2, atol=1e-2)
    _assert_by_hand(rounded, x.double(), [0, 2], expected, "drop_per_map", 0.25)


# Whole maps, and labels


@pytest.mark.parametrize("few", [0, 256])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", [None, 0.3, "maps"])
def test_both_parts_at_once_are_captums_whole_maps(kind, baseline, few, monkeypatch):
    monkeypatch.setattr(switching, "_FEW", few)
    model, x = _model(kind, 4), _maps(2, 4, 1)
    x[:, :, 0, 0], x[:, :, 0, 1] = 2, -2  # every map has two parts
    if baseline == "maps":
        baseline = torch.tensor([0.1, -0.4, 0.0, 1.0], dtype=torch.float64).view(1, 4, 1, 1)
    row = torch.tensor([0, 1, 1, 2])
    theirs = LayerFeatureAblation(model, model[0]).attribute(
        x, target=[0, 2], layer_mask=row.view(1, 4, 1, 1), layer_baselines=baseline
    )[:, [0, 1, 3], 0, 0]
    for replay in ("suffix", "full"):
        heats = []
        for clusterer in (row, torch.cat([row, row]), row.expand(2, -1), row.repeat(2, 2)):
            cam = ClusteredLayerAblation(
                model, model[0], clusterer=clusterer, weighting="drop", replay=replay
            )
            result = cam.explain(x, [0, 2], layer_baselines=baseline)
            torch.testing.assert_close(result.drops, theirs, **EXACT)
            assert torch.equal(result.labels, row.expand(2, -1))
            assert torch.equal(result.labels_below, row.expand(2, -1))
            heats.append(result.attributions)
        for heat in heats[1:]:  # both parts carry the joint drop
            torch.testing.assert_close(heat, heats[0], **EXACT)


def test_labels_of_maps_stay_labels_of_maps_where_members_are_drawn_at_random():
    model, x = _model("conv", 4), _maps(1, 4, 1)
    like = torch.tensor([0, 1, 1, 2])
    drawn = RandomGroups(like=as_clusterer(like))
    result = ClusteredLayerAblation(model, model[0], clusterer=drawn).explain(x, 0)
    assert result.parts.shape[:2] == (1, 4)
    assert sorted(result.labels[0].tolist()) == [0, 1, 1, 2]
    assert torch.equal(result.labels, result.labels_below)


@pytest.mark.parametrize("negative", [False, True])
def test_labels_of_parts_are_taken_whatever_the_signs(negative):
    """Or a caller would have to know whether any value is negative."""
    model, x = _model("conv", 3), _maps(2, 3, 1).abs()
    if negative:
        x[1, 0, 0, 0] = -1
    labels = torch.tensor([0, 1, 1, 2, 3, 0])
    cam = ClusteredLayerAblation(model, model[0], clusterer=labels, weighting="drop_per_map")
    result = cam.explain(x, [0, 2], relu_attributions=False)
    assert result.labels.tolist() == [[0, 1, 1], [0, 1, 1]]
    assert result.labels_below.tolist() == [[-1, -1, -1], [2 if negative else -1, -1, -1]]
    assert result.parts.shape[:2] == (2, 6)
    _assert_by_hand(model, x, [0, 2], result, "drop_per_map", None)


def test_labels_of_another_number_are_refused():
    model, x = _model("conv", 3), _maps(2, 3, 1)
    cam = ClusteredLayerAblation(model, model[0], clusterer=torch.tensor([0, 1, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"`clusterer` given as labels must have shape .* \(5,\)"):
        cam.explain(x, 0)
    cam = ClusteredLayerAblation(model, model[0], clusterer=torch.arange(6), parts="whole")
    with pytest.raises(ValueError, match=r"`clusterer` given as labels must have shape \(3,\)"):
        cam.explain(x, 0)
    with pytest.raises(ValueError, match="`parts` must be one of 'signed', 'whole'; got 'both'"):
        ClusteredLayerAblation(model, model[0], parts="both")


@pytest.mark.parametrize("value", [0.5, 1.0])
def test_a_map_is_dead_if_it_equals_its_baseline(value):
    """A map of zeros is not dead where the baseline is another."""
    model, x = _model("conv", 4), _maps(2, 4, 1, "a dead map")
    x[:, 3] = value
    labels = torch.tensor([0, 0, 1, 2])
    result = ClusteredLayerAblation(model, model[0], clusterer=labels).explain(
        x, [0, 2], layer_baselines=value
    )
    assert result.labels.tolist() == [[0, 0, 1, -1]] * 2
    assert result.counts() == {"maps": 4, "dead_maps": 1, "maps_in_no_group": 0}
    theirs = LayerFeatureAblation(model, model[0]).attribute(
        x, target=[0, 2], layer_mask=labels.view(1, 4, 1, 1), layer_baselines=value
    )
    torch.testing.assert_close(result.drops, theirs[:, [0, 2], 0, 0], **EXACT)
    plain = ClusteredLayerAblation(model, model[0], clusterer=labels).explain(x, [0, 2])
    assert plain.labels.tolist() == [[-1, 0, 1, 2]] * 2


def test_one_score_for_the_batch_switches_parts_off_in_all_examples():
    net, x = _model("conv", 3), _maps(2, 3, 2)
    for i, signs in enumerate(("signed", "one example nowhere negative")):
        x = _maps(2, 3, i, signs)
        model = lambda inputs: net(inputs)[:, 1].sum()  # noqa: E731
        result = ClusteredLayerAblation(
            model, net[0], clusterer="every-map", weighting="drop"
        ).explain(x, relu_attributions=False)
        with torch.no_grad():
            for k in range(3):
                up, down = x.clone(), x.clone()
                up[:, k] = x[:, k].clamp(max=0)
                down[:, k] = x[:, k].clamp(min=0)
                for labels, without in ((result.labels, up), (result.labels_below, down)):
                    assert labels[0, k] == labels[1, k]
                    found = result.ablated_scores[0, labels[0, k]]
                    torch.testing.assert_close(found, model(without), **EXACT)


# Tokens


class Tokens(nn.Module):
    """A class token and a grid of 2 x 2, which a head reads together."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 4)
        self.mix = nn.Linear(4, 4)
        self.fc = nn.Linear(4, 3)

    def head(self, tokens):
        seen = (self.mix(tokens) @ tokens.transpose(1, 2)).softmax(2) @ tokens
        return self.fc(seen[:, 0] + seen.tanh().mean(1))

    def forward(self, x):
        return self.head(self.layer(x))


def _numpy(tokens):
    return torch.from_numpy(tokens.numpy()[:, 1:].transpose(0, 2, 1).reshape(-1, 4, 2, 2).copy())


def _detached(tokens):
    return vit_reshape_transform(tokens.detach())


def _averages(tokens):
    return vit_reshape_transform(tokens).mean((2, 3), keepdim=True)


def _without_mean(tokens):
    maps = vit_reshape_transform(tokens)
    return maps - maps.mean((2, 3), keepdim=True)


def _doubled_numpy(tokens):
    return 2 * _numpy(tokens)


TRANSFORMS = [vit_reshape_transform, _numpy, _detached, _averages, _without_mean]


@pytest.mark.parametrize("baseline", [None, 0.1, "tensor"])
@pytest.mark.parametrize("replay", ["suffix", "full"])
@pytest.mark.parametrize("unpainted", ["keep", "ablate"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_what_is_not_painted_is_not_switched_off_unless_asked(
    transform, unpainted, replay, baseline
):
    model, x = Tokens().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    tokens = model.layer(x).detach()  # (2, 5, 4)
    if baseline == "tensor":
        baseline = torch.randn(1, 5, 4, dtype=torch.float64) / 4
    rest = 0 if baseline is None else baseline
    labels = torch.arange(8)
    cam = ClusteredLayerAblation(
        model, model.layer, clusterer=labels, channel_dim=-1, reshape_transform=transform,
        unpainted=unpainted, replay=replay,
    )  # fmt: skip
    result = cam.explain(x, [0, 2], layer_baselines=baseline)
    tested = 0
    full = torch.as_tensor(rest, dtype=torch.float64).expand_as(tokens)
    for side, numbers in ((0, result.labels), (1, result.labels_below)):
        for k in range(4):
            without = tokens.clone()
            kept = 1 if unpainted == "keep" else 0
            clamp = torch.minimum if side == 0 else torch.maximum
            without[:, kept:, k] = clamp(tokens, full)[:, kept:, k]
            with torch.no_grad():
                scores = model.head(without)[[0, 1], [0, 2]]
            for i in range(2):
                if numbers[i, k] >= 0:
                    tested += 1
                    found = result.ablated_scores[i, numbers[i, k]]
                    torch.testing.assert_close(found, scores[i], **EXACT)
    assert tested >= 8


def test_whole_maps_keep_what_is_not_painted():
    model, x = Tokens().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    tokens = model.layer(x).detach()
    settings = {"channel_dim": -1, "reshape_transform": vit_reshape_transform}
    cam = ClusteredLayerAblation(model, model.layer, clusterer=torch.arange(4), **settings)
    result = cam.explain(x, [0, 2])
    for k in range(4):
        without = tokens.clone()
        without[:, 1:, k] = 0
        scores = model.head(without)[[0, 1], [0, 2]].detach()
        torch.testing.assert_close(result.ablated_scores[:, k], scores, **EXACT)


def test_a_transform_that_computes_without_gradient_keeps_nothing():
    model, x = Tokens().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    settings = {"clusterer": torch.arange(4), "channel_dim": -1}
    found, expected = (
        ClusteredLayerAblation(
            model, model.layer, reshape_transform=transform, unpainted=unpainted, **settings
        ).explain(x, [0, 2])
        for transform, unpainted in ((_doubled_numpy, "keep"), (_numpy, "ablate"))
    )
    torch.testing.assert_close(found.ablated_scores, expected.ablated_scores, **EXACT)


@pytest.mark.parametrize("transform", [vit_reshape_transform, _averages])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_is_kept_is_the_same_without_gradients(mode, transform):
    model, x = Tokens().double().eval(), torch.randn(2, 5, 3, dtype=torch.float64)
    cam = ClusteredLayerAblation(
        model, model.layer, clusterer="every-map", channel_dim=-1,
        reshape_transform=transform,
    )  # fmt: skip
    expected = cam.explain(x, [0, 2])
    with mode():
        found = cam.explain(x, [0, 2])
    torch.testing.assert_close(found.ablated_scores, expected.ablated_scores, **EXACT)


# Without reading from the device


@pytest.mark.parametrize("replay", ["suffix", "full"])
@pytest.mark.parametrize(
    ("clusterer", "parts"),
    [("kmeans", "signed"), ("kmeans", "whole"), ("every-map", "signed"), ("every-map", "whole"),
     ("contiguous", "signed"), ("random", "whole")],
)  # fmt: skip
@pytest.mark.parametrize("baseline", [None, 0.5, "maps"])
def test_signed_maps_stay_on_the_device(clusterer, parts, baseline, replay, monkeypatch):
    for module in (replay_module, copies_module):
        monkeypatch.setattr(module, "agree", lambda *_: True)  # it reads
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), Head("chain", 6, 0)).eval()
        baseline = torch.rand(6, 1, 1) if baseline == "maps" else baseline
        cam = ClusteredLayerAblation(
            model, model[0], clusterer=clusterer, n_clusters=4, parts=parts, replay=replay
        )
        result = cam.explain(
            torch.rand(2, 3, 9, 9), [1, 2], layer_baselines=baseline, perturbations_per_eval=3
        )
        for value in vars(result).values():
            assert not isinstance(value, torch.Tensor) or value.device.type == "cuda"
        assert result.replay == replay
        assert result.labels.shape == result.labels_below.shape == (2, 6)


@pytest.mark.parametrize("unpainted", ["keep", "ablate"])
def test_tokens_stay_on_the_device(unpainted, monkeypatch):
    monkeypatch.setattr(replay_module, "agree", lambda *_: True)
    with FakeTensorMode(), torch.device("cuda"):
        model = Tokens().eval()
        cam = ClusteredLayerAblation(
            model, model.layer, n_clusters=3, channel_dim=-1, unpainted=unpainted,
            reshape_transform=vit_reshape_transform, weighting=Shapley(2),
        )  # fmt: skip
        result = cam.explain(torch.rand(2, 5, 3), [1, 2])
        assert result.attributions.device.type == "cuda"
        assert result.attributions.shape == (2, 1, 2, 2)


# Layers whose values are known to be nowhere negative


class Block(nn.Module):
    """A residual block; `after` is what becomes of the ReLU's output."""

    def __init__(self, after=lambda value: value):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.after = after

    def forward(self, x):
        return self.after(self.relu(self.conv(x) + 0.1))


def _rectified(block, hook=None, at_input=False):
    """What the first pass says of a block, or of what takes its output."""
    model = nn.Sequential(block, nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5 * 16, 2)).eval()
    if hook is not None:
        block.register_forward_hook(hook)
    io = LayerIO(model[1] if at_input else block, at_input)
    x = torch.randn(2, 3, 4, 4)
    with borrowed(model) as forward_func:
        first = capture(Model(forward_func, (x,), 2), io, format_target(1, 2))
    assert not first.rectified or first.activations[0].ge(0).all()
    return first.rectified


def test_the_very_output_of_a_relu_is_known():
    assert _rectified(Block())
    assert _rectified(Block(), at_input=True)
    assert _rectified(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6()))
    assert _rectified(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid()))


@pytest.mark.parametrize(
    "after", [lambda v: -v, lambda v: v.sub_(1), lambda v: v.clone(), nn.functional.gelu]
)
def test_what_comes_of_it_is_not(after):
    assert not _rectified(Block(after))
    assert not _rectified(Block(after), at_input=True)


def test_a_hook_of_the_users_is_seen():
    assert not _rectified(Block(), hook=lambda _, __, output: output - 1)
    assert not _rectified(Block(), hook=lambda _, __, output: output.sub_(1))
    assert _rectified(Block(), hook=lambda _, __, output: None)


def test_other_layers_are_not_known():
    assert not _rectified(nn.Conv2d(3, 4, 1))
    assert not _rectified(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 1)))
    assert not _rectified(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LeakyReLU()))
