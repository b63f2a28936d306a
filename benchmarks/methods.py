"""Ours and the other libraries' methods behind one callable, and whether they agree.

Each method is used as its own documentation shows, with its own defaults. One that would take
minutes does only some of its perturbations, and says which part. Where two methods compute the same
thing, `error` compares the results; a time is no comparison otherwise.
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

from benchmarks.cases import Case
from benchmarks.peers import Reshape, pytorch_grad_cam_map, torchcam_map
from captum_clustered import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.weighting import by_map

__all__ = ["BASE", "FORWARD", "TOLERANCE", "Method", "Part", "methods_of"]

FORWARD = "forward pass"
"""The name of the plain model without gradients, which stands beside the methods."""

BASE = "captum LayerGradCam"
"""The method to which ratios are taken."""

TOLERANCE = 1e-2
"""Largest difference between results that count as equal, relative to the largest value.

Results are in float32 and differ in the order of sums; the drop of one map of 2048 is a small
difference of large scores. Another formula is off by far more.
"""

_CLUSTERERS = ("kmeans", "cosine", "agglomerative", "contiguous", "random")


@dataclass(frozen=True)
class Part:
    """How many of a method's perturbations are done.

    Attributes:
        done (int): Perturbations that are done.
        of (int): Perturbations of the whole.
        fixed (float): Plain forward passes that are needed once, however many perturbations.
    """

    done: int
    of: int
    fixed: float


@dataclass(frozen=True, eq=False)
class Method:
    """A method on a case.

    Attributes:
        name (str): What the tables call it.
        library (str): Where it comes from.
        run (callable): Does it once and returns what it gives.
        same_as (str or None): What computes the same thing, in words.
        error (callable or None): From the result to its largest difference from that, relative to
            the largest value.
        clusters (int or None): Number of groups.
        clusterer (str or None): What groups the maps.
        part (Part or None): Which part is done; None if all is.
        settings (dict): What else was chosen.
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
        clusters (tuple[int, ...], optional): Numbers of groups; the middle one is used where there
            is one. Default: (16, 64, 256)
        part (int, optional): The most perturbations of a slow method. Default: 32
        slow (bool, optional): Whether slow methods are among them. Default: True
        per_eval (tuple[int, ...], optional): What Captum's `perturbations_per_eval` may be; the
            fastest is taken. Default: (1, 4, 16)

    Yields:
        *Method*: One after the other, so that each may be made and run before the next.
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
        channels = torch.arange(case.maps).expand(len(case.inputs), -1)
        yield _captum_ablation(case, channels, part, "channels", per_eval)
        yield _pytorch_grad_cam_ablation(case, part)
        yield _torchcam_score(case, part)


@torch.no_grad()
def _forward(case: Case) -> Tensor:
    return case.model(case.inputs)


# --- ours -----------------------------------------------------------------------------------------


def _settings(case: Case) -> dict[str, Any]:
    return {
        "channel_dim": case.found.channel_dim,
        "reshape_transform": case.found.reshape_transform,
    }


def _explain(case: Case, **settings: Any) -> ClusteredAttribution:
    cam = ClusteredLayerAblation(case.model, case.layer, **_settings(case), **settings)
    return cam.explain(case.inputs, target=case.target)


def _clustered(case: Case, clusterer: str, number: int, labels: Tensor | None = None) -> Method:
    cam = ClusteredLayerAblation(
        case.model,
        case.layer,
        clusterer=clusterer if labels is None else labels,
        n_clusters=number,
        **_settings(case),
    )
    return Method(
        f"ClusteredLayerAblation {clusterer} K={number}",
        "captum_clustered",
        partial(cam.attribute, case.inputs, target=case.target),
        clusters=number,
        clusterer=clusterer,
    )


def _first(case: Case, done: int) -> Tensor:
    """Labels that put each of the first maps into a group of its own, the others into none."""
    labels = torch.arange(case.maps)
    return labels.where(labels < done, -1).expand(len(case.inputs), -1)


def _ablation_cam(case: Case, part: int) -> Method:
    """Whole at a layer near the end; a part where very much lies behind the layer."""
    from benchmarks.floor import flops

    counted = flops(case)
    share = counted.behind / counted.forward
    if share * case.maps <= 20 or part >= case.maps:
        cam: ClusteredLayerAblation = LayerAblationCam(case.model, case.layer, **_settings(case))
        done = None
    else:
        labels = _first(case, part)
        cam = ClusteredLayerAblation(
            case.model, case.layer, clusterer=labels, weighting="drop", **_settings(case)
        )
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
    return _explain(case, clusterer=_first(case, done), weighting="drop").attributions


def _difference(found: Tensor, expected: Tensor) -> float:
    largest = float(expected.abs().max())
    worst = float((found - expected).abs().max())
    if largest == 0:
        return 0.0 if worst == 0 else float("inf")
    return worst / largest


# --- Grad-CAM -------------------------------------------------------------------------------------


def _grad_cams(case: Case) -> Iterator[Method]:
    same = "Grad-CAM of captum_clustered"

    def ours() -> Tensor:
        from captum_clustered.explainers.egrad_cam import LayerEGradCam

        cam = LayerEGradCam(case.model, case.layer, threshold=-1.0, **_settings(case))
        return cam.attribute(case.inputs, target=case.target)

    def error(result: Tensor) -> float:
        if result.shape != (expected := ours()).shape:
            return float("inf")  # Captum takes tokens for maps
        return _difference(result.detach(), expected)

    theirs = LayerGradCam(case.model, case.layer)

    def captum(inputs: Tensor) -> Tensor:
        return theirs.attribute(inputs, target=case.target, relu_attributions=True)

    yield Method(BASE, "captum", partial(captum, case.inputs), same_as=same, error=error)
    if len(case.inputs) > 1 and case.inputs.ndim == 4:  # there our first pass lays them out so
        laid = case.inputs.contiguous(memory_format=torch.channels_last)
        yield Method(
            f"{BASE} channels-last",
            "captum",
            partial(captum, laid),
            same_as=same,
            error=error,
            settings={"memory_format": "channels_last"},
        )
    yield Method(
        "torchcam GradCAM",
        "torchcam",
        partial(_torchcam, case, "GradCAM", case.found.reshape_transform),
        same_as=same,
        error=error,
    )
    yield Method(
        "pytorch-grad-cam GradCAM",
        "pytorch-grad-cam",
        partial(_pytorch_grad_cam, case, "GradCAM"),
        same_as=f"{same}, enlarged and scaled as pytorch-grad-cam does",
        error=lambda result: _difference(result, _as_pytorch_grad_cam(case, ours())),
    )


def _torchcam(case: Case, kind: str, reshape: Reshape) -> Tensor:
    classes = [case.target] * len(case.inputs)
    return torchcam_map(kind, case.model, case.layer, case.inputs, classes, reshape)


def _pytorch_grad_cam(case: Case, kind: str, **settings: Any) -> Tensor:
    classes = [case.target] * len(case.inputs)
    reshape = case.found.reshape_transform
    return pytorch_grad_cam_map(
        kind, case.model, case.layer, case.inputs, classes, reshape, **settings
    )


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
    # what is not among the first groups is one more, so that no perturbation is done in vain
    few = labels.clamp(max=done - 1) if done < whole else labels
    shape = [len(case.inputs), *[1] * len(_activations(case).shape[1:])]
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
        drops = ours.scores.unsqueeze(1) - ours.ablated_scores
        # a dead map is in no group of ours, and bears its group's drop there
        return _difference(found * (ours.labels >= 0), by_map(drops, ours.labels))

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


def _activations(case: Case) -> Tensor:
    found: list[Tensor] = []
    hook = case.layer.register_forward_hook(lambda _, __, output: found.append(output))
    try:
        _forward(case)
    finally:
        hook.remove()
    return found[0]


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _pytorch_grad_cam_ablation(case: Case, part: int) -> Method:
    done = min(part, case.maps)

    def run() -> Tensor:
        from pytorch_grad_cam.utils.find_layers import replace_layer_recursive

        layer = _ablation_layer(case, done)
        try:
            return _pytorch_grad_cam(case, "AblationCAM", ablation_layer=layer)
        finally:  # after an error it leaves its own layer in the model
            replace_layer_recursive(case.model, layer, case.layer)

    return Method(
        "pytorch-grad-cam AblationCAM",
        "pytorch-grad-cam",
        run,
        same_as="LayerAblationCam, enlarged and scaled as pytorch-grad-cam does",
        error=lambda result: _difference(result, _as_pytorch_grad_cam(case, _exact(case, done))),
        clusters=case.maps,
        part=None if done == case.maps else Part(done, case.maps, 2),
        settings={"batch_size": 32},
    )


def _ablation_layer(case: Case, done: int) -> Any:
    """The layer with which pytorch-grad-cam ablates, for the first maps only."""
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
        partial(_torchcam, case, "ScoreCAM", first),
        clusters=case.maps,
        part=None if done == case.maps else Part(done, case.maps, 2),
        settings={"batch_size": 32},
    )
