"""The other CAM libraries behind two functions, which use them as their documentation shows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Reshape", "Wanted", "output_of_input", "pytorch_grad_cam_map", "torchcam_map"]

Reshape = Callable[[Tensor], Tensor] | None


@dataclass(frozen=True, eq=False)
class Wanted:
    """What is to be explained.

    Attributes:
        model (nn.Module): The model.
        layer (nn.Module): The layer.
        inputs (Tensor): `(N, ...)`.
        classes (sequence of int): A class for each input.
        reshape (callable or None): Turns the layer's output into maps `(N, C, *spatial)`.
    """

    model: nn.Module
    layer: nn.Module
    inputs: Tensor
    classes: Sequence[int]
    reshape: Reshape = None


def torchcam_map(kind: str, wanted: Wanted) -> Tensor:
    """The map of a class of `torchcam.methods`, not normalised.

    Args:
        kind (str): Name of the class.
        wanted (Wanted): What is to be explained.

    Returns:
        *Tensor*: `(N, 1, *spatial)` in the layer's resolution.
    """
    from torchcam import methods

    by_gradient = kind in ("GradCAM", "GradCAMpp", "LayerCAM")
    graph = contextlib.nullcontext() if by_gradient else torch.inference_mode()
    make = partial(getattr(methods, kind), wanted.model, wanted.layer)
    shape = tuple(wanted.inputs.shape[1:])
    with make(input_shape=shape, reshape_transform=wanted.reshape) as cam, graph:
        scores = wanted.model(wanted.inputs)
        heat = cam(class_idx=list(wanted.classes), scores=scores, normalized=False)[0]
    return heat.unsqueeze(1)


def pytorch_grad_cam_map(kind: str, wanted: Wanted, **settings: Any) -> Tensor:
    """The map of a class of `pytorch_grad_cam`, which enlarges it and scales it to [0, 1].

    Args:
        kind (str): Name of the class.
        wanted (Wanted): What is to be explained.
        **settings (Any): Further arguments of the class.

    Returns:
        *Tensor*: `(N, 1, *spatial)` in the inputs' resolution.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(index)) for index in wanted.classes]
    make = partial(getattr(pytorch_grad_cam, kind), wanted.model, [wanted.layer])
    # without its progress bar
    with (
        contextlib.redirect_stderr(io.StringIO()),
        make(reshape_transform=wanted.reshape, **settings) as cam,
    ):
        heat = cam(wanted.inputs, targets)
    return torch.as_tensor(heat).unsqueeze(1)


@contextlib.contextmanager
def output_of_input(model: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """A layer whose output is the input of another one, since these libraries read outputs only.

    Example::

        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> with output_of_input(model, model[1]) as before:
        ...     print(before, model[1][0] is before)
        Identity() True
    """
    name = next(name for name, module in model.named_modules() if module is layer)
    parent = model.get_submodule(name.rpartition(".")[0])
    own = name.rpartition(".")[2]
    before = nn.Identity()
    setattr(parent, own, nn.Sequential(before, layer))
    try:
        yield before
    finally:
        setattr(parent, own, layer)
