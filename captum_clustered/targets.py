"""Target selection: one score per example out of whatever the model returns.

Captum's forms are understood (an int, a tuple, a list or tensor with one entry per example); NumPy
integers, zero-dimensional tensors and tensors of shape ``(N, 1)`` work as well. No value is read
from a tensor, so that nothing waits for a GPU.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "Score",
    "Target",
    "check_target",
    "format_target",
    "repeat_target",
    "select",
    "target_scores",
]

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | None
"""What a caller may pass as ``target``."""

Score = Literal["softmax", "sigmoid", "identity", "log_odds"] | Callable[[Tensor], Tensor]
"""What a caller may pass as ``score``; see :func:`target_scores`."""


def format_target(target: Any, n_examples: int) -> Tensor | None:
    """Turns any accepted target into one form.

    Args:
        target (int, tuple, list, Tensor or None): An int or a tuple of ints is one index for all
            examples; a list of ints, a list of tuples or a tensor of shape `(N,)` or `(N, 1)` has
            one entry per example; a tensor of one element serves all examples; None means that the
            model gives one score per example.
        n_examples (int): The number of examples `N`.

    Returns:
        *Tensor* or *None*: int64 of shape `(N, d)`: for each example its index into the `d` axes of
        the output behind the batch axis, on the CPU unless the target is a tensor elsewhere. None
        for ``target=None``.

    Raises:
        TypeError: If the target is of no accepted type.
        ValueError: If its length is not the number of examples.

    Example::

        >>> format_target([2, 0], n_examples=2)
        tensor([[2],
                [0]])
    """
    if target is None:
        return None
    if isinstance(target, Tensor):
        return _format_tensor(target, n_examples)
    if isinstance(target, list):
        if len(target) != n_examples:
            raise ValueError(
                f"`target` must have one entry per example ({n_examples}); got a list of "
                f"{len(target)}. Pass an int to use one class for all examples."
            )
        rows = [_indices(entry) for entry in target]
        if len({len(row) for row in rows}) > 1:
            raise ValueError(
                "`target` must index the same axes for each example; got entries of lengths "
                f"{sorted({len(row) for row in rows})}. Give every tuple the same length."
            )
        return torch.tensor(rows, dtype=torch.int64).view(n_examples, -1)
    return torch.tensor([_indices(target)], dtype=torch.int64).expand(n_examples, -1)


def _format_tensor(target: Tensor, n_examples: int) -> Tensor:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(
            f"`target` must hold class indices (integers); got dtype {target.dtype}. "
            "Convert it, for example with `.long()` or `.argmax(1)`."
        )
    target = target.detach().to(torch.int64)
    if target.numel() == 1:
        return target.reshape(1, 1).expand(n_examples, 1)
    if target.shape in {(n_examples,), (n_examples, 1)}:
        return target.reshape(n_examples, 1)
    raise ValueError(
        f"`target` must be a tensor of shape ({n_examples},), one class per example; got shape "
        f"{tuple(target.shape)}. Use a list of tuples to index an output of several axes."
    )


def _indices(entry: Any) -> tuple[int, ...]:
    """The ints of one target entry, which may be an int, a NumPy int, a 0-d tensor or a tuple."""
    parts = entry if isinstance(entry, tuple) else (entry,)
    try:
        if any(isinstance(part, bool) for part in parts):
            raise TypeError
        return tuple(operator.index(part) for part in parts)
    except TypeError:
        raise TypeError(
            "`target` must be an int, a tuple of ints, a list with one of these per example, or an "
            f"integer tensor; got {entry!r}. Class names have to be looked up first."
        ) from None


def repeat_target(target: Tensor | None, times: int) -> Tensor | None:
    """Repeats a formatted target for `times` copies of the batch, one copy after the other."""
    return None if target is None else target.repeat(times, 1)


def select(output: Any, target: Tensor | None) -> Tensor:
    """Picks each example's score from the model's output.

    Args:
        output (Tensor, float or int): The model's output. Its first axis is the batch, unless it is
            a single number for the whole batch.
        target (Tensor or None): What :func:`format_target` returned.

    Returns:
        *Tensor*: Floating point scores of shape `(N,)`, or `(1,)` where the model gives one number
        for the batch.

    Raises:
        TypeError: If the output is not a tensor or a number.
        ValueError: If the target does not fit the output's shape.

    Example::

        >>> select(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), format_target([1, 0], 2))
        tensor([2., 3.])
    """
    if isinstance(output, (int, float)):
        output = torch.tensor([float(output)])
    if isinstance(output, Tensor) and not output.is_floating_point():
        output = output.float()
    if not isinstance(output, Tensor):
        raise TypeError(
            f"`forward_func` must return one tensor; got {type(output).__name__}. Wrap it, for "
            "example `lambda *args: model(*args).logits`."
        )
    if target is None:
        if output.numel() == (output.shape[0] if output.ndim else 1):
            return output.reshape(-1)
        raise ValueError(
            "`target` is needed to pick one score per example from an output of shape "
            f"{tuple(output.shape)}; got None. Pass the index of the class to explain."
        )
    axes = output.ndim - 1
    if axes < 1:
        raise ValueError(
            "`target` must be None where the model gives one score per example; got one for an "
            f"output of shape {tuple(output.shape)}. Leave it out."
        )
    if axes != target.shape[1]:
        raise ValueError(
            "`target` must have one index for each axis of the output behind the batch axis; got "
            f"{target.shape[1]} for an output of shape {tuple(output.shape)}. Pass tuples of "
            f"{axes}, or let `forward_func` return one score per class."
        )
    scores = output
    for column in target.to(output.device).unbind(1):
        index = torch.where(column < 0, column + scores.shape[1], column)
        index = index.reshape(-1, 1, *[1] * (scores.ndim - 2)).expand(-1, 1, *scores.shape[2:])
        scores = scores.gather(1, index).squeeze(1)
    return scores


def target_scores(output: Any, target: Tensor | None, score: Score = "softmax") -> Tensor:
    """The score of each image's class.

    Args:
        output (Tensor, float or int): Logits, `(N, classes)`, or `(N,)` for one score per image.
        target (Tensor or None): What :func:`format_target` returned.
        score (str or callable, optional): ``"softmax"`` over the second axis, ``"sigmoid"``,
            ``"identity"``, ``"log_odds"``, the logarithm of p / (1 - p) for the softmax p, or a
            callable from logits to scores of the same shape. Default: ``"softmax"``

    Returns:
        *Tensor*: `(N,)`, float64 where the device has it, since the probability of a sure model
        cannot be told from 1 in float32.

    Raises:
        TypeError: If `score` is neither a name nor callable, or the output no tensor.
        ValueError: If the name is unknown, or a softmax is asked of one logit.

    Example::

        >>> logits = torch.tensor([[0.0, 0.0], [20.0, -20.0]])
        >>> target_scores(logits, format_target(1, 2))
        tensor([5.0000e-01, 4.2484e-18], dtype=torch.float64)
    """
    if not isinstance(output, Tensor):  # one number for the batch; all else is refused there
        output = select(output, None)
    logits = output.float() if output.device.type == "mps" else output.double()
    if score == "softmax":
        if logits.ndim < 2 or logits.shape[1] < 2:
            raise ValueError(
                "`score`='softmax' must have at least two classes; got an output of shape "
                f"{tuple(output.shape)}. Pass score='sigmoid' for the logit of one class, or "
                "'identity'."
            )
        scores = logits.softmax(1)
    elif score == "sigmoid":
        scores = logits.sigmoid()
    elif score == "identity":
        scores = logits
    elif score == "log_odds":
        scores = _log_odds(logits)
    elif isinstance(score, str):
        raise ValueError(
            f"`score` must be 'softmax', 'sigmoid', 'identity', 'log_odds' or a callable; got "
            f"{score!r}."
        )
    elif callable(score):
        scores = score(logits)
    else:
        raise TypeError(
            "`score` must be 'softmax', 'sigmoid', 'identity', 'log_odds' or a callable; got "
            f"{type(score).__name__}."
        )
    return select(scores, target)


def _log_odds(logits: Tensor) -> Tensor:
    """Each logit less the log of the sum of the others' exponentials; a single one is log-odds."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        return logits
    top = logits.argmax(1, keepdim=True)
    total = logits.logsumexp(1, keepdim=True)
    # all classes but the largest have at most half of the sum, so that nothing cancels
    share = (logits - total).exp().scatter(1, top, 0)
    others = total + torch.log1p(-share)
    without_top = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return logits - others.scatter(1, top, without_top)


def check_target(output: Any, target: Tensor | None) -> None:
    """Raises where an index lies outside the output; values are read on the CPU only."""
    if target is None or target.device.type != "cpu" or not isinstance(output, Tensor):
        return
    for axis, (size, column) in enumerate(zip(output.shape[1:], target.T, strict=False), start=1):
        outside = column[(column < -size) | (column >= size)]
        if len(outside):
            raise ValueError(
                f"`target` must lie in 0..{size - 1}, the size of the output's axis {axis}; got "
                f"{int(outside[0])}. The output has shape {tuple(output.shape)}."
            )
