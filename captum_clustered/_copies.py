"""Copies of examples in one pass of a model, and whether they leave each other alone.

A model is expected to answer for each example as if it were alone in the batch. Not every model
does: some normalise over the batch, divide by its largest value, or take another branch for it. So
an unchanged copy rides along with the others, and must get what it got alone. Before and behind all
ride a loud copy, whose values are four times as large, and its opposite, because the unchanged copy
has the largest value of all copies that lack something, and may have the smallest. (Twice as large,
it could make up for just what the others lack.) One of the others must get what it gets alone, too:
in a minimum behind a ReLU, for example, the unchanged copy may feel nobody. That one is the first
and the unchanged one the last, in case their place counts, as for experts with a capacity. Where a
batch is smaller than the one that was checked, an unchanged copy rides along in it, too: the number
may count. A model that computes a mean, a maximum, an order or the like over the first axis, or
reads a value, is stopped at once: what it does next may hold for all copies.

An argument that has one row for each example is repeated with the examples. One that all examples
share may have as many rows by chance, and that, too, only the unchanged copy tells.

Private parts of PyTorch: `torch.utils._python_dispatch`, which sees each operation, with the
operation `_local_scalar_dense`, which reads a value, and `_schema`, which tells whether one writes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, ValuesView
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "MIXES",
    "OVER",
    "READS",
    "UNSTEADY",
    "Parted",
    "Shared",
    "agree",
    "first_that_agrees",
    "loud",
    "opposite",
    "plans",
    "scale_of",
    "tolerance",
    "watched",
]

MIXES = "a copy got another score in a batch of copies than alone, so the model mixes examples"
"""Why copies cannot share a pass, where nothing more is known."""

READS = "the model reads values (as by `.item()` or `if`), which may hold for all examples at once"
"""Why copies cannot share a pass, where the model decides by values."""

OVER = "the model computes a value over all examples of the batch"
"""Why copies cannot share a pass, where an operation says so."""

UNSTEADY = (
    "`forward_func` gave another score when it ran again with the same inputs: it is random, or "
    "keeps what it saw before. What is computed here contains that difference as noise. Switch off "
    "what makes it random (noise, dropout by hand, sampling), or what it keeps."
)
"""What to say of a model that does not give the same score twice."""

_SUBSETS = 4
"""Up to so many arguments, all choices of those that are repeated are tried."""

_aten = torch.ops.aten
_READING = {_aten._local_scalar_dense.default, _aten.equal.default}
_OVER_AN_AXIS = {
    *("amax", "amin", "aminmax", "argmax", "argmin", "max", "min", "mean", "median", "nanmedian"),
    *("std", "std_mean", "sum", "nansum", "prod", "var", "var_mean", "norm", "linalg_vector_norm"),
    *("logsumexp", "_softmax", "_log_softmax", "sort", "topk", "kthvalue", "mode"),
    *("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"),
}
"""Operations whose result at one place of an axis, or for all of it, depends on the others."""

_FOR_EACH = {_aten.any.default: False, _aten.all.default: True}
"""What, if it is the answer for all examples together, is that for each alone: none has a NaN."""


_LEAVING = {"__array__", "__dlpack__", "numpy", "tolist"}
"""Methods that hand out values without an operation."""


class Parted(BaseException):
    """Stops a model, and says why; not an Exception, so that no model takes it for its own."""


class _Watch(TorchDispatchMode):
    """Stops where a value is read, or computed over the batch, that depends on certain tensors.

    Attributes:
        relied (bool): Whether the model decided by what held for all examples, and so for each. In
            another batch it may not.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = len(tensors[0])
        self.relied = False
        self.known: set[StorageWeakRef] = set()
        self.for_each: dict[StorageWeakRef, bool] = {}
        self._add(tensors)

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors([args, kwargs.values()]))
        depends = self.depends(given)
        output = func(*args, **kwargs)
        if depends and func in _READING:
            if not any(self.for_each.get(storage) is output for storage in _storages(given)):
                raise Parted(READS)
            self.relied = True
            return output
        if depends:
            if _is_over_the_batch(func, args, kwargs, self.rows):
                raise Parted(OVER)
            if func in _FOR_EACH:
                self.for_each.update(dict.fromkeys(_storages([output]), _FOR_EACH[func]))
            written = given if func._schema.is_mutable else []
            self._add([*written, *_tensors([output])])
        return output

    def depends(self, tensors: Iterable[Tensor]) -> bool:
        """Whether one of the tensors depends on those that are watched."""
        return not self.known.isdisjoint(_storages(tensors))

    def _add(self, tensors: Iterable[Tensor]) -> None:
        self.known.update(_storages(tensors))


class _WatchMethods(TorchFunctionMode):
    """Stops where values leave for Python or NumPy, which is no operation."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        leaves = getattr(func, "__name__", "") in _LEAVING
        if leaves and self.watch.depends(_tensors(args[:1])):
            raise Parted(READS)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(tensors: Sequence[Tensor]) -> Iterator[_Watch]:
    """Stops a model that does not leave examples alone, by a :class:`Parted`, as far as is seen.

    Args:
        tensors (sequence[Tensor]): What the model runs on; the batch of the first counts.
    """
    with _Watch(tensors) as watch, _WatchMethods(watch):
        yield watch


def _is_over_the_batch(func: Any, args: Any, kwargs: dict[str, Any], rows: int) -> bool:
    """Whether an operation puts together what lies along the batch axis of its first argument.

    Where another axis is as long, nobody knows which is the batch.
    """
    tensor = args[0] if args else None
    schema = func._schema
    if schema.name.rpartition("::")[2] not in _OVER_AN_AXIS or not isinstance(tensor, Tensor):
        return False
    if tensor.ndim == 0 or len(tensor) != rows or rows in tensor.shape[1:]:
        return False
    dims = None
    for place, argument in enumerate(schema.arguments):
        if argument.name == "dim":
            given = args[place : place + 1]
            dims = given[0] if given else kwargs.get("dim", argument.default_value)
    if isinstance(dims, int):
        dims = [dims]
    return (
        not isinstance(dims, (list, tuple)) or not dims or any(d % tensor.ndim == 0 for d in dims)
    )


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments, or the results, of an operation."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list, ValuesView)):
            yield from _tensors(value)


def _storages(tensors: Iterable[Tensor]) -> Iterator[StorageWeakRef]:
    for tensor in tensors:
        try:
            yield StorageWeakRef(tensor.untyped_storage())
        except (NotImplementedError, RuntimeError):  # a sparse tensor has none
            continue


def loud(tensor: Tensor) -> Tensor:
    """The tensor with all its values four times as large."""
    return 4 * tensor


def opposite(tensor: Tensor) -> Tensor:
    """The tensor with all its values four times as large, and of the other sign."""
    return -4 * tensor


def scale_of(output: Any, scores: Tensor) -> Tensor:
    """The size of what a model returns for each example, `(N,)`: of all scores if it has several.

    Args:
        output (Any): What the model returned.
        scores (Tensor): The scores that were taken of it, `(N,)` or `(1,)`.
    """
    if isinstance(output, Tensor) and output.ndim > 1:
        return output.detach().abs().flatten(1).amax(1).to(scores.dtype)
    return scores.abs()


def tolerance(scale: Tensor, dtypes: Iterable[torch.dtype]) -> Tensor:
    """How much two scores may differ by rounding.

    Args:
        scale (Tensor): The size of what the model returns.
        dtypes (iterable): The types of floating point numbers that take part.

    Returns:
        *Tensor*: 7e-5 of the scale in float32, 4e-10 in float64, 5e-2 in bfloat16; nothing is asked
        of an example whose scale is not finite.
    """
    eps: float = max(torch.finfo(dtype).eps for dtype in dtypes)
    allowed: Tensor = eps**0.6 * torch.where(scale.isfinite(), scale, torch.inf)
    return allowed


def agree(one: Tensor, other: Tensor, tolerance: Tensor) -> Tensor:
    """Whether scores differ by rounding only, as a bool tensor of one element."""
    close: Tensor = (one - other).abs() <= tolerance
    same: Tensor = close | ~one.isfinite() & ~other.isfinite()
    return same.all()


def plans(args: Sequence[Any], n: int, certain: Iterable[int]) -> Iterator[frozenset[int]]:
    """Which arguments may have one row for each example: the likeliest choice first.

    Args:
        args (sequence): All arguments of the model.
        n (int): The number of examples.
        certain (iterable): Positions that are known to have one row for each example.

    Yields:
        Positions.

    Example::

        >>> args = torch.zeros(3, 1, 4, 4), 0.5, torch.zeros(3)
        >>> [sorted(plan) for plan in plans(args, 3, certain=[0])]
        [[0, 2], [0]]
    """
    sure = frozenset(certain)
    open_ = [
        place
        for place, arg in enumerate(args)
        if place not in sure and isinstance(arg, Tensor) and arg.ndim and len(arg) == n
    ]
    sizes: Iterable[int] = range(len(open_), -1, -1)
    if len(open_) > _SUBSETS:
        sizes = (len(open_), 0, len(open_) - 1, 1)
    for size in sizes:
        for chosen in itertools.combinations(open_, size):
            yield sure | frozenset(chosen)


class Shared(NamedTuple):
    """How examples share a batch.

    Attributes:
        repeated (frozenset[int] or None): Places of the arguments that have one row for each
            example; None if examples may not share a batch.
        found (Any): What was wanted of the first batch; or, as a string, why there is none.
        relied (bool): Whether the model decided by what held for each example of that batch, so
            that the next ones are to be :func:`watched`, too.
    """

    repeated: frozenset[int] | None
    found: Any
    relied: bool = False


def first_that_agrees(
    choices: Iterable[frozenset[int]],
    parts: Callable[[frozenset[int]], Sequence[Tensor]],
    run: Callable[[frozenset[int]], Any],
    judge: Callable[[Any], Any],
) -> Shared:
    """Finds the arguments that go with the examples.

    Args:
        choices (iterable): From :func:`plans`.
        parts (callable): What the copies consist of, with a choice.
        run (callable): Runs the model on the first copies, with a choice, and returns its output.
        judge (callable): From the output to what is wanted of it, or to a string that says why it
            cannot be true.
    """
    reason = None
    for choice in choices:
        try:
            with watched(parts(choice)) as watch:
                output = run(choice)
        except Parted as parted:
            found = str(parted)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            found = f"the model does not take several copies in one batch ({message})"
        else:
            found = judge(output)
        if not isinstance(found, str):
            return Shared(choice, found, watch.relied)
        reason = reason or found
    return Shared(None, reason)
