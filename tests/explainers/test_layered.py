"""Several layers in one map, by hand and against the methods it is made of; the recipe."""

import json
from functools import partial

import pytest
import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import nn

from captum_clustered import (
    ClusteredLayerAblation,
    LayerCalibratedCam,
    LayeredCam,
    LayerHiResCam,
)
from captum_clustered.calibration import Power, calibrate
from captum_clustered.explainers.layered import CURVES
from captum_clustered.fills import Black
from captum_clustered.heatmap import enlarge, normalize
from captum_clustered.layers import find_finer_layer
from captum_clustered.metrics import confidences


class Fixed:
    """A method whose map is known."""

    def __init__(self, heat):
        self.heat = torch.as_tensor(heat)

    def attribute(self, inputs, target=None, **arguments):
        self.seen = target, arguments
        return self.heat


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()


X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def test_the_product_by_hand():
    last = Fixed([[[[0.0, 4.0], [2.0, -1.0]]]])
    finer = Fixed([[[[5.0, 10.0], [-3.0, 0.0]]]])
    found = LayeredCam([last, finer], floor=0.5, smooth=0).explain(torch.ones(1, 3, 2, 2), target=1)
    want = torch.tensor([[[[0.0, 1.0 * 1.5], [0.5 * 0.5, 0.0]]]]) / 1.5
    torch.testing.assert_close(found.attributions, want)
    assert [heat.tolist() for heat in found.layer_maps] == [last.heat.tolist(), finer.heat.tolist()]


def test_a_finer_map_is_blurred_on_its_own_grid():
    point = torch.zeros(1, 1, 1, 7)
    point[..., 3] = 1
    ones = Fixed(torch.ones(1, 1, 1, 1))
    found = LayeredCam([ones, Fixed(point)], floor=0, smooth=0.75).attribute(torch.ones(1, 3, 1, 7))
    # a Gaussian, whose largest value is 1 again
    want = torch.exp(-(torch.arange(-3.0, 4) ** 2) / (2 * 0.75**2))
    torch.testing.assert_close(found.flatten(), want)


def test_every_layer_keeps_its_own_arguments():
    one, two = Fixed(torch.ones(2, 1, 2, 2)), Fixed(torch.ones(2, 1, 4, 4))
    LayeredCam([one, two], at_input=[False, True]).attribute(
        torch.ones(2, 3, 8, 8), [1, 2], additional_forward_args=5
    )
    assert one.seen == ([1, 2], {"additional_forward_args": 5})
    assert two.seen == (
        [1, 2],
        {"attribute_to_layer_input": True, "additional_forward_args": 5},
    )


def test_one_layer_is_its_own_map(model):
    cam = ClusteredLayerAblation(model, model[4], n_clusters=3)
    heat = enlarge(cam.attribute(X, 1), (8, 8))
    found = LayeredCam([cam]).attribute(X, 1)
    torch.testing.assert_close(found, heat / heat.flatten(1).amax(1).view(-1, 1, 1, 1))


def test_a_map_of_zeros_stays_and_nan_shows():
    zeros, nan = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), torch.nan)
    image = torch.ones(1, 3, 4, 4)
    assert LayeredCam([Fixed(zeros)]).attribute(image).eq(0).all()
    assert LayeredCam([Fixed(zeros + 1), Fixed(nan)]).attribute(image).isnan().all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LayeredCam([]), ValueError, "`explainers` must have at least one entry"),
        (lambda: LayeredCam([nn.ReLU()]), TypeError, "`explainers` must have Captum's `attribute`"),
        (
            lambda: LayeredCam([Fixed(1.0)], at_input=[True, False]),
            ValueError,
            "`at_input` must have one entry for each of the 1 explainers; got 2",
        ),
        (lambda: LayeredCam([Fixed(1.0)], floor=-1), ValueError, "`floor` must be a number >= 0"),
        (lambda: LayeredCam([Fixed(1.0)], smooth=-1), ValueError, "`smooth` must be a number >= 0"),
        (
            lambda: LayeredCam([Fixed(torch.ones(2, 1, 3))]).attribute(torch.ones(2, 3, 4, 4)),
            ValueError,
            r"`explainers` must give maps \(2, 1, H, W\), .*got \(2, 1, 3\)",
        ),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


# The recipe


def test_the_recipe_is_its_parts(model):
    fill, target = Black(0.5, 0.25), [0, 1, 2]
    found = LayerCalibratedCam(model, model[4], fill=fill, area_weight=0.5).explain(X, target)
    last = LayerGradCam(model, model[4]).attribute(X, target, relu_attributions=True)
    inner = LayerGradientXActivation(model, model[1]).attribute(X, target).sum(1, True).relu()
    torch.testing.assert_close(found.layer_maps[0], last)
    torch.testing.assert_close(found.layer_maps[1], inner)
    refined = LayeredCam([Fixed(last.detach()), Fixed(inner.detach())]).attribute(X)
    want = calibrate(model, X, refined, target, fill=fill, area_weight=0.5, curves=CURVES)
    torch.testing.assert_close(found.attributions, want.heatmaps)
    assert found.calibration.chosen.tolist() == want.chosen.tolist()
    assert found.finer_layers == ("1",)
    assert found.attributions.shape == (3, 1, 8, 8)


def test_calibration_never_lowers_its_objective(model):
    cam = LayerCalibratedCam(model, model[4], area_weight=0.0)
    straight = LayerCalibratedCam(model, model[4], curves=())
    scores = [
        confidences(model, X, one.attribute(X, 1), 1, score="log_odds").masked
        for one in (cam, straight)
    ]
    assert (scores[0] >= scores[1] - 1e-6).all()


def test_the_record_says_what_was_chosen(model, tmp_path):
    found = LayerCalibratedCam(model, model[4]).explain(X, 1)
    record = json.loads(found.save(tmp_path, example=2)["record"].read_text())
    assert record["finer_layers"] == ["1"]
    assert record["curve"] == found.calibration.names[2]
    assert record["passes"] == 8
    assert record["objective"] == pytest.approx(found.calibration.objectives[2].max().item())
    assert record["objective_before"] == pytest.approx(found.calibration.objectives[2, 0].item())


def test_without_a_gradient(model):
    def blind(x):
        with torch.no_grad():
            return model(x)

    groups = (
        partial(ClusteredLayerAblation, n_clusters=3),
        partial(ClusteredLayerAblation, clusterer="every-map"),
    )
    found = LayerCalibratedCam(blind, model[4], finer_layers=model[1], explainers=groups).explain(
        X, 1
    )
    want = ClusteredLayerAblation(model, model[1], clusterer="every-map").attribute(X, 1)
    torch.testing.assert_close(found.layer_maps[1], want)
    with pytest.raises(ValueError, match="must give a score that has a gradient"):
        LayerCalibratedCam(blind, model[4], finer_layers=model[1]).attribute(X, 1)


def test_where_no_layer_is_finer_the_layer_stands_alone(model):
    found = LayerCalibratedCam(model, model[1]).explain(X, 1)
    assert found.finer_layers == ()
    assert len(found.layer_maps) == 1
    alone = LayerCalibratedCam(model, model[4], finer_layers=0).explain(X, 1)
    assert len(alone.layer_maps) == 1


def test_two_finer_layers():
    torch.manual_seed(1)
    deeper = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(8, 4),
    ).eval()
    x = torch.rand(2, 3, 16, 16)
    found = LayerCalibratedCam(deeper, deeper[7], curves=()).explain(x, 1)
    assert found.finer_layers == ("4", "1")
    assert [maps.shape[2] for maps in found.layer_maps] == [4, 8, 16]
    want = LayeredCam([Fixed(maps) for maps in found.layer_maps]).attribute(x)
    torch.testing.assert_close(found.attributions, normalize(want))
    named = LayerCalibratedCam(deeper, deeper[7], curves=(), finer_layers=[deeper[4], deeper[1]])
    assert torch.equal(named.attribute(x, 1), found.attributions)
    one = LayerCalibratedCam(deeper, deeper[7], finer_layers=1).explain(x, 1)
    assert one.finer_layers == ("4",)


def test_the_input_of_a_layer(model):
    found = LayerCalibratedCam(model, model[5]).explain(X, 1, attribute_to_layer_input=True)
    want = LayerCalibratedCam(model, model[4]).explain(X, 1)
    assert found.finer_layers == ("1",)
    torch.testing.assert_close(found.attributions, want.attributions)


def test_examples_do_not_depend_on_their_neighbours(model):
    cam = LayerCalibratedCam(model, model[4])
    alone = torch.cat([cam.attribute(X[i : i + 1], i) for i in range(3)])
    torch.testing.assert_close(cam.attribute(X, [0, 1, 2]), alone, rtol=1e-4, atol=1e-5)
    some = cam.attribute(X, [0, 1, 2], perturbations_per_eval=2)
    torch.testing.assert_close(some, alone, rtol=1e-4, atol=1e-5)


def test_the_finer_layer_is_found_behind_a_function(model):
    want = LayerCalibratedCam(model, model[4]).explain(X, 1)
    found = LayerCalibratedCam(lambda x, scale: scale * model(x), model[4]).explain(
        X, 1, additional_forward_args=1.0
    )
    assert len(found.layer_maps) == 2
    torch.testing.assert_close(found.attributions, want.attributions)
    given = LayerCalibratedCam(model, model[4], finer_layers=model[1]).explain(X, 1)
    torch.testing.assert_close(given.attributions, want.attributions)
    assert given.finer_layers == want.finer_layers == ("1",)


def test_the_model_is_given_back(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    cam = LayerCalibratedCam(model, model[4])
    state = torch.random.get_rng_state()
    cam.attribute(X, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"finer_layers": -1}, "`finer_layers` must be an int >= 0; got -1"),
        (
            {"finer_layers": "layer3"},
            "`finer_layers` must be an int, or modules .* got 'layer3'",
        ),
        ({"finer_layers": None}, "`finer_layers` must be an int, or modules .* got None. Pass"),
        ({"finer_layers": 1.5}, "`finer_layers` must be an int, or modules .* got 1.5. Pass"),
        ({"n_steps": -1}, "`n_steps` must be an int >= 0"),
        ({"explainers": [LayerHiResCam]}, "`explainers` must be two callables"),
        ({"floor": -0.1}, "`floor` must be a number >= 0"),
        ({"curves": [Power(2.0), lambda v: -v]}, "`curves` must rise from 0 to 1"),
    ],
)
def test_wrong_settings(model, settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        LayerCalibratedCam(model, model[4], **settings).attribute(X, 1)


class WritesIntoItsInput(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.sub_(0.5))


def test_a_model_that_writes_into_its_input_gets_the_images_as_they_are(model):
    writes, plain = WritesIntoItsInput(model), nn.Sequential(Shift(), *model)
    images, x = X.clone(), X.clone()
    heat = LayerCalibratedCam(writes, model[4]).attribute(images, target=1)
    assert torch.equal(images, x)
    torch.testing.assert_close(heat, LayerCalibratedCam(plain, model[4]).attribute(x, target=1))
    found = find_finer_layer(writes, model[4], images)
    assert (found.layer, torch.equal(images, x)) == (model[1], True)


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.5
