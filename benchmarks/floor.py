"""The physical floor: what any method of this kind must compute, counted in operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import Case

__all__ = ["Flops", "flops"]


@dataclass(frozen=True)
class Flops:
    """Floating point operations of a case's inputs, multiplications and additions counted each.

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
    hook = case.layer.register_forward_hook(
        lambda *_: before.append(int(counter.get_total_flops()))
    )
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            torch.backends.mha.set_fastpath_enabled(False)  # the counter does not know it
            case.model(case.inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        hook.remove()
    total = int(counter.get_total_flops())
    return Flops(total, total - before[0])
