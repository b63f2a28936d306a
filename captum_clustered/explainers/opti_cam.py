"""Opti-CAM in the space of groups: the mask that makes the model surest, in a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from captum.attr import GradientAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_int
from captum_clustered._gradients import gradients_reach
from captum_clustered.clustering import as_clusterer
from captum_clustered.explainers.base import (
    LayerExplainer,
    check_parts,
    group_parts,
    progress,
)
from captum_clustered.explainers.masking import MaskedImage, joint_maps, precise
from captum_clustered.explainers.results import OptimizationAttribution, Tensors
from captum_clustered.fills import Fill
from captum_clustered.heatmap import ReshapeTransform, enlarge, normalize
from captum_clustered.targets import Score, Target
from captum_clustered.weighting import SHARES, by_map

__all__ = ["ClusteredLayerOptimization"]


class ClusteredLayerOptimization(LayerExplainer, GradientAttribution):
    r"""The weights of a few groups of maps, optimised for the score of the masked image.

    With :math:`F_G` the sum of the maps of a group :math:`G`, :math:`f` the score of the class,
    :math:`b` what fills the hidden part, and :math:`s` the scaling to [0, 1],

    .. math::

        H_u = s\Big(\mathrm{Up}\Big(\sum_G \mathrm{softmax}(u)_G \, \frac{F_G}{\sum_{ij} F_{G,ij}}
        \Big)\Big), \qquad
        u^* = \arg\max_u f\big(x \odot H_u + b \odot (1 - H_u)\big)

    by a few steps of Adam. With every map its own group and 50 to 100 steps this is Opti-CAM (Zhang
    et al., "Opti-CAM: Optimizing saliency maps for interpretability", CVIU 248, 2024). In the space
    of `K` groups ten steps are enough.

    The objective is, up to the logarithm, what average drop measures. So do not judge this method
    by average drop.

    Args:
        forward_func (callable): The model, or a function that runs it. It must be differentiable.
        layer (nn.Module): The layer. Its output, or its input, is one tensor with the spatial axes
            of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"agglomerative"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` for a number of each example's own, with ``"agglomerative"``. Default: 32
        n_steps (int, optional): Steps. Each takes one pass forward and one back. Default: 10
        lr (float, optional): Adam's step size. Default: 0.5
        score (str or callable, optional): :math:`f`; see
            :func:`captum_clustered.targets.target_scores`. Default: ``"log_odds"``
        parts (str, optional): ``"signed"`` takes each map apart into what it says above zero and
            what it says below; ``"whole"`` takes its magnitude, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"signed"``
        fill (float, Tensor or str, optional): What replaces the part that the mask hides, as for
            :func:`captum_clustered.fills.fill_image`. Default: 0.0
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
        score: Score = "log_odds",
        parts: Literal["signed", "whole"] = "signed",
        fill: Fill = 0.0,
        masked_input: int = 0,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        LayerExplainer.__init__(
            self,
            forward_func,
            layer,
            device_ids,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
        )
        check_int("masked_input", masked_input, 0)
        check_int("n_steps", n_steps, 0)
        fits = isinstance(lr, (int, float)) and not isinstance(lr, bool) and math.isfinite(lr)
        if not fits or lr <= 0:
            raise ValueError(f"`lr` must be a number > 0; got {lr!r}.")
        check_parts(parts)
        self.parts: str = parts
        self.clusterer = as_clusterer(clusterer, n_clusters)
        self.n_steps = n_steps
        self.lr = lr
        self.score = score
        self.fill = fill
        self.masked_input = masked_input

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

        The arguments are those of :meth:`attribute`.

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
            inputs, target, additional_forward_args, attribute_to_layer_input, lay_out=False
        ) as first:
            if len(first.maps) > 1:
                raise ValueError(
                    "`layer` must give one tensor to be optimised over; got "
                    f"{len(first.maps)}. Choose another layer."
                )
            view = MaskedImage.of(first, self.masked_input, self.fill)
            (parts,) = self._parts(first, self.clusterer, self.parts)
            groups = group_parts(self.clusterer, parts, jointly=first.has_joint_score)
            joint = joint_maps(precise(parts.values), groups)  # (N, K, *spatial)
            ones = torch.ones_like(groups.sizes, dtype=joint.dtype)
            shares = SHARES["mass"](ones, groups.labels, parts.values)
            shared = joint * shares.reshape(*shares.shape, *[1] * (joint.ndim - 2))
            with progress(self.get_name(), self.n_steps, show_progress) as tick:
                weights, objectives = self._optimise(view, shared, groups.sizes > 0, tick)
        by_group = SHARES["mass"](weights, groups.labels, parts.values)
        heat = parts.paint(by_map(by_group, groups.labels), False, attr_dim_summation)
        labels, labels_below = parts.by_map(groups.labels, -1)
        return OptimizationAttribution(
            attributions=heat,
            activations=first.maps[0],
            labels=labels,
            labels_below=labels_below,
            group_weights=weights,
            valid=groups.sizes > 0,
            objectives=objectives,
        )

    def _optimise(
        self, view: MaskedImage, parts: Tensor, valid: Tensor, tick: Callable[[int], object]
    ) -> tuple[Tensor, Tensor]:
        """The weights `(N, K)`, and the objectives `(N, T)` before each step."""
        score = view.unsquashed(self.score)

        def weigh(free: Tensor) -> Tensor:  # (N, K)
            weights = torch.where(valid, free, -torch.inf).softmax(1)
            return torch.where(valid, weights, 0)  # without any group the softmax is NaN

        def objective(free: Tensor) -> Tensor:  # (N,)
            weights = weigh(free)
            heat = (weights.reshape(*weights.shape, *[1] * (parts.ndim - 2)) * parts).sum(1, True)
            mask = normalize(enlarge(heat, view.image.shape[2:]))  # (N, 1, *spatial)
            return self._score(view, view.through(mask), score)

        with gradients_reach(_NO_GRADIENT), torch.enable_grad():
            free = torch.zeros_like(valid, dtype=parts.dtype).requires_grad_()
            adam = torch.optim.Adam([free], lr=self.lr)
            objectives = []
            for _ in range(self.n_steps):
                values = objective(free)
                (free.grad,) = torch.autograd.grad(-values.sum(), free, allow_unused=True)
                if free.grad is None:  # the score has a gradient, but not for the image
                    raise ValueError(_NO_GRADIENT)
                adam.step()
                objectives.append(values.detach().to(torch.float64))
                tick(1)
        n = len(parts)
        course = torch.stack(objectives, 1) if objectives else parts.new_zeros(n, 0).double()
        return weigh(free.detach()), course

    def _score(self, view: MaskedImage, images: Tensor, score: Score) -> Tensor:
        scores = view.scores(images, score)
        if not scores.requires_grad:
            raise ValueError(_NO_GRADIENT)
        return scores.expand(len(images))


_NO_GRADIENT = (
    "`forward_func` must give a score that has a gradient with respect to the inputs; got one "
    "without. Leave out what cuts it off (`.item()`, `.detach()`, argmax, `torch.no_grad`, "
    "`torch.inference_mode`), or take ClusteredLayerScore, which needs no gradient."
)
