"""EGrad-CAM: Grad-CAM without the maps that carry no information."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from captum.attr import GradientAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_int
from captum_clustered.explainers.base import LayerExplainer, unwrap
from captum_clustered.explainers.results import EntropyAttribution, Tensors
from captum_clustered.heatmap import ReshapeTransform, build
from captum_clustered.targets import Target
from captum_clustered.weighting import gradient_weights

__all__ = ["LayerEGradCam", "entropy"]

_BYTES = 64 * 2**20  # of histograms at a time; a larger batch is counted in several parts


class LayerEGradCam(LayerExplainer, GradientAttribution):
    r"""EGrad-CAM: Grad-CAM over the feature maps whose entropy is above a threshold.

    With :math:`\alpha_k` the mean gradient of the score over the map :math:`A_k`, and
    :math:`H_k` the entropy of its grey levels, the heat map is

    .. math:: M = \mathrm{ReLU}\Big(\sum_{k:\, H_k > \tau} \alpha_k A_k\Big)

    (Eskandari, AlZoubi, Du, "Breast and thyroid ultrasound: EGrad-CAM", MIUA 2021). The paper uses
    the information entropy to leave out feature maps "with no or minimal information". Only its
    abstract is open access. Where it gives no details, this is our interpretation:

    - The grey levels are those of the map alone, from its minimum to its maximum in `bins` steps of
      equal size; :math:`H_k = -\sum_b p_b \log_2 p_b` lies between 0 and `log2(bins)` bits.
    - The threshold is 0, so that only constant maps are left out. To leave out a map of zeros does
      not change Grad-CAM, and in the table of the Clustered-CAM paper the rows of Grad-CAM and
      EGrad-CAM are equal. A map that has the same value other than zero everywhere is left out too,
      which shifts the sum before the ReLU.
    - `keep_fraction` keeps that share of the layer's maps, those with the largest entropy. The
      paper reports that 24 % to 87 % of the maps were used.

    A negative threshold keeps all maps. That is plain Grad-CAM, also for layers whose axes Captum's
    `LayerGradCam` cannot read. The gradients are computed by Captum.

    Args:
        forward_func (callable): The model, or a function that runs it, as in Captum.
        layer (nn.Module): The layer. Its output, or its input, is a tensor of 3 to 5 axes, batch
            first, or a tuple or list of such tensors.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        bins (int, optional): Number of grey levels, at least 2. Default: 256
        threshold (float, optional): In bits; a map whose entropy is at or below it is left out.
            Default: 0.0
        keep_fraction (float, optional): Largest share of the layer's maps that is kept, in
            (0, 1]. Of maps with equal entropy the first are kept. Default: None (all above the
            threshold)
        channel_dim (int, optional): Axis of the maps in the layer's own output, -1 for tokens and
            channels-last layers. Default: 1
        reshape_transform (callable, optional): Turns the layer's output, and its gradient, into
            `(N, C, *spatial)`, such as :func:`captum_clustered.heatmap.vit_reshape_transform`. It
            may move values and leave some out, but must not change them. Default: None

    Example::

        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        ...     nn.Linear(8, 5),
        ... ).eval()
        >>> cam = LayerEGradCam(model, model[1])
        >>> cam.attribute(torch.rand(2, 3, 16, 16), target=3).shape
        torch.Size([2, 1, 14, 14])
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None = None,
        *,
        bins: int = 256,
        threshold: float = 0.0,
        keep_fraction: float | None = None,
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
        check_int("bins", bins, 2)
        if not isinstance(threshold, (int, float)) or math.isnan(threshold):
            raise ValueError(f"`threshold` must be a number of bits; got {threshold!r}.")
        if keep_fraction is not None and not (
            isinstance(keep_fraction, (int, float)) and 0 < keep_fraction <= 1
        ):
            raise ValueError(
                f"`keep_fraction` must lie in (0, 1], or be None; got {keep_fraction!r}."
            )
        self.bins = bins
        self.threshold = threshold
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
    ) -> EntropyAttribution:
        """Computes the heat map and returns it with the values that it was computed from.

        The arguments are those of :meth:`attribute`.

        Returns:
            *EntropyAttribution*: The heat map, the entropies and which maps were kept.

        Raises:
            TypeError: As :meth:`attribute`.
            ValueError: As :meth:`attribute`.

        Example::

            >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
            >>> cam = LayerEGradCam(model.eval(), model[1])
            >>> cam.explain(torch.rand(3, 1, 4, 4), target=1).entropies.shape
            torch.Size([3, 4])
        """
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input, gradients=True
        ) as first:
            entropies = [entropy(maps, self.bins) for maps in first.maps]
            kept = [
                self._keep(values, math.prod(maps.shape[2:]))
                for values, maps in zip(entropies, first.maps, strict=True)
            ]
            weights = [
                torch.where(keep, gradient_weights(gradients), 0)
                for keep, gradients in zip(kept, first.gradients, strict=True)
            ]
            heats = [
                build(maps, weight, relu_attributions, attr_dim_summation)
                for maps, weight in zip(first.maps, weights, strict=True)
            ]
        return EntropyAttribution(
            attributions=unwrap(heats),
            activations=unwrap(first.maps),
            scores=first.scores,
            entropies=unwrap(entropies),
            kept=unwrap(kept),
            channel_weights=unwrap(weights),
        )

    def _keep(self, entropies: Tensor, size: int) -> Tensor:
        if size == 1 and self.threshold >= 0:
            raise ValueError(
                "`layer` must give maps of more than one value, since a single one has no entropy; "
                "got maps of one. Choose a layer before the pooling, or threshold=-1 for Grad-CAM."
            )
        keep = entropies > self.threshold
        if self.keep_fraction is not None:
            count = max(1, round(self.keep_fraction * entropies.shape[1]))
            order = entropies.argsort(dim=1, descending=True, stable=True)
            keep &= order.argsort(dim=1) < count
        return keep


def entropy(maps: Tensor, bins: int = 256) -> Tensor:
    r"""The entropy of each map's grey levels, :math:`H = -\sum_b p_b \log_2 p_b`.

    The levels divide the range of a map, from its minimum to its maximum, into steps of equal size.
    The computation does not wait for the device.

    Args:
        maps (Tensor): `(N, C, *spatial)`, floating point.
        bins (int, optional): Number of levels. Default: 256

    Returns:
        *Tensor*: `(N, C)`, in bits, from 0 for a map of a single value to `log2(bins)`.

    Example::

        >>> entropy(torch.tensor([[[0.0, 1.0], [5.0, 5.0]]]))
        tensor([[1., 0.]])
    """
    flat = maps.detach().reshape(*maps.shape[:2], -1)
    if flat.dtype in (torch.float16, torch.bfloat16):
        flat = flat.float()
    lot = max(1, _BYTES // (4 * flat.shape[1] * bins))
    return torch.cat([_entropy(part, bins) for part in flat.split(lot)])


def _entropy(flat: Tensor, bins: int) -> Tensor:
    low = flat.amin(2, keepdim=True)
    span = flat.amax(2, keepdim=True) - low
    level = (flat - low) / torch.where(span == 0, 1, span) * bins
    level = level.nan_to_num(0).clamp(0, bins - 1).to(torch.int64)
    ones = torch.ones_like(level, dtype=torch.float32)
    counts = ones.new_zeros(*flat.shape[:2], bins).scatter_add_(2, level, ones)
    shares: Tensor = torch.special.entr(counts / flat.shape[2])
    return shares.sum(2).div(math.log(2)).clamp(min=0)
