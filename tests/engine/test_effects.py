"""Calls before the layer that write into their own module: a skipped one has to write as well."""

import warnings

import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.engine.calls import versions
from captum_clustered.engine.effects import effects, held

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


class Stem(nn.Module):
    """Writes into itself in the way that its argument says."""

    def __init__(self, write):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.write, self.runs, self.store, self.seen = write, 0, {}, []
        self.kept = self.scale = None
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.runs += 1
        x = self.conv(x)
        self.write(self, x)
        return x.relu()


def _keep(stem, x):
    stem.kept = x.tanh()


def _store(stem, x):
    stem.store["x"] = x.tanh()


def _append(stem, x):
    stem.seen.append(x.tanh())


def _size(stem, x):
    stem.scale = float(x.shape[2])


def _count(stem, _):
    stem.count += 3


READ = {
    _keep: lambda stem: 0 if stem.kept is None else stem.kept,
    _store: lambda stem: stem.store.get("x", 0),
    _append: lambda stem: stem.seen[-1] if stem.seen else 0,
    _size: lambda stem: stem.scale or 0,
    _count: lambda stem: stem.count,
}


class Net(nn.Module):
    """Reads what its stem has kept, where the score depends on it only if a map is off."""

    def __init__(self, write):
        super().__init__()
        self.stem = Stem(write)
        self.layer = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Softplus())
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.layer(self.stem(x)).mean((2, 3))
        kept = torch.as_tensor(READ[self.stem.write](self.stem), dtype=x.dtype).mean()
        off = (x < 1e-9).to(x.dtype)  # no map of the plain pass is
        return self.head(x + off * (1 + kept))


@pytest.mark.filterwarnings("ignore:Each copy of the inputs has a pass of its own")
@pytest.mark.parametrize("write", READ)
def test_what_is_kept_by_a_skipped_call_is_there(write):
    torch.manual_seed(0)
    model = Net(write).double().eval()
    cam = ClusteredLayerAblation(model, model.layer, clusterer="every-map", parts="whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = cam.explain(X, 1)
    assert result.replay == "suffix"
    full = ClusteredLayerAblation(
        model, model.layer, clusterer="every-map", parts="whole", replay="full"
    ).explain(X, 1)
    torch.testing.assert_close(result.ablated_scores, full.ablated_scores)
    mask = torch.arange(4).view(1, -1, 1, 1)
    theirs = LayerFeatureAblation(model, model.layer).attribute(X, target=1, layer_mask=mask)
    if write is not _count:  # Captum lets the count grow
        drops = result.scores[:, None] - result.ablated_scores
        torch.testing.assert_close(drops, theirs[:, :, 0, 0])


def test_effects_by_hand():
    stem = Stem(_size)
    before = held(stem, versions)
    stem(torch.rand(1, 3, 8, 8))
    assert effects(stem, before, versions) == {"runs": 1, "scale": 8.0}
    for write in (_keep, _store, _append, _count):
        stem = Stem(write)
        before = held(stem, versions)
        stem(torch.rand(1, 3, 8, 8))
        assert effects(stem, before, versions) is None, write
    before = held(stem, versions)
    del stem.kept
    assert effects(stem, before, versions) is None
    assert held(nn.ReLU(), versions) is None
    assert effects(nn.ReLU(), None, versions) == {}
