"""The adapters of Captum's metrics, against Captum and against the definitions."""

import math

import pytest
import torch
from captum import metrics as captum_metrics
from captum.attr import FeatureAblation, LayerAttribution, LayerGradCam
from torch import nn

from captum_clustered.metrics import infidelity, sensitivity_max


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()


@pytest.fixture
def cam(model):
    return LayerGradCam(model, model[1])


# --- sensitivity ---------------------------------------------------------------------------------


def _seeded(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def perturb(inputs, radius):
        return inputs + radius * (2 * torch.rand(inputs.shape, generator=generator) - 1)

    return perturb


@pytest.mark.parametrize("samples", [4, 10])
def test_captums_own_result_for_one_image_is_too_large(cam, samples):
    """The fault that the adapter avoids; if this fails, Captum has mended it."""
    image = torch.rand(1, 3, 8, 8)
    kept = {"n_perturb_samples": samples, "target": 1}
    wrong = captum_metrics.sensitivity_max(cam.attribute, image, _seeded(), **kept)
    right = sensitivity_max(cam.attribute, image, perturb_func=_seeded(), **kept)
    assert (wrong / right).item() == pytest.approx(math.sqrt(samples), rel=1e-4)


def test_captum_itself_fails_on_a_batch(cam):
    with pytest.raises(RuntimeError, match="must match"):
        captum_metrics.sensitivity_max(cam.attribute, torch.rand(3, 3, 8, 8), target=1)


def _literal_sensitivity(explain, image, target, radius, samples, seed):
    perturb = _seeded(seed)
    heat = explain(image, target=target)
    moved = perturb(image.repeat_interleave(samples, 0), radius)
    changes = [(explain(row[None], target=target) - heat).norm() / heat.norm() for row in moved]
    return torch.stack(changes).max()


def test_sensitivity_against_the_definition(cam):
    images = torch.rand(3, 3, 8, 8)
    for i, target in enumerate([0, 2, 1]):
        found = sensitivity_max(cam.attribute, images[i : i + 1], target, seed=5)
        expected = _literal_sensitivity(cam.attribute, images[i : i + 1], target, 0.02, 10, seed=5)
        torch.testing.assert_close(found[0], expected.detach(), atol=1e-5, rtol=1e-4)


def test_sensitivity_of_a_batch_is_that_of_its_images(cam):
    def shift(inputs):  # the same for each image
        return inputs + 0.02

    images, target = torch.rand(3, 3, 8, 8), torch.tensor([0, 2, 1])
    found = sensitivity_max(cam.attribute, images, target, perturb_func=shift)
    for i in range(3):
        row = slice(i, i + 1)
        single = sensitivity_max(cam.attribute, images[row], target[row], perturb_func=shift)
        torch.testing.assert_close(found[row], single, atol=1e-6, rtol=1e-4)


def test_methods_that_captum_treats_well_keep_their_value(model):
    method = FeatureAblation(model).attribute
    images = torch.rand(2, 3, 8, 8)
    expected = captum_metrics.sensitivity_max(method, images, _seeded(), target=1)
    found = sensitivity_max(method, images, 1, perturb_func=_seeded())
    torch.testing.assert_close(found, expected)


def test_sensitivity_is_seeded(cam):
    images = torch.rand(2, 3, 8, 8)
    before = torch.get_rng_state()
    found = [sensitivity_max(cam.attribute, images, 1, seed=seed) for seed in (0, 0, 1)]
    assert torch.get_rng_state().equal(before)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


@pytest.mark.parametrize("limit", [1, 4, 7, None])
def test_the_size_of_a_pass_changes_no_number(model, cam, limit):
    images, heat = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    expected = infidelity(model, images, heat, 1, noise=0.5)
    found = infidelity(model, images, heat, 1, noise=0.5, max_examples_per_batch=limit)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-9)

    def both(pair, target):
        return cam.attribute(pair[0] + pair[1], target)

    for explain, inputs in ((cam.attribute, images), (both, (images, images / 2))):
        expected = sensitivity_max(explain, inputs, 1)
        found = sensitivity_max(explain, inputs, 1, max_examples_per_batch=limit)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)


def test_a_linear_explanation_moves_by_the_radius():
    def explain(images, target):
        return images

    found = sensitivity_max(explain, torch.ones(2, 1, 2, 2), 0, perturb_radius=0.5, norm_ord=1)
    assert ((found > 0.2) & (found <= 0.5)).all()


def test_several_inputs_and_no_target():
    seen = []

    def explain(inputs):
        first, second = inputs
        seen.append(len(first))
        return first * second, second

    found = sensitivity_max(explain, (torch.rand(2, 3), torch.rand(2, 3)), n_perturb_samples=4)
    assert found.shape == (2,)
    assert seen == [2, 8]


@pytest.mark.parametrize(("limit", "calls"), [(1, [2] * 5), (4, [4, 4, 2]), (10**9, [10])])
def test_sensitivity_in_chunks(limit, calls):
    seen = []

    def explain(images):
        seen.append(len(images))
        return images

    sensitivity_max(explain, torch.rand(2, 1, 4), n_perturb_samples=5, max_examples_per_batch=limit)
    assert seen == [2, *calls]


def test_wrong_arguments_of_sensitivity(cam):
    with pytest.raises(ValueError, match="`n_perturb_samples` must be an int >= 1; got 0"):
        sensitivity_max(cam.attribute, torch.rand(1, 3, 8, 8), n_perturb_samples=0)
    with pytest.raises(TypeError, match="`inputs` must be a tensor or a tuple of tensors"):
        sensitivity_max(cam.attribute, [torch.rand(1, 3, 8, 8)])


# --- infidelity ----------------------------------------------------------------------------------


def _noise(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def perturb(inputs):
        noise = 0.1 * torch.randn(inputs.shape, generator=generator)
        return noise, inputs - noise

    return perturb


@pytest.mark.parametrize("normalize", [True, False])
def test_infidelity_is_captums_where_captum_takes_the_map(model, normalize):
    images, heat = torch.rand(3, 3, 8, 8), torch.rand(3, 1, 8, 8)
    expected = captum_metrics.infidelity(
        model, _noise(), images, heat.expand_as(images) / 3, target=[0, 2, 1], normalize=normalize
    )
    found = infidelity(model, images, heat, [0, 2, 1], perturb_func=_noise(), normalize=normalize)
    torch.testing.assert_close(found.float(), expected, atol=1e-7, rtol=1e-4)


def test_infidelity_against_the_definition(model):
    image, heat = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    noise, moved = _noise()(image.repeat_interleave(10, 0))
    with torch.no_grad():
        change = (model(image) - model(moved))[:, 1]
    says = (noise.mean(1, keepdim=True) * heat).sum((1, 2, 3))
    found = infidelity(model, image, heat, 1, perturb_func=_noise(), normalize=False)
    assert found.item() == pytest.approx(((says - change) ** 2).mean().item(), rel=1e-4)
    scale = (says * change).sum() / (says**2).sum()
    found = infidelity(model, image, heat, 1, perturb_func=_noise())
    assert found.item() == pytest.approx(((scale * says - change) ** 2).mean().item(), rel=1e-4)


def test_the_exact_explanation_has_no_infidelity():
    slope = torch.tensor([[1.0, -2.0], [3.0, 0.5]])

    def linear(x):  # the same slope in each of 3 channels
        return (x * slope).sum((1, 2, 3))

    image = torch.rand(2, 3, 2, 2)
    exact = slope.expand(2, 1, 2, 2)
    assert infidelity(linear, image, exact, noise=1.0).max() < 1e-9
    # the channels share the map, so that their sum is what was said
    assert infidelity(linear, image, 3 * exact, noise=1.0, normalize=False).max() < 1e-9
    assert infidelity(linear, image, exact.flip(3), noise=1.0).min() > 0.1


def test_maps_are_resized_and_keep_their_scale(model):
    images, heat = torch.rand(2, 3, 8, 8), torch.randn(2, 2, 2)
    full = LayerAttribution.interpolate(heat[:, None], (8, 8), "bilinear")
    kept = {"normalize": False, "noise": 0.1}
    found = infidelity(model, images, heat, 1, **kept)
    torch.testing.assert_close(found, infidelity(model, images, full, 1, **kept))
    assert not found.allclose(infidelity(model, images, 5 * full, 1, **kept))
    torch.testing.assert_close(
        infidelity(model, images, full, 1), infidelity(model, images, 5 * full, 1)
    )


def test_a_nan_map_counts_as_zeros(model):
    images = torch.rand(2, 3, 8, 8)
    missing, zeros = torch.full((2, 1, 8, 8), math.nan), torch.zeros(2, 1, 8, 8)
    for normalize in (True, False):
        found = infidelity(model, images, missing, 1, normalize=normalize)
        assert found.equal(infidelity(model, images, zeros, 1, normalize=normalize))
        assert (found > 0).all()


def test_the_predicted_class_and_the_score(model):
    images, heat = torch.rand(3, 3, 8, 8), torch.rand(3, 1, 8, 8)
    predicted = model(images).argmax(1)
    assert infidelity(model, images, heat).equal(infidelity(model, images, heat, predicted))
    found = infidelity(model, images, heat, score="softmax", perturb_func=_noise())
    soft = nn.Sequential(model, nn.Softmax(1))
    expected = infidelity(soft, images, heat, predicted, perturb_func=_noise())
    torch.testing.assert_close(found, expected, atol=0, rtol=1e-3)


def test_infidelity_is_seeded(model):
    images, heat = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    before = torch.get_rng_state()
    found = [infidelity(model, images, heat, 1, seed=seed) for seed in (0, 0, 1)]
    assert torch.get_rng_state().equal(before)
    assert found[0].equal(found[1])
    assert not found[0].equal(found[2])


def test_arguments_follow_their_image():
    def scaled(x, scale):
        return x.sum((1, 2, 3)) * scale

    images, scale = torch.rand(2, 1, 2, 2), torch.tensor([1.0, 4.0])
    ones = torch.ones(2, 1, 2, 2) * scale.view(2, 1, 1, 1)
    found = infidelity(
        scaled, images, ones, additional_forward_args=scale, normalize=False, noise=1.0,
        max_examples_per_batch=4,
    )  # fmt: skip
    assert found.max() < 1e-9
