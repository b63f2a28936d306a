"""The floor: the operations that any method of this kind has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case
from captum_clustered.engine.linear import LINEAR, VIEWS

__all__ = ["Flops", "flops"]

_MAPWISE = (
    *(functional.batch_norm, functional.relu, functional.relu6, functional.gelu),
    *(functional.silu, functional.hardswish, functional.max_pool2d),
)
"""Functions that make each map of that map alone."""


@dataclass(frozen=True)
class Flops:
    """Floating point operations for a case's inputs; a multiply-add counts as two.

    Attributes:
        forward (int): Of one forward pass.
        behind (int): Of what runs after the layer has finished.
        summed (int): Of those behind, what sums over the layer's maps. A group's part is taken from
            the sum, so that for all groups together it is as much as for one.
    """

    forward: int
    behind: int
    summed: int = 0

    def floor(self, groups: int) -> int:
        """One forward pass, the sums over the layer's maps, and for each group what lies behind.

        Example::

            >>> Flops(forward=100, behind=3, summed=1).floor(groups=10)
            121
        """
        return self.forward + min(groups, 1) * self.summed + groups * (self.behind - self.summed)

    def row(self, groups: int, forward: float, seconds: float) -> dict[str, Any]:
        """The floor in the form of the results.

        Args:
            groups (int): Number of groups.
            forward (float): Seconds of a plain forward pass.
            seconds (float): Seconds of the method, which are compared with the floor.

        Example::

            >>> Flops(forward=100, behind=3).row(groups=10, forward=1.0, seconds=2.6)["ratio"]
            2.0
        """
        floor = self.floor(groups)
        least = forward * floor / self.forward
        return {
            "forward_flops": self.forward,
            "behind_flops": self.behind,
            "summed_flops": self.summed,
            "flops": floor,
            "seconds": least,
            "ratio": seconds / least,
        }


def flops(case: Case) -> Flops:
    """Counts the operations of matrix products, convolutions and attention.

    Example::

        >>> from benchmarks.cases import build
        >>> flops(build("tiny", "body", 1))
        Flops(forward=76352, behind=320)
    """
    counter = FlopCounterMode(display=False)
    sums = _Sums(counter)
    before: list[int] = []
    fast = torch.backends.mha.get_fastpath_enabled()

    def note(_: object, __: object, output: object) -> None:
        before.append(int(counter.get_total_flops()))
        sums.values.append(output)

    hook = case.layer.register_forward_hook(note)
    try:
        with hook, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter, sums:
            # the counter does not see the operations of the fast path
            torch.backends.mha.set_fastpath_enabled(False)
            case.model(case.inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    total = int(counter.get_total_flops())
    return Flops(total, total - before[0], sums.flops)


class _Sums(TorchFunctionMode):
    """Counts the operations of linear maps of some values, which are summed over maps."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.values: list[object] = []
        self.flops = 0

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if not any(args[:1] and args[0] is value for value in self.values):
            return result
        if func in VIEWS or func in _MAPWISE:
            self.values.append(result)
        elif func in LINEAR and not _is_grouped(*args):
            self.flops += int(self.counter.get_total_flops() - before)
        elif func is functional.multi_head_attention_forward and args[0] is args[1] is args[2]:
            self.flops += 2 * args[0].numel() * len(args[5])  # its projection
        return result


def _is_grouped(value: Tensor, weight: Tensor, *_: Any) -> bool:
    """Whether a convolution sums over some of the maps only."""
    return weight.ndim > 2 and weight.shape[1] != value.shape[1]
