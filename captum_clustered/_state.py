"""What a model, and what belongs to it, holds between two passes: kept, compared and put back.

A forward pass may write anything into the model: a tensor of its last call, a cache in a
dictionary, a counter, a hook, a whole new module. All of it hangs on the model's modules, so one
walk from there finds it. The containers are copied (not what is in them), and the values of tensors
and arrays; parameters are only watched, because they are large and a pass does not write them.

Private parts of PyTorch: `Tensor._version`, which counts the writes to a tensor, `_foreach_copy_`,
which writes many at once, `_NormBase`, which all batch norms are, the hooks of a module,
`_forward_hooks` and `_forward_pre_hooks`, and those that act on all modules,
`_global_forward_hooks` and `_global_forward_pre_hooks`.
"""

from __future__ import annotations

import contextvars
import enum
import functools
import operator
import random
import sys
import threading
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, compress, filterfalse, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

__all__ = [
    "ATOMS",
    "DEEPEST",
    "Memory",
    "contents_of",
    "foreign_hooks",
    "is_foreign",
    "names_in",
    "parts_of",
]

ATOMS = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes, type, range, slice),
        *(torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format),
        *(types.BuiltinFunctionType, types.ModuleType, torch.jit.ScriptFunction),
    }
)
"""Types whose values hold nothing that could change."""

_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_OURS = {"captum", "captum_clustered"}
_NOT_THE_MODEL = _OURS | {"torch", "lightning", "lightning_fabric", "pytorch_lightning"}
"""Packages whose objects, modules apart, are not a part of the model though it may know them."""

DEEPEST = 3
"""How many objects deep, below a module, something still is a part of the model."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_REGISTERS = (*_HOOKS, "_buffers", "_parameters", "_modules")
_CONTAINERS = (dict, list, tuple, deque, set, frozenset)
_EMPTIABLE = frozenset({dict, OrderedDict, list, deque, set})
_CODE = (types.FunctionType, types.MethodType)
_WRITTEN = (*_CODE, classmethod, staticmethod, property, types.MemberDescriptorType)
_MISSING = object()

_USUAL = tuple(nn.Module().__dict__)
"""The attributes with which a module begins: its registers, and two flags."""


def _global_hooks() -> tuple[dict[int, Any], dict[int, Any]]:
    return torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks


def _root(value: Any) -> str:
    return str(getattr(value, "__module__", None) or "").partition(".")[0]


def is_foreign(name: str) -> bool:
    """Whether a Python module is a library's whose objects are no part of a model."""
    root = name.partition(".")[0]
    return root in _NOT_THE_MODEL or root in sys.stdlib_module_names


def _own(kind: type) -> dict[str, Any]:
    """The entries of a class, without Python's own."""
    return {name: value for name, value in vars(kind).items() if not name.startswith("__")}


def _put_own(kind: type, before: dict[str, Any]) -> None:
    """Gives a class its entries."""
    now = _own(kind)
    for name in now.keys() - before.keys():
        delattr(kind, name)
    for name, value in before.items():
        if now.get(name, _MISSING) is not value:
            setattr(kind, name, value)


def _is_ours(value: Any) -> bool:
    """Whether a value of a container is a hook, or a stand-in for `forward`, of this package."""
    return isinstance(value, types.FunctionType) and _root(value) in _OURS


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    """Whether the same objects come in the same order, one by one as far as both go."""
    return all(map(operator.is_, now, before))


class _Rows:
    """Dictionaries and lists with what they held, in rows, so that few steps compare them all."""

    def __init__(self) -> None:
        self.new: list[Any] = []
        self.containers: list[Any] = []
        self.sizes: list[int] = []
        self.names_before: list[Any] = []
        self.values_before: list[Any] = []

    def settle(self) -> None:
        """Notes what is in the new ones."""
        new, self.new = self.new, []
        self._note(new, new)

    def add(self, container: Any, before: Any) -> None:
        """Adds one as if this were in it."""
        self._note([container], [before])

    def _note(self, containers: list[Any], befores: list[Any]) -> None:
        self.containers += containers
        self.sizes += map(len, befores)
        self.names_before += chain.from_iterable(befores)
        self.values_before += chain.from_iterable(map(_values_of, befores))

    def same(self) -> bool:
        """Whether the same is in all of them."""
        return (
            list(map(len, self.containers)) == self.sizes
            and _same(chain.from_iterable(map(_values_of, self.containers)), self.values_before)
            and _same(chain.from_iterable(self.containers), self.names_before)
        )

    def befores(self) -> Iterator[tuple[Any, Any]]:
        """The containers, each with one that holds what it held."""
        names, values = iter(self.names_before), iter(self.values_before)
        for now, size in zip(self.containers, self.sizes, strict=True):
            named = zip(islice(names, size), islice(values, size), strict=True)
            yield now, dict(named) if isinstance(now, dict) else [value for _, value in named]

    def changed(self) -> Iterator[tuple[Any, Any]]:
        """Those in which something else is."""
        for now, before in self.befores():
            if len(now) != len(before) or not (
                _same(_values_of(now), _values_of(before)) and _same(now, before)
            ):
                yield now, before


@dataclass(frozen=True)
class _Place:
    """Something else than a dictionary that holds values."""

    read: Callable[[], list[Any]]
    write: Callable[[list[Any]], object]
    before: list[Any]

    def changed(self) -> bool:
        now = self.read()
        return len(now) != len(self.before) or not _same(now, self.before)


class Memory:
    """All that can be reached from some roots, as it was.

    Args:
        stores (bool, optional): Whether to look into functions, for what a hook keeps: what it
            closes over, its defaults, and the globals that it names. Default: False

    Attributes:
        known (dict[int, Any]): All that was found, by `id`; it is kept alive, so that no `id` is
            used again.
        met (set[int]): Modules that were met in a pass, which may have made them, by `id`.
        lazy (bool): Whether a parameter has no shape yet.
        compiled (bool): Whether a part of the model is compiled.
        opaque (bool): Whether there was something to look into that nobody can.
        hooks (list[dict]): Where there are hooks that act in a forward pass.
    """

    def __init__(self, *, stores: bool = False) -> None:
        self.known: dict[int, Any] = {}
        self.met: set[int] = set()
        self.lazy = self.compiled = self.opaque = False
        self._stores = stores
        self._rows = _Rows()
        self._empty: list[Any] = []  # containers; and flags, which are false
        self._places: list[_Place] = []
        self._states: list[tuple[Callable[[], Any], Callable[[Any], object], Any]] = []
        self._parameters = _Parameters()
        self._values = _Values()
        self._quiet = _Values(counted=True)
        self._small = _Values()  # parameters that a first batch may set
        self._kept = (self._parameters, self._values, self._quiet, self._small)
        self.hooks: list[dict[int, Any]] = []
        if not stores:
            self._open_hooks(*_global_hooks())
            self._empty += filterfalse(None, _global_hooks())

    # --- the walk ---------------------------------------------------------------------------------

    def add(self, *roots: Any) -> None:
        """Remembers what can be reached from further roots, as it is now."""
        found: list[tuple[Any, int]] = [(root, 0) for root in roots]
        while found:
            value, depth = found.pop()
            if id(value) in self.known or (not self._stores and type(value) in _CODE):
                continue
            self.known[id(value)] = value
            if isinstance(value, nn.Module):
                inside, depth = self._open_module(value), 0
            elif isinstance(value, Tensor):
                self._add_tensor(value, self._values)
                continue
            else:
                inside = self._open(value, depth)
                depth += not isinstance(value, _CONTAINERS)
            if ATOMS.issuperset(map(type, inside)):  # as most often
                continue
            for part in inside:
                kind = type(part)
                if kind in ATOMS or (kind is tuple and ATOMS.issuperset(map(type, part))):
                    continue
                if kind in _EMPTIABLE and not part:
                    self._empty.append(part)
                else:
                    found.append((part, depth))
        for kept in (self._rows, *self._kept):
            kept.settle()

    def skip(self, other: Memory) -> None:
        """Leaves out what another one remembers."""
        self.known.update(other.known)

    def _add_tensor(self, tensor: Tensor, values: _Values) -> None:
        if type(tensor) is not Tensor and is_lazy(tensor):
            self.lazy = True
        elif type(tensor) is not Tensor and isinstance(tensor, nn.Parameter):
            self._parameters.new.append(tensor)
        elif not tensor.is_meta:  # writes to a tensor of inference mode are not counted
            (self._values if tensor.is_inference() else values).new.append(tensor)

    def _open_module(self, module: nn.Module) -> Iterable[Any]:
        """Remembers a module: its attributes, its registers of tensors, and which hooks it has."""
        attributes = module.__dict__
        self._add_dict(attributes, "forward" in attributes)
        if isinstance(module, torch.jit.ScriptModule):  # its attributes are not Python's
            self._open_hooks(*map(attributes.get, _HOOKS))
            return [*attributes.values(), *module.buffers(), *module.parameters()]
        usual, inside = [], [*attributes.values()]
        if tuple(islice(attributes, len(_USUAL))) == _USUAL:
            usual, inside = inside[: len(_USUAL)], inside[len(_USUAL) :]
        else:
            usual = [*map(attributes.get, _USUAL)]
        self._empty += filterfalse(None, usual)
        for name in compress(_USUAL, usual):  # few are not empty
            register = attributes[name]
            if name == "_parameters" or name == "_buffers":
                self._open_tensors(module, register)
            elif name == "_modules":
                self.known[id(register)] = register
                self._rows.new.append(register)
                self.compiled = self.compiled or "_orig_mod" in register
                inside += register.values()
            elif name in _HOOKS:
                self._open_hooks(register)
            else:
                inside.append(register)
        return inside

    def _open_tensors(self, module: nn.Module, register: dict[str, Tensor | None]) -> None:
        """Remembers parameters or buffers."""
        known = self.known
        known[id(register)] = register
        self._rows.new.append(register)
        own = type(module).__module__.startswith("torch.")
        quiet = own and not module.training
        statistics = isinstance(module, _NormBase)
        for tensor in register.values():
            if not own and type(tensor) is nn.Parameter and tensor.numel() <= 4096:
                self._small.new.append(tensor)  # by `.data` they may be written uncounted
            if tensor is None or id(tensor) in known:
                continue
            known[id(tensor)] = tensor
            if type(tensor) is nn.Parameter:
                self._parameters.new.append(tensor)
                continue
            # batch norm writes its statistics uncounted, also where a model calls it as a function
            counted = quiet and not (statistics and tensor.ndim)
            self._add_tensor(tensor, self._quiet if counted else self._values)

    def kinds(self) -> set[type]:
        """The classes of the modules that were found, with those that they come from."""
        found = {type(value) for value in self.known.values() if isinstance(value, nn.Module)}
        return {kind for one in found for kind in one.__mro__}

    def _open_hooks(self, *registers: dict[int, Any] | None) -> None:
        """Remembers which hooks there are, but not what they keep, which is not the model's."""
        for hooks in filter(None, registers):
            self.known[id(hooks)] = hooks
            self._add_dict(hooks)
            self.hooks.append(hooks)

    def _add_dict(self, now: dict[Any, Any], may_be_ours: bool = True) -> None:
        if may_be_ours and any(map(_is_ours, now.values())):
            self._rows.add(now, {name: value for name, value in now.items() if not _is_ours(value)})
        else:
            self._rows.new.append(now)

    def _add_place(
        self, read: Callable[[], list[Any]], write: Callable[[Any], object]
    ) -> list[Any]:
        before = read()
        self._places.append(_Place(read, write, before))
        return before

    def _open(self, value: Any, depth: int) -> Iterable[Any]:
        """Remembers what an object holds, and returns that."""
        if isinstance(value, dict):
            self._add_dict(value)
            return list(value.values())
        if isinstance(value, list):
            self._rows.new.append(value)
            return value
        if isinstance(value, (deque, set)):
            return self._add_place(lambda: list(value), functools.partial(_restore, value))
        if isinstance(value, (tuple, frozenset)):
            return value
        if isinstance(value, functools.partial):
            return (value.func, value.args, value.keywords)
        if isinstance(value, types.MethodType):
            return (value.__self__, value.__func__)
        if isinstance(value, types.FunctionType):
            return self._open_function(value) if self._stores else ()
        if isinstance(value, types.CellType):
            return self._add_place(lambda: contents_of(value), functools.partial(_fill, value))
        if isinstance(value, contextvars.ContextVar):
            return self._add_place(
                lambda: [value.get(_MISSING)], lambda old: old[0] is _MISSING or value.set(old[0])
            )
        return self._open_object(value, depth)

    def _open_function(self, function: types.FunctionType) -> Iterable[Any]:
        if _root(function) in _NOT_THE_MODEL:
            return ()
        places = function.__globals__
        names_ = tuple(names_in(function.__code__))
        names = [name for name in names_ if name in places]
        globals_ = self._add_place(
            lambda: [places.get(name) for name in names],
            lambda old: places.update(zip(names, old, strict=True)),
        )
        of_modules = [
            vars(value).get(name, _MISSING)
            for value in globals_
            if isinstance(value, types.ModuleType) and not is_foreign(value.__name__)
            for name in names_
        ]
        # a function that is named is code, not a store
        return (
            *(v for v in (*globals_, *of_modules) if not isinstance(v, types.FunctionType)),
            *(function.__closure__ or ()),
            *(function.__defaults__ or ()),
            *(function.__kwdefaults__ or {}).values(),
            function.__dict__,
        )

    def _open_object(self, value: Any, depth: int) -> Iterable[Any]:
        kind = type(value)
        if isinstance(value, (torch.Generator, random.Random)) or _is_array(value):
            self._add_state(value)
            return ()
        if isinstance(value, type):
            return self._open_class(value) if self._stores else ()
        known = kind in (types.SimpleNamespace, threading.local)
        if (not known and is_foreign(kind.__module__)) or isinstance(value, enum.Enum):
            self.opaque = self.opaque or _root(kind) not in _NOT_THE_MODEL
            return ()
        if depth >= DEEPEST:
            self.opaque = True
            return ()
        inside: list[Any] = []
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._add_dict(attributes)
            inside += attributes.values()
        slots = [name for part in kind.__mro__ for name in _slots(part)]
        if slots:
            inside += self._add_place(
                lambda: [getattr(value, name, _MISSING) for name in slots],
                functools.partial(_put_all, value, slots),
            )
        return inside

    def _open_class(self, kind: type) -> Iterable[Any]:
        """What a class keeps for all its objects."""
        if is_foreign(kind.__module__):
            return ()
        before = _own(kind)
        self._add_place(lambda: [*_own(kind).values()], lambda _: _put_own(kind, before))
        return [value for value in before.values() if not isinstance(value, _WRITTEN)]

    def _add_state(self, value: Any) -> None:
        read, write = _state_of(value)
        self._states.append((read, write, read()))

    # --- what has become of it ------------------------------------------------------------------

    def changed(self) -> bool:
        """Whether anything is, or may be, different; on an accelerator no value is read."""
        return (
            not self._same_contents()
            or any(not _equal(read(), before) for read, _, before in self._states)
            or any(kept.changed() for kept in self._kept)
        )

    def put_back(self) -> None:
        """Gives all of it the content that it had."""
        if not self._same_contents():
            for *_, restore in self._changes():
                restore()
        for read, write, before in self._states:
            if not _equal(read(), before):
                write(before)
        for kept in self._kept:
            kept.put_back()

    def built(self) -> bool:
        """Whether the model has made something that lasts: a module, a hook, a buffer, weights.

        To put that back would leave the model half made. It wants a plain pass, and to be
        remembered after that.
        """
        if self._parameters.written() or self._small.written():
            return True
        registers = self._registers()
        return any(
            (id(now) in registers and name not in before and not _is_ours(value))
            or self._has_new(value, (nn.Module, nn.Parameter))
            for now, before, _ in self._changes()
            for name, value in (now.items() if isinstance(now, dict) else enumerate(now))
            if not isinstance(before, dict) or before.get(name, _MISSING) is not value
        )

    def _same_contents(self) -> bool:
        """Whether no container has changed; in few steps, since this runs around each pass."""
        return (
            not any(self._empty)
            and self._rows.same()
            and not any(map(_Place.changed, self._places))
        )

    def _changes(self) -> Iterator[tuple[Any, Any, Callable[[], object]]]:
        """The containers that have changed, with what they held, and what puts it back."""
        for now, before in self._rows.changed():
            yield now, before, functools.partial(_restore, now, before)
        for container in filter(None, self._empty):
            yield container, type(container)(), functools.partial(_restore, container, ())
        for place in self._places:
            if place.changed():
                yield place.read(), place.before, functools.partial(place.write, place.before)

    def _registers(self) -> set[int]:
        """Where modules have their hooks, parts and tensors by name, by `id`."""
        befores = (before for _, before in self._rows.befores() if isinstance(before, dict))
        of_modules = [before for before in befores if "_forward_hooks" in before]
        found = [before.get(name) for before in of_modules for name in _REGISTERS]
        return set(map(id, (*found, *_global_hooks())))

    def _has_new(self, value: Any, kinds: type | tuple[type, ...]) -> bool:
        new = (part for part in parts_of(value) if isinstance(part, kinds))
        return any(id(part) not in self.known or id(part) in self.met for part in new)

    def put_back_tensors(self) -> bool:
        """Puts back only those containers in which there are new tensors.

        What a function counts or notes stays.

        Returns:
            *bool*: Whether there were any.
        """
        new = [
            restore
            for now, _, restore in self._changes()
            if any(self._has_new(value, Tensor) for value in _values_of(now))
        ]
        for restore in new:
            restore()
        return bool(new)

    def pin_parameters(self, before: Memory) -> None:
        """Keeps the values of those parameters too that were written since `before`.

        A model that writes its parameters in every pass, as adaptation at test time does, then has
        those of its first.
        """
        written = set(map(id, before._parameters.written()))
        self._values.new += [p for p in self._parameters.tensors if id(p) in written]
        self._values.settle()


def foreign_hooks(registers: Iterable[dict[int, Any]]) -> list[Any]:
    """The hooks in some registers that are neither torch's own nor of this package."""
    hooks = [hook for register in registers for hook in register.values()]
    return [hook for hook in hooks if _root(hook) not in _OURS and _root(type(hook)) != "torch"]


class _Parameters:
    """Parameters, without their values, because they are large and a pass does not write them."""

    def __init__(self) -> None:
        self.new: list[Tensor] = []
        self.tensors: list[Tensor] = []
        self.versions: list[int] = []
        self.flags: list[bool] = []
        self.grads: list[Tensor | None] = []

    def settle(self) -> None:
        """Notes how the new ones are."""
        new, self.new = self.new, []
        self.tensors += new
        self.versions += map(_writes, new)
        self.flags += [one.requires_grad for one in new]
        self.grads += [one.grad for one in new]

    def written(self) -> list[Tensor]:
        noted = zip(self.tensors, self.versions, strict=True)
        return [one for one, version in noted if version != _writes(one)]

    def changed(self) -> bool:
        return (
            [one.requires_grad for one in self.tensors] != self.flags
            or not _same([one.grad for one in self.tensors], self.grads)
            or bool(self.written())
        )

    def put_back(self) -> None:
        for one, flag, grad in zip(self.tensors, self.flags, self.grads, strict=True):
            if one.requires_grad is not flag:
                one.requires_grad_(flag)
            if one.grad is not grad:
                one.grad = grad


@dataclass(frozen=True)
class _Lot:
    """Tensors of one type with the values that they had, joined: one operation copies them all."""

    tensors: list[Tensor]
    versions: list[int]
    shapes: list[torch.Size]
    values: Tensor

    @classmethod
    def of(cls, tensors: list[Tensor]) -> _Lot:
        shapes = [tensor.shape for tensor in tensors]
        return cls(tensors, [*map(_writes, tensors)], shapes, _joined(tensors))

    def counted(self) -> bool:
        """Whether a write was counted."""
        return [*map(_writes, self.tensors)] != self.versions

    def alike(self) -> bool:
        """Whether shapes and types are as they were."""
        same = [tensor.shape for tensor in self.tensors] == self.shapes
        return same and {tensor.dtype for tensor in self.tensors} == {self.values.dtype}

    def differs(self) -> bool:
        """Whether a value, a shape or a type has changed; a NaN equals itself."""
        if not self.alike():
            return True
        now = _joined(self.tensors)
        return not now.view(torch.uint8).equal(self.values.view(torch.uint8))

    def put_back(self) -> None:
        parts = self.values.split([shape.numel() for shape in self.shapes])
        values = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        if self.values.is_cpu or not (self.alike() and _written_at_once(self.tensors, values)):
            for tensor, value in zip(self.tensors, values, strict=True):
                _write(tensor, value)
        self.versions[:] = map(_writes, self.tensors)


class _Values:
    """Tensors with the values that they had.

    Args:
        counted (bool, optional): Whether all writes to them are counted. Those to `tensor.data` are
            not, nor those of batch norm. So values are compared, or, on an accelerator, where none
            is read, written back in any case. Default: False
    """

    def __init__(self, *, counted: bool = False) -> None:
        self.are_counted = counted
        self.new: list[Tensor] = []
        self.lots: list[_Lot] = []
        self.others: list[tuple[Tensor, int, Tensor]] = []

    def settle(self) -> None:
        """Keeps the values of the new ones."""
        new, self.new = self.new, []
        by_type = defaultdict(list)
        for tensor in new:
            dense = tensor.layout is torch.strided and not tensor.is_quantized
            if dense and type(tensor) in _PLAIN:
                by_type[tensor.dtype, tensor.device].append(tensor)
            else:
                self.others.append((tensor, _writes(tensor), tensor.detach().clone()))
        self.lots += map(_Lot.of, by_type.values())

    def written(self) -> bool:
        """Whether a value has changed, as far as that is known without reading an accelerator."""
        return any(lot.counted() or (lot.values.is_cpu and lot.differs()) for lot in self.lots)

    def changed(self) -> bool:
        """Whether a value may have changed."""
        others = any(_writes(tensor) != version for tensor, version, _ in self.others)
        return others or any(map(self._may_differ, self.lots))

    def _may_differ(self, lot: _Lot) -> bool:
        same = self.are_counted or (lot.values.is_cpu and not lot.differs())
        return lot.counted() or not same

    def put_back(self) -> None:
        for lot in filter(self._may_differ, self.lots):
            lot.put_back()
        for place, (tensor, version, value) in enumerate(self.others):
            if _writes(tensor) != version:
                _write(tensor, value)
                self.others[place] = tensor, _writes(tensor), value


def _writes(tensor: Tensor) -> int:
    """How often a tensor was written to; always -1 in inference mode, where nobody counts."""
    return -1 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _joined(tensors: list[Tensor]) -> Tensor:
    flat = [tensor if tensor.ndim == 1 else tensor.reshape(-1) for tensor in tensors]
    return torch.cat(flat)


def _written_at_once(tensors: list[Tensor], values: list[Tensor]) -> bool:
    """Writes tensors in one operation, for batch norms are many; whether that could be done."""
    with suppress(RuntimeError):  # one of them is expanded
        torch._foreach_copy_([tensor.data for tensor in tensors], values)
        return True
    return False


def _write(tensor: Tensor, value: Tensor) -> None:
    """Writes a tensor without being counted, since whoever took its gradient has the old values."""
    data = tensor.data
    alike = data.shape == value.shape and data.dtype == value.dtype
    if not alike or data.layout is not torch.strided:
        with torch.inference_mode(tensor.is_inference()):  # the memory of one kind for its own
            tensor.data = value.clone()
    elif not data.is_cpu or not data.equal(value):
        with suppress(RuntimeError):  # nobody can write to what is expanded, neither did the model
            data.copy_(value)


def _restore(now: Any, before: Any) -> None:
    """Gives a container its content, but leaves our own hooks in it."""
    if isinstance(now, dict):
        _restore_dict(now, dict(before))
    else:
        now.clear()
        (now.update if isinstance(now, set) else now.extend)(before)


def _restore_dict(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    ours = {name: value for name, value in now.items() if _is_ours(value)}
    for name in [name for name in now if name not in before and name not in ours]:
        del now[name]
    for name, value in before.items():
        if name not in ours and now.get(name, _MISSING) is not value:
            now[name] = value
    if not ours and not _same(now, before):  # in another order
        now.clear()
        now.update(before)


def _values_of(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _equal(now: Any, before: Any) -> bool:
    """Whether two states of a generator, or the bytes of an array, are equal."""
    return repr(now) == repr(before) if isinstance(now, (dict, tuple)) else bool(now == before)


def _state_of(value: Any) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    """How to read and write the state of a generator, or the values of an array."""
    if isinstance(value, torch.Generator):
        return lambda: value.get_state().tolist(), lambda old: value.set_state(
            torch.tensor(old, dtype=torch.uint8)
        )
    if isinstance(value, random.Random):
        return value.getstate, value.setstate
    if hasattr(value, "bit_generator"):  # numpy.random.Generator
        bits = value.bit_generator
        return lambda: bits.state, functools.partial(setattr, bits, "state")
    if hasattr(value, "get_state"):  # numpy.random.RandomState
        return value.get_state, value.set_state
    values = value.copy()  # numpy.ndarray
    return value.tobytes, lambda _: value.__setitem__(..., values)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return False
    own = numpy.random
    return isinstance(value, (numpy.ndarray, own.Generator, own.RandomState))


def parts_of(value: Any) -> Iterator[Any]:
    """A value and what is in it, through containers and objects of a few levels."""
    found, seen = [(value, 0)], set()
    while found:
        part, depth = found.pop()
        if type(part) in ATOMS or id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, dict):
            found += [(inner, depth) for inner in part.values()]
        elif isinstance(part, _CONTAINERS):
            found += [(inner, depth) for inner in part]
        elif isinstance(part, (Tensor, nn.Module)) or _root(type(part)) in _NOT_THE_MODEL:
            continue
        elif isinstance(getattr(part, "__dict__", None), dict) and depth < DEEPEST:
            found += [(inner, depth + 1) for inner in vars(part).values()]


def names_in(code: types.CodeType) -> Iterator[str]:
    """The names in a function and in those that are written inside it."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from names_in(inner)


def contents_of(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # it is empty
        return []


def _fill(cell: types.CellType, contents: list[Any]) -> None:
    if contents:
        cell.cell_contents = contents[0]


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if not name.startswith("__")]


def _put_all(value: Any, names: list[str], contents: list[Any]) -> None:
    for name, content in zip(names, contents, strict=True):
        if content is not _MISSING:
            setattr(value, name, content)
        elif hasattr(value, name):
            delattr(value, name)
