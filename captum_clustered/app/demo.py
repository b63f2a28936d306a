"""The command `demo`: two photographs by Grad-CAM and Clustered-CAM, with times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from captum.attr import LayerGradCam
from PIL import Image

from captum_clustered._files import make_folder, write_figure
from captum_clustered.explainers.ablation import ClusteredLayerAblation
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.heatmap import scaled
from captum_clustered.models.prepared import Prepared, prepare
from captum_clustered.visualization import compare, groups

__all__ = ["ROUNDS", "Demo", "compare_methods", "photographs", "run_demo"]

ROUNDS = 5
"""How often each method is timed."""


@dataclass(frozen=True)
class Demo:
    """What the demo found out about one photograph.

    Attributes:
        name (str): Its file name.
        title (str): The class and its probability.
        image (array): What the model sees, `(H, W, 3)` in [0, 1].
        heatmaps (mapping): `(H, W)` in [0, 1], by method.
        seconds (mapping): Median time, by method.
        result (ClusteredAttribution): Of Clustered-CAM.
    """

    name: str
    title: str
    image: np.ndarray
    heatmaps: Mapping[str, np.ndarray]
    seconds: Mapping[str, float]
    result: ClusteredAttribution


def run_demo(out: Path) -> Iterator[str]:
    """Explains the photographs and writes two pictures of each.

    Args:
        out (Path): The folder of the pictures; it is made if missing.

    Yields:
        What was found, line by line.

    Raises:
        ImportError: If the packages of the model are missing.
    """
    prepared = prepare("efficientnet-lite0")
    make_folder(out, "out")
    for name, image in photographs():
        found = compare_methods(prepared, name, image)
        stem = Path(name).stem
        figures = {
            out / f"{stem}.compare.png": compare(found.image, found.heatmaps, title=found.title),
            out / f"{stem}.groups.png": groups(found.result, image=found.image, title=found.title),
        }
        for path, figure in figures.items():
            write_figure(path, figure)
        yield from _words(found)
        yield from (f"  {path}" for path in figures)
    yield f"Times are medians of {ROUNDS} runs on {prepared.device}."


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """The two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    for file, pixels in zip(found.filenames, found.images, strict=True):
        yield Path(file).name, Image.fromarray(pixels)


def compare_methods(prepared: Prepared, name: str, image: Image.Image) -> Demo:
    """Explains a photograph by Grad-CAM and by Clustered-CAM, and times both.

    Args:
        prepared (Prepared): The model with its layer.
        name (str): The photograph's file name.
        image (PIL.Image.Image): The photograph.

    Returns:
        *Demo*: Both heat maps, the groups, and the median times; the methods run in turn.
    """
    layer = prepared.layer
    x = prepared.input(image)
    scores = prepared.scores(x)[0].cpu()
    target = int(scores.argmax())
    grad_cam = LayerGradCam(prepared.model, layer.layer)
    clustered = prepared.explainer(ClusteredLayerAblation)
    runs: dict[str, Callable[[], Any]] = {
        "Grad-CAM": lambda: grad_cam.attribute(
            x, target, attribute_to_layer_input=layer.at_input, relu_attributions=True
        ),
        "Clustered-CAM": lambda: clustered.explain(
            x, target, attribute_to_layer_input=layer.at_input
        ),
    }
    seconds: dict[str, list[float]] = {method: [] for method in runs}
    found = {method: run() for method, run in runs.items()}  # the first run also warms up
    for _ in range(ROUNDS):
        for method, run in runs.items():
            begin = time.perf_counter()
            run()
            seconds[method].append(time.perf_counter() - begin)
    result: ClusteredAttribution = found["Clustered-CAM"]
    found["Clustered-CAM"] = result.attributions
    return Demo(
        name=name,
        title=prepared.title(scores, target),
        image=prepared.display(image),
        heatmaps={m: scaled(heat[0, 0], x.shape[2:]).numpy() for m, heat in found.items()},
        seconds={method: median(times) for method, times in seconds.items()},
        result=result,
    )


def _words(demo: Demo) -> list[str]:
    counts = demo.result.counts()
    groups = int(demo.result.valid[0].sum())
    times = [f"  {method:<14}{1000 * s:6.0f} ms" for method, s in demo.seconds.items()]
    times[-1] += f"  ({groups} groups of {counts['maps']} maps, {counts['dead_maps']} of them dead)"
    return [f"{demo.name}: {demo.title}", *times]
