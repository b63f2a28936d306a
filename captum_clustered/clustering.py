"""Groups of similar feature maps: from features ``(N, C, D)`` to labels ``(N, C)``.

A clusterer is any callable that turns features, one flattened map per row, into integer labels, one
per map; ``-1`` puts a map into no group. Each example is clustered on its own. The clusterers here
are frozen dataclasses: they show their settings when printed, and two with equal settings compare
equal and give equal labels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from captum_clustered._checks import check_choice, check_int
from captum_clustered._kmeans import draws_for, k_means
from captum_clustered._ward import pays, ward

__all__ = [
    "CLUSTERERS",
    "Agglomerative",
    "Clusterer",
    "Contiguous",
    "CosineKMeans",
    "EveryMap",
    "GivenLabels",
    "Groups",
    "KMeans",
    "RandomGroups",
    "SklearnClusterer",
    "Tree",
    "as_clusterer",
    "group",
    "numbered",
]

# Bytes of distances at a time. Examples that need more are clustered in several lots.
_BYTES = 64 * 2**20


class Clusterer(Protocol):
    """What the explainers need: features `(N, C, D)` in, integer labels `(N, C)` out.

    The labels may be on the CPU even if the features are not. A clusterer that returns labels on
    another device should have an attribute `n_clusters` that is larger than any of its labels. The
    engine then knows the number of groups without waiting for the device.

    A row of the features is a flattened map. Where maps have values below their baseline, it is a
    part of a map, nowhere negative: first what each map says above its baseline, then, in the same
    order, what each says below. `C` is then twice the number of maps.

    A clusterer may also ask for drops: see :meth:`captum_clustered.adaptive.Adaptive.search`.
    """

    def __call__(self, features: Tensor, /) -> Tensor:
        """Labels each map of each example; -1 means no group."""
        ...


@dataclass(frozen=True)
class Groups:
    """Groups of maps, numbered without gaps.

    Attributes:
        labels (Tensor): int64 `(N, C)`; each example's groups are 0, 1, 2, …; -1 is no group.
        n_groups (int): `K`, at least 1; no label is larger than `K - 1`.
        sizes (Tensor): int64 `(N, K)`: the number of maps in each group; 0 where an example has
            fewer than `K` groups.
    """

    labels: Tensor
    n_groups: int
    sizes: Tensor


def group(clusterer: Clusterer, features: Tensor) -> Groups:
    """Runs a clusterer, leaves out dead maps and numbers the groups without gaps.

    A dead map is zero everywhere: switching it off changes nothing, and it adds nothing to the heat
    map. An example with a value that is not finite has no groups that mean anything; the clusterer
    gets zeros in its place, so that it can group the other examples. `K` is the largest number of
    groups of any example. If the labels are not on the CPU and the clusterer has `n_clusters`, `K`
    is that number, so that nothing is read from the device.

    Args:
        clusterer (Clusterer): From :func:`as_clusterer`.
        features (Tensor): `(N, C, D)`, floating point.

    Returns:
        *Groups*: The labels, the number of groups and their sizes.

    Raises:
        TypeError: If the clusterer does not return an integer tensor.
        ValueError: If its labels have the wrong shape.

    Example::

        >>> features = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])
        >>> group(EveryMap(), features).labels
        tensor([[ 0, -1,  1]])
    """
    peaks = _peaks(features)  # (N, C)
    finite = peaks.isfinite().all(1, keepdim=True)  # (N, 1)
    if features.device.type != "cpu" or not bool(finite.all()):
        features = torch.where(finite.unsqueeze(2), features, 0)
    labels = clusterer(features)
    _check_labels(labels, features)
    live = peaks.ne(0)
    labels = torch.where(finite.to(labels.device), labels, labels.clamp(min=0))
    labels = torch.where(live.to(labels.device), labels.to(torch.int64).clamp(min=-1), -1)  # (N, C)
    bound = getattr(clusterer, "n_clusters", None)
    if labels.device.type == "cpu" or bound is None or isinstance(bound, str):
        if int(labels.max()) >= features.shape[1]:  # any numbers are allowed, huge ones too
            labels = torch.where(labels < 0, -1, torch.unique(labels, return_inverse=True)[1])
        labels = _without_gaps(labels, max(1, int(labels.max()) + 1))
        n_groups = max(1, int(labels.max()) + 1)
    else:
        n_groups = int(min(bound, features.shape[1]))
        labels = _without_gaps(labels, n_groups)
    labels = labels.to(features.device)
    return Groups(labels, n_groups, _sizes(labels, n_groups))


def _check_labels(labels: Any, features: Tensor) -> None:
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = f"dtype {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"`clusterer` must return an integer tensor of labels; got {got}. "
            "Convert with `torch.as_tensor(labels).long()`."
        )
    if labels.shape != features.shape[:2]:
        raise ValueError(
            f"`clusterer` must return one label per map, shape {tuple(features.shape[:2])}; got "
            f"shape {tuple(labels.shape)}. Its input has the shape {tuple(features.shape)}."
        )


def numbered(labels: Tensor) -> Groups:
    """Makes groups from labels that are numbered without gaps; reads the largest label.

    Args:
        labels (Tensor): int64 `(N, C)`, -1 for no group.

    Returns:
        *Groups*: These labels, the number of groups and their sizes.

    Example::

        >>> numbered(torch.tensor([[0, 1, 1, -1]])).sizes
        tensor([[1, 2]])
    """
    n_groups = max(1, int(labels.max()) + 1)
    return Groups(labels, n_groups, _sizes(labels, n_groups))


def alive(features: Tensor) -> Tensor:
    """Which maps are not zero everywhere: bool `(N, C)` for features `(N, C, D)`."""
    return _peaks(features).ne(0)


def _peaks(features: Tensor) -> Tensor:
    """The largest magnitude of each map, `(N, C)`; NaN where there is one."""
    return features.abs().amax(2)  # several times faster than `any`


def _sizes(labels: Tensor, n_groups: int) -> Tensor:
    """The number of maps in each group, `(N, K)`; labels of -1 are counted in a column cut off."""
    counts = labels.new_zeros(len(labels), n_groups + 1)
    return counts.scatter_add_(1, labels + 1, torch.ones_like(labels))[:, 1:]  # (N, K)


def _without_gaps(labels: Tensor, bound: int) -> Tensor:
    """The same groups, numbered without gaps; all labels are less than `bound`."""
    rank = _sizes(labels, bound).gt(0).cumsum(1) - 1  # (N, bound): the new number of each label
    return torch.where(labels < 0, -1, rank.gather(1, labels.clamp(min=0)))  # (N, C)


@dataclass(frozen=True)
class KMeans:
    """k-means of the raw maps, batched over the examples, on the maps' own device.

    Centres are chosen by greedy k-means++ (Arthur and Vassilvitskii 2007), several in a step: 12
    candidates are drawn, and the best four are taken one after the other. Lloyd's iterations
    follow. All examples share the same random draws, so the labels of one example do not depend on
    the others in the batch. No global random state is touched.

    Args:
        n_clusters (int, optional): Number of groups `K`; fewer if there are fewer distinct maps.
            Default: 64
        n_iter (int, optional): Largest number of Lloyd iterations. Default: 4
        seed (int, optional): Seed of the random draws. Default: 0

    Raises:
        ValueError: If `n_clusters` or `n_iter` is not an int >= 1.

    Example::

        >>> features = torch.tensor([[[0.1, 0.0], [0.0, 0.1], [9.0, 9.0], [9.1, 9.0]]])
        >>> KMeans(n_clusters=2)(features).tolist()
        [[1, 1, 0, 0]]
    """

    n_clusters: int = 64
    n_iter: int = 4
    seed: int = 0

    metric: ClassVar[str] = "euclidean"

    def __post_init__(self) -> None:
        check_int("n_clusters", self.n_clusters, 1)
        check_int("n_iter", self.n_iter, 1)

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`; the labels of dead maps mean nothing."""
        features = features.detach()
        c = features.shape[1]
        k = min(self.n_clusters, c)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(draws_for(k), generator=generator)
        draws = draws.to(features.device, _at_least_float32(features.dtype))
        lot = max(1, _BYTES // (4 * c * k))
        with ExitStack() as stack:
            # many small operations, a tenth of whose time is autograd's
            stack.enter_context(torch.inference_mode())
            if torch.is_autocast_enabled(features.device.type):  # it would round the distances
                stack.enter_context(torch.autocast(features.device.type, enabled=False))
            labels = [self._fit(part, draws, k) for part in features.split(lot)]
        return torch.cat(labels)

    def _fit(self, features: Tensor, draws: Tensor, k: int) -> Tensor:
        live = alive(features).to(draws.dtype)  # (N, C)
        points = features.to(draws.dtype)  # (N, C, D)
        cosine = self.metric == "cosine"
        if cosine:
            points = F.normalize(points, dim=2)
        else:  # without their mean, since a large common offset costs the distances precision
            mean = points.sum(1, keepdim=True) / live.sum(1).clamp(min=1)[:, None, None]
            points = (points - mean) * live.unsqueeze(2)
        return k_means(points, live, draws, k, self.n_iter, cosine)


@dataclass(frozen=True)
class CosineKMeans(KMeans):
    """k-means of the maps' directions (spherical k-means): their strength does not count.

    Args:
        n_clusters (int, optional): Number of groups `K`. Default: 64
        n_iter (int, optional): Largest number of Lloyd iterations. Default: 4
        seed (int, optional): Seed of the random draws. Default: 0

    Raises:
        ValueError: If `n_clusters` or `n_iter` is not an int >= 1.

    Example::

        >>> features = torch.tensor([[[1.0, 0.0], [50.0, 1.0], [0.0, 1.0]]])
        >>> labels = CosineKMeans(n_clusters=2)(features)
        >>> bool(labels[0, 0] == labels[0, 1]), bool(labels[0, 0] == labels[0, 2])
        (True, False)
    """

    metric: ClassVar[str] = "cosine"


@dataclass(frozen=True)
class Agglomerative:
    """Hierarchical clustering with SciPy's linkage, exact and deterministic, on the CPU.

    Args:
        n_clusters (int or str, optional): Number of groups `K`; equal maps always share a group.
            ``"auto"`` chooses it for each example by :meth:`Tree.largest_gap`. Default: 64
        linkage (str, optional): ``"ward"``, ``"average"`` or ``"complete"``. Default: ``"ward"``
        metric (str, optional): ``"euclidean"`` or ``"cosine"`` (not with Ward).
            Default: ``"euclidean"``

    Raises:
        ValueError: If an argument is none of these, or Ward's linkage is to use cosine distances.

    Example::

        >>> features = torch.tensor([[[1.0], [1.1], [5.0], [9.0]]])
        >>> tree = Agglomerative().tree(features)
        >>> tree.cut(2).tolist(), tree.cut(3).tolist()
        ([[0, 0, 1, 1]], [[0, 0, 1, 2]])
    """

    n_clusters: int | Literal["auto"] = 64
    linkage: Literal["ward", "average", "complete"] = "ward"
    metric: Literal["euclidean", "cosine"] = "euclidean"

    def __post_init__(self) -> None:
        if self.n_clusters != "auto":
            check_int("n_clusters", self.n_clusters, 1, remedy="Or pass 'auto'.")
        check_choice("linkage", self.linkage, ("ward", "average", "complete"))
        check_choice("metric", self.metric, ("euclidean", "cosine"))
        if self.linkage == "ward" and self.metric != "euclidean":
            raise ValueError(
                f"`metric` must be 'euclidean' with Ward's linkage; got {self.metric!r}. "
                "Use linkage='average' for cosine distances."
            )

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        return self.tree(features).cut(self.n_clusters)

    def tree(self, features: Tensor) -> Tree:
        """Joins the maps of each example into a tree, which can be cut into any number of groups.

        Args:
            features (Tensor): `(N, C, D)`.

        Returns:
            *Tree*: One tree per example.
        """
        from scipy.cluster.hierarchy import linkage

        live = alive(features).cpu()
        points = features.detach().to(_at_least_float32(features.dtype)).cpu()
        merges = []
        for rows, keep in zip(points, live, strict=True):
            maps = rows[keep].numpy()
            tree = ward(maps) if self.linkage == "ward" and pays(maps) else None
            if tree is None and len(maps) > 1:
                tree = linkage(maps, self.linkage, self.metric)
            merges.append(tree)
        return Tree(live, merges)


@dataclass(frozen=True)
class Tree:
    """The dendrograms of a batch: each example's tree holds its groups for every `K`.

    Attributes:
        live (Tensor): bool `(N, C)`: which maps are in the trees.
        merges (list): For each example SciPy's linkage matrix, or None if fewer than two maps live.
    """

    live: Tensor
    merges: list[Any]

    def cut(self, n_clusters: int | Literal["auto"]) -> Tensor:
        """Cuts each tree into at most `n_clusters` groups.

        Args:
            n_clusters (int or str): The same number for all examples, or ``"auto"`` for each
                example's own number, see :meth:`largest_gap`.

        Returns:
            *Tensor*: int64 labels `(N, C)`; dead maps are -1.
        """
        from scipy.cluster.hierarchy import fcluster

        labels = torch.full(self.live.shape, -1, dtype=torch.int64)
        counts = self.largest_gap() if n_clusters == "auto" else [n_clusters] * len(labels)
        for row, keep, merges, k in zip(labels, self.live, self.merges, counts, strict=True):
            if merges is None:
                row[keep] = 0
            else:
                cut = torch.from_numpy(fcluster(merges, k, "maxclust"))
                row[keep] = _by_first_member(cut)
        return labels

    def largest_gap(self, low: int = 8, high: int = 128) -> list[int]:
        """For each example, the number of groups where the heights of the tree have a gap.

        Let :math:`h_K` be the height at which `K` groups become `K - 1`. The rule takes the `K`
        with the largest ratio :math:`h_K / h_{K+1}`. The bounds matter: without them this rule,
        like the silhouette, finds two groups on nearly all images, too few for a heat map.

        Args:
            low (int, optional): The smallest number of groups. Default: 8
            high (int, optional): The largest number of groups. Default: 128

        Returns:
            *list[int]*: One number per example; `low` if the example has too few maps to choose.

        Example::

            >>> features = torch.tensor([[[1.0], [1.1], [5.0], [5.2], [9.0], [9.1]]])
            >>> Agglomerative().tree(features).largest_gap(low=2)
            [3]
        """
        found = []
        for merges in self.merges:
            heights = [] if merges is None else merges[::-1, 2]  # h_2, h_3, …: from the top
            ratios = {
                k: heights[k - 2] / max(heights[k - 1], 1e-12 * heights[0])
                for k in range(max(low, 2), min(high, len(heights)) + 1)
                if heights[k - 2] > 0
            }
            found.append(max(ratios, key=ratios.__getitem__, default=low))
        return found


def _by_first_member(labels: Tensor) -> Tensor:
    """The same groups, numbered in the order of their first members."""
    values, inverse = torch.unique(labels, return_inverse=True)
    members = torch.arange(len(labels))
    first = torch.full((len(values),), len(labels)).scatter_reduce_(0, inverse, members, "amin")
    return first.argsort().argsort()[inverse]


@dataclass(frozen=True)
class SklearnClusterer:
    """Any scikit-learn clusterer; a copy is fitted to the live maps of each example, on the CPU.

    An estimator whose `random_state` is None gets `seed` instead, so that labels are reproducible
    and NumPy's global generator is not used. An `n_clusters` above the number of maps is lowered.

    Args:
        estimator (estimator): Anything with `fit_predict`; it is cloned, never fitted itself.
        noise (str, optional): What to do with maps that the estimator labels -1, as DBSCAN does:
            ``"own"`` makes each of them a group, ``"none"`` leaves them out of the explanation.
            Default: ``"own"``
        seed (int, optional): The `random_state` for an estimator that has none. Default: 0

    Raises:
        ValueError: If `noise` is neither of these.

    Example::

        >>> from sklearn.cluster import DBSCAN
        >>> features = torch.tensor([[[1.0], [1.1], [5.0], [9.0]]])
        >>> SklearnClusterer(DBSCAN(eps=0.5, min_samples=2))(features).tolist()
        [[0, 0, 1, 2]]
    """

    estimator: Any
    noise: Literal["own", "none"] = "own"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("noise", self.noise, ("own", "none"))

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        live = alive(features).cpu()
        points = features.detach().to(_at_least_float32(features.dtype)).cpu()
        labels = torch.full(live.shape, -1, dtype=torch.int64)
        for row, keep, rows in zip(labels, live, points, strict=True):
            if keep.any():
                row[keep] = self._fit(rows[keep])
        return labels

    def _fit(self, rows: Tensor) -> Tensor:
        from sklearn.base import clone
        from sklearn.exceptions import ConvergenceWarning

        if len(rows) == 1:  # many estimators refuse a single sample
            return torch.zeros(1, dtype=torch.int64)
        estimator = clone(self.estimator)
        settings = estimator.get_params(deep=False)
        if "random_state" in settings and settings["random_state"] is None:
            estimator.set_params(random_state=self.seed)
        count = settings.get("n_clusters")
        if isinstance(count, int) and count > len(rows):
            estimator.set_params(n_clusters=len(rows))
        with warnings.catch_warnings():
            # fewer distinct maps than clusters are not the user's mistake
            warnings.simplefilter("ignore", ConvergenceWarning)
            labels = torch.as_tensor(estimator.fit_predict(rows.numpy())).to(torch.int64)
        if self.noise == "own":
            noise = labels < 0
            labels[noise] = labels.max().clamp(min=-1) + 1 + torch.arange(int(noise.sum()))
        return labels


@dataclass(frozen=True)
class EveryMap:
    """Each live map is a group: with the weighting ``"drop"`` this is Ablation-CAM.

    Example::

        >>> EveryMap()(torch.ones(1, 3, 4)).tolist()
        [[0, 1, 2]]
    """

    n_clusters: ClassVar[float] = math.inf

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        live = alive(features)
        return torch.where(live, live.cumsum(1) - 1, -1)


@dataclass(frozen=True)
class Contiguous:
    """Neighbouring channels form a group, whatever they show (the default of Group-CAM).

    Args:
        n_clusters (int, optional): Number of groups, made as by `torch.chunk`. Default: 64

    Raises:
        ValueError: If `n_clusters` is not an int >= 1.

    Example::

        >>> Contiguous(n_clusters=2)(torch.ones(1, 5, 4)).tolist()
        [[0, 0, 0, 1, 1]]
    """

    n_clusters: int = 64

    def __post_init__(self) -> None:
        check_int("n_clusters", self.n_clusters, 1)

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        n, c = features.shape[:2]
        size = math.ceil(c / min(self.n_clusters, c))
        return (torch.arange(c, device=features.device) // size).expand(n, c)


@dataclass(frozen=True)
class RandomGroups:
    """Random groups: the null hypothesis of "clustering helps".

    Args:
        n_clusters (int, optional): Number of groups, all of the same size up to one map.
            Default: 64
        like (Clusterer, optional): Takes the sizes of the groups from this clusterer and draws
            their members at random; `n_clusters` is then not used. Default: None
        seed (int, optional): Seed of the random draws. Default: 0

    Raises:
        ValueError: If `n_clusters` is not an int >= 1.

    Example::

        >>> RandomGroups(n_clusters=2)(torch.ones(1, 6, 4)).sum().item()  # three maps in each
        3
    """

    n_clusters: int = 64
    like: Clusterer | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_int("n_clusters", self.n_clusters, 1)
        if self.like is not None:
            object.__setattr__(self, "n_clusters", getattr(self.like, "n_clusters", None))

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        c = features.shape[1]
        live = alive(features)
        if self.like is None:
            rank = live.cumsum(1) - 1
            total = live.sum(1, keepdim=True).clamp(min=1)
            labels = (rank * total.clamp(max=self.n_clusters)).div(total, rounding_mode="floor")
        else:
            labels = self.like(features).to(features.device, torch.int64)
        labels = torch.where(live, labels, -1)  # (N, C)
        keys = torch.rand(c, generator=torch.Generator().manual_seed(self.seed))
        keys = keys.to(features.device).expand_as(live)
        # the j-th live map in random order gets the label of the j-th live map in channel order
        order = torch.where(live, keys, 2.0).argsort(1)
        places = (~live).to(torch.int64).argsort(dim=1, stable=True)
        return labels.scatter(1, order, labels.gather(1, places))


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """Labels that are known beforehand.

    Args:
        labels (Tensor): `(C,)` or `(1, C)` for all examples, or `(N, C)`.
    """

    labels: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """The labels, `(N, C)`, for features `(N, C, D)`."""
        n, c = features.shape[:2]
        if self.labels.shape not in {(c,), (1, c), (n, c)}:
            raise ValueError(
                f"`clusterer` given as labels must have shape {(c,)}, or {(n, c)} for one row per "
                f"example; got {tuple(self.labels.shape)}. There are {c} maps, or parts of maps."
            )
        return self.labels.expand(n, c)


CLUSTERERS: dict[str, Callable[[Any], Clusterer]] = {
    "kmeans": KMeans,
    "cosine": CosineKMeans,
    "agglomerative": Agglomerative,
    "contiguous": Contiguous,
    "random": RandomGroups,
    "every-map": lambda n_clusters: EveryMap(),  # noqa: ARG005
}
"""The names that :func:`as_clusterer` knows: each makes a clusterer from a number of groups."""


def as_clusterer(
    clusterer: Any, n_clusters: int | Literal["auto"] = 64, seed: int | None = None
) -> Clusterer:
    """Turns whatever can be passed as `clusterer` into a clusterer.

    Args:
        clusterer (str, estimator, callable or Tensor): A name (a key of :data:`CLUSTERERS`), a
            scikit-learn estimator, a callable from features `(N, C, D)` to labels `(N, C)`, or the
            labels.
        n_clusters (int or str, optional): Number of groups if `clusterer` is a name, else ignored.
            ``"auto"`` works with ``"agglomerative"`` only. Default: 64
        seed (int, optional): Seed if `clusterer` is the name of one that draws at random, else
            ignored. Default: None (the clusterer's own default)

    Returns:
        *Clusterer*: The clusterer.

    Raises:
        TypeError: If `clusterer` is none of these.
        ValueError: If the name is unknown, or `n_clusters` is not an int >= 1.

    Example::

        >>> as_clusterer("kmeans", n_clusters=16)
        KMeans(n_clusters=16, n_iter=4, seed=0)
    """
    if isinstance(clusterer, str):
        check_choice("clusterer", clusterer, tuple(CLUSTERERS))
        if n_clusters == "auto" and clusterer != "agglomerative":
            raise ValueError(
                f"`n_clusters` must be an int for clusterer={clusterer!r}; got 'auto'. Pass "
                "clusterer='agglomerative', whose tree can be cut at any number."
            )
        if n_clusters != "auto":
            check_int("n_clusters", n_clusters, 1)
        made = CLUSTERERS[clusterer](n_clusters)
        return made if seed is None or not hasattr(made, "seed") else replace(made, seed=seed)  # type: ignore[type-var]
    if isinstance(clusterer, Tensor):
        return GivenLabels(clusterer)
    if hasattr(clusterer, "fit_predict") and not isinstance(clusterer, type):
        return SklearnClusterer(clusterer)
    if callable(clusterer) and not isinstance(clusterer, type):
        return clusterer  # type: ignore[no-any-return]
    raise TypeError(
        "`clusterer` must be a name, a scikit-learn estimator, a callable or a tensor of labels; "
        f"got {clusterer!r}. The names are {', '.join(CLUSTERERS)}."
    )


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
