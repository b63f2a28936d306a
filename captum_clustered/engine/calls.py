"""Calls of modules: where a layer's value is read and written, and what a call returned.

Private parts of PyTorch: `Tensor._version`, which counts the writes to a tensor, and
`torch.utils._pytree`, which looks into nested containers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.weak import TensorWeakRef

__all__ = ["Call", "LayerIO", "Valueless", "flatten", "tensors_in", "versions"]


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

        try:
            if self.at_input:
                return self.layer.register_forward_pre_hook(before)
            return self.layer.register_forward_hook(after)
        except RuntimeError as error:
            if not isinstance(self.layer, torch.jit.ScriptModule):
                raise
            raise TypeError(
                "`layer` must be a module that runs in Python; got one of TorchScript, which takes "
                "no hooks. Put it into the model as `nn.Sequential(module)` and pass that, or "
                "explain the model that was scripted."
            ) from error

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
        own (bool): Whether the memory of its output was made in this call, or in a recorded one
            before it. What is not is known to others by other names.
        writes (str): Into what the call wrote that was there before: ``""`` for nothing,
            ``"recorded"`` for what calls before it had returned, ``"other"`` for anything else.
        rewritten (bool): Whether a call after it wrote into its output.
        sets (list): The modules inside, itself among them, and the plain attributes that they set.
        sealed (bool): Whether nothing may write into what is handed out.
    """

    module: nn.Module
    number: int
    output: Any
    inside: list[nn.Module]
    versions: list[int | None]
    own: bool = True
    writes: Literal["", "recorded", "other"] = ""
    rewritten: bool = False
    sealed: bool = False
    sets: list[tuple[nn.Module, dict[str, Any]]] = field(default_factory=list)
    _lent: TensorWeakRef | None = None

    def unchanged(self) -> bool:
        """Whether nothing wrote into the output after the call returned."""
        return all(version is not None for version in self.versions) and (
            self.versions == versions(self.output)
        )

    def tensors(self) -> list[Tensor]:
        """The tensors in the output."""
        return tensors_in(self.output)

    def held(self) -> list[Tensor]:
        """The tensors in the output, lent or not."""
        output = None if self._lent is None else self._lent()
        return self.tensors() if output is None else [output]

    def without_values(self, sealed: bool = False) -> Call:
        """The same call, whose output has tensors without values, on the device ``"meta"``.

        Args:
            sealed (bool, optional): As for :class:`Valueless`. Default: False
        """
        empty = tree_map_only(Tensor, _without_values, self.output)
        return replace(self, output=empty, versions=versions(empty), sealed=sealed)

    def handed_out(self, device: torch.device) -> Any:
        """The output for a model on a device; what has no values in it is :class:`Valueless`."""

        def guarded(tensor: Tensor) -> Tensor:
            # not a fake tensor, which is no plain one
            if type(tensor) is not Tensor or not tensor.is_meta:
                return tensor
            return Valueless.of(tensor, device, (tensor,) if self.sealed else ())

        return tree_map_only(Tensor, guarded, self.output)

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


def tensors_in(values: Any) -> list[Tensor]:
    """The tensors in nested containers.

    Example::

        >>> tensors_in([torch.zeros(1), "a", {"b": torch.ones(1)}])
        [tensor([0.]), tensor([1.])]
    """
    if isinstance(values, Tensor):
        return [values]
    if type(values) is tuple and {*map(type, values)} == {Tensor}:  # as most often
        return list(values)
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


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
    if tensor.is_quantized or tensor.is_nested or tensor.layout is not torch.strided:
        return torch.empty(0, device="meta")  # there are no such tensors on "meta"
    return torch.empty_like(tensor, device="meta")


class Valueless(Tensor):
    """A tensor on the device ``"meta"``, which has a shape and no values.

    What is made of it has no values either. An operation that would need them for a tensor with
    values raises an error. Torch does so for most, but some, such as `copy_` and `masked_fill_`,
    leave that tensor as it is.

    Attributes:
        stood_on (torch.device): The device that it names, so that what a model makes for it there
            has values.
        sealed (tuple[Tensor, ...]): What must not be written to, since others would have to see it.
    """

    stood_on: torch.device
    sealed: tuple[Tensor, ...]

    @classmethod
    def of(cls, empty: Tensor, device: torch.device, sealed: tuple[Tensor, ...] = ()) -> Valueless:
        """A tensor on ``"meta"`` as one of this class; the attributes are its other arguments."""
        new = empty.as_subclass(cls)
        new.stood_on, new.sealed = device, sealed
        return new

    @classmethod
    def __torch_function__(cls, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does the operation on "meta", unless it would give or change a tensor with values."""
        given = (args, kwargs or {})
        own = [leaf for leaf in tree_leaves(given) if isinstance(leaf, cls)]
        device = own[0].stood_on
        if func == Tensor.device.__get__:
            return device
        args, kwargs = tree_map_only(cls, lambda one: one.as_subclass(Tensor), given)
        result = func(*args, **kwargs)
        touched = tensors_in(result) if result is not None else tensors_in(args[:1])
        if getattr(func, "__name__", "") in _SHAPE_ONLY and not args[0].is_meta:
            return result
        sealed = tuple(one for leaf in own for one in leaf.sealed)
        if any(one._version for one in sealed) or not all(one.is_meta for one in touched):
            raise RuntimeError("the model needs values that were not computed again")
        return tree_map_only(Tensor, lambda one: cls.of(one, device, sealed), result)


_SHAPE_ONLY = ("expand_as", "reshape_as", "view_as")
"""Operations that take a second tensor and look at nothing but its shape."""
