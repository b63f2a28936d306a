"""A whole data set through many methods: rows on disk, tables with intervals, figures.

This is what ``captum-clustered evaluate`` runs. :mod:`plan <captum_clustered.evaluation.plan>` says
what is to be done, :mod:`images <captum_clustered.evaluation.images>` finds the images,
:mod:`running <captum_clustered.evaluation.running>` has the loop, in which
:mod:`measures <captum_clustered.evaluation.measures>` judges the maps;
:mod:`records <captum_clustered.evaluation.records>` keeps the rows, of which
:mod:`report <captum_clustered.evaluation.report>` and
:mod:`figures <captum_clustered.evaluation.figures>` make tables and pictures, and
:mod:`pages <captum_clustered.evaluation.pages>` HTML. Here they are put together.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered import methods
from captum_clustered._files import require, whole
from captum_clustered.clustering import as_clusterer
from captum_clustered.evaluation import figures, measures, pages, records, report, running
from captum_clustered.evaluation.images import (
    Item,
    find_images,
    labels_of,
    load_mask,
    pixel_scale,
)
from captum_clustered.evaluation.plan import Kind, Settings, Variant, listed, numbers, variants
from captum_clustered.evaluation.processes import World, joined
from captum_clustered.fills import Fill, describe
from captum_clustered.layers import TargetLayer, find_layer
from captum_clustered.models import LoadedModel, load, read_image

__all__ = ["Outcome", "Settings", "evaluate", "listed", "numbers", "summarize"]

_PACKAGES = ("captum", "captum-clustered", "numpy", "scikit-learn", "torchvision")


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Attributes:
        images (int): Number of images.
        variants (int): Number of lines of the table.
        failed (int): Number of images of which a row says that it failed.
        rows (int): Number of rows.
        failed_rows (int): Number of those that failed.
        files (list[Path]): What was written.
    """

    images: int
    variants: int
    failed: int
    rows: int
    failed_rows: int
    files: list[Path]


def evaluate(settings: Settings, say: Callable[[str], object] = print) -> Outcome | None:
    """Evaluates methods on images; goes on where an earlier call with these settings stopped.

    Args:
        settings (Settings): The wishes.
        say (callable, optional): Told in a line what goes on. Default: print

    Returns:
        *Outcome* or *None*: None in all processes but the first, which writes the tables.

    Raises:
        ValueError: If a wish cannot be fulfilled, or `out` has rows of other settings.
        RuntimeError: If a row cannot be written, as on a full disk; or if every image failed.
        ImportError: If a package is missing.
    """
    with joined() as world:
        job = _prepare(settings, world)
        out = settings.out
        with _folder(job, world):
            there = set(records.read_rows(out))
            batches = running.share(job.work, there, world.rank, world.size)
            world.wait()  # nobody writes before all have read
            missing = sum(
                records.key_of(task.image, variant) not in there
                for batch in batches
                for task in batch
                for variant in job.variants
            )
            if world.leads and there:
                say(f"{out} has {len(there)} of {len(job.keys)} rows; going on with the others")
            with records.Rows(out, world.rank) as rows, _bar(missing, world) as tick:
                try:
                    running.run(job.work, batches, there, rows, tick)
                except KeyboardInterrupt:
                    say("stopped; the same command goes on from here")
                    raise
            world.wait()
            return _finish(job) if world.leads else None


def summarize(outcome: Outcome) -> str:
    """An outcome in words."""
    lines = [f"{outcome.images} images, {outcome.variants} variants"]
    if outcome.failed:
        counted = "1 image" if outcome.failed == 1 else f"{outcome.failed} images"
        lines[0] += f"; {counted} failed, rows.jsonl says why"
    return "\n".join([*lines, *[f"  {path}" for path in outcome.files]])


# --- before the loop ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Job:
    """Settings that have become things."""

    settings: Settings
    work: running.Work
    variants: list[Variant]
    metrics: tuple[str, ...]
    config: dict[str, Any]
    notes: list[str]
    show: Callable[[str], Any]

    @property
    def images(self) -> list[str]:
        return [task.image for task in self.work.tasks]

    @property
    def keys(self) -> list[records.Key]:
        return [records.key_of(image, v) for image in self.images for v in self.variants]


def _prepare(settings: Settings, world: World) -> _Job:
    if settings.html:
        require("jinja2", "html", "to write HTML pages")
    wanted = variants(settings, _kinds())
    items = find_images(settings.data, settings.limit)
    metrics = measures.check_metrics(
        settings.metrics, settings.score, any(item.has_object for item in items)
    )
    device = world.device(_device(settings.device))
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # random weights are the same in all processes
        loaded = load(settings.model, settings.checkpoint, settings.weights)
    loaded.model.to(device)
    example = _example(loaded).to(device)
    layer = find_layer(loaded.model, settings.layer, example)
    n_classes = _n_classes(loaded.model, example, settings.score)
    labels, how = labels_of(items, n_classes, loaded.class_names)
    if settings.target == "given" and None in labels:
        raise ValueError(
            f"`target` given must have a class of the model for each image; "
            f"{labels.count(None)} of {len(items)} have none, the first being "
            f"{items[labels.index(None)].name}. Name classes by index, or use predicted."
        )
    fill = _fill(settings.fill, loaded)
    mask_fill = None if settings.mask_fill == "own" else _fill(settings.mask_fill, loaded)
    needs_object = any(measures.METRICS[name].needs_object for name in metrics)
    work = running.Work(
        tasks=[
            running.Task(item.name, item.case, label, partial(_load, item, loaded, needs_object))
            for item, label in zip(items, labels, strict=True)
        ],
        explainers={v: _explainer(v, loaded.model, layer, settings, mask_fill) for v in wanted},
        begin=partial(
            _begin, loaded.model, device, fill=fill, score=settings.score, step=settings.step
        ),
        measure=partial(measures.measure, metrics),
        target_given=settings.target == "given",
        batch_size=settings.batch_size,
        synchronize=torch.cuda.synchronize if device.startswith("cuda") else None,
    )
    compared = {
        "data": f"{len(items)} images, {_digest(repr(items).replace(str(settings.data), ''))}",
        "classes": how,
        "limit": settings.limit,
        "model": loaded.name,
        "weights": loaded.weights,
        "parameters": _digest(*loaded.model.state_dict().values()),
        "transform": _digest(*_probes(loaded)),
        "layer": layer.name,
        "attribute_to_layer_input": layer.at_input,
        "target": settings.target,
        "score": settings.score,
        "fill": describe(fill),
        "mask_fill": "own" if mask_fill is None else describe(mask_fill),
        "metrics": list(metrics),
        "step": settings.step if {"insertion", "deletion"} & set(metrics) else None,
        "clusterer": _settings_of(settings.clusterer, settings.seed),
        "batch_size": settings.batch_size,
        "device": device.partition(":")[0],
        "seed": settings.seed,
        "versions": {"torch": torch.__version__, **{name: version(name) for name in _PACKAGES}},
        "variants": [str(variant) for variant in wanted],
    }
    config = {
        "compared": compared,
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(settings).items()
        },
        "conventions": _conventions(settings, fill, metrics),
        "machine": {
            "python": platform.python_version(),
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if "cuda" in device else "cpu",
            "threads": torch.get_num_threads(),
            "processes": world.size,
        },
    }
    paths = {item.name: item.path for item in items}
    return _Job(
        settings,
        work,
        wanted,
        metrics,
        config,
        _notes(config, items, loaded),
        lambda image: _shown(loaded, paths[image]),
    )


def _shown(loaded: LoadedModel, path: Path) -> Any:
    """What the model sees of an image; None where it cannot be read."""
    try:
        return loaded.display(read_image(path))
    except (ValueError, OSError):
        return None


def _kinds() -> dict[str, Kind]:
    return {
        name: Kind(method.clusters, method.weighting, method.control)
        for name, method in methods.METHODS.items()
    }


def _explainer(
    variant: Variant,
    model: nn.Module,
    layer: TargetLayer,
    settings: Settings,
    mask_fill: Fill | None,
) -> Callable[..., Tensor]:
    known = methods.METHODS[variant.method].settings
    chosen: dict[str, Any] = {
        "channel_dim": layer.channel_dim,
        "reshape_transform": layer.reshape_transform,
    }
    if variant.clusters is not None:
        chosen["n_clusters"] = variant.clusters
        if "clusterer" in known:
            chosen["clusterer"] = as_clusterer(settings.clusterer, variant.clusters, settings.seed)
    if variant.weighting is not None:
        chosen["weighting"] = variant.weighting
    if "seed" in known:
        chosen["seed"] = settings.seed
    if "fill" in known and mask_fill is not None:
        chosen["fill"] = mask_fill
    method: Any = methods.make(variant.method, model, layer.layer, **chosen)
    if layer.at_input:
        return partial(method.attribute, attribute_to_layer_input=True)
    attribute: Callable[..., Tensor] = method.attribute
    return attribute


def _begin(
    model: nn.Module,
    device: str,
    images: Tensor,
    objects: Tensor | None,
    classes: Tensor | None,
    **conventions: Any,
) -> measures.Batch:
    inputs = (None if part is None else part.to(device) for part in (images, objects, classes))
    return measures.begin(model, *inputs, **conventions)  # type: ignore[arg-type]


def _load(item: Item, loaded: LoadedModel, needs_object: bool) -> running.Loaded:
    image = read_image(item.path)
    pixels = loaded.transform(image)
    if not isinstance(pixels, Tensor) or pixels.ndim != 3:
        got = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(f"the model's transform must return a tensor (C, H, W); got {got}.")
    if not needs_object:
        return running.Loaded(pixels)
    return running.Loaded(pixels, load_mask(item, image, loaded.transform, pixels.shape[1:]))


def _settings_of(clusterer: str, seed: int) -> dict[str, Any]:
    """A clusterer's name with its settings, apart from the number of groups, which varies."""
    made: Any = as_clusterer(clusterer, 1, seed)
    fields = asdict(made) if is_dataclass(made) and not isinstance(made, type) else {}
    return {"name": clusterer, **fields, "n_clusters": None}


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise ValueError(f"`device` must be one of auto, cpu, cuda; got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("`device` cuda is not available here; use auto or cpu.")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _probes(loaded: LoadedModel) -> list[Tensor]:
    """What the transform makes of a picture in which every pixel differs from its neighbours."""
    from PIL import Image

    ramp = Image.linear_gradient("L")
    return [loaded.transform(Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180))))]


def _example(loaded: LoadedModel) -> Tensor:
    example = _probes(loaded)[0]
    if not isinstance(example, Tensor) or example.ndim != 3:
        got = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"the model's transform must return a tensor (C, H, W); got {got}.")
    return example.unsqueeze(0)


@torch.no_grad()
def _n_classes(model: nn.Module, example: Tensor, score: str) -> int:
    output = model(example)
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"`model` must return scores of shape (N, n_classes); got {got}.")
    if score == "softmax" and output.shape[1] < 2:
        raise ValueError(
            "`score` must be sigmoid or identity for a model of one class; got softmax."
        )
    sums_to_one = bool((output >= 0).all()) and abs(float(output.sum()) - 1) < 1e-4
    if score != "identity" and sums_to_one and output.shape[1] > 1:
        raise ValueError(
            f"`score` must be identity for a model that returns probabilities; got {score}."
        )
    return output.shape[1]


def _fill(name: str, loaded: LoadedModel) -> Fill:
    if name == "blur":
        return "blur"
    scale = pixel_scale(loaded.transform)
    if scale is None or (name == "mean" and not any(scale.values)):
        raise ValueError(
            f"`fill` {name} must be possible with the model's transform, which does not normalise "
            "each channel by a mean and a deviation. Use --fill blur."
        )
    return scale if name == "black" else "mean"


def _digest(*parts: str | Tensor) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(part.numpy().tobytes())
        else:
            found.update(part.encode())
    return found.hexdigest()[:12]


def _conventions(settings: Settings, fill: Fill, metrics: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "score": settings.score,
        "target": settings.target,
        "fill": describe(fill),
        "normalize": "minmax",
        "interpolation": "bilinear",
    }
    if {"insertion", "deletion"} & set(metrics):
        found["step"] = settings.step
    return found


def _notes(config: dict[str, Any], items: list[Item], loaded: LoadedModel) -> list[str]:
    compared = config["compared"]
    cases = len({item.case for item in items if item.case is not None})
    drawn = f"{cases} cases" if cases else "images"
    rates = "a bootstrap as well" if cases else "Wilson's score interval"
    notes = [
        f"{len(items)} images; model {loaded.name} ({loaded.weights}), layer {compared['layer']}.",
        f"Judged by the {compared['score']} score of the {compared['target']} class; hidden "
        f"pixels become {compared['fill']}; maps are enlarged bilinearly and scaled by minimum and "
        "maximum.",
        f"Intervals are 95 %: of a mean a percentile bootstrap over {drawn}; of a rate {rates}.",
        "Area is the mean of the map. It alone moves ADC, so that only maps of like area compare.",
        "Flat, not finite and negative count maps; they are part of all means. Failed images are "
        "not.",
        f"Time is the median of one map's, without reading and judging, on {compared['device']}, "
        f"{config['machine']['threads']} threads, batches of {compared['batch_size']}; first calls "
        "are left out.",
    ]
    if loaded.weights == "random":
        notes.insert(0, "The weights are random, so the numbers mean nothing.")
    return notes


# --- around the loop ------------------------------------------------------------------------------


@contextmanager
def _folder(job: _Job, world: World) -> Iterator[None]:
    """The folder of the results, checked once and locked."""
    out = job.settings.out
    problem = None
    lock = nullcontext() if not world.leads else records.sole_user(out)
    if world.leads:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            problem = f"`out` must be a folder; got {out}, where a file is."
    problem = world.from_leader(problem)
    if problem:
        raise ValueError(problem)
    with lock:
        if world.leads:
            try:
                records.check_config(out, job.config)
            except ValueError as error:
                problem = str(error)
        problem, compared = world.from_leader((problem, job.config["compared"]))
        if problem:
            raise ValueError(problem)
        if compared != job.config["compared"]:
            raise ValueError(
                "the processes must have the same data, model and versions; they differ."
            )
        if not (out / "config.json").exists():
            raise ValueError(f"`out` must be a folder that all processes share; got {out}.")
        yield


@contextmanager
def _bar(total: int, world: World) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    # a file that catches the bar should not fill with it
    pause = 0.5 if sys.stderr.isatty() else 30
    with tqdm(
        total=total,
        unit="row",
        smoothing=0.02,
        mininterval=pause,
        file=sys.stderr,
        disable=not world.leads or not total,
        desc=None if world.size == 1 else f"process 1 of {world.size}",
    ) as bar:
        yield bar.update


def _finish(job: _Job) -> Outcome:
    out = job.settings.out
    rows = records.read_rows(out)
    records.merge(out, rows, job.keys)
    columns = [
        report.Column(name, f"{metric.title} {metric.arrow}".strip(), metric.is_rate)
        for name in job.metrics
        for metric in [measures.METRICS[name]]
    ]
    found = report.make_report(
        rows, job.images, job.variants, columns, job.notes, job.settings.seed
    )
    texts = {
        "summary.csv": report.summary_csv(found),
        "summary.md": report.summary_md(found),
        "summary.tex": report.summary_tex(found),
        "differences.csv": report.differences_csv(found),
    }
    files = [out / "rows.jsonl", out / "config.json"]
    for name, text in texts.items():
        with whole(out / name) as part:
            part.write_text(text, encoding="utf-8")
        files.append(out / name)
    if job.settings.html:
        files.append(pages.write(out, found, rows, job.images, job.show))
    pictures = {"intervals": figures.intervals(found)}
    for kind in ("insertion", "deletion"):
        if kind in job.metrics:
            pictures[kind] = figures.curves(kind, rows, job.images, job.variants)
    for name, figure in pictures.items():
        for suffix in ("png", "pdf"):
            with whole(out / f"{name}.{suffix}") as part:
                figure.savefig(part, format=suffix)
            files.append(out / f"{name}.{suffix}")
    failed = [rows[key] for key in job.keys if rows[key]["status"] != "ok"]
    if len(failed) == len(job.keys):
        raise RuntimeError(f"every image failed, the first because of {failed[0]['reason']}")
    return Outcome(
        images=len(job.images),
        variants=len(job.variants),
        failed=len({row["image"] for row in failed}),
        rows=len(job.keys),
        failed_rows=len(failed),
        files=files,
    )
