"""Sums over the layer's maps are taken once for all groups: where that is right, and only there."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import captum_clustered.engine.rules as rules
from captum_clustered import ClusteredLayerAblation
from captum_clustered.engine.linear import Summands
from captum_clustered.shapley import Shapley

GENERATOR = torch.Generator().manual_seed(3)
IMAGES = torch.randn(2, 3, 7, 7, dtype=torch.float64, generator=GENERATOR)
TOKENS = torch.randn(2, 5, 4, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.tensor([[0, 1, 0, 2, -1, 2], [1, 1, 1, -1, 0, 0]])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """As if the sums were large enough to pay."""
    monkeypatch.setattr(rules, "SMALL", 0)


class Net(nn.Module):
    """Maps, a convolution of them, and three classes; the classes below differ in between."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)
        self.conv = nn.Conv2d(6, 4, 3, padding=1)
        self.down = nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.norm.running_mean.uniform_(-1, 1)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.bias.uniform_(-1, 1)

    def forward(self, x):
        return self.head(self.body(self.layer(x)))

    def body(self, maps):
        return self.conv(maps)

    def head(self, maps):
        return self.fc(self.norm(maps).relu_().flatten(2).mean(2)) ** 2


class Residual(Net):
    def body(self, maps):
        return self.conv(maps) + self.down(maps)


class Strided(Net):
    def body(self, maps):
        return functional.conv2d(maps, self.conv.weight, stride=2, padding="valid", dilation=(1, 2))


class Identity(Net):
    def body(self, maps):
        return self.conv(maps) + maps[:, :4].sigmoid()


class InPlaceAfterwards(Net):
    def body(self, maps):
        some = self.conv(maps)
        return some.add_(self.down(maps.relu_()))


class InPlaceBefore(Net):
    def body(self, maps):
        maps[:, 1:].mul_(2)
        return self.conv(maps)


class InPlaceInAView(Net):
    def body(self, maps):
        maps.view(len(maps), -1).relu_()
        return self.conv(maps)


class WeightsOfTheMaps(Net):
    def body(self, maps):
        return functional.conv2d(maps, self.conv.weight * maps.mean(), self.conv.bias)


class NormOfTheMaps(Net):
    def head(self, maps):
        scale = maps.mean((0, 2, 3))
        norm = self.norm
        maps = functional.batch_norm(maps, norm.running_mean, norm.running_var, scale, norm.bias)
        return self.fc(maps.relu().amax((2, 3))) ** 2


class Grouped(Net):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(6, 4, 3, groups=2)


class StridedPoints(Net):
    def body(self, maps):
        some = functional.conv2d(maps, self.down.weight, stride=(2, 3))
        return some + functional.conv2d(maps, self.down.weight, stride=2)[..., :2].square()


class PaddedPoints(Net):
    def body(self, maps):
        some = functional.conv2d(maps, self.down.weight, padding=1)[..., 1:-1, 1:-1]
        return some + functional.conv2d(maps, self.down.weight, padding="same")


class OneAxis(Net):
    def body(self, maps):
        return functional.conv1d(maps.flatten(2), self.down.weight[..., 0], stride=3)[..., None]


class OnceMore(Net):
    def body(self, maps):
        return functional.conv2d(maps, self.down.weight, self.down.bias, 2, "valid") + 1


class AroundTheExamples(Net):
    """The axis of examples lies between two others that stay."""

    def body(self, maps):
        weight = self.down.weight.flatten(1)
        return functional.linear(maps.permute(2, 0, 3, 1), weight).permute(1, 3, 0, 2)


class Sequence(Net):
    def body(self, maps):
        tokens = maps.flatten(2).transpose(1, 2)  # (N, H * W, C)
        return functional.linear(tokens, self.down.weight.flatten(1)).transpose(1, 2)[..., None]


class LastAxis(Net):
    def body(self, maps):
        weight = self.down.weight.flatten(1)
        maps = functional.linear(torch.permute(maps, (2, 3, 0, 1)), weight, self.down.bias)
        return maps.permute(2, 3, 0, 1)


class OtherAxis(Net):
    def body(self, maps):  # a linear layer that sums over positions
        return functional.linear(maps.flatten(2), self.conv.weight.new_ones(4, 25)).relu()[
            :, :4, None
        ]


class Joined(Net):
    def body(self, maps):  # maps and examples on one axis
        maps = functional.conv2d(maps.flatten(0, 1)[None, :, None, 0], maps.new_ones(4, 12, 1, 1))
        return maps.expand(2, 4, 1, 5)


class Flat(Net):
    def body(self, maps):
        weight = torch.linspace(-1, 1, 4 * 6 * 25, dtype=maps.dtype).view(4, -1)
        return functional.linear(maps.flatten(1).sin(), weight)[..., None, None]


class Changing(Net):
    """Its second map has other weights each time."""

    def body(self, maps):
        self.calls = getattr(self, "calls", 0) + 1
        return self.conv(maps) + self.down(maps) * 0 + functional.conv2d(maps, self.down.weight * 2)


def _run(make, calls, labels=LABELS, baseline=0, **settings):
    """Scores by the fast and the full path, and how often sums were taken apart."""
    torch.manual_seed(0)
    model = make().double().eval()
    found = []
    for replay in ("suffix", "full"):
        cam = ClusteredLayerAblation(
            model, model.layer, clusterer=labels, replay=replay, **settings
        )
        given = TOKENS if isinstance(model, Attentive) else IMAGES
        found.append(cam.explain(given, [1, 2], layer_baselines=baseline, perturbations_per_eval=2))
        calls.append(0)
    fast, slow = found
    assert (fast.replay, slow.replay) == ("suffix", "full")
    torch.testing.assert_close(fast.ablated_scores, slow.ablated_scores, rtol=1e-10, atol=1e-11)


@pytest.fixture
def calls(monkeypatch):
    """How often sums were taken apart, in each run."""
    found = [0]
    without = Summands.without

    def count(*args):
        found[-1] += 1
        return without(*args)

    monkeypatch.setattr(Summands, "without", count)
    return found


SUMS = {
    Net: 1, Residual: 2, Strided: 1, Identity: 1, InPlaceAfterwards: 1, InPlaceBefore: 0,
    InPlaceInAView: 0, WeightsOfTheMaps: 0, NormOfTheMaps: 1, Grouped: 0, Sequence: 1, LastAxis: 1,
    OtherAxis: 0, Joined: 0, Flat: 0, Changing: 3, StridedPoints: 2, PaddedPoints: 2, OnceMore: 1,
    OneAxis: 1, AroundTheExamples: 1,
}  # fmt: skip
"""How many sums over the layer's maps each of them takes."""


@pytest.mark.parametrize("parts", ["whole", "signed"])
@pytest.mark.parametrize("make", SUMS)
def test_scores_are_those_of_the_full_path(make, parts, calls):
    labels = torch.cat([LABELS, LABELS.flip(1)], 1) if parts == "signed" else LABELS
    _run(make, calls, labels, parts=parts)
    assert calls[0] == 2 * SUMS[make]  # three groups and the whole, two at a time


@pytest.mark.parametrize("kind", ["number", "maps", "tensor"])
@pytest.mark.parametrize("make", [Residual, Sequence])
def test_so_they_are_with_other_baselines(make, kind, calls):
    shape = {"number": (), "maps": (6, 1, 1), "tensor": (2, 6, 5, 5)}[kind]
    _run(make, calls, baseline=0.1 * torch.randn(shape, dtype=torch.float64))
    assert calls[0] == 2 * SUMS[make]


@pytest.mark.parametrize("make", [Residual, Sequence])
def test_so_they_are_where_groups_are_switched_off_one_after_the_other(make, calls):
    _run(make, calls, weighting=Shapley(2))
    assert calls[0] >= 4 * SUMS[make]


class Attentive(nn.Module):
    """Tokens, self-attention, and three classes."""

    def __init__(self, call=None, **settings):
        super().__init__()
        self.layer = nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(6, 2, **{"batch_first": True, **settings})
        self.call = call or {}
        self.fc = nn.Linear(6, 3)
        for bias in (self.attention.in_proj_bias, self.attention.out_proj.bias):
            if bias is not None:
                nn.init.normal_(bias)

    def forward(self, x):
        tokens = self.layer(x)
        return self.head(self.attend(tokens, tokens))

    def attend(self, tokens, values):
        return self.attention(tokens, tokens, values, **{"need_weights": False, **self.call})[0]

    def head(self, tokens):
        return self.fc(tokens[:, 0])


class SecondAxis(Attentive):
    def forward(self, x):
        tokens = self.layer(x).transpose(0, 1)
        return self.head(self.attend(tokens, tokens).transpose(0, 1))


class ToAnother(Attentive):
    def forward(self, x):
        tokens = self.layer(x)
        return self.head(self.attend(tokens, tokens.tanh()))


ATTENTION = {
    "as it is": (Attentive, 1),
    "tokens on the first axis": (partial(SecondAxis, batch_first=False), 1),
    "without a bias": (partial(Attentive, bias=False), 1),
    "with dropout": (partial(Attentive, dropout=0.5), 1),
    "weights": (partial(Attentive, {"need_weights": True, "average_attn_weights": False}), 0),
    "mask": (partial(Attentive, {"attn_mask": torch.ones(5, 5).tril().log()}), 0),
    "padding": (partial(Attentive, {"key_padding_mask": torch.arange(5).expand(2, 5) > 3}), 0),
    "a bias of keys": (partial(Attentive, add_bias_kv=True), 0),
    "zeros": (partial(Attentive, add_zero_attn=True), 0),
    "to other values": (ToAnother, 0),
}


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_of_the_layers_value_to_itself(kind, calls):
    make, sums = ATTENTION[kind]
    _run(make, calls, channel_dim=-1)
    assert calls[0] == 2 * sums


@pytest.mark.parametrize("parts", ["whole", "signed"])
def test_maps_are_summed_once_for_all_groups(parts, monkeypatch):
    model = Net().eval()
    labels = torch.arange(6).repeat(2, 2 if parts == "signed" else 1)  # no sign on its own
    cam = ClusteredLayerAblation(model, model.layer, clusterer=labels, parts=parts, replay="suffix")
    done = []
    for small in (2**40, 0):
        monkeypatch.setattr(rules, "SMALL", small)
        with FlopCounterMode(display=False) as counter:
            cam.explain(IMAGES.float(), 1)
        done.append(counter.get_total_flops())
    once = 2 * 2 * 25 * 4 * 6 * 9
    # the whole tells how large the sum is; then either seven copies, or the groups together
    assert done[0] - done[1] == (8 - 2) * once


def test_small_sums_are_not_worth_it(calls, monkeypatch):
    operations = 2 * 25 * 4 * 6 * 9
    monkeypatch.setattr(rules, "SMALL", operations + 1)
    _run(Net, calls)
    monkeypatch.setattr(rules, "SMALL", operations)
    _run(Net, calls)
    assert calls == [0, 0, 2, 0, 0]


def test_a_small_linear_layer_gets_the_copies_and_nothing_more(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 6, 7), nn.Flatten(), nn.Linear(6, 2)).eval()
    cam = ClusteredLayerAblation(model, model[0], clusterer=LABELS, parts="whole", replay="suffix")
    operations = 2 * 6 * 2
    monkeypatch.setattr(rules, "SMALL", operations + 1)
    with FlopCounterMode(display=False) as counter:
        cam.explain(IMAGES.float(), 1)
    plain, copies = 2 * (2 * 6 * 3 * 49 + operations), 4 * 2 * operations
    heat = 2 * 2 * 6
    assert counter.get_total_flops() == plain + copies + heat


def test_what_vmap_runs_is_not_printed(calls, monkeypatch):
    printed = []
    monkeypatch.setattr(torch.Tensor, "__repr__", lambda _: printed.append(1) or "")
    monkeypatch.setattr(rules, "SMALL", 2**23)
    _run(Net, calls)
    assert not printed


class Loud(Net):
    """One map is so loud that of the others nothing is left beside it."""

    def forward(self, x):
        maps = self.layer(x)
        loud = torch.tensor([1e9, 1, 1, 1, 1, 1]).view(6, 1, 1)
        return self.fc(self.conv(nn.Identity()(self.loud(maps * loud))).mean((2, 3)))

    def __init__(self):
        super().__init__()
        self.loud = nn.Identity()


@pytest.mark.parametrize("weighting", ["drop", Shapley(2)])
def test_what_would_drown_in_rounding_is_computed_from_the_copy(weighting, calls):
    torch.manual_seed(0)
    model = Loud().eval()
    fast, slow = (
        ClusteredLayerAblation(
            model,
            model.loud,
            clusterer="every-map",
            replay=replay,
            weighting=weighting,
            parts="whole",
        ).explain(IMAGES.float(), 1, perturbations_per_eval=4)
        for replay in ("suffix", "full")
    )
    assert calls[0] > 0
    assert fast.ablated_scores.abs().amin(1).le(10).all()  # of the copy without the loud map
    torch.testing.assert_close(fast.ablated_scores, slow.ablated_scores, rtol=1e-4, atol=1e-4)


class Watch(TorchDispatchMode):
    """Notes the shapes of what batch norm is given."""

    def __init__(self):
        super().__init__()
        self.shapes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "batch_norm" in str(func):
            self.shapes.add(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


def test_batch_norm_has_the_copies_along_the_batch():
    model = Net().eval()
    cam = ClusteredLayerAblation(model, model.layer, clusterer=LABELS, replay="suffix")
    with Watch() as watch:
        cam.explain(IMAGES.float(), 1)
    assert watch.shapes == {(2, 4, 5, 5), (8, 4, 5, 5)}  # of the first pass, and of the copies
