"""The whole model on copies of the batch: several in one pass, where they leave each other alone.

An unchanged copy is always among them. Where it does not get the score that the first pass gave, or
the first of the others not the score that it gets alone, each copy has a pass of its own. So to put
copies together changes memory and time, and never the result. If an unchanged copy alone does not
get that score either, the model is random or keeps what it saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_clustered._copies import (
    MIXES,
    UNSTEADY,
    Parted,
    agree,
    first_that_agrees,
    loud,
    opposite,
    plans,
    scale_of,
    watched,
)
from captum_clustered._layout import Layout
from captum_clustered.targets import as_scores, repeat_target, select

if TYPE_CHECKING:
    from captum_clustered._copies import Shared
    from captum_clustered.engine.capture import FirstPass

__all__ = ["Copied", "Copies", "steady"]

_SEEN_ELSEWHERE = (
    "`layer` must be all that passes its value on; to hand the same value in at its place gave "
    "another score than the plain pass, so something else holds the value too, or writes into it. "
    "The heat map contains that difference as noise. Choose the layer after it."
)

_FEWEST = 4
"""Copies in a pass below which each has a pass of its own: three are needed for the check."""

_Made = Callable[[Tensor], Tensor]
_CHEAP = 16
"""Copies in a pass from which on an unchanged one rides along in each pass, not the last alone."""


def steady(first: FirstPass) -> bool:
    """Whether the model gives the same scores when it runs again."""
    again = select(first.model.copies(1, ()), first.target)
    return bool(agree(again, first.scores, first.tolerance))


@dataclass(frozen=True)
class Copied:
    """What came of the copies.

    Attributes:
        scores (Tensor): `(K, N)`, or `(K, 1)` if the model gives one score for the batch.
        alone (str or None): Why each copy had a pass of its own, where several were allowed.
        doubt (str or None): What to say where not even a copy alone, without a change, got the
            score of the first pass.
    """

    scores: Tensor
    alone: str | None
    doubt: str | None = None

    @property
    def remark(self) -> str | None:
        """What a user should be warned of, if anything."""
        if self.doubt is not None or self.alone is None:
            return self.doubt
        return (
            f"Each copy of the inputs has a pass of its own, because {self.alone}. That takes more "
            "time and gives the right result."
        )


@dataclass(frozen=True, eq=False)
class Copies:
    """Copies of the batch, each with other values somewhere.

    Attributes:
        first (FirstPass): The model with its inputs, and what the plain pass gave.
        plain (Sequence[Tensor]): The values without a change, `(N, …)` each: the layer's tensors,
            or the image.
        make (callable): Gives the values of a range of copies, `(k, N, …)` each.
        run (callable): Runs the model on `k` copies: from values `(k * N, …)`, `k`, and the
            arguments that are repeated, to the model's output.
        certain (Sequence[int]): Arguments that have one row for each example.
        score (callable): From the output and the number of copies to scores of each example of each
            copy.
        layout (Layout): How `run` lays out several copies, if it does.
    """

    first: FirstPass
    plain: Sequence[Tensor]
    make: Callable[[range], Sequence[Tensor]]
    run: Callable[[list[Tensor], int, frozenset[int]], Any]
    certain: Sequence[int] = (0,)
    score: Callable[[Any, int], Tensor] | None = None
    layout: Layout = field(default_factory=Layout)

    def scores(self, count: int, chunk: int, tick: Callable[[int], object]) -> Copied:
        """The scores of so many copies. It reads values from the device.

        Args:
            count (int): Number of copies, `K`.
            chunk (int): Copies in one pass, at most.
            tick (callable): Told the number of copies that are done.
        """
        if self.first.couples or chunk < _FEWEST or not count:
            return self._alone(count, None, tick)
        return self._together(count, chunk, tick)

    def _together(self, count: int, chunk: int, tick: Callable[[int], object]) -> Copied:
        some = range(min(count, chunk - 3))
        values = self._batch([loud], some, [_unchanged, opposite])
        k = len(values[0]) // self.first.model.n
        args = self.first.model.args
        alone = as_scores(self.run(self._only(0), 1, frozenset()))
        one = select(alone, self.first.target)  # (N,)
        # rounding grows with the scores, and a copy may have much larger ones
        rough = torch.maximum(self.first.tolerance, self.first.rounding(scale_of(alone, one)))

        def run(repeated: frozenset[int]) -> Any:  # the model may write into what it gets
            return self.run([value.clone() for value in values], k, repeated)

        def parts(repeated: frozenset[int]) -> list[Tensor]:
            return [*values, *(args[place] for place in sorted(repeated))]

        def judge(output: Any) -> Tensor | str:
            return self._compared(output, k, {**self._plain_at(k - 2), 1: (one, rough)})

        choices = list(plans(args, self.first.model.n, self.certain))
        shared = self.layout.checked(
            lambda: first_that_agrees(choices, parts, run, judge),
            lambda shared: shared.repeated is None,
        )
        if shared.repeated is None:
            return self._alone(count, shared.found, tick)
        tick(len(some))
        found = [shared.found[1 : 1 + len(some)]]
        riding = chunk >= _CHEAP
        for start in range(len(found[0]), count, chunk - riding):
            groups = range(start, min(start + chunk - riding, count))
            # what holds for a number of copies may not hold for another
            scores = self._lot(groups, shared, riding or 1 < len(groups) < chunk)
            if isinstance(scores, str):
                tick(-groups.start)  # all over again
                return self._alone(count, scores, tick)
            tick(len(groups))
            found.append(scores)
        return Copied(torch.cat(found), None)

    def _lot(self, groups: range, shared: Shared, riding: bool) -> Tensor | str:
        """The scores of further copies in one pass, or what speaks against them."""
        assert shared.repeated is not None
        batch = self._batch([], groups, [_unchanged] if riding else [])
        k = len(groups) + riding
        try:
            with watched(batch) if shared.relied else nullcontext():
                output = self.run(batch, k, shared.repeated)
        except Parted as parted:
            return str(parted)
        scores = self._compared(output, k, self._plain_at(len(groups)) if riding else {})
        return scores if isinstance(scores, str) else scores[: len(groups)]

    def _batch(self, before: list[_Made], groups: range, behind: list[_Made]) -> list[Tensor]:
        """The values of copies, between others that are made of the values without a change."""
        return [
            torch.cat(
                [*(one(plain)[None] for one in before), some, *(one(plain)[None] for one in behind)]
            ).flatten(0, 1)  # (k * N, …)
            for some, plain in zip(self.make(groups), self.plain, strict=True)
        ]

    def _plain_at(self, copy: int) -> dict[int, tuple[Tensor, Tensor]]:
        """What an unchanged copy must get."""
        return {copy: (self.first.scores, self.first.tolerance)}

    def _compared(
        self, output: Any, k: int, known: Mapping[int, tuple[Tensor, Tensor]]
    ) -> Tensor | str:
        """The scores of all copies, or what speaks against them.

        Args:
            output (Any): What the model returned.
            k (int): Number of copies.
            known (mapping): Of some copies what they must get, and how much rounding may change.
        """
        first = self.first
        n = first.model.n
        shape = tuple(output.shape) if isinstance(output, Tensor) else None
        if shape != (k * n, *(first.output_shape or ())[1:]):
            return f"the output has the shape {shape} for {k} copies of {n} examples"
        raw = select(output, repeat_target(first.target, k)).reshape(k, n)
        if not all(agree(raw[copy], *alone) for copy, alone in known.items()):
            return MIXES
        return self._score(output, k)

    def _score(self, output: Any, times: int) -> Tensor:
        scores = self.score or _selected(self.first.target)
        return scores(output, times).reshape(times, -1).detach()

    def _alone(self, count: int, reason: str | None, tick: Callable[[int], object]) -> Copied:
        """Each copy in a pass of its own."""
        first = self.first
        doubt = None
        if not first.stochastic:
            values = [plain.clone() for plain in self.plain]  # the model may write into them
            again = select(self.run(values, 1, frozenset()), first.target)
            if not agree(again, first.scores, first.tolerance):
                doubt = _SEEN_ELSEWHERE if steady(first) else UNSTEADY
        scores = []
        for k in range(count):
            scores.append(self._score(self.run(self._only(k), 1, frozenset()), 1))
            tick(1)
        nothing = first.scores.new_zeros(0, len(first.scores))
        return Copied(torch.cat(scores) if scores else nothing, reason, doubt)

    def _only(self, k: int) -> list[Tensor]:
        """The values of one copy, `(N, …)` each."""
        return [made.flatten(0, 1) for made in self.make(range(k, k + 1))]


def _unchanged(plain: Tensor) -> Tensor:
    return plain


def _selected(target: Tensor | None) -> Callable[[Any, int], Tensor]:
    return lambda output, times: select(output, repeat_target(target, times))
