"""Groups of similar feature maps: from features ``(N, C, D)`` to labels ``(N, C)``.

A clusterer is any callable that turns features, one flattened map per row, into integer labels, one
per map; ``-1`` puts a map into no group. Each example is clustered on its own. The clusterers here
are frozen dataclasses: equal settings compare equal, print themselves, and give equal labels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

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

_BYTES = 64 * 2**20  # of distances at a time; more examples are clustered one lot after the other


class Clusterer(Protocol):
    """What the explainers need: features `(N, C, D)` in, integer labels `(N, C)` out.

    Labels may come on the CPU whatever the features' device. A clusterer that returns them on
    another device should have an attribute `n_clusters`, more than its largest label, so that the
    engine need not wait for the device to know how many groups there are.
    """

    def __call__(self, features: Tensor, /) -> Tensor:
        """Labels each map of each example; -1 means no group."""
        ...


# of k-means++ a step: few steps, since each is many small operations; small enough for one thread
_CANDIDATES, _TAKEN = 12, 4


@dataclass(frozen=True)
class Groups:
    """Groups of maps, numbered without gaps.

    Attributes:
        labels (Tensor): int64 `(N, C)`; each example's groups are 0, 1, 2, …; -1 is no group.
        n_groups (int): `K`, no label is larger than `K - 1`. At least 1.
        sizes (Tensor): int64 `(N, K)`: the number of maps in each group, 0 where an example has
            fewer groups than another.
    """

    labels: Tensor
    n_groups: int
    sizes: Tensor


def group(clusterer: Clusterer, features: Tensor) -> Groups:
    """Runs a clusterer, leaves out dead maps and numbers the groups without gaps.

    A dead map is zero everywhere: to switch it off changes nothing, and it adds nothing to the heat
    map. `K` is the largest number of groups that an example has, unless the labels lie on another
    device than the CPU and the clusterer has `n_clusters`: then that is `K`, and nothing is read.

    Args:
        clusterer (Clusterer): From :func:`as_clusterer`.
        features (Tensor): `(N, C, D)`, floating point.

    Returns:
        *Groups*: The labels and their count.

    Raises:
        TypeError: If the clusterer does not return an integer tensor.
        ValueError: If its labels have the wrong shape.

    Example::

        >>> features = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])
        >>> group(EveryMap(), features).labels
        tensor([[ 0, -1,  1]])
    """
    n, c = features.shape[:2]
    labels = clusterer(features)
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
        got = f"dtype {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"`clusterer` must return an integer tensor of labels; got {got}. "
            "Convert with `torch.as_tensor(labels).long()`."
        )
    if labels.shape != (n, c):
        raise ValueError(
            f"`clusterer` must return one label per map, shape {(n, c)}; got shape "
            f"{tuple(labels.shape)}. It is given features of shape {tuple(features.shape)}."
        )
    live = alive(features)
    labels = torch.where(live.to(labels.device), labels.to(torch.int64).clamp(min=-1), -1)
    bound = getattr(clusterer, "n_clusters", None)
    if labels.device.type == "cpu" or bound is None:
        if int(labels.max()) >= c:  # any numbers will do
            labels = torch.where(labels < 0, -1, torch.unique(labels, return_inverse=True)[1])
        labels = _without_gaps(labels, max(1, int(labels.max()) + 1))
        n_groups = max(1, int(labels.max()) + 1)
    else:
        n_groups = int(min(bound, c))
        labels = _without_gaps(labels, n_groups)
    labels = labels.to(features.device)
    return Groups(labels, n_groups, _sizes(labels, n_groups))


def numbered(labels: Tensor) -> Groups:
    """Groups that have their numbers already; reads their count.

    Args:
        labels (Tensor): int64 `(N, C)`, -1 for no group.

    Returns:
        *Groups*: With these labels.

    Example::

        >>> numbered(torch.tensor([[0, 1, 1, -1]])).sizes
        tensor([[1, 2]])
    """
    n_groups = max(1, int(labels.max()) + 1)
    return Groups(labels, n_groups, _sizes(labels, n_groups))


def alive(features: Tensor) -> Tensor:
    """Which maps are not zero everywhere: bool `(N, C)` for features `(N, C, D)`."""
    return features.abs().amax(2).ne(0)  # a maximum is several times faster than `any`


def _sizes(labels: Tensor, n_groups: int) -> Tensor:
    counts = labels.new_zeros(len(labels), n_groups + 1)
    return counts.scatter_add_(1, labels + 1, torch.ones_like(labels))[:, 1:]


def _without_gaps(labels: Tensor, bound: int) -> Tensor:
    rank = _sizes(labels, bound).gt(0).cumsum(1) - 1
    return torch.where(labels < 0, -1, rank.gather(1, labels.clamp(min=0)))


@dataclass(frozen=True)
class KMeans:
    """k-means of the raw maps, batched over the examples, on the maps' own device.

    Seeding is greedy k-means++ (Arthur and Vassilvitskii 2007) in blocks: of 12 candidates drawn at
    a time the best four are taken, one after the other; then come Lloyd's iterations. All examples
    share the same random draws, so that an example's labels do not depend on its neighbours; no
    global random state is touched.

    Args:
        n_clusters (int, optional): `K`. Fewer distinct maps give fewer groups. Default: 64
        n_iter (int, optional): Lloyd iterations at most. Default: 4
        seed (int, optional): Of the random draws. Default: 0

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
        _check_count("n_clusters", self.n_clusters)
        _check_count("n_iter", self.n_iter)

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`; dead maps get some label or other."""
        features = features.detach()
        c = features.shape[1]
        k = min(self.n_clusters, c)
        generator = torch.Generator().manual_seed(self.seed)
        draws = torch.rand(1 + math.ceil((k - 1) / _TAKEN), _CANDIDATES, generator=generator)
        draws = draws.to(features.device, _at_least_float32(features.dtype))
        lot = max(1, _BYTES // (4 * c * k))
        return torch.cat([self._fit(part, draws, k) for part in features.split(lot)])

    def _fit(self, features: Tensor, draws: Tensor, k: int) -> Tensor:
        live = alive(features).to(draws.dtype)
        points = features.to(draws.dtype)
        if self.metric == "cosine":
            points = F.normalize(points, dim=2)
        else:  # centred, since large common offsets cost precision in the distances
            mean = points.sum(1, keepdim=True) / live.sum(1).clamp(min=1)[:, None, None]
            points = (points - mean) * live.unsqueeze(2)
        centres = _plus_plus(points, live, draws, k)
        labels = _nearest(points, centres)
        for _ in range(self.n_iter):
            centres = self._centres(points, live, labels, centres)
            previous, labels = labels, _nearest(points, centres)
            # further steps would change nothing; elsewhere the question costs more than the answer
            if labels.device.type == "cpu" and torch.equal(labels, previous):
                break
        return labels

    def _centres(self, points: Tensor, live: Tensor, labels: Tensor, old: Tensor) -> Tensor:
        """Means of the groups; an empty group keeps its centre."""
        n, k, d = old.shape
        rows = labels + torch.arange(0, n * k, k, device=labels.device).unsqueeze(1)
        sums = old.new_zeros(n * k, d)  # whole rows, which is several times faster than scattering
        sums = sums.index_add_(0, rows.flatten(), points.flatten(0, 1)).reshape(n, k, d)
        counts = old.new_zeros(old.shape[:2]).scatter_add_(1, labels, live).unsqueeze(2)
        means = F.normalize(sums, dim=2) if self.metric == "cosine" else sums / counts.clamp(min=1)
        return torch.where(counts > 0, means, old)


@dataclass(frozen=True)
class CosineKMeans(KMeans):
    """k-means of the maps' directions (spherical k-means): strength is ignored, only shape counts.

    Args:
        n_clusters (int, optional): `K`. Default: 64
        n_iter (int, optional): Lloyd iterations at most. Default: 4
        seed (int, optional): Of the random draws. Default: 0

    Example::

        >>> features = torch.tensor([[[1.0, 0.0], [50.0, 1.0], [0.0, 1.0]]])
        >>> labels = CosineKMeans(n_clusters=2)(features)
        >>> bool(labels[0, 0] == labels[0, 1]), bool(labels[0, 0] == labels[0, 2])
        (True, False)
    """

    metric: ClassVar[str] = "cosine"


def _plus_plus(points: Tensor, live: Tensor, draws: Tensor, k: int) -> Tensor:
    """Greedy k-means++ seeding: of the candidates drawn, those that leave the least distance."""
    n, c, d = points.shape
    t = draws.shape[1]
    squares = points.square().sum(2)
    rows, turned = points.flatten(0, 1), points.transpose(1, 2)
    example = torch.arange(n, device=points.device).unsqueeze(1)
    weights = live  # the first centre is any live map
    rest = torch.where(live > 0, torch.inf, 0)  # to the nearest centre so far
    # there are many steps, and each is small: their memory is used again
    distances = points.new_empty(n, t, c)
    chosen: list[Tensor] = []
    for uniform in draws:
        index = _draw(weights, uniform.expand(n, -1)) + c * example
        drawn = rows.index_select(0, index.flatten()).reshape(n, t, d)
        torch.baddbmm(squares.unsqueeze(1), drawn, turned, alpha=-2, out=distances)
        distances += squares.take(index).unsqueeze(2)
        for _ in range(min(_TAKEN, k - len(chosen)) if chosen else 1):
            torch.minimum(distances, rest.unsqueeze(1), out=distances)
            best = distances.sum(2).argmin(1, keepdim=True)
            rest = distances.flatten(0, 1).index_select(0, (best + t * example).flatten())
            chosen.append(index.gather(1, best))
        weights = rest.clamp(min=0)
    return rows.index_select(0, torch.cat(chosen, 1).flatten()).reshape(n, k, d)


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Indices `(N, T)` drawn in proportion to `weights` `(N, C)`, given draws from [0, 1)."""
    total = weights.cumsum(1)
    index = torch.searchsorted(total, (uniform * total[:, -1:]).contiguous(), right=True)
    return index.clamp(max=weights.shape[1] - 1)


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    offset = centres.square().sum(2).unsqueeze(1)
    return torch.baddbmm(offset, points, centres.transpose(1, 2), alpha=-2).argmin(2)


@dataclass(frozen=True)
class Agglomerative:
    """Hierarchical clustering with SciPy's linkage, exact and deterministic, on the CPU.

    Args:
        n_clusters (int or str, optional): `K`; maps that are equal are never parted. ``"auto"``
            chooses it for each example by :meth:`Tree.largest_gap`. Default: 64
        linkage (str, optional): ``"ward"``, ``"average"`` or ``"complete"``. Default: ``"ward"``
        metric (str, optional): ``"euclidean"`` or ``"cosine"`` (not with Ward).
            Default: ``"euclidean"``

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
            _check_count("n_clusters", self.n_clusters)
        _check_choice("linkage", self.linkage, ("ward", "average", "complete"))
        _check_choice("metric", self.metric, ("euclidean", "cosine"))
        if self.linkage == "ward" and self.metric != "euclidean":
            raise ValueError(
                f"`metric` must be 'euclidean' with Ward's linkage; got {self.metric!r}. "
                "Use linkage='average' for cosine distances."
            )

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        return self.tree(features).cut(self.n_clusters)

    def tree(self, features: Tensor) -> Tree:
        """Joins the maps of each example step by step; the tree can be cut for any `K`."""
        from scipy.cluster.hierarchy import linkage

        live = alive(features).cpu()
        points = features.detach().to(_at_least_float32(features.dtype)).cpu()
        merges = [
            linkage(rows[keep].numpy(), self.linkage, self.metric) if keep.sum() > 1 else None
            for rows, keep in zip(points, live, strict=True)
        ]
        return Tree(live, merges)


@dataclass(frozen=True)
class Tree:
    """The dendrograms of a batch: one tree per example holds the groups for every `K`."""

    live: Tensor
    merges: list[Any]

    def cut(self, n_clusters: int | Literal["auto"]) -> Tensor:
        """Labels `(N, C)` of at most `n_clusters` groups; dead maps are -1.

        Args:
            n_clusters (int or str): The same for all examples, or ``"auto"`` for what
                :meth:`largest_gap` says of each.
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
        """The number of groups at which the tree's heights part most, for each example.

        Of `K` groups the next two would be joined at a height :math:`h_K`, and :math:`h_{K+1}` is
        that of the join before. The `K` with the largest ratio :math:`h_K / h_{K+1}` is taken. The
        bounds matter: without them this rule, like the silhouette, finds two groups on nearly all
        images, which is too few for a heat map.

        Args:
            low (int, optional): The smallest number that is considered. Default: 8
            high (int, optional): The largest. Default: 128

        Returns:
            *list[int]*: One number per example; `low` where an example has no more maps.

        Example::

            >>> features = torch.tensor([[[1.0], [1.1], [5.0], [5.2], [9.0], [9.1]]])
            >>> Agglomerative().tree(features).largest_gap(low=2)
            [3]
        """
        found = []
        for merges in self.merges:
            heights = [] if merges is None else merges[::-1, 2]  # h_2, h_3, ... from the top
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
    """Any scikit-learn clusterer, fitted afresh to each example's live maps on the CPU.

    An estimator with a `random_state` of None is given one, so that the labels are reproducible and
    NumPy's global generator stays untouched. `n_clusters` is lowered where there are fewer maps.

    Args:
        estimator (estimator): Anything with `fit_predict`; it is cloned, never fitted itself.
        noise (str, optional): What becomes of maps that the estimator labels -1 (DBSCAN and its
            kin): ``"own"`` makes each a group of its own, ``"none"`` leaves them out of the
            explanation. Default: ``"own"``
        seed (int, optional): The `random_state` for an estimator that has none. Default: 0

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
        _check_choice("noise", self.noise, ("own", "none"))

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
            warnings.simplefilter("ignore", ConvergenceWarning)  # equal maps are no mistake
            labels = torch.as_tensor(estimator.fit_predict(rows.numpy())).to(torch.int64)
        if self.noise == "own":
            noise = labels < 0
            labels[noise] = labels.max().clamp(min=-1) + 1 + torch.arange(int(noise.sum()))
        return labels


@dataclass(frozen=True)
class EveryMap:
    """Every live map is a group of its own: with the weighting ``"drop"`` this is Ablation-CAM.

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
        n_clusters (int, optional): `K`; the groups are those of `torch.chunk`. Default: 64

    Example::

        >>> Contiguous(n_clusters=2)(torch.ones(1, 5, 4)).tolist()
        [[0, 0, 0, 1, 1]]
    """

    n_clusters: int = 64

    def __post_init__(self) -> None:
        _check_count("n_clusters", self.n_clusters)

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` for features `(N, C, D)`."""
        n, c = features.shape[:2]
        size = math.ceil(c / min(self.n_clusters, c))
        return (torch.arange(c, device=features.device) // size).expand(n, c)


@dataclass(frozen=True)
class RandomGroups:
    """Random groups: the null hypothesis of "clustering helps".

    Args:
        n_clusters (int, optional): Number of groups of equal size. Default: 64
        like (Clusterer, optional): A clusterer whose group sizes are kept while their members are
            drawn at random; `n_clusters` is then not used. Default: None
        seed (int, optional): Of the random draws. Default: 0

    Example::

        >>> RandomGroups(n_clusters=2)(torch.ones(1, 6, 4)).sum().item()  # three maps in each
        3
    """

    n_clusters: int = 64
    like: Clusterer | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_count("n_clusters", self.n_clusters)
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
        labels = torch.where(live, labels, -1)
        keys = torch.rand(c, generator=torch.Generator().manual_seed(self.seed))
        keys = keys.to(features.device).expand_as(live)
        # the j-th live map in random order takes the label of the j-th live map in channel order
        order = torch.where(live, keys, 2.0).argsort(1)
        places = (~live).to(torch.int64).argsort(dim=1, stable=True)
        return labels.scatter(1, order, labels.gather(1, places))


@dataclass(frozen=True, eq=False)
class GivenLabels:
    """Labels that are known beforehand: `(C,)` or `(1, C)` for all examples, or `(N, C)`."""

    labels: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """The labels, for features `(N, C, D)`."""
        n, c = features.shape[:2]
        if self.labels.shape not in {(c,), (1, c), (n, c)}:
            raise ValueError(
                f"`clusterer` given as labels must have shape {(c,)}, or {(n, c)} for one row per "
                f"example; got {tuple(self.labels.shape)}. The layer has {c} maps."
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
"""Names for :func:`as_clusterer`, each with what makes the clusterer from a number of groups."""


def as_clusterer(
    clusterer: Any, n_clusters: int | Literal["auto"] = 64, seed: int | None = None
) -> Clusterer:
    """Turns all that can be passed as `clusterer` into a clusterer.

    Args:
        clusterer (str, estimator, callable or Tensor): A name (a key of :data:`CLUSTERERS`), a
            scikit-learn estimator, a callable from features `(N, C, D)` to labels `(N, C)`, or the
            labels.
        n_clusters (int or str, optional): Number of groups, for a name; all else brings its own.
            ``"auto"`` is for ``"agglomerative"`` only. Default: 64
        seed (int, optional): Seed, for the name of a clusterer that draws at random.
            Default: None (the clusterer's own default)

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
        _check_choice("clusterer", clusterer, tuple(CLUSTERERS))
        if n_clusters == "auto" and clusterer != "agglomerative":
            raise ValueError(
                f"`n_clusters` must be an int for clusterer={clusterer!r}; got 'auto', which needs "
                "the tree of 'agglomerative'."
            )
        if n_clusters != "auto":
            _check_count("n_clusters", n_clusters)
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
        f"got {clusterer!r}. Names are {', '.join(CLUSTERERS)}."
    )


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` must be an int >= 1; got {value!r}.")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32
