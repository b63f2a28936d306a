"""The methods by name, with the controls that always stand beside them.

Every method makes an object with ``attribute(inputs, target, *, additional_forward_args,
attribute_to_layer_input)``, which gives a heat map `(N, 1, *spatial)` in the layer's resolution,
nowhere negative: the controls too, so that nothing has to tell them apart.

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

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from captum.attr import LayerAttribution, LayerGradCam
from captum.log import log_usage
from torch import Tensor, nn

from captum_clustered.adaptive import Adaptive
from captum_clustered.clustering import RandomGroups, as_clusterer
from captum_clustered.engine.model import as_model, borrowed
from captum_clustered.explainers.ablation import ClusteredLayerAblation, LayerAblationCam
from captum_clustered.explainers.base import LayerExplainer, unwrap
from captum_clustered.explainers.egrad_cam import LayerEGradCam
from captum_clustered.explainers.group_cam import LayerGroupCam
from captum_clustered.explainers.opti_cam import ClusteredLayerOptimization
from captum_clustered.explainers.results import Tensors
from captum_clustered.explainers.score_cam import ClusteredLayerScore, LayerScoreCam
from captum_clustered.fills import Fill
from captum_clustered.heatmap import ReshapeTransform, to_maps
from captum_clustered.layers import did_you_mean
from captum_clustered.targets import Target, check_target, format_target, select

__all__ = ["METHODS", "Drawn", "GradCam", "Method", "make"]

_LAYOUT = {"channel_dim": 1, "reshape_transform": None}


@dataclass(frozen=True)
class Method:
    """A method, or a control.

    Attributes:
        name (str): What :func:`make` knows it by.
        description (str): One line for a table or a help page.
        factory (callable): ``factory(forward_func, layer, **settings)`` makes the explainer.
        fixed (tuple[str, ...]): Settings of the factory that the name stands for.
        needs_gradient (bool): Whether the model must be differentiable behind the layer.
        control (bool): Whether it explains nothing and stands beside the methods for comparison.
        published (Mapping[str, Any]): The settings of its paper where ours differ, for
            ``make(name, model, layer, **published)``.
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
        """What can be set, with the defaults; `channel_dim` and `reshape_transform` always can."""
        parameters = inspect.signature(self.factory).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: own[name] for name in own if name not in self.fixed} | _LAYOUT

    @property
    def clusters(self) -> bool:
        """Whether the number of groups matters."""
        return "n_clusters" in self.settings

    @property
    def weighting(self) -> bool:
        """Whether it matters how a drop becomes a weight."""
        return "weighting" in self.settings


def make(
    name: str, forward_func: Callable[..., Any], layer: nn.Module, **settings: Any
) -> LayerAttribution:
    """Makes the explainer of a method.

    Args:
        name (str): A key of :data:`METHODS`.
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer whose maps explain.
        **settings (Any): Of :attr:`Method.settings`: always `channel_dim` and `reshape_transform`;
            `n_clusters`, `clusterer`, `weighting`, `seed` and others where the method has a use
            for them.

    Returns:
        *LayerAttribution*: The explainer.

    Raises:
        ValueError: If there is no such method, or it has no such setting.

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


# --- methods --------------------------------------------------------------------------------------


class GradCam(LayerGradCam):
    """Captum's `LayerGradCam` with the manners of this package.

    Negative values are set to zero as in the paper (Selvaraju et al., ICCV 2017), the result is
    detached, targets come in all forms, and a layer whose maps do not lie on axis 1 is refused.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None

    Example::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> GradCam(model.eval(), model[1]).attribute(torch.rand(3, 1, 4, 4), target=1).shape
        torch.Size([3, 1, 2, 2])
    """

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
    ) -> Tensors:
        """Computes the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs, the batch axis first.
            target (int, tuple, Tensor or list, optional): The class to explain. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False
            relu_attributions (bool, optional): Set negative values to zero. Default: True
            attr_dim_summation (bool, optional): Sum over the maps. Default: True

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``, detached.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If a shape or a value does not fit.
        """
        with borrowed():
            model = as_model(self.forward_func, inputs, additional_forward_args)
            targets = format_target(target, model.n)

            def score(_: Tensor) -> Tensor:
                output = model.forward_func(*model.fresh())
                check_target(output, targets)
                return select(output, targets)

            found = LayerGradCam(score, self.layer).attribute(
                model.args[0],
                attribute_to_layer_input=attribute_to_layer_input,
                attr_dim_summation=False,
            )
        heats = []
        for part in found if isinstance(found, tuple) else (found,):
            heat = to_maps(part.detach(), 1, None, self.layer, model.args[0].ndim)
            heat = heat.sum(1, keepdim=True) if attr_dim_summation else heat
            heats.append(heat.relu() if relu_attributions else heat)
        return unwrap(heats)


def _grad_cam(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    channel_dim: int = 1,
    reshape_transform: ReshapeTransform | None = None,
) -> LayerAttribution:
    if channel_dim == 1 and reshape_transform is None:
        return GradCam(forward_func, layer)
    return LayerEGradCam(  # Captum's cannot read these axes; here no map is frozen out
        forward_func,
        layer,
        threshold=-1.0,
        channel_dim=channel_dim,
        reshape_transform=reshape_transform,
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
    groups = RandomGroups(like=as_clusterer(clusterer, n_clusters), seed=seed)
    return ClusteredLayerScore(forward_func, layer, clusterer=groups, fill=fill, **layout)


def _adaptive_ablation_cam(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    n_clusters: int = 32,
    weighting: Any = "drop_per_map",
    **layout: Any,
) -> LayerAttribution:
    return ClusteredLayerAblation(
        forward_func, layer, clusterer=Adaptive(n_clusters), weighting=weighting, **layout
    )


# --- controls -------------------------------------------------------------------------------------


class Drawn(LayerExplainer):
    """A heat map that is drawn without asking the model what it thinks of the class.

    The model runs once, for the shape of the layer's maps.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer.
        draw (callable): Makes heat maps `(N, 1, *spatial)` from the maps `(N, C, *spatial)` and the
            first of the model's inputs.
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None

    Example::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> cam = Drawn(model.eval(), model[1], lambda maps, inputs: maps[:, :1])
        >>> cam.attribute(torch.rand(3, 1, 4, 4), target=1).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        draw: Callable[[Tensor, Tensor], Tensor],
        *,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        super().__init__(
            forward_func, layer, channel_dim=channel_dim, reshape_transform=reshape_transform
        )
        self.draw = draw

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Tensors:
        """Draws the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs, the batch axis first.
            target (int, tuple, Tensor or list, optional): Checked, but of no effect. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, detached.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If a shape or a value does not fit.
        """
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input
        ) as first:
            image = first.model.args[0].detach()
            return unwrap([self.draw(maps, image) for maps in first.maps])


def _ones_but_one(maps: Tensor, _: Tensor) -> Tensor:
    heat = maps.new_ones(len(maps), math.prod(maps.shape[2:]))
    heat[:, 0] = 0
    return heat.reshape(len(maps), 1, *maps.shape[2:])


def _total(maps: Tensor, _: Tensor) -> Tensor:
    return maps.sum(1, keepdim=True).relu()


def _fake_cam(forward_func: Callable[..., Any], layer: nn.Module, **layout: Any) -> Drawn:
    return Drawn(forward_func, layer, _ones_but_one, **layout)


def _random_map(
    forward_func: Callable[..., Any], layer: nn.Module, *, seed: int = 0, **layout: Any
) -> Drawn:
    def draw(maps: Tensor, inputs: Tensor) -> Tensor:
        rows = []
        for example in inputs.cpu():
            # from what is seen: no neighbour, order or process changes an example's map
            seen = example.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.blake2b(f"{seed}:".encode() + seen, digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
            rows.append(torch.rand(1, *maps.shape[2:], generator=generator))
        return torch.stack(rows).to(maps)

    return Drawn(forward_func, layer, draw, **layout)


def _centre_gaussian(
    forward_func: Callable[..., Any], layer: nn.Module, *, sigma: float = 0.25, **layout: Any
) -> Drawn:
    def draw(maps: Tensor, _: Tensor) -> Tensor:
        heat = maps.new_ones(1, 1)
        for size in maps.shape[2:]:
            places = (torch.arange(size, device=maps.device) + 0.5) / size - 0.5
            heat = heat.unsqueeze(-1) * torch.exp(-(places**2) / (2 * sigma**2)).to(maps.dtype)
        return heat.repeat(len(maps), *[1] * (maps.ndim - 1))

    return Drawn(forward_func, layer, draw, **layout)


def _sum_of_maps(forward_func: Callable[..., Any], layer: nn.Module, **layout: Any) -> Drawn:
    return Drawn(forward_func, layer, _total, **layout)


def _random_groups(
    forward_func: Callable[..., Any],
    layer: nn.Module,
    *,
    n_clusters: int = 64,
    clusterer: Any = "kmeans",
    weighting: Any = "drop_per_map",
    seed: int = 0,
    **layout: Any,
) -> LayerAttribution:
    groups = RandomGroups(like=as_clusterer(clusterer, n_clusters), seed=seed)
    return ClusteredLayerAblation(
        forward_func, layer, clusterer=groups, weighting=weighting, **layout
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
                "Maps weighted by their mean gradients (Selvaraju et al. 2017), by Captum",
                _grad_cam,
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
                "Neighbouring gradient-weighted maps mask the image (Zhang et al. 2021)",
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
                "Each map masks the image, softmax of the logits (Wang et al. 2020)",
                LayerScoreCam,
                fixed=("clusterer", "n_clusters"),
            ),
            Method(
                "clustered-score-cam",
                "Groups of similar maps mask the image, softmax of the log-odds",
                ClusteredLayerScore,
            ),
            Method(
                "random-score-cam",
                "The same with random groups of the same sizes, to compare with",
                _random_score_cam,
            ),
            Method(
                "clustered-opti-cam",
                "Weights of groups, optimised for the masked image's log-odds in ten steps",
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
                _fake_cam,
                control=True,
            ),
            Method(
                "random-map",
                "Uniform noise, another for each image",
                _random_map,
                control=True,
            ),
            Method(
                "centre-gaussian",
                "A Gaussian in the middle, its deviation a quarter of each side",
                _centre_gaussian,
                control=True,
            ),
            Method(
                "sum-of-maps",
                "All maps alike, which knows no class",
                _sum_of_maps,
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
