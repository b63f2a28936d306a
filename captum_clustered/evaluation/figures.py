"""Figures of an evaluation: means with their intervals, and mean curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._pictures import new_figure
from captum_clustered.evaluation.report import Report
from captum_clustered.evaluation.rows import Variant, title_of
from captum_clustered.evaluation.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["curves", "intervals"]

# the colours of Okabe and Ito, which colour-blind readers can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#8C8C8C"
_ACROSS = 4  # panels
_DASHES: tuple[Any, ...] = (
    "-",
    "--",
    ":",
    "-.",
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (7, 2, 1, 2, 1, 2)),
    (0, (3, 3)),
)


def intervals(report: Report) -> Figure:
    """Draws a point with its interval for each variant, and a panel for each metric.

    Args:
        report (Report): From :func:`captum_clustered.evaluation.report.make_report`.

    Returns:
        *Figure*: Controls are grey.
    """
    colours = _colours([line.variant for line in report.lines])
    places = _places([line.variant.method for line in report.lines])
    down = -(-len(report.columns) // _ACROSS)
    across = -(-len(report.columns) // down)  # rows as equal as can be
    figure = new_figure(3.0 + 2.3 * across, (1.1 + 0.21 * (places[-1] + 1)) * down)
    engine: Any = figure.get_layout_engine()
    engine.set(wspace=0.05, hspace=0.06)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for ax, column in zip(panels.flat, report.columns, strict=False):
        for place, line in zip(places, report.lines, strict=True):
            found = line.intervals[column.name]
            colour = colours[line.variant.method]
            ax.plot([found.low, found.high], [place, place], color=colour, linewidth=1.4)
            ax.plot(found.estimate, place, "o", color=colour, markersize=4.5)
        ax.set_title(
            f"{column.title} ({column.unit})" if column.unit else column.title, fontsize="medium"
        )
        ax.grid(axis="x", color="#E0E0E0", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize="small")
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=5)
        ax.spines[["top", "right", "left"]].set_visible(False)
    for ax in panels.flat[len(report.columns) :]:
        ax.set_visible(False)
    for row in panels[:, :1].flat:
        row.set_yticks(places, [line.title for line in report.lines])
    panels[0, 0].set_ylim(places[-1] + 0.7, -0.7)
    figure.supxlabel("mean over the images with 95 % interval", fontsize="small")
    return figure


def curves(kind: str, table: Table) -> Figure:
    """The mean insertion or deletion curve of each variant.

    Args:
        kind (str): ``"insertion"`` or ``"deletion"``.
        table (Table): The curves with their areas.

    Returns:
        *Figure*: With each curve's area in the legend; the controls have a panel of their own.
    """
    variants = table.grid.variants
    methods = [variant for variant in variants if not variant.control]
    controls = [variant for variant in variants if variant.control]
    parts = [part for part in (methods, controls) if part]
    figure = new_figure(4.3 * len(parts) + 3.2, max(4.2, 1.6 + 0.17 * len(variants)))
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for ax, part in zip(panels, parts, strict=True):
        # the numbers go on in the next panel, since both share a legend
        for number, variant in enumerate(part, start=0 if part is parts[0] else len(parts[0])):
            v = variants.index(variant)
            areas = table.of(kind, v)
            if not np.isnan(areas).all():
                area = float(np.nanmean(areas))
                _draw_curve(ax, variant, number, table.curves[kind][v], area)
        ax.set_title("controls" if part is controls else "methods", fontsize="small")
        ax.set_xlim(0, 100)
        ax.grid(color="#E0E0E0", linewidth=0.6)
        ax.tick_params(labelsize="small")
        ax.spines[["top", "right"]].set_visible(False)
    done = "put into a blurred image" if kind == "insertion" else "taken out"
    figure.supxlabel(f"% of the pixels {done}, the map's largest values first", fontsize="small")
    panels[0].set_ylabel("mean score", fontsize="small")
    figure.suptitle(f"{kind.capitalize()}, with the area under each curve in %", fontsize="medium")
    if any(ax.lines for ax in panels):
        figure.legend(loc="outside right upper", fontsize="x-small", frameon=False, handlelength=4)
    return figure


def _draw_curve(ax: Axes, variant: Variant, number: int, mean: np.ndarray, area: float) -> None:
    """The mean curve of a variant, in a colour and a dash that no other has."""
    ax.plot(
        np.linspace(0, 100, len(mean)),
        mean,
        color=_COLOURS[number % len(_COLOURS)],
        # the numbers of colours and dashes have no common divisor
        linestyle=_DASHES[number % len(_DASHES)],
        linewidth=1.2 if variant.control else 1.7,
        label=f"{title_of(variant)}: {area:.1f}",
    )


def _colours(variants: Sequence[Variant]) -> dict[str, str]:
    """A colour for each method; the controls are grey."""
    methods = dict.fromkeys(v.method for v in variants if not v.control)
    colours = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(methods)}
    return {v.method: _GREY if v.control else colours[v.method] for v in variants}


def _places(methods: Sequence[str]) -> list[float]:
    """Places from the top down, with a gap between methods."""
    places: list[float] = []
    for i, method in enumerate(methods):
        gap = 1.0 if i and method == methods[i - 1] else 1.5
        places.append(places[-1] + gap if places else 0.0)
    return places
