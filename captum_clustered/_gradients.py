"""What torch says where a gradient cannot be taken, in words of what the user passed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["gradients_reach"]


@contextmanager
def gradients_reach(message: str) -> Iterator[None]:
    """Raises a ValueError that says what to do where torch finds no gradient.

    Args:
        message (str): What to do.
    """
    try:
        yield
    except RuntimeError as error:
        if any(words in str(error) for words in _TORCH_SAYS):
            raise ValueError(message) from error
        raise


_TORCH_SAYS = (
    "Inference tensors cannot be saved for backward",
    "on inference tensor outside InferenceMode",
    "does not require grad",
    "appears to not have been used in the graph",
    "does not have a grad_fn",
)
