"""``python -m benchmarks``: measurements that anyone can make again.

Every command writes one JSON file; ``report`` makes the page with tables and figures of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from captum_clustered.evaluation.plan import listed, numbers

_RESULTS = Path("benchmarks/results")

app = typer.Typer(
    name="python -m benchmarks",
    help="Speed, memory and faithfulness against Captum and the other CAM libraries.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
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
    int | None, typer.Option(metavar="N", min=1, help="Threads of torch; by default its own wish.")
]


def _threads(number: int | None) -> None:
    import torch

    if number is not None:
        torch.set_num_threads(number)


def _say(line: str) -> None:
    typer.echo(line, err=True)


@app.command()
def runtime(
    networks: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Only these networks, or cases such as resnet50/layer4, separated by commas.",
        ),
    ] = "",
    clusters: Clusters = "16,64,256",
    part: Annotated[
        int, typer.Option(metavar="N", min=1, help="Perturbations of slow methods.")
    ] = 16,
    rounds: Rounds = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S", help="After these, and three rounds, no further one begins; 12, or 240."
        ),
    ] = None,
    threads: Threads = None,
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Time of each method, in paired rounds, after a check that the results agree."""
    from benchmarks import results
    from benchmarks import runtime as command

    _threads(threads)
    repeats = rounds or (15 if full else 11)
    budget = seconds if seconds is not None else (240.0 if full else 12.0)
    cases = command.cases(listed(networks), full)
    counts = numbers(clusters)
    settings = {
        "full": full,
        "cases": list(cases),
        "clusters": counts,
        "part": part,
        "rounds": repeats,
        "seconds": budget,
    }
    results.collect(
        "runtime",
        out,
        settings,
        cases,
        lambda key: command.measure(key, cases[key], counts, part, repeats, budget),
        _say,
    )


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
    results.collect("memory", out, settings, cases, lambda key: command.measure(key, counts), _say)


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
        _say,
        command.fits,
    )
    for fit in results.read(path.parent)["scaling"]["fits"]:
        typer.echo(
            f"{fit['axis']}: time grows with the power {fit['exponent']:.2f}; "
            f"{1e3 * fit['fixed_seconds']:.1f} ms + {1e3 * fit['seconds_per_unit']:.3f} ms per unit"
        )


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
    methods: Annotated[
        str, typer.Option(metavar="NAMES", help="By default a few, with --full all.")
    ] = "",
    clusters: Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of groups.")] = "16,64",
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="As for captum-clustered evaluate.")
    ] = "",
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
    from captum_clustered.evaluation import Settings

    _threads(threads)
    chosen = listed(methods) or (command.FULL if full else command.QUICK)
    judged = listed(metrics) or (command.FULL_METRICS if full else command.QUICK_METRICS)
    folders = {f"{folder.name}/{model}": folder for folder in data}
    if len(folders) < len(data):
        raise ValueError("`data` must be folders of different names; got two of one name.")
    number = limit if limit is not None or full else 12
    wanted = {
        key: Settings(
            data=folder,
            model=model,
            out=out / "evaluations" / key.replace("/", "-").replace(":", "-"),
            methods=tuple(chosen),
            layer=layer,
            clusters=numbers(clusters),
            metrics=tuple(judged),
            limit=number,
            weights=weights,
            checkpoint=checkpoint,
        )
        for key, folder in folders.items()
    }
    settings = {
        "full": full,
        "cases": list(folders),
        "model": model,
        "layer": layer,
        "methods": list(chosen),
        "clusters": numbers(clusters),
        "metrics": list(judged),
        "limit": number,
        "weights": weights,
        "checkpoint": None if checkpoint is None else checkpoint.name,
    }
    results.collect(
        "faithfulness",
        out,
        settings,
        wanted,
        lambda key: command.measure(wanted[key], _say),
        _say,
        lambda _: {"conventions": {k: command.conventions(wanted[k].out) for k in wanted}},
    )


@app.command()
def zoo(
    only: Annotated[
        str, typer.Option(metavar="NAMES", help="Only these networks, separated by commas.")
    ] = "",
    full: Full = False,
    out: Out = _RESULTS,
) -> None:
    """Every architecture: does it run, by which path, and is it equal to the full one?"""
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
    results.collect("zoo", out, settings, cases, command.measure, _say)


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
    """The page with tables and figures, made of the results."""
    from benchmarks.pages import document
    from benchmarks.report import short, write
    from benchmarks.results import read
    from captum_clustered._files import whole

    written = write(results, docs)
    if readme is not None:
        renewed = document(readme.read_text(encoding="utf-8"), short(read(results)))
        with whole(readme) as part:
            part.write_text(renewed, encoding="utf-8")
        written.append(readme)
    for path in written:
        typer.echo(str(path))


def main() -> None:
    """Runs the commands; what a user can put right is said in one line."""
    import sys

    try:
        app()
    except (ValueError, ImportError) as error:
        _say(f"python -m benchmarks: {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
