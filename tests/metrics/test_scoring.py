"""Probabilities are not squashed a second time, by any metric, and are never a dead end."""

import pytest
import torch
from torch import nn

from captum_clustered.explainers.group_cam import LayerGroupCam
from captum_clustered.explainers.opti_cam import ClusteredLayerOptimization
from captum_clustered.explainers.score_cam import ClusteredLayerScore
from captum_clustered.metrics import (
    adcc,
    average_drop,
    average_gain,
    confidences,
    deletion,
    infidelity,
    insertion,
)


def _net(classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    ).eval()


X, HEAT = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
SQUASHED = {
    "softmax": nn.Sequential(_net(), nn.Softmax(1)),
    "sigmoid": nn.Sequential(_net(), nn.Sigmoid()),
    "one sigmoid": nn.Sequential(_net(1), nn.Sigmoid()),
}


def _explain(images, target):
    return images.mean(1, keepdim=True)


@pytest.mark.parametrize("model", SQUASHED)
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize(
    "judge",
    [
        average_drop,
        average_gain,
        insertion,
        deletion,
        infidelity,
        lambda model, x, heat, **kwargs: adcc(model, _explain, x, heat, **kwargs),
    ],
)
def test_no_metric_squashes_probabilities_again(judge, model, score):
    with pytest.raises(ValueError, match="`score` must be 'identity' for a model that returns"):
        judge(SQUASHED[model], X, HEAT, score=score)


@pytest.mark.parametrize("score", ["identity", "probabilities"])
@pytest.mark.parametrize("model", SQUASHED)
def test_probabilities_are_taken_as_they_are(model, score):
    found = confidences(SQUASHED[model], X, HEAT, score=score)
    output = SQUASHED[model](X).double()
    torch.testing.assert_close(found.original, output.amax(1).detach())
    assert found.conventions.score == "probabilities"
    gain = 100 * (found.masked - found.original).relu() / (1 - found.original)
    torch.testing.assert_close(found.average_gain, gain)
    assert torch.equal(found.columns()["average_gain"], found.average_gain)


def test_softmax_of_logits_and_identity_of_probabilities_are_the_same_numbers():
    logits = confidences(SQUASHED["softmax"][0], X, HEAT)
    given = confidences(SQUASHED["softmax"], X, HEAT, score="identity")
    for name in ("original", "masked", "complement"):
        torch.testing.assert_close(getattr(logits, name), getattr(given, name).double())


def test_a_callable_is_the_way_out():
    found = confidences(SQUASHED["softmax"], X, HEAT, score=lambda p: p.softmax(1))
    expected = SQUASHED["softmax"](X).double().softmax(1).amax(1)
    torch.testing.assert_close(found.original, expected.detach())


def test_log_odds_of_probabilities():
    with pytest.raises(ValueError, match=r"`score` must be torch.logit for a model that returns"):
        confidences(SQUASHED["softmax"], X, HEAT, score="log_odds")
    theirs = confidences(SQUASHED["softmax"], X, HEAT, score=torch.logit)
    ours = confidences(SQUASHED["softmax"][0], X, HEAT, score="log_odds")
    torch.testing.assert_close(theirs.original, ours.original, rtol=1e-5, atol=1e-5)
    for found in (theirs, ours):
        assert "average_gain" not in found.columns()
        with pytest.raises(ValueError, match="must be a probability for the average gain; got"):
            _ = found.average_gain


def test_doubt_is_said():
    @torch.no_grad()
    def model(x):
        return SQUASHED["sigmoid"](x)

    with pytest.warns(UserWarning, match=r"All outputs of the model lie in \[0, 1\]"):
        confidences(model, X[:1], HEAT[:1], score="sigmoid")
    assert confidences(model, X[:1], HEAT[:1], score="probabilities").average_gain.shape == (1,)
    cam = ClusteredLayerScore(model, SQUASHED["sigmoid"][0][1], n_clusters=3)
    with pytest.warns(UserWarning, match="score='log_odds' squashes them a second time"):
        cam.attribute(X[:1], 0)


def test_what_is_said_to_be_probabilities_is_checked():
    with pytest.raises(ValueError, match=r"`score`='probabilities' must have outputs in \[0, 1\]"):
        confidences(_net(), X, HEAT, score="probabilities")


@pytest.mark.parametrize("method", [LayerGroupCam, ClusteredLayerScore])
@pytest.mark.parametrize("model", SQUASHED)
def test_methods_that_mask_the_image_take_probabilities_as_they_are(method, model):
    model = SQUASHED[model]
    wanted = method(model, model[0][1], n_clusters=3, score="identity").attribute(X, 0)
    squashing = method(model, model[0][1], n_clusters=3, score="softmax")
    with pytest.warns(UserWarning, match="They are taken as they are: score='softmax' would"):
        heat = squashing.attribute(X, 0)
    assert torch.equal(heat, wanted)


def test_log_odds_that_are_optimised_are_those_of_the_probabilities():
    model = SQUASHED["softmax"]
    settings = {"n_clusters": 3, "n_steps": 3}
    logits = ClusteredLayerOptimization(model[0], model[0][1], **settings).explain(X, 0)
    with pytest.warns(UserWarning, match="They are taken as they are: score='log_odds' would"):
        given = ClusteredLayerOptimization(model, model[0][1], **settings).explain(X, 0)
    torch.testing.assert_close(given.objectives, logits.objectives, rtol=1e-4, atol=1e-4)
