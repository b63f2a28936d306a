"""Grad-CAM by Captum, with the manners of this package, and HiResCAM."""

from __future__ import annotations

from typing import Any

from captum.attr import GradientAttribution, LayerGradCam
from torch import Tensor

from captum_clustered._borrow import borrowed
from captum_clustered._gradients import gradients_reach
from captum_clustered.engine.model import as_model
from captum_clustered.explainers.base import NO_GRADIENT, LayerExplainer, unwrap
from captum_clustered.explainers.results import Attribution, Tensors
from captum_clustered.heatmap import build, to_maps
from captum_clustered.targets import Target, example_scores, format_target, plain_args
from captum_clustered.weighting import gradient_weights

__all__ = ["GradCam", "LayerHiResCam"]


class GradCam(LayerExplainer, LayerGradCam):
    """Captum's `LayerGradCam` with the manners of this package.

    Negative values are set to zero as in the paper (Selvaraju et al., ICCV 2017), the result is
    detached, and targets come in all forms. A layer whose maps do not lie on axis 1 is refused,
    unless `channel_dim` and `reshape_transform` say how to read it.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output, and its gradient, into
            `(N, C, *spatial)`. Default: None

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> GradCam(model.eval(), model[1]).attribute(torch.rand(3, 1, 4, 4), target=1).shape
        torch.Size([3, 1, 2, 2])
    """

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
    ) -> Attribution:
        """Computes the heat map.

        The arguments are those of :meth:`attribute`.

        Returns:
            *Attribution*: The heat map.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If a shape or a value does not fit.
        """
        if self.channel_dim == 1 and self.reshape_transform is None:
            heats = self._by_captum(
                inputs, target, additional_forward_args, attribute_to_layer_input
            )
            if attr_dim_summation:
                heats = [heat.sum(1, keepdim=True) for heat in heats]
            return Attribution(unwrap(h.relu() if relu_attributions else h for h in heats))
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input, gradients=True
        ) as first:
            return Attribution(
                unwrap(
                    build(maps, gradient_weights(slopes), relu_attributions, attr_dim_summation)
                    for maps, slopes in zip(first.maps, first.gradients, strict=True)
                )
            )

    def _by_captum(
        self, inputs: Any, target: Target, additional_forward_args: Any, at_input: bool
    ) -> list[Tensor]:
        """The weighted maps, `(N, C, *spatial)` for each of the layer's tensors."""
        with borrowed(self.forward_func) as forward_func:
            model = as_model(forward_func, *plain_args(inputs, additional_forward_args))
            targets = format_target(target, model.n)

            def score(_: Tensor) -> Tensor:
                return example_scores(model.forward_func(*model.fresh()), targets, model.n)

            def attempt() -> Any:
                with gradients_reach(NO_GRADIENT):
                    return LayerGradCam(score, self.layer).attribute(
                        model.args[0], attribute_to_layer_input=at_input, attr_dim_summation=False
                    )

            found = model.settled(attempt)
        return [
            to_maps(part.detach(), 1, None, self.layer, model.args[0].ndim)
            for part in (found if isinstance(found, tuple) else (found,))
        ]


class LayerHiResCam(LayerExplainer, GradientAttribution):
    r"""HiResCAM: gradient times activation, summed over the maps.

    With :math:`g_k` the gradient of the score with respect to the map :math:`A_k`,

    .. math:: M = \mathrm{ReLU}\Big(\sum_k g_k \odot A_k\Big)

    (Draelos and Carin, "Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional
    neural networks", arXiv 2011.08891). Unlike Grad-CAM, the gradient is not averaged over the map,
    so that it is right on maps with two signs, and behind a head that is not pooled. Before the
    ReLU it is Captum's `LayerGradientXActivation`, summed over the maps.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer.
        device_ids (list[int], optional): Accepted as in Captum, but not needed. Default: None
        channel_dim (int, optional): Axis of the maps in the layer's own output. Default: 1
        reshape_transform (callable, optional): Turns the layer's output, and its gradient, into
            `(N, C, *spatial)`; it may move and leave out values, but not change them.
            Default: None

    Example::

        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
        >>> LayerHiResCam(model, model[0]).attribute(torch.rand(3, 1, 4, 4), target=1).shape
        torch.Size([3, 1, 2, 2])
    """

    def explain(
        self,
        inputs: Tensors,
        target: Target = None,
        *,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
        relu_attributions: bool = True,
        attr_dim_summation: bool = True,
    ) -> Attribution:
        """Computes the heat map.

        The arguments are those of :meth:`attribute`.

        Returns:
            *Attribution*: The heat map.

        Raises:
            TypeError: If an argument is of a wrong type.
            ValueError: If a shape or a value does not fit, or the score has no gradient.
        """
        with self._first_pass(
            inputs, target, additional_forward_args, attribute_to_layer_input, gradients=True
        ) as first:
            heats = []
            for maps, gradients in zip(first.maps, first.gradients, strict=True):
                heat = gradients * maps  # (N, C, *spatial)
                heat = heat.sum(1, keepdim=True) if attr_dim_summation else heat
                heats.append(heat.relu() if relu_attributions else heat)
            return Attribution(unwrap(heats))
