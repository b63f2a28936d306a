"""What is to be evaluated: the settings, and the variants of the methods that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captum_clustered._checks import check_choice, check_int

__all__ = [
    "FILLS",
    "SCORES",
    "TARGETS",
    "Kind",
    "Settings",
    "Variant",
    "listed",
    "numbers",
    "variants",
]

TARGETS = ("predicted", "given")
"""Whose score judges a map: the class that the model predicts, or the one the data give."""

FILLS = ("black", "mean", "blur")
"""What replaces the part of an image that a map hides."""

SCORES = ("softmax", "sigmoid", "identity")
"""What becomes of the model's logits."""


@dataclass(frozen=True)
class Settings:
    """What can be chosen for an evaluation, in the words of the command line.

    Attributes:
        data (Path): A folder of images, a folder with a folder of images for each class, or a CSV
            file; see :func:`captum_clustered.evaluation.images.find_images`.
        model (str): As for :func:`captum_clustered.models.load`.
        out (Path): Folder of the results.
        methods (tuple[str, ...]): Names from the registry.
        layer (str): Dotted name, or ``"auto"``.
        clusters (tuple[int, ...]): Numbers of groups.
        clusterer (str): What groups the maps.
        weightings (tuple[str, ...]): How drops become weights.
        metrics (tuple[str, ...]): Keys of :data:`captum_clustered.evaluation.measures.METRICS`.
        controls (bool): Whether the controls of the registry are added.
        target (str): One of :data:`TARGETS`.
        fill (str): One of :data:`FILLS`.
        mask_fill (str): What methods that mask the image themselves put where their masks hide it:
            ``"own"``, each method's default, or one of :data:`FILLS`.
        score (str): One of :data:`SCORES`.
        limit (int or None): Number of images, spread evenly over the data.
        batch_size (int): Images that are explained together.
        step (int): Pixels that change at a time in insertion and deletion.
        checkpoint (Path or None): State dict of the model.
        weights (str): ``"default"`` or ``"none"``.
        device (str): ``"auto"``, ``"cpu"`` or ``"cuda"``.
        seed (int): Of everything that draws at random.
        html (bool): Whether there are pages, one for all images and one for each.
    """

    data: Path
    model: str
    out: Path
    methods: tuple[str, ...]
    layer: str = "auto"
    clusters: tuple[int, ...] = (16, 32, 64)
    clusterer: str = "kmeans"
    weightings: tuple[str, ...] = ("drop_per_map",)
    metrics: tuple[str, ...] = ("adc", "pic")
    controls: bool = True
    target: str = "predicted"
    fill: str = "black"
    mask_fill: str = "own"
    score: str = "softmax"
    limit: int | None = None
    batch_size: int = 1
    step: int = 224
    checkpoint: Path | None = None
    weights: str = "default"
    device: str = "auto"
    seed: int = 0
    html: bool = False

    def __post_init__(self) -> None:
        check_choice("target", self.target, TARGETS)
        check_choice("fill", self.fill, FILLS)
        check_choice("mask_fill", self.mask_fill, ("own", *FILLS))
        check_choice("score", self.score, SCORES)
        check_int("batch_size", self.batch_size, 1)
        check_int("step", self.step, 1)
        if self.limit is not None:
            check_int("limit", self.limit, 1)
        for number in self.clusters:
            check_int("clusters", number, 1)


@dataclass(frozen=True)
class Kind:
    """What the settings may vary of a method.

    Attributes:
        clusters (bool): Whether it takes a number of groups.
        weighting (bool): Whether it takes a weighting.
        control (bool): Whether it is a control, which stands beside the methods.
    """

    clusters: bool = False
    weighting: bool = False
    control: bool = False


@dataclass(frozen=True)
class Variant:
    """One row of the table: a method with its number of groups and its weighting.

    Attributes:
        method (str): Name in the registry.
        clusters (int or None): Number of groups, if the method takes it.
        weighting (str or None): Likewise.
        control (bool): Whether it is a control.

    Example::

        >>> print(Variant("clustered-cam", 16, "drop"))
        clustered-cam K=16 drop
    """

    method: str
    clusters: int | None = None
    weighting: str | None = None
    control: bool = False

    def __str__(self) -> str:
        groups = None if self.clusters is None else f"K={self.clusters}"
        return " ".join(part for part in (self.method, groups, self.weighting) if part)


def listed(text: str) -> tuple[str, ...]:
    """The words of a list with commas.

    Example::

        >>> listed("adc, pic")
        ('adc', 'pic')
    """
    words = (word.strip() for word in text.split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def numbers(text: str) -> tuple[int, ...]:
    """The numbers of groups of a list with commas.

    Raises:
        ValueError: If one is no number.

    Example::

        >>> numbers("16,32")
        (16, 32)
    """
    try:
        return tuple(int(word) for word in listed(text))
    except ValueError:
        raise ValueError(
            f"`clusters` must be whole numbers with commas between them; got {text!r}."
        ) from None


def variants(settings: Settings, kinds: Mapping[str, Kind]) -> list[Variant]:
    """The rows of the table: the methods in the order in which they were named, then the controls.

    Args:
        settings (Settings): The wishes.
        kinds (mapping): What may vary of each method, by its name; the controls are among them.

    Returns:
        *list[Variant]*: Without repetitions.

    Raises:
        ValueError: If a method is unknown, or there is nothing to vary where something is needed.

    Example::

        >>> kinds = {"a": Kind(clusters=True), "b": Kind(control=True)}
        >>> settings = Settings(Path("data"), "resnet18", Path("out"), ("a",), clusters=(2, 4))
        >>> [str(variant) for variant in variants(settings, kinds)]
        ['a K=2', 'a K=4', 'b']
    """
    _check_names("methods", settings.methods, list(kinds))
    controls = [name for name, kind in kinds.items() if kind.control and settings.controls]
    found: dict[Variant, None] = {}
    for method in (*settings.methods, *controls):
        kind = kinds[method]
        numbers: Sequence[int | None] = settings.clusters if kind.clusters else (None,)
        weightings: Sequence[str | None] = settings.weightings if kind.weighting else (None,)
        if not numbers or not weightings:
            missing = "weightings" if numbers else "clusters"
            raise ValueError(f"`{missing}` must have an entry for {method}; got none.")
        for number in numbers:
            for weighting in weightings:
                found[Variant(method, number, weighting, kind.control)] = None
    return list(found)


def _check_names(name: str, given: Sequence[str], choices: Sequence[str]) -> None:
    unknown = [one for one in given if one not in choices]
    if unknown or not given:
        raise ValueError(
            f"`{name}` must be among {', '.join(choices)}; got {', '.join(unknown) or 'none'}."
        )
