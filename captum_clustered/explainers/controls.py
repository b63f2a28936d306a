"""Controls: heat maps that explain nothing, to compare the methods with."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered.explainers.base import LayerExplainer, unwrap
from captum_clustered.explainers.results import Attribution, Tensors
from captum_clustered.heatmap import ReshapeTransform
from captum_clustered.targets import Target

__all__ = [
    "Drawn",
    "centre_gaussian",
    "fake_cam",
    "random_map",
    "sum_of_maps",
]


class Drawn(LayerExplainer):
    """A heat map that does not depend on the model's scores.

    The model runs once, to get the maps of the layer.

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

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Attribution:
        """Draws the heat map.

        The arguments are those of :meth:`attribute`. The target is checked, but of no effect.

        Returns:
            *Attribution*: The heat map `(N, 1, *spatial)`, detached.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If a shape or a value does not fit.
        """
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input
        ) as first:
            image = first.model.args[0].detach()
            return Attribution(unwrap(self.draw(maps, image) for maps in first.maps))


def _ones_but_one(maps: Tensor, _: Tensor) -> Tensor:
    heat = maps.new_ones(len(maps), math.prod(maps.shape[2:]))
    heat[:, 0] = 0
    return heat.reshape(len(maps), 1, *maps.shape[2:])


def _total(maps: Tensor, _: Tensor) -> Tensor:
    return maps.sum(1, keepdim=True).relu()


def fake_cam(forward_func: Callable[..., Any], layer: nn.Module, **layout: Any) -> Drawn:
    """Ones with a zero in a corner (Poppi et al., CVPR Workshops 2021)."""
    return Drawn(forward_func, layer, _ones_but_one, **layout)


def random_map(
    forward_func: Callable[..., Any], layer: nn.Module, *, seed: int = 0, **layout: Any
) -> Drawn:
    """Uniform noise, different for each image."""

    def draw(maps: Tensor, inputs: Tensor) -> Tensor:
        rows = []
        for example in inputs.cpu():
            # the seed comes from the pixels: the batch, its order and the process do not matter
            seen = example.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            digest = hashlib.blake2b(f"{seed}:".encode() + seen, digest_size=8).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "big", signed=True))
            rows.append(torch.rand(1, *maps.shape[2:], generator=generator))
        return torch.stack(rows).to(maps)

    return Drawn(forward_func, layer, draw, **layout)


def centre_gaussian(
    forward_func: Callable[..., Any], layer: nn.Module, *, sigma: float = 0.25, **layout: Any
) -> Drawn:
    """A centred Gaussian; `sigma` is its standard deviation as a share of each side."""

    def draw(maps: Tensor, _: Tensor) -> Tensor:
        heat = maps.new_ones(1, 1)
        for size in maps.shape[2:]:
            places = (torch.arange(size, device=maps.device) + 0.5) / size - 0.5
            heat = heat.unsqueeze(-1) * torch.exp(-(places**2) / (2 * sigma**2)).to(maps.dtype)
        return heat.repeat(len(maps), *[1] * (maps.ndim - 1))

    return Drawn(forward_func, layer, draw, **layout)


def sum_of_maps(forward_func: Callable[..., Any], layer: nn.Module, **layout: Any) -> Drawn:
    """The sum of all maps, the same for every class."""
    return Drawn(forward_func, layer, _total, **layout)
