"""Time in paired rounds, and the images that a method sends through the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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
"""Rounds that are measured whatever they cost: quartiles need as many."""

DEAR = 20.0
"""How many times as long as the fastest a method may take that is measured in more rounds."""


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
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(middle, low, high)


def synchronize() -> None:
    """Returns when the device has done all that it was told to."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def rounds(
    methods: Mapping[str, Callable[[], object]],
    repeats: int,
    budget: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each method, all methods in turn: A B C A B C.

    What disturbs the machine for longer than a method takes thus disturbs all methods of a round,
    and the ratios within a round hardly. What takes more than :data:`DEAR` times as long as the
    fastest drops out after :data:`FEWEST` rounds. Nothing is warmed up here: each method must have
    run.

    Args:
        methods (mapping): Functions by name.
        repeats (int): The most rounds.
        budget (float): Seconds, counted from the end of the first :data:`FEWEST` rounds, after
            which no further one begins.
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
            synchronize()  # a device works on while the host goes on
            seconds[name].append(clock() - start)
            del result
    return seconds


def extrapolate(seconds: float, forward: float, done: int, of: int, fixed: float) -> float:
    """Seconds of a whole method from those of a part of its perturbations.

    Args:
        seconds (float): Time of the part.
        forward (float): Time of a plain forward pass in the same round.
        done (int): Perturbations in the part.
        of (int): Perturbations of the whole.
        fixed (float): Plain forward passes that are needed only once.

    Returns:
        *float*: What is fixed, and the rest in proportion.

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
    """Counts images while it is open: rows of what the first and the last weighted layer give.

    Under `torch.vmap` a row is one of the copies, so the sizes are read below it, where they are
    those of the tensors that are really computed.
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

    # a hook would also see the calls that the replay answers without computing anything
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

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen[0], seen[-1]


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _physical(tensor: Tensor) -> int:
    """Number of values, those that `torch.vmap` hides among them."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor.numel()
