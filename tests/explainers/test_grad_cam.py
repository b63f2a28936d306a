"""HiResCAM: against gradients by hand, and against Captum."""

import pytest
import torch
from captum.attr import LayerGradientXActivation
from torch import nn

from captum_clustered import LayerHiResCam
from captum_clustered.heatmap import vit_reshape_transform


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)
    return nn.Sequential(*layers).double().eval()


@pytest.fixture
def x():
    return torch.randn(2, 1, 2, 2, dtype=torch.float64)


def test_gradient_times_activation_by_hand(model, x):
    maps = model[1](model[0](x)).detach()
    slopes = model[3].weight[[0, 1]].view(2, 3, 2, 2).detach()
    expected = (maps * slopes).sum(1, keepdim=True)
    cam = LayerHiResCam(model, model[1])
    torch.testing.assert_close(cam.attribute(x, [0, 1]), expected.relu())
    signed = cam.attribute(x, [0, 1], relu_attributions=False)
    torch.testing.assert_close(signed, expected)
    each = cam.attribute(x, [0, 1], relu_attributions=False, attr_dim_summation=False)
    torch.testing.assert_close(each, maps * slopes)


@pytest.mark.parametrize("at_input", [False, True])
def test_is_captums_gradient_times_activation(model, x, at_input):
    theirs = LayerGradientXActivation(model, model[1])
    theirs = theirs.attribute(x, 1, attribute_to_layer_input=at_input).sum(1, keepdim=True)
    ours = LayerHiResCam(model, model[1]).attribute(
        x, 1, attribute_to_layer_input=at_input, relu_attributions=False
    )
    torch.testing.assert_close(ours, theirs)


def test_tokens():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, tokens):
            return (self.layer(tokens) * torch.tensor([1.0, -2.0])).sum(2).sum(1, keepdim=True)

    model = Head().eval()
    tokens = torch.randn(1, 5, 2)
    cam = LayerHiResCam(model, model.layer, channel_dim=-1, reshape_transform=vit_reshape_transform)
    expected = (tokens[0, 1:] @ torch.tensor([1.0, -2.0])).view(1, 1, 2, 2)
    heat = cam.attribute(tokens, 0, relu_attributions=False)
    torch.testing.assert_close(heat, expected)
