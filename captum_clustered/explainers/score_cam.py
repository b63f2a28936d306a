"""Score-CAM, with single maps and with groups: each masks the image and is scored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_choice, check_int
from captum_clustered.clustering import Groups, as_clusterer
from captum_clustered.explainers.base import (
    LayerExplainer,
    check_parts,
    check_perturbations,
    group_parts,
    progress,
    unwrap,
)
from captum_clustered.explainers.masking import MaskedImage, joint_maps, precise
from captum_clustered.explainers.results import MaskingAttribution, Tensors
from captum_clustered.fills import Fill
from captum_clustered.heatmap import ReshapeTransform
from captum_clustered.targets import Score, Target
from captum_clustered.weighting import SHARES, by_map

__all__ = ["ClusteredLayerScore", "LayerScoreCam"]


class ClusteredLayerScore(LayerExplainer, PerturbationAttribution):
    r"""Score-CAM with groups: each group of maps masks the image and is scored.

    With :math:`F_G` the sum of the maps of a group :math:`G`, enlarged to the image and scaled to
    [0, 1] as the mask :math:`H_G = s(\mathrm{Up}(F_G))`, and :math:`f` the score of the class,

    .. math::

        M = \mathrm{ReLU}\Big(\sum_G w_G \frac{F_G}{\sum_{ij} F_{G,ij}}\Big),
        \qquad w = \mathrm{softmax}_G \big( f(x \odot H_G) / T \big)

    This is the idea of Score-CAM (Wang et al., CVPR Workshops 2020) at a fraction of its cost: the
    whole model runs once for each group instead of once for each map. No gradient is needed. A
    group whose joint map is flat cannot be a mask, and the softmax leaves it out.

    :class:`LayerScoreCam` has one group for each map by default. ClusCAM (ICLR 2026 submission
    18606) is close to ``clusterer="kmeans", n_clusters=10, score="identity", temperature=0.5,
    share="map", keep_fraction=0.5``. It also scales the maps before they are clustered; your own
    clusterer can do that.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"agglomerative"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` lets ``"agglomerative"`` choose one for each example. Default: 32
        score (str or callable, optional): :math:`f`, of the model's output: ``"log_odds"``,
            ``"identity"`` (the logit), ``"softmax"``, ``"sigmoid"`` or a callable; see
            :func:`captum_clustered.targets.target_scores`. Default: ``"log_odds"``
        weigh_by (str, optional): How scores become weights: ``"softmax"`` over the groups;
            ``"gain"``, how far the score is above that of the fully hidden image, at least 0, which
            takes one more pass; ``"score"``, the score itself. Default: ``"softmax"``
        temperature (float, optional): :math:`T`, above 0, for ``"softmax"``: the smaller, the more
            the best groups stand out. Default: 0.5
        share (str, optional): How a group's weight is shared among its maps: ``"mass"`` by
            activation, so that the heat of a group sums to its weight; ``"map"`` equally;
            ``"none"`` gives it whole to each. Default: ``"mass"``
        keep_fraction (float, optional): Share of the groups that contribute to the heat map, in
            (0, 1]: those with the highest scores. Default: None (all)
        parts (str, optional): ``"signed"`` takes each map apart into what it says above zero and
            what it says below; ``"whole"`` takes its magnitude, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"signed"``
        fill (float, Tensor or str, optional): What replaces the hidden pixels, in the space of
            the model's input: a number, a tensor, ``"blur"``, or anything else that
            :func:`captum_clustered.fills.fill_image` takes. Default: 0.0
        masked_input (int, optional): Which of several inputs is the image. Default: 0
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`,
            such as :func:`captum_clustered.heatmap.vit_reshape_transform`. Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> cam = ClusteredLayerScore(model, model[1], n_clusters=4)
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
        score: Score = "log_odds",
        weigh_by: Literal["softmax", "gain", "score"] = "softmax",
        temperature: float = 0.5,
        share: Literal["map", "mass", "none"] = "mass",
        keep_fraction: float | None = None,
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
        check_choice("weigh_by", weigh_by, ("softmax", "gain", "score"))
        check_choice("share", share, tuple(SHARES))
        if not isinstance(temperature, (int, float)) or not temperature > 0:
            raise ValueError(f"`temperature` must be a number > 0; got {temperature!r}.")
        if keep_fraction is not None and not (
            isinstance(keep_fraction, (int, float)) and 0 < keep_fraction <= 1
        ):
            raise ValueError(
                f"`keep_fraction` must lie in (0, 1], or be None; got {keep_fraction!r}."
            )
        self.clusterer = as_clusterer(clusterer, n_clusters)
        check_parts(parts)
        self.parts: str = parts
        self.fill = fill
        self.masked_input = masked_input
        self.score = score
        self.weigh_by: str = weigh_by
        self.temperature: float = temperature
        self.share: str = share
        self.keep_fraction = keep_fraction

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
        perturbations_per_eval: int | None = None,
        show_progress: bool = False,
    ) -> MaskingAttribution:
        """Computes the heat map and returns it with the values that it was computed from.

        The arguments are those of :meth:`attribute`.

        Returns:
            *MaskingAttribution*: The heat map, the groups, their scores and weights.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = ClusteredLayerScore(model.eval(), model[1], n_clusters=3)
            >>> cam.explain(torch.rand(3, 1, 4, 4), target=1).masked_scores.shape
            torch.Size([3, 3])
        """
        check_perturbations(perturbations_per_eval)
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input, lay_out=False
        ) as first:  # in the usual layout, since the masked images are compared with it
            view = MaskedImage.of(first, self.masked_input, self.fill)
            parts = self._parts(first, self.clusterer, self.parts)
            groups = [
                group_parts(self.clusterer, one, jointly=first.has_joint_score) for one in parts
            ]
            joints = [
                joint_maps(precise(one.values), grouped)
                for one, grouped in zip(parts, groups, strict=True)
            ]
            total = sum(grouped.n_groups for grouped in groups)
            with progress(self.get_name(), total, show_progress) as tick:
                arguments = (joints, self.score, perturbations_per_eval, tick)
                hidden = None
                if self.weigh_by == "gain":
                    seen, hidden = view.see_hidden(*arguments)
                else:
                    seen = view.see(*arguments)
        valid = [(grouped.sizes > 0) & ~one.flat for grouped, one in zip(groups, seen, strict=True)]
        weights = [
            self._weights(behind.scores, hidden, real, grouped, one.values)
            for behind, real, grouped, one in zip(seen, valid, groups, parts, strict=True)
        ]
        heats = [
            one.paint(by_map(weight, grouped.labels), relu_attributions, attr_dim_summation)
            for one, weight, grouped in zip(parts, weights, groups, strict=True)
        ]
        labels = [
            one.by_map(grouped.labels, -1) for one, grouped in zip(parts, groups, strict=True)
        ]
        return MaskingAttribution(
            attributions=unwrap(heats),
            activations=unwrap(first.maps),
            labels=unwrap(above for above, _ in labels),
            labels_below=unwrap(below for _, below in labels),
            group_maps=unwrap(joints),
            masked_scores=unwrap(one.scores for one in seen),
            hidden_scores=hidden,
            group_weights=unwrap(weights),
            valid=unwrap(valid),
        )

    def _weights(
        self, scores: Tensor, hidden: Tensor | None, valid: Tensor, groups: Groups, maps: Tensor
    ) -> Tensor:
        if self.keep_fraction is not None:
            ranked = torch.where(valid, scores, -torch.inf).argsort(dim=1, descending=True)
            count = (self.keep_fraction * valid.sum(1, keepdim=True)).ceil()
            valid = valid & (ranked.argsort(dim=1) < count)
        weights = scores
        if self.weigh_by == "softmax":
            weights = torch.where(valid, scores / self.temperature, -torch.inf).softmax(1)
        elif hidden is not None:
            weights = (scores - hidden.unsqueeze(1)).relu()
        weights = torch.where(valid, weights, 0)  # without any group the softmax is NaN
        return SHARES[self.share](weights, groups.labels, maps).to(precise(maps).dtype)


class LayerScoreCam(ClusteredLayerScore):
    r"""Score-CAM: each feature map, or group of maps, masks the image and is scored.

    With :math:`F_G` the sum of the maps of a group :math:`G`, enlarged to the image and scaled to
    [0, 1] as the mask :math:`H_G = s(\mathrm{Up}(F_G))`, and :math:`f` the score of the class,

    .. math::

        M = \mathrm{ReLU}\Big(\sum_G \frac{w_G}{|G|} F_G\Big),
        \qquad w = \mathrm{softmax}_G \big( f(x \odot H_G) / T \big)

    With every map alone, the default, this is Score-CAM (Wang et al., "Score-CAM: Score-Weighted
    Visual Explanations for Convolutional Neural Networks", CVPR Workshops 2020). Two methods have
    that name:

    - ``variant="softmax"``, the default: the softmax over the maps of the class's logit, as in the
      paper. The score of an empty image, which the paper subtracts, cancels in the softmax.
      pytorch-grad-cam and torchcam do the same.
    - ``variant="probability"``: the class's probability itself, as in the code that the authors
      released: the softmax over the classes, or the sigmoid where the model gives one logit.

    No gradient is needed, but the whole model runs once for each group. With a clusterer there are
    fewer: ``clusterer="kmeans", n_clusters=32`` takes 32 passes where 1280 maps take 1280.
    A dead map, or a group whose joint map is flat, cannot be a mask. The softmax leaves it out.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"every-map"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` lets ``"agglomerative"`` choose one for each example. Default: 64
        variant (str, optional): ``"softmax"`` or ``"probability"``. Default: ``"softmax"``
        temperature (float, optional): :math:`T`, above 0, for the variant ``"softmax"``: the
            smaller, the more the best groups stand out. Default: 1.0
        share (str, optional): How a group's weight is shared among its maps: ``"map"`` equally;
            ``"mass"`` by activation, so that the heat of a group sums to its weight; ``"none"``
            gives it whole to each. Default: ``"map"``
        parts (str, optional): ``"signed"`` takes each map apart into what it says above zero and
            what it says below; ``"whole"`` takes its magnitude, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"signed"``
        fill (float, Tensor or str, optional): What replaces the hidden pixels, in the space of
            the model's input: a number, a tensor, ``"blur"``, or anything else that
            :func:`captum_clustered.fills.fill_image` takes. Default: 0.0
        masked_input (int, optional): Which of several inputs is the image. Default: 0
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output into `(N, C, *spatial)`,
            such as :func:`captum_clustered.heatmap.vit_reshape_transform`. Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> cam = LayerScoreCam(model, model[1], clusterer="kmeans", n_clusters=4)
        >>> cam.attribute(torch.rand(2, 3, 16, 16), target=3).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        clusterer: Any = "every-map",
        n_clusters: int | Literal["auto"] = 64,
        variant: Literal["softmax", "probability"] = "softmax",
        temperature: float = 1.0,
        share: Literal["map", "mass", "none"] = "map",
        parts: Literal["signed", "whole"] = "signed",
        fill: Fill = 0.0,
        masked_input: int = 0,
        channel_dim: int = 1,
        reshape_transform: ReshapeTransform | None = None,
    ) -> None:
        check_choice("variant", variant, ("softmax", "probability"))
        super().__init__(
            forward_func,
            layer,
            device_ids,
            clusterer=clusterer,
            n_clusters=n_clusters,
            score="identity" if variant == "softmax" else _probability,
            weigh_by="softmax" if variant == "softmax" else "score",
            temperature=temperature,
            share=share,
            parts=parts,
            fill=fill,
            masked_input=masked_input,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
        )
        self.variant: str = variant


def _probability(logits: Tensor) -> Tensor:
    """The softmax over the classes, or the sigmoid of one logit."""
    return logits.softmax(1) if logits.ndim > 1 and logits.shape[1] > 1 else logits.sigmoid()
