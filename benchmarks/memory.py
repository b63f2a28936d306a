"""Peak memory beyond the model and the inputs, over groups, batch and depth of the layer.

On the CPU every allocation and release of torch's allocator is recorded by `torch.profiler`; the
peak is the largest running sum. This is the same number in each run, unlike the memory of the
process, and holds temporary memory inside operations too. What NumPy and scikit-learn (the
agglomerative clusterer) or oneDNN fetch themselves is not seen. On CUDA it is the allocator's own
peak.
"""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cases import NETWORKS, Case, build
from benchmarks.methods import Method, methods_of
from benchmarks.results import Row
from captum_clustered import ClusteredLayerAblation
from captum_clustered.engine.replay import BUDGET

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

_PERTURBATIONS = 4  # memory does not grow with those that follow


def cases(networks: Sequence[str] | None, full: bool) -> list[str]:
    """The cases to be measured, as ``network/layer/batch``."""
    known = FULL if full else QUICK
    if not networks:
        return list(known)
    found = []
    for name in networks:
        if name not in NETWORKS:
            raise ValueError(f"`networks` must be among {', '.join(NETWORKS)}; got {name}.")
        own = [key for key in known if key.split("/")[0] == name]
        found += own or [f"{name}/{layer}/{n}" for layer in NETWORKS[name].layers for n in (1, 2)]
    return found


def peak(run: Callable[[], object]) -> int:
    """Bytes that are held at most while a function runs, beyond what was held before.

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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it greets
    activities = [torch.profiler.ProfilerActivity.CPU]
    # cycles of objects, which some methods leave, would be freed now in one run and then in another
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
    network, layer, batch = key.split("/")
    case = build(network, layer, int(batch))
    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for method in _methods(case, clusters):
            head = {
                "network": network,
                "layer": layer,
                "batch": int(batch),
                "maps": case.maps,
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
        method.run()  # what is kept for good is not the method's
        row["peak_bytes"] = peak(method.run)
        if method.library == "captum_clustered":
            row.update(_budget(case))
    except Exception as error:  # a method that fails is a result, too
        text = " ".join(str(error).split())
        row.update(status="failed", reason=f"{type(error).__name__}: {text}"[:300])
    return row


def _budget(case: Case) -> Row:
    """The engine's budget for copies of the activations, and whether one copy fits into it."""
    cam = ClusteredLayerAblation(
        case.model,
        case.layer,
        n_clusters=1,
        channel_dim=case.found.channel_dim,
        reshape_transform=case.found.reshape_transform,
    )
    result = cam.explain(case.inputs, target=case.target)
    maps: Any = result.activations
    budget = BUDGET["cpu" if maps.device.type == "cpu" else "other"]
    return {
        "budget_bytes": budget,
        "inside_budget": maps.numel() * maps.element_size() <= budget,
        "replay": result.replay,
    }
