"""A gradient that is not there is an error, not a map of zeros."""

import pytest
import torch
from torch import nn

from captum_clustered import LayerEGradCam, LayerGroupCam
from captum_clustered.explainers.grad_cam import GradCam, LayerHiResCam
from captum_clustered.explainers.opti_cam import ClusteredLayerOptimization


class Net(nn.Module):
    def __init__(self, cut):
        super().__init__()
        torch.manual_seed(0)
        self.cut = cut
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.side, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x):
        return CUTS[self.cut](self, x)

    def score(self, maps):
        return self.head(maps.mean((2, 3)))


def _backbone_in(context):
    def forward(net, x):
        with context():
            maps = net.backbone(x)
        return net.score(maps)

    return forward


def _all_in(context):
    def forward(net, x):
        with context():
            return net.score(net.backbone(x))

    return forward


def _unread(net, x):
    net.backbone(x)
    return net.score(net.side(x))


CUTS = {
    "backbone without gradients": _backbone_in(torch.no_grad),
    "backbone in inference mode": _backbone_in(torch.inference_mode),
    "all without gradients": _all_in(torch.no_grad),
    "all in inference mode": _all_in(torch.inference_mode),
    "detached maps": lambda net, x: net.score(net.backbone(x).detach()),
    "detached output": lambda net, x: net.score(net.backbone(x)).detach(),
    "integers": lambda net, x: (100 * net.score(net.backbone(x))).round().long(),
    "by NumPy": lambda net, x: torch.from_numpy(net.score(net.backbone(x)).detach().numpy()),
    "a layer that is not read": _unread,
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (LayerEGradCam, {}),
        (LayerGroupCam, {"n_clusters": 4}),
        (LayerHiResCam, {}),
        (GradCam, {}),
        (GradCam, {"channel_dim": -3}),
        (ClusteredLayerOptimization, {"n_clusters": 4, "score": "identity"}),
    ],
)
def test_a_score_without_a_gradient_is_refused(cut, method, settings):
    net = Net(cut).eval()
    cam = method(net, net.backbone, **settings)
    if (method, cut) == (ClusteredLayerOptimization, "a layer that is not read"):
        assert cam.attribute(torch.rand(1, 3, 16, 16), target=0).isfinite().all()
        return  # the score has a gradient with respect to the masked image
    with pytest.raises(ValueError, match="must give a score that has a gradient with respect to"):
        cam.attribute(torch.rand(1, 3, 16, 16), target=0)


def test_of_several_tensors_one_may_be_unread():
    class Two(nn.Module):
        def forward(self, x):
            return x[:, :2], x[:, 2:]

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.two = nn.Conv2d(3, 4, 3), Two()

        def forward(self, x):
            return self.two(self.conv(x))[0].mean((2, 3))

    net = Head().eval()
    first, second = LayerEGradCam(net, net.two).attribute(torch.rand(1, 3, 8, 8), target=0)
    assert second.count_nonzero() == 0
    assert first.shape == (1, 1, 6, 6)
