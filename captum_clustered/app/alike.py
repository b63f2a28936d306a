"""Whether the maps of several classes say anything about what tells the classes apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from captum_clustered.app.explain import Explained

__all__ = ["ALIKE", "Alike", "alike"]

ALIKE = 0.98
"""Maps with a higher correlation look the same.

On 60 photographs with EfficientNet-Lite0, Clustered-CAM's maps of one class with several seeds had
0.995 or more; those of the two highest classes had more than 0.98 on 26 photographs; and that of a
class in the middle of all 1000 had at most 0.88 with that of the highest."""


@dataclass(frozen=True)
class Alike:
    """Classes whose maps of one method are nearly the same.

    Attributes:
        panel (str): The method, as in the files' names.
        title (str): The method in words.
        classes (tuple[int, ...]): The classes, at least two.
        correlation (float): Pearson's correlation of the first class's map with the others', the
            smallest.
    """

    panel: str
    title: str
    classes: tuple[int, ...]
    correlation: float

    def words(self, names: Mapping[int, str]) -> str:
        """A line, with the names of the classes.

        Example::

            >>> Alike("grad-cam", "Grad-CAM", (2, 7), 0.991).words({2: "cat", 7: "lynx"})[:65]
            'Grad-CAM gives cat and lynx nearly the same map (correlation 0.99'
        """
        *most, last = (names[index] for index in self.classes)
        return (
            f"{self.title} gives {', '.join(most)} and {last} nearly the same map (correlation "
            f"{self.correlation:.2f}): it shows what these classes share, not what tells them apart"
        )

    @property
    def record(self) -> dict[str, Any]:
        """What the record of the image says of it."""
        return {
            "method": self.panel,
            "classes": list(self.classes),
            "correlation": self.correlation,
        }


def alike(found: Sequence[Explained]) -> list[Alike]:
    """The classes whose maps are nearly the same, method by method; a control's do not count.

    Each class is compared with the first class of a group, in the order of the classes.

    Args:
        found (sequence of Explained): What each method says of each class of one image.

    Returns:
        *list[Alike]*: The groups of two or more classes.
    """
    groups = []
    for name in dict.fromkeys(one.panel.name for one in found if not one.panel.method.control):
        left = [one for one in found if one.panel.name == name]
        while left:
            first, *left = left
            near = {one.target: _correlation(first, one) for one in left}
            near = {target: r for target, r in near.items() if r > ALIKE}
            if near:
                classes = (first.target, *near)
                groups.append(Alike(name, first.panel.title, classes, min(near.values())))
            left = [one for one in left if one.target not in near]
    return groups


def _correlation(one: Explained, other: Explained) -> float:
    """Pearson's correlation of two maps; NaN if one of them is flat, or not finite."""
    values = np.stack([one.heatmap.ravel(), other.heatmap.ravel()])
    values = values - values.mean(1, keepdims=True)
    norms = np.linalg.norm(values, axis=1)
    return float(values[0] @ values[1] / (norms[0] * norms[1])) if norms.all() else np.nan
