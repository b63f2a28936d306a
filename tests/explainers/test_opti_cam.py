"""Weights of groups by gradient ascent: against a hand-written loop, and what must not happen."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from captum_clustered import ClusteredLayerOptimization
from small_models import split_cnn

LABELS = torch.tensor([[0, 1, 2, 0, 1, 3], [0, 0, 1, 2, 3, 3]])
TARGET = [1, 3]


def _model(seed=0):
    model = split_cnn(seed)
    with torch.no_grad():
        model[1][-1].weight *= 20
    return model


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 7, dtype=torch.float64) - 0.3


def _cam(model, **settings):
    return ClusteredLayerOptimization(model, model[0], **{"clusterer": LABELS, **settings})


def _by_hand(model, image, cls, row, steps, lr, fill):
    """Adam, written out, on one image."""
    maps = model[0](image[None]).detach()[0]
    parts = torch.stack([maps[row == k].sum(0) / maps[row == k].sum() for k in range(4)])
    u, m, v, objectives = torch.zeros(4, dtype=torch.float64), 0, 0, []

    def log_odds(picture):
        logits = model(picture[None])[0]
        rest = torch.cat([logits[:cls], logits[cls + 1 :]])
        return logits[cls] - rest.logsumexp(0)

    for t in range(1, steps + 1):
        u.requires_grad_()
        heat = (u.softmax(0)[:, None, None] * parts).sum(0)
        large = F.interpolate(heat[None, None], image.shape[1:], mode="bilinear")[0]
        mask = (large - large.min()) / (large.max() - large.min())
        value = log_odds(image * mask + fill * (1 - mask))
        (g,) = torch.autograd.grad(-value, u)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = u.detach() - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
        objectives.append(value.item())
    return u.softmax(0), objectives


@pytest.mark.parametrize("fill", [0.0, 0.2])
def test_equals_the_loop_written_by_hand(x, fill):
    model = _model()
    found = _cam(model, n_steps=4, lr=0.3, fill=fill).explain(x, TARGET)
    for i, (image, cls, row) in enumerate(zip(x, TARGET, LABELS, strict=True)):
        weights, objectives = _by_hand(model, image, cls, row, 4, 0.3, fill)
        torch.testing.assert_close(found.group_weights[i], weights)
        assert found.objectives[i].tolist() == pytest.approx(objectives)
        maps = found.activations[i]
        heat = sum(w * maps[row == k].sum(0) / maps[row == k].sum() for k, w in enumerate(weights))
        torch.testing.assert_close(found.attributions[i, 0], heat)


def test_the_objective_rises(x):
    found = _cam(_model(), n_steps=10).explain(x, TARGET)
    assert found.objectives.shape == (2, 10)
    assert (found.objectives[:, -1] > found.objectives[:, 0]).all()


def test_an_example_does_not_depend_on_its_neighbours(x):
    together = _cam(_model()).explain(x, TARGET)
    for i, cls in enumerate(TARGET):
        alone = _cam(_model(), clusterer=LABELS[i : i + 1]).explain(x[i : i + 1], cls)
        torch.testing.assert_close(alone.attributions[0], together.attributions[i])


def test_no_step_leaves_the_start(x):
    assert torch.equal(
        _cam(_model(), n_steps=0).explain(x, TARGET).group_weights,
        torch.full((2, 4), 0.25, dtype=torch.float64),
    )


def test_nothing_is_left_behind(x):
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x.requires_grad_()
    heat = _cam(model).attribute(x, TARGET)
    assert not heat.requires_grad
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_does_not_matter(x, mode):
    cam = _cam(_model())
    expected = cam.attribute(x, TARGET)
    with mode():
        assert torch.equal(cam.attribute(x.clone(), TARGET), expected)


def test_a_score_without_gradient_is_refused(x):
    model = _model()
    cam = ClusteredLayerOptimization(lambda y: model(y).detach(), model[0], clusterer=LABELS)
    with pytest.raises(ValueError, match="must give a score that has a gradient"):
        cam.attribute(x, TARGET)


def test_several_tensors_are_refused(x):
    class Two(nn.Module):
        def forward(self, y):
            return y, y + 1

    model = nn.Sequential(Two(), _Sum(), *_model()).double()
    with pytest.raises(ValueError, match="must give one tensor to be optimised over; got 2"):
        ClusteredLayerOptimization(model, model[0]).attribute(x, 1)


class _Sum(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_steps": -1}, "`n_steps` must be an int >= 0; got -1"),
        ({"lr": 0}, "`lr` must be a number > 0; got 0"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        _cam(_model(), **settings)
