"""``python -m benchmarks.thyroid``: the experiment from the frames to the tables.

Every command goes on where an earlier one stopped. The folder ``--out`` belongs to one data set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import program, run, say
from captum_clustered.evaluation.plan import listed, numbers

app = program(
    "python -m benchmarks.thyroid",
    "The experiment of the Clustered-CAM paper, redone on public thyroid ultrasound.",
)

Data = Annotated[
    Path,
    typer.Option(metavar="DIR|CSV", help="DDTI or TN3K as released, or a CSV file of one's own."),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of all results.")]
Networks = Annotated[
    str, typer.Option(metavar="NAMES", help="lite0, lite0-vgg, vgg19; with commas between.")
]
Folds = Annotated[int, typer.Option(metavar="N", min=3, help="Folds of the cross-validation.")]
Epochs = Annotated[int, typer.Option(metavar="N", min=1, help="The most epochs of a fold.")]
Pictures = Annotated[int, typer.Option(metavar="N", min=1, help="Variants of each region.")]
Weights = Annotated[str, typer.Option(metavar="NAME", help="default (ImageNet's) or none.")]
Methods = Annotated[
    str, typer.Option(metavar="NAMES", help="As for captum-clustered evaluate; by default most.")
]
Clusters = Annotated[str, typer.Option(metavar="NUMBERS", help="Numbers of groups.")]
Clusterers = Annotated[
    str, typer.Option(metavar="NAMES", help="The first with all methods and controls.")
]
Weightings = Annotated[str, typer.Option(metavar="NAMES", help="How drops become weights.")]
Masking = Annotated[
    str, typer.Option(metavar="NAMES", help="Methods that mask the image; none for no such.")
]
Others = Annotated[
    int, typer.Option(metavar="N", min=0, help="Unseen regions beside the hold-out, at most.")
]
Timed = Annotated[int, typer.Option(metavar="N", min=0, help="Regions that are timed.")]
Seed = Annotated[int, typer.Option(metavar="INT", help="Of everything drawn.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="What the tables call the data.")]
Page = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A page whose marked tables are renewed.")
]

_NETWORKS = "lite0,lite0-vgg"


@app.command()
def phantom(
    out: Out,
    frames: Annotated[int, typer.Option(metavar="N", min=2, help="Number of frames.")] = 400,
    malignant: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Share of malignant patients.")
    ] = 0.5,
    calipers: Annotated[
        float,
        typer.Option(
            metavar="SHARE", min=0, max=1, help="Share of malignant frames with calipers."
        ),
    ] = 0.0,
    seed: Seed = 0,
) -> None:
    """Draw a data set of speckle phantoms; its phantom.csv is for --data."""
    from benchmarks.thyroid.phantom import write

    write(out, frames, seed, malignant, calipers, say)


@app.command()
def prepare(data: Data, out: Out) -> None:
    """Cut the regions of interest out of the frames."""
    from benchmarks.thyroid.data import read
    from benchmarks.thyroid.regions import prepare as cut

    cut(*read(data), out, say)


@app.command()
def train(
    out: Out,
    networks: Networks = _NETWORKS,
    folds: Folds = 10,
    epochs: Epochs = 25,
    pictures: Pictures = 8,
    weights: Weights = "default",
    seed: Seed = 0,
) -> None:
    """Train the networks by cross-validation over patients, with a hold-out."""
    from benchmarks.thyroid.splits import read_regions
    from benchmarks.thyroid.training import Training
    from benchmarks.thyroid.training import train as train_folds

    regions = read_regions(out)
    for network in listed(networks):
        settings = Training(
            network=network,
            folds=folds,
            epochs=epochs,
            pictures=pictures,
            pretrained=weights == "default",
            seed=seed,
        )
        found = train_folds(regions, out / network, settings, say)
        for part, words in (("pooled", "folds"), ("holdout", "hold-out, best fold")):
            rates = ", ".join(
                f"{name} {rate['estimate']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]"
                for name, rate in found[part].items()
            )
            typer.echo(f"{network}, {words}: {rates}")


@app.command()
def explain(
    out: Out,
    networks: Networks = _NETWORKS,
    methods: Methods = "",
    clusters: Clusters = "16,32,64",
    clusterers: Clusterers = "kmeans,agglomerative,cosine",
    weightings: Weightings = "drop,drop_per_map,drop_per_mass",
    masking: Masking = "group-cam,clustered-score-cam,clustered-opti-cam",
    others: Others = 100,
    timed: Timed = 3,
    seed: Seed = 0,
) -> None:
    """Explain the regions that the best fold did not see, by every method and control."""
    from benchmarks.thyroid.explaining import METHODS, Explaining
    from benchmarks.thyroid.explaining import explain as explain_regions
    from benchmarks.thyroid.splits import read_regions

    settings = Explaining(
        methods=listed(methods) or METHODS,
        clusters=numbers(clusters),
        clusterers=listed(clusterers),
        weightings=listed(weightings),
        masking=() if masking == "none" else listed(masking),
        others=others,
        timed=timed,
        seed=seed,
    )
    regions = read_regions(out)
    for network in listed(networks):
        explain_regions(regions, out / network, out / network / "explained", settings, say)


@app.command()
def tables(out: Out, name: Name = "ddti", page: Page = None) -> None:
    """Make the tables and Figure 2 of what the other commands found."""
    from benchmarks.files import write_json, write_text
    from benchmarks.pages import renew
    from benchmarks.thyroid import tables as command
    from captum_clustered._files import whole

    found = command.gather(out, name)
    made = command.markdown(found)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in made.items()) + "\n"
    written = [out / "results.json", out / "tables.md"]
    write_json(written[0], found)
    write_text(written[1], text)
    for network in found["networks"]:
        path = out / f"figure-{network}.png"
        with whole(path) as part:
            command.figure(out, network).savefig(part, format="png", dpi=110)
        written.append(path)
    if page is not None:
        renew(page, made)
        written.append(page)
    for path in written:
        typer.echo(str(path))


@app.command(name="all")
def everything(
    data: Data,
    out: Out,
    networks: Networks = _NETWORKS,
    folds: Folds = 10,
    epochs: Epochs = 25,
    pictures: Pictures = 8,
    weights: Weights = "default",
    methods: Methods = "",
    clusters: Clusters = "16,32,64",
    clusterers: Clusterers = "kmeans,agglomerative,cosine",
    weightings: Weightings = "drop,drop_per_map,drop_per_mass",
    masking: Masking = "group-cam,clustered-score-cam,clustered-opti-cam",
    others: Others = 100,
    timed: Timed = 3,
    seed: Seed = 0,
    name: Name = "ddti",
    page: Page = None,
) -> None:
    """All of it, one after the other."""
    prepare(data, out)
    train(out, networks, folds, epochs, pictures, weights, seed)
    explain(out, networks, methods, clusters, clusterers, weightings, masking, others, timed, seed)
    tables(out, name, page)


def main() -> None:
    """Runs the program."""
    run(app, errors=(RuntimeError,))


if __name__ == "__main__":
    main()
