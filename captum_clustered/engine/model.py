"""The model as the stages use it: with its arguments, borrowed, and given back as it was."""

from __future__ import annotations

import itertools
import operator
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Model", "ModuleStates", "as_model", "borrowed"]

_one_at_a_time = threading.RLock()
"""Held while a model is borrowed: its modules hand out recorded values meanwhile."""


@dataclass(frozen=True)
class Model:
    """The forward function with its arguments for `n` examples.

    Attributes:
        forward_func (callable): The model, or what runs it.
        args (tuple): All its arguments.
        n (int): The number of examples.
        overwrites (bool): Whether it may write into its arguments: then it gets copies, each time.
    """

    forward_func: Callable[..., Any]
    args: tuple[Any, ...]
    n: int
    overwrites: bool = True

    def fresh(self) -> tuple[Any, ...]:
        """The arguments, as they were passed."""
        if not self.overwrites:
            return self.args
        return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)

    def copies(self, times: int, instead: dict[int, Tensor] | None = None) -> Any:
        """Runs the model on `times` copies of the batch, one after the other.

        Args:
            times (int): Number of copies.
            instead (dict[int, Tensor], optional): Arguments by their place, with a row for each
                example of each copy. Default: None
        """
        instead = instead or {}

        def repeat(place: int, arg: Any) -> Any:
            if place in instead:
                return instead[place]
            if not isinstance(arg, Tensor) or not arg.ndim or len(arg) != self.n:
                return arg
            return arg.repeat(times, *[1] * (arg.ndim - 1))

        return self.forward_func(*itertools.starmap(repeat, enumerate(self.fresh())))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors among the arguments."""
        return sum(arg.nbytes for arg in self.args if isinstance(arg, Tensor))


def as_model(forward_func: Callable[..., Any], inputs: Any, additional: Any) -> Model:
    """Checks what a caller passed as model and inputs.

    Args:
        forward_func (callable): The model, or a function that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Its inputs, the batch first.
        additional (Any): Further arguments, one or a tuple, or None.

    Returns:
        *Model*: The model on one device, with all its arguments.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If there is no example.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    wrong = [type(item).__name__ for item in inputs if not isinstance(item, Tensor)]
    if wrong or not inputs:
        raise TypeError(
            f"`inputs` must be a tensor or a tuple of tensors; got {', '.join(wrong) or '()'}. "
            "Pass what is no tensor as `additional_forward_args`, and a list as a tuple."
        )
    if inputs[0].ndim == 0 or not len(inputs[0]):
        raise ValueError(
            "`inputs` must have at least one example along the first axis; got shape "
            f"{tuple(inputs[0].shape)}."
        )
    if additional is None:
        additional = ()
    elif not isinstance(additional, tuple):
        additional = (additional,)
    return Model(_unwrap(forward_func), (*inputs, *additional), len(inputs[0]))


def _unwrap(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The model itself, without what spreads it over devices or compiles it."""
    while True:
        if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            forward_func = forward_func.module
        elif hasattr(forward_func, "_orig_mod"):  # torch.compile
            forward_func = forward_func._orig_mod
        else:
            return forward_func


class ModuleStates:
    """Attributes of the modules that ran, as they were before, to be given back on exit.

    A module may keep a tensor of its last call; one of a replay would be of no use to anybody. Of
    modules in training mode the buffers are kept as well, since batch norm writes into its own.
    """

    def __init__(self) -> None:
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def remember(self, module: nn.Module) -> None:
        """Notes the state of a module, the first time that it is seen."""
        if module not in self.attributes:
            self.attributes[module] = dict(module.__dict__)
            if module.training:
                own = module.buffers(recurse=False)
                self.buffers += [(buffer, buffer.clone()) for buffer in own]

    def __enter__(self) -> ModuleStates:
        return self

    def __exit__(self, *_: object) -> None:
        for module, before in self.attributes.items():
            now = module.__dict__
            if len(now) == len(before) and all(map(operator.is_, now.values(), before.values())):
                continue
            for name in now.keys() - before.keys():
                del now[name]
            for name, value in before.items():
                if now.get(name, self) is not value:
                    now[name] = value
        for buffer, value in self.buffers:
            buffer.copy_(value)


@contextmanager
def borrowed() -> Iterator[ModuleStates]:
    """The model's state, and torch's random state, are given back as they were."""
    with ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # something may be compiled: run it as it is written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", r"Using `torch.compile\(module\)` when there are global"
            )
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices))
        yield stack.enter_context(ModuleStates())
