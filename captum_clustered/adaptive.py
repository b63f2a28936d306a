"""Groups found by asking the model: a tree of maps is opened where the score hangs on it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from captum_clustered._checks import check_int
from captum_clustered.clustering import Agglomerative, Tree

__all__ = ["Adaptive"]


@dataclass(frozen=True)
class Adaptive:
    """Groups from a tree of the maps, split where the score drops most, within a budget.

    The maps are joined step by step to a tree. It is first cut into half as many groups as the
    budget has evaluations, and each is switched off. Then the group whose drop is largest in
    magnitude is split in two, and both parts are switched off, until the budget is spent: with 32
    evaluations, 16 groups become 24. That groups are split where the model reacts is the idea of
    Ablation-CAM++ (Salama, Adly, Torki, ICIP 2022), of which no code is public; the rule is ours.

    For :class:`captum_clustered.ClusteredLayerAblation` only; called as any other clusterer, it
    gives the groups that it starts from. Drops are read from the device after each round.

    Args:
        budget (int, optional): Groups that are switched off for an example, at least 2. Default: 32
        linkage (str, optional): As for :class:`captum_clustered.clustering.Agglomerative`.
            Default: ``"ward"``
        splits (int, optional): Groups that are split in a round, before the drops of their parts
            are looked at. Default: 4

    Example::

        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(1, 9, 3), nn.Flatten(), nn.Linear(36, 2)).eval()
        >>> cam = ClusteredLayerAblation(model, model[0], clusterer=Adaptive(budget=8))
        >>> cam.explain(torch.rand(1, 1, 4, 4), target=1).ablated_scores.shape
        torch.Size([1, 6])
    """

    budget: int = 32
    linkage: Literal["ward", "average", "complete"] = "ward"
    splits: int = 4

    def __post_init__(self) -> None:
        check_int("budget", self.budget, 2)
        check_int("splits", self.splits, 1)
        Agglomerative(linkage=self.linkage)  # refuses an unknown one

    def __call__(self, features: Tensor) -> Tensor:
        """Labels `(N, C)` of the groups at the start, for features `(N, C, D)`."""
        return self._tree(features).cut(self.budget // 2)

    def search(self, features: Tensor) -> Generator[Tensor, Tensor, tuple[Tensor, Tensor]]:
        """Asks for drops, round by round.

        Args:
            features (Tensor): `(N, C, D)`.

        Yields:
            Labels `(N, C)` of groups to be switched off, -1 for a map that is in none.

        Receives:
            Their drops `(N, K)`.

        Returns:
            *tuple*: The labels of the final groups, `(N, C)`, and their drops `(N, K)`.
        """
        tree = self._tree(features)
        examples = [
            _Example.of(tree.live[i], tree.merges[i], self.budget // 2)
            for i in range(len(features))
        ]
        left = self.budget - self.budget // 2
        asked = [example.leaves for example in examples]
        while any(asked):
            labels = [example.labels(nodes) for example, nodes in zip(examples, asked, strict=True)]
            drops = yield torch.stack(labels).to(features.device)
            for example, nodes, row in zip(examples, asked, drops.tolist(), strict=True):
                example.drops.update(zip(nodes, row, strict=False))
            count = min(self.splits, left // 2)
            left -= 2 * count
            asked = [example.split(count) for example in examples]
        labels = [example.labels(example.leaves) for example in examples]
        found = torch.zeros(len(examples), max(1, *(len(one.leaves) for one in examples), 1))
        for i, example in enumerate(examples):
            found[i, : len(example.leaves)] = torch.tensor(
                [example.drops[node] for node in example.leaves]
            )
        return torch.stack(labels).to(features.device), found.to(features.device)

    def _tree(self, features: Tensor) -> Tree:
        return Agglomerative(linkage=self.linkage).tree(features)


@dataclass(eq=False)
class _Example:
    """The tree of one example: nodes are numbered as in SciPy, maps first, then joins."""

    live: Tensor
    children: list[tuple[int, int]]
    places: list[int]  # of the live maps
    leaves: list[int] = field(default_factory=list)
    drops: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, live: Tensor, merges: Any, n_groups: int) -> _Example:
        places = live.nonzero().squeeze(1).tolist()
        children = [] if merges is None else [(int(row[0]), int(row[1])) for row in merges]
        one = cls(live, children, places)
        if places:
            one.leaves = [len(places) + len(children) - 1]
        while 0 < len(one.leaves) < n_groups and max(one.leaves) >= len(places):
            one._open(max(one.leaves))  # joins are numbered by height
        return one

    def split(self, count: int) -> list[int]:
        """Opens the nodes whose drops are largest; returns the new ones."""
        joins = [node for node in self.leaves if node >= len(self.places)]
        joins.sort(key=lambda node: (-abs(self.drops[node]), node))
        return [part for node in joins[:count] for part in self._open(node)]

    def _open(self, node: int) -> tuple[int, int]:
        parts = self.children[node - len(self.places)]
        self.leaves.remove(node)
        self.leaves += parts
        return parts

    def labels(self, nodes: list[int]) -> Tensor:
        """Labels `(C,)`: each node's maps carry its place in the list."""
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
