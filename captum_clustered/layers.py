"""Finding the layer to explain, by its name or as the last one with maps, and its settings."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from captum_clustered.engine.calls import versions
from captum_clustered.heatmap import vit_reshape_transform

__all__ = ["TargetLayer", "find_layer", "find_target_layer"]

_MOST_PREFIX_TOKENS = 8  # a class token and a few register tokens


@dataclass(frozen=True)
class TargetLayer:
    """A layer, and how to read its maps.

    Attributes:
        layer (nn.Module): The layer.
        name (str): Its dotted name in the model.
        channel_dim (int): The axis of the maps in the layer's output.
        reshape_transform (callable or None): Turns tokens into `(N, C, *spatial)`; None for a layer
            whose output already has these axes.
        at_input (bool): Whether the maps are the layer's input and not its output. Pass it on as
            `attribute_to_layer_input`.
    """

    layer: nn.Module
    name: str
    channel_dim: int = 1
    reshape_transform: Callable[[Tensor], Tensor] | None = None
    at_input: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """How an explainer has to read the layer, as its keyword arguments."""
        return {"channel_dim": self.channel_dim, "reshape_transform": self.reshape_transform}


def find_layer(model: nn.Module, name: str = "auto", inputs: Tensor | None = None) -> TargetLayer:
    """Finds a layer by its name, and how to read its output.

    Args:
        model (nn.Module): The model.
        name (str, optional): A dotted name as in ``model.named_modules()``, or ``"auto"`` for
            :func:`find_target_layer`. Default: ``"auto"``
        inputs (Tensor, optional): An example to run the model on.
            Default: None (zeros of shape `(1, 3, 224, 224)`)

    Returns:
        *TargetLayer*: The layer. If its output is tokens, and their number fits a grid with the
        proportions of the image, `reshape_transform` drops the tokens before the grid (such as the
        class token) and makes the grid; for a video, one grid for each frame.

    Raises:
        ValueError: If the model has no layer of this name (the message lists similar names), or
            none was found for ``"auto"``.

    Example::

        >>> from torchvision.models import resnet18
        >>> find_layer(resnet18(), "layer3.0").channel_dim
        1
    """
    inputs = _example(model) if inputs is None else inputs
    if name == "auto":
        return find_target_layer(model, inputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    modules.pop("")
    if name not in modules:
        children = ", ".join(child for child, _ in model.named_children())
        raise ValueError(
            f"`layer` must be the name of a module in the model; got {name!r}."
            + (did_you_mean(name, modules) or f" The outermost are: {children}.")
        )
    runs = _watch(model, inputs)[0]
    own = [run for run in runs if run.module is modules[name]]
    if len(own) == 1:
        found = _read_as(own[0], inputs.shape, _frames(runs, inputs.shape))
        return replace(found, name=name) if found else TargetLayer(modules[name], name)
    return TargetLayer(modules[name], name)  # if it cannot be explained, the explainer says why


def find_target_layer(model: nn.Module, inputs: Tensor) -> TargetLayer:
    """Finds the last layer with a spatial output before the classifier.

    - In a convolutional network this is the module that finishes last among those that run once and
      return maps larger than one pixel. Pooling, dropout and the like do not count. It is
      ``layer4`` of a ResNet and ``features`` of a VGG.
    - If something changes these maps before the next pooling module gets them (a ReLU module that
      the whole network shares, or a function), it is the input of that pooling module.
    - In a vision transformer it is the norm before the last attention: after that attention the
      class token no longer depends on the other tokens.

    The model runs once, without gradients and in evaluation mode; then its modes are restored.

    Args:
        model (nn.Module): A model that classifies.
        inputs (Tensor): One or more examples, `(N, C, *spatial)`. Their values do not matter.

    Returns:
        *TargetLayer*: The layer, its name, and how to read its output.

    Raises:
        ValueError: If no layer qualifies.

    Example::

        >>> from torchvision.models import resnet18
        >>> find_target_layer(resnet18(), torch.zeros(1, 3, 64, 64)).name
        'layer4'
    """
    if len(inputs) == 1:  # with two examples, an axis of length 1 cannot be taken for the batch
        inputs = inputs.repeat(2, *[1] * (inputs.ndim - 1))
    runs, output = _watch(model, inputs)
    once = {module for module, times in Counter(run.module for run in runs).items() if times == 1}
    once -= {part for run in runs if run.is_attention for part in run.module.modules()}
    last_weights = max((run.begin for run in runs if run.has_weights), default=-1)
    n_classes = output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else None
    frames = _frames(runs, inputs.shape)

    maps: list[tuple[_Run, TargetLayer]] = []
    tokens: list[tuple[_Run, TargetLayer]] = []
    for run in runs:  # in the order in which they finished
        if run.module is model or run.module not in once or _is_plumbing(run.module):
            continue
        found = _read_as(run, inputs.shape, frames)
        if found is None:
            continue
        if found.reshape_transform is not None:
            tokens.append((run, found))
        elif not (_channels(run, found) == n_classes and run.end > last_weights):
            maps, tokens = [(run, found)], []  # not the map per class that SqueezeNet ends with
    begun = maps[-1][0].end if maps else -1
    attentions = [run.begin for run in runs if run.is_attention and run.begin > begun]
    best = _among_tokens(tokens, attentions)
    if best is None and maps and len(attentions) < 2:  # a single one may be attention pooling
        best = _pooled(*maps[-1], runs, once)
    if best is None:
        raise ValueError(
            "`layer` could not be found: no module that runs once returns maps larger than one "
            "pixel, or tokens of a grid, near the end of the model; got an output of "
            f"{_described(output)}. Pass the name of a layer; model.named_modules() lists them."
        )
    return best


@dataclass(frozen=True)
class _Run:
    """One call of a module: when it began and ended, and the shapes of its input and output."""

    module: nn.Module
    name: str
    begin: int
    end: int
    shape: tuple[int, ...] | None
    input_shape: tuple[int, ...] | None
    input_from: frozenset[nn.Module]  # the modules that have just returned this very tensor

    @property
    def has_weights(self) -> bool:
        return next(self.module.parameters(recurse=False), None) is not None

    @property
    def is_attention(self) -> bool:
        kind = type(self.module).__name__.lower()
        return "attention" in kind or "attn" in kind


def _watch(model: nn.Module, inputs: Tensor) -> tuple[list[_Run], Any]:
    """Runs the model once; returns the calls of its modules, in the order in which they end."""
    runs: list[_Run] = []
    begun: list[tuple[int, tuple[int, ...] | None, frozenset[nn.Module]]] = []
    clock = count()
    latest: tuple[Any, list[int | None], frozenset[nn.Module]] = (None, [], frozenset())

    def producers(value: Any) -> frozenset[nn.Module]:
        tensor, version, modules = latest
        return modules if value is tensor and versions(value) == version else frozenset()

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        first = args[0] if args else None
        begun.append((next(clock), _shape(first), producers(first)))

    def after(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal latest
        latest = output, versions(output), producers(output) | {module}
        begin, input_shape, input_from = begun.pop()
        end = next(clock)
        name = names[module]
        runs.append(_Run(module, name, begin, end, _shape(output), input_shape, input_from))

    names = {module: name for name, module in model.named_modules()}
    training = [module for module in names if module.training]
    hooks = [module.register_forward_pre_hook(before) for module in names]
    hooks += [module.register_forward_hook(after) for module in names]
    try:
        model.eval()
        with torch.no_grad():
            output = model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return runs, output


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _pooled(maps: _Run, found: TargetLayer, runs: list[_Run], once: set[nn.Module]) -> TargetLayer:
    """The pooling after the layer, if its input is not the very output of the layer; else that."""
    for run in sorted(runs, key=lambda run: run.begin):
        pools = _is_pooling(run.module) and run.begin > maps.end and run.module in once
        if pools and run.input_shape == maps.shape:
            if maps.module in run.input_from:
                break
            return replace(found, layer=run.module, name=run.name, at_input=True)
    return found


def _is_pooling(module: nn.Module) -> bool:
    return "pool" in type(module).__name__.lower()


def _is_plumbing(module: nn.Module) -> bool:
    """Whether the module only passes on, pools or reshapes what another module made."""
    kind = type(module).__name__.lower()
    return _is_pooling(module) or "drop" in kind or kind in {"identity", "flatten"}


def _frames(runs: list[_Run], inputs: Sequence[int]) -> int | None:
    """The number of frames of a video's tokens, which is that of the first maps with five axes.

    It cannot be told from the number of tokens: 8 frames of 7 x 7 patches are as many tokens as 2
    frames of 14 x 14.
    """
    if len(inputs) == 5:
        for run in runs:
            if run.shape is not None and len(run.shape) == 5 and run.shape[0] == inputs[0]:
                return run.shape[2]
    return None


def _read_as(run: _Run, inputs: Sequence[int], frames: int | None) -> TargetLayer | None:
    """How to read the output of a call as maps; None if it is neither maps nor tokens."""
    shape = run.shape
    if shape is None or shape[0] != inputs[0]:
        return None
    size = inputs[2:]
    if len(shape) == len(inputs):  # maps, with the channels on the second or on the last axis
        spatial = {1: shape[2:], -1: shape[1:-1]}
        channel_dim = min(spatial, key=lambda dim: _distortion(spatial[dim], size))
        if math.prod(spatial[channel_dim]) <= 1:
            return None
        return TargetLayer(run.module, run.name, channel_dim)
    if len(shape) == 3 and (len(size) == 2 or frames is not None):
        grid = _grid(shape[1], size[-2:], frames or 1)
        if grid is not None:
            height, width = grid
            reshape = partial(
                vit_reshape_transform,
                height=height,
                width=width,
                prefix_tokens=shape[1] - (frames or 1) * height * width,
                frames=frames,
            )
            return TargetLayer(run.module, run.name, -1, reshape)
    return None


def _distortion(spatial: Sequence[int], size: Sequence[int]) -> float:
    """How much the proportions of the output differ from the input's; 0 if they are the same."""
    scales = [math.log(full / max(part, 1)) for part, full in zip(spatial, size, strict=True)]
    return max(scales) - min(scales)


def _grid(n_tokens: int, size: Sequence[int], frames: int) -> tuple[int, int] | None:
    """The grid of the patches of one frame, with as few prefix tokens as possible."""
    for prefix in range(_MOST_PREFIX_TOKENS + 1):
        patches, rest = divmod(n_tokens - prefix, frames)
        if patches < 4:
            return None
        if rest:
            continue
        height = round(math.sqrt(patches * size[0] / size[1]))
        if height and patches % height == 0:
            grid = height, patches // height
            if _distortion(grid, size) < math.log(1.1):  # 10 %, since sizes are rounded to patches
                return grid
    return None


def _channels(run: _Run, found: TargetLayer) -> int | None:
    return None if run.shape is None else run.shape[found.channel_dim]


def _among_tokens(
    tokens: list[tuple[_Run, TargetLayer]], attentions: list[int]
) -> TargetLayer | None:
    """The norm before the last attention, or the last norm where there is no attention."""
    norms = [(run, found) for run, found in tokens if "norm" in type(run.module).__name__.lower()]
    if not norms:
        return None
    later = [begin for begin in attentions if begin > norms[0][0].end]
    last = max(later, default=math.inf)
    return [found for run, found in norms if run.end < last][-1]


def _example(model: nn.Module) -> Tensor:
    first = next(model.parameters(), None)
    device = None if first is None else first.device
    return torch.zeros(1, 3, 224, 224, device=device)


def did_you_mean(name: str, names: Iterator[str] | Sequence[str] | Mapping[str, Any]) -> str:
    """A sentence with names similar to `name`, or "" if there are none."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=4, cutoff=0.5)
    return f" Close are: {', '.join(close)}." if close else ""
