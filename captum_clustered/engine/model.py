"""The model as the stages use it, with its arguments."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

if TYPE_CHECKING:
    from captum_clustered._borrow import Lent

__all__ = ["Model", "as_model", "chunks"]

T = TypeVar("T")


@dataclass(frozen=True)
class Model:
    """The forward function with its arguments for `n` examples.

    Attributes:
        forward_func (Lent): Runs the model; each pass finds it as it was.
        args (tuple): All its arguments.
        n (int): The number of examples.
        overwrites (bool): Whether it may write into its arguments. If so, each pass gets copies.
    """

    forward_func: Lent
    args: tuple[Any, ...]
    n: int
    overwrites: bool = True

    def fresh(self) -> tuple[Any, ...]:
        """The arguments with the values that the caller passed."""
        if not all(isinstance(arg, Tensor) for arg in self.args):
            self.forward_func.put_back()  # a cache, for example
        if not self.overwrites:
            return self.args
        return tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in self.args)

    def settled(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns, which makes the first pass; see :meth:`Lent.settled`."""
        return self.forward_func.settled(attempt, self.fresh)

    def copies(
        self, times: int, repeated: Iterable[int], instead: Mapping[int, Tensor] | None = None
    ) -> Any:
        """Runs the model on a batch that holds `times` copies of the batch.

        Args:
            times (int): Number of copies.
            repeated (iterable): Positions of the arguments that have one row for each example.
            instead (mapping, optional): What replaces the argument at a position:
                `(times * N, ...)`, the examples of one copy after those of the one before.
                Default: None
        """
        args = list(self.fresh())
        for place in repeated if times > 1 else ():
            args[place] = args[place].repeat(times, *[1] * (args[place].ndim - 1))
        for place, values in (instead or {}).items():
            args[place] = values
        return self.forward_func(*args)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors among the arguments."""
        return sum(arg.nbytes for arg in self.args if isinstance(arg, Tensor))


def as_model(forward_func: Lent, inputs: Any, additional: Any) -> Model:
    """Checks what a caller passed as inputs of a model.

    Args:
        forward_func (Lent): The model, from `captum_clustered._borrow.borrowed`.
        inputs (Tensor or tuple[Tensor, ...]): Its inputs; their first axis is the batch.
        additional (Any): Further arguments, one or a tuple, or None.

    Returns:
        *Model*: The model on one device, with all its arguments.

    Raises:
        TypeError: If an input is not a tensor with values.
        ValueError: If there is no example.
    """
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    wrong = [type(item).__name__ for item in inputs if not isinstance(item, Tensor)]
    if wrong or not inputs:
        raise TypeError(
            f"`inputs` must be a tensor or a tuple of tensors; got {', '.join(wrong) or '()'}. "
            "Pass other arguments as `additional_forward_args`, and a list as a tuple."
        )
    special = [x for x in inputs if x.is_nested or x.is_meta]
    if special:
        kind = "nested" if special[0].is_nested else "on the device 'meta', without values"
        raise TypeError(
            f"`inputs` must be tensors with values whose examples have one shape; got one {kind}. "
            "Pad the examples to one shape, and give them on the device of the model."
        )
    if inputs[0].ndim == 0 or not len(inputs[0]):
        raise ValueError(
            "`inputs` must have at least one example along the first axis; got shape "
            f"{tuple(inputs[0].shape)}. Add the batch axis, for example with `.unsqueeze(0)`."
        )
    if additional is None:
        additional = ()
    elif not isinstance(additional, tuple):
        additional = (additional,)
    forward_func.remember(*(arg for arg in additional if not isinstance(arg, Tensor)))
    return Model(forward_func, (*inputs, *additional), len(inputs[0]))


def chunks(groups: range, size: int) -> list[range]:
    """Splits the groups into ranges of at most `size`, as few and as equal as can be."""
    size = math.ceil(len(groups) / math.ceil(len(groups) / size)) if len(groups) else size
    return [groups[start : start + size] for start in range(0, len(groups), size)]
