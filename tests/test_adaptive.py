"""Groups that follow the drops: which are split, how often the model is asked, what comes out."""

import pytest
import torch
from torch import nn

from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import Agglomerative
from captum_clustered.testing import check_clusterer
from small_models import split_cnn


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 7, dtype=torch.float64)


def test_final_groups_have_the_drops_of_these_groups(x):
    model = split_cnn(channels=30)
    found = ClusteredLayerAblation(model, model[0], clusterer=Adaptive(8)).explain(x, [1, 2])
    again = ClusteredLayerAblation(model, model[0], clusterer=found.labels).explain(x, [1, 2])
    assert torch.equal(again.labels, found.labels)
    torch.testing.assert_close(found.ablated_scores, again.ablated_scores)
    torch.testing.assert_close(found.attributions, again.attributions)
    # 4 groups at the start, then 2 splits with two evaluations each
    assert found.valid.sum(1).tolist() == [6, 6]


def test_the_largest_drop_is_split_first():
    # four maps in two pairs; only the class weight decides which pair is opened
    features = torch.tensor([[[1.0], [1.2], [9.0], [9.4], [30.0], [30.9]]])
    for strong, expected in ((0, [0, 1, 2, 2, 3, 3]), (1, [0, 0, 1, 2, 3, 3])):
        search = Adaptive(budget=6).search(features)
        labels = next(search)
        assert labels.tolist() == Agglomerative(3).__call__(features).tolist() or labels.max() == 2
        # a drop below zero counts by its magnitude
        groups = [int(labels[0, 2 * pair]) for pair in range(3)]
        drops = torch.zeros(1, 3)
        drops[0, groups[strong]] = -5.0
        parts = search.send(drops)
        assert sorted(parts[0].unique().tolist()) == [-1, 0, 1]
        assert (parts[0, 2 * strong : 2 * strong + 2] >= 0).all()
        final, values = _result(search, torch.tensor([[1.0, 2.0]]))
        assert _same(final[0].tolist(), expected)
        assert sorted(values[0].tolist()) == [0.0, 0.0, 1.0, 2.0]


def _result(search, drops):
    """What the search returns when these drops are the last it needs."""
    try:
        asked = search.send(drops)
    except StopIteration as end:
        return end.value
    pytest.fail(f"the search asks for {asked}")


def _same(first, second):
    """Whether two labellings make the same groups."""
    return len(set(zip(first, second, strict=True))) == len(set(first)) == len(set(second))


def test_the_budget_is_kept(x):
    model, asked = split_cnn(channels=40), []
    search = Adaptive.search

    class Counting(Adaptive):
        def search(self, features):
            inner = search(self, features)
            labels = next(inner)
            while True:
                asked.append(int(labels.max()) + 1)
                drops = yield labels
                try:
                    labels = inner.send(drops)
                except StopIteration as end:
                    return end.value

    for budget in (2, 5, 8, 11):
        asked.clear()
        ClusteredLayerAblation(model, model[0], clusterer=Counting(budget)).explain(x, 1)
        assert budget - 1 <= sum(asked) <= budget


def test_a_budget_beyond_the_maps_is_ablation_cam(x):
    model = split_cnn()
    found = ClusteredLayerAblation(
        model, model[0], clusterer=Adaptive(200), weighting="drop"
    ).attribute(x, 1)
    torch.testing.assert_close(found, LayerAblationCam(model, model[0]).attribute(x, 1))


def test_neighbours_do_not_matter(x):
    model = split_cnn(channels=12)
    cam = ClusteredLayerAblation(model, model[0], clusterer=Adaptive(8))
    together = cam.attribute(x, [1, 2])
    for i, cls in enumerate([1, 2]):
        torch.testing.assert_close(together[i : i + 1], cam.attribute(x[i : i + 1], cls))


def test_dead_maps_and_lone_maps_are_no_trouble():
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x = torch.zeros(3, 3, 2, 2, dtype=torch.float64)
    x[1, 1] = 1.0  # one live map
    x[2] = torch.rand(3, 2, 2)
    found = ClusteredLayerAblation(model, model[0], clusterer=Adaptive(4)).explain(x, 1)
    assert found.valid.sum(1).tolist()[:2] == [0, 1]
    assert found.labels[0].tolist() == [-1, -1, -1]
    assert found.attributions[0].eq(0).all()


def test_is_a_clusterer_by_itself():
    check_clusterer(Adaptive(8))


def test_one_score_for_the_batch_is_refused(x):
    model = split_cnn()
    cam = ClusteredLayerAblation(lambda y: model(y).sum(), model[0], clusterer=Adaptive(4))
    with pytest.raises(ValueError, match="one score for the whole batch; got 2 examples"):
        cam.attribute(x)


def test_refuses_a_budget_for_a_single_group():
    with pytest.raises(ValueError, match="`budget` must be an int >= 2; got 1"):
        Adaptive(budget=1)


class TestLargestGap:
    def test_by_hand(self):
        points = [1.0, 1.1, 5.0, 5.1, 20.0, 20.1, 50.0, 50.1]
        tree = Agglomerative().tree(torch.tensor(points).reshape(1, 8, 1))
        assert tree.largest_gap(low=2) == [4]
        assert tree.cut("auto").max() == 7  # eight groups are the fewest that are considered
        heights = tree.merges[0][::-1, 2]
        better = 2 if heights[0] / heights[1] > heights[1] / heights[2] else 3
        assert tree.largest_gap(low=2, high=3) == [better]

    def test_each_example_has_its_own(self):
        first = [1.0, 1.1, 5.0, 5.1, 20.0, 20.1, 50.0, 50.1]
        second = [1.0, 1.1, 1.2, 1.3, 50.0, 50.1, 50.2, 50.3]
        tree = Agglomerative().tree(torch.tensor([first, second]).unsqueeze(2))
        assert tree.largest_gap(low=2) == [4, 2]

    def test_explains_with_a_number_of_its_own(self, x):
        model = split_cnn(channels=24)
        cam = ClusteredLayerAblation(model, model[0], clusterer="agglomerative", n_clusters="auto")
        found = cam.explain(x, 1)
        tree = Agglomerative().tree(found.activations.flatten(2))
        counts = [len(set(row.tolist()) - {-1}) for row in tree.cut("auto")]
        assert found.valid.sum(1).tolist() == counts
