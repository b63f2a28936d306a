"""The command line: explanations for people without code.

This module declares the options; :mod:`captum_clustered.app.explain`,
:mod:`captum_clustered.app.demo` and :mod:`captum_clustered.evaluation` do the work. They are
imported when a command runs, so that help comes at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main"]

_PROGRAM = "captum-clustered"

app = typer.Typer(
    name=_PROGRAM,
    help="Clustered-CAM: which part of the image made the model say so?",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# --- options that explain and evaluate share ------------------------------------------------------

_Model = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A torchvision model, timm:NAME, efficientnet-lite0, or package.module:callable that "
        "returns the model, or the model and its transform.",
    ),
]
_Method = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="clustered-cam, calibrated-cam, ablation-cam, ablation-cam-norm, grad-cam, "
        "hires-cam, egrad-cam, group-cam, clustered-group-cam, score-cam, "
        "clustered-score-cam, random-score-cam, clustered-opti-cam, adaptive-ablation-cam; "
        "a control: fake-cam, random-map, centre-gaussian, sum-of-maps, random-groups, "
        "contiguous-groups; or module:callable that makes an explainer of (model, layer). "
        "Repeat it, or separate several by commas.",
    ),
]
_Layer = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="Dotted name of the layer, or auto. explain takes several: repeat it, or separate "
        "them by commas.",
    ),
]
_Clusters = Annotated[
    list[str],
    typer.Option(
        metavar="K",
        help="Number of groups, for all methods that take one; several are compared. auto chooses "
        "it for each image, where a tree of the maps (agglomerative) has its largest gap. Without "
        "it, each method's own.",
        show_default=False,
    ),
]
_Clusterer = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What groups the maps, for all methods that take it: kmeans, cosine, agglomerative, "
        "contiguous, random, every-map; or own, each method's own.",
    ),
]
_Weighting = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="How a drop becomes a weight, for all methods that take it: auto, drop, drop_per_map, "
        "drop_per_mass, drop_per_norm, drop_by_activation; several are compared. Without it, each "
        "method's own.",
        show_default=False,
    ),
]
_Target = Annotated[
    list[str],
    typer.Option(
        metavar="CLASS",
        help="The class to explain: predicted, given (where the data say it), or its index or "
        "name. explain also takes top:N, the N highest classes, and several: repeat it, or "
        "separate indices by commas.",
    ),
]
_MaskFill = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What methods that mask the image put in the hidden part: own (the method's default), "
        "black, mean or blur.",
    ),
]
_Frame = Annotated[
    int, typer.Option(metavar="N", min=1, help="Frame of a DICOM file, counted from 1.")
]
_Out = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder of the results; it is made if missing.")
]
_Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="State dict of the model (.pth, .pt, .safetensors)."),
]
_Weights = Annotated[
    str, typer.Option(metavar="NAME", help="default (the published weights) or none (random).")
]
_Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")]
_Score = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What makes a probability of the model's output: softmax; sigmoid, for one logit or "
        "for labels that do not exclude each other; identity, to take the output as it is, also "
        "of a model that returns probabilities; probabilities, to say that it does.",
    ),
]
_Seed = Annotated[int, typer.Option(metavar="INT", help="Seed of all that draws at random.")]
_Calibrate = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="Judge every map, of methods and controls, on a scale of its own as well.",
    ),
]
_Html = Annotated[
    bool, typer.Option("--html", help="Write a page for each image too (extra html).")
]
_Debug = Annotated[bool, typer.Option("--debug", help="Print the traceback of every error.")]

# --- options of one command -----------------------------------------------------------------------

_Images = Annotated[
    list[Path],
    typer.Argument(
        metavar="IMAGE",
        help="Image or DICOM files, or folders of them; or volumes (.npy, .nii, .nii.gz) for a "
        "network of three dimensions.",
    ),
]
_Bare = Annotated[
    bool,
    typer.Option(
        "--bare",
        help="Write overlays without words too: STEM.bare.png on what the model sees, "
        "STEM.original.png on the whole image.",
    ),
]
_Colormap = Annotated[
    str, typer.Option(metavar="NAME", help="A colour map of matplotlib, such as viridis or jet.")
]
_Alpha = Annotated[
    float, typer.Option(metavar="SHARE", help="Share of the colour over the image, from 0 to 1.")
]
_Resume = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Leave out the images whose results are there already, made with the same settings.",
    ),
]
_Dicom = Annotated[
    bool,
    typer.Option("--dicom", help="Save the overlay as DICOM Secondary Capture too (extra dicom)."),
]
_DicomIdentifiers = Annotated[
    bool,
    typer.Option(
        "--dicom-identifiers",
        help="With --dicom: keep what sorts the picture to its study: name, ID, birth date and sex "
        "of the patient; UID, ID, date and time of the study; accession number and referring "
        "physician; and a reference to the image.",
    ),
]
_Data = Annotated[
    Path,
    typer.Option(
        metavar="DIR|CSV",
        help="An image, a folder of images, DICOM files or volumes, one with a folder for each "
        "class, or a CSV file with the columns path and, if known, class, case, mask, boxes (x0 y0 "
        "x1 y1; ...).",
    ),
]
_Metric = Annotated[
    list[str],
    typer.Option(
        metavar="NAME",
        help="adc, pic, ag, complement, adcc, coherency, insertion, deletion; where the data have "
        "masks or boxes also pointing, energy, iou; or module:callable that takes (model, images, "
        "heatmaps, target) and returns a number for each image. The area is always measured. "
        "Repeat it, or separate several by commas.",
    ),
]
_Controls = Annotated[
    bool,
    typer.Option(
        help="Controls beside the methods: fake-cam, random-map, centre-gaussian, sum-of-maps, "
        "random-groups, contiguous-groups."
    ),
]
_Fill = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What the metrics put in the hidden part: black, mean or blur. Insertion always "
        "starts from a blurred image.",
    ),
]
_Limit = Annotated[
    int | None, typer.Option(metavar="N", help="Only N images, spread over the data.")
]
_BatchSize = Annotated[int, typer.Option(metavar="N", help="Images that are explained together.")]
_Step = Annotated[
    int, typer.Option(metavar="N", help="Pixels at a time in insertion and deletion.")
]
_Workers = Annotated[
    int, typer.Option(metavar="N", help="Processes that read images ahead; 0 for none.")
]
_RetryFailed = Annotated[
    bool,
    typer.Option(
        "--retry-failed", help="Try the images again whose rows failed in an earlier run."
    ),
]


# --- commands -------------------------------------------------------------------------------------


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
    images: _Images,
    model: _Model,
    method: _Method = ["clustered-cam"],  # noqa: B006 (typer copies it)
    layer: _Layer = ["auto"],  # noqa: B006
    target: _Target = ["predicted"],  # noqa: B006
    clusters: _Clusters = [],  # noqa: B006
    clusterer: _Clusterer = "own",
    weighting: _Weighting = [],  # noqa: B006
    mask_fill: _MaskFill = "own",
    score: _Score = "softmax",
    frame: _Frame = 1,
    out: _Out = Path("results"),
    checkpoint: _Checkpoint = None,
    weights: _Weights = "default",
    device: _Device = "auto",
    seed: _Seed = 0,
    html: _Html = False,
    bare: _Bare = False,
    colormap: _Colormap = "inferno",
    alpha: _Alpha = 0.55,
    dicom: _Dicom = False,
    dicom_identifiers: _DicomIdentifiers = False,
    resume: _Resume = False,
    debug: _Debug = False,
) -> None:
    """Explain images: write an overlay, a heat map and a record of each.

    For each IMAGE the folder --out gets STEM.overlay.png, STEM.heatmap.npy (the map in [0, 1], as
    large as what the model sees of the image), STEM.map.npy (the same before it was enlarged and
    scaled) and STEM.json (settings, versions, score, groups, timings). With several methods, layers
    or classes the overlay shows them side by side, STEM.json lists them, and each has its own files
    STEM.METHOD.LAYER.classN.heatmap.npy and so on, of which only the parts that differ are named.
    With --html there is also STEM.html, a page about the groups (of the other layers and classes
    STEM.LAYER.classN.html), and with --dicom STEM.overlay.dcm. If --out has results of another
    image of that name, STEM gets a number. An image that cannot be explained is reported and left
    out; the exit code is then 2. What a DICOM file says of patient and study is written nowhere
    unless --dicom-identifiers asks for it.
    """
    from captum_clustered.app import errors

    with errors.command(debug):
        from captum_clustered.app.explain import explain_all
        from captum_clustered.app.write import Output
        from captum_clustered.evaluation.plan import Choices, classes, listed, numbers

        choices = Choices(
            model=model,
            methods=listed(method),
            layer=listed(layer),
            target=classes(target),
            clusters=numbers(clusters),
            clusterer=clusterer,
            weightings=listed(weighting),
            mask_fill=mask_fill,
            score=score,
            frame=frame,
            out=out,
            checkpoint=checkpoint,
            weights=weights,
            device=device,
            seed=seed,
            html=html,
        )
        output = Output(
            html=html,
            bare=bare,
            dicom=dicom,
            keep_identifiers=dicom_identifiers,
            colormap=colormap,
            alpha=alpha,
        )
        code = explain_all(images, choices, output, resume=resume, debug=debug)
        raise typer.Exit(code)


@app.command()
def evaluate(
    data: _Data,
    model: _Model,
    method: _Method = ["clustered-cam"],  # noqa: B006
    layer: _Layer = ["auto"],  # noqa: B006
    target: _Target = ["predicted"],  # noqa: B006
    clusters: _Clusters = [],  # noqa: B006
    clusterer: _Clusterer = "own",
    weighting: _Weighting = [],  # noqa: B006
    metric: _Metric = ["adc", "pic"],  # noqa: B006
    controls: _Controls = True,
    calibrate: _Calibrate = False,
    fill: _Fill = "black",
    mask_fill: _MaskFill = "own",
    score: _Score = "softmax",
    frame: _Frame = 1,
    limit: _Limit = None,
    batch_size: _BatchSize = 1,
    step: _Step = 224,
    workers: _Workers = 1,
    retry_failed: _RetryFailed = False,
    out: _Out = Path("results"),
    checkpoint: _Checkpoint = None,
    weights: _Weights = "default",
    device: _Device = "auto",
    seed: _Seed = 0,
    html: _Html = False,
    debug: _Debug = False,
) -> None:
    """Compare methods on many images: rows, tables with intervals, figures.

    If a run is stopped, the same command goes on from there; methods and metrics may be added. For
    several processes: torchrun --nproc-per-node N -m captum_clustered evaluate ...

    Exit codes, of all commands: 0, all was done; 2, something is wrong with what was asked for, or
    with an image while the others were done; 1, a fault of this program; 130, interrupted.
    """
    from captum_clustered.app import errors

    with errors.command(debug):
        from captum_clustered.evaluation import Settings, listed, numbers, summarize
        from captum_clustered.evaluation import evaluate as run
        from captum_clustered.evaluation.plan import classes

        settings = Settings(
            data=data,
            model=model,
            methods=listed(method),
            layer=listed(layer),
            target=classes(target),
            clusters=numbers(clusters),
            clusterer=clusterer,
            weightings=listed(weighting),
            metrics=listed(metric),
            controls=controls,
            calibrate=calibrate,
            fill=fill,
            mask_fill=mask_fill,
            score=score,
            frame=frame,
            limit=limit,
            batch_size=batch_size,
            step=step,
            workers=workers,
            retry_failed=retry_failed,
            out=out,
            checkpoint=checkpoint,
            weights=weights,
            device=device,
            seed=seed,
            html=html,
        )
        outcome = run(settings, lambda line: errors.report(line, "note"))
        if outcome is not None:
            for line in summarize(outcome).splitlines():
                errors.say(line)
            raise typer.Exit(errors.USER_ERROR if outcome.failed else 0)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the pictures go; made if missing.")
    ] = Path("captum-clustered-demo"),
    debug: _Debug = False,
) -> None:
    """Explain two photographs with EfficientNet-Lite0, beside Grad-CAM (needs the extra demo)."""
    from captum_clustered.app import errors

    with errors.command(debug):
        from captum_clustered.app.demo import run_demo

        for line in run_demo(out):
            errors.say(line)


def main() -> None:
    """Runs the command line."""
    app(prog_name=_PROGRAM)
