"""The GPU path without a GPU: fake tensors raise on a device mix-up and on a read of a value."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

import captum_clustered.engine.copies as copies_module
import captum_clustered.engine.replay as replay_module
from captum_clustered import ClusteredLayerAblation
from captum_clustered.clustering import CosineKMeans, EveryMap, KMeans, RandomGroups


@pytest.fixture
def on_cuda():
    with FakeTensorMode(), torch.device("cuda"):
        yield


@pytest.fixture
def checks(monkeypatch):
    """Counts the self-checks, the one read that the engine allows itself."""
    count = []
    for module in (replay_module, copies_module):
        monkeypatch.setattr(module, "agree", lambda *_: count.append(1) or True)
    return count


def _model():
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 5),
    ).eval()  # fmt: skip


CLUSTERERS = [
    KMeans(4), CosineKMeans(4), EveryMap(), RandomGroups(4), RandomGroups(like=KMeans(4)),
    "contiguous",
]  # fmt: skip


@pytest.mark.parametrize("weighting", ["drop", "drop_per_map", "drop_per_mass"])
@pytest.mark.parametrize("clusterer", CLUSTERERS, ids=str)
@pytest.mark.parametrize("replay", ["suffix", "full"])
def test_explain_stays_on_the_device_and_reads_nothing(
    on_cuda, checks, clusterer, weighting, replay
):
    model, x = _model(), torch.rand(2, 3, 9, 9)
    cam = ClusteredLayerAblation(
        model, model[2], clusterer=clusterer, n_clusters=4, weighting=weighting, replay=replay
    )
    for target in (1, [1, 2], torch.tensor([1, 2])):
        result = cam.explain(x, target=target, perturbations_per_eval=4)
        for value in vars(result).values():
            assert not isinstance(value, torch.Tensor) or value.device.type == "cuda"
        assert result.replay == replay
        assert result.attributions.shape == (2, 1, 7, 7)
    # the self-check waits for the device, so that it is made once for a layer and shape; where the
    # whole model runs many times, that does not count
    assert len(checks) == (1 if replay == "suffix" else 9)
    if replay == "suffix":
        cam.explain(torch.rand(3, 3, 9, 9), target=1)
        assert len(checks) == 2


def test_these_tests_can_fail(on_cuda, checks):
    model, x = _model(), torch.rand(2, 3, 9, 9)

    def reads(features):
        return EveryMap()(features) if features.sum() > 0 else None

    def mixes(features):
        return torch.zeros(2, 12, device="cpu").add(features.sum(2)).long()

    def shapes(features):
        return EveryMap()(features)[features.sum(2) > 0]

    for clusterer, error in (
        (reads, DataDependentOutputException),
        (mixes, RuntimeError),
        (shapes, DynamicOutputShapeException),
    ):
        with pytest.raises(error):
            ClusteredLayerAblation(model, model[2], clusterer=clusterer).explain(x, target=1)


def test_the_self_check_reads(on_cuda):
    model, x = _model(), torch.rand(2, 3, 9, 9)
    with pytest.raises(DataDependentOutputException):
        ClusteredLayerAblation(model, model[2], n_clusters=4).explain(x, target=1)


def test_a_layer_that_ends_in_a_relu_has_as_many_parts_as_maps(on_cuda, checks):
    model, x = _model(), torch.rand(2, 3, 9, 9)
    cam = ClusteredLayerAblation(model, model[2], clusterer="every-map")
    assert cam.explain(x, target=1).parts.shape == (2, 12, 7, 7)
    cam = ClusteredLayerAblation(model, model[1], clusterer="every-map")
    assert cam.explain(x, target=1).parts.shape == (2, 24, 7, 7)
