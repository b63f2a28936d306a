"""What all explainers share: one `attribute`, and warnings that point at the caller's line."""

import inspect
import warnings

import pytest
import torch
from torch import nn

import small_models
from captum_clustered import ClusteredLayerAblation
from captum_clustered.methods import METHODS, make
from captum_clustered.stability import stability


def _small():
    return small_models.split_cnn().float().eval()


@pytest.mark.parametrize("name", METHODS)
def test_attribute_is_what_explain_returns_and_takes_the_same_arguments(name):
    model = _small()
    cam = make(name, model, model[0])
    x = torch.rand(2, 3, 8, 7)
    assert torch.equal(cam.attribute(x, target=1), cam.explain(x, target=1).attributions)
    ours, theirs = inspect.signature(cam.attribute), inspect.signature(cam.explain)
    assert list(ours.parameters.values()) == list(theirs.parameters.values())
    assert inspect.getdoc(cam.attribute).startswith("Computes the heat map.")


class Recurrent(nn.Module):
    """An LSTM behind the layer: no batching rule, so the whole model runs again."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.lstm = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x):
        return self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0][:, -1]


CALLS = {
    "attribute": lambda cam, x: cam.attribute(x, target=1),
    "explain": lambda cam, x: cam.explain(x, target=1),
    "stability": lambda cam, x: stability(cam, x, target=1, seeds=(0, 1)),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", ["whole model", "training mode"])
def test_a_warning_points_at_the_callers_line(call, kind):
    x = torch.rand(2, 3, 6, 6)
    if kind == "whole model":
        model = Recurrent().eval()
        cam = ClusteredLayerAblation(model, model.conv, n_clusters=2)
    else:
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        cam = ClusteredLayerAblation(model, model[0], n_clusters=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(cam, x)
    assert caught, "else this shows nothing"
    lines = {inspect.getsourcelines(function)[1] for function in CALLS.values()}
    for warning in caught:
        assert warning.filename == __file__
        assert warning.lineno in lines
