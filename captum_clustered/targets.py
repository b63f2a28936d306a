"""Target selection: from whatever the model returns to one score per example.

Captum's forms of a target work (an int, a tuple, a list or tensor with one entry per example), and
so do NumPy integers, zero-dimensional tensors and tensors of shape ``(N, 1)``. No value is read
from a tensor on an accelerator, so that nothing has to wait for it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = [
    "SCORES",
    "Score",
    "Target",
    "as_scores",
    "check_target",
    "example_scores",
    "format_target",
    "plain",
    "plain_args",
    "repeat_target",
    "select",
    "target_scores",
]

Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | None
"""What a caller may pass as ``target``; see :func:`format_target`."""

Score = (
    Literal["softmax", "sigmoid", "identity", "probabilities", "log_odds"]
    | Callable[[Tensor], Tensor]
)
"""What a caller may pass as ``score``; see :func:`target_scores`."""


SCORES = ("softmax", "sigmoid", "identity", "probabilities")
"""The names of scores on the command line: what becomes of a model's output."""


def plain(values: Any, name: str) -> Any:
    """Takes tensors of a subclass, such as MONAI's `MetaTensor`, as the tensors that they are.

    What a subclass knows beside its values is left behind, and its operations are torch's own.

    Args:
        values (Any): A tensor, or a tuple of these; anything else is returned as it is.
        name (str): The argument, for an error.

    Raises:
        TypeError: If a tensor is of a class that does its own operations, as one around another
            tensor does. Torch's own classes of this kind are let through.

    Example::

        >>> class Named(Tensor):
        ...     pass
        >>> plain((torch.zeros(1).as_subclass(Named), "a"), "inputs")
        (tensor([0.]), 'a')
    """
    kind = type(values)
    if kind is Tensor or kind is torch.nn.Parameter:
        return values
    if kind is tuple:
        return tuple(plain(value, name) for value in values)
    if not isinstance(values, Tensor) or kind.__module__.startswith("torch."):
        return values
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        verb = {"layer": "give", "forward_func": "return"}.get(name, "be")
        raise TypeError(
            f"`{name}` must {verb} plain tensors, or of a class that leaves operations to torch; "
            f"got {kind.__name__}, which has its own `__torch_dispatch__`. Use the tensor inside."
        )
    return values.as_subclass(Tensor)


def plain_args(inputs: Any, additional: Any) -> tuple[Any, Any]:
    """What a caller passed as `inputs` and `additional_forward_args`, by :func:`plain`."""
    return plain(inputs, "inputs"), plain(additional, "additional_forward_args")


def format_target(target: Any, n_examples: int) -> Tensor | None:
    """Turns any accepted target into one form.

    Args:
        target (int, tuple, list, Tensor or None): An int, a tuple of ints or a tensor of one
            element is one index for all examples; a list of ints, a list of tuples or a tensor of
            shape `(N,)` or `(N, 1)` has one entry per example; None means that the model gives one
            score per example.
        n_examples (int): The number of examples `N`.

    Returns:
        *Tensor* or *None*: int64 `(N, d)`: each example's index into the `d` axes after the batch
        axis of the output. It is on the target's device if the target is a tensor, else on the CPU.
        None for ``target=None``.

    Raises:
        TypeError: If the target has none of these types.
        ValueError: If its length is not the number of examples.

    Example::

        >>> format_target([2, 0], n_examples=2)
        tensor([[2],
                [0]])
    """
    target = plain(target, "target")
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
                "`target` must index the same axes for each example; got tuples of lengths "
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
    if not any(isinstance(part, bool) for part in parts):
        with suppress(TypeError):
            return tuple(operator.index(part) for part in parts)
    raise TypeError(
        "`target` must be an int, a tuple of ints, a list with one of these per example, or an "
        f"integer tensor; got {entry!r}. Pass the index of a class, not its name."
    )


def repeat_target(target: Tensor | None, times: int) -> Tensor | None:
    """Repeats a formatted target for `times` copies of the batch that follow each other."""
    return None if target is None else target.repeat(times, 1)


def select(output: Any, target: Tensor | None) -> Tensor:
    """Picks each example's score from the model's output.

    Args:
        output (Tensor, float or int): The model's output: a tensor whose first axis is the batch,
            or a single number for the whole batch.
        target (Tensor or None): The result of :func:`format_target`.

    Returns:
        *Tensor*: Floating point scores, `(N,)`, or `(1,)` if the model gives one number for the
        whole batch.

    Raises:
        TypeError: If the output is not a tensor or a number.
        ValueError: If the target does not fit the output's shape, or the output has neither one row
            for each entry of the target nor a single one.

    Example::

        >>> select(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), format_target([1, 0], 2))
        tensor([2., 3.])
    """
    output = as_scores(output)
    if isinstance(output, (int, float)):
        output = torch.tensor([float(output)])
    if not isinstance(output, Tensor):
        raise TypeError(
            f"`forward_func` must return one tensor; got {type(output).__name__}. Wrap it, for "
            "example `lambda *args: model(*args).logits`."
        )
    _check_axes(output, target)
    if target is None:
        return output.reshape(-1)
    if len(output) == 1:  # one row for the batch, as Captum reads it
        target = target[:1]
    elif len(output) != len(target):
        raise ValueError(_rows_differ(len(output), len(target)))
    scores = output  # (N, *axes), one axis less after each step
    for column in target.to(output.device).unbind(1):
        index = torch.where(column < 0, column + scores.shape[1], column)  # (N,)
        index = index.reshape(-1, 1, *[1] * (scores.ndim - 2)).expand(-1, 1, *scores.shape[2:])
        scores = scores.gather(1, index).squeeze(1)
    return scores


def as_scores(output: Any) -> Any:
    """The model's output as plain floating point tensor; what is no tensor is left as it is.

    Raises:
        TypeError: If the output is complex, or nested.
    """
    output = plain(output, "forward_func")
    if not isinstance(output, Tensor):
        return output
    if output.is_complex() or output.is_nested:
        kind = "nested" if output.is_nested else f"complex ({output.dtype})"
        raise TypeError(
            f"`forward_func` must return real scores in one dense tensor; got one that is {kind}. "
            "Wrap it, for example `lambda *args: model(*args).abs()`."
        )
    if output.is_quantized:
        return output.dequantize()
    if output.layout is not torch.strided:
        output = output.to_dense()
    ready = output.is_floating_point() and output.itemsize > 1
    return output if ready else output.float()


def _check_axes(output: Tensor, target: Tensor | None) -> None:
    if target is None:
        if output.numel() == (output.shape[0] if output.ndim else 1):
            return
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
            "`target` must have one index for each axis of the output after the batch axis; got "
            f"{target.shape[1]} for an output of shape {tuple(output.shape)}. Pass tuples of "
            f"{axes}, or let `forward_func` return one score per class."
        )


def target_scores(output: Any, target: Tensor | None, score: Score = "softmax") -> Tensor:
    """Turns the logits of each image into the score of its class.

    Args:
        output (Tensor, float or int): Logits, `(N, classes)`, or `(N,)` for one score per image.
        target (Tensor or None): The result of :func:`format_target`.
        score (str or callable, optional): ``"softmax"`` over the second axis; ``"sigmoid"``;
            ``"identity"``; ``"probabilities"``, which is the same of outputs that are said to be
            probabilities; ``"log_odds"``, which is log(p / (1 - p)) of the softmax p; or a callable
            from logits to scores of the same shape. Default: ``"softmax"``

    Returns:
        *Tensor*: `(N,)`, float64 if the device has it: in float32 the probabilities of a confident
        model are rounded to 1.

    Raises:
        TypeError: If `score` is neither a name nor a callable, or the output is not a tensor.
        ValueError: If the name is unknown, or the softmax of a single logit is asked for.

    Example::

        >>> logits = torch.tensor([[0.0, 0.0], [20.0, -20.0]])
        >>> target_scores(logits, format_target(1, 2))
        tensor([5.0000e-01, 4.2484e-18], dtype=torch.float64)
    """
    output = as_scores(output)
    if not isinstance(output, Tensor):  # `select` accepts a number for the batch, nothing else
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
    elif score in ("identity", "probabilities"):
        scores = logits
    elif score == "log_odds":
        scores = _log_odds(logits)
    elif callable(score):
        scores = score(logits)
    else:
        error = ValueError if isinstance(score, str) else TypeError
        raise error(
            "`score` must be 'softmax', 'sigmoid', 'identity', 'probabilities', 'log_odds' or a "
            f"callable; got {score!r}."
        )
    return select(scores, target)


def _log_odds(logits: Tensor) -> Tensor:
    """Each logit minus the logsumexp of the others, `(N, classes)`; a single logit as it is."""
    if logits.ndim < 2 or logits.shape[1] < 2:
        return logits
    top = logits.argmax(1, keepdim=True)  # (N, 1)
    total = logits.logsumexp(1, keepdim=True)  # (N, 1)
    # Each class but the largest has at most half of the sum, so that log1p(-share) cancels nothing.
    # For the largest class the others are summed anew.
    share = (logits - total).exp().scatter(1, top, 0)
    others = total + torch.log1p(-share)
    without_top = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    return logits - others.scatter(1, top, without_top)


def example_scores(output: Any, target: Tensor | None, n_examples: int) -> Tensor:
    """Picks the scores as :func:`select` does, and checks that they are those of the examples.

    Args:
        output (Tensor, float or int): The model's output.
        target (Tensor or None): The result of :func:`format_target`.
        n_examples (int): The number of examples `N`.

    Returns:
        *Tensor*: `(N,)`, or `(1,)` if the model gives one score for the whole batch.

    Raises:
        TypeError: As :func:`select`.
        ValueError: As :func:`select` and :func:`check_target`, and if the number of scores is
            neither `N` nor one.

    Example::

        >>> example_scores(torch.tensor([[1.0, 2.0]]), format_target(1, 5), 5)  # one for all five
        tensor([2.])
    """
    check_target(output, target)
    scores = select(output, target)
    if len(scores) not in (1, n_examples):
        raise ValueError(_rows_differ(len(scores), n_examples))
    return scores


def _rows_differ(rows: int, n_examples: int) -> str:
    return (
        "`forward_func` must give one row of scores per example, or one for the whole batch; got "
        f"{rows} rows for {n_examples} examples. Make one score of each example's rows, for "
        "example `lambda x: model(x).reshape(len(x), -1, n_classes).mean(1)`, or of all rows, "
        "`lambda x: model(x).mean(0, keepdim=True)`."
    )


def check_target(output: Any, target: Tensor | None) -> None:
    """Raises an error if an index lies outside the output.

    A target on an accelerator is not read, unless all examples share one row of scores.

    Args:
        output (Tensor, float or int): The model's output.
        target (Tensor or None): The result of :func:`format_target`.

    Raises:
        ValueError: If an index lies outside its axis, or examples that share one row of scores have
            different targets.

    Example::

        >>> check_target(torch.zeros(2, 3), format_target([0, 2], 2))
    """
    if target is None or not isinstance(output, Tensor):
        return
    # an int is one row that is expanded, which is known without reading it
    shared = output.ndim > 1 and len(output) == 1 and target.stride(0) != 0
    if shared and bool((target != target[:1]).any()):
        raise ValueError(
            "`target` must be one class where the model gives one row of scores for the whole "
            f"batch; got {target.squeeze(1).tolist()} for an output of shape "
            f"{tuple(output.shape)}. Pass an int, or a model that gives one row per example."
        )
    if target.device.type != "cpu":
        return
    for axis, (size, column) in enumerate(zip(output.shape[1:], target.T, strict=False), start=1):
        outside = column[(column < -size) | (column >= size)]
        if len(outside):
            raise ValueError(
                f"`target` must lie in 0..{size - 1}, the indices of the output's axis {axis}; got "
                f"{int(outside[0])}. The output has shape {tuple(output.shape)}."
            )
