"""How many images a pass of the whole model takes, and how they lie in memory.

On the CPU a convolution of oneDNN reads and writes several images channels-last without laying them
out anew, and what a layer returns should be no larger than the memory that the process holds
anyway: larger memory is fetched from the system, and zeroed, in each call. A model whose answers
hang on its axes alone notices neither, but for rounding. Whether it does is found out: beside
images in the usual layout by :class:`Layout`, and where there are none by :class:`Overheard`.

Private part of PyTorch: `torch._C`, for `DisableTorchFunction`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

__all__ = [
    "BUDGET",
    "Layout",
    "LayoutMatters",
    "Overheard",
    "channels_last",
    "fitting",
    "fitting_inputs",
    "unheard",
]

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
    dense = images.layout is torch.strided and not images.is_nested
    pays = dense and images.ndim == 4 and len(images) > 1 and images.dtype in _PRECISIONS
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


class LayoutMatters(BaseException):
    """Stops a model; not an Exception, so that no model takes it for its own."""


_TELLING = frozenset(
    {
        *("stride", "is_contiguous", "is_non_overlapping_and_dense", "dim_order"),
        *("data_ptr", "const_data_ptr", "untyped_storage", "storage", "storage_offset", "set_"),
        *("as_strided", "as_strided_", "as_strided_copy", "as_strided_scatter"),
        *("resize_", "resize_as_", "numpy", "__array__", "__dlpack__"),
        *("rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "normal_"),
        *("uniform_", "random_", "exponential_", "geometric_", "cauchy_", "log_normal_"),
    }
)
"""Functions that tell how a tensor lies in memory, or read or fill memory in its order."""

_VIEW_OR_COPY = frozenset({"reshape", "reshape_as", "flatten", "ravel", "contiguous"})
"""Functions that return the same memory or other memory, as the layout wants it; with a
`memory_format`, others do as well."""


class Overheard(TorchFunctionMode):
    """Stops a model, by :class:`LayoutMatters`, whose answer may hang on how tensors lie in memory.

    What the model calls on tensors is listened to: what asks for the layout, and writes into what
    is a view in one layout and a copy in another. TorchScript is not heard, see
    `captum_clustered.engine.capture`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.views_or_copies: set[StorageWeakRef | None] = set()

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").partition(".")[0]
        if name in _TELLING or (self.views_or_copies and self._writes(name, args, kwargs)):
            raise LayoutMatters
        output = func(*args, **kwargs)
        if name in _VIEW_OR_COPY or "memory_format" in kwargs:
            self.views_or_copies |= {_memory(args[0]), _memory(output)}
        return output

    def _writes(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call writes into what may be a view or a copy."""
        in_place = name.endswith("_") if name[:2] != "__" else name[2] in "is"  # __i…__, __set…__
        written = args[0] if in_place or kwargs.get("inplace") else kwargs.get("out")
        return isinstance(written, Tensor) and _memory(written) in self.views_or_copies


def unheard(function: Callable[..., T]) -> Callable[..., T]:
    """A function that is none of the model's, so that nobody listens to what it calls."""

    @functools.wraps(function)
    def apart(*args: Any, **kwargs: Any) -> T:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return apart


def _memory(tensor: Tensor) -> StorageWeakRef | None:
    return StorageWeakRef(tensor.untyped_storage()) if tensor.layout is torch.strided else None
