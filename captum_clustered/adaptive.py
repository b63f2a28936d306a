"""Groups found by asking the model: a tree of maps is split further where the score drops most."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_clustered._checks import check_int
from captum_clustered.clustering import Agglomerative

__all__ = ["Adaptive"]

_SPLITS = 4  # groups that are split in a round: each round costs a wait for the device


@dataclass(frozen=True)
class Adaptive:
    """Groups from a tree of the maps, split where the score drops most, within a budget.

    The maps of an example are joined into a tree by Ward's linkage. First the tree is cut into half
    as many groups as the budget has evaluations, and each group is switched off. Then rounds
    follow: the four groups with the largest drops in magnitude are split in two, and both parts are
    switched off, until the budget is spent. So with 32 evaluations 16 groups become 24. Splitting
    groups where the model reacts is the idea of Ablation-CAM++ (Salama, Adly, Torki, ICIP 2022),
    which has no public code; the rule here is our own.

    For :class:`captum_clustered.ClusteredLayerAblation` only. Called like any other clusterer, it
    returns the groups that it starts from. Drops are read from the device after each round.

    Args:
        budget (int, optional): Number of groups that are switched off for an example, at least 2.
            Default: 32

    Raises:
        ValueError: If `budget` is not an int >= 2.

    Example::

        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(36, 2)).eval()
        >>> cam = ClusteredLayerAblation(model, model[0], clusterer=Adaptive(budget=8))
        >>> cam.explain(torch.rand(1, 1, 4, 4), target=1).ablated_scores.shape
        torch.Size([1, 6])
    """

    budget: int = 32

    def __post_init__(self) -> None:
        check_int("budget", self.budget, 2)

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` of the groups that the search starts from, for features `(N, C, D)`."""
        return Agglomerative().tree(features).cut(self.budget // 2)

    def search(self, features: Tensor) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Asks for the drops of groups, round by round, as a generator.

        Args:
            features (Tensor): `(N, C, D)`.

        Yields:
            Labels `(N, C)` of the groups to switch off next, -1 for a map that stays on.

        Receives:
            The drops `(N, K)` of these groups.

        Returns:
            *tuple*: The labels of the final groups, `(N, C)`, and their drops, `(N, K)`.
        """
        tree = Agglomerative().tree(features)
        examples = [
            _Example.of(tree.live[i], tree.merges[i], self.budget // 2)
            for i in range(len(features))
        ]
        left = self.budget - self.budget // 2
        asked = [example.leaves for example in examples]
        while True:  # once at least, if no map is alive
            labels = [example.labels(nodes) for example, nodes in zip(examples, asked, strict=True)]
            drops = yield torch.stack(labels).to(features.device)
            for example, nodes, row in zip(examples, asked, drops.tolist(), strict=True):
                example.drops.update(zip(nodes, row, strict=False))
            count = min(_SPLITS, left // 2)
            left -= 2 * count
            asked = [example.split(count) for example in examples]
            if not any(asked):
                break
        labels = [example.labels(example.leaves) for example in examples]
        found = torch.zeros(len(examples), max(1, *(len(one.leaves) for one in examples), 1))
        for i, example in enumerate(examples):
            found[i, : len(example.leaves)] = torch.tensor(
                [example.drops[node] for node in example.leaves]
            )
        return torch.stack(labels).to(features.device), found.to(features.device)


@dataclass(eq=False)
class _Example:
    """The tree of one example and its present groups.

    Nodes have SciPy's numbers: first the live maps, then the joins by height.
    """

    live: Tensor  # bool (C,)
    children: list[tuple[int, int]]  # the two parts of each join
    places: list[int]  # the channels of the live maps
    leaves: list[int] = field(default_factory=list)  # the nodes that are groups
    drops: dict[int, float] = field(default_factory=dict)  # by node

    @classmethod
    def of(cls, live: Tensor, merges: Any, n_groups: int) -> _Example:
        """The tree from SciPy's linkage matrix, cut into at most `n_groups` groups."""
        places = live.nonzero().squeeze(1).tolist()
        children = [] if merges is None else [(int(row[0]), int(row[1])) for row in merges]
        one = cls(live, children, places)
        if places:
            one.leaves = [len(places) + len(children) - 1]
        while 0 < len(one.leaves) < n_groups and max(one.leaves) >= len(places):
            one._open(max(one.leaves))  # the highest join
        return one

    def split(self, count: int) -> list[int]:
        """Splits the `count` groups with the largest drops; returns the new nodes."""
        joins = [node for node in self.leaves if node >= len(self.places)]
        joins.sort(key=lambda node: (-abs(self.drops[node]), node))
        return [part for node in joins[:count] for part in self._open(node)]

    def _open(self, node: int) -> tuple[int, int]:
        parts = self.children[node - len(self.places)]
        self.leaves.remove(node)
        self.leaves += parts
        return parts

    def labels(self, nodes: list[int]) -> Tensor:
        """Labels `(C,)`: the maps below a node get its place in the list, all others -1."""
        labels = torch.full((len(self.live),), -1, dtype=torch.int64)
        for label, node in enumerate(nodes):
            below = [node]
            while below:
                one = below.pop()
                if one < len(self.places):
                    labels[self.places[one]] = label
                else:
                    below += self.children[one - len(self.places)]
        return labels
