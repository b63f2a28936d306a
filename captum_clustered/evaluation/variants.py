"""The rows of a table: methods in their variants, from the registry or from outside."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from captum_clustered._checks import did_you_mean
from captum_clustered._files import first_line, place_of
from captum_clustered._pictures import counted
from captum_clustered.clustering import as_clusterer
from captum_clustered.evaluation.rows import AUTO, OWN, Number, Variant
from captum_clustered.weighting import as_weighting

if TYPE_CHECKING:
    from captum_clustered.evaluation.plan import Choices
    from captum_clustered.fills import Fill
    from captum_clustered.models.prepared import Prepared

__all__ = [
    "AnyMethod",
    "Outside",
    "as_maps",
    "as_methods",
    "make_explainer",
    "named",
    "variants",
]

_LAYOUT = ("channel_dim", "reshape_transform")
_AT_INPUT = "attribute_to_layer_input"

# --- methods --------------------------------------------------------------------------------------


class AnyMethod(Protocol):
    """What is used of a method, such as :class:`captum_clustered.methods.Method`."""

    @property
    def factory(self) -> Callable[..., Any]:
        """``factory(forward_func, layer, **settings)`` makes the explainer."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the factory, with their defaults."""
        ...

    @property
    def control(self) -> bool:
        """Whether it explains nothing and stands beside the methods for comparison."""
        ...


@dataclass(frozen=True)
class Outside:
    """A method from outside the registry.

    Attributes:
        name (str): Its name in rows and tables.
        factory (callable): ``factory(forward_func, layer)`` makes something with Captum's
            ``attribute(inputs, target=…)``, such as :class:`captum.attr.LayerGradCam`.
        control (bool): Whether it is a control.

    Example::

        >>> from captum_clustered import ClusteredLayerAblation
        >>> Outside("mine", ClusteredLayerAblation).settings["n_clusters"]
        64
    """

    name: str
    factory: Callable[..., Any]
    control: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword-only arguments of the factory, with their defaults."""
        try:
            parameters = inspect.signature(self.factory).parameters.values()
        except ValueError:  # some callables written in C have no signature
            return {}
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def as_methods(methods: Mapping[str, Any]) -> dict[str, AnyMethod]:
    """Brings methods into one form.

    Args:
        methods (mapping): From a name to a :class:`captum_clustered.methods.Method`, or to a
            callable ``factory(forward_func, layer)``.

    Returns:
        *dict*: From the same names to methods; callables become :class:`Outside`.

    Raises:
        TypeError: If one is neither.
    """
    found: dict[str, AnyMethod] = {}
    for name, value in methods.items():
        if hasattr(value, "factory") and hasattr(value, "settings"):
            found[name] = value
        elif callable(value):
            found[name] = Outside(name, value)
        else:
            raise TypeError(
                f"`methods` must hold methods or callables; {name} is {type(value).__name__}. "
                "Pass a callable (forward_func, layer) that returns the explainer."
            )
    return found


# --- variants -------------------------------------------------------------------------------------


def variants(
    choices: Choices, methods: Mapping[str, AnyMethod], controls: bool = False
) -> list[Variant]:
    """The rows of the table: the methods in the order in which they were named, then the controls.

    A method has a row for each of the chosen numbers of groups and weightings that it takes, and
    one row of its own defaults if none was chosen. A number is not taken by a method without
    groups, nor by one whose clusterer ignores it; :data:`~captum_clustered.evaluation.rows.AUTO` is
    not taken by one whose clusterer is fixed.

    Args:
        choices (Choices): The choices.
        methods (mapping): All methods by name; the controls are among them.
        controls (bool, optional): Whether the controls are added. Default: False

    Returns:
        *list[Variant]*: Without repetitions.

    Raises:
        ValueError: If a method, the clusterer or a weighting is unknown.

    Example::

        >>> from captum_clustered.methods import METHODS
        >>> from captum_clustered.evaluation.plan import Choices
        >>> choices = Choices(model="resnet18", methods=("clustered-cam", "grad-cam"))
        >>> [str(variant) for variant in variants(choices, METHODS)]
        ['clustered-cam K=64', 'grad-cam']
    """
    unknown = [name for name in choices.methods if name not in methods]
    if unknown:
        raise ValueError(
            f"`methods` must be among {', '.join(methods)}, or module:callable; got "
            f"{', '.join(unknown)}.{did_you_mean(unknown[0], methods)}"
        )
    if choices.clusterer != OWN:
        for number in choices.clusters or (1,):
            as_clusterer(choices.clusterer, number)
    for name in choices.weightings:
        as_weighting(name)
    added = [name for name, method in methods.items() if method.control] if controls else []
    return list(
        dict.fromkeys(
            Variant(name, number, weighting, methods[name].control)
            for name in (*choices.methods, *added)
            for number in _numbers(methods[name], choices)
            for weighting in _weightings(methods[name], choices)
        )
    )


def _numbers(method: AnyMethod, choices: Choices) -> Sequence[Number | None]:
    known, chosen = method.settings, choices.clusters
    if "n_clusters" not in known:
        return (None,)
    if "clusterer" not in known:  # none of these has a tree that could be cut anywhere
        chosen = tuple(number for number in chosen if number != AUTO)
    else:
        clusterer = known["clusterer"] if choices.clusterer == OWN else choices.clusterer
        if as_clusterer(clusterer, 2) == as_clusterer(clusterer, 3):  # it ignores the number
            return (None,)
    own = known["n_clusters"]
    return chosen or (own if isinstance(own, int) else None,)


def _weightings(method: AnyMethod, choices: Choices) -> Sequence[str | None]:
    known = method.settings
    if "weighting" not in known:
        return (None,)
    own = known["weighting"]
    return choices.weightings or (own if isinstance(own, str) else None,)


def make_explainer(
    variant: Variant,
    method: AnyMethod,
    prepared: Prepared,
    *,
    clusterer: str = OWN,
    seed: int = 0,
    mask_fill: Fill | None = None,
) -> Any:
    """Makes the explainer of a variant.

    Args:
        variant (Variant): From :func:`variants`.
        method (AnyMethod): The method that it names.
        prepared (Prepared): The model with its layer.
        clusterer (str, optional): What groups the maps. Default: ``"own"``, the method's own
        seed (int, optional): Of the clusterer and of all that the method draws. Default: 0
        mask_fill (Fill, optional): What a method that masks the image puts in the hidden part.
            Default: None (the method's own)

    Returns:
        *LayerAttribution*: What the method's factory made.

    Raises:
        ValueError: If the layer needs `channel_dim` or `reshape_transform`, or its input is
            explained, and a method from outside does not take them or
            `attribute_to_layer_input`; or if its factory fails.
    """
    known = method.settings
    chosen: dict[str, Any] = {}
    if variant.clusters is not None:
        chosen["n_clusters"] = variant.clusters
    if "clusterer" in known:
        own = "agglomerative" if variant.clusters == AUTO else known["clusterer"]
        name = own if clusterer == OWN else clusterer
        chosen["clusterer"] = as_clusterer(name, variant.clusters or 1, seed)
    if variant.weighting is not None:
        chosen["weighting"] = variant.weighting
    if "seed" in known:
        chosen["seed"] = seed
    if "fill" in known and mask_fill is not None:
        chosen["fill"] = mask_fill
    if known.get("score") == "softmax" and prepared.n_classes == 1:
        chosen["score"] = prepared.score  # the softmax of a single logit is 1
    layer = prepared.layer
    if all(name in known for name in _LAYOUT):
        chosen |= {name: getattr(layer, name) for name in _LAYOUT}
    elif layer.channel_dim != 1 or layer.reshape_transform is not None:
        raise ValueError(
            f"`method` {variant.method} must take {' and '.join(_LAYOUT)} as keyword-only "
            f"arguments for layer {layer.name}, whose maps are not on axis 1; it does not."
        )
    with named(method):
        made = method.factory(prepared.model, layer.layer, **chosen)
    if not callable(getattr(made, "attribute", None)):
        raise ValueError(
            f"`method` {variant.method} must make something that has attribute(inputs, target), as "
            f"Captum's methods have; got {type(made).__name__}. Wrap it in a class that has."
        )
    if layer.at_input and not _takes(getattr(made, "attribute", None), _AT_INPUT):
        raise ValueError(
            f"`method` {variant.method} must take {_AT_INPUT} in `attribute` for this layer, since "
            f"the maps are the input of {layer.name}; it does not. Take it, or name a layer whose "
            "output has the maps."
        )
    return made


def _takes(function: Any, name: str) -> bool:
    """Whether a callable takes an argument by this name, as far as that can be seen."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return True
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def as_maps(found: Any, images: Tensor, method: str) -> Tensor:
    """Brings what a method from outside returned into one form.

    Args:
        found (Tensor or array): One map for each image, `(N, 1, *spatial)` or `(N, *spatial)`, of
            any size.
        images (Tensor): `(N, C, *spatial)`.
        method (str): The method's name, for the message.

    Returns:
        *Tensor*: `(N, 1, *spatial)`, detached.

    Raises:
        ValueError: If it is anything else.

    Example::

        >>> as_maps(np.ones((2, 7, 7)), torch.zeros(2, 3, 224, 224), "mine").shape
        torch.Size([2, 1, 7, 7])
    """
    if isinstance(found, np.ndarray) and found.dtype.kind in "fiu":
        found = torch.from_numpy(np.array(found, np.float32)).to(images.device)
    if isinstance(found, Tensor):
        maps = found.detach()
        if maps.ndim == images.ndim - 1:
            maps = maps.unsqueeze(1)
        if maps.ndim == images.ndim and maps.shape[:2] == (len(images), 1):
            return maps
    axes = "H, W" if images.ndim == 4 else "D, H, W"
    shape = f" of shape {tuple(found.shape)}" if hasattr(found, "shape") else ""
    raise ValueError(
        f"`method` {method} must return a tensor (N, 1, {axes}) or (N, {axes}), one map for each "
        f"image; got {type(found).__name__}{shape} for {counted(len(images), 'image')}."
    )


@contextmanager
def named(method: AnyMethod) -> Iterator[None]:
    """Names a method from outside in the errors that it raises.

    Raises:
        ValueError: In place of any error of such a method.
    """
    try:
        yield
    except Exception as error:  # the user's code may raise anything
        if not isinstance(method, Outside):
            raise
        words = f"{first_line(error)}; {place_of(error)}"
        raise ValueError(f"`method` {method.name} failed ({words}).") from error
