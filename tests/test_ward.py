"""Ward's linkage by matrix products builds the tree that SciPy builds, or none."""

import numpy as np
import pytest
import scipy.cluster.hierarchy
import torch
from scipy.cluster.hierarchy import linkage

from captum_clustered import _ward
from captum_clustered._ward import pays, ward
from captum_clustered.clustering import Agglomerative


def _drawn(seed, n, d, spread=0.0):
    """Points that are nowhere negative; with a spread, of very different sizes."""
    random = np.random.default_rng(seed)
    points = np.abs(random.normal(size=(n, d))) * np.exp(spread * random.normal(size=(n, 1)))
    return points.astype(np.float32)


def _assert_equal(points):
    found, true = ward(points), linkage(points, "ward")
    assert found is not None
    np.testing.assert_array_equal(found[:, [0, 1, 3]], true[:, [0, 1, 3]])
    np.testing.assert_allclose(found[:, 2], true[:, 2], rtol=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("shape", [(2, 1), (3, 2), (40, 2), (300, 5), (400, 49)])
def test_the_tree_is_that_of_scipy(shape, spread, seed):
    _assert_equal(_drawn(seed, *shape, spread))


def test_it_is_on_many_maps_too():
    points = _drawn(0, 1600, 9, 1.0)
    assert pays(points)
    _assert_equal(points)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e30])
def test_any_scale_will_do(factor):
    _assert_equal(_drawn(1, 200, 7).astype(np.float64) * factor)


def test_float32_does_not_decide_where_it_cannot():
    # far from zero, and twice as many points a hair's breadth beside the first: in float32 a
    # difference of distances between them is lost
    random = np.random.default_rng(0)
    points = 100 + random.normal(size=(200, 6))
    _assert_equal(np.concatenate([points, points + 1e-6 * random.normal(size=points.shape)]))


@pytest.mark.parametrize(
    "points",
    [
        np.arange(9.0)[:, None],
        np.repeat(_drawn(0, 60, 5), 3, 0),
        np.random.default_rng(0).integers(0, 3, (200, 4)).astype(float),
        np.zeros((5, 3)),
        # two pairs at equal distances, far apart: no group hesitates, but their order is open
        np.array([[0.0], [1.0], [100.0], [101.0], [500.0]]),
    ],
    ids=["line", "triples", "grid", "one point", "two pairs"],
)
def test_there_is_no_tree_where_a_tie_decides(points):
    assert ward(points) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e200])
def test_there_is_none_of_values_that_cannot_be_squared(value):
    points = _drawn(0, 20, 3).astype(np.float64)
    points[3, 1] = value
    assert ward(points) is None


def test_many_short_maps_do_not_go_through_scipy(monkeypatch):
    features = torch.from_numpy(_drawn(2, 1600, 9))[None]
    expected = linkage(features[0].numpy(), "ward")
    labels = scipy.cluster.hierarchy.fcluster(expected, 12, "maxclust")

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(scipy.cluster.hierarchy, "linkage", refuse)
    found = Agglomerative(12)(features)[0].numpy()
    # the same groups: each number of one goes with one number of the other
    assert len({*zip(found, labels, strict=True)}) == len({*found}) == len({*labels}) == 12
    with pytest.raises(AssertionError):
        Agglomerative(12, linkage="average")(features)


def test_ties_among_many_maps_are_scipys(monkeypatch):
    features = torch.from_numpy(np.random.default_rng(1).integers(0, 9, (1, 1600, 3))).float()
    maps = features[0][features[0].any(1)].numpy()
    assert pays(maps)
    assert ward(maps) is None
    fast = Agglomerative(20)(features)
    monkeypatch.setattr(_ward, "_FEWEST", 9999)
    assert torch.equal(fast, Agglomerative(20)(features))
