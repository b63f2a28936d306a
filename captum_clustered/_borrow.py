"""A model is lent, run any number of times, and given back as it was.

Every pass finds the model as the first one did, and so does the caller afterwards: what the model
writes into itself is put back, see :mod:`captum_clustered._state`, and so are torch's flags and the
random numbers that it drew.

Private parts of PyTorch: `torch.utils._python_dispatch`, which shows the operations of one thread
and hides them, `OptimizedModule._orig_mod`, the model inside a compiled one, and `torch._C`, for
`DisableTorchFunction`, by which no mode listens.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from captum_clustered._state import (
    ATOMS,
    DEEPEST,
    Memory,
    contents_of,
    foreign_hooks,
    is_foreign,
    names_in,
    parts_of,
)

__all__ = ["Lent", "borrowed", "lent", "lent_to"]

T = TypeVar("T")


class Lent:
    """A model, or a function that runs it, whose every pass begins with the model as it was.

    Args:
        forward_func (callable): The model, or a function that runs it.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func
        self._known: list[Any] = _owners(forward_func)
        self._numbers = _RandomNumbers()
        self._flags = [read() for read, _ in _FLAGS]
        self._plain: Callable[[], object] | None = None
        self._settled = self._led = False
        self._clean = True  # nothing ran since it was as it is to be
        self._remember()

    def __call__(self, *args: Any, within: AbstractContextManager[Any] | None = None) -> Any:
        """Runs the model once, and it alone within a context."""
        if self._settled or self._led:
            return self._run(args, within)
        # clones, since a model that has built something runs again
        return self.settled(lambda: self._run(_cloned(args), within), lambda: _cloned(args))

    def settled(self, attempt: Callable[[], T], args: Callable[[], tuple[Any, ...]]) -> T:
        """The first pass of a model that has built by then what it builds when it is first called.

        Some models install hooks, make layers, or take their scale from their first batch. A model
        that does so gets one plain pass, and is remembered only then.

        Args:
            attempt (callable): Makes the first pass. It is called again if the model was new.
            args (callable): Gives the arguments of a plain pass.

        Returns:
            *Any*: What `attempt` returned.
        """
        if self._settled or self._led:
            return attempt()
        self._plain = lambda: self._run(args())
        self._led = True
        try:
            found = self._tried(attempt)
            if found is None:
                self._build()
                found = (attempt(),)
            self._numbers.settle(self._plain)
        finally:
            self._led = False
        self._settled = True
        return found[0]

    def _tried(self, attempt: Callable[[], T]) -> tuple[T] | None:
        """What the first pass gives, or None if it has built something."""
        if self._memory.lazy:
            return None
        try:
            found = attempt()
        except Exception:
            if self._memory.built():
                return None
            raise
        # the backward pass of a graph that is still there may have hooks
        self._clean = not (torch.is_grad_enabled() or self._memory.changed())
        built = self._memory.lazy or (not self._clean and self._memory.built())
        return None if built else (found,)

    def _build(self) -> None:
        """Makes the plain pass in which a new model builds what it needs."""
        assert self._plain is not None
        before = self._memory
        self._clean = self._clean or before.lazy  # it is not to be put back without a shape
        self._numbers.rewind()
        self._plain()
        self._numbers.rewind()
        self._remember()
        self._memory.pin_parameters(before)

    def put_back(self) -> None:
        """Gives the model, and what else it may write into, the content that it had.

        Of what its classes keep that is tensors alone: a count of all calls may be meant.
        """
        self._classes.put_back_tensors()
        if not self._clean:
            with _disable_current_modes():  # a mode that watches the model is not to see this
                self._memory.put_back()

    def _run(self, args: tuple[Any, ...], within: AbstractContextManager[Any] | None = None) -> Any:
        self.put_back()
        self._clean = False
        with self._numbers.of_the_model(), self._found_on_the_way(), within or nullcontext():
            return self.forward_func(*args)

    @contextmanager
    def _found_on_the_way(self) -> Iterator[None]:
        """Remembers a module that no one could know of, just before its first call."""
        # what is compiled is compiled again where a hook acts on all modules
        if self._settled or isinstance(self.forward_func, nn.Module) or self._memory.compiled:
            yield
            return
        owner = threading.get_ident()

        def begin(module: nn.Module, _: Any) -> None:
            if id(module) not in self._memory.known and threading.get_ident() == owner:
                self._known.append(module)
                self._memory.met.add(id(module))
                with torch._C.DisableTorchFunction():  # a mode that listens to the model
                    self._add(module)

        handle = register_module_forward_pre_hook(begin)
        try:
            yield
        finally:
            handle.remove()

    def remember(self, *values: Any) -> None:
        """Has further objects put back too, such as a cache among the arguments."""
        self._known += values
        self._add(*values)

    def _remember(self) -> None:
        self._memory, self._stores = Memory(), Memory(stores=True)
        self._classes = Memory(stores=True)
        self._has_foreign_hooks = False
        self._add(*self._known)

    def _add(self, *roots: Any) -> None:
        self._memory.add(*roots)
        self._classes.add(*self._memory.kinds())
        hooks = foreign_hooks(self._memory.hooks)
        if hooks:
            self._has_foreign_hooks = True
            self._stores.skip(self._memory)  # what belongs to the model is put back anyway
            self._stores.add(*hooks)

    def give_back(self, *, failed: bool) -> None:
        """Puts the model back for good.

        If the hooks of others keep what they have seen, they see a plain pass as the last one.

        Args:
            failed (bool): Whether an error is on its way, which no other should hide.
        """
        self.put_back()
        kept = self._has_foreign_hooks and (self._stores.put_back_tensors() or self._stores.opaque)
        if kept and self._settled and self._plain is not None:
            with suppress(*[Exception] if failed else []):
                self._plain()
            self.put_back()
        self._plain = None  # it holds this object, so that nobody but a collection would free it
        for (read, write), before in zip(_FLAGS, self._flags, strict=True):
            if read() != before:
                write(before)


def _cloned(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(arg.clone() if isinstance(arg, torch.Tensor) else arg for arg in args)


@contextmanager
def lent(forward_func: Callable[..., Any], *holders: Any) -> Iterator[Lent]:
    """Lends a model, to one thread at a time, until the context is left.

    Args:
        forward_func (callable): The model, or a function that runs it.
        *holders (Any): What else the model may write into, such as a cache among its arguments.

    Yields:
        What runs it.
    """
    with _one_at_a_time():
        model = Lent(forward_func)
        model.remember(*holders)
        failed = True
        try:
            yield model
            failed = False
        finally:
            model.give_back(failed=failed)


class _Asked(Protocol):
    """A frozen dataclass that holds a model and what else it takes."""

    @property
    def forward_func(self) -> Callable[..., Any]: ...
    @property
    def others(self) -> tuple[Any, ...]: ...


A = TypeVar("A", bound=_Asked)


@contextmanager
def lent_to(asked: A) -> Iterator[A]:
    """The same with a lent model, until the context is left."""
    with lent(asked.forward_func, *asked.others) as forward_func:
        yield dataclasses.replace(asked, forward_func=forward_func)  # type: ignore[type-var]


@contextmanager
def borrowed(forward_func: Callable[..., Any]) -> Iterator[Lent]:
    """Lends a model that runs without gradients and as it is written, not as it is compiled.

    Args:
        forward_func (callable): The model, or a function that runs it.

    Yields:
        What runs it.
    """
    with ExitStack() as stack:
        stack.enter_context(_one_at_a_time())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings(
                "ignore", r"Using `torch.compile\(module\)` when there are global"
            )
        yield stack.enter_context(lent(_unwrap(forward_func)))


def _unwrap(forward_func: Callable[..., Any]) -> Callable[..., Any]:
    """The model inside the wrappers that spread it over devices or compile it."""
    while True:
        if isinstance(forward_func, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            forward_func = forward_func.module
        elif hasattr(forward_func, "_orig_mod"):  # torch.compile
            forward_func = forward_func._orig_mod
        else:
            return forward_func


def _owners(forward_func: Any) -> list[Any]:
    """The modules behind a function, and the objects whose method it is."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting = [(forward_func, 0, True)]
    while waiting:
        value, depth, owns = waiting.pop()
        if id(value) in seen or type(value) in ATOMS:
            continue
        seen.add(id(value))
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            if depth < DEEPEST:
                owns = not isinstance(value, types.FunctionType)
                waiting += [(part, depth + 1, owns) for part in _inside_function(value)]
        elif owns or isinstance(value, nn.Module):
            found.append(value)
        else:  # what else a function closes over is not the model's, but may hold it
            found += [part for part in parts_of(value) if isinstance(part, nn.Module)]
    return found


def _inside_function(value: Any) -> list[Any]:
    """What a function, a method or a partial holds or names."""
    if isinstance(value, types.MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if is_foreign(value.__module__ or ""):
        return []
    named = [value.__globals__.get(name) for name in names_in(value.__code__)]
    held = [content for cell in value.__closure__ or () for content in contents_of(cell)]
    return [*named, *held, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]


_cudnn = torch.backends.cudnn
_FLAGS: list[tuple[Callable[[], Any], Callable[[Any], object]]] = [
    (torch.get_default_dtype, torch.set_default_dtype),
    (lambda: _cudnn.enabled, lambda value: setattr(_cudnn, "enabled", value)),
    (lambda: _cudnn.benchmark, lambda value: setattr(_cudnn, "benchmark", value)),
    (lambda: _cudnn.deterministic, lambda value: setattr(_cudnn, "deterministic", value)),
]


# --- random numbers -------------------------------------------------------------------------------


_States = dict[str, Any]


class _RandomNumbers:
    """The global random numbers, of which the model gets a stream of its own.

    A model that draws none has nothing put back, or the numbers that another thread has drawn in
    the meantime would come again.
    """

    def __init__(self) -> None:
        self.draws: bool | None = None  # not known yet
        self.stream: _States | None = None
        self.first: tuple[_States, _States] | None = None  # before and after the first pass

    @contextmanager
    def of_the_model(self) -> Iterator[None]:
        """Around each pass."""
        if self.draws is False:
            yield
            return
        before = _read_states()
        if self.stream is not None:
            _write_states(self.stream)
        try:
            yield
        finally:
            after = _read_states()
            if self.draws:
                self.stream = after
                _write_states(before)
            elif self.first is None and _changed(before, after):
                self.first = before, after

    def settle(self, plain: Callable[[], object]) -> None:
        """Finds out whether the model drew the numbers, if they went on in the first pass."""
        if self.draws is not None:
            return
        self.draws = False
        if self.first is None:
            return
        before, after = self.first
        again = _read_states()
        with _Draws() as seen:
            plain()
        # torch's own are seen by thread; of the others, twice is taken for always
        twice = _changed(before, after) & _changed(again, _read_states())
        self.draws = seen.any or not twice.isdisjoint(("python", "numpy"))
        if self.draws:
            self.stream = after
            _write_states(before)

    def rewind(self) -> None:
        """Takes back what was drawn so far."""
        if self.first is not None:
            _write_states(self.first[0])
            self.first = None


class _Draws(TorchDispatchMode):
    """Notes whether an operation of this thread draws random numbers."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.any = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.any = self.any or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _read_states() -> _States:
    states: _States = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    return states


def _write_states(states: _States) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    if "numpy" in states:
        sys.modules["numpy"].random.set_state(states["numpy"])


def _changed(before: _States, after: _States) -> set[str]:
    """The names of the generators that went on."""

    def plain(state: Any) -> Any:
        if isinstance(state, torch.Tensor):  # not by torch, whose operations may be intercepted
            return ctypes.string_at(state.data_ptr(), state.nbytes)
        return [part.tobytes() if hasattr(part, "tobytes") else part for part in state]

    return {name for name in before if plain(before[name]) != plain(after[name])}


# --- one at a time --------------------------------------------------------------------------------


class _Turn:
    """A lock that its holder may take again, and that a fork waits for.

    If a process forks while another thread holds the lock, nobody ever releases the child's, and
    the child's model has stand-ins in it. So the fork waits until the model is given back, and
    those who come later wait for the fork. It does not wait for ever, in case the holder waits for
    the forking thread.
    """

    patience = 60.0
    """Seconds."""

    def __init__(self) -> None:
        self._gate, self._model = threading.Lock(), threading.RLock()
        self._holder: int | None = None
        self._held: list[Any] = []  # by the thread that forks
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_fork,
                after_in_child=self._in_child,
            )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._holder == me:
            yield
            return
        with self._gate:
            self._model.acquire()
        self._holder = me
        try:
            yield
        finally:
            self._holder = None
            self._model.release()

    def _before_fork(self) -> None:
        if self._holder == threading.get_ident():
            return
        if self._gate.acquire(timeout=self.patience):
            taken: list[Any] = [self._gate]
            if self._model.acquire(timeout=self.patience):
                taken.append(self._model)
            self._held = taken

    def _after_fork(self) -> None:
        taken, self._held = self._held, []
        for lock in taken:
            lock.release()

    def _in_child(self) -> None:
        self._gate, self._held = threading.Lock(), []
        if self._holder != threading.get_ident():
            self._model, self._holder = threading.RLock(), None


_one_at_a_time = _Turn()
"""Held while a model is lent, because its modules hand out recorded values meanwhile."""
