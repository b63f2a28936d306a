"""Rows of scores and examples: they agree, or one row is the score of the batch."""

import re

import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_clustered import ClusteredLayerAblation, LayerEGradCam
from captum_clustered.explainers.grad_cam import GradCam, LayerHiResCam
from captum_clustered.targets import example_scores, format_target, select

METHODS = [ClusteredLayerAblation, LayerEGradCam, LayerHiResCam, GradCam]


class Pixels(nn.Module):
    """Each pixel is a row of the output."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.out(self.enc(x)).movedim(1, -1).flatten(0, 2)


class Scan(nn.Module):
    """One answer for the slices of a scan, `(N, slices, 3, H, W)`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.head = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x):
        maps = self.enc(x.flatten(0, 1))
        return self.head(maps.mean((2, 3)).view(*x.shape[:2], -1).mean(1))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("target", [1, None])
def test_more_rows_than_examples_are_refused(method, n, target):
    model = Pixels().eval()

    def forward(x):
        return model(x) if target is not None else model(x)[:, 0]

    words = f"got {64 * n} rows for {n} examples. Make one score of each example's rows"
    with pytest.raises(ValueError, match=re.escape(words)):
        method(forward, model.enc).attribute(torch.rand(n, 3, 8, 8), target=target)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", [1, (1,), torch.tensor([1] * 5), [1] * 5])
def test_one_row_is_the_score_of_the_batch(method, target):
    model, slices = Scan().eval(), torch.rand(5, 3, 8, 8)
    heat = method(lambda s: model(s[None]), model.enc).attribute(slices, target=target)
    one = method(lambda s: model(s[None])[:, 1], model.enc).attribute(slices)
    assert torch.equal(heat, one)
    assert heat.shape == (5, 1, 6, 6)


def test_one_row_is_the_score_of_the_batch_in_captum_too():
    model, slices = Scan().eval(), torch.rand(5, 3, 8, 8)

    def forward(s):
        return model(s[None])

    theirs = LayerGradCam(forward, model.enc).attribute(slices, 1, relu_attributions=True)
    assert torch.equal(GradCam(forward, model.enc).attribute(slices, 1), theirs.detach())


@pytest.mark.parametrize("target", [[0, 1, 1, 1, 1], torch.arange(5) % 3])
def test_examples_that_share_a_row_share_the_target(target):
    model = Scan().eval()
    cam = LayerEGradCam(lambda s: model(s[None]), model.enc)
    with pytest.raises(ValueError, match=r"`target` must be one class where .* one row of scores"):
        cam.attribute(torch.rand(5, 3, 8, 8), target=target)


def test_a_folded_batch_is_told_how_to_pass_the_bag():
    model = Scan().eval()
    cam = ClusteredLayerAblation(model, model.enc, n_clusters=4)
    words = "inputs `bag[0]`, forward_func `lambda images: model(images[None])`"
    with pytest.raises(ValueError, match=re.escape(words)):
        cam.attribute(torch.rand(1, 5, 3, 8, 8), target=1)


def test_rows_by_hand():
    output = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert select(output, format_target([0, 1, 0], 3)).tolist() == [1, 4, 5]
    assert select(output[:1], format_target(1, 3)).tolist() == [2]
    with pytest.raises(ValueError, match="got 3 rows for 2 examples"):
        select(output, format_target(1, 2))
    with pytest.raises(ValueError, match="got 3 rows for 2 examples"):
        example_scores(output[:, 0], None, 2)
    assert example_scores(output[:1, 0], None, 2).tolist() == [1]
