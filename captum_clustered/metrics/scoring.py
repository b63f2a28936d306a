"""One score per image out of whatever the model returns, and the record of how it was come by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from captum_clustered.targets import Score, Target, check_target, format_target

__all__ = ["Conventions", "Model", "resolve_target"]


@dataclass(frozen=True)
class Conventions:
    """Everything that must be known to compare a number with another one.

    Attributes:
        score (str): What became of the logits: ``"softmax"``, ``"sigmoid"``, ``"identity"``, or the
            name of a callable.
        target (str): Whose score it is: ``"predicted"``, ``"given"``, or ``"only"`` where the model
            gives one score per image.
        fill (str): What replaces the masked part of the image.
        normalize (str): How the map came to [0, 1]: ``"minmax"``, ``"max"``, ``"none"``; or
            ``"ranks"`` where only the order of its values counts.
        interpolation (str): How a map of another size was resized, or ``"none"``.
        step (int or None): Pixels that are changed at a time, for a curve.
        ties (str or None): Which of several equal pixels comes first, for a curve.
    """

    score: str
    target: str
    fill: str
    normalize: str
    interpolation: str
    step: int | None = None
    ties: str | None = None

    def as_dict(self) -> dict[str, str | int]:
        """The conventions as columns for a table; what does not apply is left out."""
        given = dataclasses.asdict(self)
        return {name: value for name, value in given.items() if value is not None}


def name_of(score: Score) -> str:
    """The name of a score for :class:`Conventions`."""
    if isinstance(score, str):
        return score
    return str(getattr(score, "__qualname__", None) or repr(score))


def name_of_target(target: Target, resolved: Tensor | None) -> str:
    """The name of a target for :class:`Conventions`."""
    if target is not None:
        return "given"
    return "only" if resolved is None else "predicted"


def as_labels(target: Tensor | None) -> Tensor | None:
    """A formatted target as Captum takes it: `(N,)` where the output has one axis of classes."""
    return target.squeeze(1) if target is not None and target.shape[1] == 1 else target


@dataclass(frozen=True, eq=False)
class Model:
    """A model of which all inputs but the image are fixed.

    Attributes:
        forward_func (callable): Takes the image, then the others.
        image (Tensor): `(N, C, *spatial)`.
        others (tuple): Further inputs and forward arguments.
    """

    forward_func: Callable[..., Any]
    image: Tensor
    others: tuple[Any, ...]

    @classmethod
    def of(cls, forward_func: Callable[..., Any], inputs: Any, additional: Any) -> Model:
        """Checks and splits the arguments of a metric."""
        if not callable(forward_func):
            raise TypeError(
                "`forward_func` must be the model or a function; got "
                f"{type(forward_func).__name__}."
            )
        image, rest = split(inputs)
        if additional is None:
            additional = ()
        others = additional if isinstance(additional, tuple) else (additional,)
        return cls(forward_func, image, rest + others)

    def __call__(self, image: Tensor, rows: Tensor | None = None) -> Tensor:
        """Runs the model; `rows` says which example each image belongs to, if not one for each."""
        others = self.others
        if rows is not None:
            n = len(self.image)
            others = tuple(
                other[rows.to(other.device)]
                if isinstance(other, Tensor) and other.ndim and len(other) == n
                else other
                for other in others
            )
        output = self.forward_func(image, *others)
        if not isinstance(output, Tensor):
            raise TypeError(
                f"`forward_func` must return one tensor; got {type(output).__name__}. Wrap it, for "
                "example `lambda *args: model(*args).logits`."
            )
        if output.ndim == 0 or len(output) != len(image):
            raise ValueError(
                f"`forward_func` must return one row for each of {len(image)} images; got shape "
                f"{tuple(output.shape)}."
            )
        return output.detach()


def split(inputs: Any) -> tuple[Tensor, tuple[Any, ...]]:
    """The images, detached, and what else the model takes."""
    image, *rest = inputs if isinstance(inputs, tuple) and inputs else (inputs,)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"`inputs` must be a tensor, or a tuple whose first entry is the images; got "
            f"{type(image).__name__}."
        )
    if not image.is_floating_point() or image.ndim < 3:
        raise ValueError(
            "`inputs` must be floating point images (N, C, *spatial); got "
            f"{image.dtype} {tuple(image.shape)}. Pass them as the model takes them."
        )
    return image.detach(), tuple(rest)


def resolve_target(output: Tensor, target: Target) -> Tensor | None:
    """The class of each image: as given, else the one that the model predicts.

    Args:
        output (Tensor): Logits of the unmasked images, `(N, classes)`.
        target (int, tuple, list, Tensor or None): As in Captum; None takes the largest logit.

    Returns:
        *Tensor* or *None*: int64 `(N, d)` as :func:`captum_clustered.targets.select` takes it; None
        where the model gives one score per image.

    Raises:
        ValueError: If the target lies outside the output (on a CPU) or does not fit it.

    Example::

        >>> import torch
        >>> resolve_target(torch.tensor([[1.0, 3.0], [2.0, 0.0]]), None)
        tensor([[1],
                [0]])
    """
    formatted = format_target(target, len(output))
    if formatted is None:
        many = output.ndim == 2 and output.shape[1] > 1
        return output.argmax(1, keepdim=True) if many else None
    check_target(output, formatted)
    return formatted.to(output.device)
