"""Figures of an evaluation: means with their intervals, and mean curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._pictures import new_figure
from captum_clustered.evaluation.report import Report
from captum_clustered.evaluation.rows import Key, Row, Variant, key_of, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curves", "intervals"]

# the colours of Okabe and Ito, which colour-blind readers can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_GREY = "#8C8C8C"
_ACROSS = 4  # panels
_STYLES = ("-", "--", ":", "-.")


def intervals(report: Report) -> Figure:
    """Draws a point with its interval for each variant, and a panel for each metric.

    Args:
        report (Report): From :func:`captum_clustered.evaluation.report.make_report`.

    Returns:
        *Figure*: Controls are grey.
    """
    colours = _colours([line.variant for line in report.lines])
    places = _places([line.variant.method for line in report.lines])
    across = min(_ACROSS, len(report.columns))
    down = -(-len(report.columns) // across)
    figure = new_figure(3.0 + 2.1 * across, (0.9 + 0.19 * (places[-1] + 1)) * down)
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
    panels[0, 0].set_yticks(places, [line.title for line in report.lines])
    panels[0, 0].set_ylim(places[-1] + 0.7, -0.7)
    figure.supxlabel("mean over the images with 95 % interval", fontsize="small")
    return figure


def curves(
    kind: str, rows: Mapping[Key, Row], images: Sequence[str], variants: Sequence[Variant]
) -> Figure:
    """The mean insertion or deletion curve of each variant.

    Args:
        kind (str): ``"insertion"`` or ``"deletion"``.
        rows (mapping): All rows.
        images (sequence of str): The images.
        variants (sequence of Variant): The methods, and the controls, which are grey.

    Returns:
        *Figure*: With each curve's area in the legend.
    """
    figure = new_figure(8.6, max(4.2, 1.2 + 0.17 * len(variants)))
    ax = figure.subplots()
    colours = _colours(variants)
    for variant in variants:
        found = [rows.get(key_of(image, variant), {}) for image in images]
        known = [row for row in found if row.get("status") == "ok"]
        if not known:
            continue
        mean = np.mean([row[f"{kind}_curve"] for row in known], axis=0)
        area = np.mean([row[kind] for row in known])
        shade, style = _look(variant, variants, colours[variant.method])
        ax.plot(
            np.linspace(0, 100, len(mean)),
            mean,
            color=shade,
            linestyle=style,
            linewidth=1.0 if variant.control else 1.6,
            zorder=2 if variant.control else 3,
            label=f"{title_of(variant)}: {area:.1f}",
        )
    done = "put in" if kind == "insertion" else "taken out"
    ax.set_xlabel(f"% of the pixels {done}, the map's largest values first", fontsize="small")
    ax.set_ylabel("mean score", fontsize="small")
    ax.set_title(f"{kind.capitalize()}, with the mean area in %", fontsize="medium")
    ax.set_xlim(0, 100)
    ax.grid(color="#E0E0E0", linewidth=0.6)
    ax.tick_params(labelsize="small")
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        figure.legend(loc="outside right upper", fontsize="x-small", frameon=False)
    return figure


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


def _look(variant: Variant, variants: Sequence[Variant], colour: str) -> tuple[Any, str]:
    """The colour, darker for more groups, and the line style: one for each weighting or control."""
    from matplotlib.colors import to_rgb

    numbers = sorted({v.clusters for v in variants if v.clusters is not None})
    weightings = list(dict.fromkeys(v.weighting for v in variants if v.weighting is not None))
    depth = 1.0
    if variant.clusters is not None and len(numbers) > 1:
        depth = 0.4 + 0.6 * numbers.index(variant.clusters) / (len(numbers) - 1)
    shade = tuple(1 - depth * (1 - part) for part in to_rgb(colour))
    index = weightings.index(variant.weighting) if variant.weighting in weightings else 0
    methods = list(dict.fromkeys(v.method for v in variants if not v.control))
    if variant.method in methods:  # another style where a colour is used a second time
        index += methods.index(variant.method) // len(_COLOURS)
    if variant.control:
        controls = list(dict.fromkeys(v.method for v in variants if v.control))
        index = controls.index(variant.method)
    return shade, _STYLES[index % len(_STYLES)]
