"""The figures of the page, one for each command but the zoo."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.runtime import CASES
from benchmarks.sections import AXES, case_title, grouped, marks, title_of

__all__ = ["FIGURES"]

_OURS = "#0b6e99"
_THEIRS = "#b0b0b0"
_CONTROL = "#dddddd"


def _runtime_figure(found: Mapping[str, Any]) -> Any:
    cases = list(grouped(found["rows"]))
    # the tables show all cases; a figure of all would be far too high
    cases = [one for one in cases if one[0] in CASES["quick"]] or cases[: len(CASES["quick"])]
    figure, axes = _axes([len(rows) for _, rows in cases])
    for ax, (case, rows) in zip(axes, cases, strict=True):
        shown = [row for row in rows if row["status"] != "failed"][::-1]
        names = [row["method"] + marks(row) for row in shown]
        ratios = [row["ratio"] for row in shown]
        middle, low, high = ([ratio[end] for ratio in ratios] for end in ("median", "low", "high"))
        colours = [_colour(row) for row in shown]
        _bars(ax, names, middle, low, high, colours)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xscale("log")
        _plain(ax.xaxis)
        base = shown[0]["ratio"]["to"] if shown else ""
        ax.set_title(case_title(case), loc="left", fontsize=10)
        ax.set_xlabel(f"time / {base}; blue: this package, grey: others", fontsize=9)
    return figure


def _memory_figure(found: Mapping[str, Any]) -> Any:
    figure, (ax,) = _axes([12])
    for case, rows in grouped(found["rows"]):
        own = [row for row in rows if row["method"].startswith("Clustered") and row["peak_bytes"]]
        if own:
            xs = [row["clusters"] for row in own]
            ax.plot(xs, [row["peak_bytes"] / 2**20 for row in own], marker="o", label=case)
    ax.set_xscale("log", base=2)
    _plain(ax.xaxis, sorted({row["clusters"] for row in found["rows"] if row["clusters"]}))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("groups K")
    ax.set_ylabel("MiB beyond the model and the inputs")
    ax.legend(fontsize=8, title="network/layer/batch", title_fontsize=8)
    return figure


def _scaling_figure(found: Mapping[str, Any]) -> Any:
    cases = list(grouped(found["rows"]))
    figure, axes = _axes([10] * len(cases))
    for ax, (case, rows) in zip(axes, cases, strict=True):
        xs = [row["value"] for row in rows]
        ax.plot(xs, [row["seconds"]["median"] for row in rows], "o-", color=_OURS, label="measured")
        if all(row["floor"] for row in rows):
            ax.plot(
                xs,
                [row["floor"]["seconds"] for row in rows],
                "--",
                color="black",
                label="counted floor",
            )
        ax.set_title(case, loc="left", fontsize=10)
        ax.set_xscale("log")
        ax.set_yscale("log")
        _plain(ax.xaxis, xs)
        _plain(ax.yaxis)
        ax.set_xlabel(AXES[rows[0]["axis"]].lower(), fontsize=9)
        ax.set_ylabel("seconds", fontsize=9)
        ax.legend(fontsize=8)
    return figure


def _faithfulness_figure(found: Mapping[str, Any]) -> Any:
    cases = list(grouped(found["rows"]))
    names = list(cases[0][1][0]["metrics"])
    figure, grid = _grid([len(rows) for _, rows in cases], len(names), 3 + 2.2 * len(names))
    for axes, (case, rows) in zip(grid, cases, strict=True):
        shown = rows[::-1]
        labels = [title_of(row) for row in shown]
        colours = [_colour(row) for row in shown]
        for ax, name in zip(axes, names, strict=True):
            found_here = [row["metrics"].get(name) or dict.fromkeys(_ENDS) for row in shown]
            mean, low, high = ([_or_nan(one[end]) for one in found_here] for end in _ENDS)
            _bars(ax, labels, mean, low, high, colours)
            ax.set_xlabel(name, fontsize=9)
        axes[0].set_title(f"{case}; light grey: controls", loc="left", fontsize=10)
    return figure


_ENDS = ("mean", "low", "high")


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _colour(row: Mapping[str, Any]) -> str:
    if row.get("control"):
        return _CONTROL
    return _OURS if row["library"] == "captum_clustered" else _THEIRS


def _bars(
    ax: Any,
    names: Sequence[str],
    middle: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    colours: Sequence[str],
) -> None:
    """A bar for each name, with a line from the lower to the upper end."""
    ends = [np.subtract(middle, low), np.subtract(high, middle)]
    xerr = np.maximum(ends, 0)
    ax.barh(names, middle, color=colours, xerr=xerr, error_kw={"elinewidth": 1})


def _axes(lines: Sequence[int]) -> tuple[Any, list[Any]]:
    """Plots below each other, each as high as its lines need. No window is opened."""
    figure, axes = _grid(lines, 1, 8)
    return figure, [ax for (ax,) in axes]


def _grid(lines: Sequence[int], columns: int, width: float) -> tuple[Any, Any]:
    """Rows of plots that share their lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = [0.26 * count + 1.0 for count in lines]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(lines), columns, squeeze=False, sharey="row", height_ratios=heights)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
    return figure, axes


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _plain(axis: Any, ticks: Sequence[float] | None = None) -> None:
    """Plain numbers on a logarithmic axis, few enough to be read."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    if ticks is None:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5), numticks=12))
    else:
        axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axis.set_minor_formatter(NullFormatter())


FIGURES: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "runtime": _runtime_figure,
    "memory": _memory_figure,
    "scaling": _scaling_figure,
    "faithfulness": _faithfulness_figure,
}
"""From the results of a command to its figure."""
