"""Score-CAM and Group-CAM: the model sees its input through the maps of a layer.

A map, or the sum of a group's maps, is enlarged to the size of the image and scaled to [0, 1]. The
image is kept where this mask is 1 and replaced where it is 0. What the model still says of the
class is what the map, or the group, is worth. The whole model runs for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from captum.log import log_usage
from torch import Tensor, nn

from captum_clustered._checks import check_choice, check_int
from captum_clustered.clustering import Groups, as_clusterer
from captum_clustered.explainer import (
    FirstPass,
    LayerExplainer,
    Tensors,
    check_perturbations,
    group_maps,
    progress,
    unwrap,
)
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.heatmap import ReshapeTransform, build, enlarge, normalize
from captum_clustered.replay import chunks, fitting
from captum_clustered.targets import Score, Target, repeat_target, target_scores
from captum_clustered.weighting import SHARES, by_map, gradient_weights, sum_by_group

__all__ = ["LayerGroupCam", "LayerScoreCam", "MaskingAttribution"]


@dataclass(frozen=True, eq=False)
class MaskingAttribution:
    """Everything that one call of `explain` found out.

    `N` is the number of examples, `C` of feature maps, `K` of groups. Where the layer gives several
    tensors, every field marked * is a tuple with one entry for each.

    Attributes:
        attributions (Tensor or tuple[Tensor, ...]): * The heat map, `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``.
        activations (Tensor or tuple[Tensor, ...]): * The maps, `(N, C, *spatial)`.
        labels (Tensor or tuple[Tensor, ...]): * int64 `(N, C)`: each map's group; -1 is none.
        group_maps (Tensor or tuple[Tensor, ...]): * What the masks are made of, in the layer's own
            resolution: the joint map of each group, `(N, K, *spatial)`.
        masked_scores (Tensor or tuple[Tensor, ...]): * What the model says of the class when
            it sees the image through the group, `(N, K)`.
        hidden_scores (Tensor or None): What it says when all of the image is hidden, `(N,)`; None
            where that is not asked, as in Score-CAM.
        group_weights (Tensor or tuple[Tensor, ...]): * The weight of each group, `(N, K)`, as it is
            given to its joint map (Group-CAM) or to each of its maps (Score-CAM); 0 for a group
            that is not valid.
        valid (Tensor or tuple[Tensor, ...]): * bool `(N, K)`: which groups an example has, without
            those whose joint map is flat, since a flat map is no mask.
    """

    attributions: Tensors
    activations: Tensors
    labels: Tensors
    group_maps: Tensors
    masked_scores: Tensors
    hidden_scores: Tensor | None
    group_weights: Tensors
    valid: Tensors


class _ImageMasking(LayerExplainer, PerturbationAttribution):
    """Base of both: the settings, and the passes with masked images."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None,
        clusterer: Any,
        n_clusters: int,
        fill: Fill,
        masked_input: int,
        channel_dim: int,
        reshape_transform: ReshapeTransform | None,
    ) -> None:
        LayerExplainer.__init__(
            self,
            forward_func,
            layer,
            device_ids,
            channel_dim=channel_dim,
            reshape_transform=reshape_transform,
        )
        PerturbationAttribution.__init__(self, forward_func)
        check_int("masked_input", masked_input, 0)
        self.clusterer = as_clusterer(clusterer, n_clusters)
        self.fill = fill
        self.masked_input = masked_input

    def _see(
        self,
        first: FirstPass,
        joints: list[Tensor],
        score: Score,
        chunk: int | None,
        show_progress: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Scores of the image behind each joint map `(N, K, *spatial)`, and which are no mask."""
        image = self._image(first, joints)
        background = fill_image(self.fill, image)
        if first.n_scores != first.model.n or first.captured.stochastic:
            chunk = 1  # copies would be scored, or normalised, together
        elif chunk is None:  # a copy of the inputs grows to many times its size inside the model
            chunk = fitting(8 * first.model.nbytes, image.device)
        first.captured.prefix.clear()  # a replay would need it; here the whole model runs

        def run(masks: Tensor) -> Tensor:
            """Scores `(k, N)`, or `(k, 1)`, for masks `(k, N, *spatial)`."""
            copies = len(masks)
            shown = masked(image, masks.unsqueeze(2).to(image.device), background).flatten(0, 1)
            output = first.model.copies(copies, {self.masked_input: shown})
            scores = target_scores(output, repeat_target(first.targets, copies), score)
            return scores.detach().reshape(copies, -1)

        scores, flat = [], []
        total = sum(joint.shape[1] for joint in joints)
        with progress(self.get_name(), total, show_progress) as tick:
            for joint in joints:
                seen, shapeless = [], []
                for part in chunks(range(joint.shape[1]), chunk):
                    masks, none = _masks(joint[:, part.start : part.stop], image.shape[2:])
                    seen.append(run(masks.transpose(0, 1)))
                    shapeless.append(none)
                    tick(len(part))
                scores.append(torch.cat(seen).T.expand(len(joint), -1).to(joint.device))
                flat.append(torch.cat(shapeless, 1))
        return scores, flat

    def _image(self, first: FirstPass, joints: list[Tensor]) -> Tensor:
        args = first.model.args
        image = args[self.masked_input] if self.masked_input < len(args) else None
        if not isinstance(image, Tensor) or image.ndim < 3 or len(image) != first.model.n:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                "`masked_input` must be the place of the images (N, C, *spatial) among the "
                f"`inputs`; got {self.masked_input}, where there is {got}."
            )
        if not image.is_floating_point():
            raise TypeError(
                f"`inputs` must be floating point to be masked; got {image.dtype}. Convert them, "
                "for example with `.float()`."
            )
        for joint in joints:
            if joint.ndim != image.ndim:
                raise ValueError(
                    f"`layer` must give maps with the {image.ndim - 2} spatial axes of the input, "
                    f"which they mask; got {joint.ndim - 2}. Choose another layer, or pass a "
                    "`reshape_transform` that makes these axes."
                )
        return image.detach()


def _precise(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _joint(maps: Tensor, groups: Groups) -> Tensor:
    """The sums of the groups' maps, `(N, K, *spatial)`."""
    return sum_by_group(maps, groups.labels, groups.n_groups)


def _masks(joint: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Masks `(N, k, *size)` in [0, 1], and which joint maps are flat: their masks hide all."""
    large = enlarge(joint, size)
    flat = _is_flat(joint) | _is_flat(large)
    masks = normalize(large.flatten(0, 1)).view_as(large)
    return torch.where(flat.reshape(*flat.shape, *[1] * len(size)), 0, masks), flat


def _is_flat(maps: Tensor) -> Tensor:
    low, high = maps.flatten(2).aminmax(dim=2)
    # the weighted sum of equal numbers is not always that number
    return high - low <= 2 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())


class LayerScoreCam(_ImageMasking):
    r"""Score-CAM: each feature map, or group of maps, is scored by what it lets the model see.

    With :math:`F_G` the sum of the maps of a group :math:`G`, enlarged to the image and scaled to
    [0, 1] as the mask :math:`H_G = s(\mathrm{Up}(F_G))`, and :math:`f` the score of the class,

    .. math::

        M = \mathrm{ReLU}\Big(\sum_G \frac{w_G}{|G|} F_G\Big),
        \qquad w = \mathrm{softmax}_G \big( f(x \odot H_G) / T \big)

    With every map alone, the default, this is Score-CAM (Wang et al., "Score-CAM: Score-Weighted
    Visual Explanations for Convolutional Neural Networks", CVPR Workshops 2020). Two methods go by
    that name:

    - ``variant="softmax"``, the default: the softmax over the maps of the class's logit, as in the
      paper. The score of an empty image, which the paper subtracts, cancels in the softmax.
      pytorch-grad-cam and torchcam do the same.
    - ``variant="probability"``: the class's probability itself, as in the code that the authors
      released: the softmax over the classes, or the sigmoid where the model gives one logit.

    No gradient is needed, but the whole model runs once for each group. With a clusterer there are
    few: ``clusterer="kmeans", n_clusters=32`` runs it 32 times where 1280 maps would need 1280.
    A dead map, or a group whose joint map is flat, is no mask: it has no part in the softmax.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the maps, as for
            :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"every-map"``
        n_clusters (int, optional): Number of groups for a clusterer given by name. Default: 64
        variant (str, optional): ``"softmax"`` or ``"probability"``. Default: ``"softmax"``
        temperature (float, optional): :math:`T`, above 0, for the variant ``"softmax"``: the
            smaller, the more the best groups stand out. Default: 1.0
        share (str, optional): How a group's weight is shared among its maps: ``"map"`` equally;
            ``"mass"`` by activation, so that the heat of a group sums to its weight; ``"none"``
            gives it whole to each. Default: ``"map"``
        fill (float, Tensor or str, optional): What takes the place of what a mask hides, in the
            space of the model's input: a number, a tensor, ``"blur"``, or what else
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
        n_clusters: int = 64,
        variant: Literal["softmax", "probability"] = "softmax",
        temperature: float = 1.0,
        share: Literal["map", "mass", "none"] = "map",
        fill: Fill = 0.0,
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
        check_choice("variant", variant, ("softmax", "probability"))
        check_choice("share", share, tuple(SHARES))
        if not isinstance(temperature, (int, float)) or not temperature > 0:
            raise ValueError(f"`temperature` must be a number > 0; got {temperature!r}.")
        self.variant: str = variant
        self.temperature: float = temperature
        self.share: str = share

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
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
            relu_attributions (bool, optional): Whether to set negative values of the heat map to
                zero, as the paper does. Default: True
            attr_dim_summation (bool, optional): Whether to sum over the maps. Default: True
            perturbations_per_eval (int, optional): Masked images of an example in one pass; it
                changes memory and time, never the result. Default: None (as many as fit a budget)
            show_progress (bool, optional): Whether to show a progress bar. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, or
            `(N, C, *spatial)` with ``attr_dim_summation=False``, in the layer's own resolution,
            detached, on the device of the layer's output. A tuple if the layer gives one.

        Raises:
            TypeError: If an argument, or what the model or the layer gives, is of a wrong type.
            ValueError: If a shape or a value does not fit; the message says what to change.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = LayerScoreCam(model.eval(), model[1], variant="probability")
            >>> cam.attribute(torch.rand(3, 1, 4, 4), target=[0, 1, 1]).shape
            torch.Size([3, 1, 2, 2])
        """
        return self.explain(
            inputs,
            target,
            additional_forward_args=additional_forward_args,
            attribute_to_layer_input=attribute_to_layer_input,
            relu_attributions=relu_attributions,
            attr_dim_summation=attr_dim_summation,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        ).attributions

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
        """Computes the heat map and returns it with all that led to it.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :meth:`attribute`, like all arguments.
            target (int, tuple, Tensor or list, optional): The class to explain. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False
            relu_attributions (bool, optional): Set negative values to zero. Default: True
            attr_dim_summation (bool, optional): Sum over the maps. Default: True
            perturbations_per_eval (int, optional): Masked images in one pass. Default: None
            show_progress (bool, optional): Show a progress bar. Default: False

        Returns:
            *MaskingAttribution*: The heat map, the groups, their scores and weights.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = LayerScoreCam(model.eval(), model[0])
            >>> cam.explain(torch.rand(3, 1, 4, 4), target=1).group_weights.sum(1)
            tensor([1., 1., 1.])
        """
        check_perturbations(perturbations_per_eval)
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input
        ) as first:
            groups = [group_maps(self.clusterer, maps, first.n_scores) for maps in first.maps]
            joints = [
                _joint(_precise(maps), grouped)
                for maps, grouped in zip(first.maps, groups, strict=True)
            ]
            score: Score = "identity" if self.variant == "softmax" else _probability
            scores, flat = self._see(first, joints, score, perturbations_per_eval, show_progress)
        valid = [~none & (grouped.sizes > 0) for none, grouped in zip(flat, groups, strict=True)]
        weights = [
            self._weights(seen, real, grouped, maps)
            for seen, real, grouped, maps in zip(scores, valid, groups, first.maps, strict=True)
        ]
        heats = [
            build(maps, by_map(weight, grouped.labels), relu_attributions, attr_dim_summation)
            for maps, weight, grouped in zip(first.maps, weights, groups, strict=True)
        ]
        return _result(heats, first.maps, groups, joints, scores, weights, valid)

    def _weights(self, scores: Tensor, valid: Tensor, groups: Groups, maps: Tensor) -> Tensor:
        weights = scores
        if self.variant == "softmax":
            weights = torch.where(valid, scores / self.temperature, -torch.inf).softmax(1)
        weights = torch.where(valid, weights, 0)  # without any group the softmax is NaN
        return SHARES[self.share](weights, groups.labels, maps).to(_precise(maps).dtype)


class LayerGroupCam(_ImageMasking):
    r"""Group-CAM: groups of gradient-weighted maps, scored by what they let the model see.

    The maps :math:`A_k` are weighted by the mean gradients :math:`\alpha_k` of the score, as in
    Grad-CAM, and summed by groups to :math:`M_G = \mathrm{ReLU}(\sum_{k \in G} \alpha_k A_k)`.
    Enlarged to the image and scaled to [0, 1], :math:`H_G` mixes the image with its blur:

    .. math::

        w_G = \mathrm{ReLU}\big(p(x \odot H_G + b(x) \odot (1 - H_G)) - p(b(x))\big),
        \qquad M = \sum_G w_G M_G

    with :math:`p` the softmax probability of the class (Zhang, Rao, Yang, "Group-CAM: Group
    Score-Weighted Visual Explanations for Deep Convolutional Networks", arXiv 2103.13859). As in
    the authors' released code, the groups are 32 runs of neighbouring channels, nothing is
    de-noised, and the heat map is made of the :math:`M_G` as they are, not scaled.

    Unlike there, a group whose joint map is flat, such as one that the ReLU leaves nothing of, is
    dropped: the division by its range of zero would make the whole heat map NaN.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        clusterer (str, estimator, callable or Tensor, optional): What groups the weighted maps, as
            for :class:`captum_clustered.ClusteredLayerAblation`. Default: ``"contiguous"``
        n_clusters (int, optional): Number of groups for a clusterer given by name. Default: 32
        percentile (float, optional): From 0 to below 100: values of a joint map at or below this
            percentile of it are set to zero, which the paper calls de-noising; earlier code of the
            authors has 70. Default: None (nothing is)
        score (str or callable, optional): What becomes of the model's output where masks are
            scored: ``"softmax"``, ``"sigmoid"`` for the logit of one class, ``"identity"``, or a
            callable; gradients are always those of the output itself. Default: ``"softmax"``
        fill (float, Tensor or str, optional): What takes the place of what a mask hides: ``"blur"``
            (a Gaussian of 51 pixels with a standard deviation of 50), a number, a tensor, or what
            else :func:`captum_clustered.fills.fill_image` takes. Default: ``"blur"``
        masked_input (int, optional): Which of several inputs is the image. Default: 0
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output, and its gradient, into
            `(N, C, *spatial)`; it may move and leave out values, but not change them.
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
        n_clusters: int = 32,
        percentile: float | None = None,
        score: Score = "softmax",
        fill: Fill = "blur",
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
        if percentile is not None and not (
            isinstance(percentile, (int, float)) and 0 <= percentile < 100
        ):
            raise ValueError(f"`percentile` must lie in [0, 100), or be None; got {percentile!r}.")
        self.percentile = percentile
        self.score = score

    @log_usage(part_of_slo=True)  # type: ignore[untyped-decorator]
    def attribute(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        perturbations_per_eval: int | None = None,
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
            perturbations_per_eval (int, optional): Masked images of an example in one pass; it
                changes memory and time, never the result. Default: None (as many as fit a budget)
            show_progress (bool, optional): Whether to show a progress bar. Default: False

        Returns:
            *Tensor* or *tuple[Tensor, ...]* of **attributions**: `(N, 1, *spatial)`, nowhere
            negative, in the layer's own resolution, detached, on the device of the layer's output.
            A tuple if the layer gives one.

        Raises:
            TypeError: If an argument, or what the model or the layer gives, is of a wrong type.
            ValueError: If a shape or a value does not fit, or the score has no gradient.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = LayerGroupCam(model.eval(), model[1], clusterer="kmeans", n_clusters=2)
            >>> cam.attribute(torch.rand(3, 1, 4, 4), target=[0, 1, 1]).shape
            torch.Size([3, 1, 2, 2])
        """
        return self.explain(
            inputs,
            target,
            additional_forward_args=additional_forward_args,
            attribute_to_layer_input=attribute_to_layer_input,
            perturbations_per_eval=perturbations_per_eval,
            show_progress=show_progress,
        ).attributions

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
        """Computes the heat map and returns it with all that led to it.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): As for :meth:`attribute`, like all arguments.
            target (int, tuple, Tensor or list, optional): The class to explain. Default: None
            additional_forward_args (Any, optional): Further arguments of the model. Default: None
            attribute_to_layer_input (bool, optional): Use the layer's input. Default: False
            perturbations_per_eval (int, optional): Masked images in one pass. Default: None
            show_progress (bool, optional): Show a progress bar. Default: False

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
            weighted = [
                build(_precise(maps), gradient_weights(gradients), relu=False, sum_maps=False)
                for maps, gradients in zip(first.maps, first.gradients, strict=True)
            ]
            groups = [group_maps(self.clusterer, maps, first.n_scores) for maps in weighted]
            joints = [
                self._denoise(_joint(maps, grouped).relu())
                for maps, grouped in zip(weighted, groups, strict=True)
            ]
            # one more, which is flat: its mask hides all of the image
            more = [torch.cat([joint.new_zeros(joint[:, :1].shape), joint], 1) for joint in joints]
            scores, flat = self._see(first, more, self.score, perturbations_per_eval, show_progress)
        valid = [
            ~none[:, 1:] & (grouped.sizes > 0) for none, grouped in zip(flat, groups, strict=True)
        ]
        weights = [
            torch.where(real, (seen[:, 1:] - seen[:, :1]).relu(), 0).to(joint.dtype)
            for seen, real, joint in zip(scores, valid, joints, strict=True)
        ]
        heats = [
            build(joint, weight, relu=False, sum_maps=True).to(maps.dtype)
            for joint, weight, maps in zip(joints, weights, first.maps, strict=True)
        ]
        return _result(
            heats,
            first.maps,
            groups,
            joints,
            [seen[:, 1:] for seen in scores],
            weights,
            valid,
            hidden=scores[0][:, 0],
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


def _probability(logits: Tensor) -> Tensor:
    """The softmax over the classes, or the sigmoid of one logit."""
    return logits.softmax(1) if logits.ndim > 1 and logits.shape[1] > 1 else logits.sigmoid()


def _result(
    heats: list[Tensor],
    maps: list[Tensor],
    groups: list[Groups],
    joints: list[Tensor],
    scores: list[Tensor],
    weights: list[Tensor],
    valid: list[Tensor],
    hidden: Tensor | None = None,
) -> MaskingAttribution:
    return MaskingAttribution(
        attributions=unwrap(heats),
        activations=unwrap(maps),
        labels=unwrap(grouped.labels for grouped in groups),
        group_maps=unwrap(joints),
        masked_scores=unwrap(scores),
        hidden_scores=hidden,
        group_weights=unwrap(weights),
        valid=unwrap(valid),
    )
