"""Random programs: do the fast path, the full path and a run by hand give the same scores?

Each seed makes a small network (:mod:`benchmarks.programs`), chooses a layer that runs once, most
often one that works in place, and a way to group the maps. The scores without each group are then
found three times: by ``replay="auto"``, by ``replay="full"``, and by hand, with a hook that
replaces what the layer returns and nothing else. A program that raises an error by itself does not
count.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from benchmarks.programs import CHANNELS, SIZE, Program, Step, random_steps, smaller
from benchmarks.results import Row, reason
from captum_clustered import ClusteredLayerAblation
from captum_clustered.clustering import RandomGroups
from captum_clustered.engine import rules
from captum_clustered.shapley import Shapley

__all__ = ["Case", "cases", "compare", "draw_case", "measure", "minimal", "totals"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
"""Largest difference of scores that counts as equal, relative to the largest output."""

PIECE = 250
"""Seeds in one row."""

_WRONG = ("differs", "failed")


@dataclass(frozen=True)
class Case:
    """A program, and how one of its layers is explained.

    Attributes:
        seed (int): Of the weights, the inputs and the groups.
        steps (tuple[Step, ...]): The program.
        layer (float): In [0, 1): which of the modules that run once is explained.
        at_input (bool): Whether the layer's input is explained instead of its output.
        n (int): Number of examples.
        groups (int): Number of groups; 0 for each map alone.
        shapley (bool): Whether groups are switched off one after the other. There is no run by
            hand then: the two paths are compared.
        parts (str): ``"signed"`` or ``"whole"``.
        chunk (int or None): As `perturbations_per_eval`.
        dtype (torch.dtype): Of weights and inputs.
        sums (bool): Whether sums behind the layer are taken apart however small they are.
    """

    seed: int
    steps: tuple[Step, ...]
    layer: float
    at_input: bool
    n: int
    groups: int
    shapley: bool
    parts: Any
    chunk: int | None
    dtype: torch.dtype
    sums: bool


def draw_case(seed: int) -> Case:
    """The case of a seed."""
    draw = random.Random(seed)
    return Case(
        seed=seed,
        steps=random_steps(draw),
        layer=draw.random(),
        at_input=draw.random() < 0.2,
        n=draw.choice((1, 2)),
        groups=draw.choice((0, 0, 2, 3)),
        shapley=draw.random() < 0.08,
        parts=draw.choice(("signed", "signed", "whole")),
        chunk=draw.choice((None, None, 1, 2, 3)),
        dtype=draw.choice((torch.float64, torch.float64, torch.float64, torch.float32)),
        sums=draw.random() < 0.8,
    )


def compare(case: Case) -> tuple[str, str]:
    """Explains the layer of a case by both paths and by hand.

    Returns:
        *tuple*: The outcome and what there is to say about it: ``"suffix"`` or ``"full"``, the path
        that gave the right scores; ``"void"``, a program that does not run or has no such layer;
        ``"refused"``, by an error of ours; ``"differs"`` or ``"failed"``.
    """
    torch.manual_seed(case.seed)
    model = Program(case.steps).to(case.dtype).eval()
    x = torch.randn(case.n, CHANNELS, SIZE, SIZE, dtype=case.dtype)
    small = 0 if case.sums else rules.SMALL
    with (
        torch.no_grad(),
        mock.patch.object(rules, "SMALL", small),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            plain = model(x.clone())
            layer = _layer(model, x, case)
        except Exception as error:  # not a program: it does not run by itself
            return "void", reason(error)
        if layer is None or not isinstance(plain, Tensor) or not plain.isfinite().all():
            return "void", "no layer that runs once, or no finite score"
        try:
            return _outcome(model, layer, x, plain, case)
        except (ValueError, TypeError) as error:
            ours = str(error).startswith("`")
            return "refused" if ours else "failed", reason(error)
        except Exception as error:  # whatever else it is, it is a fault
            return "failed", reason(error)


def _outcome(
    model: nn.Module, layer: nn.Module, x: Tensor, plain: Tensor, case: Case
) -> tuple[str, str]:
    clusterer = RandomGroups(case.groups, seed=case.seed) if case.groups else "every-map"
    weighting = Shapley(n_permutations=2, seed=case.seed) if case.shapley else "drop"
    found = {
        path: ClusteredLayerAblation(
            model, layer, clusterer=clusterer, weighting=weighting, parts=case.parts, replay=path
        ).explain(
            x.clone(),
            0,
            attribute_to_layer_input=case.at_input,
            perturbations_per_eval=case.chunk,
        )
        for path in ("auto", "full")
    }
    auto, full = found["auto"], found["full"]
    if case.shapley:
        expected = _joined(full.ablated_scores)
    else:
        expected = _by_hand(model, layer, x, auto, case.at_input)
    scale = TOLERANCE[case.dtype] * (1 + plain.abs().max())
    for name, one in (("auto", auto), ("full", full)):
        ablated = _joined(one.ablated_scores)
        if ablated.shape != expected.shape:
            return "differs", f"{name}: shape {tuple(ablated.shape)}"
        worst = (ablated - expected).abs().max() if ablated.numel() else ablated.new_zeros(())
        if not worst <= scale:
            return "differs", f"{name} ({one.replay}): {float(worst):.1e}"
    if not torch.equal(model(x.clone()), plain):
        return "differs", "the model gives another output afterwards"
    return auto.replay, auto.replay_reason or ""


def _joined(scores: Any) -> Tensor:
    return torch.cat(scores, 1) if isinstance(scores, tuple) else scores


def _layer(model: nn.Module, x: Tensor, case: Case) -> nn.Module | None:
    """A module that runs once on maps, for every other seed one that works in place, if any."""
    ran: Counter[nn.Module] = Counter()
    maps: set[nn.Module] = set()

    def count(module: nn.Module, args: Any, output: Any) -> None:
        ran[module] += 1
        value = args[0] if case.at_input and args else output
        several = value if isinstance(value, (tuple, list)) else [value]
        if all(isinstance(one, Tensor) and one.ndim == 4 for one in several):
            maps.add(module)

    handles = [part.register_forward_hook(count) for part in model.modules()]
    model(x.clone())
    for handle in handles:
        handle.remove()
    once = [part for part in model.modules() if ran[part] == 1 and part in maps]
    in_place = [part for part in once if getattr(part, "inplace", False)]
    chosen = in_place if in_place and case.seed % 2 else once
    return chosen[int(case.layer * len(chosen))] if chosen else None


def _by_hand(model: nn.Module, layer: nn.Module, x: Tensor, found: Any, at_input: bool) -> Tensor:
    """The scores without each group, `(N, K)`: the whole model runs, with a hook on the layer."""

    def several(value: Any) -> list[Tensor]:
        return list(value) if isinstance(value, tuple) else [value]

    labels = list(zip(several(found.labels), several(found.labels_below), strict=True))
    counts = [one.shape[1] for one in several(found.ablated_scores)]
    scores = []
    for place, count in enumerate(counts):
        for k in range(count):

            def without(tensors: list[Tensor]) -> list[Tensor]:
                above, below = labels[place]  # noqa: B023
                ablated = [tensor.clone() for tensor in tensors]
                ablated[place] = _without(ablated[place], above == k, below == k)  # noqa: B023
                return ablated

            scores.append(_hooked(model, layer, x, without, at_input)[:, 0])
    return torch.stack(scores, 1) if scores else x.new_zeros(len(x), 0)


def _without(value: Tensor, above: Tensor, below: Tensor) -> Tensor:
    above, below = above[:, :, None, None], below[:, :, None, None]  # (N, C, 1, 1)
    value = torch.where(above, value.clamp(max=0), value)
    return torch.where(below, value.clamp(min=0), value)


def _hooked(
    model: nn.Module,
    layer: nn.Module,
    x: Tensor,
    change: Callable[[list[Tensor]], list[Tensor]],
    at_input: bool,
) -> Tensor:
    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change([value])[0]
        return type(value)(change(list(value)))

    handle = (
        layer.register_forward_pre_hook(lambda _, args: changed(args))
        if at_input
        else layer.register_forward_hook(lambda _, __, output: changed(output))
    )
    try:
        return model(x.clone())
    finally:
        handle.remove()


def minimal(case: Case) -> Case:
    """The smallest program that still differs, found by leaving out one step after the other."""
    while True:
        layers = sorted({case.layer, *(i / 8 for i in range(8))}, key=lambda at: at != case.layer)
        for steps in smaller(case.steps):
            tried = (replace(case, steps=steps, layer=at) for at in layers)
            found = next((one for one in tried if compare(one)[0] in _WRONG), None)
            if found is not None:
                case = found
                break
        else:
            return case


def cases(seeds: int, start: int = 0) -> list[str]:
    """The seeds in pieces, as ``first-last``."""
    ends = range(start, start + seeds, PIECE)
    return [f"{first}-{min(first + PIECE, start + seeds) - 1}" for first in ends]


def measure(key: str) -> list[Row]:
    """One row for a piece: how often there was which outcome, and the programs that are wrong."""
    first, last = map(int, key.split("-"))
    outcomes: Counter[str] = Counter()
    wrong = []
    for seed in range(first, last + 1):
        case = draw_case(seed)
        outcome, about = compare(case)
        outcomes[outcome] += 1
        if outcome in _WRONG:
            wrong.append({"seed": seed, "about": about, "program": repr(minimal(case))})
    return [{"outcomes": dict(outcomes), "wrong": wrong}]


def totals(rows: Iterable[Row]) -> Counter[str]:
    """The outcomes of all pieces together."""
    return sum((Counter(row["outcomes"]) for row in rows), Counter())
