"""What can be chosen for explanations and for evaluations, in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from captum_clustered._checks import check_choice, check_int
from captum_clustered.evaluation.rows import AUTO, OWN, Number
from captum_clustered.targets import SCORES

__all__ = [
    "FILLS",
    "SCORES",
    "TARGETS",
    "TOP",
    "Choices",
    "Settings",
    "classes",
    "listed",
    "numbers",
]

TARGETS = ("predicted", "given")
"""Which class is explained: the one that the model predicts, or the one that the data give. A class
by its index or name is the same for all images."""

TOP = "top:"
"""Begins the name of the highest classes, such as ``"top:5"``."""

FILLS = ("black", "mean", "blur")
"""What replaces the part of an image that a map hides."""


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What can be chosen both for explanations and for an evaluation.

    Attributes:
        model (str): As for :func:`captum_clustered.models.load`.
        methods (tuple[str, ...]): Names from the registry, or ``"module:callable"``.
        layer (str or tuple[str, ...]): Dotted name, or ``"auto"``. An explanation may have several.
        clusters (tuple[int or str, ...]): Numbers of groups; ``"auto"`` chooses the number for each
            image. If empty, each method keeps its own.
        clusterer (str): What groups the maps; ``"own"`` for each method's own.
        weightings (tuple[str, ...]): How drops become weights. If empty, each method keeps its own.
        mask_fill (str): What methods that mask the image put in the hidden part: ``"own"``, each
            method's own, or one of :data:`FILLS`.
        target (str or tuple[str, ...]): The class to explain: one of :data:`TARGETS`, an index or a
            name. An explanation may have several, and ``"top:5"`` for the five highest.
        score (str): What becomes of the model's output before it is called a probability, or a map
            is judged by it: one of :data:`SCORES`.
        frame (int): Which frame of a DICOM file, counted from 1.
        checkpoint (Path or None): File with a state dict of the model.
        weights (str): ``"default"`` or ``"none"`` (random).
        device (str): ``"auto"``, ``"cpu"`` or ``"cuda"``.
        seed (int): Of everything that draws at random.
        html (bool): Whether pages are written.
        out (Path): Folder of the results.
    """

    model: str
    methods: tuple[str, ...] = ("clustered-cam",)
    layer: str | tuple[str, ...] = "auto"
    clusters: tuple[Number, ...] = ()
    clusterer: str = OWN
    weightings: tuple[str, ...] = ()
    mask_fill: str = OWN
    target: str | tuple[str, ...] = "predicted"
    score: str = "softmax"
    frame: int = 1
    checkpoint: Path | None = None
    weights: str = "default"
    device: str = "auto"
    seed: int = 0
    html: bool = False
    out: Path = Path("results")

    def __post_init__(self) -> None:
        if not self.methods:
            raise ValueError("`methods` must have at least one entry; got none.")
        for number in self.clusters:
            if number != AUTO:
                check_int("clusters", number, 1, remedy="Or pass auto.")
        check_choice("mask_fill", self.mask_fill, (OWN, *FILLS))
        check_choice("score", self.score, SCORES)
        check_int("frame", self.frame, 1)
        if not self.targets:
            raise ValueError("`target` must have at least one entry; got none.")
        if not self.layers:
            raise ValueError("`layer` must have at least one entry; got none.")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, however many."""
        return (self.layer,) if isinstance(self.layer, str) else self.layer

    @property
    def targets(self) -> tuple[str, ...]:
        """The classes, however many."""
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True, kw_only=True)
class Settings(Choices):
    """What can be chosen for an evaluation; see :class:`Choices` for the rest.

    Attributes:
        data (Path): A folder of images, a folder with a folder of images for each class, or a CSV
            file; see :func:`captum_clustered.evaluation.images.find_images`.
        metrics (tuple[str, ...]): Keys of :data:`captum_clustered.evaluation.measures.METRICS`, or
            ``"module:callable"``.
        controls (bool): Whether the controls of the registry are added.
        calibrate (bool): Whether every map is also judged on a scale of its own, see
            :mod:`captum_clustered.evaluation.calibrating`.
        fill (str): What the metrics put where a map hides the image, one of :data:`FILLS`.
        limit (int or None): Number of images, spread evenly over the data.
        batch_size (int): Images that are explained together.
        workers (int): Processes that read images ahead while the model runs; 0 for none, as on
            all systems but Linux.
        step (int): Pixels that change at a time in insertion and deletion.
        retry_failed (bool): Whether rows that failed in an earlier call are made again.
    """

    data: Path
    metrics: tuple[str, ...] = ("adc", "pic")
    controls: bool = True
    calibrate: bool = False
    fill: str = "black"
    limit: int | None = None
    batch_size: int = 1
    workers: int = 1
    step: int = 224
    retry_failed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.targets) > 1 or self.targets[0].startswith(TOP):
            raise ValueError(
                "`target` must be one class of each image in an evaluation; got "
                f"{', '.join(self.targets)}. Evaluate each class into a folder of its own."
            )
        object.__setattr__(self, "target", self.targets[0])
        if len(self.layers) > 1:
            raise ValueError(
                f"`layer` must be one layer in an evaluation; got {', '.join(self.layers)}. "
                "Evaluate each layer into a folder of its own."
            )
        object.__setattr__(self, "layer", self.layers[0])
        check_choice("fill", self.fill, FILLS)
        check_int("batch_size", self.batch_size, 1)
        check_int("workers", self.workers, 0)
        check_int("step", self.step, 1)
        if self.limit is not None:
            check_int("limit", self.limit, 1)


def listed(texts: str | Iterable[str]) -> tuple[str, ...]:
    """The words of one or more lists with commas, each word once.

    Example::

        >>> listed(["adc, pic", "ag,adc"])
        ('adc', 'pic', 'ag')
    """
    texts = [texts] if isinstance(texts, str) else texts
    words = (word.strip() for text in texts for word in text.split(","))
    return tuple(dict.fromkeys(word for word in words if word))


def numbers(texts: str | Iterable[str]) -> tuple[Number, ...]:
    """The numbers of groups of one or more lists with commas, each number once.

    Raises:
        ValueError: If one is neither a whole number nor ``"auto"``.

    Example::

        >>> numbers("16,auto")
        (16, 'auto')
    """
    words = listed(texts)
    try:
        return tuple(AUTO if word == AUTO else int(word) for word in words)
    except ValueError:
        raise ValueError(
            "`clusters` must be whole numbers or auto, with commas between them; got "
            f"{', '.join(words)!r}."
        ) from None


def classes(texts: Iterable[str]) -> tuple[str, ...]:
    """The classes of one or more texts, each once.

    Indices may have commas between them. Names are kept whole, since a name may have a comma.

    Example::

        >>> classes(["3, 7", "crane, the bird", "top:2"])
        ('3', '7', 'crane, the bird', 'top:2')
    """
    found: list[str] = []
    for text in texts:
        words = [word.strip() for word in text.split(",")]
        found += words if all(word.isdecimal() for word in words) else [text.strip()]
    return tuple(dict.fromkeys(found))
