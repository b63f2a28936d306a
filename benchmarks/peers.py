"""The other CAM libraries, used as their documentation shows, behind two functions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["output_of_input", "pytorch_grad_cam_map", "torchcam_map"]

Reshape = Callable[[Tensor], Tensor] | None


def torchcam_map(
    kind: str,
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    classes: Sequence[int],
    reshape: Reshape = None,
) -> Tensor:
    """The map of a class of `torchcam.methods`, not normalised.

    Args:
        kind (str): Name of the class.
        model (nn.Module): The model.
        layer (nn.Module): The layer.
        inputs (Tensor): `(N, ...)`.
        classes (sequence of int): One for each input.
        reshape (callable, optional): Makes maps of what the layer gives. Default: None

    Returns:
        *Tensor*: `(N, 1, *spatial)` in the layer's resolution.
    """
    from torchcam import methods

    graph = contextlib.nullcontext() if kind == "GradCAM" else torch.inference_mode()
    make = getattr(methods, kind)
    shape = tuple(inputs.shape[1:])
    with make(model, layer, input_shape=shape, reshape_transform=reshape) as cam, graph:
        scores = model(inputs)
        heat = cam(class_idx=list(classes), scores=scores, normalized=False)[0]
    return heat.unsqueeze(1)


def pytorch_grad_cam_map(
    kind: str,
    model: nn.Module,
    layer: nn.Module,
    inputs: Tensor,
    classes: Sequence[int],
    reshape: Reshape = None,
    **settings: Any,
) -> Tensor:
    """The map of a class of `pytorch_grad_cam`, which it enlarges and scales to [0, 1].

    Args:
        kind (str): Name of the class.
        model (nn.Module): The model.
        layer (nn.Module): The layer.
        inputs (Tensor): `(N, ...)`.
        classes (sequence of int): One for each input.
        reshape (callable, optional): Makes maps of what the layer gives. Default: None
        **settings (Any): Of the class.

    Returns:
        *Tensor*: `(N, 1, *spatial)` in the inputs' resolution.
    """
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    targets = [ClassifierOutputTarget(int(index)) for index in classes]
    make = getattr(pytorch_grad_cam, kind)
    # its progress bar is not what is measured
    with (
        contextlib.redirect_stderr(io.StringIO()),
        make(model, [layer], reshape_transform=reshape, **settings) as cam,
    ):
        heat = cam(inputs, targets)
    return torch.as_tensor(heat).unsqueeze(1)


@contextlib.contextmanager
def output_of_input(model: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """A layer whose output is the input of another one: these libraries read outputs only.

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
