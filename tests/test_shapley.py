"""Shapley values of groups: against all orders, and the sums that must hold."""

import itertools

import pytest
import torch

from captum_clustered import ClusteredLayerAblation
from captum_clustered.shapley import Shapley
from small_models import split_cnn

LABELS = torch.tensor([[0, 1, 2, 0, 1, 3], [0, 0, 1, 2, -1, 2]])
TARGET = [1, 3]


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 7, dtype=torch.float64)


@torch.no_grad()
def _score(model, maps, gone, cls):
    left = maps.clone()
    left[:, gone] = 0
    return model[1](left)[0, cls]


@torch.no_grad()
def _exact(model, image, cls, row):
    """The mean over all orders of what each group takes away."""
    maps = model[0](image[None])
    n = int(row.max()) + 1
    values = torch.zeros(n, dtype=torch.float64)
    orders = list(itertools.permutations(range(n)))
    for order in orders:
        gone = torch.zeros(len(row), dtype=torch.bool)
        before = _score(model, maps, gone, cls)
        for k in order:
            gone = gone | (row == k)
            now = _score(model, maps, gone, cls)
            values[k] += before - now
            before = now
    return values / len(orders)


def test_all_orders_are_approached(x):
    model = split_cnn()
    weighting = Shapley(n_permutations=600)
    cam = ClusteredLayerAblation(model, model[0], clusterer=LABELS, weighting=weighting)
    found = cam.explain(x, TARGET)
    values = found.scores.unsqueeze(1) - found.ablated_scores
    for i, (image, cls, row) in enumerate(zip(x, TARGET, LABELS, strict=True)):
        exact = _exact(model, image, cls, row)
        n = len(exact)
        error = found.standard_errors[i, :n]
        assert ((values[i, :n] - exact).abs() <= 4.5 * error + 1e-12).all()
        assert (error < 0.2 * exact.abs().max()).all()
        assert (values[i, n:] == 0).all()


def test_the_values_add_up_to_what_is_lost_without_all(x):
    model = split_cnn()
    cam = ClusteredLayerAblation(model, model[0], clusterer=LABELS, weighting=Shapley(2))
    found = cam.explain(x, TARGET)
    values = found.scores.unsqueeze(1) - found.ablated_scores
    for i, (cls, row) in enumerate(zip(TARGET, LABELS, strict=True)):
        with torch.no_grad():
            maps = model[0](x[i][None])
            lost = found.scores[i] - _score(model, maps, row >= 0, cls)
        torch.testing.assert_close(values[i].sum(), lost)
    assert found.standard_errors.isnan().all()


@pytest.mark.parametrize("weighting", ["drop", "drop_per_map", "drop_per_mass"])
def test_where_drops_add_up_it_is_the_plain_drop(x, weighting):
    model = split_cnn(linear_head=True)
    plain = ClusteredLayerAblation(model, model[0], clusterer=LABELS, weighting=weighting)
    shapley = ClusteredLayerAblation(
        model, model[0], clusterer=LABELS, weighting=Shapley(4, weighting=weighting)
    )
    found = shapley.explain(x, TARGET)
    torch.testing.assert_close(found.attributions, plain.attribute(x, TARGET))
    assert found.standard_errors.abs().max() < 1e-12


def test_neither_the_path_nor_the_chunk_changes_the_result(x):
    model = split_cnn()

    def heat(replay, chunk):
        return ClusteredLayerAblation(
            model, model[0], clusterer=LABELS, weighting=Shapley(4), replay=replay
        ).attribute(x, TARGET, perturbations_per_eval=chunk)

    expected = heat("suffix", None)
    for replay, chunk in (("suffix", 1), ("suffix", 3), ("full", None), ("full", 2)):
        torch.testing.assert_close(heat(replay, chunk), expected)


def test_the_seed_counts_and_the_global_generator_does_not(x):
    model = split_cnn()

    def heat(seed):
        return ClusteredLayerAblation(
            model, model[0], clusterer=LABELS, weighting=Shapley(2, seed=seed)
        ).attribute(x, TARGET)

    state = torch.get_rng_state()
    first = heat(0)
    torch.rand(5)
    assert torch.equal(heat(0), first)
    assert not torch.equal(heat(1), first)
    torch.set_rng_state(state)


def test_baselines_are_used(x):
    model = split_cnn()
    cam = ClusteredLayerAblation(model, model[0], clusterer=LABELS[:1], weighting=Shapley(2))
    found = cam.explain(x[:1], 1, layer_baselines=0.7)
    with torch.no_grad():
        maps = model[0](x[:1])
        assert not maps.flatten(2).any(2).all()  # a map that is zero everywhere is not 0.7 either
        replaced = model[1](torch.full_like(maps, 0.7))[0, 1]
    values = found.scores - found.ablated_scores[0]
    torch.testing.assert_close(values.sum(), found.scores[0] - replaced)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_permutations": 3}, "`n_permutations` must be even"),
        ({"n_permutations": 0}, "`n_permutations` must be an int >= 2; got 0"),
        ({"weighting": "most"}, "`weighting` must be one of"),
    ],
)
def test_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        Shapley(**settings)
