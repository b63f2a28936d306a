"""The networks with random weights, on which time does not depend; their layers and inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.layers import TargetLayer, find_layer
from captum_clustered.models import load

__all__ = [
    "NETWORKS",
    "Case",
    "Network",
    "build",
    "build_case",
    "cases_of",
    "check_device",
    "described",
    "output_of",
    "settle",
    "spread_last_layer",
]


@dataclass(frozen=True)
class Network:
    """A network that is measured.

    Attributes:
        name (str): What the tables call it.
        make (callable): Makes it with random weights.
        shape (tuple[int, ...]): An input's shape without the batch.
        layers (tuple[str, ...]): Layers to explain, the last one first.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    layers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Case:
    """A network with inputs, a layer and a class.

    Attributes:
        model (nn.Module): In evaluation mode.
        inputs (Tensor): `(N, ...)`.
        target (int): The class whose score is explained. It is the class with the highest mean
            score, since some methods invert the map of a negative score.
        found (TargetLayer): The layer and how its output is read.
        maps (int): Number of the layer's maps.
    """

    model: nn.Module
    inputs: Tensor
    target: int
    found: TargetLayer
    maps: int

    @property
    def layer(self) -> nn.Module:
        """The layer."""
        return self.found.layer

    @property
    def channels_first(self) -> bool:
        """Whether the maps lie on axis 1."""
        return self.found.channel_dim == 1

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments by which an explainer reads the layer's output."""
        return {
            "channel_dim": self.found.channel_dim,
            "reshape_transform": self.found.reshape_transform,
        }

    def explainer(self, **settings: Any) -> ClusteredLayerAblation:
        """This package's explainer for the layer, with these settings."""
        return ClusteredLayerAblation(self.model, self.layer, **self.settings, **settings)


class Tiny(nn.Module):
    """A very small network, to try the benchmarks out."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, channels, 3, padding=1), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.fc = nn.Linear(4 * channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        return self.fc(self.pool(self.body(self.stem(x))).flatten(1).tanh())


def _vision(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from torchvision.models import get_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some say that their initialisation is slow
            return get_model(name, weights=None)

    return make


def _lite0() -> nn.Module:
    return load("efficientnet-lite0", weights="none").model


_IMAGE = (3, 224, 224)

NETWORKS: Mapping[str, Network] = MappingProxyType(
    {
        network.name: network
        for network in (
            Network("resnet18", _vision("resnet18"), _IMAGE, ("layer4", "layer3")),
            Network("resnet50", _vision("resnet50"), _IMAGE, ("layer4", "layer3")),
            Network("vgg16", _vision("vgg16"), _IMAGE, ("features", "features.22")),
            # what follows `features` is a ReLU that works in place
            Network(
                "densenet121",
                _vision("densenet121"),
                _IMAGE,
                ("features.denseblock4", "features.denseblock3"),
            ),
            Network(
                "mobilenet_v3_large",
                _vision("mobilenet_v3_large"),
                _IMAGE,
                ("features", "features.15", "features.12"),
            ),
            Network("efficientnet-lite0", _lite0, _IMAGE, ("_bn1", "_blocks.10")),
            Network(
                "vit_b_16",
                _vision("vit_b_16"),
                _IMAGE,
                ("encoder.layers.encoder_layer_11.ln_1", "encoder.layers.encoder_layer_8.ln_1"),
            ),
            Network("r3d_18", _vision("r3d_18"), (3, 8, 112, 112), ("layer4", "layer3")),
            Network("tiny", Tiny, (3, 16, 16), ("body", "stem")),
        )
    }
)
"""The networks by name. ``tiny`` is there to try the benchmarks out and is in no table."""


def cases_of(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The cases that a user asked for, as ``network/layer/batch``.

    Args:
        names (sequence of str, optional): Networks, or first parts of cases such as
            ``resnet50/layer4``. All known cases if there are none. A network without a known case
            is measured at all its layers, with one and with two inputs.
        known (sequence of str): The cases of the run.

    Raises:
        ValueError: If a name is neither a network nor the first part of a known case.

    Example::

        >>> cases_of(["resnet50", "tiny"], ["resnet50/layer4/1", "vgg16/features/1"])
        ['resnet50/layer4/1', 'tiny/body/1', 'tiny/body/2', 'tiny/stem/1', 'tiny/stem/2']
    """
    if not names:
        return list(known)
    found: dict[str, None] = {}
    for name in names:
        own = [case for case in known if f"{case}/".startswith(f"{name}/")]
        if name in NETWORKS and not own:
            own = [f"{name}/{layer}/{batch}" for layer in NETWORKS[name].layers for batch in (1, 2)]
        if not own:
            raise ValueError(
                f"`networks` must be among {', '.join(NETWORKS)}, or the beginning of one of the "
                f"cases {', '.join(known)}; got {name}."
            )
        found.update(dict.fromkeys(own))
    return list(found)


def build_case(key: str, device: str = "cpu") -> Case:
    """The case of a key ``network/layer/batch``, see :func:`build`."""
    network, layer, batch = key.split("/")
    return build(network, layer, int(batch), device=device)


def described(key: str, case: Case) -> dict[str, Any]:
    """What the rows of a case begin with."""
    network, layer, batch = key.split("/")
    return {"network": network, "layer": layer, "batch": int(batch), "maps": case.maps}


def build(network: str, layer: str, batch: int, seed: int = 0, device: str = "cpu") -> Case:
    """Makes a case. The same arguments give the same case.

    Args:
        network (str): A key of :data:`NETWORKS`.
        layer (str): Name of a layer.
        batch (int): Number of inputs.
        seed (int, optional): Of the weights and the inputs. Default: 0
        device (str, optional): Where the model runs. Both are drawn on the CPU. Default: "cpu"

    Returns:
        *Case*: The case.

    Raises:
        ValueError: If there is no such network, layer or device.

    Example::

        >>> case = build("tiny", "body", 2)
        >>> case.inputs.shape, case.maps
        (torch.Size([2, 3, 16, 16]), 8)
    """
    if network not in NETWORKS:
        raise ValueError(f"`networks` must be among {', '.join(NETWORKS)}; got {network}.")
    check_device(device)
    chosen = NETWORKS[network]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = chosen.make().eval()
        spread_last_layer(model)
        settle(model, torch.rand(2, *chosen.shape))
        inputs = torch.rand(batch, *chosen.shape).to(device)
    model.to(device)
    found = find_layer(model, layer, inputs[:1])
    scores, maps = output_of(model, found.layer, inputs)
    target = int(scores.mean(0).argmax())
    return Case(model, inputs, target, found, maps.shape[found.channel_dim])


def check_device(device: str) -> None:
    """Raises a ValueError where torch cannot use a device.

    Example::

        >>> check_device("abacus")
        Traceback (most recent call last):
        ...
        ValueError: `device` must be one that torch can use here, such as cpu; got 'abacus'.
    """
    try:
        torch.zeros(1, device=device).add(1)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"`device` must be one that torch can use here, such as cpu; got {device!r}."
        ) from error


@torch.no_grad()
def output_of(model: nn.Module, layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What the model and what a layer of it returns for these inputs."""
    found: list[Tensor] = []
    with layer.register_forward_hook(lambda _, __, output: found.append(output)):
        scores = model(inputs)
    return scores, found[0]


def spread_last_layer(model: nn.Module) -> None:
    """Draws weights that start at zero. A transformer's head has such: all scores would be zero."""
    for parameter in model.parameters():
        if not parameter.any() and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)


@torch.no_grad()
def settle(model: nn.Module, inputs: Tensor) -> None:
    """Gives batch norm the statistics of some inputs. Without them, untrained maps may vanish."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        model(inputs)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
