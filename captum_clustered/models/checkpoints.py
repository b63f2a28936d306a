"""State dicts from files, and into models."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered._files import check_file, first_line, require

__all__ = ["load_state", "read_checkpoint", "without_prefix"]

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Reads a state dict.

    Args:
        path (Path): A file that :func:`torch.load` reads with ``weights_only=True``, or a
            ``.safetensors`` file (extra ``safetensors``). If the file holds a dict with an entry
            such as ``"state_dict"`` or ``"model"``, that entry is taken.

    Returns:
        *dict[str, Tensor]*: The tensors by name, on the CPU.

    Raises:
        ValueError: If the file is missing, cannot be read or holds no state dict.
        ImportError: If safetensors is needed and missing.
    """
    check_file("`checkpoint`", path)
    if path.suffix == ".safetensors":
        state: Any = _read_safetensors(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each raise their own errors
            what = first_line(error)
            if not _is_pickle(path):
                what = "it is no such file"
            elif isinstance(error, pickle.UnpicklingError):
                # what torch says of a pickle advises to let the file run code
                what = "it holds more than tensors"
            raise ValueError(
                f"`checkpoint` must be a state dict that torch.load reads with weights_only=True; "
                f"got {path} ({what}). Save `model.state_dict()`, not the model."
            ) from error
    while isinstance(state, Mapping) and not _is_state(state):
        inner = next((state[key] for key in _WRAPPERS if key in state), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, Mapping) or not _is_state(state):
        keys = sorted(map(str, state)) if isinstance(state, Mapping) else []
        what = f"a dict of {', '.join(keys[:5])}" if keys else f"a {type(state).__name__}"
        raise ValueError(f"`checkpoint` must hold a state dict; {path} holds {what}.")
    return dict(state)


def _is_pickle(path: Path) -> bool:
    """Whether a file begins as what `torch.save` writes does, now or in its older format."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK", b"\x80"))


def _is_state(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    files = require("safetensors.torch", "safetensors", "for .safetensors files")
    try:
        state: dict[str, Tensor] = files.load_file(path)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ValueError(
            f"`checkpoint` must be a safetensors file; got {path} ({first_line(error)})."
        ) from error
    return state


def load_state(model: nn.Module, state: dict[str, Tensor], source: object) -> None:
    """Loads a state dict into a model.

    Args:
        model (nn.Module): The model.
        state (dict[str, Tensor]): From :func:`read_checkpoint`. A prefix that all names have and
            the model's do not, such as ``"module."``, is removed.
        source (object): Where the state dict comes from, for the error message.

    Raises:
        ValueError: If the tensors do not fit the model. The message names the first of them.
    """
    own = model.state_dict()
    state = without_prefix(state, own)
    shapes = [
        f"{key} ({tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model)"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    if not shapes:
        outcome = model.load_state_dict(state, strict=False)
    problems = [
        f"{len(keys)} {word} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for word, keys in (
            ("of another shape", shapes),
            ("missing", [] if shapes else outcome.missing_keys),
            ("unknown to the model", [] if shapes else outcome.unexpected_keys),
        )
        if keys
    ]
    if problems:
        raise ValueError(
            f"`checkpoint` must fit the model; of the tensors in {source}, {', '.join(problems)}."
        )


def without_prefix(state: dict[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """A state dict without a prefix that all its names have and the model's own names do not."""
    for prefix in _PREFIXES:
        needed = any(key.startswith(prefix) for key in own)
        if not needed and all(key.startswith(prefix) for key in state):
            return without_prefix({k.removeprefix(prefix): v for k, v in state.items()}, own)
    return state
