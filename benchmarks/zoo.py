"""Every architecture of torchvision and one of each timm family: does it run, how, and correctly?

Weights are random. The references are the full path, which runs the whole model for each group, and
plain passes with the parts of the layer's maps clamped by hand. Each network is explained at its
last layer with maps and at a layer in the middle.
"""

from __future__ import annotations

import gc
import time
import warnings
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import output_of, settle
from benchmarks.results import Row, reason
from captum_clustered import ClusteredLayerAblation
from captum_clustered.layers import TargetLayer, find_layer, find_target_layer

__all__ = ["cases", "inner_layer", "measure"]

TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-2}
"""Largest difference of drops that counts as equal, relative to the largest drop.

In float32 a drop is a small difference of large scores.
"""

_MOST_IN_DOUBLE = 150e6  # parameters; larger networks stay in float32
_LARGEST = 600  # pixels; a network for larger images is given half of that
_CLASSES = 7
_GROUPS = 3
_SMALL = ("atto", "femto", "pico", "nano", "tiny", "_xxs", "_xs", "micro", "mini", "small")
_SMALL += ("_s0", "b0", "18")

_QUICK_TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "vgg11",
    "vit_b_32",
    "lraspp_mobilenet_v3_large",
    "r3d_18",
)
_QUICK_TIMM = 12


class Averaged(nn.Module):
    """A network for segmentation that classifies by the mean of its scores over the pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Class scores `(N, classes)`."""
        return self.model(x)["out"].flatten(2).mean(2)


def cases(full: bool) -> list[str]:
    """The networks as ``source/kind/family/name``.

    Args:
        full (bool): Whether all are wanted: every architecture of torchvision, and a small one of
            each module of timm. Otherwise some of each kind.
    """
    vision = _torchvision()
    families = _timm()
    if not full:
        vision = [key for key in vision if key.rsplit("/", 1)[1] in _QUICK_TORCHVISION]
        families = families[:: max(1, len(families) // _QUICK_TIMM)][:_QUICK_TIMM]
    return vision + families


def _torchvision() -> list[str]:
    from torchvision import models

    found = []
    for kind, module in (
        ("classification", models),
        ("segmentation", models.segmentation),
        ("video", models.video),
    ):
        for name in models.list_models(module=module):
            family = models.get_model_builder(name).__module__.rsplit(".", 1)[1]
            found.append(f"torchvision/{kind}/{family}/{name}")
    return found


def _timm() -> list[str]:
    import timm
    from timm.models import _registry

    found = []
    for module in sorted(_registry._module_to_models):
        names = timm.list_models(module=module)
        ranked = sorted(
            names, key=lambda name: (not any(part in name for part in _SMALL), len(name), name)
        )
        if ranked:
            found.append(f"timm/classification/{module}/{ranked[0]}")
    return found


def measure(key: str) -> list[Row]:
    """Explains random inputs at two layers by both paths and compares the drops.

    Args:
        key (str): From :func:`cases`.

    Returns:
        *list*: Two rows, the last layer's and the inner one's.
    """
    source, kind, family, name = key.split("/")
    head = {"source": source, "kind": kind, "family": family, "network": name}
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model, x = _network(source, kind, name)
        except Exception as error:  # a network that cannot be made is a result, too
            failed = {"reason": reason(error), "seconds": time.perf_counter() - begin}
            return [{**head, **_empty(place), **failed} for place in ("last", "inner")]
        return measure_network(model, x, head)


def measure_network(model: nn.Module, x: Tensor, head: Row) -> list[Row]:
    """The rows of a network.

    Args:
        model (nn.Module): In evaluation mode; gives `(N, classes)`.
        x (Tensor): Two inputs.
        head (dict): What the rows begin with.
    """
    rows = []
    for place, find in (("last", find_target_layer), ("inner", inner_layer)):
        begin = time.perf_counter()
        row = {**head, **_empty(place)}
        try:
            row.update(_compare(model, x, find(model, x)))
        except Exception as error:  # so is a layer that cannot be explained
            row["reason"] = reason(error)
        row["seconds"] = time.perf_counter() - begin
        rows.append(row)
        gc.collect()
    return rows


def _empty(place: str) -> Row:
    return {
        "place": place,
        "layer": None,
        "maps": None,
        "status": "failed",
        "reason": None,
        "replay": None,
        "signed": None,
        "error": None,
        "parts_error": None,
        "dtype": None,
    }


def _network(source: str, kind: str, name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, shape = _of_timm(name) if source == "timm" else _of_torchvision(kind, name)
    model = Averaged(model) if kind == "segmentation" else model
    double = sum(parameter.numel() for parameter in model.parameters()) <= _MOST_IN_DOUBLE
    model = (model.double() if double else model).eval()
    model.requires_grad_(False)
    for parameter_name, parameter in model.named_parameters():
        # heads and scales that start at zero, or nearly so, would hide every difference
        if not parameter.any() or "layer_scale" in parameter_name or "gamma" in parameter_name:
            nn.init.normal_(parameter, std=0.5)
    x = torch.rand(2, *shape, dtype=torch.float64 if double else torch.float32)
    settle(model, x)
    return model, x


def _of_timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of timm and the shape of an input."""
    import timm

    model: Any = timm.create_model(name, pretrained=False, num_classes=_CLASSES)
    shape = tuple(model.default_cfg.get("input_size", (3, 224, 224)))
    if shape[-1] > _LARGEST:
        shape = (3, shape[-1] // 2, shape[-1] // 2)
        if model.default_cfg.get("fixed_input_size"):
            made_for = {"img_size": shape[-1]}
            model = timm.create_model(name, pretrained=False, num_classes=_CLASSES, **made_for)
    return model, shape


def _of_torchvision(kind: str, name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of torchvision and the shape of an input."""
    from torchvision.models import get_model

    return get_model(name, weights=None, **_arguments(kind, name)), _shape(kind, name)


def _arguments(kind: str, name: str) -> dict[str, Any]:
    if kind == "segmentation":
        return {"weights_backbone": None, "num_classes": _CLASSES}
    more = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    return {"num_classes": _CLASSES, **more}


def _shape(kind: str, name: str) -> tuple[int, ...]:
    """The smallest usual input. Some networks have tables or pooling for one size only."""
    if kind == "video":
        fixed = name == "s3d" or name.startswith("mvit")
        return (3, 16, 224, 224) if fixed else (3, 8, 64, 64)
    size = {"segmentation": 128}.get(kind, 299 if name == "inception_v3" else 224)
    return (3, size, size)


def inner_layer(model: nn.Module, x: Tensor) -> TargetLayer:
    """A block in the middle: of the modules that run once and give maps, the middle one to finish.

    Modules that consist of others are preferred to single operations.

    Args:
        model (nn.Module): The model.
        x (Tensor): Inputs.

    Returns:
        *TargetLayer*: The layer and how its output is read.

    Raises:
        ValueError: If there is none.

    Example::

        >>> from torchvision.models import resnet18
        >>> inner_layer(resnet18().eval(), torch.rand(1, 3, 64, 64)).name
        'layer2.1'
    """
    finished: list[tuple[str, bool]] = []
    names = {module: name for name, module in model.named_modules() if name}
    times: dict[nn.Module, int] = {}

    def note(module: nn.Module, _: object, output: object) -> None:
        times[module] = times.get(module, 0) + 1
        if isinstance(output, Tensor) and len(output) == len(x) and 3 <= output.ndim <= 5:
            finished.append((names[module], next(module.children(), None) is not None))

    with ExitStack() as hooks, torch.no_grad():
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        model(x)
    modules = dict(model.named_modules())
    once = [(name, block) for name, block in finished if times[modules[name]] == 1]
    blocks = [name for name, block in once if block and not _is_detail(name, modules[name])]
    ranked = blocks if len(blocks) >= 3 else [name for name, _ in once]
    middle = len(ranked) // 2
    for name in sorted(ranked, key=lambda name: abs(ranked.index(name) - middle)):
        found = find_layer(model, name, x)
        if _has_maps(found, model, x):
            return found
    raise ValueError("`layer` could not be found: no module that runs once gives maps.")


def _is_detail(name: str, module: nn.Module) -> bool:
    """Whether the module is part of a block, such as an attention, a perceptron or a shortcut."""
    words = ("attn", "attention", "mlp", "squeeze", "downsample", "shortcut", "norm", "drop", "act")
    kind, own = type(module).__name__.lower(), name.rpartition(".")[2].lower()
    if own == "block" or own.startswith(("conv", "branch")):
        return True
    return any(word in kind or word in own for word in words)


def _has_maps(found: TargetLayer, model: nn.Module, x: Tensor) -> bool:
    shape = output_of(model, found.layer, x)[1].shape
    if len(shape) == 3 and found.reshape_transform is None:
        return x.ndim == 3
    return shape[found.channel_dim] > 1 and shape.numel() // shape[found.channel_dim] > len(x)


def _compare(model: nn.Module, x: Tensor, found: TargetLayer) -> Row:
    drops = {}
    row: Row = {"layer": found.name, "dtype": str(x.dtype).removeprefix("torch.")}
    replays: tuple[Any, ...] = ("auto", "full")
    for replay in replays:
        cam = ClusteredLayerAblation(
            model,
            found.layer,
            n_clusters=_GROUPS,
            replay=replay,
            **found.settings,
        )
        result: Any = cam.explain(x, target=[1, 2], attribute_to_layer_input=found.at_input)
        drops[replay] = result.drops
        if replay == "auto":
            row["maps"] = list(result.activations.shape[1:])
            row["replay"], row["reason"] = result.replay, result.replay_reason
            row["signed"] = bool((result.labels_below >= 0).any())
            by_hand = _by_hand(model, x, found, result)
    largest = float(drops["full"].abs().max())
    for name, other in (("error", drops["full"]), ("parts_error", by_hand)):
        error = float((drops["auto"] - other).abs().max())
        row[name] = error / largest if largest else (0.0 if error == 0 else None)
    if not largest:
        row.update(status="unequal", reason="no group changes the score, so nothing is compared")
        return row
    equal = max(row["error"], row["parts_error"]) <= TOLERANCE[x.dtype]
    row["status"] = "ok" if equal else "unequal"
    return row


@torch.no_grad()
def _by_hand(model: nn.Module, x: Tensor, found: TargetLayer, result: Any) -> Tensor:
    """The drops `(N, K)` by plain passes of the model, with the parts of each group clamped away.

    Args:
        model (nn.Module): Gives `(N, classes)`.
        x (Tensor): Two inputs, explained for the classes 1 and 2.
        found (TargetLayer): The layer, which gives one tensor.
        result (ClusteredAttribution): Has the labels of the parts.
    """

    def without(value: Tensor, group: int) -> Tensor:
        maps = value.movedim(found.channel_dim, 1)  # (N, C, ...)
        above, below = (
            (labels == group).reshape(*labels.shape, *[1] * (maps.ndim - 2))
            for labels in (result.labels, result.labels_below)
        )
        left = torch.where(above, maps.clamp(max=0), maps)
        left = torch.where(below, left.clamp(min=0), left)
        if found.reshape_transform is not None and found.prefix_tokens:
            left[:, :, : found.prefix_tokens] = maps[:, :, : found.prefix_tokens]
        return left.movedim(1, found.channel_dim)

    def run(group: int) -> Tensor:
        if found.at_input:
            handle = found.layer.register_forward_pre_hook(
                lambda _, args: (without(args[0], group), *args[1:])
            )
        else:
            handle = found.layer.register_forward_hook(lambda *args: without(args[2], group))
        with handle:
            return model(x)[[0, 1], [1, 2]]

    scores = run(-2)  # in no group
    return torch.stack([scores - run(k) for k in range(result.ablated_scores.shape[1])], 1)
