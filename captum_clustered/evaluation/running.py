"""The loop: each image is read once, explained by each method, judged, and its rows are written.

The images are divided into batches before anything runs. So the images of a batch, and all numbers,
depend neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_clustered._files import place_of
from captum_clustered.evaluation.rows import Key, Row, Variant, key_of

if TYPE_CHECKING:
    from captum_clustered.evaluation.images import Loaded
    from captum_clustered.evaluation.records import Rows

__all__ = ["Task", "Work", "run", "share"]


@dataclass(frozen=True)
class Task:
    """An image that is to be evaluated, before it is read.

    Attributes:
        image (str): Its name.
        case (str or None): Which images belong together.
        label (int or None): Its class according to the data.
        load (callable): Reads it.
        target (int or None): The class to explain; None for the predicted one.
    """

    image: str
    case: str | None
    label: int | None
    load: Callable[[], Loaded]
    target: int | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What :func:`run` does with each image. These are functions, so none of it needs a model.

    Attributes:
        tasks (sequence of Task): All images.
        explainers (mapping): For each variant a function of images `(N, C, *spatial)` and
            ``target=classes`` that gives maps `(N, 1, *spatial)`.
        begin (callable): Takes the images, their objects or None, and their classes or None;
            returns what all methods share, an object with `images` and `classes`, `(N,)`.
        measure (callable): Takes that object, maps and explainer; returns a dict for each image.
        batch_size (int): Images that are explained together, if they are of one size.
        synchronize (callable or None): Returns when the device has finished.
    """

    tasks: Sequence[Task]
    explainers: Mapping[Variant, Callable[..., Tensor]]
    begin: Callable[[Tensor, Tensor | None, Tensor | None], Any]
    measure: Callable[[Any, Tensor, Callable[..., Tensor]], list[dict[str, Any]]]
    batch_size: int = 1
    synchronize: Callable[[], object] | None = None


def share(work: Work, done: Collection[Key], rank: int, size: int) -> list[list[Task]]:
    """The unfinished batches of one process.

    Args:
        work (Work): The work.
        done (collection): Keys of the rows that exist.
        rank (int): Number of the process.
        size (int): Number of processes.

    Returns:
        *list*: Batches; each unfinished batch belongs to exactly one process.
    """
    batches = [
        list(work.tasks[i : i + work.batch_size])
        for i in range(0, len(work.tasks), work.batch_size)
    ]
    left = [batch for batch in batches if _missing(work, batch, done)]
    return left[rank::size]


def _missing(work: Work, batch: Sequence[Task], done: Collection[Key]) -> list[Variant]:
    return [
        variant
        for variant in work.explainers
        if any(key_of(task.image, variant) not in done for task in batch)
    ]


def run(
    work: Work,
    batches: Sequence[Sequence[Task]],
    done: Collection[Key],
    rows: Rows,
    tick: Callable[[int], object] = lambda _: None,
) -> None:
    """Evaluates batches; each row is written as soon as it is known.

    Args:
        work (Work): The work.
        batches (sequence): From :func:`share`.
        done (collection): Keys of the rows that exist; these are not written again.
        rows (Rows): Where the rows go.
        tick (callable, optional): Is given the number of rows that were written.
    """
    warm: set[str] = set()
    objects: dict[str, str] = {}  # what became of each image's object, where it matters

    def keep(task: Task, variant: Variant, found: Row) -> None:
        if key_of(task.image, variant) not in done:
            seen = {"object": objects[task.image]} if task.image in objects else {}
            rows.append({**_head(task, variant), **found, **seen})
            tick(1)

    for batch in batches:
        variants = _missing(work, batch, done)
        loaded: list[tuple[Task, Loaded]] = []
        for task in batch:
            try:
                image = task.load()
                loaded.append((task, image))
                if image.object is not None:
                    objects[task.image] = image.object
            except Exception as error:  # a decoder or a transform may raise anything
                for variant in variants:
                    keep(task, variant, _failed(error))
        sizes = {image.pixels.shape for _, image in loaded}
        groups = [loaded] if len(sizes) == 1 else [[one] for one in loaded]
        for group in groups:
            for tasks, shared in _begun(work, group):
                for variant in variants:
                    for task, found in _rows(work, tasks, shared, variant, warm):
                        keep(task, variant, found)


def _begun(work: Work, group: Sequence[tuple[Task, Loaded]]) -> list[tuple[list[Task], Any]]:
    """What the methods share, computed for the images together, or one by one if that fails."""
    tasks = [task for task, _ in group]
    targets = [task.target for task in tasks]
    try:
        inside = [image.inside for _, image in group if image.inside is not None]
        shared = work.begin(
            torch.stack([image.pixels for _, image in group]),
            torch.stack(inside) if inside else None,
            None if None in targets else torch.tensor(targets),
        )
    except Exception as error:  # the user's model may raise anything
        if len(group) > 1:
            return [begun for one in group for begun in _begun(work, [one])]
        shared = error
    return [(tasks, shared)]


def _rows(
    work: Work, tasks: Sequence[Task], shared: Any, variant: Variant, warm: set[str]
) -> list[tuple[Task, Row]]:
    """The rows of one variant, computed for the images together, or one by one if that fails."""
    if isinstance(shared, Exception):
        return [(task, _failed(shared)) for task in tasks]
    explain = work.explainers[variant]
    try:
        if variant.method not in warm:  # the time of a first call includes loading and tuning
            explain(shared.images, target=shared.classes)
            warm.add(variant.method)
        start = _now(work)
        heatmaps = explain(shared.images, target=shared.classes)
        seconds = (_now(work) - start) / len(tasks)
        measured = work.measure(shared, heatmaps, explain)
    except Exception as error:  # model, method or metric may raise anything
        if len(tasks) == 1:
            return [(tasks[0], _failed(error))]
        return [
            row
            for i, task in enumerate(tasks)
            for row in _rows(work, [task], shared.only(i), variant, warm)
        ]
    classes = shared.classes.tolist()
    return [
        (task, _judged(found, classes[i], seconds))
        for i, (task, found) in enumerate(zip(tasks, measured, strict=True))
    ]


def _now(work: Work) -> float:
    if work.synchronize is not None:
        work.synchronize()
    return time.perf_counter()


def _head(task: Task, variant: Variant) -> Row:
    return {
        "image": task.image,
        "case": task.case,
        "label": task.label,
        "method": variant.method,
        "clusters": variant.clusters,
        "weighting": variant.weighting,
    }


def _judged(found: dict[str, Any], target: int, seconds: float) -> Row:
    row = {"status": "ok", "reason": None, "target": target, **found, "seconds": seconds}
    if any(found[name] != found[name] for name in ("original_score", "masked_score")):
        row.update(status="failed", reason="the model's score is not a number")
    return row


def _failed(error: Exception) -> Row:
    text = " ".join(str(error).split())
    kind = type(error).__name__
    return {
        "status": "failed",
        "reason": f"{kind}: {text}" if text else kind,
        "error": kind,
        "place": place_of(error),
    }
