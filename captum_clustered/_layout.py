"""How many images a pass of the whole model takes, and how they lie in memory.

On the CPU a convolution of oneDNN reads and writes several images channels-last without laying them
out anew, and what a layer returns should be no larger than the memory that the process holds
anyway: larger memory is fetched from the system, and zeroed, in each call. A model whose answers
hang on its axes alone notices neither, but for rounding; whether it does is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["BUDGET", "Layout", "channels_last", "fitting", "fitting_inputs"]

BUDGET = {"cpu": 28 * 2**20, "other": 256 * 2**20}
"""Bytes of copies that are held at a time, where the caller does not say how many, by device.

On the CPU, memory that is much larger is fetched from the system and zeroed anew for each chunk.
"""

_GROWTH = 8
"""How many times its size an input of a whole model is taken to reach inside: by this budget, six
images of 224 x 224 pixels go through it at a time on the CPU."""

T = TypeVar("T")

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


def fitting(nbytes: int, device: torch.device) -> int:
    """How many copies of that many bytes fit the budget, at least one."""
    return max(1, BUDGET.get(device.type, BUDGET["other"]) // max(1, nbytes))


def fitting_inputs(nbytes: int, device: torch.device) -> int:
    """How many inputs of that many bytes go through a whole model at a time, at least one."""
    return fitting(_GROWTH * nbytes, device)


def channels_last(images: Tensor) -> Tensor:
    """The images laid out channels-last, where that pays; otherwise as they are.

    A single image costs what it saves, because oneDNN lays the weights out anew in each call.
    Double precision is computed without oneDNN, and is slower in this layout.
    """
    pays = images.ndim == 4 and len(images) > 1 and images.dtype in _PRECISIONS
    if pays and images.device.type == "cpu" and torch.backends.mkldnn.is_available():
        return images.contiguous(memory_format=torch.channels_last)
    return images


class Layout:
    """Runs a model on images in the layout that it computes fastest, as long as it takes them so.

    What a model answers must not hang on the layout. Where it reads the memory of its input in
    order, as by `as_strided`, it does. So images are laid out only beside one whose answer in the
    usual layout is known; see :meth:`checked`.
    """

    def __init__(self) -> None:
        self.taken = True
        self._used = False

    def __call__(self, run: Callable[[Tensor], T], images: Tensor) -> T:
        """What `run` returns for the images; it may be called twice, with the same values.

        Args:
            run (callable): Runs the model on images.
            images (Tensor): `(M, …)`.
        """
        laid = channels_last(images) if self.taken else images
        if laid is images:
            return run(images)
        self._used = True
        with suppress(Exception):  # a model may refuse a layout with an error of its own
            return run(laid)
        output = run(images)  # raises again where the layout is not the reason
        self.taken = False
        return output

    def checked(self, check: Callable[[], T], failed: Callable[[T], bool]) -> T:
        """What a check returns; where it fails, it is made again in the usual layout.

        Args:
            check (callable): Compares images among others, which may be laid out, with the same
                images in the usual layout.
            failed (callable): Whether what it returned speaks against the model.
        """
        found = check()
        if failed(found) and self.taken and self._used:
            self.taken = False
            found = check()
        return found
