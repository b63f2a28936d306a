"""Opti-CAM in the space of groups: the mask that makes the model surest, in a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from captum.log import log_usage
from torch import Tensor, nn

from captum_clustered._checks import check_choice, check_int
from captum_clustered.clustering import Groups
from captum_clustered.engine.replay import Ablation, replay
from captum_clustered.explainers.base import FirstPass, group_maps, progress
from captum_clustered.explainers.masking import ImageMasking, joint_maps, precise
from captum_clustered.explainers.results import OptimizationAttribution, Tensors
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.heatmap import ReshapeTransform, build, enlarge, normalize
from captum_clustered.targets import Score, Target, target_scores
from captum_clustered.weighting import SHARES, by_map

__all__ = ["ClusteredLayerOptimization"]


class ClusteredLayerOptimization(ImageMasking):
    r"""The weights of a few groups of maps, optimised for what the model says of the masked image.

    With :math:`F_G` the sum of the maps of a group :math:`G`, :math:`f` the score of the class,
    :math:`b` what fills the hidden part, and :math:`s` the scaling to [0, 1],

    .. math::

        H_u = s\Big(\mathrm{Up}\Big(\sum_G \mathrm{softmax}(u)_G \, \frac{F_G}{\sum_{ij} F_{G,ij}}
        \Big)\Big), \qquad
        u^* = \arg\max_u f\big(x \odot H_u + b \odot (1 - H_u)\big) - \lambda \overline{H_u}
        - \mu \, \mathrm{softplus} f\big(x \odot (1 - H_u) + b \odot H_u\big)

    by a few steps of Adam. With every map its own group, :math:`\lambda = \mu = 0` and 50 to 100
    steps this is Opti-CAM (Zhang et al., "Opti-CAM: Optimizing saliency maps for interpretability",
    CVIU 248, 2024). In the space of `K` groups ten steps are enough.

    What is optimised is, up to the logarithm, what average drop measures: do not judge this method
    by average drop. :math:`\lambda`, `area_weight`, keeps the mask from growing, and :math:`\mu`,
    `complement_weight`, asks that what lies outside does not explain the class; it doubles the
    passes.

    Args:
        forward_func (callable): The model, or a function that runs it. It must be differentiable.
        layer (nn.Module): The layer. Its output, or its input, is one tensor with the spatial axes
            of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"agglomerative"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` for a number of each example's own, with ``"agglomerative"``. Default: 32
        n_steps (int, optional): Steps, one pass forward and back each. Default: 10
        lr (float, optional): Adam's step size. Default: 0.5
        start (str, optional): ``"uniform"``, or ``"drops"``: weights in proportion to what the
            score loses without the group inside the network, which costs next to nothing.
            Default: ``"uniform"``
        score (str or callable, optional): :math:`f`; see
            :func:`captum_clustered.targets.target_scores`. Default: ``"log_odds"``
        area_weight (float, optional): :math:`\lambda`, per unit of the mask's mean. Default: 0.0
        complement_weight (float, optional): :math:`\mu`. Default: 0.0
        tolerance (float, optional): An example stops when its objective is closer than that to the
            one before with the same fill; this reads a value in each step. Default: None (never)
        fill (float, Tensor or str, optional): What takes the place of what the mask hides, as for
            :func:`captum_clustered.fills.fill_image`. Default: 0.0
        alternate_fill (float, Tensor or str, optional): What does so in every second step, for a
            mask that must hold with both. A mask for one fill may do badly with another: with
            ``"blur"`` here, insertion from a blurred image gains. Default: None (always `fill`)
        masked_input (int, optional): Which of several inputs is the image. Default: 0
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`.
            Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> cam = ClusteredLayerOptimization(model, model[1], n_clusters=4, n_steps=5)
        >>> cam.attribute(torch.rand(2, 3, 16, 16), target=3).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        clusterer: Any = "agglomerative",
        n_clusters: int | Literal["auto"] = 32,
        n_steps: int = 10,
        lr: float = 0.5,
        start: Literal["uniform", "drops"] = "uniform",
        score: Score = "log_odds",
        area_weight: float = 0.0,
        complement_weight: float = 0.0,
        tolerance: float | None = None,
        fill: Fill = 0.0,
        alternate_fill: Fill | None = None,
        masked_input: int = 0,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        super().__init__(
            forward_func,
            layer,
            device_ids,
            clusterer,
            n_clusters,
            fill,
            masked_input,
            channel_dim,
            reshape_transform,
        )
        check_int("n_steps", n_steps, 0)
        check_choice("start", start, ("uniform", "drops"))
        for name, value in (("area_weight", area_weight), ("complement_weight", complement_weight)):
            _check_number(name, value, above=False)
        _check_number("lr", lr, above=True)
        if tolerance is not None:
            _check_number("tolerance", tolerance, above=True)
        self.n_steps = n_steps
        self.lr = lr
        self.start: str = start
        self.score = score
        self.area_weight = area_weight
        self.complement_weight = complement_weight
        self.tolerance = tolerance
        self.alternate_fill = alternate_fill

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        attr_dim_summation: bool = True,
        show_progress: bool = False,
    ) -> Tensors:
        r"""Computes the heat map.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): The model's inputs, the batch axis first.
            target (int, tuple, Tensor or list, optional): The class to explain, as for
                :meth:`captum_clustered.ClusteredLayerAblation.attribute`. Default: None
            additional_forward_args (Any, optional): Further arguments of `forward_func`, one or a
                tuple. Default: None
            attribute_to_layer_input (bool, optional): Whether to use the layer's input instead of
                its output. Default: False
            attr_dim_summation (bool, optional): Whether to sum over the maps. Default: True
            show_progress (bool, optional): Whether to show a progress bar. Default: False

        Returns:
            *Tensor* of **attributions**: `(N, 1, *spatial)`, or `(N, C, *spatial)` with
            ``attr_dim_summation=False``, in the layer's own resolution, detached. The maps are
            summed as they are, so that it is negative where negative maps prevail.

        Raises:
            TypeError: If an argument, or what the model or the layer gives, is of a wrong type.
            ValueError: If a shape or a value does not fit, or the score has no gradient.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerOptimization(model.eval(), model[1], n_clusters=2, n_steps=3)
            >>> cam.attribute(torch.rand(3, 1, 4, 4), target=[0, 1, 1]).shape
            torch.Size([3, 1, 2, 2])
        """
        return self.explain(
            inputs,
            target,
            additional_forward_args=additional_forward_args,
            attribute_to_layer_input=attribute_to_layer_input,
            attr_dim_summation=attr_dim_summation,
            show_progress=show_progress,
        ).attributions

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        attr_dim_summation: bool = True,
        show_progress: bool = False,
    ) -> OptimizationAttribution:
        """Computes the heat map and returns it with all that led to it.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :meth:`attribute`, like all arguments.
            target (int, tuple, Tensor or list, optional): The class to explain. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False
            attr_dim_summation (bool, optional): Sum over the maps. Default: True
            show_progress (bool, optional): Show a progress bar. Default: False

        Returns:
            *OptimizationAttribution*: The heat map, the weights and the course of the objective.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerOptimization(model.eval(), model[1], n_clusters=2, n_steps=3)
            >>> cam.explain(torch.rand(3, 1, 4, 4), target=1).objectives.shape
            torch.Size([3, 3])
        """
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input
        ) as first:
            if len(first.maps) > 1:
                raise ValueError(
                    "`layer` must give one tensor to be optimised over; got "
                    f"{len(first.maps)}. Choose another layer."
                )
            (maps,) = first.maps
            groups = group_maps(self.clusterer, maps, first.n_scores)
            joint = joint_maps(precise(maps), groups)
            ones = torch.ones_like(groups.sizes, dtype=joint.dtype)
            shares = SHARES["mass"](ones, groups.labels, maps)
            parts = joint * shares.reshape(*shares.shape, *[1] * (joint.ndim - 2))
            start = self._start(first, groups, joint.dtype)
            first.captured.prefix.clear()
            with progress(self.get_name(), self.n_steps, show_progress) as tick:
                weights, objectives, steps = self._optimise(first, parts, start, tick)
        by_group = SHARES["mass"](weights, groups.labels, maps)
        heat = build(maps, by_map(by_group, groups.labels), relu=False, sum_maps=attr_dim_summation)
        return OptimizationAttribution(
            attributions=heat,
            activations=maps,
            labels=groups.labels,
            group_weights=weights,
            valid=groups.sizes > 0,
            objectives=objectives,
            steps=steps,
        )

    def _start(self, first: FirstPass, groups: Groups, dtype: torch.dtype) -> Tensor:
        """The logits `(N, K)` of the first weights."""
        logits = torch.zeros_like(groups.sizes, dtype=dtype)
        if self.start == "drops":
            activations = first.captured.activations
            dims = [self._channel_dim(tensor) for tensor in activations]
            ablation = Ablation.of(activations, [groups], dims, None)
            found = replay(first.model, first.io, first.targets, first.captured, ablation)
            drops = (found.scores.unsqueeze(1) - found.ablated_scores).to(dtype).relu()
            shares = drops / drops.sum(1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
            logits = logits + shares.clamp(min=1e-3).log()
        return torch.where(groups.sizes > 0, logits, -torch.inf)

    def _optimise(
        self, first: FirstPass, parts: Tensor, logits: Tensor, tick: Callable[[int], object]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weights `(N, K)`, the objectives `(N, T)` and the number of steps `(N,)`."""
        image = self._image(first, [parts])
        image = image.clone() if image.is_inference() else image  # autograd refuses such a tensor
        backgrounds = [fill_image(self.fill, image)]
        if self.alternate_fill is not None:
            backgrounds.append(fill_image(self.alternate_fill, image))
        valid = logits > -torch.inf
        n = len(parts)

        def weigh(free: Tensor) -> Tensor:
            weights = torch.where(valid, free, -torch.inf).softmax(1)
            return torch.where(valid, weights, 0)  # without any group the softmax is NaN

        def objective(free: Tensor, background: Tensor) -> Tensor:
            weights = weigh(free)
            heat = (weights.reshape(*weights.shape, *[1] * (parts.ndim - 2)) * parts).sum(1, True)
            mask = normalize(enlarge(heat, image.shape[2:]))
            found = self._score(first, masked(image, mask, background))
            if self.complement_weight:
                outside = self._score(first, masked(image, 1 - mask, background))
                found = found - self.complement_weight * F.softplus(outside)
            return found - self.area_weight * mask.flatten(1).mean(1)

        with torch.enable_grad():
            free = torch.where(valid, logits, 0).requires_grad_()
            adam = torch.optim.Adam([free], lr=self.lr)
            active = torch.ones(n, dtype=torch.bool, device=free.device)
            # of as many steps ago as there are backgrounds: only these compare
            earlier = [torch.full((n,), torch.nan, device=free.device, dtype=torch.float64)]
            earlier *= len(backgrounds)
            steps = torch.zeros(n, dtype=torch.int64, device=free.device)
            objectives = []
            for step in range(self.n_steps):
                values = objective(free, backgrounds[step % len(backgrounds)])
                (free.grad,) = torch.autograd.grad(-values.sum(), free)
                values = values.detach().to(earlier[0])
                if self.tolerance is not None:  # NaN, before the first step, compares as not less
                    active = active & ~((values - earlier[0]).abs() < self.tolerance)
                    if not bool(active.any()):
                        break
                kept = free.detach().clone()
                adam.step()
                with torch.no_grad():  # an example's result must not depend on its neighbours
                    free.copy_(torch.where(active.unsqueeze(1), free, kept))
                objectives.append(torch.where(active, values, torch.nan))
                steps += active
                earlier = [*earlier[1:], values]
                tick(1)
        course = torch.stack(objectives, 1) if objectives else earlier[0].new_zeros(n, 0)
        return weigh(free.detach()), course, steps

    def _score(self, first: FirstPass, images: Tensor) -> Tensor:
        output = first.model.copies(1, {self.masked_input: images})
        scores = target_scores(output, first.targets, self.score)
        if not scores.requires_grad:
            raise ValueError(
                "`forward_func` must give a score that has a gradient with respect to the inputs; "
                "it has none. Leave out what cuts it off, or take ClusteredLayerScore, which needs "
                "no gradient."
            )
        return scores.expand(first.model.n)


def _check_number(name: str, value: Any, above: bool) -> None:
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or value < 0 or (above and value == 0):
        raise ValueError(f"`{name}` must be a number {'>' if above else '>='} 0; got {value!r}.")
