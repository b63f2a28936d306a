"""A whole data set through many methods: rows on disk, tables with intervals, figures.

This is what ``captum-clustered evaluate`` runs. :mod:`plan <captum_clustered.evaluation.plan>`
holds the settings, :mod:`variants <captum_clustered.evaluation.variants>` the lines of the table;
:mod:`images <captum_clustered.evaluation.images>` finds the images,
:mod:`job <captum_clustered.evaluation.job>` loads everything,
:mod:`running <captum_clustered.evaluation.running>` has the loop, in which
:mod:`judging <captum_clustered.evaluation.judging>` judges the maps by the metrics of
:mod:`measures <captum_clustered.evaluation.measures>`, on a calibrated scale too if
:mod:`calibrating <captum_clustered.evaluation.calibrating>` is asked for;
:mod:`records <captum_clustered.evaluation.records>` keeps the rows. From them
:mod:`report <captum_clustered.evaluation.report>`,
:mod:`figures <captum_clustered.evaluation.figures>` and
:mod:`pages <captum_clustered.evaluation.pages>` make tables, figures and HTML, and
:mod:`command <captum_clustered.evaluation.command>` runs it all.
"""

from collections.abc import Callable, Mapping
from typing import Any

from captum_clustered.evaluation.calibrating import with_calibration
from captum_clustered.evaluation.command import Outcome, run, summarize
from captum_clustered.evaluation.job import prepare_job
from captum_clustered.evaluation.judging import Metric
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.plan import Settings, listed, numbers
from captum_clustered.evaluation.processes import joined
from captum_clustered.methods import METHODS, Method

__all__ = ["Outcome", "Settings", "evaluate", "listed", "numbers", "summarize"]


def evaluate(
    settings: Settings,
    say: Callable[[str], object] = print,
    *,
    methods: Mapping[str, Method | Callable[..., Any]] = METHODS,
    metrics: Mapping[str, Metric | Callable[..., Any]] = METRICS,
) -> Outcome | None:
    """Evaluates methods on images; goes on where an earlier call with these settings stopped.

    Args:
        settings (Settings): The settings; they name the methods and metrics that are wanted.
        say (callable, optional): Told in a line what goes on. Default: print
        methods (mapping, optional): All methods by name, each a
            :class:`captum_clustered.methods.Method`, or a callable ``factory(forward_func, layer)``
            that makes something with Captum's ``attribute(inputs, target=…)``, such as
            :class:`captum.attr.LayerGradCam`. Default: the registry
        metrics (mapping, optional): All metrics by name, each a
            :class:`~captum_clustered.evaluation.judging.Metric`, or a callable
            ``(model, images, heatmaps, target)`` that returns a number for each image, `(N,)`. It
            is given the images `(N, C, *spatial)`, the maps `(N, 1, *spatial)` in the layer's own
            resolution and the classes `(N,)`. Default: those of the command line

    Returns:
        *Outcome* or *None*: None in all processes but the first, which writes the tables.

    Raises:
        ValueError: If a setting does not fit, if `out` has rows of other settings, or if every
            image failed.
        TypeError: If a method or metric is not callable.
        OSError: If a row cannot be written, as on a full disk.
        ImportError: If a package is missing.

    Example::

        >>> from pathlib import Path
        >>> from captum.attr import LayerGradCam
        >>> methods = {**METHODS, "captum's": LayerGradCam}
        >>> settings = Settings(data=Path("images"), model="resnet50", methods=("captum's",))
        >>> evaluate(settings, methods=methods)  # doctest: +SKIP
    """
    with joined() as world:
        return run(prepare_job(settings, world, methods, metrics, with_calibration), world, say)
