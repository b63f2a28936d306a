"""The command line: explanations for people without code.

The commands only turn words into settings. What they find out is gathered by
:mod:`captum_clustered.app.explain`, or :mod:`captum_clustered.evaluation`, and written by
:mod:`captum_clustered.app.write`. What is heavy loads when a command runs, not to show help.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from captum_clustered.app.explain import Explainer

__all__ = ["app", "main"]

_PROGRAM = "captum-clustered"
_USER_ERROR = 2
_EXPECTED = (ValueError, TypeError, ImportError, OSError, RuntimeError)


# --- commands -------------------------------------------------------------------------------------

app = typer.Typer(
    name=_PROGRAM,
    help="Clustered-CAM: which part of the image made the model say so?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from captum_clustered import __version__

        typer.echo(f"{_PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version  # its callback has done the work


@app.command()
def explain(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image or DICOM files; or volumes (.npy, .nii, .nii.gz) for a network of three "
            "dimensions.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="A torchvision model, timm:NAME, efficientnet-lite0, or package.module:callable "
            "that returns the model, or the model and its transform.",
        ),
    ],
    layer: Annotated[
        str, typer.Option(metavar="NAME", help="Dotted name of the layer, or auto.")
    ] = "auto",
    target: Annotated[
        str, typer.Option(metavar="CLASS", help="Index or name of the class to explain, or top.")
    ] = "top",
    clusters: Annotated[int, typer.Option(metavar="K", min=1, help="Number of groups.")] = 64,
    clusterer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What groups the maps: kmeans, cosine, agglomerative, contiguous, random, "
            "every-map.",
        ),
    ] = "kmeans",
    weighting: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="How a drop becomes a weight: drop, drop_per_map, drop_per_mass, drop_per_norm, "
            "drop_by_activation.",
        ),
    ] = "drop_per_map",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the results go; made if missing.")
    ] = Path("explained"),
    checkpoint: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="State dict of the model (.pth, .pt, .safetensors)."),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="NAME", help="default (the published weights) or none (random)."),
    ] = "default",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="INT", help="Seed of the clusterer.")] = 0,
    html: Annotated[
        bool, typer.Option("--html", help="Write a page for each image (extra html).")
    ] = False,
    frame: Annotated[
        int, typer.Option(metavar="N", min=1, help="Frame of a DICOM file, counted from 1.")
    ] = 1,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom", help="Save the overlay as DICOM Secondary Capture too (extra dicom)."
        ),
    ] = False,
    dicom_identifiers: Annotated[
        bool,
        typer.Option(
            "--dicom-identifiers", help="With --dicom: keep the names of patient and study."
        ),
    ] = False,
) -> None:
    """Explain images: write an overlay, a heat map and a record of each.

    For each IMAGE the folder --out gets STEM.overlay.png, STEM.heatmap.npy (the map in [0, 1], as
    large as what the model sees of the image), STEM.map.npy (the same before it was enlarged and
    scaled) and STEM.json (settings, versions, score, groups, timings); with --html also STEM.html,
    a page to look at the groups, and with --dicom STEM.overlay.dcm. An image that cannot be read is
    reported and left out; the exit code is then 2. What a DICOM file says of patient and study is
    written nowhere unless --dicom-identifiers asks for it.
    """
    from captum_clustered._files import require
    from captum_clustered.app.explain import Settings, example_of, prepare
    from captum_clustered.app.write import make_folder
    from captum_clustered.models.medical import is_dicom

    settings = Settings(
        model=model,
        layer=layer,
        target=target,
        clusters=clusters,
        clusterer=clusterer,
        weighting=weighting,
        checkpoint=checkpoint,
        weights=weights,
        device=device,
        seed=seed,
    )
    with _short_warnings(), _working_directory_on_path():
        with _reported():
            if html:
                require("jinja2", "html", "to write HTML pages")
            if dicom:
                require("pydicom", "dicom", "to write DICOM")
            if dicom_identifiers and not dicom:
                raise ValueError("`--dicom-identifiers` must come with --dicom; it came alone.")
            strangers = [path for path in images if not is_dicom(path)] if dicom_identifiers else []
            if strangers:
                raise ValueError(
                    f"`--dicom-identifiers` must have DICOM files as images; got {strangers[0]}."
                )
            explainer = prepare(settings, example_of(images))
            make_folder(out)
        if explainer.loaded.weights == "random":
            _report("the weights are random, so the pictures mean nothing", "warning")
        wishes = {"html": html, "dicom": dicom, "keep_identifiers": dicom_identifiers}
        if not _explain_all(explainer, images, out, frame, wishes):
            raise typer.Exit(_USER_ERROR)


@app.command()
def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            metavar="DIR|CSV",
            help="A folder of images, one with a folder for each class, or a CSV file with the "
            "columns path and, if known, class, case, mask, boxes (x0 y0 x1 y1; ...).",
        ),
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="As for explain.")],
    methods: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Separated by commas: clustered-cam, ablation-cam, ablation-cam-norm, grad-cam, "
            "egrad-cam, group-cam, clustered-group-cam, score-cam, clustered-score-cam, "
            "random-score-cam, clustered-opti-cam, adaptive-ablation-cam.",
        ),
    ] = "clustered-cam,ablation-cam,grad-cam",
    layer: Annotated[
        str, typer.Option(metavar="NAME", help="Dotted name of the layer, or auto.")
    ] = "auto",
    clusters: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Numbers of groups, separated by commas.")
    ] = "16,32,64",
    weightings: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="drop, drop_per_map, drop_per_mass, drop_per_norm, drop_by_activation.",
        ),
    ] = "drop_per_map",
    metrics: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="adc, pic, ag, complement, adcc, coherency, insertion, deletion; where the "
            "data have masks or boxes also pointing, energy, iou. The area is always measured.",
        ),
    ] = "adc,pic",
    clusterer: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What groups the maps: kmeans, cosine, agglomerative, contiguous, random, "
            "every-map.",
        ),
    ] = "kmeans",
    controls: Annotated[
        bool,
        typer.Option(
            help="Controls beside the methods: fake-cam, random-map, centre-gaussian, "
            "sum-of-maps, random-groups, contiguous-groups."
        ),
    ] = True,
    target: Annotated[
        str, typer.Option(metavar="WHICH", help="Class to judge by: predicted or given.")
    ] = "predicted",
    fill: Annotated[
        str, typer.Option(metavar="NAME", help="What hidden pixels become: black, mean or blur.")
    ] = "black",
    mask_fill: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="What methods that mask the image put in the hidden part: own (the method's "
            "default), black, mean or blur.",
        ),
    ] = "own",
    score: Annotated[
        str, typer.Option(metavar="NAME", help="softmax, sigmoid or identity.")
    ] = "softmax",
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Only N images, spread over the data.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Images that are explained together.")
    ] = 1,
    step: Annotated[
        int, typer.Option(metavar="N", help="Pixels at a time in insertion and deletion.")
    ] = 224,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the results go; made if missing.")
    ] = Path("evaluated"),
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="FILE", help="State dict of the model.")
    ] = None,
    weights: Annotated[
        str, typer.Option(metavar="NAME", help="default (the published weights) or none (random).")
    ] = "default",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(metavar="INT", help="Of all that draws at random.")] = 0,
    html: Annotated[
        bool,
        typer.Option(
            "--html", help="Write pages: the tables, and one for each image (extra html)."
        ),
    ] = False,
) -> None:
    """Compare methods on many images: rows, tables with intervals, figures.

    A run that was stopped goes on where it was when the same command is given again. For several
    processes: torchrun --nproc-per-node N -m captum_clustered evaluate ...
    """
    with _short_warnings(), _working_directory_on_path(), _reported():
        from captum_clustered.evaluation import Settings, evaluate, listed, numbers, summarize

        settings = Settings(
            data=data,
            model=model,
            out=out,
            methods=listed(methods),
            layer=layer,
            clusters=numbers(clusters),
            clusterer=clusterer,
            weightings=listed(weightings),
            metrics=listed(metrics),
            controls=controls,
            target=target,
            fill=fill,
            mask_fill=mask_fill,
            score=score,
            limit=limit,
            batch_size=batch_size,
            step=step,
            checkpoint=checkpoint,
            weights=weights,
            device=device,
            seed=seed,
            html=html,
        )
        outcome = evaluate(settings, lambda line: _report(line, "note"))
        if outcome is not None:
            typer.echo(summarize(outcome))


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the pictures go; made if missing.")
    ] = Path("captum-clustered-demo"),
) -> None:
    """Explain two photographs with EfficientNet-Lite0, beside Grad-CAM (needs the extra demo)."""
    from captum_clustered.app import explain as explaining
    from captum_clustered.app.write import make_folder, write_demo

    with _short_warnings(), _reported():
        explainer = explaining.prepare(explaining.Settings(model="efficientnet-lite0"))
        make_folder(out)
        for name, image in explaining.demo_photographs():
            result = explaining.run_demo(explainer, name, image)
            pictures = write_demo(result, out)
            typer.echo(explaining.describe_demo(result, pictures))
        rounds = explaining.DEMO_ROUNDS
        typer.echo(f"Times are medians of {rounds} runs on {explainer.device}.")


@contextmanager
def _reported() -> Iterator[None]:
    """Ends the command with one line where something expected goes wrong."""
    try:
        yield
    except _EXPECTED as error:
        _report(_one_line(error))
        raise typer.Exit(_USER_ERROR) from error


def main() -> None:
    """Runs the command line."""
    app(prog_name=_PROGRAM)


def _explain_all(
    explainer: Explainer, images: Sequence[Path], out: Path, frame: int, wishes: dict[str, bool]
) -> bool:
    """Explains each image; returns whether all could be."""
    from tqdm import tqdm

    from captum_clustered.app.explain import explain_image
    from captum_clustered.app.write import unique_stems, write_explanation

    stems = unique_stems(images)
    failures = 0
    with tqdm(total=len(images), unit="image", disable=len(images) < 2, file=sys.stderr) as bar:
        for path, stem in zip(images, stems, strict=True):
            try:
                explanation = explain_image(explainer, path, frame=frame, levels=wishes["html"])
                overlay = write_explanation(explanation, out, stem, **wishes)
            except _EXPECTED as error:
                failures += 1
                line = _one_line(error)
                line = line if str(path) in line else f"{path}: {line}"
                bar.write(f"{_PROGRAM}: error: {line}", file=sys.stderr)
            else:
                bar.write(f"{path}: {explanation.title}, see {overlay}", file=sys.stdout)
            bar.update()
    return not failures


# --- words ----------------------------------------------------------------------------------------


def _report(line: str, kind: str = "error") -> None:
    typer.echo(f"{_PROGRAM}: {kind}: {line}", err=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Shows warnings as one line each, without the code that raised them."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        _report(" ".join(str(message).split()), "warning")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Lets ``--model module:callable`` find a module in the working directory, as Python would."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
