"""ADCC and its parts."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch import nn

from captum_clustered.metrics import (
    Status,
    adcc,
    adcc_score,
    average_drop,
    coherency,
    mean_area,
)


def explain(images, target):
    """The heat map is the image's brightness."""
    return images.sum(1, keepdim=True)


def two_classes(x):
    total = x.sum((1, 2, 3))
    return torch.stack([total, torch.zeros_like(total)], 1)


def test_score_by_hand():
    parts = [torch.tensor([value]) for value in (90.0, 40.0, 10.0)]
    assert adcc_score(*parts).item() == pytest.approx(3 / (1 / 90 + 1 / 60 + 1 / 90))


@pytest.mark.parametrize("parts", [(0.0, 40.0, 10.0), (90.0, 100.0, 10.0), (90.0, 40.0, 100.0)])
def test_a_part_of_nought_makes_the_score_nought(parts):
    assert adcc_score(*map(torch.tensor, parts)).item() == 0


def test_coherency_is_pearsons():
    images = torch.rand(4, 1, 5, 6, dtype=torch.float64)
    found = coherency(explain, images, explain(images, 0), target=0)
    for image, value in zip(images, found, strict=True):
        heat = (image - image.min()) / (image.max() - image.min())
        r = np.corrcoef(heat.flatten(), (image * heat).flatten())[0, 1]
        assert value.item() == pytest.approx(50 * (r + 1))


def test_coherency_uses_the_fill_and_the_class():
    seen = []

    def method(images, target):
        seen.append((images, target))
        return images.sum(1, keepdim=True)

    images = torch.tensor([[[[1.0, 3.0]]]])
    coherency(method, images, explain(images, 0), target=[7], fill=5.0)
    ((shown, target),) = seen
    assert shown.tolist() == [[[[5.0, 3.0]]]]
    assert target == [7]


def test_extremes_of_coherency():
    images = torch.rand(3, 1, 4, 4)
    heat = torch.rand(3, 1, 4, 4)
    for again, value in [(heat, 100), (-heat, 0), (torch.ones(3, 1, 4, 4), 50)]:
        found = coherency(lambda x, target, again=again: again, images, heat)
        torch.testing.assert_close(found, torch.full((3,), float(value)))


def test_a_flat_map_has_no_correlation():
    images, flat = torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.3)
    assert coherency(lambda x, target: flat, images, flat).tolist() == [50, 50]


def test_a_method_may_use_gradients():
    def gradient(images, target):
        images = images.requires_grad_()
        (slope,) = torch.autograd.grad((images**3).sum(), images)
        return slope.sum(1, keepdim=True)

    images = torch.rand(2, 1, 4, 4)
    assert (coherency(gradient, images, 3 * images**2) > 90).all()


def test_all_inputs_reach_the_method():
    def method(inputs, target):
        images, more = inputs
        return images.sum(1, keepdim=True) * more

    images = torch.rand(2, 1, 4, 4)
    found = coherency(method, (images, torch.tensor(2.0)), explain(images, 0))
    torch.testing.assert_close(found, coherency(explain, images, explain(images, 0)))


def test_parts_and_aggregates():
    images = torch.rand(3, 1, 4, 4)
    heat = explain(images, 0)
    found = adcc(two_classes, explain, images, heat, 0)
    torch.testing.assert_close(found.average_drop, average_drop(two_classes, images, heat, 0))
    torch.testing.assert_close(found.complexity, mean_area(heat))
    torch.testing.assert_close(found.coherency, coherency(explain, images, heat, 0))
    assert found.status.tolist() == [Status.OK] * 3
    rows = zip(found.coherency, found.complexity, found.average_drop, strict=True)
    expected = [3 / (1 / c + 1 / (100 - m) + 1 / (100 - d)) for c, m, d in rows]
    torch.testing.assert_close(found.per_image, torch.stack(expected))
    c, m, d = found.coherency.mean(), found.complexity.mean(), found.average_drop.mean()
    torch.testing.assert_close(found.of_means, 3 / (1 / c + 1 / (100 - m) + 1 / (100 - d)))
    assert found.of_means > found.per_image.mean()


def test_the_method_explains_the_class_of_the_whole_image():
    classes = []

    def method(images, target):
        classes.append(target.tolist())
        return explain(images, target)

    images = torch.tensor([[[[1.0, 2.0]]], [[[-1.0, -2.0]]]])
    adcc(two_classes, method, images, explain(images, 0))
    assert classes == [[0, 1]]


def test_captums_gradient_methods_can_be_judged():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    cam = LayerGradCam(model, model[1])
    images = torch.rand(2, 3, 8, 8)
    found = adcc(model, cam.attribute, images, cam.attribute(images, target=[1, 2]), [1, 2])
    assert ((found.per_image > 0) & (found.per_image < 100)).all()
    assert not found.per_image.requires_grad
