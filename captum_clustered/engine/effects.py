"""What a call writes into its own module, which a call that is skipped would have to write as well.

Modules of torch write nothing into themselves in evaluation mode, and are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Held", "effects", "held"]

_VALUES = (type(None), bool, int, float, str, torch.Size)
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
    attributes = dict(module.__dict__)
    values = attributes.values()
    containers = [one for one in values if isinstance(one, (dict, list))]
    full = [(one, _contents(one)) for one in containers if one]
    empty = [one for one in containers if not one]
    tensors = [one for one in values if isinstance(one, Tensor)]
    tensors += module.buffers(recurse=False)
    return Held(attributes, full, empty, tensors, count(tensors))


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
    if count(before.tensors) != before.counts:
        return None
    if any(before.empty) or not all(_same(_contents(one), old) for one, old in before.containers):
        return None
    now, old = module.__dict__, before.attributes
    new = {name: now[name] for name in now if name not in old or old[name] is not now[name]}
    plain = all(type(value) in _VALUES for value in new.values())
    return new if plain and old.keys() <= now.keys() else None


def _contents(container: Any) -> list[Any]:
    if isinstance(container, list):
        return list(container)
    return [part for item in container.items() for part in item]


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(a is b for a, b in zip(now, before, strict=True))
