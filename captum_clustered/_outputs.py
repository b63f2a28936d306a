"""Whether a model returns probabilities, which must not be squashed by a softmax or sigmoid again.

Rows that are nowhere negative and sum to one are probabilities of classes that exclude each other.
Values in [0, 1] alone say little: the logits of an untrained model may lie there by chance. They
are probabilities of labels if the model's last step is a sigmoid or the like, which the graph of
its gradients tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["are_probabilities", "are_shares", "squashed_twice", "with_graph"]

_MANY = 16  # so many logits do not all lie in [0, 1] by chance
_BOUNDED = ("Sigmoid", "Softmax", "Hardsigmoid")
_IN_BOUNDS = (*_BOUNDED, "LogSoftmax", "LogSigmoid", "Clamp")  # for values known to lie in [0, 1]
# steps of a squash that was written by hand, such as 1 / (1 + exp(-x)); others end so, too
_BY_HAND = ("Exp", "Reciprocal", "Tanh", "Erf", "Hardtanh")
_WEIGHS = ("Addmm", "Addmv", "Addbmm", "Baddbmm", "Mm", "Mv", "Bmm", "Dot", "Convolution", "Linear")
_OPAQUE = ("Jit", "Compiled", "DifferentiableGraph")
_MOVES = (
    "Alias", "Cat", "Clone", "Expand", "Flatten", "Gather", "Index", "IndexSelect", "Permute",
    "Repeat", "Reshape", "ReshapeAlias", "Select", "Slice", "Split", "Squeeze", "Stack", "T",
    "ToCopy", "Transpose", "Unbind", "Unsafe", "UnsafeView", "Unsqueeze", "View",
)  # fmt: skip


def are_shares(output: Tensor) -> bool:
    """Whether values are nowhere negative and sum to one over the classes.

    Rows with a value that is not a number are not judged.

    Args:
        output (Tensor): `(N, classes)`, or with more axes behind; the classes may also be last.

    Example::

        >>> are_shares(torch.tensor([[0.2, 0.8], [0.5, 0.5]])), are_shares(torch.zeros(1, 2))
        (True, False)
    """
    rows = _finite_rows(output)
    if rows.ndim < 2 or not rows.numel() or bool((rows < 0).any()):
        return False
    tolerance = max(1e-4, torch.finfo(output.dtype).eps) if output.is_floating_point() else 0
    return any(
        bool(((rows.sum(axis) - 1).abs() <= tolerance).all())
        for axis in {1, rows.ndim - 1}
        if rows.shape[axis] > 1
    )


def are_probabilities(output: Tensor, again: Callable[[], Any]) -> bool | None:
    """Whether the outputs of a model are probabilities.

    On an accelerator no value is read: only the graph is looked at.

    Args:
        output (Tensor): What the model returned, `(N, classes)`, `(N,)` or with more axes.
        again (callable): Runs the model once more, with gradients; see :func:`with_graph`. On the
            CPU it is called only if all values lie in [0, 1] and that needs an explanation.

    Returns:
        *bool* or *None*: None if a few values lie in [0, 1] and nothing tells why.

    Example::

        >>> weight = torch.ones(2, 3, requires_grad=True)
        >>> are_probabilities(torch.tensor([[0.9, 0.7]]), lambda: (torch.ones(1, 2) @ weight))
        False
        >>> squashed = lambda: (torch.ones(1, 2) @ weight).sigmoid()
        >>> are_probabilities(torch.tensor([[0.9, 0.7]]), squashed)
        True
    """
    on_cpu = output.device.type == "cpu"
    if on_cpu:
        rows = _finite_rows(output)
        if not rows.numel() or bool(((rows < 0) | (rows > 1)).any()):
            return False
        # exact zeros and ones may as well be small numbers that were counted
        if are_shares(output) and bool(((rows > 0) & (rows < 1)).any()):
            return True
    try:
        traced = again()
    except RuntimeError:  # some models cannot run with gradients
        traced = None
    ends = _ends_in_a_squash(traced, on_cpu) if isinstance(traced, Tensor) else None
    if not on_cpu:
        return bool(ends)
    return True if ends is None and rows.numel() >= _MANY else ends


def squashed_twice(score: Any) -> str:
    """The words where nothing tells whether outputs in [0, 1] are probabilities."""
    return (
        f"All outputs of the model lie in [0, 1]. If they are probabilities, score={score!r} "
        "squashes them a second time: pass score='probabilities'."
    )


def with_graph(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Runs a model with gradients, also for its inputs; the caller's tensors stay as they are."""
    with torch.inference_mode(False), torch.enable_grad():
        return run(
            *(
                arg.detach().clone().requires_grad_()
                if isinstance(arg, Tensor) and arg.is_floating_point()
                else arg
                for arg in args
            )
        )


def _finite_rows(output: Tensor) -> Tensor:
    values = output.detach()
    values = values.reshape(1) if values.ndim == 0 else values
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    return values[values.isfinite().flatten(1).all(1) if values.ndim > 1 else values.isfinite()]


def _ends_in_a_squash(output: Tensor, in_bounds: bool) -> bool | None:
    """Whether a squash stands on every way back from the output to the last weights.

    None if that cannot be told.

    Unless the values are known to lie in [0, 1], nothing but moves of values may follow the squash.
    """
    squashes = _IN_BOUNDS if in_bounds else _BOUNDED
    found, unclear = False, False
    seen, ahead = set(), [output.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:  # None is a constant
            continue
        seen.add(node)
        kind = node.name().rpartition("::")[2].partition("Backward")[0]
        if kind in squashes:
            found = True
        elif kind.startswith(_OPAQUE) or (in_bounds and kind in _BY_HAND):
            unclear = True  # unless another way leads to weights, as with CLIP's scale
        elif kind in _WEIGHS or kind.endswith("AccumulateGrad"):
            return False
        elif in_bounds or kind in _MOVES:
            ahead += [following for following, _ in node.next_functions]
        else:
            return False
    return None if unclear else found or None  # without any weights nothing is known
