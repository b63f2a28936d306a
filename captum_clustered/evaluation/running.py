"""The loop: each image is read once, explained by each method, judged, and its rows are written.

The images are divided into batches before anything runs. So the images of a batch, and all numbers,
depend neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import pickle
import sys
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from captum_clustered._files import place_of
from captum_clustered.evaluation.rows import Key, Row, Variant, key_of

if TYPE_CHECKING:
    from captum_clustered.evaluation.images import Loaded
    from captum_clustered.evaluation.records import Rows

__all__ = ["Cost", "Task", "Work", "run", "share"]


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
        workers (int): Processes that read images ahead while the model runs; 0 for none, as on
            all systems but Linux.
        synchronize (callable or None): Returns when the device has finished.
    """

    tasks: Sequence[Task]
    explainers: Mapping[Variant, Callable[..., Tensor]]
    begin: Callable[[Tensor, Tensor | None, Tensor | None], Any]
    measure: Callable[[Any, Tensor, Callable[..., Tensor]], list[dict[str, Any]]]
    batch_size: int = 1
    workers: int = 0
    synchronize: Callable[[], object] | None = None


@dataclass(frozen=True)
class Cost:
    """What the first rows took.

    Attributes:
        images (int): Images that are left, with those of the first rows.
        variants (int): Variants of each.
        rows (int): How many rows these were.
        seconds_of_row (float): Time for a row: to explain, to judge and to write it.
        seconds_of_pass (float): Time for a forward pass of the model, for one image.
    """

    images: int
    variants: int
    rows: int
    seconds_of_row: float
    seconds_of_pass: float

    @property
    def passes(self) -> float:
        """For how many forward passes of an image a row takes as long."""
        return self.seconds_of_row / self.seconds_of_pass


def share(work: Work, done: Container[Key], rank: int, size: int) -> list[list[Task]]:
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


def _missing(work: Work, batch: Sequence[Task], done: Container[Key]) -> list[Variant]:
    return [
        variant
        for variant in work.explainers
        if any(key_of(task.image, variant) not in done for task in batch)
    ]


def run(
    work: Work,
    batches: Sequence[Sequence[Task]],
    done: Container[Key],
    rows: Rows,
    tick: Callable[[int], object] = lambda _: None,
    told: Callable[[Cost], object] | None = None,
) -> None:
    """Evaluates batches; each row is written as soon as it is known.

    Args:
        work (Work): The work.
        batches (sequence): From :func:`share`.
        done (container): Keys of the rows that exist; these are not written again.
        rows (Rows): Where the rows go.
        tick (callable, optional): Is given the number of rows that were written.
        told (callable, optional): Is given a :class:`Cost`, once, when the second batch begins.
    """
    warm: set[str] = set()
    objects: dict[str, str] = {}  # what became of each image's object, where it matters
    written, begin = 0, time.perf_counter()

    def keep(task: Task, variant: Variant, found: Row) -> None:
        nonlocal written
        if key_of(task.image, variant) not in done:
            seen = {"object": objects[task.image]} if task.image in objects else {}
            rows.append({**_head(task, variant), **found, **seen})
            written += 1
            tick(1)

    for number, batch in enumerate(_read_ahead(work, batches)):
        variants = _missing(work, [task for task, _ in batch], done)
        loaded: list[tuple[Task, Loaded]] = []
        for task, image in batch:
            if isinstance(image, dict):  # why it could not be read
                for variant in variants:
                    keep(task, variant, image)
                continue
            loaded.append((task, image))
            if image.object is not None:
                objects[task.image] = image.object
        sizes = {image.pixels.shape for _, image in loaded}
        groups = [loaded] if len(sizes) == 1 else [[one] for one in loaded]
        for group in groups:
            start = time.perf_counter()
            parts = _begun(work, group)
            if told is not None and number and written:
                images = sum(len(one) for one in batches)
                row = (start - begin) / written
                one_pass = (_now(work) - start) / len(group)
                told(Cost(images, len(work.explainers), written, row, one_pass))
                told = None
            for tasks, shared in parts:
                for variant in variants:
                    for task, found in _rows(work, tasks, shared, variant, warm):
                        keep(task, variant, found)


# --- reading --------------------------------------------------------------------------------------


def _read_ahead(
    work: Work, batches: Sequence[Sequence[Task]]
) -> Iterator[list[tuple[Task, Loaded | Row]]]:
    """The images of each batch, or why they could not be read; the next ones are read meanwhile."""
    tasks = [task for batch in batches for task in batch]
    found: Iterator[Loaded | Row] = map(_read, tasks)
    # elsewhere a process is not forked, or not safely, and the model would be copied into each
    workers = min(work.workers, len(batches) - 1) if sys.platform == "linux" else 0
    if workers > 0:
        loader: Any = DataLoader(
            _Packed(tasks),  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=_same,  # type: ignore[arg-type]
            num_workers=workers,
            prefetch_factor=max(2, 2 * work.batch_size),
            multiprocessing_context="fork",
            generator=torch.Generator(),  # otherwise it draws from the model's random numbers
        )
        with warnings.catch_warnings():
            # the workers neither run the model nor share a lock with it
            warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
            packed = iter(loader)
        found = map(pickle.loads, packed)
    for batch in batches:
        yield [(task, next(found)) for task in batch]


def _read(task: Task) -> Loaded | Row:
    try:
        return task.load()
    except Exception as error:  # a decoder or a transform may raise anything
        return _failed(error)


class _Packed:
    """Images by number, in bytes: these need no shared memory, of which a container has little."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.tasks = tasks

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, number: int) -> bytes:
        return pickle.dumps(_read(self.tasks[number]), protocol=pickle.HIGHEST_PROTOCOL)


def _same(packed: bytes) -> bytes:
    return packed


# --- explaining and judging -----------------------------------------------------------------------


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
