"""The command `explain`: images through one or more methods, side by side."""

from __future__ import annotations

import platform
import re
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import make_folder, require
from captum_clustered.app.errors import USER_ERROR, is_the_users, one_line, report
from captum_clustered.app.levels import highest_classes, other_levels, shown_on_page
from captum_clustered.app.write import unique_stems, write_explanation
from captum_clustered.evaluation.job import find_methods, prepare_choices
from captum_clustered.evaluation.plan import Choices
from captum_clustered.evaluation.rows import OWN, Variant, title_of
from captum_clustered.evaluation.variants import AnyMethod, make_explainer, named, variants
from captum_clustered.explainers.ablation import ClusteredLayerAblation
from captum_clustered.explainers.results import Attribution, ClusteredAttribution
from captum_clustered.heatmap import scaled
from captum_clustered.methods import METHODS
from captum_clustered.models.images import read_picture
from captum_clustered.models.medical import is_dicom
from captum_clustered.models.prepared import Prepared, find_device
from captum_clustered.page.image import ClassScore

__all__ = [
    "Explained",
    "Explainer",
    "Explanation",
    "Panel",
    "explain_all",
    "explain_image",
    "prepare_explainer",
    "spatial",
    "versions",
]

# --- the command ----------------------------------------------------------------------------------


def explain_all(
    images: Sequence[Path],
    choices: Choices,
    *,
    dicom: bool = False,
    keep_identifiers: bool = False,
    debug: bool = False,
) -> int:
    """Explains images and writes what was found into the folder of the choices.

    Args:
        images (sequence of Path): The files.
        choices (Choices): All that can be chosen.
        dicom (bool, optional): Whether to save the overlay as DICOM too. Default: False
        keep_identifiers (bool, optional): Whether that names patient and study. Default: False
        debug (bool, optional): Whether to print the traceback of every error. Default: False

    Returns:
        *int*: The exit code: 0, 2 if an image could not be explained for a reason of the user's, 1
        if there was any other error.

    Raises:
        ValueError: If a choice does not fit.
        ImportError: If a package is missing.
    """
    _check(images, choices, dicom, keep_identifiers)
    explainer = prepare_explainer(choices, images)
    make_folder(choices.out, "out")
    if explainer.prepared.has_random_weights:
        report("the weights are random, so the pictures mean nothing", "warning")
    write = partial(
        write_explanation,
        out=choices.out,
        html=choices.html,
        dicom=dicom,
        keep_identifiers=keep_identifiers,
    )
    return _each(explainer, images, write, debug)


def _check(images: Sequence[Path], choices: Choices, dicom: bool, keep_identifiers: bool) -> None:
    if choices.html:
        require("jinja2", "html", "to write HTML pages")
    if dicom:
        require("pydicom", "dicom", "to write DICOM")
    if keep_identifiers and not dicom:
        raise ValueError("`--dicom-identifiers` must come with --dicom; it came alone.")
    strangers = [path for path in images if not is_dicom(path)] if keep_identifiers else []
    if strangers:
        raise ValueError(
            f"`--dicom-identifiers` must have DICOM files as images; got {strangers[0]}."
        )


def _each(explainer: Explainer, images: Sequence[Path], write: Any, debug: bool) -> int:
    from tqdm import tqdm

    code = 0
    with tqdm(total=len(images), unit="image", disable=len(images) < 2, file=sys.stderr) as bar:
        for path, stem in zip(images, unique_stems(images), strict=True):
            try:
                explanation = explain_image(explainer, path, levels=explainer.choices.html)
                overlay = write(explanation, stem=stem)
            except Exception as error:  # the other images may be good
                users = is_the_users(error)
                code = code if code == 1 else (USER_ERROR if users else 1)
                if debug or not users:
                    bar.write("".join(traceback.format_exception(error)), file=sys.stderr, end="")
                line = one_line(error) if users else f"{type(error).__name__}: {one_line(error)}"
                line = line if str(path) in line else f"{path}: {line}"
                bar.write(f"captum-clustered: error: {line}", file=sys.stderr)
            else:
                bar.write(f"{path}: {explanation.title}, see {overlay}", file=sys.stdout)
            bar.update()
    return code


# --- what is found out ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A variant of a method, ready for images.

    Attributes:
        variant (Variant): Which.
        method (AnyMethod): From the registry or from outside.
        explainer (LayerAttribution): What the method made.
        name (str): Part of the files' names.
        title (str): Stands above its heat map.
    """

    variant: Variant
    method: AnyMethod
    explainer: Any
    name: str
    title: str

    @property
    def has_groups(self) -> bool:
        """Whether its results have groups that a page can show."""
        return isinstance(self.explainer, ClusteredLayerAblation)


@dataclass(frozen=True)
class Explainer:
    """A model, its layer, methods and a class, ready for images.

    Attributes:
        choices (Choices): What it was made from.
        prepared (Prepared): The model with its layer.
        panels (tuple[Panel, ...]): The methods that stand side by side.
        target (int or None): The class; None for the one that is predicted.
    """

    choices: Choices
    prepared: Prepared
    panels: tuple[Panel, ...]
    target: int | None


@dataclass(frozen=True)
class Explained:
    """What one method says of one image.

    Attributes:
        panel (Panel): The method.
        result (Attribution): What it returned.
        heatmap (array): float32 `(H, W)` in [0, 1]; of a volume `(D, H, W)`.
        record (dict): What the record says of it, beside what the result itself says.
    """

    panel: Panel
    result: Attribution
    heatmap: np.ndarray
    record: dict[str, Any]


@dataclass(frozen=True)
class Explanation:
    """What is known of one image before anything is written.

    Attributes:
        image (array): `(H, W, 3)` in [0, 1]; of a volume `(D, H, W, 3)`.
        found (tuple[Explained, ...]): What each method says.
        title (str): The class and its probability.
        record (dict): What the record says of the image.
        path (Path): The file.
        frame (int): The frame of a DICOM file.
        classes (tuple[ClassScore, ...]): The highest classes, and the one that is explained.
        shown (Explained or None): What the page shows: Clustered-CAM, or the first method with
            groups.
        levels (mapping): Its results by the number of groups.
        level (int): Which of them was asked for.
    """

    image: np.ndarray
    found: tuple[Explained, ...]
    title: str
    record: dict[str, Any]
    path: Path
    frame: int = 1
    classes: tuple[ClassScore, ...] = ()
    shown: Explained | None = None
    levels: Mapping[int, ClusteredAttribution] = field(default_factory=dict)
    level: int = 0


def prepare_explainer(choices: Choices, images: Sequence[Path] = ()) -> Explainer:
    """Loads the model and settles all that does not depend on an image.

    Args:
        choices (Choices): What was chosen.
        images (sequence of Path, optional): The files to come; the first volume among them tells
            the size of the input. Default: ()

    Returns:
        *Explainer*: The model on its device, with an explainer for each variant.

    Raises:
        ValueError: If a choice does not fit.
        ImportError: If a package is missing.
    """
    if choices.target == "given":
        raise ValueError(
            "`target` must be predicted, an index or a name where no data say the class; got given."
        )
    methods = find_methods(choices.methods, METHODS)
    wanted = variants(choices, methods)
    prepared = prepare_choices(choices, images, find_device(choices.device))
    target = None if choices.target == "predicted" else prepared.target(choices.target)
    mask_fill = None if choices.mask_fill == OWN else prepared.fill(choices.mask_fill, "mask_fill")
    panels = []
    for v in wanted:
        method = methods[v.method]
        explainer = make_explainer(
            v, method, prepared, clusterer=choices.clusterer, seed=choices.seed, mask_fill=mask_fill
        )
        panels.append(Panel(v, method, explainer, *_names(v, wanted)))
    if choices.html and not any(panel.has_groups for panel in panels):
        raise ValueError(
            "`html` must come with a method whose groups can be shown, such as clustered-cam; got "
            f"{', '.join(choices.methods)}."
        )
    return Explainer(choices, prepared, tuple(panels), target)


def _names(variant: Variant, all_variants: Sequence[Variant]) -> tuple[str, str]:
    """Of a variant, what the files and the picture call it; a method's name where that will do."""
    alone = sum(other.method == variant.method for other in all_variants) == 1
    shown = Variant(variant.method) if alone else variant
    name = re.sub(r"[^\w.-]+", "-", str(shown).replace("=", ""))
    return name, title_of(shown)


def explain_image(explainer: Explainer, path: Path, *, levels: bool = False) -> Explanation:
    """Explains one image file by each method.

    Args:
        explainer (Explainer): From :func:`prepare_explainer`.
        path (Path): The image.
        levels (bool, optional): Whether the first method with groups also explains it with other
            numbers of groups, for the page. Default: False

    Returns:
        *Explanation*: The heat maps and the record of how they were made.

    Raises:
        ValueError: If the file cannot be read, or the layer gives no maps with the image's axes.
    """
    prepared, frame = explainer.prepared, explainer.choices.frame
    begin = time.perf_counter()
    picture = read_picture(path, frame)
    x = prepared.input(picture)
    read = time.perf_counter()
    scores = prepared.scores(x)[0].float().cpu()
    target = explainer.target
    if target is None:
        target = prepared.target("predicted", scores)
    seconds = {"read": read - begin, "forward": time.perf_counter() - read}
    found = tuple(_explained(explainer, panel, x, target) for panel in explainer.panels)

    probability, how = prepared.probability(scores, target)
    title = prepared.title(scores, target)
    record = {
        # folders of a hospital's files are often named after patients
        "image": path.name if picture.is_dicom else str(path),
        "image_size": picture.size,
        **({"frame": {"number": frame, "of": picture.frames}} if picture.is_dicom else {}),
        "settings": _settings(explainer),
        "versions": versions(),
        "target": {
            "index": target,
            "name": prepared.class_name(target),
            "score": float(scores[target]),
            "probability": probability,
            "probability_is": how,
        },
        "seconds": seconds,
    }
    shown = shown_on_page(found) if levels else None
    level, by_level = (0, {}) if shown is None else other_levels(prepared, shown, x, target)
    return Explanation(
        image=prepared.display(picture),
        found=found,
        title=f"{title}, random weights" if prepared.has_random_weights else title,
        record=record,
        path=path,
        frame=frame,
        classes=highest_classes(prepared, scores, target) if levels else (),
        shown=shown,
        levels=by_level,
        level=level,
    )


def _explained(explainer: Explainer, panel: Panel, x: Tensor, target: int) -> Explained:
    at_input = {"attribute_to_layer_input": True} if explainer.prepared.layer.at_input else {}
    begin = time.perf_counter()
    with named(panel.method):
        if hasattr(panel.explainer, "explain"):
            result = panel.explainer.explain(x, target, **at_input)
        else:
            result = Attribution(panel.explainer.attribute(x, target=target, **at_input))
    heat = spatial(result.attributions, x)
    record = {
        "settings": _own_settings(explainer, panel),
        "seconds": {"explain": time.perf_counter() - begin},
    }
    return Explained(panel, result, scaled(heat[0, 0], x.shape[2:]).numpy(), record)


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import captum

    return {
        "captum_clustered": version("captum-clustered"),
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def spatial(attributions: Any, x: Tensor) -> Tensor:
    """Checks that a heat map has the axes of the input.

    Args:
        attributions (Tensor or tuple[Tensor, ...]): What an explainer gave.
        x (Tensor): The model's input, `(1, C, *spatial)`.

    Returns:
        *Tensor*: The heat map, `(1, 1, *spatial)`.

    Raises:
        ValueError: If there are several tensors, or the axes are others.
    """
    if isinstance(attributions, tuple):
        raise ValueError(
            f"`layer` must give one tensor; it gives {len(attributions)}. Choose another."
        )
    if attributions.ndim != x.ndim:
        dimensions = "two" if x.ndim == 4 else "three"
        raise ValueError(
            f"`layer` must give maps of {dimensions} dimensions; its heat map has shape "
            f"{tuple(attributions.shape)}. Choose another."
        )
    heat: Tensor = attributions.detach()
    return heat


# --- records --------------------------------------------------------------------------------------


def _settings(explainer: Explainer) -> dict[str, Any]:
    choices, prepared = explainer.choices, explainer.prepared
    return {
        "model": prepared.loaded.name,
        "weights": prepared.loaded.weights,
        "checkpoint": None if choices.checkpoint is None else str(choices.checkpoint),
        "layer_asked_for": choices.layer,
        "layer": prepared.layer.name,
        "attribute_to_layer_input": prepared.layer.at_input,
        "channel_dim": prepared.layer.channel_dim,
        "target_asked_for": choices.target,
        "target": "predicted" if explainer.target is None else explainer.target,
        "mask_fill": choices.mask_fill,
        "score": prepared.score,
        "device": prepared.device,
        "seed": choices.seed,
    }


def _own_settings(explainer: Explainer, panel: Panel) -> dict[str, Any]:
    settings: dict[str, Any] = {"method": panel.variant.method}
    if panel.variant.clusters is not None:
        settings["clusters"] = panel.variant.clusters
    if panel.variant.weighting is not None:
        settings["weighting"] = panel.variant.weighting
    if "clusterer" in panel.method.settings:
        settings["clusterer"] = explainer.choices.clusterer
    if hasattr(panel.explainer, "clusterer"):
        settings["clusterer_settings"] = repr(panel.explainer.clusterer)
    return settings
