"""Finding the layer to explain, by its name or as the last one with maps, and its settings."""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parameter import is_lazy

from captum_clustered._borrow import Lent, borrowed
from captum_clustered._modules import find_module, named
from captum_clustered._trials import (
    in_rows,
    matters,
    parameters_among,
    shape_of,
    tokens_of,
)
from captum_clustered._warn import warn
from captum_clustered.engine.calls import LayerIO, versions
from captum_clustered.heatmap import vit_reshape_transform

__all__ = ["TargetLayer", "find_finer_layer", "find_layer", "find_target_layer"]

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
    def prefix_tokens(self) -> int:
        """How many tokens before the grid are in no map."""
        keywords: Mapping[str, int] = getattr(self.reshape_transform, "keywords", {})
        return keywords.get("prefix_tokens", 0)

    @property
    def io(self) -> LayerIO:
        """The layer, and which side of it."""
        return LayerIO(self.layer, self.at_input)

    @property
    def settings(self) -> dict[str, Any]:
        """How an explainer has to read the layer, as its keyword arguments."""
        return {"channel_dim": self.channel_dim, "reshape_transform": self.reshape_transform}


def find_layer(
    model: nn.Module, name: str | nn.Module = "auto", inputs: Tensor | None = None
) -> TargetLayer:
    """Finds a layer by its name, and how to read its output.

    A layer that is chosen is not refused because its maps cannot change what the model returns, as
    the patch tokens behind the last attention cannot, or because they lie elsewhere than the image
    does; a warning says so.

    Args:
        model (nn.Module): The model.
        name (str or nn.Module, optional): A dotted name as in ``model.named_modules()``, or the
            module itself; ``"auto"`` for :func:`find_target_layer`. Default: ``"auto"``
        inputs (Tensor, optional): An example to run the model on.
            Default: None (zeros of shape `(1, 3, 224, 224)`)

    Returns:
        *TargetLayer*: The layer. If its output is tokens, and their number fits a grid with the
        proportions of the image, `reshape_transform` drops the tokens before the grid (such as the
        class token) and makes the grid; for a video, one grid for each frame.

    Raises:
        TypeError: If `name` is neither a string nor a module.
        ValueError: If the model has no such layer (the message lists similar names), or none was
            found for ``"auto"``; if the layer's tokens do not lie on the image row by row; or
            if there are no `inputs`, and the model does not take images of three channels, or none
            of 224 x 224 pixels.

    Example::

        >>> from torchvision.models import resnet18
        >>> find_layer(resnet18(), "layer3.0").channel_dim
        1
    """
    if inputs is not None:
        return _find(model, name, inputs)
    example = _example(model)
    try:
        return _find(model, name, example)
    except Exception as error:
        refusal = _refusal(model, example)
        if refusal is None:
            raise
        message = (str(refusal).strip() or type(refusal).__name__).splitlines()[0].rstrip(".")
        raise ValueError(
            "`inputs` must be given for a model that does not take zeros of shape "
            f"{tuple(example.shape)}; got None, and of these it says: {message}. Pass an example, "
            "such as zeros of the size of its images."
        ) from error


def _find(model: nn.Module, name: str | nn.Module, inputs: Tensor) -> TargetLayer:
    if isinstance(name, str) and name == "auto":
        return find_target_layer(model, inputs)
    layer = find_module(model, name)
    name = next((known for known, module in named(model).items() if module is layer), "")
    if not name:
        raise ValueError(
            f"`name` must be a module of the model; got a {type(layer).__name__} that is none. "
            "Pass a module of this very model, not of a copy of it."
        )
    inputs = _two(inputs)
    runs, output = _watch(model, inputs)
    own = [run for run in runs if run.module is layer]
    found = None
    if len(own) == 1:
        found = _read_as(own[0], inputs.shape, _frames(runs, inputs.shape), _axes(runs))
    if found is None:
        return TargetLayer(layer, name)  # if it cannot be explained, the explainer says why
    of_tokens = found.reshape_transform is not None
    if of_tokens and not _is_placed(own[0], found, parameters_among(partial(_lent, model), inputs)):
        raise ValueError(
            "`name` must be a layer whose maps or tokens lie on the image; got "
            f"{name}, of whose {tokens_of(own[0].shape)} tokens some begin as parameters of the "
            "model, a class token aside, and have no place in the image. Take an earlier layer, or "
            "name='auto'."
        )
    is_placed = _in_rows(model, found, runs, inputs[:1])
    if of_tokens and not is_placed:
        raise ValueError(
            "`name` must be a layer whose tokens lie on the image row by row; got "
            f"{name}, whose tokens change elsewhere than the image does. Give an explainer this "
            "layer with a `reshape_transform` that puts the tokens of its windows in their places, "
            "or take name='auto'."
        )
    if not is_placed:
        warn(
            f"Layer {name} gives maps that change elsewhere than the image does, as where a model "
            "transposes, flips or pads them, so that a heat map of them is painted elsewhere. Give "
            "an explainer this layer with a `reshape_transform` that turns them back, such as "
            "`lambda maps: maps.transpose(2, 3)`, or take name='auto'."
        )
    if not matters(partial(_lent, model), found.io, found.prefix_tokens, inputs, output):
        warn(
            f"Layer {name} gives maps that cannot change what the model returns, so that a heat "
            "map of them means nothing. Behind the last attention of a transformer, for example, "
            "the class token alone is read. Take an earlier layer, or name='auto'."
        )
    return replace(found, name=name)


def find_target_layer(model: nn.Module, inputs: Tensor) -> TargetLayer:
    """Finds the last layer with a spatial output before the classifier.

    - In a convolutional network this is the module that finishes last among those that run once and
      return maps larger than one pixel. Pooling, dropout and the like do not count. It is
      ``layer4`` of a ResNet and ``features`` of a VGG.
    - If something changes these maps before the next pooling module gets them (a ReLU module that
      the whole network shares, or a function), it is the input of that pooling module.
    - In a vision transformer it is the norm before the last attention: after that attention the
      class token no longer depends on the other tokens. If no norm returns tokens, it is the last
      module that does.
    - Tokens that begin as parameters, as the latents of a Perceiver do, have no place in the image.
      Then it is the last layer before them.
    - Tokens that lie on the image in another order than row by row, as inside Hiera, are not taken,
      nor are maps that a model has transposed, flipped or padded.
    - Where the maps are other values, what the model returns must be other values too. If it is
      not, the layer before is taken.

    The model runs eight or nine times, and once more where the layer gives tokens, without
    gradients and in evaluation mode; then its modes are restored.

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
    inputs = _two(inputs)
    all_runs, output = _watch(model, inputs)
    runs = all_runs
    once = {module for module, times in Counter(run.module for run in runs).items() if times == 1}
    attentions = _attentions(model, runs)
    once -= {part for run in attentions for part in run.module.modules()}
    last_weights = max((run.begin for run in runs if run.has_weights), default=-1)
    n_classes = output.shape[1] if isinstance(output, Tensor) and output.ndim > 1 else None
    frames, axes = _frames(runs, inputs.shape), _axes(runs)

    maps: list[tuple[_Run, TargetLayer]] = []
    tokens: list[tuple[_Run, TargetLayer]] = []
    for run in runs:  # in the order in which they finished
        if run.module is model or run.module not in once or _is_plumbing(run.module):
            continue
        found = _read_as(run, inputs.shape, frames, axes)
        if found is None:
            continue
        if found.reshape_transform is not None:
            tokens.append((run, found))
        elif not (_channels(run, found) == n_classes and run.end > last_weights):
            maps.append((run, found))  # not the map per class that SqueezeNet or a U-Net ends with
    if tokens:
        fixed = parameters_among(partial(_lent, model), inputs)
        latents = [run for run, found in tokens if not _is_placed(run, found, fixed)]
        # tokens behind them are made of them
        first = min((run.begin for run in latents), default=math.inf)
        tokens = [pair for pair in tokens if pair[0].end < first]
        numbers = {tokens_of(run.shape) for run in latents}
        numbers |= {number for number, some in fixed.items() if bool(some.all())}
        runs = [run for run in all_runs if tokens_of(run.input_shape) not in numbers]
    begins = [run.begin for run in attentions if run in runs]
    for best in _candidates(maps, tokens, begins, runs, once):
        changes = matters(partial(_lent, model), best.io, best.prefix_tokens, inputs, output)
        if changes and _in_rows(model, best, all_runs, inputs[:1]):
            return best
    raise ValueError(
        "`layer` could not be found: no module that runs once returns maps larger than one "
        "pixel, or tokens of a grid, near the end of the model, that lie as the image does and "
        "change what it returns; got "
        f"an output of {_described(output)}. Pass the name of a layer; model.named_modules() lists "
        "them."
    )


def _in_rows(
    model: Callable[..., Any],
    found: TargetLayer,
    runs: Sequence[_Run],
    images: Tensor,
    *others: Any,
) -> bool:
    """Whether maps, or tokens that are read as a grid, lie so in the image."""
    if found.reshape_transform is None:
        channels_first = partial(torch.movedim, source=found.channel_dim, destination=1)
        run = partial(_lent, model)
        return in_rows(run, [found.io], channels_first, images, *others, reach=1)
    times = Counter(run.module for run in runs)
    own = next(run for run in runs if run.module is found.layer)
    assert own.shape is not None  # for the type checker
    as_many = [
        LayerIO(run.module, False)
        for run in runs
        if run.end <= own.end and times[run.module] == 1 and run.shape is not None
        if len(run.shape) == 3 and run.shape[:2] == own.shape[:2]
    ]
    trial = partial(in_rows, partial(_lent, model), as_many[::-1], found.reshape_transform)
    return trial(images, *others)


@contextmanager
def _evaluated(model: Callable[..., Any]) -> Iterator[None]:
    """Evaluation mode, which a function has not, without gradients; then the modes are restored."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    # frozen TorchScript has no mode
    training = [module for module in modules if getattr(module, "training", False)]
    try:
        for module in training:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _lent(model: Callable[..., Any]) -> Iterator[Lent]:
    """The model, lent in evaluation mode."""
    with _evaluated(model), borrowed(model) as lent_model:
        yield lent_model


def _is_placed(run: _Run, found: TargetLayer, fixed: Mapping[int, Tensor]) -> bool:
    """Whether all tokens that are read as a grid begin as parts of the image."""
    number = tokens_of(run.shape)
    if found.reshape_transform is None or number is None or number not in fixed:
        return True
    return not bool(fixed[number][found.prefix_tokens :].any())


def _candidates(
    maps: list[tuple[_Run, TargetLayer]],
    tokens: list[tuple[_Run, TargetLayer]],
    attentions: list[int],
    runs: list[_Run],
    once: set[nn.Module],
) -> Iterator[TargetLayer]:
    """Layers that may be the one, the likeliest first.

    The tokens behind the last maps come first, then these maps, then what lies before them.
    """
    while True:
        begun = maps[-1][0].end if maps else -1
        later = [begin for begin in attentions if begin > begun]
        yield from _among_tokens([pair for pair in tokens if pair[0].end > begun], later)
        if not maps:
            return
        if len(later) < 2:  # a single one may be attention pooling
            yield _pooled(*maps[-1], runs, once)
        maps = maps[:-1]


def find_finer_layer(
    model: Callable[..., Any], layer: nn.Module, *inputs: Any, at_input: bool = False
) -> TargetLayer | None:
    """Finds the last layer before another whose maps have at least twice as many pixels.

    It is ``layer3`` for ``layer4`` of a ResNet. Where a stage or block ends in coarser maps, no
    module inside it is taken, and neither is one that runs more than once.

    The model runs once, and six times more where the layer gives tokens, without gradients and in
    evaluation mode; then its modes are restored.

    Args:
        model (nn.Module or callable): The model, or a function that runs it, whose modes are left
            as they are.
        layer (nn.Module): The layer whose maps are to be refined.
        *inputs (Any): What the model takes, the images `(N, C, *spatial)` first.
        at_input (bool, optional): Whether the input of the layer counts and not its output.
            Default: False

    Returns:
        *TargetLayer* or *None*: The finer layer, and how to read its output; None if there is none,
        or if its tokens do not lie on the image row by row.

    Example::

        >>> from torchvision.models import resnet18
        >>> model = resnet18()
        >>> find_finer_layer(model, model.layer4, torch.zeros(1, 3, 64, 64)).name
        'layer3'
    """
    runs, _ = _watch(model, *inputs)
    shape = inputs[0].shape
    frames, axes = _frames(runs, shape), _axes(runs)
    own = [run for run in runs if run.module is layer]
    if len(own) != 1:
        return None  # the explainer says what is wrong with the layer
    end = own[0].begin if at_input else own[0].end
    coarse = _pixels(
        replace(own[0], shape=own[0].input_shape) if at_input else own[0], shape, frames, axes
    )
    times = Counter(run.module for run in runs)

    def is_finer(run: _Run) -> bool:
        pixels = _pixels(run, shape, frames, axes)
        return coarse is not None and pixels is not None and pixels >= 2 * coarse

    # a block that takes finer maps and returns coarser ones is one step, which is not entered; only
    # a backbone as a whole, with all finer maps inside it, is
    before = [run for run in runs if run.end < end]
    steps = [run for run in before if _pixels(run, shape, frames, axes) and not is_finer(run)]

    def depth(run: _Run) -> int:
        return sum(step.begin < run.begin and run.end < step.end for step in steps)

    usable = [run for run in before if times[run.module] == 1 and not _is_plumbing(run.module)]
    best = min(filter(is_finer, usable), key=lambda run: (depth(run), -run.end), default=None)
    found = None if best is None else _read_as(best, shape, frames, axes)
    # that its maps lie as those of the layer is not tested: it would take six passes in each call
    if found is None or found.reshape_transform is None:
        return found
    return found if _in_rows(model, found, runs, *inputs) else None


def _pixels(
    run: _Run, inputs: Sequence[int], frames: int | None, axes: Mapping[int, _Axis]
) -> int | None:
    """The number of pixels of the maps that a call returned; None if it returned no maps."""
    found = _read_as(run, inputs, frames, axes)
    if found is None or run.shape is None:
        return None
    if found.reshape_transform is not None:
        tokens = torch.empty(run.shape, device="meta")
        return math.prod(found.reshape_transform(tokens).shape[2:])
    return math.prod(run.shape) // (run.shape[0] * run.shape[found.channel_dim])


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


def _attentions(model: nn.Module, runs: Sequence[_Run]) -> list[_Run]:
    """The calls of attention, by name.

    What holds most of the weights is no attention but a network around one: each level of MONAI's
    `AttentionUnet` is an `AttentionLayer` that holds all levels below.
    """

    def weights(module: nn.Module) -> int:
        return sum(weight.numel() for weight in module.parameters() if not is_lazy(weight))

    named = [run for run in runs if re.search("attention|attn", type(run.module).__name__.lower())]
    most = weights(model) / 2
    return [run for run in named if weights(run.module) <= most]


def _watch(model: Callable[..., Any], *inputs: Any) -> tuple[list[_Run], Any]:
    """The calls of the model's modules, in the order in which they end, and what it returned.

    It runs more than once if it builds something at first, or may draw random numbers; the calls
    are those of one pass.
    """
    runs: list[_Run] = []
    begun: list[tuple[int, tuple[int, ...] | None, frozenset[nn.Module]]] = []
    clock = count()
    latest: tuple[Any, list[int | None], frozenset[nn.Module]] = (None, [], frozenset())

    def producers(value: Any) -> frozenset[nn.Module]:
        tensor, version, modules = latest
        return modules if value is tensor and versions(value) == version else frozenset()

    owner = threading.get_ident()

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        if threading.get_ident() != owner:
            return
        first = args[0] if args else None
        begun.append((next(clock), shape_of(first), producers(first)))

    def after(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal latest
        if threading.get_ident() != owner:
            return
        latest = output, versions(output), producers(output) | {module}
        begin, input_shape, input_from = begun.pop()
        end = next(clock)
        name = names.get(module, type(module).__name__)
        runs.append(_Run(module, name, begin, end, shape_of(output), input_shape, input_from))

    known = model.named_modules() if isinstance(model, nn.Module) else ()
    names = {module: name for name, module in known}

    def cloned() -> tuple[Any, ...]:  # since the model may write into what it gets
        return tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)

    def watched() -> Any:
        runs.clear()
        begun.clear()
        # what a function runs is not known beforehand, so all modules are watched
        hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
        try:
            return lent_model(*cloned())
        finally:
            for hook in hooks:
                hook.remove()

    with _lent(model) as lent_model:
        output = lent_model.settled(watched, cloned)
    return runs, output


def _described(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


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


def _read_as(
    run: _Run, inputs: Sequence[int], frames: int | None, axes: Mapping[int, _Axis]
) -> TargetLayer | None:
    """How to read the output of a call as maps; None if it is neither maps nor tokens."""
    shape = run.shape
    if shape is None or shape[0] != inputs[0]:
        return None
    size = inputs[2:]
    if len(shape) == len(inputs):  # maps, with the channels on the second or on the last axis
        spatial = {1: shape[2:], -1: shape[1:-1]}
        axis = axes.get(run.begin)
        channel_dim = min(spatial, key=lambda dim: _distortion(spatial[dim], size))
        even = _distortion(spatial[1], size) == _distortion(spatial[-1], size)
        if axis is not None and (axis.certain or even):
            channel_dim = axis.dim
        if math.prod(spatial[channel_dim]) <= 1:
            return None
        return TargetLayer(run.module, run.name, channel_dim)
    if len(shape) == 3 and (len(size) == 2 or frames is not None):
        axis = axes.get(run.begin)
        if axis is not None and axis.certain and axis.dim == 1:
            return None  # (N, C, T), such as behind a Conv1d over tokens
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


class _Axis(NamedTuple):
    """Where the channels of an output are: on axis 1 or -1; and whether that is beyond doubt."""

    dim: int
    certain: bool


_CHANNELS_FIRST = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm,
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip


def _axes(runs: list[_Run]) -> dict[int, _Axis]:
    """Where the channels of each call's output are, by the call's beginning.

    Convolutions, norms and linear layers know it. A container has it from what ran last inside, an
    activation from what it was given.
    """
    found: dict[int, tuple[_Run, _Axis]] = {}
    for run in runs:  # in the order in which they finished
        if run.shape is None or len(run.shape) < 3:
            continue
        axis = _own_axis(run.module, run.shape)
        if axis is None:
            earlier = list(found.values())
            inside = [pair for pair in earlier if pair[0].begin > run.begin]
            given = [pair for pair in earlier if pair[0].shape == run.input_shape]
            source = (inside or given)[-1:]
            axis = _inherited(run, *source[0]) if source else None
        if axis is not None:
            found[run.begin] = run, axis
    return {begin: axis for begin, (_, axis) in found.items()}


def _own_axis(module: nn.Module, shape: tuple[int, ...]) -> _Axis | None:
    if isinstance(module, _CHANNELS_FIRST):
        return _Axis(1, True)
    if isinstance(module, nn.Linear):  # it may as well mix the columns of maps
        return _Axis(-1, False)
    weight = getattr(module, "weight", None)
    is_norm = "norm" in type(module).__name__.lower()
    if not is_norm or not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    fits = [dim for dim in (1, -1) if shape[dim] == len(weight)]
    if len(fits) == 1:
        return _Axis(fits[0], True)
    # many a class that is called so moves the channels to the last axis and back
    return _Axis(-1, type(module) in (nn.LayerNorm, nn.RMSNorm)) if fits else None


def _inherited(run: _Run, source: _Run, axis: _Axis) -> _Axis | None:
    """The axis of an output that was made of another's, if nothing moved it unseen."""
    assert run.shape is not None  # for the type checker
    assert source.shape is not None
    dims = getattr(run.module, "dims", None)  # torchvision's Permute
    if isinstance(dims, (list, tuple)) and len(dims) == len(run.shape):
        place = list(dims).index(axis.dim % len(dims))
        return _Axis(1 if place == 1 else -1, axis.certain) if place else None
    moves = any(word in type(run.module).__name__.lower() for word in ("permute", "rearrange"))
    if run.shape == source.shape:
        return None if moves and run.shape[1] == run.shape[-1] else axis
    if len(run.shape) != len(source.shape):
        return None
    count = source.shape[axis.dim]
    fits = [dim for dim in (1, -1) if run.shape[dim] == count]
    return _Axis(fits[0], axis.certain) if len(fits) == 1 else None


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
) -> Iterator[TargetLayer]:
    """The norm before the last attention, or the last where there is none; then those before."""
    norms = [(run, found) for run, found in tokens if "norm" in type(run.module).__name__.lower()]
    if not norms:  # such as where a batch norm gets the tokens of all examples in one axis
        yield from reversed([found for _, found in tokens])
        return
    later = [begin for begin in attentions if begin > norms[0][0].end]
    last = max(later, default=math.inf)
    yield from reversed([found for run, found in norms if run.end < last])


def _two(inputs: Tensor) -> Tensor:
    """Two examples: then an axis of length 1 cannot be taken for the batch."""
    return inputs[:2] if len(inputs) > 1 else inputs.repeat(2, *[1] * (inputs.ndim - 1))


_SIZES = {nn.Conv1d: (1000,), nn.Conv2d: (224, 224), nn.Conv3d: (64, 64, 64)}


def _example(model: nn.Module) -> Tensor:
    """Zeros of shape `(1, 3, 224, 224)`, if the first convolution takes such images."""
    first = next(model.parameters(), None)
    convolutions = (module for module in model.modules() if isinstance(module, tuple(_SIZES)))
    takes: Any = next(convolutions, None)
    if takes is not None and not (isinstance(takes, nn.Conv2d) and takes.in_channels == 3):
        size = next(size for kind, size in _SIZES.items() if isinstance(takes, kind))
        raise ValueError(
            "`inputs` must be given for a model that does not take images of three channels; "
            f"got None, and a {type(takes).__name__} that takes {takes.in_channels}. Pass an "
            f"example, such as torch.zeros{(1, takes.in_channels, *size)}."
        )
    return torch.zeros(1, 3, 224, 224, device=None if first is None else first.device)


def _refusal(model: nn.Module, example: Tensor) -> Exception | None:
    """The error of the model's own that an example leads to."""
    try:
        with _lent(model) as lent_model:
            lent_model(_two(example))
    except Exception as error:
        return error
    return None
