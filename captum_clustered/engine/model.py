"""The model as the stages use it: with its arguments, borrowed, and given back as it was.

Private parts of PyTorch: `OptimizedModule._orig_mod`, the model inside a compiled one.
"""

from __future__ import annotations

import operator
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BUDGET", "Model", "ModuleStates", "as_model", "borrowed", "chunks", "fitting"]

BUDGET = {"cpu": 28 * 2**20, "other": 256 * 2**20}
"""Bytes of copies that are held at a time, where the caller does not say how many, by device.

On the CPU, memory that is much larger is fetched from the system and zeroed anew for each chunk.
"""

_one_at_a_time = threading.RLock()
"""Held while a model is borrowed, because its modules hand out recorded values meanwhile."""


@dataclass(frozen=True)
class Model:
    """The forward function with its arguments for `n` examples.

    Attributes:
        forward_func (callable): The model, or a function that runs it.
        args (tuple): All its arguments.
        n (int): The number of examples.
        overwrites (bool): Whether it may write into its arguments. If so, each pass gets copies.
    """

    forward_func: Callable[..., Any]
    args: tuple[Any, ...]
    n: int
    overwrites: bool = True

    def fresh(self) -> tuple[Any, ...]:
        """The arguments with the values that the caller passed."""
        if not self.overwrites:
            return self.args
        return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)

    def copies(
        self, times: int, repeated: Iterable[int], instead: Mapping[int, Tensor] | None = None
    ) -> Any:
        """Runs the model on a batch that holds `times` copies of the batch.

        Args:
            times (int): Number of copies.
            repeated (iterable): Positions of the arguments that have one row for each example.
            instead (mapping, optional): What replaces the argument at a position:
                `(times * N, ...)`, the examples of one copy after those of the one before.
                Default: None
        """
        args = list(self.fresh())
        for place in repeated if times > 1 else ():
            args[place] = args[place].repeat(times, *[1] * (args[place].ndim - 1))
        for place, values in (instead or {}).items():
            args[place] = values
        return self.forward_func(*args)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors among the arguments."""
        return sum(arg.nbytes for arg in self.args if isinstance(arg, Tensor))


def as_model(forward_func: Callable[..., Any], inputs: Any, additional: Any) -> Model:
    """Checks what a caller passed as model and inputs.

    Args:
        forward_func (callable): The model, or a function that runs it.
        inputs (Tensor or tuple[Tensor, ...]): Its inputs; their first axis is the batch.
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
            "Pass other arguments as `additional_forward_args`, and a list as a tuple."
        )
    if inputs[0].ndim == 0 or not len(inputs[0]):
        raise ValueError(
            "`inputs` must have at least one example along the first axis; got shape "
            f"{tuple(inputs[0].shape)}. Add the batch axis, for example with `.unsqueeze(0)`."
        )
    if additional is None:
        additional = ()
    elif not isinstance(additional, tuple):
        additional = (additional,)
    return Model(_unwrap(forward_func), (*inputs, *additional), len(inputs[0]))


def _unwrap(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The model inside the wrappers that spread it over devices or compile it."""
    while True:
        if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            forward_func = forward_func.module
        elif hasattr(forward_func, "_orig_mod"):  # torch.compile
            forward_func = forward_func._orig_mod
        else:
            return forward_func


class ModuleStates:
    """The attributes that the modules had before they ran; on exit they get them back.

    A module may keep a tensor of its last call, and one of a replay is of no use to the caller. The
    buffers of modules in training mode are kept too, because batch norm writes into its own.
    """

    def __init__(self) -> None:
        self.attributes: dict[nn.Module, dict[str, Any]] = {}
        self.buffers: list[tuple[Tensor, Tensor]] = []

    def remember(self, module: nn.Module) -> None:
        """Keeps the state of a module when it is seen for the first time."""
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
    """Gives back the model's state and torch's random state as they were."""
    with ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # compiled parts run as they are written
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", r"Using `torch.compile\(module\)` when there are global"
            )
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        stack.enter_context(torch.random.fork_rng(devices))
        yield stack.enter_context(ModuleStates())


def fitting(nbytes: int, device: torch.device) -> int:
    """How many copies of that many bytes fit the budget, at least one."""
    return max(1, BUDGET.get(device.type, BUDGET["other"]) // max(1, nbytes))


def chunks(groups: range, size: int) -> list[range]:
    """Splits the groups into ranges of at most `size`."""
    return [groups[start : start + size] for start in range(0, len(groups), size)]
