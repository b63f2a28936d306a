"""``python -m benchmarks``: measurements that anyone can repeat.

Every command writes one JSON file. ``report`` makes the page with tables and figures from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import program, run, say
from captum_clustered.evaluation.plan import listed, numbers

_RESULTS = Path("benchmarks/results")

app = program(
    "python -m benchmarks",
    "Speed, memory and faithfulness against Captum and the other CAM libraries.",
)

Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of the results.")]
Full = Annotated[bool, typer.Option("--full", help="The long run: hours instead of minutes.")]
Networks = Annotated[
    str, typer.Option(metavar="NAMES", help="Only these networks, separated by commas.")
]
Clusters = Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of groups.")]
Rounds = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="The most rounds; by default 11, or 15.")
]
Threads = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads of torch; by default torch decides.")
]
Names = Annotated[str, typer.Option(metavar="NAMES", help="By default a few, with --full more.")]


def _threads(number: int | None) -> None:
    import torch

    if number is not None:
        torch.set_num_threads(number)


@app.command()
def runtime(
    networks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Only these networks, or cases such as resnet50/layer4, separated by commas.",
        ),
    ] = "",
    cases: Annotated[
        str,
        typer.Option(
            metavar="RUN",
            help="quick; full, as --full; or core: minutes, beside Captum only, with the operations"
            " that take the time.",
        ),
    ] = "quick",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where everything runs, such as cuda.")
    ] = "cpu",
    clusters: Clusters = "16,64,256",
    part: Annotated[
        int, typer.Option(metavar="N", min=1, help="The most perturbations of slow methods.")
    ] = 16,
    rounds: Rounds = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="When no further round begins, after the third; 12, or 240."
        ),
    ] = None,
    threads: Threads = None,
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Time of each method, in paired rounds, after a check that the results agree."""
    from benchmarks import results
    from benchmarks import runtime as command
    from benchmarks.cases import check_device
    from benchmarks.report import page

    _threads(threads)
    check_device(device)
    full, core = full or cases == "full", cases == "core"
    repeats = rounds or (15 if full else 11)
    budget = seconds if seconds is not None else (240.0 if full else 12.0)
    found = command.cases(listed(networks), "full" if full else cases)
    counts = numbers(clusters)
    settings = {
        "full": full,
        "core": core,
        "device": device,
        "cases": list(found),
        "clusters": counts,
        "part": part,
        "rounds": repeats,
        "seconds": budget,
    }
    path = results.collect(
        "core" if core else "runtime",
        out,
        settings,
        found,
        lambda key: command.measure(key, found[key], counts, part, repeats, budget, device, core),
        say,
    )
    if core:
        typer.echo(page({"core": results.read(path.parent)["core"]}))


@app.command()
def memory(
    networks: Networks = "",
    clusters: Clusters = "1,16,64,256",
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Peak memory beyond the model and the inputs."""
    from benchmarks import memory as command
    from benchmarks import results

    cases = command.cases(listed(networks), full)
    counts = numbers(clusters)
    settings = {"full": full, "cases": cases, "clusters": counts}
    results.collect("memory", out, settings, cases, lambda key: command.measure(key, counts), say)


@app.command()
def scaling(
    rounds: Rounds = None,
    threads: Threads = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="On a network for trying out.")] = False,
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Time over groups, maps, images, depth and processes, with fits."""
    from dataclasses import asdict, replace

    from benchmarks import results
    from benchmarks import scaling as command

    _threads(threads)
    plan = command.Plan()
    plan = plan.full() if full else plan
    plan = plan.tiny() if tiny else plan
    plan = plan if rounds is None else replace(plan, rounds=rounds)
    path = results.collect(
        "scaling",
        out,
        {"full": full, **asdict(plan)},
        command.cases(plan),
        lambda key: command.measure(key, plan),
        say,
        command.fits,
    )
    for fit in results.read(path.parent)["scaling"]["fits"]:
        typer.echo(f"{fit['axis']}: {command.described(fit)}")


@app.command()
def faithfulness(
    data: Annotated[
        list[Path],
        typer.Argument(metavar="DATA", help="Folders or CSV files, as for captum-clustered."),
    ],
    model: Annotated[
        str, typer.Option(metavar="NAME", help="As for captum-clustered evaluate.")
    ] = "efficientnet-lite0",
    layer: Annotated[str, typer.Option(metavar="NAME", help="Dotted name, or auto.")] = "auto",
    methods: Names = "",
    clusters: Clusters = "16,64",
    metrics: Names = "",
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="default (the published weights) or none.")
    ] = "default",
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State dict of the model.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Images; by default 12, with --full all.")
    ] = None,
    threads: Threads = None,
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Metrics of the maps on folders of images, those of the other libraries among them."""
    from benchmarks import faithfulness as command
    from benchmarks import results

    _threads(threads)
    plan = command.Plan(
        data=tuple(data),
        model=model,
        layer=layer,
        methods=listed(methods) or (command.FULL if full else command.QUICK),
        clusters=numbers(clusters),
        metrics=listed(metrics) or (command.FULL_METRICS if full else command.QUICK_METRICS),
        weights=weights,
        checkpoint=checkpoint,
        limit=limit if limit is not None or full else 12,
        full=full,
    )
    cases = plan.cases(out)
    results.collect(
        "faithfulness",
        out,
        plan.record(),
        cases,
        lambda key: command.measure(cases[key], say),
        say,
        lambda _: {"conventions": {key: command.conventions(cases[key].out) for key in cases}},
    )


@app.command()
def boxes(
    boxes: Annotated[
        Path,
        typer.Argument(metavar="CSV", help="Columns file, label, x0, y0, x1, y1: a box a line."),
    ],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Where the files are.")],
    to: Annotated[Path, typer.Option(metavar="CSV", help="The table to write.")],
) -> None:
    """A table of images with boxes, in the form that `signed` and an evaluation take."""
    from benchmarks.boxes import join_boxes

    typer.echo(f"{to}: {join_boxes(boxes, images, to)} images")


@app.command()
def signed(
    data: Annotated[
        Path, typer.Option(metavar="CSV", help="Images with classes, as for captum-clustered.")
    ],
    half: Annotated[str, typer.Option(metavar="NAME", help="first or second: every other image.")],
    networks: Annotated[
        str, typer.Option(metavar="NAMES", help="lite0, clip; separated by commas.")
    ] = "lite0,clip",
    layers: Annotated[str, typer.Option(metavar="NAMES", help="Only these layers.")] = "",
    methods: Annotated[str, typer.Option(metavar="NAMES", help="Only these methods.")] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Images; by default all.")] = None,
    step: Annotated[
        int | None, typer.Option(metavar="N", help="Pixels at a time; by default 14 or 6 steps.")
    ] = None,
    threads: Threads = None,
    show: Annotated[bool, typer.Option("--report", help="Show the tables at the end.")] = False,
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Metrics at layers whose maps have two signs, with paired differences to Grad-CAM."""
    from benchmarks import results
    from benchmarks import signed as command
    from benchmarks.report import page

    _threads(threads)
    plan = command.Plan(
        data, half, listed(networks), listed(layers), limit, step, full, listed(methods)
    )
    work = out / "evaluations"
    path = results.collect(
        "signed",
        out,
        plan.record(),
        plan.cases(),
        lambda case: command.measure(case, plan, work, say),
        say,
        lambda _: command.finish(plan, work),
    )
    if show:
        typer.echo(page({"signed": results.read(path.parent)["signed"]}))


@app.command()
def fair(
    data: Annotated[
        Path, typer.Option(metavar="CSV", help="Images with classes, as for captum-clustered.")
    ],
    half: Annotated[str, typer.Option(metavar="NAME", help="first or second: every other image.")],
    cases: Annotated[
        str, typer.Option(metavar="NAMES", help="Only these cases, separated by semicolons.")
    ] = "",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Images; by default all.")] = None,
    threads: Threads = None,
    show: Annotated[bool, typer.Option("--report", help="Show the tables at the end.")] = False,
    out: Out = _RESULTS,
) -> None:
    """Every method and control on its own scale of values and on a calibrated one."""
    from benchmarks import fair as command
    from benchmarks import results
    from benchmarks.report import page

    _threads(threads)
    chosen = tuple(name.strip() for name in cases.split(";") if name.strip())
    plan = command.Plan(data, half, chosen or tuple(command.CASES), limit)
    work = out / "evaluations"
    path = results.collect(
        "fair",
        out,
        plan.record(),
        list(plan.cases),
        lambda case: command.measure(case, plan, work, say),
        say,
        lambda _: command.finish(plan, work),
    )
    if show:
        typer.echo(page({"fair": results.read(path.parent)["fair"]}))


@app.command()
def zoo(
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Only these networks, separated by commas.")
    ] = "",
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Every architecture: does it run, by which path, and does it agree with the full path?"""
    from benchmarks import results
    from benchmarks import zoo as command

    names = listed(only)
    cases = command.cases(full or bool(names))
    if names:
        cases = [key for key in cases if key.rsplit("/", 1)[1] in names]
        missing = set(names) - {key.rsplit("/", 1)[1] for key in cases}
        if missing:
            raise ValueError(f"`only` must name networks of the zoo; got {', '.join(missing)}.")
    settings = {"full": full, "only": names}
    results.collect("zoo", out, settings, cases, command.measure, say)


@app.command()
def fuzz(
    seeds: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many random programs.")
    ] = 1000,
    start: Annotated[int, typer.Option(metavar="N", min=0, help="The first seed.")] = 0,
    threads: Threads = None,
    out: Out = _RESULTS,
) -> None:
    """Random programs: do the fast path, the full path and a run by hand agree?"""
    from benchmarks import fuzz as command
    from benchmarks import results

    _threads(threads)
    path = results.collect(
        "fuzz",
        out,
        {"seeds": seeds, "start": start},
        command.cases(seeds, start),
        command.measure,
        say,
    )
    rows = results.read(path.parent)["fuzz"]["rows"]
    typer.echo(", ".join(f"{count} {name}" for name, count in command.totals(rows).items()))
    for wrong in (one for row in rows for one in row["wrong"]):
        typer.echo(f"seed {wrong['seed']}, {wrong['about']}: {wrong['program']}")


@app.command()
def report(
    results: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder with the results of the commands.")
    ] = _RESULTS,
    docs: Annotated[
        Path, typer.Option(metavar="DIR", help="Where benchmarks.md and images/ go.")
    ] = Path("docs"),
    readme: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page whose marked table is renewed.")
    ] = None,
) -> None:
    """The page with tables and figures, made from the results."""
    from benchmarks.pages import renew
    from benchmarks.report import short, write
    from benchmarks.results import read

    written = write(results, docs)
    if readme is not None:
        renew(readme, short(read(results)))
        written.append(readme)
    for path in written:
        typer.echo(str(path))


def main() -> None:
    """Runs the program."""
    run(app)


if __name__ == "__main__":
    main()
