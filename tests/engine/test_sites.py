"""Maps are switched off behind modules that treat each alone: where that is right, only there."""

import pytest
import torch
from captum.attr import LayerFeatureAblation
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import captum_clustered.engine.replay as replay_module
import captum_clustered.engine.switching as switching
from captum_clustered import ClusteredLayerAblation
from captum_clustered.engine.sites import MAPWISE
from captum_clustered.shapley import Shapley

X = torch.rand(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Maps, what follows, and three classes; the classes below differ in what follows."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.bias.uniform_(-1, 1)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1)) ** 2


class Chain(Net):
    def forward(self, x):
        return self.fc(self.pool(self.relu(self.norm(self.conv(x)))).flatten(1)) ** 2


class InPlaceChain(Net):
    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.fc(self.pool(self.relu(self.conv(x))).flatten(1)) ** 2


class InSequentials(Net):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Sequential(self.conv, self.relu), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Dropout(), self.pool, nn.Flatten(), self.fc)

    def forward(self, x):
        return self.head(self.body(x)) ** 2


class SqueezeAndExcite(Net):
    def forward(self, x):
        maps = self.conv(x)
        return self.fc((maps * self.pool(maps)).mean((2, 3))) ** 2


class TwoPools(Net):
    def forward(self, x):
        maps = self.conv(x)
        return self.fc(self.pool(maps).flatten(1) + maps.amax((2, 3))) ** 2


class PoolRunsTwice(Net):
    def forward(self, x):
        maps = self.conv(x)
        return self.fc((self.pool(maps) * self.pool(maps.exp())).flatten(1)) ** 2


class ChangedBetween(Net):
    def forward(self, x):
        maps = self.conv(x)
        maps.add_(1)
        return self.fc(self.pool(maps).flatten(1)) ** 2


class Overlap(Net):
    def forward(self, x):
        maps = self.conv(x)
        mixed = maps + maps.flip(1)
        return self.fc(self.pool(mixed).flatten(1)) ** 2


class Tells(nn.Module):
    """Gives its maps, and keeps a number that the model uses later."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        maps = self.conv(x)
        self.mean = maps.mean((1, 2, 3))
        return maps


class SideEffect(Net):
    def __init__(self):
        super().__init__()
        self.block = Tells(self.conv)

    def forward(self, x):
        pooled = self.pool(self.block(x))
        return self.fc(pooled.flatten(1)) ** 2 * self.block.mean[:, None]


class ReadsTheShape(Net):
    def forward(self, x):
        maps = self.conv(x)
        n, c, *_ = maps.shape
        return self.fc(self.pool(maps).view(n, c)) ** 2 / maps[0, 0].numel()


class ReadsAValue(Net):
    def forward(self, x):
        maps = self.conv(x)
        n = 2 if torch.is_tensor(maps) and maps.is_contiguous() else 3
        return self.fc(self.pool(maps).flatten(1)) ** n


class OnlyAVote(Net):
    """The layer's value comes back after the pooling as well."""

    def forward(self, x):
        maps = self.conv(x)
        pooled = self.pool(maps).flatten(1)
        return self.fc(torch.where(maps.mean((2, 3)) > 0, pooled, -pooled)) ** 2


class Wide(Net):
    """Several values of each map go into the linear layer."""

    def __init__(self):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d((2, 3))
        self.fc = nn.Linear(36, 3)


class FlattenedByModules(Wide):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Identity())

    def forward(self, x):
        return self.fc(self.head(self.pool(self.conv(x)))) ** 2


class FlattenedOtherwise(Wide):
    def __init__(self):
        super().__init__()
        self.flatten = nn.Flatten(2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.flatten(self.pool(self.conv(x)))).mean(1) ** 2


class LinearAndMore(Wide):
    """What goes into the linear layer is needed elsewhere."""

    def forward(self, x):
        pooled = self.pool(self.conv(x)).flatten(1)
        return self.fc(pooled) ** 2 * pooled.sum(1, keepdim=True)


class LinearTwice(Wide):
    def forward(self, x):
        pooled = self.pool(self.conv(x)).flatten(1)
        return self.fc(pooled) ** 2 * self.fc(pooled.sin())


class ChangedBeforeLinear(Wide):
    def forward(self, x):
        pooled = self.pool(self.conv(x)).flatten(1)
        pooled.mul_(2)
        return self.fc(pooled) ** 2


class OtherOrder(Wide):
    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).transpose(2, 3).flatten(1)) ** 2


def _net(make, seed=0):
    torch.manual_seed(seed)
    return make().double().eval()


@pytest.fixture
def summed(monkeypatch):
    """As if there were so many groups that their parts of a linear layer's output are added up."""
    monkeypatch.setattr(switching, "_FEW", 0)


def _places(monkeypatch):
    """The modules behind which maps were switched off, and what came of it."""
    found = []
    mapped = replay_module._mapped

    def watch(first, io, *args, **settings):
        result = mapped(first, io, *args, **settings)
        found.append((io.layer, isinstance(result, replay_module.Replay)))
        return result

    monkeypatch.setattr(replay_module, "_mapped", watch)
    return found


def _scores(model, layer, baseline, **settings):
    cam = ClusteredLayerAblation(model, layer, clusterer="every-map", **settings)
    result = cam.explain(X, [1, 2], layer_baselines=baseline)
    return result.ablated_scores, result.replay


MOVED = {
    Net: "pool",
    Chain: "pool",
    InPlaceChain: "pool",
    InSequentials: "pool",
    ReadsTheShape: "pool",
    ReadsAValue: "pool",
    Wide: "pool",
    FlattenedByModules: "pool",
    FlattenedOtherwise: "pool",
    LinearAndMore: "pool",
    LinearTwice: "pool",
    ChangedBeforeLinear: "pool",
    OtherOrder: "pool",
}
SUMMED = [Net, Chain, InPlaceChain, InSequentials, ReadsTheShape, ReadsAValue]
SUMMED += [Wide, FlattenedByModules]
STAYS = [SqueezeAndExcite, TwoPools, PoolRunsTwice, ChangedBetween, Overlap, SideEffect, OnlyAVote]


@pytest.mark.parametrize("make", [*MOVED, *STAYS])
@pytest.mark.parametrize("kind", ["zero", "number", "maps", "tensor"])
def test_scores_are_those_of_the_full_path(make, kind):
    model = _net(make)
    shape = {"number": (), "maps": (6, 1, 1), "tensor": (2, 6, 7, 7)}.get(kind)
    baseline = 0 if shape is None else torch.randn(shape, dtype=torch.float64)
    fast, path = _scores(model, model.conv, baseline, replay="suffix")
    slow, _ = _scores(model, model.conv, baseline, replay="full")
    assert path == "suffix"
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("summed")
@pytest.mark.parametrize("make", [*MOVED, *STAYS])
@pytest.mark.parametrize("kind", ["zero", "maps", "tensor"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_so_are_those_of_sums_over_maps(make, kind, chunk, monkeypatch):
    model = _net(make)
    places = _places(monkeypatch)
    shape = {"maps": (6, 1, 1), "tensor": (2, 6, 7, 7)}.get(kind)
    baseline = 0 if shape is None else torch.randn(shape, dtype=torch.float64)
    labels = torch.tensor([[0, 1, 0, 2, -1, 2], [1, 1, 1, -1, 0, 0]])
    fast, slow = (
        ClusteredLayerAblation(model, model.conv, clusterer=labels, replay=replay).explain(
            X, [1, 2], layer_baselines=baseline, perturbations_per_eval=chunk
        )
        for replay in ("suffix", "full")
    )
    torch.testing.assert_close(fast.ablated_scores, slow.ablated_scores, rtol=1e-10, atol=1e-12)
    linear = [worked for layer, worked in places if layer is model.fc]
    assert linear == ([True] if make in SUMMED else [False] if make is LinearAndMore else [])


def test_few_groups_are_sent_through_the_linear_layer(monkeypatch):
    model = _net(Net)
    places = _places(monkeypatch)
    _scores(model, model.conv, 0)
    assert places == [(model.pool, True)]
    monkeypatch.setattr(switching, "_FEW", 6)
    _scores(model, model.conv, 0)
    assert places[1:] == [(model.fc, True)]


def test_low_precision_is_summed_in_single():
    many = torch.full((1, 4096, 1), 0.01, dtype=torch.bfloat16)
    weight = torch.ones(2, 4096, dtype=torch.bfloat16)
    output = torch.zeros(1, 2, dtype=torch.bfloat16)
    one_group = torch.zeros(1, 4096, dtype=torch.int64)
    ablation = switching.Summed(output, weight, many, one_group, 1)
    (copies,) = ablation.without(range(-1, 1), ablation.room(2))
    expected = torch.tensor([[[0.0, 0.0]], [[-40.96, -40.96]]], dtype=torch.bfloat16)
    torch.testing.assert_close(copies, expected)


@pytest.mark.usefixtures("summed")
def test_a_linear_layer_with_a_hook_is_not_taken_for_its_sum(monkeypatch):
    model = _net(Net)
    model.fc.register_forward_hook(lambda _, __, output: output + 1)
    places = _places(monkeypatch)
    fast, _ = _scores(model, model.conv, 0)
    slow, _ = _scores(model, model.conv, 0, replay="full")
    assert places == [(model.pool, True)]
    torch.testing.assert_close(fast, slow)


@pytest.mark.usefixtures("summed")
def test_shapley_values_and_mixed_precision_take_another_place(monkeypatch):
    model = _net(Net)
    places = _places(monkeypatch)
    cam = ClusteredLayerAblation(model, model.conv, n_clusters=3, weighting=Shapley(2))
    cam.explain(X, 1)
    with torch.autocast("cpu"):
        ClusteredLayerAblation(model.float(), model.conv, n_clusters=3).explain(X.float(), 1)
    assert {layer for layer, _ in places} == {model.pool}


@pytest.mark.parametrize("make", MOVED)
def test_the_place_is_behind_the_pooling(make, monkeypatch):
    model = _net(make)
    places = _places(monkeypatch)
    _scores(model, model.conv, 0)
    assert places == [(getattr(model, MOVED[make]), True)]


@pytest.mark.parametrize("make", STAYS)
def test_a_model_that_needs_the_maps_elsewhere_keeps_the_layer(make, monkeypatch):
    model = _net(make)
    places = _places(monkeypatch)
    _scores(model, model.conv, 0)
    assert places[-1] == (model.conv, True)
    assert all(not worked for _, worked in places[:-1])


def test_copies_are_of_the_pooled_size(monkeypatch):
    model = _net(Net)
    sizes = []
    room = switching.Ablation.room
    monkeypatch.setattr(
        switching.Ablation,
        "room",
        lambda self, copies: sizes.append(self.activations[0].shape) or room(self, copies),
    )
    _scores(model, model.conv, 0)
    assert sizes == [(2, 6, 1, 1)]


def test_the_layers_input_moves_through_the_layer_and_leaves_others_alone(monkeypatch):
    class Both(Net):
        def forward(self, x):
            maps = self.conv(x)
            return self.fc(self.pool(maps).flatten(1) * maps.amax((2, 3))) ** 2

    model = _net(Both)
    places = _places(monkeypatch)
    cam = ClusteredLayerAblation(model, model.pool, clusterer="every-map", parts="whole")
    result = cam.explain(X, 1, attribute_to_layer_input=True)
    assert places == [(model.pool, True)]
    theirs = LayerFeatureAblation(model, model.pool).attribute(
        X,
        target=1,
        attribute_to_layer_input=True,
        layer_mask=torch.arange(6).view(1, 6, 1, 1),
    )
    drops = result.scores[:, None] - result.ablated_scores
    torch.testing.assert_close(drops, theirs[:, :, 0, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_what_carries_a_hook_of_the_users_is_not_passed(hook, monkeypatch):
    model = _net(Net)
    getattr(model.pool, hook)(lambda *_: None)
    places = _places(monkeypatch)
    _scores(model, model.conv, 0)
    assert places == [(model.conv, True)]


def test_maps_on_another_axis_stay_where_they_are(monkeypatch):
    model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)).double()
    places = _places(monkeypatch)
    cam = ClusteredLayerAblation(model.eval(), model[0], channel_dim=-1, n_clusters=2)
    cam.explain(X, 1)
    assert places == [(model[0], True)]


def test_gradients_and_values_without_a_version_do_no_harm():
    model = _net(Chain)
    expected, _ = _scores(model, model.conv, 0, replay="full")
    with torch.inference_mode():
        found, path = _scores(model, model.conv, 0)
    assert path == "suffix"
    torch.testing.assert_close(found, expected)


MADE = {
    "AdaptiveAvgPool": lambda kind: kind(2),
    "AdaptiveMaxPool": lambda kind: kind(2),
    "AvgPool": lambda kind: kind(2),
    "MaxPool": lambda kind: kind(2),
    "BatchNorm": lambda kind: kind(4),
}


@pytest.mark.parametrize("kind", MAPWISE, ids=lambda kind: kind.__name__)
@given(st.integers(0, 2**16))
def test_each_of_them_makes_a_map_of_that_map_alone(kind, seed):
    make = MADE.get(kind.__name__.rstrip("123d"), lambda kind: kind())
    torch.manual_seed(seed)
    module = make(kind).double().eval()
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.running_mean.normal_()
    axes = MAPWISE[kind] or 4
    maps, others = torch.randn(2, 2, 4, *[4] * (axes - 2), dtype=torch.float64)
    off = torch.tensor([True, False, True, False]).view(4, *[1] * (axes - 2))
    whole = module(torch.where(off, others, maps))
    parts = torch.where(off, module(others), module(maps))
    torch.testing.assert_close(whole, parts, rtol=0, atol=0)
