"""Checks for your own clusterer: does it do what the explainers rely on?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered.clustering import Groups, as_clusterer, group

__all__ = ["check_clusterer"]


def check_clusterer(clusterer: Any) -> None:
    """Checks that a clusterer keeps the rules that the explainers rely on.

    - Each map of each example gets an integer label.
    - The labels of an example depend on nothing else: not on the other examples of the batch, nor
      on earlier calls.
    - Neither the features nor any random state is changed.
    - Few maps, equal maps and dead maps are not an error, nor are other floating point dtypes.

    Args:
        clusterer (Any): What an explainer takes as `clusterer`: a name, a clusterer, a scikit-learn
            estimator, or a callable from features `(N, C, D)` to labels `(N, C)`.

    Raises:
        AssertionError: If a rule is broken; the message says which one, and how.
        TypeError: If `clusterer` has none of these types, or does not return integers.
        ValueError: If it returns labels of a wrong shape.

    Example::

        >>> from captum_clustered.clustering import KMeans
        >>> check_clusterer(KMeans(n_clusters=4))
    """
    made = as_clusterer(clusterer)

    def cluster(features: Tensor) -> Groups:
        return group(made, features)

    for check in _CHECKS:
        check(cluster)


Cluster = Callable[[Tensor], Groups]


def _features(examples: int = 3, maps: int = 12, size: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(examples, maps, size, generator=generator)  # (N, C, D)


def _check_numbering(cluster: Cluster) -> None:
    groups = cluster(_features())
    for row, sizes in zip(groups.labels, groups.sizes, strict=True):
        used = sorted(set(row.tolist()) - {-1})
        _require(used == list(range(len(used))), f"groups must be numbered 0, 1, …; got {used}")
        count = [int((row == k).sum()) for k in range(groups.n_groups)]
        _require(sizes.tolist() == count, f"sizes must be {count}; got {sizes.tolist()}")
    _require(
        groups.labels.ge(0).any(),
        "some map must be in a group; got labels of -1 only",
    )


def _check_deterministic(cluster: Cluster) -> None:
    first, second = (cluster(_features()).labels.tolist() for _ in range(2))
    _require(first == second, f"a second call must give equal labels; got {first}, then {second}")


def _check_batch(cluster: Cluster) -> None:
    features = _features()
    together = cluster(features).labels
    for n, example in enumerate(features):
        alone = cluster(example.unsqueeze(0)).labels[0]
        _require(
            torch.equal(together[n], alone),
            f"labels must not depend on the batch; example {n} has {together[n].tolist()} in a "
            f"batch and {alone.tolist()} alone",
        )


def _check_random_state(cluster: Cluster) -> None:
    torch_state, numpy_state = torch.get_rng_state(), str(np.random.get_state())
    cluster(_features())
    _require(torch.equal(torch_state, torch.get_rng_state()), "torch's random state was changed")
    _require(numpy_state == str(np.random.get_state()), "NumPy's random state was changed")


def _check_untouched(cluster: Cluster) -> None:
    features = _features()
    before = features.clone()
    cluster(features)
    _require(torch.equal(features, before), "the features were changed in place")


def _check_dead(cluster: Cluster) -> None:
    features = _features()
    features[0, 3] = 0
    features[1] = 0
    labels = cluster(features).labels
    dead = [int(labels[0, 3]), *labels[1].tolist()]
    _require(set(dead) == {-1}, f"dead maps must have the label -1; got {dead}")


def _check_few(cluster: Cluster) -> None:
    for features in (
        _features(maps=1),
        _features(maps=2),
        _features(maps=5)[:, :1].repeat(1, 6, 1),
    ):
        labels = cluster(features).labels
        _require(
            labels.shape == features.shape[:2],
            f"few or equal maps must get labels of shape {tuple(features.shape[:2])}; got "
            f"{tuple(labels.shape)}",
        )


def _check_dtypes(cluster: Cluster) -> None:
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        cluster(_features().to(dtype))


def _check_gradient(cluster: Cluster) -> None:
    labels = cluster(_features().requires_grad_()).labels
    _require(not labels.requires_grad, "labels must have no gradient; got some with requires_grad")


_CHECKS = (
    _check_numbering,
    _check_deterministic,
    _check_batch,
    _check_random_state,
    _check_untouched,
    _check_dead,
    _check_few,
    _check_dtypes,
    _check_gradient,
)


def _require(holds: Any, message: str) -> None:
    if not bool(holds):
        raise AssertionError(f"`clusterer` breaks a rule: {message}.")
