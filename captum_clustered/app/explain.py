"""What the command line finds out about images; functions that return data and write nothing."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_clustered.clustering import Agglomerative, as_clusterer
from captum_clustered.explainers.ablation import ClusteredLayerAblation
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.heatmap import enlarge, normalize
from captum_clustered.layers import TargetLayer, find_layer
from captum_clustered.models import LoadedModel, load, read_image, resolve_target
from captum_clustered.models.medical import is_dicom, is_volume, read_dicom, read_volume
from captum_clustered.page.image import ClassScore
from captum_clustered.visualization import describe
from captum_clustered.weighting import as_weighting

__all__ = [
    "DEMO_ROUNDS",
    "Demo",
    "Explainer",
    "Explanation",
    "Picture",
    "Settings",
    "demo_photographs",
    "describe_demo",
    "example_of",
    "explain_image",
    "prepare",
    "read_picture",
    "run_demo",
    "versions",
]

DEMO_ROUNDS = 5
"""How often the demo times each method."""

_LEVELS = (2, 4, 8, 16, 32, 64, 128)  # numbers of groups beside the one that was asked for
_CLASSES = 5


@dataclass(frozen=True)
class Settings:
    """What can be chosen for an explanation, in the words of the command line."""

    model: str
    layer: str = "auto"
    target: str = "top"
    clusters: int = 64
    clusterer: str = "kmeans"
    weighting: str = "drop_per_map"
    checkpoint: Path | None = None
    weights: str = "default"
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Explainer:
    """A model, a layer and a class that belong together; ready for images."""

    settings: Settings
    loaded: LoadedModel
    layer: TargetLayer
    cam: ClusteredLayerAblation
    device: str
    target: int | None  # None for the top class of each image


@dataclass(frozen=True)
class Explanation:
    """What one image gave, before anything is written."""

    image: np.ndarray  # (H, W, 3) in [0, 1]; of a volume (D, H, W, 3)
    heatmap: np.ndarray  # (H, W) in [0, 1], float32; of a volume (D, H, W)
    map: np.ndarray  # (h, w), float32; of a volume (d, h, w)
    title: str
    record: dict[str, Any]
    path: Path
    frame: int = 1
    classes: tuple[ClassScore, ...] = ()  # the highest, and the one that is explained
    levels: Mapping[int, ClusteredAttribution] = field(default_factory=dict)  # by number of groups


@dataclass(frozen=True)
class Picture:
    """What a file holds: an image, or a volume of three dimensions."""

    pixels: Image.Image | np.ndarray  # a volume is (D, H, W) or (C, D, H, W)
    frames: int = 1
    is_dicom: bool = False

    @property
    def size(self) -> dict[str, int]:
        """Its axes by name."""
        if isinstance(self.pixels, np.ndarray):
            return dict(zip(("depth", "height", "width"), self.pixels.shape[-3:], strict=True))
        return {"width": self.pixels.width, "height": self.pixels.height}


def read_picture(path: Path, frame: int = 1) -> Picture:
    """Reads an image, a frame of a DICOM file, or a volume, by what the file is.

    Args:
        path (Path): The file.
        frame (int, optional): Which frame of a DICOM file, from 1. Default: 1

    Returns:
        *Picture*: What is in it.

    Raises:
        ValueError: If it cannot be read, or has no such frame.
        ImportError: If a package is missing.
    """
    if is_dicom(path):
        image, frames = read_dicom(path, frame)
        return Picture(image, frames, is_dicom=True)
    if frame != 1:
        raise ValueError(f"`frame` must be 1 for a file that is not DICOM; got {frame} for {path}.")
    return Picture(read_volume(path) if is_volume(path) else read_image(path))


def example_of(paths: Sequence[Path]) -> np.ndarray | None:
    """An empty volume as large as the first that can be read; None where the files are images.

    Raises:
        ValueError: If there are images and volumes, which no model takes both.
    """
    volumes = [path for path in paths if is_volume(path)]
    if volumes and len(volumes) < len(paths):
        other = next(path for path in paths if not is_volume(path))
        raise ValueError(f"images must be all volumes or none; got {volumes[0]} and {other}.")
    for i, path in enumerate(volumes):
        try:
            return np.zeros_like(read_volume(path))
        except ValueError:
            if i == len(volumes) - 1:
                raise
    return None


def prepare(settings: Settings, example: np.ndarray | None = None) -> Explainer:
    """Loads the model and settles all that does not depend on an image.

    Args:
        settings (Settings): The wishes.
        example (array, optional): A volume of the size to come. Default: None (a blank image)

    Returns:
        *Explainer*: The model on its device, and an explainer for it.

    Raises:
        ValueError: If a wish cannot be fulfilled.
        ImportError: If a package is missing.
    """
    clusterer = as_clusterer(settings.clusterer, settings.clusters, settings.seed)
    as_weighting(settings.weighting)  # a wrong name shows before a model is downloaded
    device = _device(settings.device)
    loaded = load(settings.model, settings.checkpoint, settings.weights)
    loaded.model.to(device)
    # a blank image tells the size of the input, the layers that run and the number of classes
    blank = Image.new("RGB", (256, 256)) if example is None else example
    x = _input(loaded, blank, device)
    layer = find_layer(loaded.model, settings.layer, x)
    with torch.no_grad():
        scores = _scores(loaded, x)
    target = None
    if settings.target != "top":
        target = resolve_target(settings.target, scores, loaded.class_names)
    cam = ClusteredLayerAblation(
        loaded.model,
        layer.layer,
        clusterer=clusterer,
        weighting=settings.weighting,
        channel_dim=layer.channel_dim,
        reshape_transform=layer.reshape_transform,
    )
    return Explainer(settings, loaded, layer, cam, device, target)


def explain_image(
    explainer: Explainer, path: Path, *, frame: int = 1, levels: bool = False
) -> Explanation:
    """Explains one image file.

    Args:
        explainer (Explainer): From :func:`prepare`.
        path (Path): The image.
        frame (int, optional): Which frame of a DICOM file, from 1. Default: 1
        levels (bool, optional): Whether to explain it with other numbers of groups as well.
            Default: False

    Returns:
        *Explanation*: The heat map and the record of how it came about.

    Raises:
        ValueError: If the file is not an image, or the layer gives no maps with the image's axes.
    """
    loaded = explainer.loaded
    begin = time.perf_counter()
    picture = read_picture(path, frame)
    x = _input(loaded, picture.pixels, explainer.device)
    read = time.perf_counter()
    with torch.no_grad():
        scores = _scores(loaded, x).float().cpu()
    target = explainer.target
    if target is None:
        target = resolve_target("top", scores, loaded.class_names)
    forward = time.perf_counter()
    result = explainer.cam.explain(x, target, attribute_to_layer_input=explainer.layer.at_input)
    raw = _spatial(result.attributions, x)
    heatmap = _enlarged(raw, x)
    end = time.perf_counter()

    probability, how = _probability(scores, target)
    name = None if loaded.class_names is None else loaded.class_names[target]
    note = describe(heatmap)
    record = {
        # folders of a hospital's files are often named after patients
        "image": path.name if picture.is_dicom else str(path),
        "image_size": picture.size,
        **({"frame": {"number": frame, "of": picture.frames}} if picture.is_dicom else {}),
        "settings": _chosen(explainer),
        "versions": versions(),
        "target": {
            "index": target,
            "name": name,
            "score": float(scores[target]),
            "probability": probability,
            "probability_is": how,
        },
        "heatmap": {
            "shape": list(heatmap.shape),
            "dtype": "float32",
            "range": [0.0, 1.0],
            "note": note,
            "meaning": "the map enlarged linearly to the model's input and scaled from its "
            "minimum to its maximum; rows and columns are those of the image in the overlay",
        },
        "map": {
            "shape": list(raw.shape[2:]),
            "dtype": "float32",
            "range": [float(raw.min()), float(raw.max())],
            "meaning": "the weighted sum of the layer's maps, negative values set to 0, in the "
            "layer's own resolution",
        },
        "groups": _group_records(result),
        **_map_counts(result),
        "replay": {"path": result.replay, "reason": result.replay_reason},
        "seconds": {
            "read": read - begin,
            "forward": forward - read,
            "explain": end - forward,
        },
    }
    title = _title(target, name, probability)
    return Explanation(
        image=_displayed(loaded, picture.pixels, x),
        heatmap=heatmap,
        map=raw[0, 0].float().cpu().numpy(),
        title=f"{title}, random weights" if loaded.weights == "random" else title,
        record=record,
        path=path,
        frame=frame,
        classes=_highest(scores, target, loaded.class_names) if levels else (),
        levels=_levels(explainer, x, target, result) if levels else {},
    )


def _levels(
    explainer: Explainer, x: Tensor, target: int, result: ClusteredAttribution
) -> dict[int, ClusteredAttribution]:
    """The same with other numbers of groups: one tree cut anew, or the same clusterer again."""
    chosen = explainer.settings.clusters
    clusterer: Any = explainer.cam.clusterer
    if not hasattr(clusterer, "n_clusters"):
        return {chosen: result}
    maps = result.activations
    assert isinstance(maps, torch.Tensor)
    n_live = int((maps[0].flatten(1) != 0).any(1).sum())
    counts = [k for k in _LEVELS if k <= max(chosen, 64) and k < n_live and k != chosen]
    tree = clusterer.tree(maps.flatten(2)) if isinstance(clusterer, Agglomerative) else None
    found = {chosen: result}
    for k in counts:
        cam = _cam(explainer, replace(clusterer, n_clusters=k) if tree is None else tree.cut(k))
        found[k] = cam.explain(x, target, attribute_to_layer_input=explainer.layer.at_input)
    return found


def _cam(explainer: Explainer, clusterer: Any) -> ClusteredLayerAblation:
    layer = explainer.layer
    return ClusteredLayerAblation(
        explainer.loaded.model,
        layer.layer,
        clusterer=clusterer,
        weighting=explainer.settings.weighting,
        channel_dim=layer.channel_dim,
        reshape_transform=layer.reshape_transform,
    )


def _highest(
    scores: Tensor, target: int, class_names: Sequence[str] | None
) -> tuple[ClassScore, ...]:
    order = scores.argsort(descending=True).tolist()[:_CLASSES]
    return tuple(
        ClassScore(
            index=index,
            name=None if class_names is None else class_names[index],
            score=float(scores[index]),
            probability=_probability(scores, index)[0],
            is_target=index == target,
        )
        for index in (order if target in order else [*order, target])
    )


def _displayed(loaded: LoadedModel, pixels: Image.Image | np.ndarray, x: Tensor) -> np.ndarray:
    if not isinstance(pixels, np.ndarray):
        return loaded.display(pixels)
    voxels = x[0].detach().float().cpu().nan_to_num().mean(0)
    grey = normalize(voxels[None])[0].numpy()
    shown: np.ndarray = grey[..., None].repeat(3, axis=-1)
    return shown


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import captum

    return {
        "captum_clustered": version("captum-clustered"),
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"`device` must be one of auto, cpu, cuda; got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` cuda is not available here; use auto or cpu.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _input(loaded: LoadedModel, pixels: Image.Image | np.ndarray, device: str) -> Tensor:
    is_volume = isinstance(pixels, np.ndarray)
    axes = "(C, D, H, W)" if is_volume else "(C, H, W)"
    try:
        x: Any = loaded.transform(pixels)  # type: ignore[arg-type]
    except Exception as error:
        if not is_volume:
            raise
        raise ValueError(
            "the model's transform must turn a float32 array (D, H, W) into a tensor (C, D, H, W) "
            f"for volumes; it failed ({type(error).__name__}). Use --model package.module:callable "
            "with a callable that returns the model and such a transform."
        ) from error
    if not isinstance(x, torch.Tensor) or x.ndim != (4 if is_volume else 3):
        got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"the model's transform must return a tensor {axes}; got {got}.")
    return x.unsqueeze(0).to(device)


def _scores(loaded: LoadedModel, x: Tensor) -> Tensor:
    """The scores of the one example in `x`, `(n_classes,)`."""
    output = loaded.model(x)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"`model` must return scores of shape (N, n_classes); got {got}.")
    return output[0]


def _probability(scores: Tensor, target: int) -> tuple[float, str]:
    if bool((scores >= 0).all()) and math.isclose(float(scores.sum()), 1, abs_tol=1e-4):
        return float(scores[target]), "the score: the model returns probabilities"
    return float(scores.softmax(0)[target]), "softmax of the scores"


def _spatial(attributions: Any, x: Tensor) -> Tensor:
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
    heat: Tensor = attributions
    return heat


def _enlarged(heat: Tensor, x: Tensor) -> np.ndarray:
    """The heat map in [0, 1], as large as the model's input."""
    large = enlarge(heat.detach().float(), x.shape[2:])
    heatmap: np.ndarray = normalize(large)[0, 0].cpu().numpy()
    return heatmap


def _chosen(explainer: Explainer) -> dict[str, Any]:
    settings, layer = explainer.settings, explainer.layer
    checkpoint = settings.checkpoint
    return {
        **asdict(settings),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "model": explainer.loaded.name,
        "weights": explainer.loaded.weights,
        "layer": layer.name,
        "layer_asked_for": settings.layer,
        "target_asked_for": settings.target,
        "target": "top" if explainer.target is None else explainer.target,
        "attribute_to_layer_input": layer.at_input,
        "channel_dim": layer.channel_dim,
        "clusterer_settings": repr(explainer.cam.clusterer),
        "device": explainer.device,
    }


def _group_records(result: ClusteredAttribution) -> list[dict[str, Any]]:
    """The groups, largest first."""
    labels, valid, ablated, weights = (
        getattr(result, field)[0].cpu()
        for field in ("labels", "valid", "ablated_scores", "group_weights")
    )
    score = float(result.scores[0])
    records = [
        {
            "group": group,
            "maps": int((labels == group).sum()),
            "drop": score - float(ablated[group]),
            "score_without": float(ablated[group]),
            "weight": float(weights[group]),
        }
        for group in valid.nonzero().flatten().tolist()
    ]
    return sorted(records, key=lambda record: -record["maps"])


def _map_counts(result: ClusteredAttribution) -> dict[str, int]:
    activations, labels = result.activations[0], result.labels[0]
    assert not isinstance(activations, tuple)
    dead = int((activations.flatten(1) == 0).all(1).sum())
    return {
        "maps": len(activations),
        "dead_maps": dead,
        "maps_in_no_group": int((labels < 0).sum()) - dead,
    }


def _title(target: int, name: str | None, probability: float) -> str:
    chance = "below 0.01" if probability < 0.01 else f"{probability:.2f}"
    return f"{name or 'class'} ({target}), probability {chance}"


# --- demo -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Demo:
    """What the demo found out about one photograph."""

    name: str
    title: str
    image: np.ndarray
    heatmaps: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]  # medians
    result: ClusteredAttribution


def demo_photographs() -> Iterator[tuple[str, Image.Image]]:
    """The two photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images()
    for file, pixels in zip(photographs.filenames, photographs.images, strict=True):
        yield Path(file).name, Image.fromarray(pixels)


def run_demo(explainer: Explainer, name: str, image: Image.Image) -> Demo:
    """Explains a photograph by Grad-CAM and by Clustered-CAM, and times both.

    Args:
        explainer (Explainer): From :func:`prepare`.
        name (str): The photograph's file name.
        image (PIL.Image.Image): The photograph.

    Returns:
        *Demo*: Both heat maps, the groups, and the median time of a few rounds in turns.
    """
    from captum.attr import LayerGradCam

    loaded, layer = explainer.loaded, explainer.layer
    x = _input(loaded, image, explainer.device)
    with torch.no_grad():
        scores = _scores(loaded, x).cpu()
    target = int(scores.argmax())
    grad_cam = LayerGradCam(loaded.model, layer.layer)
    runs: dict[str, Callable[[], Any]] = {
        "Grad-CAM": lambda: grad_cam.attribute(
            x, target, attribute_to_layer_input=layer.at_input, relu_attributions=True
        ),
        "Clustered-CAM": lambda: explainer.cam.explain(
            x, target, attribute_to_layer_input=layer.at_input
        ),
    }
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    found = {method: run() for method, run in runs.items()}  # the first run also warms up
    for _ in range(DEMO_ROUNDS):
        for method, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[method].append(time.perf_counter() - begin)
    result: ClusteredAttribution = found["Clustered-CAM"]
    found["Clustered-CAM"] = result.attributions
    class_name = None if loaded.class_names is None else loaded.class_names[target]
    return Demo(
        name=name,
        title=_title(target, class_name, _probability(scores, target)[0]),
        image=loaded.display(image),
        heatmaps={m: _enlarged(_spatial(heat, x), x) for m, heat in found.items()},
        seconds={method: median(times) for method, times in seconds.items()},
        result=result,
    )


def describe_demo(demo: Demo, pictures: Sequence[Path]) -> str:
    """The demo's outcome in words."""
    counts = _map_counts(demo.result)
    groups = int(demo.result.valid[0].sum())
    times = [f"  {method:<14}{1000 * s:6.0f} ms" for method, s in demo.seconds.items()]
    times[-1] += f"  ({groups} groups of {counts['maps']} maps, {counts['dead_maps']} of them dead)"
    return "\n".join(
        [f"{demo.name}: {demo.title}", *times, *[f"  {picture}" for picture in pictures]]
    )
