"""Probabilities are told from logits."""

import pytest
import torch
from torch import nn

from captum_clustered._outputs import are_probabilities, are_shares, with_graph


def _net(classes=4, activation=None):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), activation or nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, classes),
    ).eval()  # fmt: skip


NET, ONE = _net(), _net(1)
HALF = _net(activation=nn.Sigmoid())  # logits near 0.5, all of them in [0, 1]
HALF[-1].weight.data.mul_(0.1)
HALF[-1].bias.data.fill_(0.5)


def _calibrated(p):
    """Each half of [0, 1] is stretched, as torchxrayvision does."""
    low, new = p < 0.3, torch.zeros(p.shape)
    new[low] = p[low] / 0.6
    new[~low] = 1 - (1 - p[~low]) / 1.4
    return new


MODELS = {
    "softmax": (lambda x: NET(x).softmax(1), True),
    "softmax in half precision": (lambda x: NET(x).softmax(1).half(), True),
    "softmax in bfloat16": (lambda x: NET(x).bfloat16().softmax(1), True),
    "softmax by hand": (lambda x: NET(x).exp() / NET(x).exp().sum(1, keepdim=True), True),
    "exp of log-softmax": (lambda x: NET(x).log_softmax(1).exp(), True),
    "an ensemble": (lambda x: (NET(x).softmax(1) + NET(x / 2).softmax(1)) / 2, True),
    "sigmoid": (lambda x: NET(x).sigmoid(), True),
    "one sigmoid": (lambda x: ONE(x).sigmoid(), True),
    "one sigmoid without an axis": (lambda x: ONE(x).sigmoid()[:, 0], True),
    "both sides of a sigmoid": (lambda x: torch.cat([1 - NET(x).sigmoid()] * 2), True),
    "sigmoid, calibrated": (lambda x: _calibrated(NET(x).sigmoid()), True),
    "half precision without a graph": (lambda x: NET(x).detach().softmax(1).half(), True),
    "bfloat16 without a graph": (lambda x: NET(x).detach().softmax(1).bfloat16(), True),
    "sigmoid by hand": (lambda x: 1 / (1 + (-NET(x)).exp()), None),
    "tanh above zero": (lambda x: (NET(x).tanh() + 1) / 2, None),
    "hard sigmoid by hand": (lambda x: nn.functional.relu6(NET(x) + 3) / 6, None),
    "dense softmax": (lambda x: torch.conv2d(x, torch.ones(4, 3, 1, 1)).softmax(1), True),
    "logits": (NET, False),
    "one logit": (ONE, False),
    "log-softmax": (lambda x: NET(x).log_softmax(1), False),
    "logits in [0, 1]": (HALF, False),
    "frozen logits in [0, 1]": (_net(activation=nn.Sigmoid()).requires_grad_(False), False),
    "gated logits in [0, 1]": (lambda x: HALF(x) * HALF(x).sigmoid(), False),
    "one-hot by chance": (lambda x: 0 * x[:, :2, 0, 0] + torch.tensor([1.0, 0.0]), False),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("inference", [False, True])
def test_what_a_model_returns(name, inference):
    model, expected = MODELS[name]
    x = torch.rand(2, 3, 8, 8)
    with torch.inference_mode(inference), torch.no_grad():
        output = model(x)
        found = are_probabilities(output, lambda: with_graph(model, (x,)))
    assert found is None if expected is None else bool(found) is expected


BY_HAND = {
    "a sigmoid": lambda z: 1 / (1 + (-z).exp()),
    "its other form": lambda z: z.exp() / (z.exp() + 1),
    "tanh": lambda z: (z.tanh() + 1) / 2,
    "erf": lambda z: (torch.erf(z) + 1) / 2,
    "a hard sigmoid": lambda z: nn.functional.relu6(z + 3) / 6,
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_squash_by_hand_is_not_taken_for_logits(name):
    """They may end otherwise, so a few values tell nothing."""

    def model(x):
        return BY_HAND[name](NET(x))

    def found(x):
        return are_probabilities(model(x), lambda: with_graph(model, (x,)))

    x = torch.rand(4, 3, 8, 8)
    assert found(x[:2]) is None
    assert found(x) is True


def test_a_scale_that_is_an_exponential_is_no_squash():
    """As of CLIP, whose temperature is learnt as a logarithm."""
    scale = torch.tensor(-1.0, requires_grad=True)

    def model(x):
        return HALF(x) * scale.exp()

    x = torch.rand(8, 3, 8, 8)
    assert are_probabilities(model(x), lambda: with_graph(model, (x,))) is False


def test_without_a_graph_many_values_tell():
    @torch.no_grad()
    def sigmoid(x):
        return NET(x).sigmoid()

    x = torch.rand(4, 3, 8, 8)
    assert are_probabilities(sigmoid(x[:2]), lambda: with_graph(sigmoid, (x[:2],))) is None
    assert are_probabilities(sigmoid(x), lambda: with_graph(sigmoid, (x,))) is True


def test_a_row_without_numbers_is_not_judged():
    rows = torch.tensor([[0.25, 0.75], [float("nan"), 0.5]])
    assert are_shares(rows)
    assert not are_shares(rows[1:])
    assert not are_shares(torch.tensor([[0.25, 0.75], [0.5, 0.6]]))


def test_the_callers_tensors_stay_as_they_are():
    x, labels = torch.rand(1, 3, 8, 8), torch.tensor([1])
    with_graph(lambda images, _: NET(images), (x, labels))
    assert not x.requires_grad
    assert NET[0].weight.grad is None
