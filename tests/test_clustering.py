"""Groups: the conformance suite over all clusterers, answers by hand, quality on real maps."""

import numpy as np
import pytest
import torch
from sklearn import cluster as sk
from sklearn.base import BaseEstimator

from captum_clustered._kmeans import _nearest, draws_for
from captum_clustered.clustering import (
    CLUSTERERS,
    Agglomerative,
    Contiguous,
    CosineKMeans,
    EveryMap,
    GivenLabels,
    KMeans,
    RandomGroups,
    SklearnClusterer,
    as_clusterer,
    group,
)
from captum_clustered.testing import check_clusterer


def _mod(features):
    return torch.arange(features.shape[1]).remainder(3).expand(features.shape[:2])


OURS = [
    *(make(4) for make in CLUSTERERS.values()),
    KMeans(n_clusters=100),
    Agglomerative(4, linkage="average", metric="cosine"),
    Agglomerative(4, linkage="complete"),
    RandomGroups(like=KMeans(4)),
    RandomGroups(like=EveryMap()),
    SklearnClusterer(sk.KMeans(4)),
    SklearnClusterer(sk.DBSCAN(eps=1.0), noise="none"),
    sk.AgglomerativeClustering(4),
    sk.DBSCAN(eps=1.0, min_samples=2),
    sk.MiniBatchKMeans(4),
    sk.BisectingKMeans(4),
    _mod,
]


@pytest.mark.parametrize("clusterer", OURS, ids=lambda c: getattr(c, "__name__", str(c)))
def test_conforms(clusterer):
    check_clusterer(clusterer)


def _random(features):
    return torch.randint(3, features.shape[:2])


def _neighbours(features):
    return (features.mean(2) > features.mean()).long()


def _overwrites(features):
    features.mul_(2)
    return _mod(features)


class Unseeded(BaseEstimator):
    def fit_predict(self, rows):
        return np.random.randint(3, size=len(rows))


@pytest.mark.parametrize(
    ("clusterer", "message"),
    [
        (_random, "a second call must give equal labels"),
        (_neighbours, "labels must not depend on the batch; example . has"),
        (_overwrites, "the features were changed in place"),
        (Unseeded(), "a second call must give equal labels"),
        (lambda f: torch.rand(4, out=torch.empty(4)) is None or _mod(f), "torch's random state"),
        (lambda f: torch.full(f.shape[:2], -1), "some map must be in a group"),
    ],
)
def test_the_suite_finds_what_breaks_its_rules(clusterer, message):
    with pytest.raises(AssertionError, match=message):
        check_clusterer(clusterer)


def test_estimators_are_cloned_and_seeded():
    estimator = sk.KMeans(3)
    SklearnClusterer(estimator)(torch.rand(2, 8, 4))
    assert estimator.random_state is None
    assert not hasattr(estimator, "labels_")


BLOBS = torch.tensor([[0.0, 0.1], [0.1, 0.0], [9.0, 9.1], [9.1, 9.0], [0.0, 9.0], [0.1, 9.0]])


@pytest.mark.parametrize(
    "clusterer", [KMeans(3), Agglomerative(3), Agglomerative(3, "average"), sk.KMeans(3)]
)
def test_clear_groups_are_found(clusterer):
    labels = group(as_clusterer(clusterer), BLOBS[None]).labels[0]
    assert labels[0] == labels[1]
    assert labels[2] == labels[3]
    assert labels[4] == labels[5]
    assert len(set(labels.tolist())) == 3


def test_cosine_looks_at_directions_and_euclidean_at_distances():
    features = torch.tensor([[[1.0, 0.0], [100.0, 1.0], [0.0, 1.0], [2.0, 100.0]]])
    cosine = CosineKMeans(2)(features)[0].tolist()
    assert cosine[0] == cosine[1] != cosine[2] == cosine[3]
    euclidean = KMeans(2)(features)[0].tolist()
    assert euclidean[0] == euclidean[2]


def test_equal_maps_are_never_parted_and_give_fewer_groups():
    features = torch.tensor([[[1.0, 2.0]] * 4 + [[3.0, 1.0]] * 2])
    for clusterer in (KMeans(4), CosineKMeans(4), Agglomerative(4)):
        groups = group(clusterer, features)
        assert groups.n_groups == 2
        assert groups.sizes.tolist() == [[4, 2]] or groups.sizes.tolist() == [[2, 4]]


def test_one_tree_gives_every_number_of_groups():
    features = torch.rand(2, 9, 5)
    tree = Agglomerative().tree(features)
    for k in range(1, 10):
        labels = tree.cut(k)
        assert labels.max(1).values.tolist() == [k - 1] * 2
        assert torch.equal(labels, Agglomerative(k)(features))
        reference = sk.AgglomerativeClustering(k).fit_predict(features[0].numpy())
        assert labels[0].tolist() == _relabel(reference)


def _relabel(labels):
    """Numbers groups in the order of their first members."""
    names = {}
    return [names.setdefault(label, len(names)) for label in labels]


def test_noise_is_its_own_group_or_none():
    features = torch.tensor([[[1.0], [1.1], [5.0], [9.0]]])
    estimator = sk.DBSCAN(eps=0.5, min_samples=2)
    assert SklearnClusterer(estimator)(features).tolist() == [[0, 0, 1, 2]]
    assert SklearnClusterer(estimator, noise="none")(features).tolist() == [[0, 0, -1, -1]]


def test_all_noise_is_no_error():
    estimator = sk.DBSCAN(eps=0.01, min_samples=2)
    features = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert SklearnClusterer(estimator)(features).tolist() == [[0, 1, 2]]
    assert group(SklearnClusterer(estimator, noise="none"), features).n_groups == 1


def test_random_groups_keep_the_sizes_of_another_clusterer():
    features = torch.rand(2, 30, 5)
    features[0, ::3] = 0
    like = group(KMeans(6), features)
    shuffled = group(RandomGroups(like=KMeans(6)), features)
    assert torch.equal(like.sizes.sort(1).values, shuffled.sizes.sort(1).values)
    assert torch.equal(like.labels < 0, shuffled.labels < 0)
    assert not torch.equal(like.labels, shuffled.labels)
    other = group(RandomGroups(like=KMeans(6), seed=1), features)
    assert not torch.equal(other.labels, shuffled.labels)


def test_random_groups_have_equal_sizes():
    features = torch.rand(1, 11, 5)
    features[0, 4] = 0
    groups = group(RandomGroups(4), features)
    assert sorted(groups.sizes[0].tolist()) == [2, 2, 3, 3]


@pytest.mark.parametrize(("maps", "k"), [(10, 3), (8, 4), (3, 5), (12, 5)])
def test_contiguous_groups_are_those_of_chunk(maps, k):
    labels = Contiguous(k)(torch.rand(1, maps, 2))[0]
    sizes = [len(part) for part in torch.arange(maps).chunk(k)]
    assert torch.bincount(labels).tolist() == sizes
    assert labels.tolist() == sorted(labels.tolist())


def test_labels_may_have_gaps_and_be_large():
    features = torch.rand(1, 4, 2)
    assert group(GivenLabels(torch.tensor([7, -3, 10**6, 7])), features).labels.tolist() == [
        [0, -1, 1, 0]
    ]


@pytest.mark.parametrize(
    ("clusterer", "error", "message"),
    [
        (torch.zeros(3).long(), ValueError, r"must have shape \(4,\), or \(2, 4\).* got \(3,\)"),
        (lambda f: torch.zeros(2, 3).long(), ValueError, r"one label per map, shape \(2, 4\)"),
        (
            lambda f: torch.zeros(2, 4),
            TypeError,
            "integer tensor of labels; got dtype torch.float32",
        ),
        (lambda f: [0] * 4, TypeError, "integer tensor of labels; got list"),
    ],
)
def test_bad_labels_are_refused(clusterer, error, message):
    with pytest.raises(error, match=message):
        group(as_clusterer(clusterer), torch.rand(2, 4, 3))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KMeans(0), "`n_clusters` must be an int >= 1; got 0"),
        (lambda: KMeans(2.0), r"`n_clusters` must be an int >= 1; got 2\.0"),
        (lambda: KMeans(n_iter=0), "`n_iter` must be an int >= 1; got 0"),
        (
            lambda: Agglomerative(linkage="single"),
            "`linkage` must be one of 'ward', .* got 'single'",
        ),
        (
            lambda: Agglomerative(metric="cosine"),
            "`metric` must be 'euclidean' with Ward's linkage",
        ),
        (
            lambda: SklearnClusterer(sk.DBSCAN(), noise="drop"),
            "`noise` must be one of 'own', 'none'",
        ),
        (lambda: RandomGroups(0), "`n_clusters` must be an int >= 1; got 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_seed_for_a_name():
    assert as_clusterer("kmeans", 8, seed=3) == KMeans(8, seed=3)
    assert as_clusterer("every-map", seed=3) == EveryMap()


def test_the_seed_changes_the_groups_of_kmeans():
    features = torch.rand(1, 200, 20)
    assert not torch.equal(KMeans(20, seed=0)(features), KMeans(20, seed=1)(features))


def plain_k_means(points, draws, k, n_iter):
    """Labels of one example by the words of `KMeans`: a candidate, a centre, a map at a time."""
    points = points - points.mean(0)
    centres, rest = [], torch.full((len(points),), torch.inf, dtype=points.dtype)
    weights = torch.ones_like(rest)
    for uniform in draws:
        total = weights.cumsum(0)
        drawn = [int((total <= u * total[-1]).sum().clamp(max=len(points) - 1)) for u in uniform]
        distances = [(points - points[i]).square().sum(1) for i in drawn]
        for _ in range(min(4, k - len(centres)) if centres else 1):
            left = [float(torch.minimum(rest, one).sum()) for one in distances]
            best = left.index(min(left))
            rest = torch.minimum(rest, distances[best])
            centres.append(points[drawn[best]])
        weights = rest
    for step in range(n_iter + 1):
        labels = torch.stack([(points - centre).square().sum(1) for centre in centres]).argmin(0)
        if step < n_iter:
            centres = [
                points[labels == j].mean(0) if (labels == j).any() else centre
                for j, centre in enumerate(centres)
            ]
    return labels


@pytest.mark.parametrize("k", [1, 2, 5, 6, 9, 16])
@pytest.mark.parametrize("n_iter", [1, 4])
def test_kmeans_is_what_its_docstring_says(k, n_iter):
    features = torch.rand(3, 40, 6, dtype=torch.float64)
    draws = torch.rand(draws_for(k), generator=torch.Generator().manual_seed(5)).double()
    found = KMeans(k, n_iter=n_iter, seed=5)(features)
    for labels, points in zip(found, features, strict=True):
        assert labels.tolist() == plain_k_means(points, draws, k, n_iter).tolist()


def test_of_equally_near_centres_the_first_counts():
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]])
    centres = torch.tensor([[[0.0, 1.0], [0.0, -1.0], [2.0, 0.0], [0.0, 1.0]]])
    assert _nearest(points, centres).tolist() == [[0, 2]]


def test_labels_of_kmeans_can_be_used_where_gradients_are_needed():
    features = torch.rand(1, 6, 2, requires_grad=True)
    labels = KMeans(2)(features)
    assert not labels.is_inference()
    features.sum(2).gather(1, labels).sum().backward()  # autograd keeps the labels


@pytest.mark.parametrize("clusterer", [KMeans(6), CosineKMeans(6)])
def test_kmeans_computes_in_full_precision_under_autocast(clusterer):
    features = torch.rand(2, 40, 16, generator=torch.Generator().manual_seed(0))
    plain = clusterer(features)
    with torch.autocast("cpu", torch.bfloat16):
        assert clusterer(features).equal(plain)


def test_large_batches_are_clustered_in_lots(monkeypatch):
    features = torch.rand(5, 30, 6)
    whole = KMeans(5)(features)
    monkeypatch.setattr("captum_clustered.clustering._BYTES", 2 * 4 * 30 * 5)
    assert torch.equal(KMeans(5)(features), whole)


def inertia(rows, labels):
    """The sum of squared distances to the means of the groups."""
    total = 0.0
    for k in set(labels.tolist()) - {-1}:
        members = rows[labels == k]
        total += float(((members - members.mean(0)) ** 2).sum())
    return total


@pytest.fixture
def real_maps(lite0, photographs):
    """Maps `(8, 1280, 49)` of a trained network: two photographs, a corner each."""
    parts = [
        photo[:, top : top + 300, left : left + 300]
        for photo in photographs
        for top in (0, 127)
        for left in (0, 340)
    ]
    images = torch.stack([torch.nn.functional.interpolate(p[None], (224, 224))[0] for p in parts])
    features = {}
    handle = lite0._bn1.register_forward_hook(lambda *args: features.update(out=args[-1].relu()))
    with torch.no_grad():
        lite0(images)
    handle.remove()
    return features["out"].flatten(2)


def test_inertia_on_real_maps_is_that_of_scikit_learn(real_maps):
    """Within 2 % of scikit-learn's k-means with one start, on average over images."""
    ratios = []
    ours = group(KMeans(64), real_maps).labels
    for rows, labels in zip(real_maps, ours, strict=True):
        live = rows[labels >= 0]
        reference = sk.KMeans(64, n_init=1, random_state=0).fit(live.numpy()).inertia_
        ratios.append(inertia(rows.double(), labels) / reference)
    assert np.mean(ratios) < 1.02
