"""The other CAM libraries behind two functions, which use them as their documentation shows."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Reshape",
    "Wanted",
    "output_of_input",
    "pytorch_grad_cam_map",
    "quantus_pixel_flipping",
    "torchcam_insertion_and_deletion",
    "torchcam_map",
]

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


class _Given:
    """A map that is known already, in the form in which torchcam's metrics ask for one."""

    def __init__(self, model: nn.Module, heat: Tensor) -> None:
        self.model = model
        self.heat = heat

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        return [self.heat.squeeze(1)]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def torchcam_insertion_and_deletion(
    model: nn.Module, inputs: Tensor, target: int, heat: Tensor, steps: int
) -> list[float]:
    """The areas of `torchcam.metrics.DeletionInsertionMetric` in percent, insertion first.

    Args:
        model (nn.Module): The model.
        inputs (Tensor): `(N, C, H, W)`.
        target (int): The class.
        heat (Tensor): `(N, 1, H, W)`.
        steps (int): Steps of each curve.
    """
    from torchcam.metrics import DeletionInsertionMetric

    softmax = partial(torch.softmax, dim=1)
    metric = DeletionInsertionMetric(_Given(model, heat), softmax, steps=steps)
    metric.update(inputs, target)
    found = metric.summary()
    return [100 * found["insertion_auc"], 100 * found["deletion_auc"]]


def quantus_pixel_flipping(
    model: nn.Module, inputs: Tensor, target: int, heat: Tensor, values: int
) -> Tensor:
    """The scores of Quantus' `PixelFlipping`, `(N, steps)`, with zero in place of what is gone.

    Args:
        model (nn.Module): The model.
        inputs (Tensor): `(N, C, H, W)`.
        target (int): The class.
        heat (Tensor): `(N, 1, H, W)`.
        values (int): Values that change at a time; a pixel has one for each channel. Quantus wants
            a divisor of the number of pixels.
    """
    import quantus

    metric = quantus.PixelFlipping(
        features_in_step=values,
        abs=False,
        normalise=False,
        perturb_baseline=0.0,
        disable_warnings=True,
    )
    scores = metric(
        model=model,
        x_batch=inputs.cpu().numpy(),
        y_batch=np.full(len(inputs), target),
        a_batch=heat.cpu().numpy(),
        softmax=True,
        channel_first=True,
        device=str(inputs.device),
        batch_size=len(inputs),
    )
    return torch.tensor(scores, dtype=torch.float64)


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
