"""Calls of modules: where a layer's value is read and written, and what a call returned.

Private parts of PyTorch: `Tensor._version`, which counts the writes to a tensor, and
`torch.utils._pytree`, which looks into nested containers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import TensorWeakRef

__all__ = ["Call", "LayerIO", "flatten", "versions"]


@dataclass(frozen=True)
class LayerIO:
    """The side of a layer where its value is read and replaced: its output, or its input.

    The value may be a tensor, or a tuple or list of tensors. `unpack` turns it into a list, and
    `pack` turns a list back into the form that the layer gave.
    """

    layer: nn.Module
    at_input: bool = False

    def hook(self, replace: Callable[[list[Tensor]], list[Tensor] | None]) -> Any:
        """Registers a hook that calls `replace` with the tensors, and returns its handle.

        The hook acts in the registering thread only. The tensors that `replace` returns take the
        place of the layer's own; None leaves these as they are.
        """
        owner = threading.get_ident()

        def apply(value: Any) -> Any:
            tensors = replace(self.unpack(value))
            return None if tensors is None else self.pack(tensors, value)

        def before(_: nn.Module, args: tuple[Any, ...]) -> Any:
            return apply(args) if threading.get_ident() == owner else None

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
            return apply(output) if threading.get_ident() == owner else None

        if self.at_input:
            return self.layer.register_forward_pre_hook(before)
        return self.layer.register_forward_hook(after)

    def unpack(self, value: Any) -> list[Tensor]:
        """The tensors of the layer's value."""
        tensors = list(value) if isinstance(value, (tuple, list)) else [value]
        if tensors and all(isinstance(tensor, Tensor) for tensor in tensors):
            return tensors
        got = ", ".join(type(item).__name__ for item in tensors) or "none"
        side = "positional input" if self.at_input else "output"
        raise TypeError(
            f"`layer` must have a tensor, or a tuple or list of tensors, as its {side}; got {got}. "
            "Choose a module inside or next to it that has one."
        )

    @staticmethod
    def pack(tensors: list[Tensor], like: Any) -> Any:
        """The tensors in the form of `like`."""
        if isinstance(like, Tensor):
            return tensors[0]
        if hasattr(like, "_make"):  # a named tuple
            return like._make(tensors)
        return type(like)(tensors)


@dataclass
class Call:
    """One finished call of a module, with what it returned.

    Attributes:
        module (nn.Module): The module.
        number (int): 0 for the module's first call in the forward pass, 1 for its second, …
        output (Any): What it returned.
        inside (list[nn.Module]): The calls that it made in turn. They do not happen if this call is
            skipped.
        versions (list[int or None]): The :func:`versions` of the output when the call returned.
    """

    module: nn.Module
    number: int
    output: Any
    inside: list[nn.Module]
    versions: list[int | None]
    _lent: TensorWeakRef | None = None

    def unchanged(self) -> bool:
        """Whether nothing wrote into the output after the call returned."""
        return all(version is not None for version in self.versions) and (
            self.versions == versions(self.output)
        )

    def tensors(self) -> list[Tensor]:
        """The tensors in the output."""
        return [leaf for leaf in tree_leaves(self.output) if isinstance(leaf, Tensor)]

    def without_values(self) -> Call:
        """The same call, whose output has tensors without values, on the device ``"meta"``."""
        empty = tree_map_only(Tensor, _without_values, self.output)
        return replace(self, output=empty, versions=versions(empty))

    def lend(self) -> None:
        """Stops keeping the output alive, until :meth:`take_back`."""
        self._lent = TensorWeakRef(self.output)
        self.output = _without_values(self.output)

    def take_back(self) -> None:
        """Keeps the output again, if the model still holds it and has not changed it."""
        output = None if self._lent is None else self._lent()
        if output is not None and self.versions == versions(output):
            self.output = output
        elif self._lent is not None:
            self.versions = versions(self.output)


def versions(output: Any) -> list[int | None]:
    """How often each tensor in a module's output was written to.

    None stands for a tensor or object that cannot be watched; it never counts as unchanged.
    """
    if isinstance(output, Tensor):
        return [None if output.is_inference() else output._version]
    return [
        leaf._version if isinstance(leaf, Tensor) and not leaf.is_inference() else None
        for leaf in tree_leaves(output)
        if not isinstance(leaf, (type(None), bool, int, float, str))
    ]


def flatten(values: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The leaves of nested containers, and a function that puts leaves into their places.

    Example::

        >>> leaves, unflatten = flatten({"a": 1, "b": (2, 3)})
        >>> leaves, unflatten([4, 5, 6])
        ([1, 2, 3], {'a': 4, 'b': (5, 6)})
    """
    leaves, spec = tree_flatten(values)
    return leaves, lambda others: tree_unflatten(others, spec)


def _without_values(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")
