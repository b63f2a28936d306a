"""Methods that are put together for a measurement only, to compare the library's own with them.

A recipe is a function from :class:`Asked` to a heat map `(N, 1, *spatial)`; :class:`Recipe` gives
it Captum's interface.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum.attr import LayerActivation, LayerAttribution
from torch import Tensor, nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.clustering import as_clusterer, group
from captum_clustered.explainers.results import ClusteredAttribution
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.heatmap import ReshapeTransform, build, enlarge, normalize
from captum_clustered.targets import format_target, target_scores
from captum_clustered.weighting import SHARES, by_map, sum_by_group

__all__ = [
    "Asked",
    "Recipe",
    "by_place",
    "from_mean_token",
    "masked_with_signs",
    "painted_with_signs",
]


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be explained.

    Attributes:
        model (nn.Module): The model.
        layer (nn.Module): The layer.
        inputs (Tensor): `(N, …)`.
        target (Tensor): The classes, `(N,)`.
        channel_dim (int): The axis of the maps.
        reshape (callable or None): Turns tokens into maps.
        at_input (bool): Whether the maps are the layer's input.
        fill (Fill): What replaces hidden pixels.
    """

    model: nn.Module
    layer: nn.Module
    inputs: Tensor
    target: Tensor
    channel_dim: int = 1
    reshape: ReshapeTransform | None = None
    at_input: bool = False
    fill: Fill = 0.0

    def maps(self, value: Tensor) -> Tensor:
        """The layer's output, or its gradient, as maps `(N, C, *spatial)`."""
        return value.movedim(self.channel_dim, 1) if self.reshape is None else self.reshape(value)

    @torch.no_grad()
    def output(self) -> Tensor:
        """The layer's output, or its input."""
        return LayerActivation(self.model, self.layer).attribute(
            self.inputs, attribute_to_layer_input=self.at_input
        )

    def tokens(self) -> tuple[Tensor, int]:
        """The tokens of the patches, `(N, P, C)`, and the number of tokens before them."""
        if self.reshape is None:
            raise ValueError(
                "`layer` must give tokens for groups of positions and for mean tokens; got one "
                "without a `reshape_transform`. Leave these methods out."
            )
        found = self.output()
        patches = self.maps(found).flatten(2).transpose(1, 2)
        return patches, found.shape[1] - patches.shape[1]

    def explain(self, baselines: Any = None, **settings: Any) -> ClusteredAttribution:
        """Clustered-CAM with these settings."""
        layout = {"channel_dim": self.channel_dim, "reshape_transform": self.reshape}
        cam = ClusteredLayerAblation(self.model, self.layer, **{**layout, **settings})
        return cam.explain(
            self.inputs,
            self.target,
            layer_baselines=baselines,
            attribute_to_layer_input=self.at_input,
        )


class Recipe(LayerAttribution):
    """A recipe behind Captum's interface.

    Args:
        forward_func (nn.Module): The model.
        layer (nn.Module): The layer.
        make (callable): From :class:`Asked` to the map.
        channel_dim (int, optional): The axis of the maps. Default: 1
        reshape_transform (callable, optional): Turns tokens into maps. Default: None
        fill (float, Tensor or str, optional): What replaces hidden pixels, as for
            :func:`captum_clustered.fills.fill_image`. Default: 0.0

    Example::

        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
        >>> recipe = Recipe(model, model[0], make=painted_with_signs)
        >>> recipe.attribute(torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1])).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        forward_func: nn.Module,
        layer: nn.Module,
        *,
        make: Callable[[Asked], Tensor],
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
        fill: Fill = 0.0,
    ) -> None:
        super().__init__(forward_func, layer)
        self.make = make
        self.channel_dim = channel_dim
        self.reshape = reshape_transform
        self.fill = fill

    def attribute(
        self, inputs: Tensor, target: Tensor, *, attribute_to_layer_input: bool = False
    ) -> Tensor:
        """Maps `(N, 1, *spatial)`, nowhere negative."""
        model: Any = self.forward_func
        asked = Asked(
            model,
            self.layer,
            inputs,
            target,
            self.channel_dim,
            self.reshape,
            attribute_to_layer_input,
            self.fill,
        )
        return self.make(asked)


def painted_with_signs(asked: Asked, **settings: Any) -> Tensor:
    """The formula as it was published, for whole maps: the drop times the map, whatever its sign.

    The drop includes what the score loses through a class token.

    Args:
        asked (Asked): What is to be explained.
        **settings (Any): Of :class:`captum_clustered.ClusteredLayerAblation`.
    """
    settings = {"weighting": "drop_per_map", **settings}
    found: Any = asked.explain(parts="whole", unpainted="ablate", **settings)
    return build(found.activations, found.channel_weights, relu=True, sum_maps=True)


@torch.no_grad()
def masked_with_signs(asked: Asked, n_clusters: int = 32) -> Tensor:
    """Clustered Score-CAM of whole maps with their signs: as mask of a group the sum of its maps.

    Maps of one group cancel where one is above zero and the other below.

    Args:
        asked (Asked): What is to be explained.
        n_clusters (int, optional): Number of groups. Default: 32
    """
    maps = asked.maps(asked.output())  # (N, C, *spatial)
    groups = group(as_clusterer("agglomerative", n_clusters), maps.flatten(2))
    fill = fill_image(asked.fill, asked.inputs)
    target = format_target(asked.target, len(maps))
    scores = []
    for joint in sum_by_group(maps, groups.labels, groups.n_groups).split(1, 1):  # (N, 1, *spatial)
        mask = normalize(enlarge(joint, asked.inputs.shape[2:]))
        output = asked.model(masked(asked.inputs, mask, fill))
        flat = joint.flatten(1).amax(1) == joint.flatten(1).amin(1)  # no mask
        score = target_scores(output, target, "log_odds")
        scores.append(score.masked_fill(flat, -torch.inf))
    shares = (torch.stack(scores, 1) / 0.5).softmax(1).nan_to_num(0)  # (N, K); NaN: all are flat
    weights = SHARES["mass"](shares, groups.labels, maps)
    return build(maps, by_map(weights, groups.labels), relu=True, sum_maps=True)


def from_mean_token(asked: Asked, **settings: Any) -> Tensor:
    """Clustered-CAM in which the patches' mean of each map replaces the map, instead of zero."""
    patches, _ = asked.tokens()
    found: Any = asked.explain(patches.mean(1, keepdim=True), **settings)
    return found.attributions


def by_place(asked: Asked, n_clusters: int = 32, weighting: str = "drop_per_map") -> Tensor:
    """Groups of similar tokens instead of maps; the mean token replaces each, a token at a time.

    The class token stays as it is. The heat of a place is its token's weight.

    Args:
        asked (Asked): What is to be explained.
        n_clusters (int, optional): Number of groups. Default: 32
        weighting (str, optional): How a drop becomes the weight of a token.
            Default: ``"drop_per_map"``, the share of each
    """
    patches, before = asked.tokens()
    mean = patches.mean(1, keepdim=True)  # (N, 1, C)
    # of the deviation, since a token of zeros would count as dead and never be switched off
    labels = group(as_clusterer("kmeans", n_clusters), patches - mean).labels  # (N, P)
    found: Any = asked.explain(
        mean,
        clusterer=nn.functional.pad(labels, (before, 0), value=-1),  # (N, T)
        weighting=weighting,
        channel_dim=1,
        reshape_transform=_unchanged,
    )
    weights = found.channel_weights[:, before:]  # (N, P)
    size = asked.maps(found.activations).shape[2:]
    return weights.reshape(len(weights), 1, *size).relu()


def _unchanged(tokens: Tensor) -> Tensor:
    """Tokens `(N, T, C)` as `T` maps of `C` values."""
    return tokens
