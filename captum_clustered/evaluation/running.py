"""The loop: each image is read once, each method explains it, each map is judged, each row is kept.

The images are cut into batches before anything runs, so that what is in a batch depends neither on
the number of processes nor on how often the run was interrupted. So does every number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from captum_clustered.evaluation.plan import Variant
from captum_clustered.evaluation.records import Key, Row, Rows, key_of

__all__ = ["Loaded", "Task", "Work", "run", "share"]


@dataclass(frozen=True)
class Task:
    """An image that is to be evaluated, before it is read.

    Attributes:
        image (str): Its name.
        case (str or None): Which images belong together.
        label (int or None): Its class according to the data.
        load (callable): Reads it.
    """

    image: str
    case: str | None
    label: int | None
    load: Callable[[], Loaded]


@dataclass(frozen=True, eq=False)
class Loaded:
    """An image as the model takes it.

    Attributes:
        pixels (Tensor): `(C, H, W)`.
        inside (Tensor or None): bool `(1, H, W)`, where the object is.
    """

    pixels: Tensor
    inside: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """What :func:`run` does with each image; functions, so that none of it is tied to a model.

    Attributes:
        tasks (sequence of Task): All images.
        explainers (mapping): For each variant a function of images `(N, C, H, W)` and
            ``target=classes`` that gives maps `(N, 1, h, w)`.
        begin (callable): From the images, their objects or None, and their classes or None, to what
            all methods share: an object with `images` and `classes`, `(N,)`.
        measure (callable): From that object, maps and explainer to a dict for each image.
        target_given (bool): Whether the data's class is to be explained.
        batch_size (int): Images that are explained together, if they are of one size.
        synchronize (callable or None): Returns when the device has finished.
    """

    tasks: Sequence[Task]
    explainers: Mapping[Variant, Callable[..., Tensor]]
    begin: Callable[[Tensor, Tensor | None, Tensor | None], Any]
    measure: Callable[[Any, Tensor, Callable[..., Tensor]], list[dict[str, Any]]]
    target_given: bool = False
    batch_size: int = 1
    synchronize: Callable[[], object] | None = None


def share(work: Work, done: Collection[Key], rank: int, size: int) -> list[list[Task]]:
    """The batches that are left for one process.

    Args:
        work (Work): The work.
        done (collection): Keys of the rows that are there.
        rank (int): Number of the process.
        size (int): Number of processes.

    Returns:
        *list*: Batches; each unfinished batch is in the share of one process.
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
        done (collection): Keys of the rows that are there; these are not written again.
        rows (Rows): Where the rows go.
        tick (callable, optional): Told the number of rows that were written.
    """
    warm: set[str] = set()

    def keep(task: Task, variant: Variant, found: Row) -> None:
        if key_of(task.image, variant) not in done:
            rows.append({**_head(task, variant), **found})
            tick(1)

    for batch in batches:
        variants = _missing(work, batch, done)
        loaded: list[tuple[Task, Loaded]] = []
        for task in batch:
            try:
                loaded.append((task, task.load()))
            except Exception as error:  # decoders and transforms raise what they like
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
    """What the methods share, for the images together; one by one if that fails."""
    tasks = [task for task, _ in group]
    try:
        inside = [image.inside for _, image in group if image.inside is not None]
        shared = work.begin(
            torch.stack([image.pixels for _, image in group]),
            torch.stack(inside) if inside else None,
            torch.tensor([task.label for task in tasks]) if work.target_given else None,
        )
    except Exception as error:  # it is the user's model
        if len(group) > 1:
            return [begun for one in group for begun in _begun(work, [one])]
        shared = error
    return [(tasks, shared)]


def _rows(
    work: Work, tasks: Sequence[Task], shared: Any, variant: Variant, warm: set[str]
) -> list[tuple[Task, Row]]:
    """The rows of one variant; if it fails for the images together, one by one."""
    if isinstance(shared, Exception):
        return [(task, _failed(shared)) for task in tasks]
    explain = work.explainers[variant]
    try:
        if variant.method not in warm:  # what loads or is tuned in a first call is not its time
            explain(shared.images, target=shared.classes)
            warm.add(variant.method)
        start = _now(work)
        heatmaps = explain(shared.images, target=shared.classes)
        seconds = (_now(work) - start) / len(tasks)
        measured = work.measure(shared, heatmaps, explain)
    except Exception as error:  # it is the user's model
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
    return {"status": "failed", "reason": f"{kind}: {text}" if text else kind}
