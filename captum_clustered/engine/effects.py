"""What a call writes into its own module, which a call that is skipped would have to write as well.

Modules of torch write nothing into themselves in evaluation mode, and are not looked at.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Held", "effects", "held"]

_VALUES = {type(None), bool, int, float, str, torch.Size}
"""Types of attributes that can be set again without the call."""


@dataclass(frozen=True)
class Held:
    """What a module held when its call began.

    Attributes:
        attributes (dict[str, Any]): Its attributes.
        containers (list[tuple[Any, list[Any]]]): The lists and dictionaries among them, with what
            was in them.
        empty (list[Any]): Those in which there was nothing.
        tensors (list[Tensor]): Its buffers, and the tensors among its attributes.
        counts (list): How often each of these was written to.
    """

    attributes: dict[str, Any]
    containers: list[tuple[Any, list[Any]]]
    empty: list[Any]
    tensors: list[Tensor]
    counts: list[int | None]


def held(module: nn.Module, count: Callable[[list[Tensor]], list[int | None]]) -> Held | None:
    """What a module holds, to be compared later; None for a module of torch.

    Args:
        module (nn.Module): The module, whose call begins.
        count (callable): Tells how often tensors were written to.
    """
    if type(module).__module__.startswith("torch."):
        return None
    attributes = module.__dict__.copy()
    containers, empty, tensors = [], [], []
    for one in attributes.values():  # this runs for each call of a module, so it is one loop
        if type(one) in _VALUES:
            continue
        if isinstance(one, (dict, list)):
            if one:
                containers.append((one, _contents(one)))
            else:
                empty.append(one)
        elif isinstance(one, Tensor):
            tensors.append(one)
    tensors += [one for one in attributes["_buffers"].values() if one is not None]
    return Held(attributes, containers, empty, tensors, count(tensors) if tensors else [])


def effects(
    module: nn.Module, before: Held | None, count: Callable[[list[Tensor]], list[int | None]]
) -> dict[str, Any] | None:
    """The plain values, such as a height and a width, that a call has set as attributes.

    Args:
        module (nn.Module): The module, whose call has ended.
        before (Held or None): From :func:`held`, when it began.
        count (callable): As for :func:`held`.

    Returns:
        *dict* or *None*: The values by name; None if the call has written anything else.
    """
    if before is None:
        return {}
    if any(before.empty) or (before.tensors and count(before.tensors) != before.counts):
        return None
    if not all(_same(_contents(one), old) for one, old in before.containers):
        return None
    now, old = module.__dict__, before.attributes
    if len(now) == len(old) and all(map(operator.is_, now.values(), old.values())):
        return {}
    new = {name: now[name] for name in now if name not in old or old[name] is not now[name]}
    plain = all(type(value) in _VALUES for value in new.values())
    return new if plain and old.keys() <= now.keys() else None


def _contents(container: Any) -> list[Any]:
    if isinstance(container, list):
        return list(container)
    return [*container, *container.values()]


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))
