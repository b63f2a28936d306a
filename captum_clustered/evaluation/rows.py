"""What names a row of the results: the image, and the method in one of its variants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

__all__ = ["AUTO", "OWN", "Grid", "Key", "Number", "Row", "Variant", "key_of", "title_of"]

OWN = "own"
"""Each method keeps its own default."""

AUTO: Literal["auto"] = "auto"
"""The number of groups is chosen for each image, where the tree of its maps has its largest gap."""

Number = int | Literal["auto"]
"""A number of groups, or :data:`AUTO`."""

Row = dict[str, Any]
"""What is known of one image and one variant."""

Key = tuple[str, str, int | str | None, str | None]
"""What tells a row from all others: image, method, number of groups, weighting."""

_TITLES = {
    "calibrated-cam": "Calibrated CAM",
    "clustered-cam": "Clustered-CAM",
    "clustered-group-cam": "Clustered Group-CAM",
    "clustered-opti-cam": "Clustered Opti-CAM",
    "clustered-score-cam": "Clustered Score-CAM",
    "random-score-cam": "Random-group Score-CAM",
    "adaptive-ablation-cam": "Adaptive Ablation-CAM",
    "ablation-cam": "Ablation-CAM",
    "ablation-cam-norm": "Ablation-CAM, norm",
    "egrad-cam": "EGrad-CAM",
    "group-cam": "Group-CAM",
    "score-cam": "Score-CAM",
    "grad-cam": "Grad-CAM",
    "hires-cam": "HiResCAM",
    "fake-cam": "Fake-CAM",
    "random-map": "Random map",
    "centre-gaussian": "Centre Gaussian",
    "sum-of-maps": "Sum of maps",
    "random-groups": "Random groups",
    "contiguous-groups": "Contiguous groups",
}


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method with its number of groups and its weighting.

    Attributes:
        method (str): Its name.
        clusters (int, str or None): The number of groups, if the method takes one, or
            :data:`AUTO`.
        weighting (str or None): How drops become weights, if the method takes that.
        control (bool): Whether the method is a control.

    Example::

        >>> print(Variant("clustered-cam", 16, "drop"))
        clustered-cam K=16 drop
    """

    method: str
    clusters: Number | None = None
    weighting: str | None = None
    control: bool = False

    def __str__(self) -> str:
        groups = None if self.clusters is None else f"K={self.clusters}"
        return " ".join(part for part in (self.method, groups, self.named_weighting) if part)

    @property
    def named_weighting(self) -> str | None:
        """The weighting, unless it is the method's own choice."""
        return None if self.weighting == "auto" else self.weighting


def key_of(image: str, variant: Variant) -> Key:
    """What tells a row from all others."""
    return image, variant.method, variant.clusters, variant.weighting


@dataclass(frozen=True, eq=False)
class Grid:
    """All rows that are wanted: each image with each variant.

    Attributes:
        images (sequence of str): The images.
        variants (sequence of Variant): The variants.

    Example::

        >>> Grid(["a.png", "b.png"], [Variant("grad-cam")]).place(("b.png", "grad-cam", None, None))
        (1, 0)
    """

    images: Sequence[str]
    variants: Sequence[Variant]

    @property
    def shape(self) -> tuple[int, int]:
        """The numbers of images and of variants."""
        return len(self.images), len(self.variants)

    @cached_property
    def places(self) -> dict[str, int]:
        """The place of each image."""
        return {image: i for i, image in enumerate(self.images)}

    @cached_property
    def lines(self) -> dict[tuple[Any, ...], int]:
        """The place of each variant, by what a key says of it."""
        return {key_of("", variant)[1:]: v for v, variant in enumerate(self.variants)}

    def place(self, key: Any) -> tuple[int, int] | None:
        """The places of the image and of the variant of a key; None if it is not wanted."""
        image, variant = self.places.get(key[0]), self.lines.get(key[1:])
        return None if image is None or variant is None else (image, variant)


def title_of(variant: Variant) -> str:
    """A variant in a few words; a method from outside the registry keeps its name.

    Example::

        >>> title_of(Variant("random-groups", 16, "drop_per_map", True))
        'Random groups, K=16, drop per map'
    """
    name = _TITLES.get(variant.method, variant.method)
    groups = None if variant.clusters is None else f"K={variant.clusters}"
    weighting = (variant.named_weighting or "").replace("_", " ")
    return ", ".join(part for part in (name, groups, weighting) if part)
