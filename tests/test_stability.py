"""Maps over several groupings: mean, deviation, agreement."""

import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from captum_clustered import ClusteredLayerAblation, ClusteredLayerScore
from captum_clustered.clustering import Agglomerative, KMeans, RandomGroups
from captum_clustered.heatmap import normalize
from captum_clustered.stability import stability
from small_models import split_cnn


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 7, dtype=torch.float64)


def test_mean_deviation_and_agreement_are_those_of_single_runs(x):
    model = split_cnn(channels=12)
    cam = ClusteredLayerAblation(model, model[0], n_clusters=4)
    found = stability(cam, x, [1, 2], seeds=[3, 4, 5])
    runs = [
        ClusteredLayerAblation(model, model[0], clusterer=KMeans(4, seed=s)).explain(x, [1, 2])
        for s in (3, 4, 5)
    ]
    heats = torch.stack([normalize(run.attributions) for run in runs])
    assert torch.equal(found.attributions, heats)
    torch.testing.assert_close(found.mean, heats.mean(0))
    torch.testing.assert_close(found.std, ((heats - heats.mean(0)) ** 2).mean(0).sqrt())
    for i in range(2):
        live = runs[0].labels[i] >= 0
        expected = adjusted_rand_score(runs[0].labels[i][live], runs[2].labels[i][live])
        assert found.agreement[i, 0, 2].item() == pytest.approx(expected)
        assert found.agreement[i, 2, 0] == found.agreement[i, 0, 2]
        assert found.agreement[i].diagonal().tolist() == [1, 1, 1]
    assert found.clusterers == [KMeans(4, seed=s) for s in (3, 4, 5)]
    assert cam.clusterer == KMeans(4), "the explainer is as before"


def test_random_groups_agree_by_chance_only():
    model = split_cnn(channels=200)
    x = torch.rand(1, 3, 8, 7, dtype=torch.float64)
    cam = ClusteredLayerAblation(model, model[0], clusterer=RandomGroups(8))
    found = stability(cam, x, 1)
    off = found.agreement[0][~torch.eye(5, dtype=torch.bool)]
    assert off.abs().max() < 0.1


def test_clusterers_and_numbers_are_combined_and_a_seedless_one_runs_once(x):
    model = split_cnn(channels=12)
    cam = ClusteredLayerAblation(model, model[0])
    found = stability(
        cam, x, 1, seeds=(0, 1), clusterers=["kmeans", "agglomerative"], n_clusters=(2, 3)
    )
    assert found.clusterers == [
        KMeans(2, seed=0), KMeans(2, seed=1), KMeans(3, seed=0), KMeans(3, seed=1),
        Agglomerative(2), Agglomerative(3),
    ]  # fmt: skip


def test_works_for_what_masks_the_image(x):
    model = split_cnn(channels=12)
    cam = ClusteredLayerScore(model, model[0], clusterer="kmeans", n_clusters=3)
    assert stability(cam, x, 1, seeds=(0, 1), perturbations_per_eval=2).mean.shape == (2, 1, 6, 5)


def test_refuses(x):
    model = split_cnn()
    cam = ClusteredLayerAblation(model, model[0], clusterer="agglomerative")
    with pytest.raises(ValueError, match="must make at least two groupings"):
        stability(cam, x, 1)
    with pytest.raises(TypeError, match="`explainer` must have a clusterer"):
        stability(object(), x, 1)
