"""The registry: every method and control behaves alike; what others get wrong, ours get right."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerFeatureAblation, LayerGradCam, NoiseTunnel
from captum.testing.helpers.basic_models import BasicModel_ConvNet_One_Conv
from torch import nn

from captum_clustered import (
    ClusteredLayerAblation,
    ClusteredLayerOptimization,
    ClusteredLayerScore,
    LayerAblationCam,
    LayerCalibratedCam,
    LayerEGradCam,
    LayerGroupCam,
    LayerHiResCam,
    LayerScoreCam,
)
from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import Agglomerative, Contiguous, EveryMap, KMeans
from captum_clustered.methods import METHODS, GradCam, Method, make
from small_models import split_cnn

NAMES = list(METHODS)
X = torch.rand(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) - 0.3
SMALL = {"n_clusters": 3}


def _model(seed=0):
    model = split_cnn(seed)
    with torch.no_grad():
        model[1][-1].weight *= 20
    return model


def _make(name, model, layer, **settings):
    small = SMALL if METHODS[name].clusters else {}
    return make(name, model, layer, **{**small, **settings})


class TestRegistry:
    def test_names(self):
        assert NAMES == [
            "clustered-cam", "calibrated-cam", "ablation-cam", "ablation-cam-norm", "grad-cam",
            "hires-cam",
            "egrad-cam", "group-cam", "clustered-group-cam", "score-cam", "clustered-score-cam",
            "random-score-cam", "clustered-opti-cam", "adaptive-ablation-cam", "fake-cam",
            "random-map", "centre-gaussian", "sum-of-maps", "random-groups", "contiguous-groups",
        ]  # fmt: skip
        assert all(method.name == name for name, method in METHODS.items())

    def test_which_are_controls_need_gradients_and_take_what(self):
        def names(field):
            return {name for name, method in METHODS.items() if getattr(method, field)}

        assert names("control") == set(NAMES[-6:])
        assert names("needs_gradient") == {
            "calibrated-cam", "grad-cam", "hires-cam", "egrad-cam", "group-cam",
            "clustered-group-cam", "clustered-opti-cam",
        }  # fmt: skip
        assert names("clusters") == {
            "clustered-cam", "group-cam", "clustered-group-cam", "clustered-score-cam",
            "random-score-cam", "clustered-opti-cam", "adaptive-ablation-cam", "random-groups",
            "contiguous-groups",
        }  # fmt: skip
        assert names("weighting") == {
            "clustered-cam", "adaptive-ablation-cam", "random-groups", "contiguous-groups",
        }  # fmt: skip

    def test_classes(self):
        kinds = {
            "clustered-cam": ClusteredLayerAblation,
            "calibrated-cam": LayerCalibratedCam,
            "ablation-cam": LayerAblationCam,
            "ablation-cam-norm": LayerAblationCam,
            "grad-cam": LayerGradCam,  # Captum's
            "hires-cam": LayerHiResCam,
            "egrad-cam": LayerEGradCam,
            "group-cam": LayerGroupCam,
            "clustered-group-cam": LayerGroupCam,
            "score-cam": LayerScoreCam,
            "clustered-score-cam": ClusteredLayerScore,
            "random-score-cam": ClusteredLayerScore,
            "clustered-opti-cam": ClusteredLayerOptimization,
            "adaptive-ablation-cam": ClusteredLayerAblation,
            "random-groups": ClusteredLayerAblation,
            "contiguous-groups": ClusteredLayerAblation,
        }
        for name, kind in kinds.items():
            assert isinstance(make(name, nn.Identity(), nn.Identity()), kind)

    def test_defaults(self):
        def of(name, **settings):
            return make(name, nn.Identity(), nn.Identity(), **settings)

        assert of("clustered-cam").clusterer == KMeans(64)
        assert of("group-cam").clusterer == Contiguous(32)
        assert of("score-cam").clusterer == EveryMap()
        assert of("clustered-score-cam").clusterer == Agglomerative(32)
        assert of("random-score-cam", n_clusters=5).clusterer.like == Agglomerative(5)
        assert of("adaptive-ablation-cam", n_clusters=8).clusterer == Adaptive(8)
        assert of("random-groups", n_clusters=5, seed=2).clusterer.like == KMeans(5)
        assert of("random-groups", seed=2).clusterer.seed == 2
        assert of("contiguous-groups", n_clusters=5).clusterer == Contiguous(5)
        assert of("ablation-cam").weighting(*_four()).tolist() == [[0.5]]
        assert of("ablation-cam-norm").weighting(*_four()).item() == pytest.approx(0.4)

    def test_published_settings_can_be_made(self):
        for name, method in METHODS.items():
            explainer = make(name, nn.Identity(), nn.Identity(), **method.published)
            assert isinstance(explainer, LayerAttribution)
        assert METHODS["clustered-cam"].published == {"n_clusters": 64, "weighting": "drop"}

    def test_every_setting_is_taken(self):
        for name, method in METHODS.items():
            assert {"channel_dim", "reshape_transform"} <= method.settings.keys()
            assert isinstance(
                make(name, nn.Identity(), nn.Identity(), **method.settings), LayerAttribution
            )

    def test_is_a_frozen_value(self):
        method = METHODS["grad-cam"]
        assert method == Method(
            method.name, method.description, method.factory, needs_gradient=True
        )
        assert isinstance(hash(method), int)
        with pytest.raises(AttributeError):
            method.name = "other"
        with pytest.raises(TypeError):
            METHODS["other"] = method

    def test_descriptions_are_one_short_line(self):
        assert all(0 < len(m.description) <= 90 for m in METHODS.values())
        assert Counter(m.description for m in METHODS.values()).most_common(1)[0][1] == 1

    @pytest.mark.parametrize(
        ("name", "close"),
        [
            ("gradcam", "grad-cam"),
            ("clustered_cam", "clustered-cam"),
            ("center-gaussian", "centre"),
        ],
    )
    def test_unknown_names_are_refused_with_close_ones(self, name, close):
        with pytest.raises(ValueError, match=rf"`name` must be one of .* got '{name}'.*{close}"):
            make(name, nn.Identity(), nn.Identity())

    @pytest.mark.parametrize(
        ("name", "setting", "message"),
        [
            ("group-cam", "clusterer", "`clusterer` must be a setting of group-cam, which has n_c"),
            ("ablation-cam", "weighting", "`weighting` must be a setting of ablation-cam"),
            ("clustered-cam", "n_cluster", "got 3. Close are: n_clusters"),
            ("grad-cam", "n_clusters", "`n_clusters` must be a setting of grad-cam"),
        ],
    )
    def test_settings_that_a_method_has_not_are_refused(self, name, setting, message):
        with pytest.raises(ValueError, match=message):
            make(name, nn.Identity(), nn.Identity(), **{setting: 3})


def _four():
    """Score 4, without the map 2; the map's norm is 5."""
    maps = torch.tensor([[[3.0, 4.0]]])
    return torch.tensor([4.0]), torch.tensor([[2.0]]), torch.tensor([[0]]), maps


@pytest.mark.parametrize("name", NAMES)
class TestManners:
    """What holds for all of them."""

    def test_the_form_of_the_result(self, name):
        model = _model()
        heat = _make(name, model, model[0]).attribute(X, [0, 3, 1, 2])
        # a curve would not commute with the resizing of a map
        assert heat.shape == ((4, 1, 8, 8) if name == "calibrated-cam" else (4, 1, 6, 6))
        assert heat.dtype == torch.float64
        assert not heat.requires_grad
        assert heat.isfinite().all()
        assert heat.min() >= 0
        assert heat.count_nonzero()

    def test_a_batch_equals_its_examples_one_at_a_time(self, name):
        model = _model()
        cam = _make(name, model, model[0])
        together = cam.attribute(X, [0, 1, 2, 3])
        alone = torch.cat([cam.attribute(X[i : i + 1], i) for i in range(4)])
        torch.testing.assert_close(together, alone)
        torch.testing.assert_close(cam.attribute(X.flip(0), [3, 2, 1, 0]), together.flip(0))

    @pytest.mark.parametrize(
        "target",
        [2, np.int64(2), torch.tensor(2), (2,), -2, [2] * 4, torch.tensor([[2]] * 4), [(2,)] * 4],
        ids=str,
    )
    def test_forms_of_a_target(self, name, target):
        model = _model()
        cam = _make(name, model, model[0])
        torch.testing.assert_close(
            cam.attribute(X, target), cam.attribute(X, torch.tensor([2] * 4))
        )

    def test_an_output_of_several_axes_takes_a_tuple(self, name):
        net = _model()

        def classes_twice(x):
            logits = net(x)
            return torch.stack([logits, -logits], 2)

        heat = _make(name, classes_twice, net[0]).attribute(X, (1, 0))
        torch.testing.assert_close(heat, _make(name, net, net[0]).attribute(X, 1))

    def test_the_input_of_a_layer(self, name):
        model = _model()
        expected = _make(name, model, model[0]).attribute(X, 1)
        cam = _make(name, model, model[1])
        torch.testing.assert_close(cam.attribute(X, 1, attribute_to_layer_input=True), expected)

    def test_further_arguments(self, name):
        net = _model()

        def forward(x, factor, shift, nothing):
            assert nothing is None
            return net(x) * factor + shift

        heat = _make(name, forward, net[0]).attribute(
            X, 1, additional_forward_args=(1.0, torch.zeros(4, 1), None)
        )
        torch.testing.assert_close(heat, _make(name, net, net[0]).attribute(X, 1))

    def test_channels_last(self, name):
        """The same maps with their axis at the end; tokens need a transform."""
        net = _model()

        class Last(nn.Module):
            def forward(self, maps):
                return maps.movedim(1, -1)

        class Tokens(nn.Module):
            def forward(self, maps):
                patches = maps.flatten(2).transpose(1, 2)
                return torch.cat([patches[:, :1] * 0, patches], 1)

        class Model(nn.Module):
            def __init__(self, layer, back):
                super().__init__()
                self.trunk, self.layer, self.back, self.head = net[0], layer, back, net[1]

            def forward(self, x):
                return self.head(self.back(self.layer(self.trunk(x))))

        expected = _make(name, net, net[0]).attribute(X, 1)
        last = Model(Last(), lambda maps: maps.movedim(-1, 1))
        cam = _make(name, last, last.layer, channel_dim=-1)
        torch.testing.assert_close(cam.attribute(X, 1), expected)

        def grid(tokens):
            return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, 6, 6)

        tokens = Model(Tokens(), grid)
        cam = _make(name, tokens, tokens.layer, channel_dim=-1, reshape_transform=grid)
        torch.testing.assert_close(cam.attribute(X, 1), expected)
        with pytest.raises(ValueError, match="`reshape_transform` is needed"):
            _make(name, tokens, tokens.layer).attribute(X, 1)

    def test_the_layer_is_read_when_called(self, name):
        model = _model()
        cam = _make(name, model, model[0])
        cam.layer = model[1][0]
        expected = _make(name, model, model[1][0]).attribute(X, 1)
        torch.testing.assert_close(cam.attribute(X, 1), expected)

    def test_nothing_is_left_behind(self, name):
        model, x, state = _model(), X.clone(), torch.get_rng_state()
        before = {part: dict(module.__dict__) for part, module in model.named_modules()}
        cam = _make(name, model, model[0])
        for target, error in ((1, None), (99, (ValueError, IndexError))):
            if error:
                with pytest.raises(error):
                    cam.attribute(x, target)
            else:
                cam.attribute(x, target)
            assert torch.equal(x, X)
            assert not x.requires_grad
            assert torch.equal(state, torch.get_rng_state())
            assert all(p.grad is None and p.requires_grad for p in model.parameters())
            for part, module in model.named_modules():
                assert module.__dict__.keys() == before[part].keys()
                assert not module._forward_hooks
                assert not module._forward_pre_hooks
            assert not torch.nn.modules.module._global_forward_hooks

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_gradient_modes_do_not_matter(self, name, context):
        model = _model()
        cam = _make(name, model, model[0])
        expected = cam.attribute(X, 1)
        with context():
            torch.testing.assert_close(cam.attribute(X.clone(), 1), expected)

    def test_noise_tunnel(self, name):
        model = _model()
        cam = _make(name, model, model[0])
        assert cam.attribute.__wrapped__
        if name == "random-map":
            return  # another map for another image
        smooth = NoiseTunnel(cam).attribute(X, nt_samples=2, stdevs=1e-9, target=[1, 2, 0, 3])
        torch.testing.assert_close(smooth, cam.attribute(X, [1, 2, 0, 3]), rtol=1e-4, atol=1e-5)

    def test_data_parallel_on_a_machine_without_gpu(self, name):
        model = _model()
        heat = _make(name, nn.DataParallel(model), model[0]).attribute(X, 1)
        torch.testing.assert_close(heat, _make(name, model, model[0]).attribute(X, 1))

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"target": 4}, ValueError, r"`target` must lie in 0..3"),
            ({"target": None}, ValueError, r"`target` is needed"),
            ({"target": [0, 1]}, ValueError, r"one entry per example \(4\); got a list of 2"),
            ({"target": 0.5}, TypeError, "`target` must be an int"),
            ({"inputs": [X]}, TypeError, "`inputs` must be a tensor or a tuple of tensors"),
        ],
    )
    def test_bad_arguments_are_refused(self, name, arguments, error, message):
        model = _model()
        with pytest.raises(error, match=message):
            _make(name, model, model[0]).attribute(**{"inputs": X, "target": 0, **arguments})


class TestControls:
    def test_fake_cam(self):
        model = _model()
        heat = make("fake-cam", model, model[0]).attribute(X, 1)
        assert heat.flatten(1).sum(1).tolist() == [35.0] * 4
        assert heat[:, 0, 0, 0].tolist() == [0.0] * 4

    def test_random_map(self):
        model = _model()
        heat = make("random-map", model, model[0]).attribute(X, 1)
        assert torch.equal(heat, make("random-map", model, model[0]).attribute(X, 2))
        assert len(heat.flatten(1).unique(dim=0)) == 4
        other = make("random-map", model, model[0], seed=1).attribute(X, 1)
        assert not torch.isclose(heat, other).all()
        assert 0.3 < heat.mean() < 0.7

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_random_map_of_other_dtypes(self, dtype):
        model = _model().to(dtype)
        assert make("random-map", model, model[0]).attribute(X.to(dtype), 1).dtype == dtype

    def test_centre_gaussian(self):
        model = _model()
        heat = make("centre-gaussian", model, model[0]).attribute(X, 1)[0, 0]
        for i, j in np.ndindex(6, 6):
            y, x = (i + 0.5) / 6 - 0.5, (j + 0.5) / 6 - 0.5
            expected = math.exp(-(x * x + y * y) / (2 * 0.25**2))
            assert heat[i, j].item() == pytest.approx(expected, rel=1e-5)
        narrow = make("centre-gaussian", model, model[0], sigma=0.1).attribute(X, 1)[0, 0]
        assert narrow.sum() < heat.sum()

    def test_sum_of_maps(self):
        model = _model()
        heat = make("sum-of-maps", model, model[0]).attribute(X, 1)
        torch.testing.assert_close(heat, model[0](X).sum(1, keepdim=True).detach())
        one_group = ClusteredLayerAblation(model, model[0], n_clusters=1)
        raw = one_group.attribute(X, 1, relu_attributions=False)
        cosine = torch.cosine_similarity(raw.flatten(1), heat.flatten(1))
        torch.testing.assert_close(cosine.abs(), torch.ones(4).double())

    def test_random_groups_have_the_sizes_of_the_clusterers(self):
        model = _model()
        groups = make("clustered-cam", model, model[0], n_clusters=3).explain(X, 1).labels
        shuffled = make("random-groups", model, model[0], n_clusters=3).explain(X, 1).labels
        for one, other in zip(groups, shuffled, strict=True):
            sizes = sorted(Counter(one.tolist()).values())
            assert sizes == sorted(Counter(other.tolist()).values())
        assert not torch.equal(groups, shuffled)

    def test_contiguous_groups(self):
        model = _model()
        result = make("contiguous-groups", model, model[0], n_clusters=3).explain(X, 1)
        alive = result.labels >= 0
        assert torch.equal(
            result.labels[alive], torch.tensor([0, 0, 1, 1, 2, 2]).expand(4, 6)[alive]
        )


class TestGradCam:
    def test_is_captums(self):
        model = _model()
        ours = make("grad-cam", model, model[0])
        theirs = LayerGradCam(model, model[0])
        for target in (1, [0, 1, 2, 3]):
            expected = theirs.attribute(X, target, relu_attributions=True).detach()
            assert torch.equal(ours.attribute(X, target), expected)
            raw = theirs.attribute(X, target, attr_dim_summation=False).detach()
            assert torch.equal(
                ours.attribute(X, target, relu_attributions=False, attr_dim_summation=False), raw
            )
        assert isinstance(ours, GradCam)

    @pytest.mark.parametrize("layer", ["conv1", "relu1"])
    def test_values(self, layer):
        model = BasicModel_ConvNet_One_Conv().eval()
        image = torch.arange(16.0).view(1, 1, 4, 4)
        heat = make("grad-cam", model, getattr(model, layer)).attribute(image, 0)
        expected = {"conv1": [[11.25, 13.5], [20.25, 22.5]], "relu1": [[0, 4], [28, 32.5]]}
        assert heat.tolist() == [[expected[layer]]]

    def test_a_layer_of_two_tensors(self):
        class Pair(nn.Module):
            def forward(self, maps):
                return maps * 1, maps * 2

        net, pair = _model(), Pair()
        forward = lambda x: net[1](sum(pair(net[0](x))))  # noqa: E731
        one, two = make("grad-cam", forward, pair).attribute(X, 1)
        torch.testing.assert_close(two, 2 * one)


class TestAblationCam:
    def test_both_published_weights(self):
        model = _model()
        maps = model[0](X).detach()
        mask = torch.arange(6).view(1, 6, 1, 1)
        drops = LayerFeatureAblation(model, model[0]).attribute(X, target=1, layer_mask=mask)
        drops = drops[:, :, :1, :1]
        score = model(X)[:, 1].abs().view(4, 1, 1, 1).detach()
        norm = maps.flatten(2).norm(dim=2)[..., None, None]
        by_norm = torch.where(norm > 0, drops / norm.clamp(min=1e-30), 0)
        for name, weights in (("ablation-cam", drops / score), ("ablation-cam-norm", by_norm)):
            expected = (weights * maps).sum(1, keepdim=True)
            heat = make(name, model, model[0]).attribute(X, 1, relu_attributions=False)
            torch.testing.assert_close(heat, expected)

    def test_the_norm_of_a_group_is_that_of_all_its_values(self):
        model = _model()
        labels = torch.tensor([0, 0, 1, 1, 1, 2])
        cam = ClusteredLayerAblation(model, model[0], clusterer=labels, weighting="drop_per_norm")
        result = cam.explain(X, 1)
        maps = model[0](X).detach()
        for k in range(3):
            norm = maps[:, labels == k].flatten(1).norm(dim=1)
            expected = (result.scores - result.ablated_scores[:, k]) / norm
            torch.testing.assert_close(result.group_weights[:, k], expected)


class TestPytorchGradCam:
    """pytorch-grad-cam's AblationCAM is right for a ReLU layer and positive scores only."""

    @pytest.fixture
    def theirs(self):
        cam = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed")
        ablation_layer = pytest.importorskip("pytorch_grad_cam.ablation_layer")
        targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")

        def weights(model, layer, x, target):
            # an ablation layer of its own: all objects share the default one
            made = cam.AblationCAM(model, [layer], ablation_layer=ablation_layer.AblationLayer())
            chosen = [targets.ClassifierOutputTarget(target)] * len(x)
            try:
                found = made.get_cam_weights(x, layer, chosen, _trunk(model, x), None)
            finally:
                made.activations_and_grads.release()
            return torch.from_numpy(found)

        return weights

    def _model(self, relu=True, shift=0.0):
        torch.manual_seed(4)
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU() if relu else nn.Identity(), nn.Conv2d(6, 5, 2), nn.Tanh(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 4),
        ).eval()  # fmt: skip
        with torch.no_grad():
            model[6].bias += shift
        return model

    def _ours(self, model, x, target, **settings):
        return LayerAblationCam(model, model[1], **settings).explain(x, target).channel_weights

    def _exact(self, model, x, target):
        """The drop of each map set to zero, over the score's magnitude, one at a time."""
        maps = _trunk(model, x)
        with torch.no_grad():
            scores = model[2:](maps)[:, target]
            columns = []
            for k in range(maps.shape[1]):
                without = maps.clone()
                without[:, k] = 0
                columns.append((scores - model[2:](without)[:, target]) / scores.abs())
        return torch.stack(columns, 1)

    def test_agrees_on_positive_scores_behind_a_relu(self, theirs):
        model, x = self._model(shift=2.0), X.float()
        assert (model(x)[:, 1] > 0).all()
        assert _trunk(model, x).amin((1, 2, 3)).tolist() == [0.0] * 4
        expected = theirs(model, model[1], x, 1)
        torch.testing.assert_close(self._ours(model, x, 1), expected, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(self._exact(model, x, 1), expected, rtol=1e-3, atol=1e-5)

    def test_a_negative_score_turns_theirs_inside_out(self, theirs):
        """A map that speaks for the class has to have a positive weight, whatever the score."""
        positive, negative, x = self._model(shift=2.0), self._model(shift=-4.0), X.float()
        assert (negative(x)[:, 1] < 0).all()
        drops = [
            self._ours(model, x, 1) * model(x)[:, 1:2].abs().detach()
            for model in (positive, negative)
        ]
        torch.testing.assert_close(*drops, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(
            self._ours(negative, x, 1), self._exact(negative, x, 1), rtol=1e-3, atol=1e-5
        )
        flipped = theirs(negative, negative[1], x, 1)
        torch.testing.assert_close(self._ours(negative, x, 1), -flipped, rtol=1e-3, atol=1e-5)

    def test_without_a_relu_theirs_are_not_ablations_to_zero(self, theirs):
        model, x = self._model(relu=False, shift=2.0), X.float()
        exact = self._exact(model, x, 1)
        ours = self._ours(model, x, 1, parts="whole")
        torch.testing.assert_close(ours, exact, rtol=1e-3, atol=1e-5)
        wrong = theirs(model, model[1], x, 1)
        alike = torch.corrcoef(torch.stack([wrong.flatten(), exact.flatten()]))[0, 1]
        assert (wrong - exact).abs().max() > 0.5 * exact.abs().max()
        assert alike < 0.9


def _trunk(model, x):
    with torch.no_grad():
        return model[:2](x)
