"""The command line: explanations for people without code.

First come the commands, which only turn words into settings; then functions that gather and return
data, and can be called without a shell; then what writes files. What is heavy loads when a command
runs, not to show help.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from captum_clustered._files import whole, without_nan

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from torch import Tensor

    from captum_clustered.ablation import ClusteredAttribution, ClusteredLayerAblation
    from captum_clustered.layers import TargetLayer
    from captum_clustered.models import LoadedModel

__all__ = ["app", "main"]

_PROGRAM = "captum-clustered"
_USER_ERROR = 2
_EXPECTED = (ValueError, TypeError, ImportError, OSError, RuntimeError)
_DEMO_ROUNDS = 5


# --- commands -------------------------------------------------------------------------------------

app = typer.Typer(
    name=_PROGRAM,
    help="Clustered-CAM: which part of the image made the model say so?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from captum_clustered import __version__

        typer.echo(f"{_PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version  # its callback has done the work


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A torchvision model, timm:NAME, efficientnet-lite0, or package.module:callable "
            "that returns the model, or the model and its transform.",
        ),
    ],
    layer: Annotated[
        str, typer.Option(metavar="NAME", help="Dotted name of the layer, or auto.")
    ] = "auto",
    target: Annotated[
        str, typer.Option(metavar="CLASS", help="Index or name of the class to explain, or top.")
    ] = "top",
    clusters: Annotated[int, typer.Option(metavar="K", min=1, help="Number of groups.")] = 64,
    clusterer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What groups the maps: kmeans, cosine, agglomerative, contiguous, random, "
            "every-map.",
        ),
    ] = "kmeans",
    weighting: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How a drop becomes a weight: drop, drop_per_map, drop_per_mass, drop_per_norm.",
        ),
    ] = "drop_per_map",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the results go; made if missing.")
    ] = Path("explained"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="State dict of the model (.pth, .pt, .safetensors)."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="NAME", help="default (the published weights) or none (random)."),
    ] = "default",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the clusterer.")] = 0,
) -> None:
    """Explain images: write an overlay, a heat map and a record of each.

    For each IMAGE the folder --out gets STEM.overlay.png, STEM.heatmap.npy (the map in [0, 1], as
    large as what the model sees of the image), STEM.map.npy (the same before it was enlarged and
    scaled) and STEM.json (settings, versions, score, groups, timings). An image that cannot be read
    is reported and left out; the exit code is then 2.
    """
    settings = Settings(
        model=model,
        layer=layer,
        target=target,
        clusters=clusters,
        clusterer=clusterer,
        weighting=weighting,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        seed=seed,
    )
    with _short_warnings(), _working_directory_on_path():
        try:
            explainer = prepare(settings)
            make_folder(out)
        except _EXPECTED as error:
            _report(_one_line(error))
            raise typer.Exit(_USER_ERROR) from error
        if explainer.loaded.weights == "random":
            _report("the weights are random, so the pictures mean nothing", "warning")
        if not _explain_all(explainer, images, out):
            raise typer.Exit(_USER_ERROR)


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR|CSV",
            help="A folder of images, one with a folder for each class, or a CSV file with the "
            "columns path and, if known, class, case, mask, boxes (x0 y0 x1 y1; ...).",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="As for explain.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Separated by commas: clustered-cam, ablation-cam, ablation-cam-norm, grad-cam, "
            "egrad-cam, group-cam, clustered-group-cam, score-cam, clustered-score-cam, "
            "random-score-cam, clustered-opti-cam, adaptive-ablation-cam.",
        ),
    ] = "clustered-cam,ablation-cam,grad-cam",
    layer: Annotated[
        str, typer.Option(metavar="NAME", help="Dotted name of the layer, or auto.")
    ] = "auto",
    clusters: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Numbers of groups, separated by commas.")
    ] = "16,32,64",
    weightings: Annotated[
        str,
        typer.Option(metavar="NAMES", help="drop, drop_per_map, drop_per_mass, drop_per_norm."),
    ] = "drop_per_map",
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="adc, pic, ag, complement, adcc, coherency, insertion, deletion; where the "
            "data have masks or boxes also pointing, energy, iou. The area is always measured.",
        ),
    ] = "adc,pic",
    clusterer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What groups the maps: kmeans, cosine, agglomerative, contiguous, random, "
            "every-map.",
        ),
    ] = "kmeans",
    controls: Annotated[
        bool,
        typer.Option(
            help="Controls beside the methods: fake-cam, random-map, centre-gaussian, "
            "sum-of-maps, random-groups, contiguous-groups."
        ),
    ] = True,
    target: Annotated[
        str, typer.Option(metavar="WHICH", help="Class to judge by: predicted or given.")
    ] = "predicted",
    fill: Annotated[
        str, typer.Option(metavar="NAME", help="What hidden pixels become: black, mean or blur.")
    ] = "black",
    mask_fill: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What methods that mask the image put in the hidden part: own (the method's "
            "default), black, mean or blur.",
        ),
    ] = "own",
    score: Annotated[
        str, typer.Option(metavar="NAME", help="softmax, sigmoid or identity.")
    ] = "softmax",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only N images, spread over the data.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images that are explained together.")
    ] = 1,
    step: Annotated[
        int, typer.Option(metavar="N", help="Pixels at a time in insertion and deletion.")
    ] = 224,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the results go; made if missing.")
    ] = Path("evaluated"),
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State dict of the model.")
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="default (the published weights) or none (random).")
    ] = "default",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="INT", help="Of all that draws at random.")] = 0,
) -> None:
    """Compare methods on many images: rows, tables with intervals, figures.

    A run that was stopped goes on where it was when the same command is given again. For several
    processes: torchrun --nproc-per-node N -m captum_clustered evaluate ...
    """
    with _short_warnings(), _working_directory_on_path(), _reported():
        from captum_clustered.evaluation import Settings, evaluate, listed, numbers, summarize

        settings = Settings(
            data=data,
            model=model,
            out=out,
            methods=listed(methods),
            layer=layer,
            clusters=numbers(clusters),
            clusterer=clusterer,
            weightings=listed(weightings),
            metrics=listed(metrics),
            controls=controls,
            target=target,
            fill=fill,
            mask_fill=mask_fill,
            score=score,
            limit=limit,
            batch_size=batch_size,
            step=step,
            checkpoint=checkpoint,
            weights=weights,
            device=device,
            seed=seed,
        )
        outcome = evaluate(settings, lambda line: _report(line, "note"))
        if outcome is not None:
            typer.echo(summarize(outcome))


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the pictures go; made if missing.")
    ] = Path("captum-clustered-demo"),
) -> None:
    """Explain two photographs with EfficientNet-Lite0, beside Grad-CAM (needs the extra demo)."""
    with _short_warnings():
        try:
            explainer = prepare(Settings(model="efficientnet-lite0"))
            make_folder(out)
            for name, image in demo_photographs():
                result = run_demo(explainer, name, image)
                pictures = write_demo(result, out)
                typer.echo(describe_demo(result, pictures))
            typer.echo(f"Times are medians of {_DEMO_ROUNDS} runs on {explainer.device}.")
        except _EXPECTED as error:
            _report(_one_line(error))
            raise typer.Exit(_USER_ERROR) from error


@contextmanager
def _reported() -> Iterator[None]:
    """Ends the command with one line where something expected goes wrong."""
    try:
        yield
    except _EXPECTED as error:
        _report(_one_line(error))
        raise typer.Exit(_USER_ERROR) from error


def main() -> None:
    """Runs the command line."""
    app(prog_name=_PROGRAM)


def _explain_all(explainer: Explainer, images: Sequence[Path], out: Path) -> bool:
    """Explains each image; returns whether all could be."""
    from tqdm import tqdm

    stems = unique_stems(images)
    failures = 0
    with tqdm(total=len(images), unit="image", disable=len(images) < 2, file=sys.stderr) as bar:
        for path, stem in zip(images, stems, strict=True):
            try:
                explanation = explain_image(explainer, path)
                overlay = write_explanation(explanation, out, stem)
            except _EXPECTED as error:
                failures += 1
                line = _one_line(error)
                line = line if str(path) in line else f"{path}: {line}"
                bar.write(f"{_PROGRAM}: error: {line}", file=sys.stderr)
            else:
                bar.write(f"{path}: {explanation.title}, see {overlay}", file=sys.stdout)
            bar.update()
    return not failures


# --- gathering ------------------------------------------------------------------------------------


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

    image: np.ndarray  # (H, W, 3) in [0, 1]
    heatmap: np.ndarray  # (H, W) in [0, 1], float32
    map: np.ndarray  # (h, w), float32
    title: str
    record: dict[str, Any]


def prepare(settings: Settings) -> Explainer:
    """Loads the model and settles all that does not depend on an image.

    Args:
        settings (Settings): The wishes.

    Returns:
        *Explainer*: The model on its device, and an explainer for it.

    Raises:
        ValueError: If a wish cannot be fulfilled.
        ImportError: If a package is missing.
    """
    import torch
    from PIL import Image

    from captum_clustered.ablation import ClusteredLayerAblation
    from captum_clustered.clustering import as_clusterer
    from captum_clustered.layers import find_layer
    from captum_clustered.models import load, resolve_target
    from captum_clustered.weighting import as_weighting

    clusterer = as_clusterer(settings.clusterer, settings.clusters, settings.seed)
    as_weighting(settings.weighting)  # a wrong name shows before a model is downloaded
    device = _device(settings.device)
    loaded = load(settings.model, settings.checkpoint, settings.weights)
    loaded.model.to(device)
    # a blank image tells the size of the input, the layers that run and the number of classes
    example = _input(loaded, Image.new("RGB", (256, 256)), device)
    layer = find_layer(loaded.model, settings.layer, example)
    with torch.no_grad():
        scores = _scores(loaded, example)
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


def explain_image(explainer: Explainer, path: Path) -> Explanation:
    """Explains one image file.

    Args:
        explainer (Explainer): From :func:`prepare`.
        path (Path): The image.

    Returns:
        *Explanation*: The heat map and the record of how it came about.

    Raises:
        ValueError: If the file is not an image, or the layer gives no two-dimensional maps.
    """
    import torch

    from captum_clustered.models import read_image, resolve_target
    from captum_clustered.visualization import describe

    loaded = explainer.loaded
    begin = time.perf_counter()
    image = read_image(path)
    x = _input(loaded, image, explainer.device)
    read = time.perf_counter()
    with torch.no_grad():
        scores = _scores(loaded, x).float().cpu()
    target = explainer.target
    if target is None:
        target = resolve_target("top", scores, loaded.class_names)
    forward = time.perf_counter()
    result = explainer.cam.explain(x, target, attribute_to_layer_input=explainer.layer.at_input)
    raw = _two_dimensional(result.attributions)
    heatmap = _enlarged(raw, x)
    end = time.perf_counter()

    probability, how = _probability(scores, target)
    name = None if loaded.class_names is None else loaded.class_names[target]
    note = describe(heatmap)
    record = {
        "image": str(path),
        "image_size": {"width": image.width, "height": image.height},
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
            "meaning": "the map enlarged (bilinear) to the model's input and scaled from its "
            "minimum to its maximum; rows and columns are those of the image in the overlay",
        },
        "map": {
            "shape": list(raw.shape[-2:]),
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
        image=loaded.display(image),
        heatmap=heatmap,
        map=raw[0, 0].float().cpu().numpy(),
        title=f"{title}, random weights" if loaded.weights == "random" else title,
        record=record,
    )


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    import captum
    import torch

    import captum_clustered

    return {
        "captum_clustered": captum_clustered.__version__,
        "captum": captum.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results: its stem, with a number where another has it already.

    Example::

        >>> unique_stems([Path("a/cat.png"), Path("b/Cat.jpg"), Path("cat-2.png")])
        ['cat', 'Cat-3', 'cat-2']
    """
    stems = [path.stem for path in paths]
    taken = {stem.casefold() for stem in stems}  # some file systems do not tell Cat from cat
    seen: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 2
        while name.casefold() in (seen if name == stem else seen | taken):
            name, number = f"{stem}-{number}", number + 1
        seen.add(name.casefold())
        names.append(name)
    return names


def _device(name: str) -> str:
    import torch

    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"`device` must be one of auto, cpu, cuda; got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` cuda is not available here; use auto or cpu.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _input(loaded: LoadedModel, image: Image.Image, device: str) -> Tensor:
    import torch

    x = loaded.transform(image)
    if not isinstance(x, torch.Tensor) or x.ndim != 3:
        got = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
        raise ValueError(f"the model's transform must return a tensor (C, H, W); got {got}.")
    return x.unsqueeze(0).to(device)


def _scores(loaded: LoadedModel, x: Tensor) -> Tensor:
    """The scores of the one example in `x`, `(n_classes,)`."""
    import torch

    output = loaded.model(x)
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"`model` must return scores of shape (N, n_classes); got {got}.")
    return output[0]


def _probability(scores: Tensor, target: int) -> tuple[float, str]:
    if bool((scores >= 0).all()) and math.isclose(float(scores.sum()), 1, abs_tol=1e-4):
        return float(scores[target]), "the score: the model returns probabilities"
    return float(scores.softmax(0)[target]), "softmax of the scores"


def _two_dimensional(attributions: Any) -> Tensor:
    if isinstance(attributions, tuple):
        raise ValueError(
            f"`layer` must give one tensor; it gives {len(attributions)}. Choose another."
        )
    if attributions.ndim != 4:
        raise ValueError(
            "`layer` must give maps of two dimensions; its heat map has shape "
            f"{tuple(attributions.shape)}. Choose another."
        )
    heat: Tensor = attributions
    return heat


def _enlarged(heat: Tensor, x: Tensor) -> np.ndarray:
    """The heat map `(H, W)` in [0, 1], as large as the model's input."""
    from captum.attr import LayerAttribution

    from captum_clustered.heatmap import normalize

    large = LayerAttribution.interpolate(heat.detach().float(), tuple(x.shape[-2:]), "bilinear")
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
    from PIL import Image
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
    import torch
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
    for _ in range(_DEMO_ROUNDS):
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
        heatmaps={m: _enlarged(_two_dimensional(heat), x) for m, heat in found.items()},
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


# --- writing --------------------------------------------------------------------------------------


def make_folder(out: Path) -> None:
    """Makes a folder for results, with those around it, unless it is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"`out` must be a folder; got {out}, where a file is.") from error


def write_explanation(explanation: Explanation, out: Path, stem: str) -> Path:
    """Writes an explanation's files into a folder, the record last.

    Args:
        explanation (Explanation): From :func:`explain_image`.
        out (Path): The folder.
        stem (str): How the files' names begin.

    Returns:
        *Path*: The overlay.
    """
    from captum_clustered.visualization import compare

    files = {
        "overlay": out / f"{stem}.overlay.png",
        "heatmap": out / f"{stem}.heatmap.npy",
        "map": out / f"{stem}.map.npy",
    }
    figure = compare(
        explanation.image, {"Clustered-CAM": explanation.heatmap}, title=explanation.title
    )
    _save_figure(figure, files["overlay"])
    _save_array(explanation.heatmap, files["heatmap"])
    _save_array(explanation.map, files["map"])
    record = dict(explanation.record, files={kind: path.name for kind, path in files.items()})
    text = json.dumps(without_nan(record), indent=2, ensure_ascii=False, allow_nan=False)
    with whole(out / f"{stem}.json") as part:
        part.write_text(text + "\n", encoding="utf-8")
    return files["overlay"]


def write_demo(demo: Demo, out: Path) -> list[Path]:
    """Writes the pictures of a photograph; returns where they are."""
    from captum_clustered.visualization import compare, groups

    stem = Path(demo.name).stem
    figures = {
        out / f"{stem}.compare.png": compare(demo.image, demo.heatmaps, title=demo.title),
        out / f"{stem}.groups.png": groups(demo.result, image=demo.image, title=demo.title),
    }
    for path, figure in figures.items():
        _save_figure(figure, path)
    return list(figures)


def _save_figure(figure: Any, path: Path) -> None:
    with whole(path) as part:
        figure.savefig(part, format="png")


def _save_array(array: np.ndarray, path: Path) -> None:
    import numpy as np

    with whole(path) as part, part.open("wb") as file:
        np.save(file, array)


# --- words ----------------------------------------------------------------------------------------


def _report(line: str, kind: str = "error") -> None:
    typer.echo(f"{_PROGRAM}: {kind}: {line}", err=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Shows warnings as one line each, without the code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _report(" ".join(str(message).split()), "warning")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Lets ``--model module:callable`` find a module in the working directory, as Python would."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
