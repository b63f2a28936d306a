"""Time in paired rounds, and the number of images that a method sends through the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "DEAR",
    "FEWEST",
    "Counts",
    "Quartiles",
    "counted",
    "extrapolate",
    "quartiles",
    "rounds",
    "synchronize",
]

FEWEST = 3
"""The fewest rounds, however long they take: quartiles need as many."""

DEAR = 20.0
"""A method that takes more than so many times as long as the fastest has the fewest rounds."""


@dataclass(frozen=True)
class Quartiles:
    """The median with the quartiles around it."""

    median: float
    low: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of some values, by linear interpolation.

    Example::

        >>> quartiles([4.0, 1.0, 2.0, 3.0, 5.0])
        Quartiles(median=3.0, low=2.0, high=4.0)
    """
    return Quartiles(*np.quantile(values, (0.5, 0.25, 0.75)).tolist())


def synchronize() -> None:
    """Waits until the device has finished its queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rounds(
    methods: Mapping[str, Callable[[], object]],
    repeats: int,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each method. The methods take turns: A B C A B C.

    A disturbance that lasts longer than one method slows all methods of a round, so that it hardly
    changes the ratios within the round. A method that takes more than :data:`DEAR` times as long as
    the fastest drops out after :data:`FEWEST` rounds. There is no warm-up here: each method must
    have run before.

    Args:
        methods (mapping): Functions by name.
        repeats (int): The most rounds.
        budget (float): Seconds after which no further round begins, counted from the end of the
            first :data:`FEWEST` rounds.
        clock (callable, optional): Gives the time in seconds. Default: time.perf_counter

    Returns:
        *dict*: For each method its seconds, one per round, from the first on.

    Example::

        >>> order = []
        >>> found = rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 9.0)
        >>> "".join(order), len(found["a"])
        ('abab', 2)
    """
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    begin = clock()
    for number in range(repeats):
        if number == FEWEST:
            medians = {name: statistics.median(taken) for name, taken in seconds.items()}
            methods = {n: methods[n] for n in methods if medians[n] <= DEAR * min(medians.values())}
            begin = clock()
        elif number > FEWEST and clock() - begin > budget:
            break
        for name, method in methods.items():
            synchronize()
            start = clock()
            result = method()
            synchronize()  # the device may still be working
            seconds[name].append(clock() - start)
            del result
    return seconds


def extrapolate(seconds: float, forward: float, done: int, of: int, fixed: float) -> float:
    """Seconds of a whole method, estimated from a part of its perturbations.

    Args:
        seconds (float): Time of the part.
        forward (float): Time of a plain forward pass in the same round.
        done (int): Perturbations in the part.
        of (int): Perturbations of the whole.
        fixed (float): Plain forward passes that are needed only once.

    Returns:
        *float*: The time of the passes needed once, and the rest in proportion.

    Example::

        >>> extrapolate(5.0, forward=1.0, done=3, of=30, fixed=2)
        32.0
    """
    once = min(seconds, fixed * forward)
    return once + (seconds - once) * of / done


@dataclass
class Counts:
    """Images that went through the first and through the last layer with weights."""

    first: int = 0
    last: int = 0


@contextmanager
def counted(model: nn.Module, inputs: Tensor) -> Iterator[Counts]:
    """Counts images while it is open: the rows of the first and the last weighted layer's output.

    Under `torch.vmap` a tensor hides the axis of the copies. The sizes are therefore read from the
    tensor below, which holds all that is computed.
    """
    counts = Counts()
    first, last = _ends(model, inputs)
    rows = len(inputs)
    one = {module: _numel(shape) // rows for module, shape in (first, last)}

    def counting(module: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            output = forward(*args, **kwargs)
            images = _physical(output) // one[module]
            if module is first[0]:
                counts.first += images
            if module is last[0]:
                counts.last += images
            return output

        return run

    # a hook would also run in calls that the replay answers without computing anything
    for module in one:
        module.__dict__["forward"] = counting(module, module.forward)
    try:
        yield counts
    finally:
        for module in one:
            del module.__dict__["forward"]


def _ends(
    model: nn.Module, inputs: Tensor
) -> tuple[tuple[nn.Module, torch.Size], tuple[nn.Module, torch.Size]]:
    """The first and the last module that has weights of its own, with the shape of its output."""
    seen: list[tuple[nn.Module, torch.Size]] = []

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        seen.append((module, output.shape))

    with ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                hooks.enter_context(module.register_forward_hook(note))
        model(inputs)
    return seen[0], seen[-1]


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _physical(tensor: Tensor) -> int:
    """Number of values, with the axes that `torch.vmap` hides."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.numel()
