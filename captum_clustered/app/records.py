"""What the record of an image says, and whether a record that is there says the same."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_clustered._files import digest_of, to_json
from captum_clustered.app.units import read_record
from captum_clustered.models.medical import is_dicom

if TYPE_CHECKING:
    from captum_clustered.app.explain import Explainer, Panel
    from captum_clustered.app.write import Output
    from captum_clustered.models.prepared import Prepared

__all__ = [
    "describe_class",
    "is_current",
    "name_of",
    "own_settings_of",
    "settings_of",
    "versions",
]


def name_of(path: Path) -> str:
    """What the record calls an image: its path, of a DICOM file the last part only."""
    # folders of a hospital's files are often named after patients
    return path.name if is_dicom(path) else str(path)


def describe_class(prepared: Prepared, scores: Tensor, target: int) -> dict[str, Any]:
    """A class with its score, for scores `(n_classes,)`."""
    probability, how = prepared.probability(scores, target)
    return {
        "index": target,
        "name": prepared.class_name(target),
        "score": float(scores[target]),
        "probability": probability,
        "probability_is": how,
    }


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import captum

    return {
        "captum_clustered": version("captum-clustered"),
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def settings_of(explainer: Explainer) -> dict[str, Any]:
    """The settings that all methods share."""
    choices, prepared = explainer.choices, explainer.prepared
    asked, targets = choices.targets, explainer.targets
    layers = choices.layers
    return {
        "model": prepared.loaded.name,
        "weights": prepared.loaded.weights,
        "checkpoint": None if choices.checkpoint is None else str(choices.checkpoint),
        "layer_asked_for": layers[0] if len(layers) == 1 else list(layers),
        **({} if explainer.has_layers else _layer_settings(prepared)),
        "target_asked_for": asked[0] if len(asked) == 1 else list(asked),
        "target": targets[0] if len(targets) == 1 else list(targets),
        "mask_fill": choices.mask_fill,
        "score": prepared.score,
        "device": prepared.device,
        "seed": choices.seed,
    }


def _layer_settings(prepared: Prepared) -> dict[str, Any]:
    return {
        "layer": prepared.layer.name,
        "attribute_to_layer_input": prepared.layer.at_input,
        "channel_dim": prepared.layer.channel_dim,
    }


def own_settings_of(explainer: Explainer, panel: Panel) -> dict[str, Any]:
    """The settings of one method, and of the layer where there are several."""
    settings: dict[str, Any] = {"method": panel.variant.method}
    if explainer.has_layers:
        settings |= _layer_settings(panel.prepared)
    if panel.variant.clusters is not None:
        settings["clusters"] = panel.variant.clusters
    if panel.variant.weighting is not None:
        settings["weighting"] = panel.variant.weighting
    if "clusterer" in panel.method.settings:
        settings["clusterer"] = explainer.choices.clusterer
    if hasattr(panel.explainer, "clusterer"):
        settings["clusterer_settings"] = repr(panel.explainer.clusterer)
    return settings


def is_current(explainer: Explainer, output: Output, path: Path, record: Path) -> bool:
    """Whether the results of an image are there already, as they would be made now.

    Args:
        explainer (Explainer): The settings.
        output (Output): How the results look.
        path (Path): The image.
        record (Path): Its record, ``STEM.json``.

    Returns:
        *bool*: False if the image, a setting, a version or the look is another, or a file is gone.
    """
    found = read_record(record)
    if found is None or found.get("image_digest") != digest_of(path):
        return False
    common = settings_of(explainer)
    own = [json.loads(to_json(own_settings_of(explainer, p))) for p in explainer.panels]
    made = [one.get("settings") for one in found.get("methods", {}).values()]
    if not made and len(own) == 1:
        common, own = {**common, **own[0]}, []
    wanted = {"settings": common, "versions": versions()}
    frame = found.get("frame", {}).get("number", explainer.choices.frame)
    files = [found["files"], *(one["files"] for one in found.get("methods", {}).values())]
    return (
        all(found.get(name) == json.loads(to_json(value)) for name, value in wanted.items())
        and frame == explainer.choices.frame
        and found.get("look") == output.look
        and all(any(kind in names for names in files) for kind in output.kinds)
        and all(one in made for one in own)
        and all(one in own for one in made)
        and all((record.parent / name).is_file() for names in files for name in names.values())
    )
