"""Runs a job and finishes it: rows, tables, figures and pages."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from captum_clustered._files import make_folder, printable, whole, write_text
from captum_clustered._pictures import counted
from captum_clustered.evaluation import figures, pages, records, report, running
from captum_clustered.evaluation.reading import read_table
from captum_clustered.evaluation.rows import key_of
from captum_clustered.evaluation.table import Table

if TYPE_CHECKING:
    from captum_clustered.evaluation.job import Job
    from captum_clustered.evaluation.processes import World

__all__ = ["Outcome", "run", "summarize"]

_SOON = 20  # seconds, of which nothing needs to be said
_MOST_REASONS = 3  # of failed images, that are said


@dataclass(frozen=True)
class Outcome:
    """The result of an evaluation.

    Attributes:
        images (int): Number of images.
        variants (int): Number of lines of the table.
        failed (int): Number of images with a row that failed.
        rows (int): Number of rows.
        failed_rows (int): Number of rows that failed.
        files (list[Path]): The files that were written.
        reasons (list[tuple[str, str]]): The images that failed, and why.
    """

    images: int
    variants: int
    failed: int
    rows: int
    failed_rows: int
    files: list[Path]
    reasons: list[tuple[str, str]] = field(default_factory=list)


def summarize(outcome: Outcome) -> str:
    """Describes an outcome in words."""
    lines = [f"{counted(outcome.images, 'image')}, {counted(outcome.variants, 'variant')}"]
    if outcome.failed:
        lines[0] += (
            f"; {counted(outcome.failed, 'image')} failed: rows.jsonl says why, and "
            "--retry-failed tries again"
        )
        reasons = outcome.reasons[:_MOST_REASONS]
        lines += [printable(f"  {image}: {reason}") for image, reason in reasons]
    return "\n".join([*lines, *[f"  {path}" for path in outcome.files]])


def run(job: Job, world: World, say: Callable[[str], object] = print) -> Outcome | None:
    """Makes the rows that are missing; the first process then writes tables, figures and pages.

    Args:
        job (Job): From :func:`captum_clustered.evaluation.job.prepare_job`.
        world (World): The processes.
        say (callable, optional): Told in a line what goes on. Default: print

    Returns:
        *Outcome* or *None*: None in all processes but the first.

    Raises:
        ValueError: If `out` is no folder or has rows of other settings or other files, or if every
            image failed.
        OSError: If a row cannot be written, as on a full disk.
    """
    out = job.settings.out
    with _folder(job, world, say) as done:
        batches = running.share(job.work, done, world.rank, world.size)
        missing = sum(
            key_of(task.image, variant) not in done
            for batch in batches
            for task in batch
            for variant in job.variants
        )
        if world.leads:
            _say_what_is_left(job, len(done), say)
        with records.Rows(out, world.rank) as rows, _bar(missing, world) as tick:
            told = _telling(missing, say) if world.leads else None
            try:
                running.run(job.work, batches, done, rows, tick, told)
            except KeyboardInterrupt:
                say("stopped; the same command goes on from here")
                raise
        world.wait()
        return _finish(job, say) if world.leads else None


def _say_what_is_left(job: Job, done: int, say: Callable[[str], object]) -> None:
    rows = len(job.images) * len(job.variants)
    if done:
        others = "; going on with the others" if done < rows else ""
        say(f"{job.settings.out} has {done} of {rows} rows{others}")
    elif rows:
        images, variants = counted(len(job.images), "image"), counted(len(job.variants), "variant")
        say(f"{images} x {variants} = {counted(rows, 'row')}")


def _telling(missing: int, say: Callable[[str], object]) -> Callable[[running.Cost], object]:
    """Says, after the first rows, what all will cost."""

    def told(cost: running.Cost) -> None:
        left = cost.seconds_of_row * (missing - cost.rows)
        if left > _SOON:
            say(
                f"{counted(cost.images, 'image')} x {counted(cost.variants, 'variant')}, each row "
                f"as long as {cost.passes:.0f} forward passes of an image: about "
                f"{_duration(left)} to go"
            )

    return told


def _duration(seconds: float) -> str:
    """A time in words, as exact as one needs it.

    Example::

        >>> _duration(40), _duration(130), _duration(7000)
        ('40 seconds', '2 minutes', '2 hours')
    """
    for unit, size in (("hour", 3600), ("minute", 60)):
        if seconds >= 1.5 * size:
            return counted(round(seconds / size), unit)
    return counted(round(seconds), "second")


@contextmanager
def _folder(job: Job, world: World, say: Callable[[str], object]) -> Iterator[records.Done]:
    """Makes and locks the folder of the results, and checks it in all processes.

    The first process reads the rows that are there, and tells the others which.
    """
    out = job.settings.out
    problem, done = None, None
    lock = nullcontext() if not world.leads else records.sole_user(out)
    if world.leads:
        try:
            make_folder(out, "out")
        except ValueError as error:
            problem = str(error)
    problem = world.from_leader(problem)
    if problem:
        raise ValueError(problem)
    with lock:
        if world.leads:
            try:
                done = _claim(job, say)
            except ValueError as error:
                problem = str(error)
        told = (problem, job.config["compared"], None if done is None else done.there)
        problem, compared, there = world.from_leader(told)
        if problem:
            raise ValueError(problem)
        if compared != job.config["compared"]:
            raise ValueError(
                "the processes must have the same data, model and versions; process "
                f"{world.rank} has others than process 0."
            )
        if not (out / "config.json").exists():
            raise ValueError(f"`out` must be a folder that all processes share; got {out}.")
        yield records.Done(job.grid, there)


def _claim(job: Job, say: Callable[[str], object]) -> records.Done:
    """Sees to it that the rows in the folder are of this job, and finds those that are done."""
    out = job.settings.out
    more = records.check_config(out, job.config)
    if job.settings.retry_failed:
        say(f"{counted(records.forget_failed(out, job.grid), 'failed row')} tried again")
    done = records.find_done(out, job.grid, job.metrics)
    records.check_inputs(out, job.inputs, done.judged)
    for kind, names in more.items():
        say(f"{out} also has the {kind} {', '.join(names)}: their numbers stay, and are not shown")
    return done


@contextmanager
def _bar(total: int, world: World) -> Iterator[Callable[[int], object]]:
    from tqdm import tqdm

    # where the bar goes into a file, it must not fill it
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


# --- at the end -----------------------------------------------------------------------------------


def _finish(job: Job, say: Callable[[str], object]) -> Outcome:
    out = job.settings.out
    missed = records.merge(out, job.grid)
    if missed:
        say(
            f"{counted(len(missed), 'row')} keep the numbers that were there; what was added to "
            f"them failed, the first because of {missed[0]['reason']}, and is tried again next time"
        )
    drawn_as = [name for name, metric in job.metrics.items() if metric.is_curve]
    table = read_table(out / "rows.jsonl", job.grid, list(job.metrics), drawn_as)
    columns = [
        report.Column(
            name,
            metric.head,
            is_rate=metric.is_rate,
            unit=metric.unit,
            needs_object=metric.needs_object,
            higher_is_better=metric.higher_is_better,
            meaning=metric.meaning,
        )
        for name, metric in job.metrics.items()
    ]
    reasons = {image: reason for image, reason, _ in table.failures}
    found = report.make_report(
        table,
        job.images,
        job.variants,
        columns,
        _with_failed(job, len(reasons)),
        job.settings.seed,
    )
    files = [out / "rows.jsonl", out / "config.json", *_write_tables(out, found)]
    drawn = _write_figures(job, found, table)
    if job.settings.html:
        shown = [path for path in drawn if path.suffix == ".png"]
        rows = records.read_rows(out)
        files.append(pages.write(out, found, rows, job.images, job.show, job.class_name, shown))
    files += drawn
    n_rows = len(job.images) * len(job.variants)
    if len(table.failures) == n_rows:
        _, reason, place = table.failures[0]
        raise ValueError(
            f"every image failed, the first because of {reason} ({place or 'no place is known'})"
        )
    return Outcome(
        images=len(job.images),
        variants=len(job.variants),
        failed=len(reasons),
        rows=n_rows,
        failed_rows=len(table.failures),
        files=files,
        reasons=list(reasons.items()),
    )


def _with_failed(job: Job, count: int) -> list[str]:
    """The notes; the first says how many images failed, if any did."""
    if not count:
        return job.notes
    words = f"{count} of {counted(len(job.images), 'image')} failed, with one method at least."
    return [f"{job.notes[0]} {words}", *job.notes[1:]]


def _write_tables(out: Path, found: report.Report) -> list[Path]:
    texts = {
        out / "summary.csv": report.summary_csv(found),
        out / "summary.md": report.summary_md(found),
        out / "summary.tex": report.summary_tex(found),
        out / "differences.csv": report.differences_csv(found),
    }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def _write_figures(job: Job, found: report.Report, table: Table) -> list[Path]:
    pictures = {"intervals": figures.intervals(found)}
    for name in table.curves:
        pictures[name] = figures.curves(name, table)
    files = []
    for name, figure in pictures.items():
        for suffix in ("png", "pdf"):
            path = job.settings.out / f"{name}.{suffix}"
            with whole(path) as part:
                figure.savefig(part, format=suffix)
            files.append(path)
    return files
