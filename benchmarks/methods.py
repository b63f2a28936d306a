"""Ours and the other libraries' methods behind one callable, and whether they agree.

Each method is used as its own documentation shows, with its own defaults. A method that would take
minutes does only a part of its perturbations and says which. Where two methods compute the same
thing, `error` compares the results, since times can be compared only if the results agree.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from captum.attr import LayerFeatureAblation, LayerGradCam
from torch import Tensor

from benchmarks.cases import Case, output_of
from benchmarks.floor import flops
from benchmarks.peers import Reshape, Wanted, pytorch_grad_cam_map, torchcam_map
from benchmarks.timing import synchronize
from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.explainers.egrad_cam import LayerEGradCam
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.weighting import by_map

__all__ = [
    "BASE",
    "FORWARD",
    "TOLERANCE",
    "Method",
    "Part",
    "difference",
    "first_maps",
    "methods_of",
]

FORWARD = "forward pass"
"""The plain model without gradients, which is timed beside the methods."""

BASE = "captum LayerGradCam"
"""The method to which ratios are taken."""

TOLERANCE = 1e-2
"""Largest difference between results that count as equal, relative to the largest value.

Results are in float32, and the order of sums differs. The drop of one of 2048 maps is a small
difference of large scores. Another formula would differ by far more.
"""

_CLUSTERERS = ("kmeans", "cosine", "agglomerative", "contiguous", "random")


@dataclass(frozen=True)
class Part:
    """How many of a method's perturbations are done.

    Attributes:
        done (int): Perturbations that are done.
        of (int): Perturbations of the whole method.
        fixed (float): Plain forward passes that are needed once, for any number of perturbations.
    """

    done: int
    of: int
    fixed: float


@dataclass(frozen=True, eq=False)
class Method:
    """A method on a case.

    Attributes:
        name (str): Its name in the tables.
        library (str): Where it comes from.
        run (callable): Runs it once and returns its result.
        same_as (str or None): What computes the same thing, in words.
        error (callable or None): From the result to the largest difference from that, relative to
            the largest value.
        clusters (int or None): Number of groups.
        clusterer (str or None): What groups the maps.
        part (Part or None): The part that is done; None if it is all.
        settings (dict): Further settings.
    """

    name: str
    library: str
    run: Callable[[], Any]
    same_as: str | None = None
    error: Callable[[Any], float] | None = None
    clusters: int | None = None
    clusterer: str | None = None
    part: Part | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def methods_of(
    case: Case,
    clusters: tuple[int, ...] = (16, 64, 256),
    part: int = 32,
    slow: bool = True,
    per_eval: tuple[int, ...] = (1, 4, 16),
) -> Iterator[Method]:
    """The methods on a case, ours first.

    Args:
        case (Case): The case.
        clusters (tuple[int, ...], optional): Numbers of groups. Where only one is needed, it is the
            middle one. Default: (16, 64, 256)
        part (int, optional): The most perturbations of a slow method. Default: 32
        slow (bool, optional): Whether there are slow methods, too. Default: True
        per_eval (tuple[int, ...], optional): Values of Captum's `perturbations_per_eval`, of which
            the fastest is taken. Default: (1, 4, 16)

    Yields:
        *Method*: One after the other, so that each can run before the next is made.
    """
    middle = min(clusters[len(clusters) // 2], case.maps)
    yield Method(FORWARD, "torch", lambda: _forward(case))
    for number in sorted({min(number, case.maps) for number in clusters}):
        yield _clustered(case, "kmeans", number)
    for clusterer in _CLUSTERERS[1:]:
        yield _clustered(case, clusterer, middle)
    labels = _explain(case, clusterer="kmeans", n_clusters=middle).labels
    yield _clustered(case, "labels given", middle, labels)
    yield _ablation_cam(case, 4 * part)
    yield from _grad_cams(case)
    if slow:
        yield _captum_ablation(case, labels.clamp(min=0), part, "same groups", per_eval)
        channels = torch.arange(case.maps, device=case.inputs.device)
        channels = channels.expand(len(case.inputs), -1)
        yield _captum_ablation(case, channels, part, "channels", per_eval)
        yield _pytorch_grad_cam_ablation(case, part)
        yield _torchcam_score(case, part)


@torch.no_grad()
def _forward(case: Case) -> Tensor:
    return case.model(case.inputs)


# --- ours -----------------------------------------------------------------------------------------


def _explain(case: Case, **settings: Any) -> ClusteredAttribution:
    return case.explainer(**settings).explain(case.inputs, target=case.target)


def _clustered(case: Case, clusterer: str, number: int, labels: Tensor | None = None) -> Method:
    cam = case.explainer(clusterer=clusterer if labels is None else labels, n_clusters=number)
    return Method(
        f"ClusteredLayerAblation {clusterer} K={number}",
        "captum_clustered",
        partial(cam.attribute, case.inputs, target=case.target),
        clusters=number,
        clusterer=clusterer,
    )


def first_maps(case: Case, done: int) -> Tensor:
    """Labels `(N, C)`: each of the first maps is a group of its own, the others are in no group."""
    labels = torch.arange(case.maps, device=case.inputs.device)
    return labels.where(labels < done, -1).expand(len(case.inputs), -1)


def _ablation_cam(case: Case, part: int) -> Method:
    """All maps if little lies behind the layer, else a part of them."""
    counted = flops(case)
    share = counted.behind / counted.forward
    if share * case.maps <= 20 or part >= case.maps:
        cam: ClusteredLayerAblation = LayerAblationCam(case.model, case.layer, **case.settings)
        done = None
    else:
        cam = case.explainer(clusterer=first_maps(case, part), weighting="drop")
        done = Part(part, case.maps, 1)
    return Method(
        "LayerAblationCam",
        "captum_clustered",
        partial(cam.attribute, case.inputs, target=case.target),
        clusters=case.maps,
        part=done,
    )


def _exact(case: Case, done: int) -> Tensor:
    """The map of Ablation-CAM of the first maps."""
    return _explain(case, clusterer=first_maps(case, done), weighting="drop").attributions


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    found = found.to(expected.device)
    largest = float(expected.abs().max())
    worst = float((found - expected).abs().max())
    if largest == 0:
        return 0.0 if worst == 0 else float("inf")
    return worst / largest


# --- Grad-CAM -------------------------------------------------------------------------------------


def _grad_cams(case: Case) -> Iterator[Method]:
    ours = LayerEGradCam(case.model, case.layer, threshold=-1.0, **case.settings)
    theirs = LayerGradCam(case.model, case.layer)

    def expected() -> Tensor:
        return ours.attribute(case.inputs, target=case.target)

    def error(result: Tensor) -> float:
        heat = expected()
        # Captum does not turn tokens into a grid of maps
        return difference(result.detach(), heat) if result.shape == heat.shape else float("inf")

    def captum(inputs: Tensor) -> Tensor:
        return theirs.attribute(inputs, target=case.target, relu_attributions=True)

    wanted = _wanted(case, case.found.reshape_transform)
    same = "Grad-CAM of captum_clustered"
    method = partial(Method, same_as=same, error=error)
    yield method(BASE, "captum", partial(captum, case.inputs))
    # our own first pass uses this layout for several images
    if len(case.inputs) > 1 and case.inputs.ndim == 4:
        run = partial(captum, case.inputs.contiguous(memory_format=torch.channels_last))
        layout = {"memory_format": "channels_last"}
        yield method(f"{BASE} channels-last", "captum", run, settings=layout)
    yield method("torchcam GradCAM", "torchcam", partial(torchcam_map, "GradCAM", wanted))
    yield Method(
        "pytorch-grad-cam GradCAM",
        "pytorch-grad-cam",
        partial(pytorch_grad_cam_map, "GradCAM", wanted),
        same_as=f"{same}, enlarged and scaled as pytorch-grad-cam does",
        error=lambda result: difference(result, _as_pytorch_grad_cam(case, expected())),
    )


def _wanted(case: Case, reshape: Reshape) -> Wanted:
    classes = [case.target] * len(case.inputs)
    return Wanted(case.model, case.layer, case.inputs, classes, reshape)


def _as_pytorch_grad_cam(case: Case, heat: Tensor) -> Tensor:
    from pytorch_grad_cam.utils.image import scale_cam_image

    size = tuple(case.inputs.shape[:1:-1])
    size = size[:2] if len(size) == 2 else (size[0], size[1], size[2])
    once = scale_cam_image(heat[:, 0].clamp(min=0).cpu().numpy(), size)
    twice = scale_cam_image(once.clip(min=0), None)  # a cubic spline overshoots
    return torch.as_tensor(twice).unsqueeze(1)


# --- perturbations --------------------------------------------------------------------------------


def _captum_ablation(
    case: Case, labels: Tensor, part: int, name: str, per_eval: tuple[int, ...]
) -> Method:
    whole = int(labels.max()) + 1
    done = min(part, whole)
    # all maps after the first groups join the last of these, so that each perturbation counts
    few = labels.clamp(max=done - 1) if done < whole else labels
    maps = output_of(case.model, case.layer, case.inputs)[1]
    shape = [len(case.inputs), *[1] * (maps.ndim - 1)]
    shape[case.found.channel_dim] = case.maps
    method = LayerFeatureAblation(case.model, case.layer)

    def run(number: int) -> Tensor:
        return method.attribute(
            case.inputs,
            target=case.target,
            layer_mask=few.reshape(shape),
            perturbations_per_eval=number,
        )

    best = per_eval[0]
    if len(per_eval) > 1:
        best = min(per_eval, key=lambda number: _seconds(partial(run, number)))

    def error(result: Tensor) -> float:
        found = result.detach().movedim(case.found.channel_dim, 1).flatten(2)[:, :, 0]
        ours = _explain(case, clusterer=few)
        # a dead map is in no group of ours, but has the drop of its group in Captum's result
        return difference(found * (ours.labels >= 0), by_map(ours.drops, ours.labels))

    return Method(
        f"captum LayerFeatureAblation {name}",
        "captum",
        partial(run, best),
        same_as="the drops of ClusteredLayerAblation with the same groups",
        error=error,
        clusters=whole,
        part=None if done == whole else Part(done, whole, 2),
        settings={"perturbations_per_eval": best},
    )


def _seconds(run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - start


def _pytorch_grad_cam_ablation(case: Case, part: int) -> Method:
    done = min(part, case.maps)
    wanted = _wanted(case, case.found.reshape_transform)

    def run() -> Tensor:
        from pytorch_grad_cam.utils.find_layers import replace_layer_recursive

        layer = _ablation_layer(case, done)
        try:
            return pytorch_grad_cam_map("AblationCAM", wanted, ablation_layer=layer)
        finally:  # after an error, the library leaves its own layer in the model
            replace_layer_recursive(case.model, layer, case.layer)

    return Method(
        "pytorch-grad-cam AblationCAM",
        "pytorch-grad-cam",
        run,
        same_as="LayerAblationCam, enlarged and scaled as pytorch-grad-cam does",
        error=lambda result: difference(result, _as_pytorch_grad_cam(case, _exact(case, done))),
        clusters=case.maps,
        part=None if done == case.maps else Part(done, case.maps, 2),
        settings={"batch_size": 32},
    )


def _ablation_layer(case: Case, done: int) -> Any:
    """The layer by which pytorch-grad-cam ablates, but only for the first maps."""
    import numpy as np
    from pytorch_grad_cam.ablation_layer import AblationLayer, AblationLayerVit

    kind = AblationLayer if case.channels_first else AblationLayerVit

    class First(kind):  # type: ignore[misc, valid-type]
        def activations_to_be_ablated(self, *_: Any, **__: Any) -> Any:
            self.indices = np.arange(done, dtype=np.int32)
            return self.indices

    return First()


def _torchcam_score(case: Case, part: int) -> Method:
    done = min(part, case.maps)

    def first(activations: Tensor) -> Tensor:
        reshape = case.found.reshape_transform
        maps = activations if reshape is None else reshape(activations)
        return maps[:, :done]

    return Method(
        "torchcam ScoreCAM",
        "torchcam",
        partial(torchcam_map, "ScoreCAM", _wanted(case, first)),
        clusters=case.maps,
        part=None if done == case.maps else Part(done, case.maps, 2),
        settings={"batch_size": 32},
    )
