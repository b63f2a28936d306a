"""Feature maps and heat maps: the axes of a layer's output, the weighted sum, the range [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "build",
    "enlarge",
    "normalize",
    "scaled",
    "swin_reshape_transform",
    "to_maps",
    "vit_reshape_transform",
]

ReshapeTransform = Callable[[Tensor], Tensor]

_CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
_SIZED = (nn.Linear, nn.LayerNorm, nn.Embedding, *_CONVOLUTIONS, *_NORMS)


def to_maps(
    activations: Tensor,
    channel_dim: int,
    reshape_transform: ReshapeTransform | None,
    layer: nn.Module,
    input_ndim: int,
) -> Tensor:
    """Brings a layer's activations into the form `(N, C, *spatial)`.

    Args:
        activations (Tensor): The layer's output, 2 to 5 axes, the batch first.
        channel_dim (int): The axis of the maps, not negative.
        reshape_transform (callable or None): Turns the output into `(N, C, *spatial)`, for layers
            where moving an axis is not enough.
        layer (nn.Module): The layer; its modules tell whether the last axis holds the features.
        input_ndim (int): Number of axes of the model's input.

    Returns:
        *Tensor*: The maps.

    Raises:
        ValueError: If `channel_dim` cannot be the axis of the maps, or the axes of the image are
            lost and there is no `reshape_transform`.
    """
    shape = tuple(activations.shape)
    if reshape_transform is not None:
        maps = reshape_transform(activations)
        if maps.ndim < 2 or maps.shape[:2] != (shape[0], shape[channel_dim]):
            raise ValueError(
                f"`reshape_transform` must return (N, C, *spatial) with N={shape[0]} and "
                f"C={shape[channel_dim]}, the size of axis `channel_dim`={channel_dim} of the "
                f"layer's output {shape}; got {tuple(maps.shape)}. Tokens usually need "
                "channel_dim=-1."
            )
        return maps
    if channel_dim == 1 and _features_are_last(layer, shape):
        raise ValueError(
            f"`channel_dim` must be the axis of the feature maps; got 1 for a layer whose output "
            f"{shape} has its features on the last axis. Pass channel_dim=-1, and for image tokens "
            "a `reshape_transform`, such as captum_clustered.heatmap.vit_reshape_transform."
        )
    if len(shape) == 3 and input_ndim >= 4:
        raise ValueError(
            f"`reshape_transform` is needed for a layer whose output {shape} has lost the axes of "
            f"the image; got None. Pass one that returns (N, C, height, width), such as "
            "captum_clustered.heatmap.vit_reshape_transform, with channel_dim=-1."
        )
    return activations.movedim(channel_dim, 1)


def _features_are_last(layer: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether the sizes of the layer's own modules say that its output is channels-last."""
    if len(shape) < 3 or shape[1] == shape[-1]:
        return False
    first: set[Any] = set()
    last: set[Any] = set()
    for module in layer.modules():
        if not isinstance(module, _SIZED):  # as most
            continue
        if isinstance(module, nn.Linear):
            last.add(module.out_features)
        elif isinstance(module, nn.LayerNorm):
            last.add(module.normalized_shape[-1])
        elif isinstance(module, nn.Embedding):
            last.add(module.embedding_dim)
        elif isinstance(module, _CONVOLUTIONS):
            first.add(module.out_channels)
        elif isinstance(module, _NORMS):
            first.add(module.num_features)
    return shape[-1] in last and shape[1] not in first


def vit_reshape_transform(
    tokens: Tensor,
    height: int | None = None,
    width: int | None = None,
    prefix_tokens: int = 1,
    frames: int | None = None,
) -> Tensor:
    """Turns the tokens of a vision transformer into maps and drops class and register tokens.

    Args:
        tokens (Tensor): `(N, T, C)`: first the prefix tokens, then the patches row by row; for a
            video frame by frame.
        height (int, optional): Rows of patches. Default: None (a square grid)
        width (int, optional): Columns of patches. Default: None (a square grid)
        prefix_tokens (int, optional): Number of tokens before the patches. Default: 1
        frames (int, optional): Number of frames, each a grid of patches, for a video.
            Default: None (an image)

    Returns:
        *Tensor*: `(N, C, height, width)`, for a video `(N, C, frames, height, width)`.

    Raises:
        ValueError: If `tokens` has not three axes, or its length does not fit the grid.

    Example::

        >>> vit_reshape_transform(torch.zeros(2, 197, 768)).shape
        torch.Size([2, 768, 14, 14])
        >>> vit_reshape_transform(torch.zeros(2, 393, 768), frames=8).shape
        torch.Size([2, 768, 8, 7, 7])
    """
    if tokens.ndim != 3:
        raise ValueError(
            f"`tokens` must have shape (N, T, C); got {tuple(tokens.shape)}. Leave "
            "`reshape_transform` out for a layer that keeps the axes of the image."
        )
    patches = tokens[:, prefix_tokens:]  # (N, frames * height * width, C)
    several = frames or 1
    count = patches.shape[1] // several
    if height is None and width is None:
        height = width = math.isqrt(count)
    elif height is None or width is None:
        height, width = height or count // (width or 1), width or count // (height or 1)
    if several * height * width != patches.shape[1]:
        grid = f"{height} x {width}" if frames is None else f"{frames} x {height} x {width}"
        raise ValueError(
            f"`tokens` must be {prefix_tokens} prefix tokens and a grid of {grid} "
            f"patches; got {tokens.shape[1]} tokens. Pass `height`, `width` and `prefix_tokens` of "
            "the model (and `frames` for a video), for example with functools.partial."
        )
    size = (height, width) if frames is None else (frames, height, width)
    return patches.transpose(1, 2).reshape(len(tokens), -1, *size)


def swin_reshape_transform(
    tokens: Tensor, height: int | None = None, width: int | None = None
) -> Tensor:
    """Turns the output of a Swin stage, whose channels are last, into maps.

    Args:
        tokens (Tensor): `(N, height, width, C)`, or `(N, T, C)` without prefix tokens.
        height (int, optional): Rows, for `(N, T, C)`. Default: None (a square grid)
        width (int, optional): Columns, for `(N, T, C)`. Default: None (a square grid)

    Returns:
        *Tensor*: `(N, C, height, width)`.

    Raises:
        ValueError: If the number of tokens does not fit the grid.

    Example::

        >>> swin_reshape_transform(torch.zeros(2, 7, 7, 768)).shape
        torch.Size([2, 768, 7, 7])
    """
    if tokens.ndim == 4:
        return tokens.movedim(3, 1)
    return vit_reshape_transform(tokens, height, width, prefix_tokens=0)


def build(maps: Tensor, weights: Tensor, relu: bool, sum_maps: bool) -> Tensor:
    r"""The heat map :math:`M = \mathrm{ReLU}(\sum_k w_k A_k)`.

    Args:
        maps (Tensor): `(N, C, *spatial)`.
        weights (Tensor): `(N, C)`.
        relu (bool): Whether negative values become zero.
        sum_maps (bool): Whether the weighted maps are summed; otherwise all are returned.

    Returns:
        *Tensor*: `(N, 1, *spatial)`, or `(N, C, *spatial)` without the sum, in the maps' dtype.

    Example::

        >>> maps = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
        >>> build(maps, torch.tensor([[1.0, -1.0]]), relu=True, sum_maps=True)
        tensor([[[0., 2.]]])
    """
    if sum_maps:
        flat = maps.to(weights.dtype).reshape(*maps.shape[:2], -1)  # (N, C, D)
        heat = torch.bmm(weights.unsqueeze(1), flat).reshape(len(maps), 1, *maps.shape[2:])
    else:
        heat = maps * weights.reshape(*weights.shape, *[1] * (maps.ndim - 2))
    return (heat.relu() if relu else heat).to(maps.dtype)


def enlarge(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resizes maps linearly along each axis, with ``align_corners=False``, as Captum does.

    Args:
        maps (Tensor): `(N, C, *spatial)` with one to three spatial axes.
        size (sequence of int): The new spatial size.

    Returns:
        *Tensor*: `(N, C, *size)`.

    Example::

        >>> enlarge(torch.tensor([[[0.0, 4.0]]]), (4,))
        tensor([[[0., 1., 3., 4.]]])
    """
    linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)]
    return F.interpolate(maps, tuple(size), mode=linear, align_corners=False)


def normalize(heatmaps: Tensor) -> Tensor:
    """Scales each example's heat map to [0, 1] by its minimum and maximum.

    Args:
        heatmaps (Tensor): `(N, ...)`, any range, floating point.

    Returns:
        *Tensor*: Same shape, in [0, 1]. A flat map becomes all zeros; a map with a NaN stays NaN.

    Example::

        >>> normalize(torch.tensor([[1.0, 3.0, 2.0], [5.0, 5.0, 5.0]]))
        tensor([[0.0000, 1.0000, 0.5000],
                [0.0000, 0.0000, 0.0000]])
    """
    flat = heatmaps.flatten(1)  # (N, D)
    low = flat.amin(1, keepdim=True)
    span = flat.amax(1, keepdim=True) - low
    return ((flat - low) / torch.where(span == 0, 1, span)).view_as(heatmaps)


def scaled(grid: Tensor, size: Sequence[int]) -> Tensor:
    """One map as a picture needs it: enlarged to a size, then scaled to [0, 1].

    Args:
        grid (Tensor): `(*spatial)` with one to three axes, any range.
        size (sequence of int): The spatial size that is needed.

    Returns:
        *Tensor*: `(*size)`, float32 in [0, 1], on the CPU, without gradient. A flat map becomes all
        zeros; a map with a NaN becomes all NaN.

    Example::

        >>> scaled(torch.tensor([0.0, 4.0]), (4,))
        tensor([0.0000, 0.2500, 0.7500, 1.0000])
    """
    maps = grid.detach().float().cpu()[None, None]  # (1, 1, *spatial)
    return normalize(enlarge(maps, size))[0, 0]
