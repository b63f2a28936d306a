"""The module that a caller means, given itself or by its name."""

from __future__ import annotations

from typing import Any

from torch import nn

from captum_clustered._checks import did_you_mean

__all__ = ["find_module", "named"]


def named(model: nn.Module) -> dict[str, nn.Module]:
    """The modules inside a model by their dotted names."""
    found = dict(model.named_modules(remove_duplicate=False))
    found.pop("")
    return found


def find_module(model: Any, layer: Any) -> nn.Module:
    """Turns what a caller passed as layer into the module.

    Args:
        model (nn.Module or callable): The model; only a module has layers with names.
        layer (nn.Module or str): The layer or its name; alone in a list or tuple as well.

    Returns:
        *nn.Module*: The layer.

    Raises:
        TypeError: If `layer` is neither, or there are several.
        ValueError: If there is no layer of this name.

    Example::

        >>> find_module(nn.Sequential(nn.ReLU()), ["0"])
        ReLU()
    """
    if isinstance(layer, (list, tuple)) and len(layer) == 1:
        (layer,) = layer
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        got = type(layer).__name__
        if isinstance(layer, (list, tuple, nn.ModuleList)):
            got = f"{got} of {len(layer)}"
        raise TypeError(
            f"`layer` must be one module, or its name in the model; got {got}. Take one explainer "
            "for each layer."
        )
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"`layer` must be the module itself where `forward_func` is a function; got {layer!r}. "
            f"Pass for example `model.get_submodule({layer!r})`."
        )
    modules = named(model)
    if layer not in modules:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"`layer` must be the name of a module in the model; got {layer!r}."
            + (did_you_mean(layer, modules) or f" The outermost are: {children}.")
        )
    return modules[layer]
