"""The method: against the literal reference, against answers by hand, and its identities."""

import dataclasses

import pytest
import torch
from captum.attr import LayerAttribution, LayerFeatureAblation, PerturbationAttribution
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from torch import nn

from captum_clustered import ClusteredAttribution, ClusteredLayerAblation
from captum_clustered.shapley import Shapley
from reference import clustered_cam
from small_models import split_cnn

SIZES = {1: (9,), 2: (8, 7), 3: (6, 5, 6)}


def _images(dims=2, n=3):
    return torch.rand(n, 3, *SIZES[dims], dtype=torch.float64) - 0.3


def _by_group(result):
    """The scores without each group as lists, without the places of groups that are not there."""
    return [
        row[keep].tolist() for row, keep in zip(result.ablated_scores, result.valid, strict=True)
    ]


@pytest.mark.parametrize(
    "weighting", ["drop", "drop_per_map", "drop_per_mass", "drop_by_activation"]
)
@pytest.mark.parametrize("clusterer", ["kmeans", "cosine", "agglomerative", "every-map", "random"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_equals_the_literal_reference(dims, clusterer, weighting):
    model, x, target = split_cnn(dims=dims), _images(dims), [0, 3, 1]
    cam = ClusteredLayerAblation(
        model, model[0], clusterer=clusterer, n_clusters=3, weighting=weighting
    )
    result = cam.explain(x, target)
    maps, ablated = clustered_cam(model[0], model[1], x, target, result.labels, weighting)
    assert result.attributions.shape == (3, 1, *model[0](x).shape[2:])
    torch.testing.assert_close(result.attributions[:, 0], torch.stack(maps))
    for ours, theirs in zip(_by_group(result), ablated, strict=True):
        assert ours == pytest.approx(theirs)


class TestByHand:
    """Scores are the squared sums of two maps: every number can be done on paper."""

    @pytest.fixture
    def cam(self):
        class Squares(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Identity()

            def forward(self, x):
                sums = self.layer(x).sum((2, 3))
                return torch.stack([sums.sum(1) ** 2, -(sums.sum(1) ** 2)], 1)

        model = Squares()
        labels = torch.tensor([0, 1, 1, -1])
        return ClusteredLayerAblation(model, model.layer, clusterer=labels, weighting="drop")

    x = torch.tensor([[[[2.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]], [[0.0, 0.0]]]])

    def test_every_field(self, cam):
        result = cam.explain(self.x, target=0)
        assert result.scores.tolist() == [16.0]  # (2 + 1 + 1)^2
        assert result.ablated_scores.tolist() == [[4.0, 4.0]]
        assert result.labels.tolist() == [[0, 1, 1, -1]]
        assert result.valid.tolist() == [[True, True]]
        assert result.group_weights.tolist() == [[0.75, 0.75]]
        assert result.channel_weights.tolist() == [[0.75, 0.75, 0.75, 0.0]]
        assert result.attributions.tolist() == [[[[1.5, 1.5]]]]
        assert result.activations.tolist() == self.x.tolist()
        assert (result.replay, result.replay_reason) == ("suffix", None)

    def test_a_negative_score_keeps_the_sign_of_the_drop(self, cam):
        # without either group the score rises from -16 to -4: the maps count against the class
        result = cam.explain(self.x, target=1, relu_attributions=False)
        assert result.group_weights.tolist() == [[-0.75, -0.75]]
        assert result.attributions.tolist() == [[[[-1.5, -1.5]]]]
        assert cam.attribute(self.x, target=1).count_nonzero() == 0

    def test_single_maps_instead_of_their_sum(self, cam):
        heat = cam.attribute(self.x, target=0, attr_dim_summation=False)
        torch.testing.assert_close(heat, self.x * 0.75)

    def test_a_score_of_zero_divides_nothing(self, cam):
        x = torch.tensor([[[[2.0, 0.0]], [[0.0, -1.0]], [[0.0, -1.0]], [[0.0, 0.0]]]])
        result = cam.explain(x, target=0)
        assert result.scores.tolist() == [0.0]
        assert result.group_weights.tolist() == [[-4.0, -4.0]]

    def test_a_baseline_takes_the_place_of_the_maps(self, cam):
        result = cam.explain(self.x, target=0, layer_baselines=1.0)
        assert result.ablated_scores.tolist() == [[16.0, 36.0]]  # 2 -> 1+1; 1+1 -> 2+2

    def test_the_result_is_frozen(self, cam):
        result = cam.explain(self.x, target=0)
        assert isinstance(result, ClusteredAttribution)
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.scores = None


class TestIdentities:
    """Known identities of the method; see docs/architecture.md."""

    @settings(max_examples=15)
    @given(st.integers(0, 1000), st.lists(st.integers(-1, 3), min_size=12, max_size=12))
    def test_any_labels_equal_captum_with_these_labels_as_mask(self, seed, labels):
        model, x = split_cnn(seed), _images(n=2)
        labels = torch.tensor(labels).view(2, 6)
        result = ClusteredLayerAblation(model, model[0], clusterer=labels).explain(x, [1, 2])
        drops = result.scores[:, None] - result.ablated_scores
        ours = drops.gather(1, result.labels.clamp(min=0))
        theirs = LayerFeatureAblation(model, model[0]).attribute(
            x, target=[1, 2], layer_mask=labels.view(2, 6, 1, 1)
        )
        grouped = result.labels >= 0
        torch.testing.assert_close(
            ours[grouped], theirs[:, :, 0, 0][grouped], rtol=1e-9, atol=1e-12
        )

    @settings(max_examples=10)
    @given(st.integers(0, 1000))
    def test_every_map_alone_is_ablation_cam(self, seed):
        model, x = split_cnn(seed), _images()
        cam = ClusteredLayerAblation(model, model[0], clusterer="every-map", weighting="drop")
        result = cam.explain(x, 0, relu_attributions=False)
        mask = torch.arange(6).view(1, 6, 1, 1)
        drops = LayerFeatureAblation(model, model[0]).attribute(x, target=0, layer_mask=mask)
        score = result.scores.abs().view(-1, 1, 1, 1)
        theirs = (drops / score * model[0](x)).sum(1, keepdim=True)
        torch.testing.assert_close(result.attributions, theirs)

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.integers(1, 5))
    def test_behind_equal_weights_sharing_by_activation_is_ablation_cam(self, seed, k):
        model, x = split_cnn(seed, linear_head=True), _images()
        with torch.no_grad():
            model[1][2].weight[2] = 0.5
        result, exact = (
            ClusteredLayerAblation(
                model, model[0], clusterer=name, n_clusters=k, weighting="drop_by_activation"
            ).explain(x, 2)
            for name in ("kmeans", "every-map")
        )
        torch.testing.assert_close(result.channel_weights, exact.channel_weights)
        torch.testing.assert_close(result.attributions, exact.attributions)

    @settings(max_examples=10)
    @given(st.integers(0, 1000))
    def test_one_group_is_the_sum_of_all_maps(self, seed):
        model, x = split_cnn(seed), _images()
        cam = ClusteredLayerAblation(model, model[0], n_clusters=1, weighting="drop")
        result = cam.explain(x, 0, relu_attributions=False)
        total = model[0](x).sum(1, keepdim=True)
        torch.testing.assert_close(
            result.attributions, total * result.group_weights.view(-1, 1, 1, 1)
        )

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.integers(1, 6))
    def test_behind_a_pooled_linear_head_drops_add_up(self, seed, k):
        model, x = split_cnn(seed, linear_head=True), _images()
        result = ClusteredLayerAblation(model, model[0], n_clusters=k).explain(x, 2)
        single = model[1][2].weight[2] * model[0](x).mean((2, 3))
        expected = torch.zeros_like(result.ablated_scores)
        expected.scatter_add_(1, result.labels.clamp(min=0), single * (result.labels >= 0))
        drops = result.scores[:, None] - result.ablated_scores
        torch.testing.assert_close(drops, expected.detach())

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.sampled_from(["kmeans", "cosine", "agglomerative"]))
    def test_a_batch_equals_its_examples_one_at_a_time(self, seed, clusterer):
        model, x = split_cnn(seed), _images(n=4)
        cam = ClusteredLayerAblation(model, model[0], clusterer=clusterer, n_clusters=3)
        together = cam.attribute(x, [0, 1, 2, 3])
        alone = torch.cat([cam.attribute(x[i : i + 1], i) for i in range(4)])
        torch.testing.assert_close(together, alone)

    @settings(max_examples=10)
    @given(st.integers(0, 1000), st.integers(1, 9), st.sampled_from(["suffix", "full"]))
    def test_chunks_and_paths_change_nothing(self, seed, chunk, replay):
        model, x = split_cnn(seed), _images()
        usual = ClusteredLayerAblation(model, model[0], n_clusters=4).explain(x, [2, 0, 1])
        other = ClusteredLayerAblation(model, model[0], n_clusters=4, replay=replay).explain(
            x, [2, 0, 1], perturbations_per_eval=chunk
        )
        assert other.replay == replay
        torch.testing.assert_close(usual.ablated_scores, other.ablated_scores)
        torch.testing.assert_close(usual.attributions, other.attributions)

    @settings(max_examples=10)
    @given(st.permutations(range(4)))
    def test_names_of_groups_do_not_matter(self, names):
        model, x = split_cnn(), _images()
        labels = torch.tensor([0, 1, 2, 3, 1, 0])
        renamed = torch.tensor(names)[labels] * 7
        one, other = (
            ClusteredLayerAblation(model, model[0], clusterer=given).attribute(x, 0)
            for given in (labels, renamed)
        )
        torch.testing.assert_close(one, other)


def test_heat_by_mass_adds_up_to_the_drops():
    model, x = split_cnn(), _images()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=3, weighting="drop_per_mass")
    result = cam.explain(x, 0, relu_attributions=False)
    drops = (result.scores[:, None] - result.ablated_scores) / result.scores.abs()[:, None]
    torch.testing.assert_close(result.attributions.sum((1, 2, 3)), (drops * result.valid).sum(1))


def test_a_weighting_may_share_its_weights_and_so_does_its_shapley_value():
    model, x = split_cnn(linear_head=True), _images()
    labels = torch.tensor([0, 0, 1, 1, 1, -1])
    plain, shapley = (
        ClusteredLayerAblation(model, model[0], clusterer=labels, weighting=weighting).explain(x, 0)
        for weighting in ("drop_by_activation", Shapley(2, weighting="drop_by_activation"))
    )
    masses = model[0](x).detach().abs().sum((2, 3))
    share = masses[:, :2] / masses[:, :2].sum(1, keepdim=True)
    torch.testing.assert_close(plain.channel_weights[:, :2], share * plain.group_weights[:, :1])
    assert plain.channel_weights[:, 5].tolist() == [0, 0, 0]
    torch.testing.assert_close(shapley.channel_weights, plain.channel_weights)


def test_dead_maps_are_in_no_group_and_weigh_nothing():
    model, x = split_cnn(), _images()
    with torch.no_grad():
        model[0][0].bias[2] = -100
        model[0][0].bias[5] = -100
    result = ClusteredLayerAblation(model, model[0], clusterer="every-map").explain(x, 0)
    assert result.labels[:, [2, 5]].tolist() == [[-1, -1]] * 3
    assert result.channel_weights[:, [2, 5]].count_nonzero() == 0
    assert result.ablated_scores.shape == (3, 4)  # nothing is spent on them


def test_a_layer_that_is_dead_altogether_gives_a_map_of_zeros():
    model, x = split_cnn(), _images()
    with torch.no_grad():
        model[0][0].bias.fill_(-100)
    result = ClusteredLayerAblation(model, model[0]).explain(x, 0)
    assert not result.valid.any()
    assert result.attributions.count_nonzero() == 0


def test_examples_with_fewer_groups_have_invalid_ones_of_no_weight():
    model = split_cnn()
    x = _images(n=2)
    labels = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1]])
    result = ClusteredLayerAblation(model, model[0], clusterer=labels).explain(x, 0)
    assert result.valid.sum(1).tolist() == [6, 2]
    assert result.group_weights[1, 2:].tolist() == [0.0] * 4
    torch.testing.assert_close(result.ablated_scores[1, 2:], result.scores[1].expand(4))


def test_a_callable_weighting_gets_what_it_needs():
    seen = {}

    def weighting(scores, ablated_scores, labels, activations):
        seen.update(locals())
        return torch.full_like(ablated_scores, 2.0)

    model, x = split_cnn(), _images()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=2, weighting=weighting)
    result = cam.explain(x, 0)
    torch.testing.assert_close(result.attributions, 2 * model[0](x).sum(1, keepdim=True))
    assert [seen[name].shape for name in ("scores", "ablated_scores", "labels", "activations")] == [
        (3,), (3, 2), (3, 6), (3, 6, 6, 5),
    ]  # fmt: skip


def test_a_scikit_learn_estimator_groups_the_maps():
    model, x = split_cnn(), _images()
    result = ClusteredLayerAblation(model, model[0], clusterer=DBSCAN(eps=1e-6)).explain(x, 0)
    assert result.labels.tolist() == [list(range(6))] * 3  # all noise: each map its own group


def test_is_a_captum_layer_perturbation_attribution():
    cam = ClusteredLayerAblation(nn.Identity(), nn.Identity())
    assert isinstance(cam, LayerAttribution)
    assert isinstance(cam, PerturbationAttribution)
    assert cam.get_name() == "Clustered Layer Ablation"
    assert cam.multiplies_by_inputs


def test_the_result_is_detached_and_of_the_maps_dtype():
    model, x = split_cnn().float(), _images().float().requires_grad_()
    result = ClusteredLayerAblation(model, model[0], n_clusters=2).explain(x, 0)
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        assert not isinstance(value, torch.Tensor) or not value.requires_grad
    assert result.attributions.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"replay": "fast"},
            ValueError,
            "`replay` must be one of 'auto', 'suffix', 'full'; got 'fast'",
        ),
        ({"channel_dim": 0}, ValueError, "`channel_dim` must be an int other than 0"),
        ({"clusterer": "kmean"}, ValueError, "`clusterer` must be one of .kmeans., .* got 'kmean'"),
        ({"clusterer": 3}, TypeError, "`clusterer` must be a name, .* got 3"),
        ({"n_clusters": 0}, ValueError, "`n_clusters` must be an int >= 1; got 0"),
        ({"weighting": "size"}, ValueError, "`weighting` must be one of .auto., .* got 'size'"),
        ({"weighting": 1.0}, TypeError, "`weighting` must be a name or a callable; got 1.0"),
    ],
)
def test_bad_settings_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ClusteredLayerAblation(nn.Identity(), nn.Identity(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": 4}, ValueError, r"`target` must lie in 0..3, .* got 4"),
        ({"target": None}, ValueError, r"`target` is needed .* \(3, 4\); got None"),
        ({"target": [0, 1]}, ValueError, r"one entry per example \(3\); got a list of 2"),
        ({"target": 0.5}, TypeError, r"`target` must be an int, .* got 0.5"),
        ({"target": torch.rand(3)}, TypeError, r"class indices .* got dtype torch.float32"),
        ({"target": (0, 1)}, ValueError, r"one index for each axis .* got 2"),
        ({"perturbations_per_eval": 0}, ValueError, r"must be an int >= 1, or None; got 0"),
        ({"perturbations_per_eval": 2.0}, ValueError, r"must be an int >= 1, or None; got 2.0"),
        ({"layer_baselines": torch.rand(5)[None, :, None, None]}, ValueError, r"\(1, 5, 1, 1\)"),
        ({"layer_baselines": "mean"}, TypeError, r"`layer_baselines` must be a number .* got str"),
        ({"layer_baselines": (0, 0)}, ValueError, r"one entry for each of the layer's 1 tensors"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    model = split_cnn()
    with pytest.raises(error, match=message):
        ClusteredLayerAblation(model, model[0]).attribute(_images(), **{"target": 0, **arguments})


@pytest.mark.parametrize("weights", [torch.rand(3), 1.0])
def test_a_weighting_of_the_wrong_shape_is_refused(weights):
    model = split_cnn()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=2, weighting=lambda *_: weights)
    with pytest.raises(ValueError, match=r"one weight per group, a tensor of shape \(3, 2\)"):
        cam.attribute(_images(), 0)
