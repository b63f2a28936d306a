r"""Maps of several layers in one, and the recipe that gives it a scale of its own.

The last layer knows best which object the class is; an earlier one knows best where its parts are.
A map of the last layer is enlarged and multiplied by what the finer layers say of the same class:

.. math:: M = s(M_1) \prod_{i > 1} (a + s(M_i)), \qquad s(M) = \mathrm{ReLU}(M) / \max M

With the floor :math:`a` the last layer decides alone where a finer one is silent. A sum would
also show what only the finer layer sees, which lies outside the object more often.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from captum.attr import Attribution as CaptumAttribution
from torch import Tensor, nn

from captum_clustered._borrow import borrowed
from captum_clustered._checks import check_int, check_number
from captum_clustered.calibration import Calibration, Rising, Sigmoid, calibrate
from captum_clustered.engine.model import Model, as_model
from captum_clustered.explainers.base import LayerExplainer, check_perturbations, unwrap
from captum_clustered.explainers.masking import precise
from captum_clustered.explainers.results import Attribution
from captum_clustered.fills import Blur, Fill, fill_image
from captum_clustered.heatmap import ReshapeTransform, build, enlarge
from captum_clustered.layers import TargetLayer, find_finer_layer
from captum_clustered.targets import Score, Target, plain_args
from captum_clustered.weighting import gradient_weights

__all__ = ["CalibratedAttribution", "LayerCalibratedCam", "LayeredAttribution", "LayeredCam"]

FLOOR = 0.3
"""What a finer layer leaves of the last layer's map where it says nothing itself."""

SMOOTH = 0.75
"""Standard deviation of the blur of a finer map, in pixels of its own grid."""


CURVES = tuple(Sigmoid(threshold, 0.015) for threshold in (0.0, 0.02, 0.05, 0.1, 0.2, 0.35))
"""The curves that are tried for a map of several layers, most of whose values are near zero."""


@dataclass(frozen=True, eq=False)
class LayeredAttribution(Attribution):
    """A heat map of several layers.

    Attributes:
        attributions (Tensor): `(N, 1, *spatial)`, nowhere negative, as large as the image.
        layer_maps (tuple[Tensor, ...]): The map of each layer, `(N, 1, *spatial)` in its own
            resolution, in the order of the explainers.
    """

    layer_maps: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class CalibratedAttribution(LayeredAttribution):
    """What :meth:`LayerCalibratedCam.explain` found out.

    Attributes:
        attributions (Tensor): `(N, 1, *spatial)`, in [0, 1], as large as the image.
        layer_maps (tuple[Tensor, ...]): The map of the layer, and those of the finer layers, `(N,
            1, *spatial)` in their own resolutions.
        calibration (Calibration): The curve of each image, and the objectives of all curves.
        finer_layers (tuple[str, ...]): The names of the finer layers; empty if there are none.
    """

    calibration: Calibration
    finer_layers: tuple[str, ...]

    def _record(self, example: int) -> dict[str, Any]:
        found = self.calibration
        chosen = int(found.chosen[example])
        return {
            "finer_layers": list(self.finer_layers),
            "curve": found.names[example],
            "objective": float(found.objectives[example, chosen]),
            "objective_before": float(found.objectives[example, 0]),
            "passes": found.passes,
        }


class LayeredCam(CaptumAttribution):
    r"""Refines the map of a layer by those of finer layers.

    Captum's layer methods take a list of layers, too, and return a list of maps. Here the layers
    make one map, and each may need settings of its own: the number of groups, `channel_dim`, or
    another method. So this takes an explainer for each layer.

    .. math:: M = s(M_1) \prod_{i > 1} (a + s(M_i)), \qquad s(M) = \mathrm{ReLU}(M) / \max M

    Each map is enlarged to the image; a finer one is blurred first, to its own resolution.

    Args:
        explainers (sequence): One for each layer, the last layer first: what has Captum's
            ``attribute(inputs, target=…)`` and gives `(N, 1, *spatial)`.
        floor (float, optional): :math:`a`, at least 0. Default: 0.3
        smooth (float, optional): Standard deviation of the blur of a finer map, in pixels of its
            own grid; 0 for none. Default: 0.75
        at_input (sequence of bool, optional): For each explainer, whether it uses the input of its
            layer (`attribute_to_layer_input`). Default: None (none does)

    Raises:
        TypeError: If something in `explainers` has no `attribute`.
        ValueError: If there is no explainer, or another argument does not fit.

    Example::

        >>> from captum_clustered import ClusteredLayerAblation, LayerHiResCam
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        ... ).eval()
        >>> last = ClusteredLayerAblation(model, model[4], n_clusters=4)
        >>> finer = LayerHiResCam(model, model[1])
        >>> LayeredCam([last, finer]).attribute(torch.rand(2, 3, 16, 16), target=3).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        explainers: Sequence[Any],
        *,
        floor: float = FLOOR,
        smooth: float = SMOOTH,
        at_input: Sequence[bool] | None = None,
    ) -> None:
        if not len(explainers):
            raise ValueError("`explainers` must have at least one entry; got none.")
        for explainer in explainers:
            if not callable(getattr(explainer, "attribute", None)):
                raise TypeError(
                    "`explainers` must have Captum's `attribute`; got "
                    f"{type(explainer).__name__}. Pass, for example, "
                    "`[LayerHiResCam(model, layer), LayerHiResCam(model, finer_layer)]`."
                )
        if at_input is not None and len(at_input) != len(explainers):
            raise ValueError(
                f"`at_input` must have one entry for each of the {len(explainers)} explainers; got "
                f"{len(at_input)}."
            )
        check_number("floor", floor, at_least=0)
        check_number("smooth", smooth, at_least=0)
        super().__init__(getattr(explainers[0], "forward_func", explainers[0].attribute))
        self.explainers = tuple(explainers)
        self.floor = floor
        self.smooth = smooth
        self.at_input = tuple(at_input or (False,) * len(explainers))

    def attribute(
        self, inputs: Any, target: Target = None, additional_forward_args: Any = None
    ) -> Tensor:
        """Computes the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs. The first one is the image,
                `(N, C, *spatial)`.
            target (int, tuple, Tensor or list, optional): The class to explain, as in Captum.
                Default: None
            additional_forward_args (Any, optional): Further arguments of the model, one or a tuple.
                Default: None

        Returns:
            *Tensor*: `(N, 1, *spatial)`, nowhere negative, as large as the image. Not scaled: 1 is
            reached only where all layers have their largest value.

        Raises:
            TypeError: As the explainers.
            ValueError: As the explainers, or if a map has not the axes of the image.
        """
        return cast("Tensor", self.explain(inputs, target, additional_forward_args).attributions)

    def explain(
        self, inputs: Any, target: Target = None, additional_forward_args: Any = None
    ) -> LayeredAttribution:
        """Computes the heat map and returns it with that of each layer.

        The arguments are those of :meth:`attribute`.

        Returns:
            *LayeredAttribution*: The heat map, and those that it was made from.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.
        """
        image = inputs[0] if isinstance(inputs, tuple) else inputs
        maps = []
        for explainer, at_input in zip(self.explainers, self.at_input, strict=True):
            more = {"attribute_to_layer_input": True} if at_input else {}
            if additional_forward_args is not None:
                more["additional_forward_args"] = additional_forward_args
            heat = explainer.attribute(inputs, target=target, **more)
            maps.append(_checked(heat, image).detach())
        return LayeredAttribution(self._joined(maps, image), tuple(maps))

    def _joined(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        size = image.shape[2:]
        joined = _unit(enlarge(precise(maps[0]).relu(), size))
        for finer in maps[1:]:
            heat = _blurred(precise(finer).relu(), self.smooth)
            joined = joined * (self.floor + _unit(enlarge(heat, size)).to(joined))
        return joined / (self.floor + 1) ** (len(maps) - 1)


class LayerCalibratedCam(LayerExplainer):
    r"""A map of a few layers, on the scale that shows the model most of the class.

    The recipe has two steps:

    1. The map of the layer is refined by those of finer layers (:class:`LayeredCam`), which
       improves the order of the pixels. Each is the last layer before the one above it that has
       at least twice as many pixels.
    2. Of a few rising curves, each image takes the one behind which the model is surest of the
       class (:func:`captum_clustered.calibration.calibrate`), which improves the scale of the
       values and leaves their order as it is.

    By default the maps are Grad-CAM at the layer and HiResCAM at two finer ones: three passes
    forward and back. Calibration takes eight forward passes more, and a few for checks. For a model
    that cannot be differentiated, `explainers` names other methods. Where no layer is finer, as in
    a vision transformer, the layer's own map is calibrated.

    Unlike the other explainers this returns a map as large as the image, since curves and the
    resizing of a map do not commute.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The last layer, as for Grad-CAM.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        finer_layers (int, nn.Module or sequence of nn.Module, optional): How many finer layers are
            looked for; or the layers themselves, the finest one last, whose maps lie on axis 1; 0
            or an empty list for none. Default: 2
        explainers (sequence of callables, optional): What makes the map of the layer, and what
            makes that of each finer layer: factories ``(forward_func, layer, **settings)`` with the
            settings `channel_dim` and `reshape_transform`, such as
            :class:`captum_clustered.ClusteredLayerAblation`, which needs no gradient.
            Default: None (Grad-CAM and HiResCAM)
        floor (float, optional): As for :class:`LayeredCam`. Default: 0.3
        smooth (float, optional): As for :class:`LayeredCam`. Default: 0.75
        curves (sequence of callables, optional): As for
            :func:`captum_clustered.calibration.calibrate`. Default: six sigmoids, for maps most of
            whose values are near zero
        n_steps (int, optional): As there. Default: 0
        area_weight (float, optional): As there. Default: 0.5
        score (str or callable, optional): As there. Default: ``"log_odds"``
        fill (float, Tensor or str, optional): As there. Default: 0.0
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3), nn.ReLU(),
        ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
        ... ).eval()
        >>> cam = LayerCalibratedCam(model, model[4])
        >>> found = cam.explain(torch.rand(2, 3, 16, 16), target=3)
        >>> found.attributions.shape, found.finer_layers, found.calibration.passes
        (torch.Size([2, 1, 16, 16]), ('1',), 8)
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        finer_layers: int | nn.Module | Sequence[nn.Module] = 2,
        explainers: Sequence[Callable[..., Any]] | None = None,
        floor: float = FLOOR,
        smooth: float = SMOOTH,
        curves: Sequence[Rising] = CURVES,
        n_steps: int = 0,
        area_weight: float = 0.5,
        score: Score = "log_odds",
        fill: Fill = 0.0,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            layer,
            device_ids,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
        )
        if explainers is not None and (len(explainers) != 2 or not all(map(callable, explainers))):
            raise ValueError(
                "`explainers` must be two callables, for the layer and for finer layers; got "
                f"{explainers!r}. Pass, for example, `[ClusteredLayerAblation, LayerHiResCam]`."
            )
        if isinstance(finer_layers, nn.Module):
            finer_layers = [finer_layers]
        if isinstance(finer_layers, int):
            check_int("finer_layers", finer_layers, 0)
        elif not isinstance(finer_layers, Sequence) or not all(
            isinstance(layer, nn.Module) for layer in finer_layers
        ):
            raise TypeError(
                "`finer_layers` must be an int, or modules of the model; got "
                f"{finer_layers!r}. Pass, for example, `2` or `[model.layer3, model.layer2]`."
            )
        check_number("floor", floor, at_least=0)
        check_number("smooth", smooth, at_least=0)
        self.finer_layers = finer_layers if isinstance(finer_layers, int) else tuple(finer_layers)
        self.makers = (_GradCam, _HiResCam) if explainers is None else tuple(explainers)
        self.floor = floor
        self.smooth = smooth
        self.curves = tuple(curves)
        self.n_steps = n_steps
        self.area_weight = area_weight
        self.score = score
        self.fill = fill
        self._found: dict[Any, list[TargetLayer]] = {}

    def explain(
        self,
        inputs: Any,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        perturbations_per_eval: int | None = None,
    ) -> CalibratedAttribution:
        """Computes the heat map and returns it with all that led to it.

        The arguments are those of :meth:`attribute`.

        Returns:
            *CalibratedAttribution*: The heat map, the maps of all layers, and the calibration.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.
        """
        check_perturbations(perturbations_per_eval)
        with borrowed(self.forward_func) as forward_func:
            model = as_model(forward_func, *plain_args(inputs, additional_forward_args))
            finer = self._finer(model, attribute_to_layer_input)
            own = TargetLayer(self.layer, "", at_input=attribute_to_layer_input, **self._layout())
            layers = [own, *finer]
            makers = [self.makers[0], *[self.makers[1]] * len(finer)]
            layered = LayeredCam(
                [
                    make(self.forward_func, layer.layer, **layer.settings)
                    for make, layer in zip(makers, layers, strict=True)
                ],
                floor=self.floor,
                smooth=self.smooth,
                at_input=[layer.at_input for layer in layers],
            ).explain(inputs, target, additional_forward_args)
            at_once = None if perturbations_per_eval is None else perturbations_per_eval * model.n
            found = calibrate(
                forward_func.forward_func,
                inputs,
                layered.attributions,
                target,
                additional_forward_args=additional_forward_args,
                curves=self.curves,
                n_steps=self.n_steps,
                area_weight=self.area_weight,
                score=self.score,
                fill=self.fill,
                max_examples_per_batch=at_once,
            )
        names = tuple(layer.name for layer in finer)
        return CalibratedAttribution(found.heatmaps, layered.layer_maps, found, names)

    def _layout(self) -> dict[str, Any]:
        return {"channel_dim": self.channel_dim, "reshape_transform": self.reshape_transform}

    def _finer(self, model: Model, at_input: bool) -> list[TargetLayer]:
        """The finer layers; they are looked for once for each shape of the inputs."""
        lent = model.forward_func
        if not isinstance(self.finer_layers, int):
            return [
                TargetLayer(layer, _name_of(layer, lent.forward_func))
                for layer in self.finer_layers
            ]
        key = tuple(model.args[0].shape[1:]), at_input
        if self.finer_layers and key not in self._found:
            lent(*model.fresh())  # a model may build parts of itself when it is first called
            found: list[TargetLayer] = []
            before = TargetLayer(self.layer, "", at_input=at_input)
            while len(found) < self.finer_layers:
                finer = find_finer_layer(
                    lent.forward_func, before.layer, *model.args, at_input=before.at_input
                )
                if finer is None:
                    break
                found.append(finer)
                before = finer
            self._found[key] = found
            lent.put_back()  # what follows lends the model anew
        return self._found.get(key, [])


class _Gradients(LayerExplainer):
    """A map from one pass forth and back; the formula of a subclass joins maps and gradients."""

    formula: Callable[[Tensor, Tensor], Tensor]

    def explain(
        self,
        inputs: Any,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Attribution:
        arguments = (inputs, target, additional_forward_args, attribute_to_layer_input)
        with self._first_pass(*arguments, gradients=True) as first:
            pairs = zip(first.maps, first.gradients, strict=True)
            return Attribution(unwrap(itertools.starmap(type(self).formula, pairs)))


class _GradCam(_Gradients):
    @staticmethod
    def formula(maps: Tensor, gradients: Tensor) -> Tensor:
        return build(maps, gradient_weights(gradients), relu=True, sum_maps=True)


class _HiResCam(_Gradients):
    @staticmethod
    def formula(maps: Tensor, gradients: Tensor) -> Tensor:
        return (gradients * maps).sum(1, keepdim=True).relu()


def _name_of(layer: nn.Module, model: Any) -> str:
    known = model.named_modules() if isinstance(model, nn.Module) else ()
    return next((name for name, module in known if module is layer), type(layer).__name__)


def _checked(heat: Any, image: Tensor) -> Tensor:
    found: Tensor = heat
    fits = isinstance(heat, Tensor) and heat.ndim == image.ndim
    if not fits or heat.shape[:2] != (len(image), 1):
        got = tuple(heat.shape) if isinstance(heat, Tensor) else type(heat).__name__
        axes = ", ".join(("D", "H", "W")[-(image.ndim - 2) :])
        raise ValueError(
            f"`explainers` must give maps ({len(image)}, 1, {axes}), with the axes of the image; "
            f"got {got}. Choose a layer that gives one tensor of such maps."
        )
    return found


def _unit(maps: Tensor) -> Tensor:
    """Each map divided by its largest value; a map of zeros stays."""
    top = maps.flatten(1).amax(1).view(-1, *[1] * (maps.ndim - 1))
    return maps / torch.where(top > 0, top, 1)


def _blurred(maps: Tensor, sigma: float) -> Tensor:
    if not sigma:
        return maps
    return fill_image(Blur(2 * math.ceil(3 * sigma) + 1, float(sigma)), maps)
