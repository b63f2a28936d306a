"""Time of each method on each case, in paired rounds, with the ratio to Captum's `LayerGradCam`."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.cases import NETWORKS, Case, build_case, cases_of, described
from benchmarks.floor import Flops, flops
from benchmarks.masked import masked_methods
from benchmarks.methods import BASE, FORWARD, TOLERANCE, Method, methods_of
from benchmarks.profiles import profiled
from benchmarks.results import Row, reason
from benchmarks.timing import Counts, counted, extrapolate, quartiles, rounds

__all__ = ["CASES", "cases", "measure"]

_QUICK = {
    "resnet50/layer4/1": True,
    "resnet50/layer4/8": False,
    "resnet50/layer3/1": False,
    "mobilenet_v3_large/features/8": False,
    "vgg16/features/1": False,
}
"""The cases of a quick run, and whether slow methods are measured there."""

_CORE = {
    "resnet50/layer4/1": True,
    "resnet50/layer4/8": False,
    "resnet50/layer3/1": False,
    "mobilenet_v3_large/features/8": False,
    "mobilenet_v3_large/features.15/1": False,
    "mobilenet_v3_large/features.15/8": False,
    "vit_b_16/encoder.layers.encoder_layer_11.ln_1/1": False,
}
"""The cases that show in minutes, on any device, how the library stands beside Captum, without the
other libraries, and where the time goes."""

_CORE_LIBRARIES = ("torch", "captum", "captum_clustered")

_FULL = {
    f"{network.name}/{layer}/{batch}": batch == 1
    for network in NETWORKS.values()
    if network.name != "tiny"
    for layer in network.layers
    for batch in (1, 8)
}
"""The cases of a full run. Slow methods are measured with one image; eight take eight times as
long and show no more."""

CASES = {"quick": _QUICK, "core": _CORE, "full": _FULL}
"""The runs, and the cases of each with whether slow methods are measured there."""


def cases(networks: Sequence[str] | None, run: str) -> dict[str, bool]:
    """The cases that are measured, and whether slow methods are measured there.

    Args:
        networks (sequence of str, optional): As for :func:`benchmarks.cases.cases_of`.
        run (str): A key of :data:`CASES`.

    Returns:
        *dict*: Keys ``network/layer/batch``.

    Raises:
        ValueError: If there is no such run, or no such network.

    Example::

        >>> list(cases(["tiny"], "quick"))
        ['tiny/body/1', 'tiny/body/2', 'tiny/stem/1', 'tiny/stem/2']
    """
    if run not in CASES:
        raise ValueError(f"`cases` must be one of {', '.join(CASES)}; got {run!r}.")
    known = CASES[run]
    return {key: known.get(key, True) for key in cases_of(networks, list(known))}


def measure(
    key: str,
    slow: bool,
    clusters: tuple[int, ...] = (16, 64, 256),
    part: int = 32,
    repeats: int = 7,
    budget: float = 25.0,
    device: str = "cpu",
    core: bool = False,
) -> list[Row]:
    """Checks and times all methods on a case.

    Args:
        key (str): From :func:`cases`.
        slow (bool): Whether slow methods are measured, too.
        clusters (tuple[int, ...], optional): Numbers of groups. Default: (16, 64, 256)
        part (int, optional): The most perturbations of a slow method. Default: 32
        repeats (int, optional): The most rounds. Default: 7
        budget (float, optional): Seconds after which no further round begins, counted from the end
            of the third one. Default: 25.0
        device (str, optional): Where everything runs. Default: "cpu"
        core (bool, optional): Whether only Captum stands beside, and the operations of the middle
            number of k-means groups, and of Grad-CAM, are listed. Default: False

    Returns:
        *list*: A row for each method, also for one that failed.
    """
    case = build_case(key, device)
    operations = flops(case)
    tried: list[_Tried] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the other libraries
        found = [methods_of(case, clusters, part, slow)]
        found += [masked_methods(case, part)] if slow else []
        for method in itertools.chain(*found):
            if not core or method.library in _CORE_LIBRARIES:
                tried.append(_try(method, case))
        runs = {one.method.name: one.method.run for one in tried if one.reason is None}
        seconds = rounds(runs, repeats, budget)
        middle = min(clusters[len(clusters) // 2], case.maps)
        shown = (BASE, f"ClusteredLayerAblation kmeans K={middle}") if core else ()
        profiles = {name: profiled(runs[name]) for name in shown if name in runs}
    whole = {one.method.name: _whole(one, seconds) for one in tried if one.reason is None}
    equal = [one.method.name for one in tried if one.reason is None and one.equal is not False]
    base = next(name for name in (BASE, "torchcam GradCAM", FORWARD) if name in equal)
    batch = len(case.inputs)
    head = described(key, case)
    rows = [{**head, **_row(one, whole, base, operations, batch)} for one in tried]
    return [{**row, "profile": profiles.get(row["method"])} for row in rows]


class _Tried:
    """A method after its first run: warmed up, its images counted, its result checked."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.counts = Counts()
        self.error: float | None = None
        self.reason: str | None = None

    @property
    def equal(self) -> bool | None:
        return None if self.error is None else self.error <= TOLERANCE


def _try(method: Method, case: Case) -> _Tried:
    tried = _Tried(method)
    try:
        with counted(case.model, case.inputs) as tried.counts:
            result = method.run()
        if method.error is not None:
            tried.error = method.error(result)
    except Exception as error:  # a method that fails is a result, too
        tried.reason = reason(error)
    return tried


def _whole(one: _Tried, seconds: dict[str, list[float]]) -> list[float]:
    """Seconds per round of the whole method."""
    times = seconds[one.method.name]
    part = one.method.part
    if part is None:
        return times
    return [
        extrapolate(time, forward, part.done, part.of, part.fixed)
        for time, forward in zip(times, seconds[FORWARD], strict=False)
    ]


def _row(
    one: _Tried, whole: dict[str, list[float]], base: str, operations: Flops, batch: int
) -> Row:
    method = one.method
    row: Row = {
        "method": method.name,
        "library": method.library,
        "clusters": method.clusters,
        "clusterer": method.clusterer,
        "settings": method.settings,
        "part": None if method.part is None else asdict(method.part),
        "status": "failed" if one.reason else "unequal" if one.equal is False else "ok",
        "reason": one.reason,
        "same_as": method.same_as,
        "error": one.error if one.error is None or math.isfinite(one.error) else None,
        "seconds": None,
        "rounds": [],
        "ratio": None,
        "images": None,
        "floor": None,
    }
    return row if one.reason else {**row, **_measured(one, whole, base, operations, batch)}


def _measured(
    one: _Tried, whole: dict[str, list[float]], base: str, operations: Flops, batch: int
) -> Row:
    times = whole[one.method.name]
    seconds = quartiles(times)
    # what is slower than the others may have fewer rounds
    ratios = [mine / other for mine, other in zip(times, whole[base], strict=False)]
    forward = quartiles(whole[FORWARD]).median
    return {
        "seconds": asdict(seconds),
        "rounds": times,
        "ratio": {"to": base, **asdict(quartiles(ratios))},
        "images": {
            "first": _images(one.counts.first, one, batch),
            "last": _images(one.counts.last, one, batch),
        },
        "floor": operations.row(one.method.clusters or 0, forward, seconds.median),
    }


def _images(count: int, one: _Tried, batch: int) -> int:
    """Images of the whole method: those needed once, and the others in proportion."""
    part = one.method.part
    if part is None:
        return count
    once = min(count, round(part.fixed * batch))
    if count <= 2 * batch:  # no perturbation sends images through this layer
        return count
    return once + round((count - once) * part.of / part.done)
