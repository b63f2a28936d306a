"""The floor: the operations that any method of this kind has to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case

__all__ = ["Flops", "flops"]


@dataclass(frozen=True)
class Flops:
    """Floating point operations for a case's inputs; a multiply-add counts as two.

    Attributes:
        forward (int): Of one forward pass.
        behind (int): Of what runs after the layer has finished.
    """

    forward: int
    behind: int

    def floor(self, groups: int) -> int:
        """One forward pass, and for each group what lies behind the layer.

        Example::

            >>> Flops(forward=100, behind=3).floor(groups=10)
            130
        """
        return self.forward + groups * self.behind

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
    before: list[int] = []
    fast = torch.backends.mha.get_fastpath_enabled()

    def note(*_: object) -> None:
        before.append(int(counter.get_total_flops()))

    hook = case.layer.register_forward_hook(note)
    try:
        with hook, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            # the counter does not see the operations of the fast path
            torch.backends.mha.set_fastpath_enabled(False)
            case.model(case.inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    total = int(counter.get_total_flops())
    return Flops(total, total - before[0])
