"""All methods by name, and the controls that they are compared with.

:func:`make` returns an explainer with ``attribute(inputs, target, *, additional_forward_args,
attribute_to_layer_input)``. Its heat map `(N, 1, *spatial)` has the resolution of the layer
(`calibrated-cam`'s that of the image) and no negative values. That holds for the controls too, so
that callers can treat all alike.

Example::

    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    >>> for name in ("clustered-cam", "grad-cam", "fake-cam"):
    ...     explainer = make(name, model, model[1])
    ...     print(name, tuple(explainer.attribute(torch.rand(3, 1, 4, 4), target=1).shape))
    clustered-cam (3, 1, 2, 2)
    grad-cam (3, 1, 2, 2)
    fake-cam (3, 1, 2, 2)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from captum.attr import LayerAttribution
from torch import nn

from captum_clustered._checks import did_you_mean
from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import RandomGroups, as_clusterer
from captum_clustered.explainers.ablation import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.explainers.controls import (
    Drawn,
    centre_gaussian,
    fake_cam,
    random_map,
    sum_of_maps,
)
from captum_clustered.explainers.egrad_cam import LayerEGradCam
from captum_clustered.explainers.grad_cam import GradCam, LayerHiResCam
from captum_clustered.explainers.group_cam import LayerGroupCam
from captum_clustered.explainers.layered import LayerCalibratedCam
from captum_clustered.explainers.opti_cam import ClusteredLayerOptimization
from captum_clustered.explainers.score_cam import ClusteredLayerScore, LayerScoreCam
from captum_clustered.fills import Fill

__all__ = ["METHODS", "Drawn", "GradCam", "Method", "make"]

_LAYOUT = {"channel_dim": 1, "reshape_transform": None}


@dataclass(frozen=True)
class Method:
    """A method, or a control.

    Attributes:
        name (str): The name that :func:`make` takes.
        description (str): One line for a table or a help page.
        factory (callable): ``factory(forward_func, layer, **settings)`` makes the explainer.
        fixed (tuple[str, ...]): Settings of the factory that this method does not let you set.
        needs_gradient (bool): Whether the model must be differentiable after the layer.
        control (bool): Whether it explains nothing, and is there to compare the methods with.
        published (Mapping[str, Any]): The settings of the paper where our defaults differ. Use
            them as ``make(name, model, layer, **published)``.
    """

    name: str
    description: str
    factory: Callable[..., LayerAttribution]
    fixed: tuple[str, ...] = ()
    needs_gradient: bool = False
    control: bool = False
    published: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings with their defaults; always with `channel_dim` and `reshape_transform`."""
        parameters = inspect.signature(self.factory).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: own[name] for name in own if name not in self.fixed} | _LAYOUT

    @property
    def clusters(self) -> bool:
        """Whether the method takes a number of groups."""
        return "n_clusters" in self.settings

    @property
    def weighting(self) -> bool:
        """Whether the method takes a weighting, which turns drops into weights."""
        return "weighting" in self.settings


def make(
    name: str, forward_func: Callable[..., Any], layer: nn.Module, **settings: Any
) -> LayerAttribution:
    """Creates the explainer of a method.

    Args:
        name (str): A key of :data:`METHODS`.
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer whose maps are used.
        **settings (Any): Settings from :attr:`Method.settings`. All methods take `channel_dim` and
            `reshape_transform`; some take `n_clusters`, `clusterer`, `weighting`, `seed` or others.

    Returns:
        *LayerAttribution*: The explainer.

    Raises:
        ValueError: If the method is unknown, or does not have one of the settings.

    Example::

        >>> make("random-groups", nn.Identity(), nn.Identity(), n_clusters=16).clusterer.n_clusters
        16
    """
    if name not in METHODS:
        raise ValueError(
            f"`name` must be one of {', '.join(METHODS)}; got {name!r}."
            + did_you_mean(str(name), METHODS)
        )
    method = METHODS[name]
    for setting in settings:
        if setting not in method.settings:
            raise ValueError(
                f"`{setting}` must be a setting of {name}, which has {', '.join(method.settings)}; "
                f"got {settings[setting]!r}.{did_you_mean(setting, method.settings)}"
            )
    return method.factory(forward_func, layer, **settings)


def _random_groups(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    n_clusters: int = 64,
    clusterer: Any = "kmeans",
    weighting: Any = "auto",
    seed: int = 0,
    **layout: Any,
) -> LayerAttribution:
    """Clustered-CAM with random groups of the same sizes as the clusterer's."""
    groups = RandomGroups(like=as_clusterer(clusterer, n_clusters), seed=seed)
    return ClusteredLayerAblation(
        forward_func, layer, clusterer=groups, weighting=weighting, **layout
    )


def _random_score_cam(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    n_clusters: int = 32,
    clusterer: Any = "agglomerative",
    seed: int = 0,
    fill: Fill = 0.0,
    **layout: Any,
) -> LayerAttribution:
    """ClusteredLayerScore with random groups of the same sizes as the clusterer's."""
    groups = RandomGroups(like=as_clusterer(clusterer, n_clusters), seed=seed)
    return ClusteredLayerScore(forward_func, layer, clusterer=groups, fill=fill, **layout)


def _adaptive_ablation_cam(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    n_clusters: int = 32,
    weighting: Any = "auto",
    **layout: Any,
) -> LayerAttribution:
    return ClusteredLayerAblation(
        forward_func, layer, clusterer=Adaptive(n_clusters), weighting=weighting, **layout
    )


METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(
                "clustered-cam",
                "Groups of similar maps are switched off together (Eskandari et al. 2022)",
                ClusteredLayerAblation,
                published={"n_clusters": 64, "weighting": "drop"},
            ),
            Method(
                "calibrated-cam",
                "Grad-CAM refined by finer layers, on the scale that shows most of the class",
                LayerCalibratedCam,
                needs_gradient=True,
            ),
            Method(
                "ablation-cam",
                "Each map is switched off alone, drop over the score (Desai, Ramaswamy 2020)",
                LayerAblationCam,
                fixed=("weighting",),
            ),
            Method(
                "ablation-cam-norm",
                "Each map is switched off alone, drop over the map's norm (Desai, Ramaswamy 2020)",
                partial(LayerAblationCam, weighting="drop_per_norm"),
                fixed=("weighting",),
            ),
            Method(
                "grad-cam",
                "Maps weighted by their mean gradients (Selvaraju et al. 2017), computed by Captum",
                GradCam,
                needs_gradient=True,
            ),
            Method(
                "hires-cam",
                "Gradient times activation, summed over the maps (Draelos, Carin 2020)",
                LayerHiResCam,
                needs_gradient=True,
            ),
            Method(
                "egrad-cam",
                "Grad-CAM without the maps that carry no information (Eskandari et al. 2021)",
                LayerEGradCam,
                needs_gradient=True,
            ),
            Method(
                "group-cam",
                "Groups of neighbouring gradient-weighted maps mask the image (Zhang et al. 2021)",
                LayerGroupCam,
                fixed=("clusterer",),
                needs_gradient=True,
            ),
            Method(
                "clustered-group-cam",
                "Group-CAM with groups of similar gradient-weighted maps",
                partial(LayerGroupCam, clusterer="kmeans"),
                needs_gradient=True,
            ),
            Method(
                "score-cam",
                "Each map masks the image, weights by a softmax of the logits (Wang et al. 2020)",
                LayerScoreCam,
                fixed=("clusterer", "n_clusters"),
            ),
            Method(
                "clustered-score-cam",
                "Groups of similar maps mask the image, weights by a softmax of the log-odds",
                ClusteredLayerScore,
            ),
            Method(
                "random-score-cam",
                "Clustered Score-CAM with random groups of the same sizes, to compare with",
                _random_score_cam,
            ),
            Method(
                "clustered-opti-cam",
                "Weights of groups, optimised in ten steps for the log-odds of the masked image",
                ClusteredLayerOptimization,
                needs_gradient=True,
            ),
            Method(
                "adaptive-ablation-cam",
                "Groups are split where the score drops most; n_clusters counts evaluations",
                _adaptive_ablation_cam,
            ),
            Method(
                "fake-cam",
                "Ones with a zero in a corner (Poppi et al. 2021)",
                fake_cam,
                control=True,
            ),
            Method(
                "random-map",
                "Uniform noise, different for each image",
                random_map,
                control=True,
            ),
            Method(
                "centre-gaussian",
                "A centred Gaussian whose standard deviation is a quarter of each side",
                centre_gaussian,
                control=True,
            ),
            Method(
                "sum-of-maps",
                "The sum of all maps, the same for every class",
                sum_of_maps,
                control=True,
            ),
            Method(
                "random-groups",
                "Clustered-CAM with random groups of the same sizes",
                _random_groups,
                control=True,
            ),
            Method(
                "contiguous-groups",
                "Clustered-CAM with groups of neighbouring channels",
                partial(ClusteredLayerAblation, clusterer="contiguous"),
                fixed=("clusterer",),
                control=True,
            ),
        )
    }
)
"""All methods by name, the controls last."""
