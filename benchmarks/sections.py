"""The sections of the page, one for each command: tables and the words around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from benchmarks.fair import WORDS as FAIR_WORDS
from benchmarks.fuzz import totals
from benchmarks.methods import TOLERANCE
from benchmarks.pages import interval, table
from benchmarks.results import Row
from benchmarks.scaling import described
from benchmarks.signed import WORDS

__all__ = [
    "AXES",
    "SECTIONS",
    "case_title",
    "fair_tables",
    "grouped",
    "marks",
    "runtime_line",
    "title_of",
]


def grouped(rows: Sequence[Row]) -> Iterable[tuple[str, list[Row]]]:
    """Each case with its rows."""
    for name, own in groupby(rows, key=lambda row: row["case"]):
        yield name, list(own)


def case_title(case: str, rows: Sequence[Row] = ()) -> str:
    """A case ``network/layer/batch`` in words, for a heading if there are rows.

    Example::

        >>> case_title("resnet50/layer4/1"), case_title("resnet50/layer4/1", [{"maps": 2048}])
        ('resnet50, layer4, batch 1', 'resnet50, `layer4` (2048 maps), batch 1')
    """
    network, layer, batch = case.split("/")
    if rows:
        layer = f"`{layer}` ({rows[0]['maps']} maps)"
    return f"{network}, {layer}, batch {batch}"


def title_of(row: Row) -> str:
    """A method and its number of groups."""
    return row["method"] + (f" K={row['clusters']}" if row["clusters"] else "")


def _ms(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.1 else f"{1e3 * seconds:.1f} ms"


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f}"


# --- runtime --------------------------------------------------------------------------------------


def _runtime(found: Mapping[str, Any]) -> list[str]:
    return [
        "The methods take turns in rounds. A time is the median of the rounds, a ratio the median "
        "of the rounds' ratios, with the quartiles in brackets. *Images* is the number of images "
        "that went through the first and through the last layer with weights. *Floor* is the time "
        "divided by that of the fewest operations possible: one forward pass, what sums "
        "over the layer's maps behind it and, for each group, what else lies there. "
        "**\u2020** The time is extrapolated from a part of the "
        "perturbations. **\u2260** The result is not that of the method it is named after (it "
        f"differs by more than {TOLERANCE:.0%} of the largest value), so the times cannot be "
        "compared.",
        *_overview(found),
        *_cases(found),
    ]


def _cases(found: Mapping[str, Any]) -> list[str]:
    parts = []
    for case, rows in grouped(found["rows"]):
        parts.append(f"### {case_title(case, rows)}")
        base = next((row["ratio"]["to"] for row in rows if row["ratio"]), "")
        head = ["", "time", f"x {base}", "images", "floor"]
        parts.append(table(head, [runtime_line(row) for row in rows]))
        parts += _footnotes(rows)
        parts += [_profile(row) for row in rows if row.get("profile")]
    return parts


def _core(found: Mapping[str, Any]) -> list[str]:
    return [
        "A few cases beside Captum only, measured in one run, with the operations that take the "
        "time. *Images* and *floor* are as in the section Time.",
        *_cases(found),
    ]


def _profile(row: Row) -> str:
    """The operations of a method that take the most time themselves."""
    lines = [
        [line["name"], str(line["calls"]), f"{line['cpu']:.2f}", f"{line['device']:.2f}"]
        for line in row["profile"]
    ]
    head = ["", "calls", "ms on the CPU", "ms on the GPU"]
    return f"Where {row['method']} spends its time:\n\n{table(head, lines)}"


def _overview(found: Mapping[str, Any]) -> list[str]:
    """All cases in one table, with the most important methods."""
    numbers = found["settings"]["clusters"]
    columns = {
        f"ClusteredLayerAblation kmeans K={numbers[len(numbers) // 2]}": "ClusteredLayerAblation",
        "LayerAblationCam": "LayerAblationCam",
        "captum LayerGradCam channels-last": "Grad-CAM, channels-last",
        "captum LayerFeatureAblation same groups": "LayerFeatureAblation, same groups",
        "pytorch-grad-cam AblationCAM": "pytorch-grad-cam AblationCAM",
    }
    lines = []
    for case, rows in grouped(found["rows"]):
        own = {row["method"]: row for row in rows}
        base = next((row["ratio"]["to"] for row in rows if row["ratio"]), "")
        network, layer, batch = case.split("/")
        cells = [_runtime_cell(own[name]) if name in own else "" for name in columns]
        lines.append([network, f"`{layer}`", batch, base, *cells])
    if len(lines) < 2:
        return []
    made = table(["", "layer", "batch", "times as long as", *columns.values()], lines, left=4)
    return ["### All cases", f"Ratios, as below; groups: K={numbers[len(numbers) // 2]}.", made]


def marks(row: Row) -> str:
    """The marks of a method: a part only, or another result."""
    return (" \u2020" if row["part"] else "") + (" \u2260" if row["status"] == "unequal" else "")


def _runtime_cell(row: Row) -> str:
    """The ratio without its quartiles."""
    if row["status"] == "failed":
        return "failed"
    return f"{_times(row['ratio']['median'])}{marks(row)}"


def runtime_line(row: Row) -> list[str]:
    """A line of the table of times: method, time, ratio, images, floor."""
    if row["status"] == "failed":
        return [row["method"], "failed", "", "", ""]
    ratio, images = row["ratio"], row["images"]
    return [
        row["method"] + marks(row),
        _ms(row["seconds"]["median"]),
        f"{_times(ratio['median'])} [{_times(ratio['low'])}, {_times(ratio['high'])}]",
        f"{images['first']:,} / {images['last']:,}",
        _times(row["floor"]["ratio"]),
    ]


def _footnotes(rows: Sequence[Row]) -> list[str]:
    notes = []
    for row in rows:
        if row["status"] == "failed":
            notes.append(f"- {row['method']} failed: {row['reason']}")
        elif row["status"] == "unequal":
            error = "it has another shape" if row["error"] is None else f"{row['error']:.2g}"
            notes.append(f"- {row['method']} \u2260 {row['same_as']}: {error}")
        elif row.get("part"):
            part = row["part"]
            notes.append(f"- {row['method']}: {part['done']} of {part['of']} perturbations done")
    return ["\n".join(notes)] if notes else []


# --- memory ---------------------------------------------------------------------------------------


def _memory(found: Mapping[str, Any]) -> list[str]:
    parts = [
        "Peak memory in MiB, beyond the model and the inputs, as torch's allocator counts it. The "
        "engine keeps its copies of the maps within a budget, so that memory does not grow with "
        "the number of groups; one copy must fit. \u2020 Only some of the perturbations were run; "
        "more of them need no more memory."
    ]
    for case, rows in grouped(found["rows"]):
        parts.append(f"### {case_title(case, rows)}")
        lines = [
            [
                row["method"] + (" \u2020" if row["part"] else ""),
                "failed" if row["peak_bytes"] is None else _mib(row["peak_bytes"]),
            ]
            for row in rows
        ]
        parts.append(table(["", "MiB"], lines))
        budget = next((row for row in rows if row["budget_bytes"]), None)
        if budget is not None:
            fits = "fits" if budget["inside_budget"] else "does not fit"
            parts.append(
                f"Budget {_mib(budget['budget_bytes'])} MiB, one copy of the maps {fits}; path: "
                f"{budget['replay']}."
            )
        parts += _footnotes([row for row in rows if row["status"] == "failed"])
    return parts


# --- scaling --------------------------------------------------------------------------------------


def _scaling(found: Mapping[str, Any]) -> list[str]:
    fits = {fit["axis"]: fit for fit in found.get("fits", [])}
    parts = [
        "All values of an axis take turns in rounds. *Floor* is as above. A fitted power of 0 "
        "means constant time, and a power of 1 means time in proportion."
    ]
    for case, rows in grouped(found["rows"]):
        axis = rows[0]["axis"]
        parts.append(f"### {AXES[axis]}: {rows[0]['network']}, `{rows[0]['layer']}`")
        if axis in ("channels", "depth"):
            parts[-1] = f"### {AXES[axis]}"
        if axis == "rows":
            parts[-1] = f"### {AXES[axis]}, read by {rows[0]['layer']}"
            parts += _rows(rows)
            continue
        first = rows[0]["images_per_second"]
        lines = [
            [
                row["label"],
                _ms(row["seconds"]["median"]),
                f"[{_ms(row['seconds']['low'])}, {_ms(row['seconds']['high'])}]",
                f"{row['images_per_second']:.2f}",
                _times(row["images_per_second"] / first),
                _times(row["floor"]["ratio"]) if row["floor"] else "",
            ]
            for row in rows
        ]
        parts.append(table(["", "time", "quartiles", "images/s", "x the first", "floor"], lines))
        if case in fits:
            r2 = fits[case]["r2"]
            share = "." if r2 is None else f" (r\u00b2 {r2:.3f})."
            parts.append(f"Fit: {described(fits[case])}{share}")
    return parts


AXES = {
    "clusters": "Groups",
    "channels": "Maps",
    "batch": "Images",
    "depth": "Depth of the layer",
    "processes": "Processes",
    "rows": "Rows on disk",
}


def _rows(rows: Sequence[Row]) -> list[str]:
    """The parts of what is done with rows, with the memory."""
    names = list(rows[0]["parts"])
    lines = [
        [
            row["label"],
            *(_ms(row["parts"][name]) for name in names),
            f"{row['peak_bytes'] / 2**30:.2f} GiB",
        ]
        for row in rows
    ]
    return [
        "Twenty variants of each image, four metrics, 28 paired differences; once, in a process of "
        "its own. *Write* is taken from a few thousand rows.",
        table(["", *names, "peak memory"], lines),
    ]


# --- faithfulness ---------------------------------------------------------------------------------


def _faithfulness(found: Mapping[str, Any]) -> list[str]:
    parts = [
        "The maps are judged by `captum-clustered evaluate`; 95 % intervals are in brackets. ADC, "
        "the area and deletion are better when low; PIC, the average gain AG, insertion and ADCC "
        "when high. ADC alone can be cheated: a map of ones (`fake-cam`) has the best, so look at "
        "the controls and the area, too. The weights are the published ones unless a section says "
        "otherwise."
    ]
    for case, rows in grouped(found["rows"]):
        data, model = case.split("/", 1)
        conventions = found.get("conventions", {}).get(case, {})
        parts.append(f"### {data}, {model}, `{rows[0]['layer']}`")
        if conventions:
            words = ", ".join(f"{key} {value}" for key, value in conventions.items())
            parts.append(f"{rows[0]['images']} images; {words}.")
        names = list(rows[0]["metrics"])
        lines = [
            [
                title_of(row) + (" (control)" if row["control"] else ""),
                row["library"],
                *[_metric(row["metrics"][name]) for name in names],
                "" if row["seconds"] is None else _ms(row["seconds"]),
                str(row["failed"]),
            ]
            for row in rows
        ]
        parts.append(table(["", "library", *names, "time", "failed"], lines, left=2))
    return parts


def _metric(metric: Mapping[str, Any]) -> str:
    mean, low, high = metric["mean"], metric["low"], metric["high"]
    if mean is None:
        return ""
    digits = 1 if abs(mean) >= 1 else 3
    return f"{mean:.{digits}f}" if None in (low, high) else interval(mean, low, high, digits)


# --- signed ---------------------------------------------------------------------------------------


_COMPARED = {"adc": "ADC", "insertion": "insertion", "deletion": "deletion"}


def _signed(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    parts = [
        "Layers with maps that are partly negative, in trained networks. The maps are judged by "
        "`captum-clustered evaluate`: ADC and deletion are better when low; PIC, the average gain "
        "AG, insertion and the energy in the boxes when high. Images are numbered from 0; the "
        "first half are those of even number, on which settings were chosen, the second those of "
        f"odd number. These are the numbers of the **{settings['half']} half** of "
        f"{settings['data']}; of CLIP only images whose class it predicts. Beside the means stand "
        "the mean differences to Grad-CAM of the same layer on the same images, with 95 % "
        "intervals; they are bold where the interval excludes 0. *Flat* counts maps that are the "
        "same everywhere, and in brackets those where HiResCAM's is not.",
        "\n".join(WORDS),
    ]
    for case, rows in grouped(found["rows"]):
        first = rows[0]
        layer = f"`{first['layer']}`" + (", its input" if first["at_input"] else "")
        parts.append(f"### {first['network']}, {layer}")
        words = ", ".join(f"{k} {v}" for k, v in found["conventions"][case].items())
        parts.append(
            f"{first['maps']} maps, {first['negative']:.0%} of the values negative; "
            f"{first['images']} images; {words}."
        )
        head = [*first["metrics"], *(f"{name} less Grad-CAM" for name in _COMPARED.values())]
        lines = [_signed_line(row) for row in rows]
        parts.append(table(["", *head, "flat", "time", "failed"], lines))
    return parts


def _signed_line(row: Row) -> list[str]:
    less = row["less_base"] or {}
    flat = str(row["flat"]) + (f" ({row['flat_alone']})" if row["flat_alone"] else "")
    return [
        title_of(row) + (" (control)" if row["control"] else ""),
        *("" if m["mean"] is None else f"{m['mean']:.1f}" for m in row["metrics"].values()),
        *(_signed_difference(less[name]) if name in less else "" for name in _COMPARED),
        flat,
        "" if row["seconds"] is None else _ms(row["seconds"]),
        str(row["failed"]),
    ]


def _signed_difference(found: Mapping[str, Any]) -> str:
    mean, low, high = found["mean"], found["low"], found["high"]
    if None in (mean, low, high):
        return "" if mean is None else f"{mean:.1f}"
    text = interval(mean, low, high, digits=1)
    return f"**{text}**" if low > 0 or high < 0 else text


# --- fair ---------------------------------------------------------------------------------------

_FAIR = {
    "adc": "AD",
    "pic": "AI",
    "ag": "AG",
    "area": "area",
    "adcc": "ADCC",
    "energy": "energy",
    "sensitivity": "sensitivity",
    "infidelity": "1000 infidelity",
    "insertion": "insertion",
    "deletion": "deletion",
}
_TIMES = {"infidelity": 1000}


def _fair(found: Mapping[str, Any]) -> list[str]:
    settings = found["settings"]
    parts = [
        "Every method and control on its own scale of values, and behind the arrow on a calibrated "
        "one: of a few rising curves, each image takes the one behind which the model is surest of "
        "the class, less a price for the area. AD (average drop), deletion, sensitivity and "
        "infidelity are better when low, the others when high, the area neither. Insertion and "
        "deletion read only the order of the pixels, which calibration leaves alone. Below the "
        "means, the mean differences to Grad-CAM on the same images, calibrated both, with 95 % "
        f"intervals; bold where the interval excludes 0. The **{settings['half']} half** of "
        f"{settings['data']}; settings were chosen on the other.",
        "\n".join(FAIR_WORDS),
    ]
    for case, rows in grouped(found["rows"]):
        words = ", ".join(f"{k} {v}" for k, v in found["conventions"][case].items())
        parts.append(f"### {case}, layer `{rows[0]['layer']}`")
        parts.append(f"{rows[0]['images']} images; {words}.")
        parts += fair_tables(rows)
    return parts


def fair_tables(rows: Sequence[Row]) -> list[str]:
    """The means of a case, before and after calibration, and the differences to Grad-CAM."""
    names = [name for name in _FAIR if name in rows[0]["metrics"]]
    head = [_FAIR[name] for name in names]
    means = table(["", *head, "time", "failed"], [_fair_line(row, names) for row in rows])
    lines = [
        [_fair_title(row), *(_signed_difference(_fair_less(row, name)) for name in names)]
        for row in rows
        if row["method"] != "grad-cam"
    ]
    return [means, table(["less Grad-CAM", *head], lines)]


def _fair_title(row: Row) -> str:
    return title_of(row) + (" (control)" if row["control"] else "")


def _fair_less(row: Row, name: str) -> Mapping[str, Any]:
    less: Mapping[str, Any] = row["less_base"]
    found: Mapping[str, Any] = less.get(f"{name}_calibrated", less[name])
    if name not in _TIMES or found["mean"] is None:
        return found
    return {**found, **{key: _TIMES[name] * found[key] for key in ("mean", "low", "high")}}


def _fair_line(row: Row, names: Sequence[str]) -> list[str]:
    metrics = row["metrics"]

    def cell(name: str) -> str:
        pair = [metrics[key]["mean"] for key in (name, f"{name}_calibrated") if key in metrics]
        times = _TIMES.get(name, 1)
        return " → ".join("-" if mean is None else f"{times * mean:.1f}" for mean in pair)

    seconds = "" if row["seconds"] is None else _ms(row["seconds"])
    return [_fair_title(row), *map(cell, names), seconds, str(row["failed"])]


# --- zoo ------------------------------------------------------------------------------------------


def _zoo(found: Mapping[str, Any]) -> list[str]:
    words = (
        "Weights are random. *Fast* counts the networks that took the fast path and gave the same "
        "drops as the full path, *right* those that gave the same drops by either path."
    )
    if _has_parts(found["rows"]):
        words += (
            " *Signed* layers have maps with two signs; *by hand* is the error against plain "
            "passes with the parts of the maps clamped by hand."
        )
    parts = [words, _zoo_counts(found["rows"])]
    other = [row for row in found["rows"] if not _is_fast(row)]
    if other:
        parts += ["### What is not fast, or not right", _zoo_reasons(other)]
    return [*parts, "### All networks", _zoo_networks(found["rows"])]


def _has_parts(rows: Sequence[Row]) -> bool:
    """Whether parts were compared; older results have none."""
    return any(row.get("parts_error") is not None for row in rows)


def _is_fast(row: Row) -> bool:
    return row["status"] == "ok" and row["replay"] == "suffix"


def _zoo_counts(rows: Sequence[Row]) -> str:
    kinds: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        kinds.setdefault((row["source"], row["kind"], row["place"]), []).append(row)
    lines = [
        [
            f"{source} {kind}, {place} layer",
            str(len(own)),
            _share(sum(map(_is_fast, own)), own),
            _share(sum(row["status"] == "ok" for row in own), own),
        ]
        for (source, kind, place), own in kinds.items()
    ]
    return table(["", "networks", "fast", "right"], lines)


def _zoo_reasons(rows: Sequence[Row]) -> str:
    lines = [
        [
            f"{row['source']} {row['network']}",
            f"{row['place']}: `{row['layer']}`" if row["layer"] else row["place"],
            row["status"],
            row["replay"] or "",
            (row["reason"] or "").replace("|", "\\|"),
        ]
        for row in rows
    ]
    return table(["", "layer", "equal", "path", "why"], lines, left=5)


def _zoo_networks(rows: Sequence[Row]) -> str:
    columns = ["", "layer", "maps", "path", "equal", "error", "in"]
    lines = [
        [
            f"{row['source']} {row['network']}",
            f"`{row['layer']}`" if row["layer"] else "",
            " x ".join(map(str, row["maps"] or [])),
            row["replay"] or "",
            row["status"],
            _rounding(row["error"]),
            row["dtype"] or "",
        ]
        for row in rows
    ]
    if _has_parts(rows):
        columns += ["maps are", "by hand"]
        for row, line in zip(rows, lines, strict=True):
            line += ["signed" if row.get("signed") else "", _rounding(row.get("parts_error"))]
    return table(columns, lines, left=5)


def _rounding(error: float | None) -> str:
    return "" if error is None else f"{error:.0e}"


# --- fuzz -----------------------------------------------------------------------------------------


def _fuzz(found: Mapping[str, Any]) -> list[str]:
    outcomes = totals(found["rows"])
    right, wrong = outcomes["suffix"] + outcomes["full"], outcomes["differs"] + outcomes["failed"]
    return [
        f"Of {right + wrong} random programs that run, most with operations in place, {right} had "
        "the same scores by the default path, by the full path and by hand: "
        f"{outcomes['suffix']} by the fast path, for {outcomes['full']} the default fell back to "
        "the full path."
    ]


def _share(number: int, rows: Sequence[Row]) -> str:
    return f"{number} ({number / len(rows):.0%})"


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], list[str]]]] = {
    "runtime": ("Time", _runtime),
    "core": ("Time of the core cases", _core),
    "memory": ("Memory", _memory),
    "scaling": ("Scaling", _scaling),
    "faithfulness": ("Faithfulness", _faithfulness),
    "signed": ("Maps with two signs", _signed),
    "fair": ("The fair comparison", _fair),
    "zoo": ("Networks", _zoo),
    "fuzz": ("Random programs", _fuzz),
}
"""The title of a section, and the paragraphs from the results of its command."""
