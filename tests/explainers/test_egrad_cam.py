"""EGrad-CAM: against a literal reference, entropies by hand, and Captum's Grad-CAM."""

import math
import threading

import numpy as np
import pytest
import torch
from captum.attr import GradientAttribution, LayerAttribution, LayerGradCam, NoiseTunnel
from captum.testing.helpers.basic_models import (
    BasicModel_ConvNet_One_Conv,
    BasicModel_MultiLayer,
)
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import captum_clustered.explainers.egrad_cam as module
from captum_clustered import LayerEGradCam
from captum_clustered.explainers.egrad_cam import entropy
from fake_cuda import let_gradients_be_ones
from small_models import split_cnn

SIZES = {1: (40,), 2: (9, 8), 3: (6, 5, 6)}


def _images(dims=2, n=3):
    return torch.rand(n, 3, *SIZES[dims], dtype=torch.float64) - 0.3


def _bits(values, bins):
    """The entropy of one map, value by value."""
    low, high = min(values), max(values)
    counts = {}
    for value in values:
        level = 0 if high == low else min(int((value - low) / (high - low) * bins), bins - 1)
        counts[level] = counts.get(level, 0) + 1
    return -sum(n / len(values) * math.log2(n / len(values)) for n in counts.values())


def _egrad_cam(model, x, target, bins, threshold, keep_fraction):
    """The heat maps, image by image and map by map."""
    heats = []
    for image, cls in zip(x, target, strict=True):
        activation = model[0](image[None]).detach().requires_grad_()
        model[1](activation)[0, cls].backward()
        maps, gradients = activation.detach()[0], activation.grad[0]
        bits = [_bits(row.flatten().tolist(), bins) for row in maps]
        kept = [k for k, h in enumerate(bits) if h > threshold]
        if keep_fraction is not None:
            most = max(1, round(keep_fraction * len(bits)))
            kept = [k for k in kept if k in sorted(range(len(bits)), key=lambda k: -bits[k])[:most]]
        heat = torch.zeros_like(maps[0])
        for k in kept:
            heat += gradients[k].mean() * maps[k]
        heats.append(heat.clamp(min=0))
    return torch.stack(heats)


@pytest.mark.parametrize(
    ("bins", "threshold", "keep_fraction"),
    [(256, 0.0, None), (16, 1.5, None), (256, 0.0, 0.5), (8, 1.0, 0.34), (256, 99.0, None)],
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_literal_reference(dims, bins, threshold, keep_fraction):
    model, x, target = split_cnn(dims=dims), _images(dims), [0, 3, 1]
    cam = LayerEGradCam(
        model, model[0], bins=bins, threshold=threshold, keep_fraction=keep_fraction
    )
    heat = cam.attribute(x, target)
    expected = _egrad_cam(model, x, target, bins, threshold, keep_fraction)
    torch.testing.assert_close(heat[:, 0], expected)
    assert heat.count_nonzero() or threshold == 99


class TestEntropy:
    def test_by_hand(self):
        maps = torch.tensor(
            [
                [0.0, 0.0, 0.0, 0.0],  # dead
                [7.0, 7.0, 7.0, 7.0],  # constant
                [0.0, 0.0, 0.0, 5.0],
                [-1.0, -1.0, 3.0, 3.0],
                [0.0, 1.0, 2.0, 3.0],
            ]
        )
        third = 0.25 * 2 + 0.75 * math.log2(4 / 3)
        expected = torch.tensor([[0.0, 0.0, third, 1.0, 2.0]])
        torch.testing.assert_close(entropy(maps[None]), expected)
        assert entropy(maps[None])[0, :2].tolist() == [0.0, 0.0]  # exactly, as the threshold is 0

    def test_few_bins_join_levels(self):
        maps = torch.tensor([[[0.0, 1.0, 2.0, 3.0]]])
        assert entropy(maps, bins=2).tolist() == [[1.0]]

    def test_is_at_most_the_logarithm_of_the_bins(self):
        assert entropy(torch.arange(4096.0).view(1, 1, 64, 64), bins=16).item() == 4

    @pytest.mark.parametrize("bins", [2, 16, 256])
    def test_equals_that_of_numpy_histograms(self, bins):
        maps = torch.rand(2, 3, 13, 17, dtype=torch.float64)
        for n, k in np.ndindex(2, 3):
            counts = np.histogram(maps[n, k].numpy(), bins=bins)[0]
            shares = counts[counts > 0] / counts.sum()
            expected = -(shares * np.log2(shares)).sum()
            assert entropy(maps, bins)[n, k].item() == pytest.approx(expected, abs=1e-5)

    def test_scale_and_offset_do_not_matter(self):
        maps = torch.rand(2, 3, 8, 8, dtype=torch.float64)
        torch.testing.assert_close(entropy(maps, 16), entropy(maps * 4 - 16, 16))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_dtypes(self, dtype):
        maps = torch.tensor([[[0.0, 0.0, 1.0, 1.0]]], dtype=dtype)
        assert entropy(maps).tolist() == [[1.0]]

    def test_what_is_not_finite_breaks_nothing(self):
        maps = torch.tensor([[[0.0, float("nan"), 1.0], [0.0, float("inf"), 1.0], [0, 1, 2]]])
        assert entropy(maps)[0, 2].item() == pytest.approx(math.log2(3))

    def test_memory_is_bounded_and_lots_do_not_matter(self, monkeypatch):
        maps = torch.rand(5, 3, 8, 8)
        expected = entropy(maps)
        calls = []
        inner = module._entropy
        monkeypatch.setattr(module, "_BYTES", 2 * 4 * 3 * 256)
        monkeypatch.setattr(
            module, "_entropy", lambda flat, bins: calls.append(len(flat)) or inner(flat, bins)
        )
        assert torch.equal(entropy(maps), expected)
        assert calls == [2, 2, 1]


class TestAgainstCaptum:
    def test_a_negative_threshold_is_grad_cam(self):
        model, x = split_cnn(), _images()
        for relu in (False, True):
            ours = LayerEGradCam(model, model[0], threshold=-1).attribute(
                x, [0, 3, 1], relu_attributions=relu
            )
            theirs = LayerGradCam(model, model[0]).attribute(x, [0, 3, 1], relu_attributions=relu)
            torch.testing.assert_close(ours, theirs.detach())

    def test_dead_maps_change_nothing(self):
        model, x = split_cnn(), _images()
        with torch.no_grad():
            model[0][0].bias[2] = -100
        result = LayerEGradCam(model, model[0]).explain(x, 0)
        assert result.kept[:, 2].tolist() == [False] * 3
        theirs = LayerGradCam(model, model[0]).attribute(x, 0, relu_attributions=True)
        torch.testing.assert_close(result.attributions, theirs.detach())

    def test_a_constant_map_is_frozen_out_and_shifts_the_sum(self):
        model, x = split_cnn(), _images()
        with torch.no_grad():
            model[0][0].weight[2] = 0
            model[0][0].bias[2] = 3
        ours = LayerEGradCam(model, model[0]).attribute(x, 0, relu_attributions=False)
        theirs = LayerGradCam(model, model[0]).attribute(x, 0, attr_dim_summation=False)
        assert theirs[:, 2].abs().min() > 0
        torch.testing.assert_close(ours, (theirs.sum(1) - theirs[:, 2]).unsqueeze(1).detach())

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize(
        ("layer", "expected"),
        [
            ("conv1", [[11.25, 13.5], [20.25, 22.5]]),
            ("relu1", [[0, 4], [28, 32.5]]),
        ],
    )
    def test_the_values_of_its_own_tests(self, layer, expected, inplace):
        model = BasicModel_ConvNet_One_Conv(inplace=inplace).eval()
        cam = LayerEGradCam(model, getattr(model, layer), threshold=-1)
        heat = cam.attribute(torch.arange(16.0).view(1, 1, 4, 4), 0, relu_attributions=False)
        assert heat.tolist() == [[expected]]

    def test_a_layer_of_two_tensors(self):
        model = BasicModel_MultiLayer(multi_input_module=True).eval()
        x = torch.tensor([[0.0, 6.0, 0.0]])
        for at_input in (False, True):
            cam = LayerEGradCam(model, model.multi_relu, threshold=-1)
            heats = cam.attribute(x, 0, attribute_to_layer_input=at_input)
            assert [heat.tolist() for heat in heats] == [[[21.0]], [[21.0]]]


def test_every_field():
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False)).double()
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, 3, 5, 7, -1, -1, -1, -1], [0.0] * 8]))
    x = torch.tensor([[[0.0, 1, 2, 3], [4, 4, 4, 4]]], dtype=torch.float64)
    result = LayerEGradCam(model, model[0]).explain(x, 0)
    assert result.scores.tolist() == [34 - 16]
    assert result.entropies.tolist() == [[2, 0]]
    assert result.kept.tolist() == [[True, False]]
    assert result.channel_weights.tolist() == [[4, 0]]
    assert result.attributions.tolist() == [[[0, 4, 8, 12]]]
    assert torch.equal(result.activations, x)
    for value in vars(result).values():
        assert not value.requires_grad
    single = LayerEGradCam(model, model[0]).attribute(x, 0, attr_dim_summation=False)
    assert single.tolist() == [[[0, 4, 8, 12], [0, 0, 0, 0]]]


def test_of_equal_entropies_the_first_are_kept():
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2))
    x = torch.tensor([[[0.0, 1], [3, 4], [0, 0], [7, 9]]])
    result = LayerEGradCam(model, model[0], keep_fraction=0.5).explain(x, 0)
    assert result.kept.tolist() == [[True, True, False, False]]
    many = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(2048, 2))
    equal = torch.tensor([0.0, 1]).expand(1, 1024, 2)  # a sort that is not stable mixes so many
    kept = LayerEGradCam(many, many[0], keep_fraction=0.25).explain(equal, 0).kept
    assert kept[0].tolist() == [True] * 256 + [False] * 768
    least = LayerEGradCam(model, model[0], keep_fraction=0.01).explain(x, 0)
    assert least.kept.tolist() == [[True, False, False, False]]


def test_a_dead_layer_gives_zeros():
    model, x = split_cnn(), _images()
    with torch.no_grad():
        model[0][0].bias.fill_(-100)
    result = LayerEGradCam(model, model[0], keep_fraction=0.5).explain(x, 0)
    assert not result.kept.any()
    assert result.attributions.count_nonzero() == 0


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes_and_frozen_parameters_do_not_matter(context):
    model, x = split_cnn(), _images()
    expected = LayerEGradCam(model, model[0]).attribute(x, 0)
    model.requires_grad_(False)
    with context():
        again = x.clone()
        torch.testing.assert_close(LayerEGradCam(model, model[0]).attribute(again, 0), expected)
    assert not again.requires_grad


def test_no_gradient_is_left_behind():
    model, x = split_cnn(), _images().requires_grad_()
    y = x * 1
    for at_input in (False, True):
        LayerEGradCam(model, model[0]).attribute(y, 0, attribute_to_layer_input=at_input)
        LayerEGradCam(model, model[0]).attribute(x, 0, attribute_to_layer_input=at_input)
        plain = _images()
        LayerEGradCam(model, model[0]).attribute(plain, 0, attribute_to_layer_input=at_input)
        assert not plain.requires_grad
    assert x.grad is None
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("cut", [torch.Tensor.detach, lambda s: s.argmax(1, keepdim=True)])
def test_a_score_without_a_gradient_is_refused(cut):
    model = split_cnn()
    with pytest.raises(ValueError, match="`forward_func` must give a score that has a gradient"):
        LayerEGradCam(lambda x: cut(model(x)), model[0]).attribute(_images(), 0)


def test_a_score_that_does_not_need_the_layer_is_refused():
    net = split_cnn()
    side = nn.Conv2d(3, 2, 3).double()

    def forward(x):
        side(x)
        return net(x)

    with pytest.raises(ValueError, match="a score that has a gradient with respect to `layer`"):
        LayerEGradCam(forward, side).attribute(_images(), 0)


def test_a_run_in_another_thread_is_noticed():
    """Captum's hook acts in all threads; its gradients would be those of the other run."""
    net = split_cnn()

    def forward(x):
        output = net(x)
        other = threading.Thread(target=net, args=(x.detach(),))
        other.start()
        other.join()
        return output

    with pytest.raises(RuntimeError, match="`layer` must not run in another thread"):
        LayerEGradCam(forward, net[0]).attribute(_images(), 0)


def test_maps_of_a_single_value_are_refused():
    model = split_cnn(linear_head=True)
    with pytest.raises(ValueError, match=r"maps of more than one value.*threshold=-1"):
        LayerEGradCam(model, model[1][0]).attribute(_images(), 0)
    heat = LayerEGradCam(model, model[1][0], threshold=-1).attribute(_images(), 0)
    assert heat.shape == (3, 1, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bins": 1}, "`bins` must be an int >= 2; got 1"),
        ({"bins": 2.0}, "`bins` must be an int >= 2; got 2.0"),
        ({"threshold": float("nan")}, "`threshold` must be a number of bits; got nan"),
        ({"threshold": "mean"}, "`threshold` must be a number of bits; got 'mean'"),
        ({"keep_fraction": 0}, r"`keep_fraction` must lie in \(0, 1\], or be None; got 0"),
        ({"keep_fraction": 1.5}, r"`keep_fraction` must lie in \(0, 1\], or be None; got 1.5"),
        ({"channel_dim": 0}, "`channel_dim` must be an int other than 0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerEGradCam(nn.Identity(), nn.Identity(), **arguments)


def test_is_a_captum_layer_gradient_attribution():
    model, x = split_cnn(), _images()
    cam = LayerEGradCam(model, model[0])
    assert isinstance(cam, LayerAttribution)
    assert isinstance(cam, GradientAttribution)
    assert not cam.multiplies_by_inputs
    smooth = NoiseTunnel(cam).attribute(x, nt_samples=2, stdevs=1e-9, target=[1, 2, 0])
    torch.testing.assert_close(smooth, cam.attribute(x, [1, 2, 0]), rtol=1e-4, atol=1e-5)


def test_stays_on_the_device_and_reads_nothing(monkeypatch):
    let_gradients_be_ones(monkeypatch)
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 4))
        x = torch.rand(2, 3, 9, 9)
        for settings in ({}, {"keep_fraction": 0.5, "bins": 16}):
            for target in (1, torch.tensor([1, 2])):
                result = LayerEGradCam(model, model[1], **settings).explain(x, target)
                assert all(value.device.type == "cuda" for value in vars(result).values())
