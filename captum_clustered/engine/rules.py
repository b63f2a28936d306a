"""How operations are done on copies, where `torch.vmap` would take longer.

Most often the layer's value first meets a convolution or a linear layer. There the copies need not
be run, see :mod:`captum_clustered.engine.linear`. In a residual block that holds for both branches.
It ends at the first operation that is not linear, which gets copies as always.

Batch norm in evaluation mode treats each example alone, so the copies may lie along the batch.
`torch.vmap` lays them along the channels, and scales and shifts them in passes of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from captum_clustered.engine.calls import versions
from captum_clustered.engine.linear import LINEAR, VIEWS, LinearMap, Summands

__all__ = ["SMALL", "Rules"]

SMALL = 2**23
"""Operations for one copy of an example below which a linear map is run on the copies."""


@dataclass(frozen=True)
class _Seen:
    """Copies of one of the layer's tensors, as the model holds them.

    Attributes:
        make (callable): Gives the summands of the tensor.
        version (list[int or None]): How often the copies had been written to.
        views (tuple): The views that the model has taken, one of the other.
    """

    make: Callable[[], Summands]
    version: list[int | None]
    views: tuple[Callable[[Tensor], Tensor], ...] = ()

    def summands(self) -> Summands:
        """The summands in the same view."""
        found = self.make()
        for view in self.views:
            found = found.seen(view)
        return found


class Rules(TorchFunctionMode):
    """While it is open, operations on copies are done as this module says.

    Args:
        summands (list[callable]): Makes what is switched off in the copies of each of the layer's
            tensors, when it is first needed; empty if that is of no use.
    """

    def __init__(self, summands: list[Callable[[], Summands]]) -> None:
        super().__init__()
        self._summands = summands
        self._groups = range(0)
        self._examples = 0
        # what the model may hold: the copies and views of them
        self._seen: list[tuple[Tensor, _Seen]] = []
        self._versions: list[list[int | None]] = []
        self._wholes: list[tuple[LinearMap, Tensor]] = []
        self._calls = 0
        self._rules: dict[Any, Callable[..., Any]] = {
            functional.batch_norm: _batch_norm,
            functional.multi_head_attention_forward: self._attention,
            **dict.fromkeys(LINEAR, self._linear),
            **dict.fromkeys(VIEWS, self._view),
        }

    def start(self, groups: range, copies: list[Tensor]) -> None:
        """A pass begins.

        Args:
            groups (range): What the copies lack; -1 is no group, and comes first.
            copies (list[Tensor]): `(len(groups), N, …)` for each of the layer's tensors.
        """
        self._groups = groups
        self._examples = copies[0].shape[1]
        self._versions = [versions(one) for one in copies]
        self._calls = 0

    def follow(self, values: list[Tensor]) -> list[Tensor]:
        """The layer returns the copies, as `torch.vmap` shows them to the model."""
        known = zip(self._summands, self._versions, strict=False)  # of some devices, there are none
        self._seen = [
            (value, _Seen(*made_and_version))
            for value, made_and_version in zip(values, known, strict=False)
        ]
        return values

    def __torch_function__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Does an operation."""
        kwargs = kwargs or {}
        if args and func in self._rules:
            return self._rules[func](func, *args, **kwargs)
        return func(*args, **kwargs)

    def _find(self, value: Any) -> _Seen | None:
        return next((found for one, found in self._seen if one is value), None)

    def _view(self, func: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        result = func(value, *args, **kwargs)
        seen = self._find(value)
        if seen is not None:
            views = (*seen.views, lambda one: func(one, *args, **kwargs))
            self._seen.append((result, replace(seen, views=views)))
        return result

    def _linear(self, func: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        seen = self._find(value)
        if seen is None:
            return func(value, *args, **kwargs)
        linear = LinearMap.of(func, *args, **kwargs)
        # of a linear layer it is known beforehand what it takes
        small = 2 * value.numel() * len(linear.weight) < SMALL * self._examples
        if small and func is functional.linear:
            return func(value, *args, **kwargs)

        def rule(copies: Tensor, *_: Tensor | None) -> Tensor | None:
            if versions(copies) != seen.version:
                return None
            return self._without(seen.summands(), linear, copies)

        return _mapped(linear, rule, value, linear.weight, linear.bias)

    def _attention(
        self,
        func: Any,
        query: Any,
        key: Any,
        value: Any,
        width: int,
        heads: int,
        weight: Any,
        bias: Any,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        """Attention; if the layer's value attends to itself, its linear map is told apart."""
        if query is key is value and self._find(query) is not None and _is_plain(*rest, **kwargs):
            with self:
                inner = functional.linear(query, weight, bias)  # (T, N, 3 * width)
            # three times (N, heads, T, …)
            inner = inner.unflatten(2, (3, heads, -1)).permute(2, 1, 3, 0, 4)
            mixed = functional.scaled_dot_product_attention(*inner)
            return functional.linear(mixed.permute(2, 0, 1, 3).flatten(2), *rest[-2:]), None
        return func(query, key, value, width, heads, weight, bias, *rest, **kwargs)

    def _without(self, summands: Summands, linear: LinearMap, copies: Tensor) -> Tensor | None:
        """What a linear map makes of the copies; None where it is as well run on them."""
        axes = summands.axes_for(linear)
        if axes is None:
            return None
        whole = self._whole(summands.value, linear)
        if 2 * whole.select(axes[0], 0).numel() * linear.weight[0].numel() < SMALL:
            return None
        return summands.without(self._groups, linear, axes, whole, copies)

    def _whole(self, value: Tensor, linear: LinearMap) -> Tensor:
        """What a linear map makes of the value without a change, which is the same in each pass."""
        call, self._calls = self._calls, self._calls + 1
        if call >= len(self._wholes) or not self._wholes[call][0].same(linear):
            self._wholes[call:] = [(linear, linear(value, linear.weight, linear.bias))]
        return self._wholes[call][1]


def _is_plain(
    bias_k: Any,
    bias_v: Any,
    zeros: bool,
    dropout: float,
    *_: Any,
    training: bool = True,
    need_weights: bool = True,
    **others: Any,
) -> bool:
    """Whether attention is asked for, by the rest of its arguments, without more ado."""
    others.pop("average_attn_weights", None)  # of weights that are not needed
    ado = zeros or need_weights or (training and dropout > 0)
    return not ado and all(
        one is None or one is False for one in (bias_k, bias_v, *others.values())
    )


def _batch_norm(
    func: Any,
    value: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *rest: Any,
    **kwargs: Any,
) -> Any:
    def run(*tensors: Tensor | None) -> Any:
        return func(*tensors, training, *rest, **kwargs)

    def rule(copies: Tensor, *known: Tensor | None) -> Tensor | None:
        laid = run(copies.flatten(0, 1), *known)
        return torch.unflatten(laid, 0, copies.shape[:2])

    tensors = value, mean, var, weight, bias
    if training or mean is None or var is None:
        return run(*tensors)
    return _mapped(run, rule, *tensors)


def _mapped(run: Callable[..., Any], rule: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """An operation, done by a rule where just the first of its tensors differs between copies.

    Args:
        run (callable): Does the operation.
        rule (callable): The same with all copies of the first tensor, `(k, …)`, for all results,
            `(k, …)`; None if it cannot.
        *tensors (Tensor or None): What the operation takes.
    """
    if {type(one) for one in tensors} <= {Tensor, nn.Parameter, nn.Buffer, type(None)}:
        return _Mapped.apply(run, rule, *tensors)
    return run(*tensors)


class _Mapped(torch.autograd.Function):
    """An operation with a rule of its own for `torch.vmap`."""

    @staticmethod
    def forward(run: Any, _: Any, *tensors: Tensor | None) -> Any:
        """The operation without copies."""
        return run(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept, because there are no gradients."""

    @staticmethod
    def vmap(_: Any, in_dims: Any, run: Any, rule: Any, *tensors: Any) -> Any:
        """The operation on copies."""
        dims = in_dims[2:]
        if dims[0] is not None and set(dims[1:]) == {None}:
            found = rule(tensors[0].movedim(dims[0], 0), *tensors[1:])
            if found is not None:
                return found, 0
        return torch.vmap(run, dims)(*tensors), 0
