"""What the methods share that show the model its input through the maps of a layer.

A map, or the sum of a group's maps, is enlarged to the size of the image and scaled to [0, 1]. The
image is kept where this mask is 1 and replaced where it is 0. What the model still says of the
class is what the map, or the group, is worth. The whole model runs for each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from captum.attr import PerturbationAttribution
from torch import Tensor, nn

from captum_clustered._checks import check_int
from captum_clustered.clustering import Groups, as_clusterer
from captum_clustered.engine.replay import chunks, fitting
from captum_clustered.explainers.base import FirstPass, LayerExplainer, progress, unwrap
from captum_clustered.explainers.results import MaskingAttribution
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.heatmap import ReshapeTransform, enlarge, normalize
from captum_clustered.targets import Score, repeat_target, target_scores
from captum_clustered.weighting import sum_by_group

__all__ = ["ImageMasking", "joint_maps", "masks_of", "precise", "result_of"]


class ImageMasking(LayerExplainer, PerturbationAttribution):
    """Base: the settings, and the passes with masked images.

    Args:
        forward_func (callable): The model, or a function that runs it.
        layer (nn.Module): The layer. Its output, or its input, has the spatial axes of the image.
        device_ids (list[int] or None): Accepted as in Captum, but not needed.
        clusterer (str, estimator, callable or Tensor): What groups the maps.
        n_clusters (int or str): Number of groups for a clusterer given by name.
        fill (Fill): What takes the place of what a mask hides.
        masked_input (int): Which of several inputs is the image.
        channel_dim (int): Axis of the maps in the layer's own output.
        reshape_transform (callable or None): Turns the layer's output into `(N, C, *spatial)`.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        device_ids: list[int] | None,
        clusterer: Any,
        n_clusters: int | Literal["auto"],
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
        hidden: bool,
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """Scores of the image behind each joint map `(N, K, *spatial)`, and which are no mask.

        The third are the scores of the image when all of it is hidden, if wanted.
        """
        if hidden:  # by one more, which is flat
            blank = joints[0].new_zeros(joints[0][:, :1].shape)
            joints = [torch.cat([blank, joints[0]], 1), *joints[1:]]
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
                    masks, none = masks_of(joint[:, part.start : part.stop], image.shape[2:])
                    seen.append(run(masks.transpose(0, 1)))
                    shapeless.append(none)
                    tick(len(part))
                scores.append(torch.cat(seen).T.expand(len(joint), -1).to(joint.device))
                flat.append(torch.cat(shapeless, 1))
        if not hidden:
            return scores, flat, None
        nothing = scores[0][:, 0]
        return [scores[0][:, 1:], *scores[1:]], [flat[0][:, 1:], *flat[1:]], nothing

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


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def joint_maps(maps: Tensor, groups: Groups) -> Tensor:
    """The sums of the groups' maps, `(N, K, *spatial)`."""
    return sum_by_group(maps, groups.labels, groups.n_groups)


def masks_of(joint: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Masks `(N, k, *size)` in [0, 1], and which joint maps are flat: their masks hide all."""
    large = enlarge(joint, size)
    flat = _is_flat(joint) | _is_flat(large)
    masks = normalize(large.flatten(0, 1)).view_as(large)
    return torch.where(flat.reshape(*flat.shape, *[1] * len(size)), 0, masks), flat


def _is_flat(maps: Tensor) -> Tensor:
    low, high = maps.flatten(2).aminmax(dim=2)
    # the weighted sum of equal numbers is not always that number
    return high - low <= 2 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())


def result_of(
    heats: list[Tensor],
    maps: list[Tensor],
    groups: list[Groups],
    joints: list[Tensor],
    scores: list[Tensor],
    weights: list[Tensor],
    valid: list[Tensor],
    hidden: Tensor | None,
) -> MaskingAttribution:
    """Puts what was found into the form that `explain` returns."""
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
