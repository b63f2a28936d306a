"""Settings become things: images, model, methods, metrics, and what the results are compared by."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import require
from captum_clustered._pictures import counted
from captum_clustered.clustering import as_clusterer
from captum_clustered.evaluation.images import (
    Item,
    find_images,
    labels_of,
    load_image,
    unknown_class,
)
from captum_clustered.evaluation.judging import (
    Batch,
    Metric,
    as_metrics,
    begin,
    check_metrics,
    measure,
)
from captum_clustered.evaluation.plan import Choices, Settings
from captum_clustered.evaluation.processes import World
from captum_clustered.evaluation.resampling import MANY
from captum_clustered.evaluation.rows import OWN, Grid, Variant
from captum_clustered.evaluation.running import Task, Work
from captum_clustered.evaluation.variants import (
    AnyMethod,
    Outside,
    as_maps,
    as_methods,
    make_explainer,
    named,
    variants,
)
from captum_clustered.fills import Fill, describe
from captum_clustered.models.images import example_of, probe, read_picture
from captum_clustered.models.loading import import_object
from captum_clustered.models.prepared import Prepared, find_device, prepare

__all__ = ["Job", "find_methods", "prepare_choices", "prepare_job"]

_PACKAGES = ("captum", "captum-clustered", "numpy", "scikit-learn", "torchvision")


@dataclass(frozen=True, eq=False)
class Job:
    """An evaluation that is ready to run.

    Attributes:
        settings (Settings): What it was made from.
        work (Work): What is done with each image.
        variants (list[Variant]): The lines of the table.
        metrics (dict[str, Metric]): What is measured.
        config (dict): What ``config.json`` will hold.
        notes (list[str]): What one must know to read the numbers.
        show (callable): From the name of an image to what the model sees of it, `(H, W, 3)` in
            [0, 1]; None if it cannot be read.
        inputs (mapping): From the name of each image to the files from which its rows are made.
        class_name (callable): From the index of a class to its name and index in words.
    """

    settings: Settings
    work: Work
    variants: list[Variant]
    metrics: dict[str, Metric]
    config: dict[str, Any]
    notes: list[str]
    show: Callable[[str], np.ndarray | None]
    inputs: Mapping[str, Sequence[Path]]
    class_name: Callable[[int], str]

    @cached_property
    def images(self) -> list[str]:
        """The names of the images, in the order of the data."""
        return [task.image for task in self.work.tasks]

    @cached_property
    def grid(self) -> Grid:
        """All rows that are wanted."""
        return Grid(self.images, self.variants)


def prepare_job(
    settings: Settings,
    world: World,
    methods: Mapping[str, Any],
    metrics: Mapping[str, Any],
    calibrated: Callable[[Mapping[str, Metric]], dict[str, Metric]],
) -> Job:
    """Checks the settings and loads what they name.

    Args:
        settings (Settings): The settings.
        world (World): The processes.
        methods (mapping): From a name to a method or a callable; see
            :func:`captum_clustered.evaluation.variants.as_methods`.
        metrics (mapping): From a name to a metric or a callable; see
            :func:`captum_clustered.evaluation.judging.as_metrics`.
        calibrated (callable): Adds the metrics of calibrated maps, where the settings ask for them;
            see :func:`captum_clustered.evaluation.calibrating.with_calibration`.

    Returns:
        *Job*: Ready to run. Nothing has been written.

    Raises:
        ValueError: If a setting does not fit the data or the model.
        TypeError: If a method or metric from outside is not callable.
        ImportError: If a package is missing.
    """
    if settings.html:
        require("jinja2", "html", "to write HTML pages")
    known = find_methods(settings.methods, methods)
    wanted = variants(settings, known, settings.controls)
    items = find_images(settings.data, settings.limit, settings.out)
    has_objects = any(item.has_object for item in items)
    more = {name: import_object("metric", name) for name in settings.metrics if ":" in name}
    table = as_metrics({**metrics, **more})
    check_metrics(settings.metrics, table, "softmax", has_objects)  # before a model is loaded
    paths = [item.path for item in items]
    prepared = prepare_choices(settings, paths, world.device(find_device(settings.device)))
    settings = replace(settings, score=_score(prepared))
    chosen = check_metrics(settings.metrics, table, settings.score, has_objects)
    chosen = calibrated(chosen) if settings.calibrate else chosen
    fill = prepared.fill(settings.fill)
    mask_fill = None if settings.mask_fill == OWN else prepared.fill(settings.mask_fill)
    tasks, classes, judged = _tasks(items, settings, prepared, chosen)
    work = Work(
        tasks=tasks,
        explainers={v: _explain(v, known[v.method], prepared, settings, mask_fill) for v in wanted},
        begin=partial(
            _begin, prepared, judged=judged, fill=fill, score=settings.score, step=settings.step
        ),
        measure=partial(measure, chosen),
        batch_size=settings.batch_size,
        workers=settings.workers,
        synchronize=torch.cuda.synchronize if prepared.device.startswith("cuda") else None,
    )
    compared = {
        "data": f"{len(items)} images, {_digest(repr(items).replace(str(settings.data), ''))}",
        "classes": classes,
        "target": judged,
        **_compared(settings, prepared, fill, mask_fill, chosen),
        "variants": [str(variant) for variant in wanted],
    }
    config = {
        "compared": compared,
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in asdict(settings).items()
        },
        "conventions": _conventions(settings, judged, fill, chosen),
        "machine": _machine(prepared, world, settings.workers),
    }
    notes = _notes(config, items, prepared, chosen)
    show = partial(_shown, prepared, {item.name: item.path for item in items}, settings.frame)
    masked = any(metric.needs_object for metric in chosen.values())
    return Job(
        settings=settings,
        work=work,
        variants=wanted,
        metrics=chosen,
        config=config,
        notes=notes,
        show=show,
        inputs={item.name: item.files(masked) for item in items},
        class_name=partial(_class_in_words, prepared),
    )


def find_methods(names: Sequence[str], methods: Mapping[str, Any]) -> dict[str, AnyMethod]:
    """All methods by name, with those that are named as ``"module:callable"``.

    Args:
        names (sequence of str): Which are wanted.
        methods (mapping): As for :func:`captum_clustered.evaluation.variants.as_methods`.

    Returns:
        *dict[str, AnyMethod]*: The methods.

    Raises:
        ValueError: If a callable cannot be imported.
        TypeError: If one is not callable.
    """
    more = {name: import_object("method", name) for name in names if ":" in name}
    return as_methods({**methods, **more})


def prepare_choices(choices: Choices, paths: Sequence[Path], device: str) -> Prepared:
    """Prepares the model for the pictures to come.

    Args:
        choices (Choices): Model, layer, weights, checkpoint and seed.
        paths (sequence of Path): Where the pictures are.
        device (str): As for :func:`captum_clustered.models.prepare`.

    Returns:
        *Prepared*: The model with its layer.

    Raises:
        ValueError: If a choice does not fit, or there are both images and volumes.
        ImportError: If a package is missing.
    """
    return prepare(
        choices.model,
        layer=choices.layers[0],
        checkpoint=choices.checkpoint,
        weights=choices.weights,
        device=device,
        seed=choices.seed,
        score=choices.score,
        example=example_of(paths),
    )


# --- what the loop needs --------------------------------------------------------------------------


def _score(prepared: Prepared) -> str:
    """What becomes of the model's output; the sigmoid of a single logit."""
    score = prepared.score
    if not prepared.gives_probabilities:
        return score
    if score not in ("identity", "probabilities"):
        raise ValueError(
            f"`score` must be identity for a model that returns probabilities; got {score}."
        )
    return "probabilities"


def _tasks(
    items: Sequence[Item], settings: Settings, prepared: Prepared, metrics: Mapping[str, Metric]
) -> tuple[list[Task], str, str]:
    """A task for each image, how the classes of the data were read, and which class is judged."""
    labels, how = labels_of(items, prepared.n_classes, prepared.loaded.class_names)
    targets, judged = _targets(items, labels, settings.targets[0], prepared)
    needs_object = any(metric.needs_object for metric in metrics.values())
    reader = replace(prepared, device="cpu")  # another process must not touch the model's device
    tasks = [
        Task(
            image=item.name,
            case=item.case,
            label=label,
            load=partial(load_image, item, reader, settings.frame, needs_object),
            target=target,
        )
        for item, label, target in zip(items, labels, targets, strict=True)
    ]
    return tasks, how, judged


def _targets(
    items: Sequence[Item], labels: list[int | None], target: str, prepared: Prepared
) -> tuple[list[int | None], str]:
    """The class of each image that is explained, None for the predicted one; and in words which."""
    if target == "predicted":
        return [None] * len(items), target
    if target != "given":
        index = prepared.target(target)
        return [index] * len(items), str(index)
    strange = unknown_class(items, prepared.n_classes, prepared.loaded.class_names)
    if None in labels and strange is not None:
        where = "" if strange.line is None else f" in line {strange.line}"
        raise ValueError(
            f"`target` given must have a class of the model for each image; {strange.name}{where} "
            f"has {strange.label!r}, which is no name and no index of its {prepared.n_classes} "
            "classes."
        )
    if None in labels:
        raise ValueError(
            f"`target` given must have a class of the model for each image; "
            f"{labels.count(None)} of {len(items)} have none, the first being "
            f"{items[labels.index(None)].name}. Name classes by index, or use predicted."
        )
    return labels, target


def _explain(
    variant: Variant,
    method: AnyMethod,
    prepared: Prepared,
    settings: Settings,
    mask_fill: Fill | None,
) -> Callable[..., Tensor]:
    explainer = make_explainer(
        variant,
        method,
        prepared,
        clusterer=settings.clusterer,
        seed=settings.seed,
        mask_fill=mask_fill,
    )
    at_input = {"attribute_to_layer_input": True} if prepared.layer.at_input else {}

    def explain(images: Tensor, target: Tensor) -> Tensor:
        with named(method):
            heat = explainer.attribute(images, target=target, **at_input)
        if isinstance(method, Outside):
            return as_maps(heat, images, method.name)
        if not isinstance(heat, Tensor):
            raise ValueError(
                f"`method` {variant.method} must give one heat map for each image; got "
                f"{type(heat).__name__}. Choose a layer that gives one tensor."
            )
        return heat.detach()

    return explain


def _begin(
    prepared: Prepared,
    images: Tensor,
    objects: Tensor | None,
    classes: Tensor | None,
    **conventions: Any,
) -> Batch:
    def moved(part: Tensor | None) -> Tensor | None:
        return part if part is None else part.to(prepared.device)

    images = images.to(prepared.device)
    return begin(prepared.model, images, moved(objects), moved(classes), **conventions)


def _shown(
    prepared: Prepared, paths: Mapping[str, Path], frame: int, image: str
) -> np.ndarray | None:
    """What the model sees of an image, of a volume the middle slice; None if it is unreadable."""
    try:
        shown = prepared.display(read_picture(paths[image], frame))
    except (ValueError, OSError):
        return None
    return shown if shown.ndim == 3 else shown[len(shown) // 2]


def _class_in_words(prepared: Prepared, index: int) -> str:
    name = prepared.class_name(index)
    return str(index) if name is None else f"{name} ({index})"


# --- what is written down -------------------------------------------------------------------------


def _compared(
    settings: Settings,
    prepared: Prepared,
    fill: Fill,
    mask_fill: Fill | None,
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    """What must be equal if rows are to stand in one table."""
    loaded = prepared.loaded
    curves = any(metric.is_curve for metric in metrics.values())
    return {
        "limit": settings.limit,
        "frame": settings.frame,
        "model": loaded.name,
        "weights": loaded.weights,
        "parameters": _digest(*loaded.model.state_dict().values()),
        "transform": _digest(prepared.input(probe(prepared.example))),
        "layer": prepared.layer.name,
        "attribute_to_layer_input": prepared.layer.at_input,
        "score": settings.score,
        "fill": describe(fill),
        "mask_fill": OWN if mask_fill is None else describe(mask_fill),
        "metrics": list(metrics),
        "step": settings.step if curves else None,
        "clusterer": _clusterer(settings.clusterer, settings.seed),
        "batch_size": settings.batch_size,
        "device": prepared.device.partition(":")[0],
        "seed": settings.seed,
        "versions": {"torch": torch.__version__, **{name: version(name) for name in _PACKAGES}},
    }


def _clusterer(name: str, seed: int) -> Any:
    """A clusterer's name and its settings, without the number of groups, which varies."""
    if name == OWN:
        return OWN
    made: Any = as_clusterer(name, 1, seed)
    fields = asdict(made) if is_dataclass(made) and not isinstance(made, type) else {}
    return {"name": name, **fields, "n_clusters": None}


def _digest(*parts: str | Tensor) -> str:
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.detach().cpu().contiguous().flatten().view(torch.uint8)
            found.update(part.numpy().tobytes())
        else:
            found.update(part.encode())
    return found.hexdigest()[:12]


def _machine(prepared: Prepared, world: World, workers: int) -> dict[str, Any]:
    on_gpu = prepared.device.startswith("cuda")
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(prepared.device) if on_gpu else "cpu",
        "threads": torch.get_num_threads(),
        "processes": world.size,
        "workers": workers,
    }


def _conventions(
    settings: Settings, judged: str, fill: Fill, metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "score": settings.score,
        "target": judged,
        "fill": describe(fill),
        "normalize": "minmax",
        "interpolation": "bilinear",
    }
    if any(metric.is_curve for metric in metrics.values()):
        found["step"] = settings.step
    return found


_FILLED = {"black": "become black", "mean": "take the mean colour", "blur": "are blurred"}


def _notes(
    config: dict[str, Any],
    items: Sequence[Item],
    prepared: Prepared,
    metrics: Mapping[str, Metric],
) -> list[str]:
    compared, loaded = config["compared"], prepared.loaded
    cases = len({item.case for item in items if item.case is not None})
    drawn = f"{cases} cases" if cases else "images"
    kind = "normal," if (cases or len(items)) >= MANY else "a percentile bootstrap"
    rates = "is found in the same way" if cases else "is Wilson's score interval"
    target = compared["target"]
    judged = f"the {target} class"
    if target.isdecimal():
        judged = f"class {_class_in_words(prepared, int(target))}"
    filled = _FILLED[config["settings"]["fill"]]
    threads = config["machine"]["threads"]
    notes = [
        f"{counted(len(items), 'image')}; model {loaded.name} ({loaded.weights}), layer "
        f"{compared['layer']}.",
        f"Judged by the {compared['score']} score of {judged}; hidden pixels {filled}; "
        "maps are enlarged linearly and scaled from minimum to maximum.",
        f"The 95 % interval of a mean is {kind} over {drawn}, that of a rate {rates}. "
        "Where all values are equal, an interval of a mean has no width, which is no certainty.",
        *(f"{metric.title}: {metric.meaning}." for metric in metrics.values() if metric.meaning),
        "A larger area alone lowers ADC, so compare maps of similar area.",
        "Maps that are flat, not finite or negative are counted, and are part of all means. Failed "
        "images are not.",
        f"Time is the median for one map, without reading and judging, on {compared['device']}, "
        f"{threads} {'thread' if threads == 1 else 'threads'}, batches of "
        f"{compared['batch_size']}. First calls are left out.",
    ]
    if config["settings"]["calibrate"]:
        notes.insert(
            2,
            "Calibrated: each map on the one of a few rising curves behind which the model is "
            "surest of the class, less a price for the area; the order of the pixels stays, and "
            "with it all that reads only the order. The choice looks at what ADC and PIC measure. "
            "So compare calibrated numbers with calibrated ones only, and methods with controls of "
            "a similar area.",
        )
    if any(metric.needs_object for metric in metrics.values()):
        notes.append(
            "The column no object of summary.md counts the images whose object is not in the "
            "model's input: the data give none, its mask is empty, or the transform cuts it off "
            "(the entry object of a row says which). They are not part of the metrics that need an "
            "object; n is the number that is."
        )
    if prepared.has_random_weights:
        notes.insert(0, "The weights are random, so the numbers mean nothing.")
    return notes
