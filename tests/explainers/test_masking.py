"""Score-CAM and Group-CAM: literal references, answers by hand, and torchcam."""

import warnings

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, NoiseTunnel, PerturbationAttribution
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import captum_clustered.engine.copies as copies_module
from captum_clustered import ClusteredLayerScore, LayerGroupCam, LayerScoreCam, _layout
from captum_clustered.clustering import KMeans
from captum_clustered.fills import Blur, fill_image
from fake_cuda import let_gradients_be_ones
from small_models import split_cnn

SIZES = {1: (9,), 2: (8, 7), 3: (6, 5, 6)}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
BOTH = pytest.mark.parametrize("explainer", [LayerScoreCam, LayerGroupCam])


def _images(dims=2, n=3):
    return torch.rand(n, 3, *SIZES[dims], dtype=torch.float64) - 0.3


def _model(dims=2, seed=0):
    """Scores that are far enough apart for weights to differ."""
    model = split_cnn(seed, dims=dims)
    with torch.no_grad():
        model[1][-1].weight *= 20
    return model


def _mask(joint, size):
    """The mask of one map, or None if the map is flat."""
    large = F.interpolate(joint[None, None], size, mode=LINEAR[len(size)], align_corners=False)[0]
    low, high = float(large.min()), float(large.max())
    return None if high - low < 1e-12 else (large - low) / (high - low)


def _members(row):
    return [[c for c in range(len(row)) if row[c] == k] for k in range(int(row.max()) + 1)]


@torch.no_grad()
def _score_cam(model, x, target, labels, variant, temperature, share, fill):
    """The heat maps, image by image and group by group."""
    background = fill_image(fill, x).expand_as(x)
    heats = []
    for i, (image, cls, row) in enumerate(zip(x, target, labels, strict=True)):
        maps = model[0](image[None])[0]
        found = []
        for members in _members(row):
            mask = _mask(sum(maps[c] for c in members), image.shape[1:])
            if mask is not None:
                logits = model((image * mask + background[i] * (1 - mask))[None])[0]
                found.append((members, logits))
        if variant == "softmax":
            powers = [float(torch.exp(logits[cls] / temperature)) for _, logits in found]
            weights = [power / sum(powers) for power in powers]
        else:
            weights = [float(logits.softmax(0)[cls]) for _, logits in found]
        heat = torch.zeros_like(maps[0])
        for (members, _), weight in zip(found, weights, strict=True):
            by = {
                "none": 1,
                "map": len(members),
                "mass": sum(float(maps[c].abs().sum()) for c in members),
            }
            for c in members:
                heat += weight / by[share] * maps[c]
        heats.append(heat.clamp(min=0))
    return torch.stack(heats)


def _group_cam(model, x, target, labels, percentile, fill):
    """The heat maps, image by image and group by group."""
    background = fill_image(fill, x).expand_as(x)
    heats = []
    for i, (image, cls, row) in enumerate(zip(x, target, labels, strict=True)):
        maps = model[0](image[None]).detach().requires_grad_()
        model[1](maps)[0, cls].backward()
        weighted = [m * g.mean() for m, g in zip(maps.detach()[0], maps.grad[0], strict=True)]
        heat = torch.zeros_like(weighted[0])
        with torch.no_grad():
            hidden = float(model(background[i][None])[0].softmax(0)[cls])
            for members in _members(row):
                joint = sum(weighted[c] for c in members).clamp(min=0)
                if percentile is not None:
                    joint[joint <= np.percentile(joint.numpy(), percentile)] = 0
                mask = _mask(joint, image.shape[1:])
                if mask is None:
                    continue
                seen = image * mask + background[i] * (1 - mask)
                gain = float(model(seen[None])[0].softmax(0)[cls]) - hidden
                heat += max(gain, 0) * joint
        heats.append(heat)
    return torch.stack(heats)


@pytest.mark.parametrize(
    ("variant", "temperature", "share", "fill"),
    [
        ("softmax", 1.0, "map", 0.0),
        ("softmax", 0.5, "mass", 0.3),
        ("probability", 1.0, "none", "blur"),
        ("probability", 1.0, "map", torch.tensor([0.1, -0.2, 0.3])),
    ],
    ids=str,
)
@pytest.mark.parametrize("clusterer", ["every-map", "kmeans", "random"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_score_cam_equals_the_literal_reference(dims, clusterer, variant, temperature, share, fill):
    model, x, target = _model(dims), _images(dims), [0, 3, 1]
    cam = LayerScoreCam(
        model, model[0], clusterer=clusterer, n_clusters=3, variant=variant,
        temperature=temperature, share=share, fill=fill,
    )  # fmt: skip
    result = cam.explain(x, target)
    expected = _score_cam(model, x, target, result.labels, variant, temperature, share, fill)
    assert expected.count_nonzero()
    torch.testing.assert_close(result.attributions[:, 0], expected)


@pytest.mark.parametrize("percentile", [None, 0, 33.3, 70])
@pytest.mark.parametrize(
    ("clusterer", "fill"),
    [("contiguous", "blur"), ("kmeans", 0.0), ("agglomerative", Blur(3, 1.0))],
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_group_cam_equals_the_literal_reference(dims, clusterer, fill, percentile):
    model, x, target = _model(dims, seed=1), _images(dims), [0, 3, 1]
    cam = LayerGroupCam(
        model, model[0], clusterer=clusterer, n_clusters=3, percentile=percentile, fill=fill
    )
    result = cam.explain(x, target)
    expected = _group_cam(model, x, target, result.labels, percentile, fill)
    assert expected.count_nonzero()
    torch.testing.assert_close(result.attributions[:, 0], expected)


def test_group_cam_groups_neighbouring_channels_as_the_released_code():
    model, x = _model(), _images()
    result = LayerGroupCam(model, model[0], n_clusters=4).explain(x, 0)
    chunks = torch.arange(6).chunk(4)
    expected = torch.cat([torch.full((len(part),), k) for k, part in enumerate(chunks)])
    alive = result.labels >= 0
    assert torch.equal(result.labels[alive], expected.expand(3, 6)[alive])
    assert LayerGroupCam(model, model[0]).clusterer.n_clusters == 32


class Sums(nn.Module):
    """The maps are the image's channels; the logits are sums over two pixels of the first."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x):
        self.layer(x)
        return x[:, 0].flatten(1) * 2


class TestByHand:
    """Two maps of one row of two pixels. Each mask shows one pixel and hides the other."""

    x = torch.tensor([[[[1.0, 3.0]], [[4.0, 2.0]]]])

    def test_score_cam(self):
        model = Sums()
        result = LayerScoreCam(model, model.layer).explain(self.x, 1)
        assert result.group_maps.tolist() == self.x.tolist()
        # the first mask is (0, 1), the second (1, 0): the second pixel's logit is 2 * 3, or 0
        assert result.masked_scores.tolist() == [[6.0, 0.0]]
        weight = float(torch.tensor(6.0).sigmoid())
        torch.testing.assert_close(result.group_weights, torch.tensor([[weight, 1 - weight]]))
        expected = self.x[:, :1] * weight + self.x[:, 1:] * (1 - weight)
        torch.testing.assert_close(result.attributions, expected)
        assert result.hidden_scores is None
        assert result.valid.tolist() == [[True, True]]

    def test_what_is_hidden_becomes_the_fill(self):
        model = Sums()
        result = LayerScoreCam(model, model.layer, fill=5.0).explain(self.x, 1)
        assert result.masked_scores.tolist() == [[6.0, 10.0]]

    def test_the_weights_of_the_released_code_are_probabilities(self):
        model = Sums()
        result = LayerScoreCam(model, model.layer, variant="probability").explain(self.x, 1)
        expected = [float(torch.tensor(6.0).sigmoid()), float(torch.tensor(-2.0).sigmoid())]
        assert result.group_weights.tolist() == [pytest.approx(expected)]

    def test_a_group_is_one_mask_and_its_maps_share_the_weight(self):
        model = Sums()
        labels = torch.tensor([0, 0])
        for share, factor in (("map", 1 / 2), ("none", 1), ("mass", 1 / 10)):
            cam = LayerScoreCam(model, model.layer, clusterer=labels, share=share)
            result = cam.explain(self.x + torch.tensor([[[[0.0, -1.0]], [[0.0, 1.0]]]]), 1)
            # (1, 2) and (4, 3) add up to (5, 5): flat, no mask
            assert result.valid.tolist() == [[False]]
            result = cam.explain(self.x, 1)  # (5, 5) as well
            assert result.attributions.count_nonzero() == 0
            x = torch.tensor([[[[1.0, 3.0]], [[2.0, 4.0]]]])
            result = cam.explain(x, 1)
            assert result.group_weights.tolist() == [[pytest.approx(factor)]]
            torch.testing.assert_close(result.attributions, x.sum(1, keepdim=True) * factor)

    @pytest.mark.parametrize("parts", ["signed", "whole"])
    def test_maps_by_themselves_and_below_zero(self, parts):
        """The masks are made of what maps say below zero, and lit is what speaks for the class."""
        model, x = Sums(), -self.x
        cam = LayerScoreCam(model, model.layer, variant="probability", parts=parts)
        raw = cam.explain(x, 1, relu_attributions=False, attr_dim_summation=False)
        assert raw.group_maps.tolist() == self.x.tolist()
        expected = self.x * raw.group_weights[..., None, None]
        assert (expected > 0).all()
        torch.testing.assert_close(raw.attributions, expected)
        torch.testing.assert_close(cam.attribute(x, 1), expected.sum(1, keepdim=True))

    def test_evidence_against_the_class_is_dark(self):
        model, x = Sums(), -self.x
        settings = {"score": "identity", "weigh_by": "score", "share": "none"}
        cam = ClusteredLayerScore(model, model.layer, clusterer="every-map", **settings)
        assert cam.explain(x, 1).group_weights.tolist() == [[-6.0, 0.0]]
        assert cam.attribute(x, 1).count_nonzero() == 0
        raw = cam.attribute(x, 1, relu_attributions=False)
        torch.testing.assert_close(raw, -6 * self.x[:, :1])

    def test_group_cam(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Identity()

            def forward(self, x):
                maps = self.layer(x)
                return torch.stack([maps[:, 0].sum((1, 2)), -maps[:, 1].sum((1, 2))], 1)

        model = Model()
        x = torch.tensor([[[[1.0, 3.0]], [[4.0, 2.0]]]])
        result = LayerGroupCam(model, model.layer, clusterer="every-map", fill=0.0).explain(x, 0)
        # gradients are 1 and 0: the second weighted map is dead; the first shows its second pixel
        assert result.labels.tolist() == [[0, -1]]
        assert result.group_maps.tolist() == [[[[1.0, 3.0]]]]
        seen = float(torch.tensor(3.0 + 2.0).sigmoid())  # logits 3 and -2
        assert result.hidden_scores.tolist() == [0.5]
        assert result.masked_scores.tolist() == [[pytest.approx(seen)]]
        assert result.group_weights.tolist() == [[pytest.approx(seen - 0.5)]]
        torch.testing.assert_close(result.attributions, x[:, :1] * (seen - 0.5))


class TestFlatGroups:
    """The released code of Group-CAM gives NaN here, or None."""

    @BOTH
    def test_are_dropped(self, explainer):
        model, x = _model(), _images()
        with torch.no_grad():
            model[0][0].weight[2:4] = 0
            model[0][0].bias[2:4] = torch.tensor([3.0, -1.0])  # constant, and dead
        cam = explainer(model, model[0], clusterer="every-map")
        result = cam.explain(x, [0, 3, 1])
        assert result.attributions.isfinite().all()
        assert result.attributions.count_nonzero()
        for row, valid, weights in zip(
            result.labels, result.valid, result.group_weights, strict=True
        ):
            assert row[3] == -1
            if row[2] >= 0:
                assert not valid[row[2]]
                assert weights[row[2]] == 0
        sure = model[0](x)[:, [0, 1, 4, 5]].flatten(2).std(2).min() > 0
        assert sure  # no other map is flat

    @BOTH
    @pytest.mark.parametrize("bias", [-100.0, 3.0])
    def test_all_of_them_give_a_map_of_zeros(self, explainer, bias):
        model, x = _model(), _images()
        with torch.no_grad():
            model[0][0].weight.zero_()
            model[0][0].bias.fill_(bias)
        result = explainer(model, model[0], n_clusters=2).explain(x, 0)
        assert not result.valid.any()
        assert result.attributions.count_nonzero() == 0
        assert result.attributions.shape == (3, 1, 6, 5)

    def test_rounding_is_no_shape(self):
        """Equal numbers, enlarged or added up, may differ in the last bit."""
        model = nn.Sequential(nn.AvgPool2d(3), nn.Flatten(), nn.Linear(18, 2)).eval()
        for value in (0.1, 0.3, 1e-3, 12345.678):
            x = torch.full((1, 2, 9, 9), value)
            result = LayerScoreCam(model, model[0]).explain(x, 0)
            assert not result.valid.any()

    @BOTH
    def test_do_not_depend_on_the_chunk(self, explainer):
        model, x = _model(), _images()
        with torch.no_grad():
            model[0][0].bias[:3] = -100
        cam = explainer(model, model[0], clusterer=torch.arange(6))
        one = cam.explain(x, 0, perturbations_per_eval=1)
        all_ = cam.explain(x, 0)
        assert torch.equal(one.valid, all_.valid)
        torch.testing.assert_close(one.attributions, all_.attributions)


class TestTorchcam:
    """An independent implementation; it scales maps before it enlarges them, we do afterwards."""

    @pytest.fixture
    def methods(self):
        return pytest.importorskip("torchcam.methods", reason="torchcam is not installed")

    @pytest.mark.parametrize("factor", [1, 3, 5])
    def test_score_cam(self, methods, factor):
        # an odd factor leaves the maps' own values in place, so that the order does not matter
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.AvgPool2d(factor), nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(72, 5),
        ).eval()  # fmt: skip
        with torch.no_grad():
            model[5].weight *= 10
            model[1].bias += 0.5  # no dead map: there, theirs has an entry in the softmax
        x = torch.rand(2, 3, 15, 15) - 0.3
        with methods.ScoreCAM(model, model[2], input_shape=(3, 15, 15)) as extractor:
            with torch.no_grad():
                scores = model(x)
            (theirs,) = extractor([1, 4], scores, normalized=False)
        ours = LayerScoreCam(model, model[2]).explain(x, [1, 4])
        assert ours.valid.all()
        assert ours.group_weights.std() > 1e-3
        torch.testing.assert_close(ours.attributions[:, 0], theirs, rtol=1e-4, atol=1e-5)


class TestIdentities:
    @settings(max_examples=8)
    @given(st.integers(0, 1000), st.integers(1, 7), st.sampled_from([LayerScoreCam, LayerGroupCam]))
    def test_batch_and_chunks_change_nothing(self, seed, chunk, explainer):
        model, x = _model(seed=seed), _images(n=4)
        cam = explainer(model, model[0], clusterer="kmeans", n_clusters=4)
        together = cam.attribute(x, [0, 1, 2, 3], perturbations_per_eval=chunk)
        alone = torch.cat([cam.attribute(x[i : i + 1], i) for i in range(4)])
        torch.testing.assert_close(together, alone)

    @settings(max_examples=8)
    @given(st.permutations(range(4)), st.sampled_from([LayerScoreCam, LayerGroupCam]))
    def test_names_of_groups_do_not_matter(self, names, explainer):
        model, x = _model(), _images()
        labels = torch.tensor([0, 1, 2, 3, 1, 0])
        one, other = (
            explainer(model, model[0], clusterer=given).attribute(x, 0)
            for given in (labels, torch.tensor(names)[labels] * 7)
        )
        torch.testing.assert_close(one, other)

    def test_the_weights_of_a_softmax_add_up_to_one(self):
        model, x = _model(), _images()
        result = LayerScoreCam(model, model[0], share="none", n_clusters=3).explain(x, 0)
        torch.testing.assert_close(result.group_weights.sum(1), torch.ones(3).double())

    def test_a_shift_of_the_logits_cancels_in_the_softmax(self):
        model, x = _model(), _images()
        heats = [
            LayerScoreCam(lambda x, s=shift: model(x) + s, model[0]).attribute(x, 0)
            for shift in (0.0, 900.0)
        ]
        torch.testing.assert_close(*heats)

    def test_heat_by_mass_sums_to_the_weights(self):
        model, x = _model(), _images()
        cam = LayerScoreCam(model, model[0], clusterer="kmeans", n_clusters=3, share="mass")
        torch.testing.assert_close(
            cam.attribute(x, 0).sum((1, 2, 3)), torch.ones(3, dtype=torch.float64)
        )

    def test_a_low_temperature_leaves_the_best_group(self):
        model, x = _model(), _images()
        result = LayerScoreCam(model, model[0], temperature=1e-6).explain(x, 0)
        best = torch.where(result.valid, result.masked_scores, -torch.inf).argmax(1, keepdim=True)
        assert result.group_weights.gather(1, best).tolist() == [[1.0]] * 3


@BOTH
def test_the_model_runs_on_as_many_images_as_fit_the_budget(explainer, monkeypatch):
    model, x, sizes = _model(), _images(n=2), []
    model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    cam = explainer(model, model[0], clusterer=torch.arange(6))
    groups = cam.explain(x, 0).masked_scores.shape[1] + (explainer is LayerGroupCam)
    # the first copy alone, and three copies go along as a check
    assert sizes == [2, 2, 2 * (groups + 3)]
    sizes.clear()
    monkeypatch.setitem(_layout.BUDGET, "cpu", 4 * 8 * x.nbytes)
    cam.explain(x, 0)
    assert max(sizes) == 2 * 4
    riding = 3 + (groups % 4 == 3)  # one more where the last pass is smaller, but not of one copy
    assert sum(sizes) == 4 + 2 * (groups + riding)
    sizes.clear()
    cam.explain(x, 0, perturbations_per_eval=3)  # too few for a check
    assert sizes == [2, 2] + [2] * groups


@BOTH
def test_one_score_for_the_batch(explainer):
    model, x = _model(), _images(n=2)

    def forward(images):
        return model(images)[:, 1].sum().reshape(1)

    settings = {"score": "identity"} if explainer is LayerGroupCam else {}
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    result = explainer(forward, model[0], clusterer=labels, **settings).explain(x)
    assert result.attributions.shape == (2, 1, 6, 5)
    assert torch.equal(result.masked_scores[0], result.masked_scores[1])
    assert torch.equal(result.labels[0], result.labels[1])


@BOTH
def test_a_model_in_training_mode_warns_and_runs_one_copy_at_a_time(explainer):
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )
    x, sizes = torch.rand(2, 3, 8, 8), []
    model.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    with pytest.warns(UserWarning, match=r"training mode.*model\.eval\(\)") as caught:
        explainer(model, model[2], n_clusters=2).attribute(x, 0, perturbations_per_eval=9)
    assert len(caught) == 1
    assert set(sizes) == {2}
    assert model[1].num_batches_tracked == 0


class TwoInputs(nn.Module):
    """The second input is the image, the first has a weight for each class."""

    def __init__(self):
        super().__init__()
        self.net = _model()

    def forward(self, weights, image, factor, shift):
        return self.net(image) * weights * factor + shift


@BOTH
def test_several_inputs_and_further_arguments(explainer):
    model, x = TwoInputs(), _images()
    weights, shift = torch.rand(3, 4).double() + 0.5, torch.rand(3, 4).double()
    cam = explainer(model, model.net[0], clusterer=KMeans(3), masked_input=1)
    together = cam.explain(
        (weights, x), [0, 1, 2], additional_forward_args=(2.0, shift), perturbations_per_eval=2
    )
    for i in range(3):
        plain = explainer(
            lambda image, i=i: model(weights[i], image, 2.0, shift[i]),
            model.net[0],
            clusterer=KMeans(3),
        ).explain(x[i : i + 1], i)
        torch.testing.assert_close(together.attributions[i : i + 1], plain.attributions)


@BOTH
def test_a_layer_of_two_tensors_gives_two_of_everything(explainer):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = _model()

            class Layer(nn.Module):
                def forward(self, maps):
                    return maps, maps[:, :2] * 2

            self.layer = Layer()

        def forward(self, x):
            one, two = self.layer(self.net[0](x))
            return self.net[1](torch.cat([one[:, :4], two], 1))

    model, x = Pair(), _images()
    result = explainer(model, model.layer, clusterer="every-map").explain(x, 0)
    assert [heat.shape for heat in result.attributions] == [(3, 1, 6, 5)] * 2
    assert [row.shape for row in result.labels] == [(3, 6), (3, 2)]
    assert len(result.masked_scores) == len(result.valid) == len(result.group_weights) == 2


@BOTH
def test_the_input_of_a_layer(explainer):
    model, x = _model(), _images()
    expected = explainer(model, model[0], n_clusters=3).attribute(x, 2)
    cam = explainer(model, model[1], n_clusters=3)
    torch.testing.assert_close(cam.attribute(x, 2, attribute_to_layer_input=True), expected)


@BOTH
def test_low_precision_and_float32(explainer):
    model, x = _model(), _images()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = explainer(model, model[0], clusterer=labels).attribute(x, 0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        low = _model().to(dtype)
        heat = explainer(low, low[0], clusterer=labels).attribute(x.to(dtype), 0)
        assert heat.dtype == dtype
        assert (heat.double() - expected).abs().max() < tolerance * expected.max()


@BOTH
def test_nothing_is_left_behind(explainer):
    model, x = _model(), _images()
    state, again = torch.get_rng_state(), x.clone()
    before = {name: dict(m.__dict__) for name, m in model.named_modules()}
    explainer(model, model[0], n_clusters=2).attribute(x, 0)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(x, again)
    assert not x.requires_grad
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for name, module in model.named_modules():
        assert module.__dict__.keys() == before[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with pytest.raises(ArithmeticError, match="broken"):
        explainer(_breaks(model), model[0], n_clusters=2).attribute(x, 0)
    assert not model[0]._forward_hooks
    assert not torch.nn.modules.module._global_forward_hooks


def _breaks(model):
    runs = []

    def forward(x):
        runs.append(1)
        if len(runs) > 1:
            raise ArithmeticError("broken")
        return model(x)

    return forward


@BOTH
def test_a_model_that_overwrites_its_input(explainer):
    net, x = _model(), _images() + 0.25

    def forward(images):
        return net(images.sub_(0.25))

    seen = x.clone()
    result = explainer(forward, net[0], n_clusters=3, fill=0.25).explain(x, 0)
    expected = explainer(net, net[0], n_clusters=3, fill=0.0).explain(x - 0.25, 0)
    torch.testing.assert_close(result.attributions, expected.attributions)
    assert torch.equal(x, seen)


@BOTH
def test_is_a_captum_layer_perturbation_attribution(explainer):
    model, x = _model(), _images()
    cam = explainer(model, model[0], clusterer="kmeans", n_clusters=3)
    assert isinstance(cam, LayerAttribution)
    assert isinstance(cam, PerturbationAttribution)
    assert cam.multiplies_by_inputs
    smooth = NoiseTunnel(cam).attribute(x, nt_samples=2, stdevs=1e-9, target=[1, 2, 0])
    torch.testing.assert_close(smooth, cam.attribute(x, [1, 2, 0]), rtol=1e-4, atol=1e-5)


def test_names():
    assert LayerScoreCam(nn.Identity(), nn.Identity()).get_name() == "Layer Score Cam"
    assert LayerGroupCam(nn.Identity(), nn.Identity()).get_name() == "Layer Group Cam"


@BOTH
def test_the_progress_bar_counts_passes(explainer, capsys):
    model = _model()
    cam = explainer(model, model[0], n_clusters=3)
    cam.attribute(_images(), 0, show_progress=True, perturbations_per_eval=2)
    assert f"{cam.get_name()} attribution: 100%" in capsys.readouterr().err


def test_a_model_of_one_logit():
    net, x = _model(), _images()
    for forward in (lambda x: net(x)[:, 1], lambda x: net(x)[:, 1:2]):
        result = LayerScoreCam(forward, net[0], variant="probability").explain(x)
        plain = LayerScoreCam(net, net[0]).explain(x, 1)
        torch.testing.assert_close(result.masked_scores, plain.masked_scores.sigmoid())
        with pytest.raises(ValueError, match="`score`='softmax' must have at least two classes"):
            LayerGroupCam(forward, net[0]).attribute(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            heat = LayerGroupCam(forward, net[0], score="sigmoid").attribute(x)
        assert heat.shape == (3, 1, 6, 5)


@pytest.mark.parametrize(
    ("explainer", "arguments", "error", "message"),
    [
        (
            LayerScoreCam,
            {"variant": "logits"},
            ValueError,
            "`variant` must be one of 'softmax', 'p",
        ),
        (LayerScoreCam, {"share": "size"}, ValueError, "`share` must be one of .*; got 'size'"),
        (
            LayerScoreCam,
            {"temperature": 0},
            ValueError,
            "`temperature` must be a number > 0; got 0",
        ),
        (LayerScoreCam, {"temperature": "1"}, ValueError, "`temperature` must be .* got '1'"),
        (LayerScoreCam, {"masked_input": -1}, ValueError, "`masked_input` must be an int >= 0"),
        (LayerScoreCam, {"clusterer": "kmean"}, ValueError, "`clusterer` must be one of .kmeans.,"),
        (LayerGroupCam, {"percentile": 100}, ValueError, r"`percentile` must lie in \[0, 100\)"),
        (LayerGroupCam, {"percentile": "70"}, ValueError, r"`percentile` must .* got '70'"),
        (LayerGroupCam, {"n_clusters": 0}, ValueError, "`n_clusters` must be an int >= 1; got 0"),
        (LayerGroupCam, {"clusterer": 3}, TypeError, "`clusterer` must be a name, .* got 3"),
        (LayerGroupCam, {"channel_dim": 0}, ValueError, "`channel_dim` must be an int other than"),
    ],
)
def test_bad_settings_are_refused(explainer, arguments, error, message):
    with pytest.raises(error, match=message):
        explainer(nn.Identity(), nn.Identity(), **arguments)


@BOTH
@pytest.mark.parametrize(
    ("settings", "arguments", "error", "message"),
    [
        ({}, {"target": 4}, ValueError, r"`target` must lie in 0..3, .* got 4"),
        ({}, {"target": None}, ValueError, r"`target` is needed"),
        ({}, {"target": [0, 1]}, ValueError, r"one entry per example \(3\); got a list of 2"),
        ({}, {"perturbations_per_eval": 0}, ValueError, "must be an int >= 1, or None; got 0"),
        ({"fill": "red"}, {}, ValueError, "`fill` must be a number.*got 'red'"),
        ({"fill": torch.rand(5)}, {}, ValueError, "`fill` must have one number for each of the 3"),
        ({"masked_input": 1}, {}, ValueError, "`masked_input` must be the place of the images"),
        (
            {"masked_input": 1},
            {"additional_forward_args": None, "inputs": (torch.rand(3, 3, 8, 7).double(),)},
            ValueError,
            "got 1, where there is NoneType",
        ),
    ],
)
def test_bad_arguments_are_refused(explainer, settings, arguments, error, message):
    model = _model()
    with pytest.raises(error, match=message):
        explainer(model, model[0], **settings).attribute(
            **{"inputs": _images(), "target": 0, **arguments}
        )


@BOTH
def test_layers_and_inputs_without_an_image_are_refused(explainer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).double()
    with pytest.raises(ValueError, match="the 2 spatial axes of the input, which they mask; got 0"):
        explainer(model, model[1]).attribute(torch.rand(2, 3, 8, 8).double(), 0)
    with pytest.raises(ValueError, match=r"place of the images.*got 0, where there is \(2, 144\)"):
        explainer(model[2], model[2]).attribute(torch.rand(2, 144).double(), 0)

    def cast(images):
        return model(images.double())

    with pytest.raises(TypeError, match=r"floating point and dense to be masked; got torch\.uint8"):
        explainer(cast, model[0]).attribute(torch.ones(2, 3, 8, 8, dtype=torch.uint8), 0)


@pytest.mark.parametrize("fill", [0.0, "blur"])
@pytest.mark.parametrize("clusterer", ["every-map", "kmeans", "contiguous", "random"])
def test_stay_on_the_device_and_read_one_value(clusterer, fill, monkeypatch):
    let_gradients_be_ones(monkeypatch)
    checks = []
    monkeypatch.setattr(copies_module, "agree", lambda *_: checks.append(1) or True)
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(
            nn.Conv2d(3, 12, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)
        ).eval()
        x = torch.rand(2, 3, 9, 9)
        cams = [
            LayerScoreCam(model, model[1], clusterer=clusterer, n_clusters=4, fill=fill),
            LayerScoreCam(model, model[1], clusterer=clusterer, variant="probability"),
            LayerGroupCam(model, model[1], clusterer=clusterer, n_clusters=4, fill=fill),
            LayerGroupCam(model, model[1], clusterer=clusterer, percentile=70),
        ]
        for cam in cams:
            for target in (1, torch.tensor([1, 2])):
                checks.clear()
                result = cam.explain(x, target, perturbations_per_eval=5)
                assert 2 <= len(checks) <= 3  # one more where the last pass is smaller
                for value in vars(result).values():
                    assert value is None or value.device.type == "cuda"
                assert result.attributions.shape == (2, 1, 7, 7)
