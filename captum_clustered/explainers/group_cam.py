"""Group-CAM: groups of gradient-weighted maps, scored by what they let the model see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_int
from captum_clustered.clustering import as_clusterer
from captum_clustered.explainers.base import (
    LayerExplainer,
    check_perturbations,
    group_maps,
    progress,
    unwrap,
)
from captum_clustered.explainers.masking import MaskedImage, joint_maps, precise
from captum_clustered.explainers.results import MaskingAttribution, Tensors
from captum_clustered.fills import Fill
from captum_clustered.heatmap import ReshapeTransform, build
from captum_clustered.targets import Score, Target
from captum_clustered.weighting import gradient_weights

__all__ = ["LayerGroupCam"]


class LayerGroupCam(LayerExplainer, PerturbationAttribution):
    r"""Group-CAM: groups of gradient-weighted maps, scored by what they let the model see.

    The maps :math:`A_k` are weighted by the mean gradients :math:`\alpha_k` of the score, as in
    Grad-CAM. Their sum over a group is the joint map
    :math:`M_G = \mathrm{ReLU}(\sum_{k \in G} \alpha_k A_k)`. Enlarged to the image and scaled to
    [0, 1], it is the mask :math:`H_G`, which mixes the image :math:`x` with its blur :math:`b(x)`:

    .. math::

        w_G = \mathrm{ReLU}\big(p(x \odot H_G + b(x) \odot (1 - H_G)) - p(b(x))\big),
        \qquad M = \sum_G w_G M_G

    with :math:`p` the softmax probability of the class (Zhang, Rao, Yang, "Group-CAM: Group
    Score-Weighted Visual Explanations for Deep Convolutional Networks", arXiv 2103.13859). As in
    the authors' released code, the groups are 32 runs of neighbouring channels, there is no
    de-noising, and the heat map uses the :math:`M_G` before they are scaled.

    Unlike in that code, a group is left out if its joint map is flat, for instance zero after the
    ReLU. Scaling would divide by its range of zero and make the whole heat map NaN.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the weighted maps, as
            for :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"contiguous"``
        n_clusters (int or str, optional): Number of groups for a clusterer given by name;
            ``"auto"`` lets ``"agglomerative"`` choose one for each example. Default: 32
        percentile (float, optional): In [0, 100). Values of a joint map at or below this
            percentile of the map are set to zero, which the paper calls de-noising; earlier code of
            the authors has 70. Default: None (no de-noising)
        score (str or callable, optional): How the model's output becomes the score of a masked
            image: ``"softmax"``, ``"sigmoid"`` for models with a single logit, ``"identity"``, or a
            callable. The gradients are always those of the output itself. Default: ``"softmax"``
        fill (float, Tensor or str, optional): What replaces the hidden pixels: ``"blur"`` (a
            Gaussian of 51 pixels with a standard deviation of 50), a number, a tensor, or anything
            else that :func:`captum_clustered.fills.fill_image` takes. Default: ``"blur"``
        masked_input (int, optional): Which of several inputs is the image. Default: 0
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output, and its gradient, into
            `(N, C, *spatial)`. It may move values and leave some out, but must not change them.
            Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> cam = LayerGroupCam(model, model[1], n_clusters=4)
        >>> cam.attribute(torch.rand(2, 3, 16, 16), target=3).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        clusterer: Any = "contiguous",
        n_clusters: int | Literal["auto"] = 32,
        percentile: float | None = None,
        score: Score = "softmax",
        fill: Fill = "blur",
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
        if percentile is not None and not (
            isinstance(percentile, (int, float)) and 0 <= percentile < 100
        ):
            raise ValueError(f"`percentile` must lie in [0, 100), or be None; got {percentile!r}.")
        self.clusterer = as_clusterer(clusterer, n_clusters)
        self.fill = fill
        self.masked_input = masked_input
        self.percentile = percentile
        self.score = score

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
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
            >>> cam = LayerGroupCam(model.eval(), model[1], n_clusters=2)
            >>> result = cam.explain(torch.rand(3, 1, 4, 4), target=1)
            >>> result.masked_scores.shape, result.hidden_scores.shape
            (torch.Size([3, 2]), torch.Size([3]))
        """
        check_perturbations(perturbations_per_eval)
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input, gradients=True
        ) as first:
            view = MaskedImage.of(first, self.masked_input, self.fill)
            weighted = [
                build(precise(maps), gradient_weights(gradients), relu=False, sum_maps=False)
                for maps, gradients in zip(first.maps, first.gradients, strict=True)
            ]
            groups = [
                group_maps(self.clusterer, maps, jointly=first.has_joint_score) for maps in weighted
            ]
            joints = [
                self._denoise(joint_maps(maps, grouped).relu())
                for maps, grouped in zip(weighted, groups, strict=True)
            ]
            total = 1 + sum(grouped.n_groups for grouped in groups)
            with progress(self.get_name(), total, show_progress) as tick:
                seen, hidden = view.see_hidden(joints, self.score, perturbations_per_eval, tick)
        valid = [(grouped.sizes > 0) & ~one.flat for grouped, one in zip(groups, seen, strict=True)]
        weights = [
            torch.where(real, (one.scores - hidden.unsqueeze(1)).relu(), 0).to(joint.dtype)
            for one, real, joint in zip(seen, valid, joints, strict=True)
        ]
        heats = [
            build(joint, weight, relu=False, sum_maps=True).to(maps.dtype)
            for joint, weight, maps in zip(joints, weights, first.maps, strict=True)
        ]
        return MaskingAttribution(
            attributions=unwrap(heats),
            activations=unwrap(first.maps),
            labels=unwrap(grouped.labels for grouped in groups),
            labels_below=unwrap(grouped.labels for grouped in groups),
            group_maps=unwrap(joints),
            masked_scores=unwrap(one.scores for one in seen),
            hidden_scores=hidden,
            group_weights=unwrap(weights),
            valid=unwrap(valid),
        )

    def _denoise(self, joint: Tensor) -> Tensor:
        if self.percentile is None:
            return joint
        flat = joint.flatten(2)
        place = self.percentile / 100 * (flat.shape[2] - 1)
        ordered = flat.sort(dim=2).values  # torch.quantile takes 16 million values at most
        below, above = ordered[..., math.floor(place)], ordered[..., math.ceil(place)]
        threshold = torch.lerp(below, above, place % 1).unsqueeze(2)
        return torch.where(flat > threshold, flat, 0).view_as(joint)
