"""``python -m benchmarks.ultrasound``: the experiment from the frames to the tables.

Every command goes on where an earlier one stopped. The folder ``--out`` belongs to one data set to
train on, with any number of others to test on, and to one view of them.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands import program, run, say
from benchmarks.ultrasound.splits import folder_of
from captum_clustered._checks import check_choice
from captum_clustered.evaluation.plan import listed

app = program(
    "python -m benchmarks.ultrasound",
    "The experiment of the Clustered-CAM paper, redone on public ultrasound.",
)

Data = Annotated[
    Path,
    typer.Option(
        metavar="DIR|CSV",
        help="Folder of the data set, or of several in folders of their names; or a CSV file.",
    ),
]
Dataset = Annotated[
    str, typer.Option(metavar="NAME", help="busbra, busi, ddti, tn3k, phantom or csv: to train on.")
]
Test = Annotated[
    str, typer.Option(metavar="NAMES", help="Others to test on, such as busi; none for no such.")
]
View = Annotated[
    str, typer.Option(metavar="NAME", help="region (the lesion's box + 8 %) or frame (all of it).")
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder of all results.")]
Networks = Annotated[
    str, typer.Option(metavar="NAMES", help="lite0, lite0-vgg, dino, vgg19; with commas between.")
]
Folds = Annotated[
    int, typer.Option(metavar="N", min=2, help="Folds, where the data have none of their own.")
]
Masks = Annotated[
    str, typer.Option(metavar="WHICH", help="plain, masked (random masks in training), or both.")
]
Epochs = Annotated[int, typer.Option(metavar="N", min=1, help="The most epochs of a fold.")]
Patience = Annotated[
    int, typer.Option(metavar="N", min=1, help="Epochs without a lower loss before a fold stops.")
]
Pictures = Annotated[int, typer.Option(metavar="N", min=1, help="Variants of each region.")]
Weights = Annotated[str, typer.Option(metavar="NAME", help="default (ImageNet's) or none.")]
Sets = Annotated[
    str,
    typer.Option(
        metavar="NAMES",
        help="main (the paper's methods and controls), groups (other numbers), curves (insertion, "
        "deletion and calibration, on a tenth of the regions).",
    ),
]
Weightings = Annotated[str, typer.Option(metavar="NAMES", help="How drops become weights.")]
Clusterer = Annotated[str, typer.Option(metavar="NAME", help="Who groups the maps.")]
Regions = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="The most regions of each data set.")
]
Timed = Annotated[int, typer.Option(metavar="N", min=0, help="Regions that are timed.")]
Seed = Annotated[int, typer.Option(metavar="INT", help="Of everything drawn.")]
Page = Annotated[
    Path | None, typer.Option(metavar="FILE", help="A page whose marked tables are renewed.")
]

_NETWORKS = "lite0,lite0-vgg"
_DATASET = "busbra"


def _names(test: str, dataset: str) -> tuple[str, ...]:
    names = () if test == "none" else listed(test)
    if dataset in names:
        raise ValueError(
            f"`test` must name other data sets than `dataset`; got {dataset!r} in both."
        )
    return names


def _masks(which: str) -> tuple[bool, ...]:
    check_choice("masks", which, ("plain", "masked", "both"))
    return {"plain": (False,), "masked": (True,), "both": (False, True)}[which]


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
    from benchmarks.ultrasound.phantom import write

    write(out, frames, seed, malignant, calipers, say)


@app.command()
def prepare(
    data: Data, out: Out, dataset: Dataset = _DATASET, test: Test = "none", view: View = "region"
) -> None:
    """Cut the regions of interest out of the frames."""
    from benchmarks.ultrasound.data import read
    from benchmarks.ultrasound.regions import prepare as cut

    names = (dataset, *_names(test, dataset))
    found = {name: read(data, name) for name in names}  # before anything is written
    for name, (lesions, skipped) in found.items():
        cut(lesions, skipped, out / name, say, view)


@app.command()
def train(
    out: Out,
    dataset: Dataset = _DATASET,
    test: Test = "none",
    networks: Networks = _NETWORKS,
    masks: Masks = "plain",
    folds: Folds = 5,
    epochs: Epochs = 15,
    patience: Patience = 4,
    pictures: Pictures = 8,
    weights: Weights = "default",
    seed: Seed = 0,
) -> None:
    """Train the networks by cross-validation over patients, and test them on other data sets."""
    from benchmarks.ultrasound.splits import read_regions
    from benchmarks.ultrasound.training import Training
    from benchmarks.ultrasound.training import train as train_folds

    regions = read_regions(out / dataset)
    tests = {name: read_regions(out / name) for name in _names(test, dataset)}
    for network, masked in product(listed(networks), _masks(masks)):
        settings = Training(
            network=network,
            folds=folds,
            holdout=0 if tests else 1 / 6,
            epochs=epochs,
            patience=patience,
            pictures=pictures,
            masks=masked,
            pretrained=weights == "default",
            seed=seed,
        )
        folder = folder_of(out, network, masked)
        found = train_folds(regions, folder, settings, say, tests)
        parts = {"folds": found["pooled"], "hold-out, best fold": found["holdout"]}
        parts.update({name: result["rates"] for name, result in found["tests"].items()})
        for words, rates in parts.items():
            if rates is not None:
                text = ", ".join(
                    f"{name} {rate['estimate']:.1f} [{rate['low']:.1f}, {rate['high']:.1f}]"
                    for name, rate in rates.items()
                )
                typer.echo(f"{folder.name}, {words}: {text}")


@app.command()
def explain(
    out: Out,
    dataset: Dataset = _DATASET,
    test: Test = "none",
    networks: Networks = _NETWORKS,
    masks: Masks = "plain",
    sets: Sets = "main,groups,curves",
    weightings: Weightings = "drop,auto",
    clusterer: Clusterer = "kmeans",
    regions: Regions = None,
    timed: Timed = 3,
    seed: Seed = 0,
) -> None:
    """Explain regions that the network did not see, by every method and control."""
    from benchmarks.ultrasound.explaining import SETS, Explaining
    from benchmarks.ultrasound.explaining import explain as explain_regions
    from benchmarks.ultrasound.splits import read_regions

    for name in listed(sets):
        check_choice("sets", name, tuple(SETS))
    settings = Explaining(
        sets=listed(sets),
        weightings=listed(weightings),
        clusterer=clusterer,
        regions=regions,
        timed=timed,
        seed=seed,
    )
    known = read_regions(out / dataset)
    tests = {name: read_regions(out / name) for name in _names(test, dataset)}
    for network, masked in product(listed(networks), _masks(masks)):
        explain_regions(known, folder_of(out, network, masked), settings, say, tests)


@app.command()
def tables(out: Out, dataset: Dataset = _DATASET, test: Test = "none", page: Page = None) -> None:
    """Make the tables and Figure 2 of what the other commands found."""
    from benchmarks.files import write_json, write_text
    from benchmarks.pages import renew
    from benchmarks.ultrasound.findings import gather
    from benchmarks.ultrasound.tables import figure, markdown
    from captum_clustered._files import whole

    found = gather(out, dataset, _names(test, dataset))
    made = markdown(found)
    text = "\n\n".join(f"## {title}\n\n{table}" for title, table in made.items()) + "\n"
    written = [out / "results.json", out / "tables.md"]
    write_json(written[0], found)
    write_text(written[1], text)
    for network in found["networks"]:
        path = out / f"figure-{network}.png"
        with whole(path) as part:
            figure(out, network, dataset).savefig(part, format="png", dpi=110)
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
    dataset: Dataset = _DATASET,
    test: Test = "none",
    view: View = "region",
    networks: Networks = _NETWORKS,
    masks: Masks = "plain",
    folds: Folds = 5,
    epochs: Epochs = 15,
    patience: Patience = 4,
    pictures: Pictures = 8,
    weights: Weights = "default",
    sets: Sets = "main,groups,curves",
    weightings: Weightings = "drop,auto",
    clusterer: Clusterer = "kmeans",
    regions: Regions = None,
    timed: Timed = 3,
    seed: Seed = 0,
    page: Page = None,
) -> None:
    """All of it, one after the other."""
    prepare(data, out, dataset, test, view)
    train(out, dataset, test, networks, masks, folds, epochs, patience, pictures, weights, seed)
    explain(out, dataset, test, networks, masks, sets, weightings, clusterer, regions, timed, seed)
    tables(out, dataset, test, page)


def main() -> None:
    """Runs the program."""
    run(app, errors=(RuntimeError,))


if __name__ == "__main__":
    main()
