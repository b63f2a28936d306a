"""The networks that stand in for TNet, each in three parts: what stays, what learns, what decides.

The paper takes TNet from earlier work that does not say enough to build it again; a VGG-19 that is
fine-tuned is the likely reading. Its weights for ImageNet come from torchvision, which fetches
them. EfficientNet-Lite0 has its weights in a package and trains on two cores. Its head is linear
after pooling, though, where the drop of a group is the sum of its members' drops; so there is a
third network, whose head is like VGG's: 512 maps of 14 x 14, then three fully connected layers.
A transformer, DINOv2's ViT-S, has signed maps of tokens; it is explained at the first norm of its
last block.

Each function without arguments makes its network for ``--model``, to be used with a checkpoint::

    captum-clustered evaluate --model benchmarks.ultrasound.networks:lite0 --layer features \
        --checkpoint ultrasound/lite0/fold3.safetensors \
        --data ultrasound/lite0/explained/fold3/main.csv
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered.models import Prepared, load, prepare

__all__ = ["CLASSES", "NETWORKS", "Network", "TNet", "dino", "lite0", "lite0_vgg", "vgg19"]

CLASSES = ("benign", "malignant")
"""The classes, in the order of the outputs."""

_LITE0 = ([127 / 255] * 3, [128 / 255] * 3)
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


class TNet(nn.Module):
    """A classifier of regions, `(N, 3, 224, 224)` to `(N, 2)`.

    Args:
        lower (nn.Module): Keeps the weights that it comes with.
        features (nn.Module): Learns; what it gives is what the head sees.
        head (nn.Module): Makes scores of the maps.
    """

    def __init__(self, lower: nn.Module, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.lower, self.features, self.head = lower, features, head

    def forward(self, images: Tensor) -> Tensor:
        """The scores of benign and malignant."""
        scores: Tensor = self.head(self.features(self.lower(images)))
        return scores

    def train(self, mode: bool = True) -> TNet:
        """As usual, but batch norm keeps the statistics of the many images it has seen before."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self


@dataclass(frozen=True)
class Network:
    """How a network is made.

    Attributes:
        name (str): What the tables call it.
        build (callable): ``build(pretrained)`` makes a :class:`TNet`.
        mean (list[float]): Of the normalisation.
        std (list[float]): Of the normalisation.
        linear_head (bool): Whether a group's drop is the sum of its members' drops.
        spec (str): Name of the function that makes it for ``--model``.
        layer (str): Whose output is explained. Default: ``"features"``, the maps of the last
            convolution behind its activation
        lower (str): Networks with the same word have the same lower part, and the same pictures.
            Default: the network's name
    """

    name: str
    build: Callable[[bool], TNet]
    mean: list[float]
    std: list[float]
    linear_head: bool
    spec: str
    layer: str = "features"
    lower: str = ""

    def transform(self) -> Any:
        """Turns a region, a PIL image, into the network's input."""
        from torchvision import transforms

        return transforms.Compose(
            [
                transforms.Resize((224, 224), transforms.InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize(self.mean, self.std),
            ]
        )

    def prepared(self, checkpoint: Path) -> Prepared:
        """The network with trained weights on the CPU, ready to be explained."""
        name = f"{__name__}:{self.spec}"
        return prepare(name, layer=self.layer, checkpoint=checkpoint, device="cpu")


def _lite0_blocks(pretrained: bool) -> tuple[list[nn.Module], list[nn.Module]]:
    net: Any = load("efficientnet-lite0", weights="default" if pretrained else "none").model
    lower = [net._conv_stem, net._bn0, nn.ReLU6(), *net._blocks[:11]]  # up to 112 maps of 14 x 14
    return lower, [*net._blocks[11:], net._conv_head, net._bn1, nn.ReLU6()]


def _lite0(pretrained: bool) -> TNet:
    lower, upper = _lite0_blocks(pretrained)
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, len(CLASSES))
    )
    return TNet(nn.Sequential(*lower), nn.Sequential(*upper), head)


def _lite0_vgg(pretrained: bool) -> TNet:
    lower, _ = _lite0_blocks(pretrained)
    features = nn.Sequential(
        nn.Conv2d(112, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 512, 3, padding=1), nn.ReLU()
    )
    head = nn.Sequential(
        nn.MaxPool2d(2),
        nn.Flatten(),
        *(nn.Linear(512 * 7 * 7, 256), nn.ReLU(), nn.Dropout(0.5)),
        *(nn.Linear(256, 128), nn.ReLU(), nn.Dropout(0.5)),
        nn.Linear(128, len(CLASSES)),
    )
    return TNet(nn.Sequential(*lower), features, head)


def _vgg19(pretrained: bool) -> TNet:
    from torchvision import models

    net: Any = models.vgg19(weights=models.VGG19_Weights.DEFAULT if pretrained else None)
    head = nn.Sequential(net.features[36], net.avgpool, nn.Flatten(), *net.classifier[:-1])
    head.append(nn.Linear(net.classifier[-1].in_features, len(CLASSES)))
    return TNet(net.features[:28], net.features[28:36], head)


class _Embedded(nn.Module):
    """From an image to tokens with their positions, `(N, 257, 384)`."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.patch_embed = vit.patch_embed
        self.cls_token = vit.cls_token
        self.pos_embed = vit.pos_embed

    def forward(self, images: Tensor) -> Tensor:
        """From `(N, 3, 224, 224)`."""
        patches = self.patch_embed(images)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed


class _Pooled(nn.Module):
    """The class token beside the mean of the patches: from `(N, T, width)` to `(N, 2 width)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """As DINOv2's own linear head has it."""
        return torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)


def _dino(pretrained: bool) -> TNet:
    from benchmarks.dino import network

    vit: Any = network(pretrained=pretrained)
    lower = nn.Sequential(_Embedded(vit), *vit.blocks[:-1])
    features = nn.Sequential(vit.blocks[-1], vit.norm)
    head = nn.Sequential(_Pooled(), nn.Dropout(0.2), nn.Linear(2 * 384, len(CLASSES)))
    return TNet(lower, features, head)


NETWORKS = MappingProxyType(
    {
        network.name: network
        for network in (
            Network("lite0", _lite0, *_LITE0, linear_head=True, spec="lite0", lower="lite0"),
            Network(
                "lite0-vgg", _lite0_vgg, *_LITE0, linear_head=False, spec="lite0_vgg", lower="lite0"
            ),
            Network("vgg19", _vgg19, *_IMAGENET, linear_head=False, spec="vgg19"),
            Network(
                "dino", _dino, *_IMAGENET, linear_head=False, spec="dino", layer="features.0.norm1"
            ),
        )
    }
)
"""The networks by name."""


def _made(name: str) -> tuple[nn.Module, Any]:
    network = NETWORKS[name]
    with torch.random.fork_rng():
        return network.build(False), network.transform()


def lite0() -> tuple[nn.Module, Any]:
    """EfficientNet-Lite0 with two classes, and its transform."""
    return _made("lite0")


def lite0_vgg() -> tuple[nn.Module, Any]:
    """EfficientNet-Lite0 up to its eleventh block with a head like VGG's, and its transform."""
    return _made("lite0-vgg")


def vgg19() -> tuple[nn.Module, Any]:
    """VGG-19 with two classes, and its transform."""
    return _made("vgg19")


def dino() -> tuple[nn.Module, Any]:
    """DINOv2's ViT-S/14 with two classes, and its transform."""
    return _made("dino")
