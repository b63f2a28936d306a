"""Peak memory beyond the model and the inputs, over groups, batch and depth of the layer.

On the CPU, `torch.profiler` records every allocation and release of torch's allocator; the peak is
the largest running sum. Unlike the memory of the process, this number is the same in each run, and
it includes temporary memory inside operations. It does not include what NumPy, scikit-learn (the
agglomerative clusterer) or oneDNN allocate themselves. On CUDA it is the allocator's own peak.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cases import NETWORKS, Case, build_case, cases_of, described
from benchmarks.methods import Method, methods_of
from benchmarks.results import Row, reason
from captum_clustered._layout import BUDGET

__all__ = ["FULL", "QUICK", "cases", "measure", "peak"]

QUICK = ("resnet50/layer4/1", "resnet50/layer4/4", "resnet50/layer3/1", "resnet50/layer1/1")

FULL = tuple(
    f"{network}/{layer}/{batch}"
    for network, layers in (
        ("resnet18", ("layer4", "layer3", "layer2", "layer1")),
        ("resnet50", ("layer4", "layer3", "layer2", "layer1")),
        ("vgg16", ("features", "features.22")),
        ("vit_b_16", NETWORKS["vit_b_16"].layers),
        ("r3d_18", ("layer4", "layer3")),
    )
    for layer in layers
    for batch in (1, 8)
)

_PERTURBATIONS = 4  # more of them need no more memory


def cases(networks: Sequence[str] | None, full: bool) -> list[str]:
    """The cases that are measured, see :func:`benchmarks.cases.cases_of`."""
    return cases_of(networks, FULL if full else QUICK)


def peak(run: Callable[[], object]) -> int:
    """The most bytes that are allocated at a time while a function runs, beyond those before it.

    Example::

        >>> import torch
        >>> peak(lambda: torch.zeros(1000) + torch.ones(1000))
        12000
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # without its start-up message
    activities = [torch.profiler.ProfilerActivity.CPU]
    # some methods leave cycles of objects; when Python frees them would differ between runs
    collects = gc.isenabled()
    gc.disable()
    try:
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            result = run()
        del result
    finally:
        if collects:
            gc.enable()
    recorded: Any = profiler.profiler.kineto_results  # type: ignore[union-attr]
    events = [event for event in recorded.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def measure(key: str, clusters: tuple[int, ...] = (1, 16, 64, 256)) -> list[Row]:
    """Peak memory of the methods on a case.

    Args:
        key (str): From :func:`cases`.
        clusters (tuple[int, ...], optional): Numbers of groups. Default: (1, 16, 64, 256)

    Returns:
        *list*: A row for each method.
    """
    case = build_case(key)
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in _methods(case, clusters):
            head = {
                **described(key, case),
                "method": method.name,
                "library": method.library,
                "clusters": method.clusters,
                "part": method.part and {"done": method.part.done, "of": method.part.of},
            }
            rows.append({**head, **_peak_of(method, case)})
    return rows


def _methods(case: Case, clusters: tuple[int, ...]) -> list[Method]:
    wanted = tuple(sorted({min(number, case.maps) for number in clusters}))
    kmeans = {f"ClusteredLayerAblation kmeans K={number}" for number in wanted}
    found = methods_of(case, wanted, _PERTURBATIONS, per_eval=(1,))
    return [m for m in found if m.clusterer is None or m.name in kmeans]


def _peak_of(method: Method, case: Case) -> Row:
    row: Row = {
        "status": "ok",
        "reason": None,
        "peak_bytes": None,
        "budget_bytes": None,
        "inside_budget": None,
        "replay": None,
    }
    try:
        method.run()  # what the first run allocates for good is not counted
        # the profiler does not know the size of gradients from before that a method releases
        case.model.zero_grad(set_to_none=True)
        row["peak_bytes"] = peak(method.run)
        if method.library == "captum_clustered":
            row.update(_budget(case))
    except Exception as error:  # a method that fails is a result, too
        row.update(status="failed", reason=reason(error))
    return row


def _budget(case: Case) -> Row:
    """The engine's budget for copies of the activations, and whether one copy fits into it."""
    result = case.explainer(n_clusters=1).explain(case.inputs, target=case.target)
    maps: Any = result.activations
    budget = BUDGET["cpu" if maps.device.type == "cpu" else "other"]
    return {
        "budget_bytes": budget,
        "inside_budget": maps.numel() * maps.element_size() <= budget,
        "replay": result.replay,
    }
