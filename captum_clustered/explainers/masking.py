"""Masks of the image, made of the layer's maps, and what the model says when it sees through them.

A map, or the sum of a group's maps, is enlarged to the image and scaled to [0, 1]. The image is
kept where this mask is 1 and replaced where it is 0. The score that the model still gives the class
is the score of the map or group. The whole model runs for each mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from captum_clustered._layout import Layout, fitting_inputs
from captum_clustered._outputs import are_probabilities, squashed_twice, with_graph
from captum_clustered._warn import warn
from captum_clustered.engine.copies import Copies
from captum_clustered.fills import Fill, fill_image, masked
from captum_clustered.heatmap import enlarge, normalize
from captum_clustered.targets import Score, repeat_target, target_scores
from captum_clustered.weighting import sum_by_group

if TYPE_CHECKING:
    from captum_clustered.clustering import Groups
    from captum_clustered.engine.capture import FirstPass

__all__ = ["MaskedImage", "Seen", "joint_maps", "masks_of", "precise"]


class Seen(NamedTuple):
    """What the model says behind the masks of one of the layer's tensors.

    Attributes:
        scores (Tensor): `(N, K)`.
        flat (Tensor): bool `(N, K)`: which joint maps are flat, and so no masks.
    """

    scores: Tensor
    flat: Tensor


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """The image among a model's inputs, seen through masks.

    Attributes:
        first (FirstPass): The model with its inputs, and the layer's maps.
        place (int): The position of the image among the inputs.
        image (Tensor): `(N, C, *spatial)`.
        background (Tensor): What replaces the hidden part; broadcasts against the image.
        layout (Layout): How several images are laid out for the model.
    """

    first: FirstPass
    place: int
    image: Tensor
    background: Tensor
    layout: Layout = field(default_factory=Layout)

    @classmethod
    def of(cls, first: FirstPass, place: int, fill: Fill) -> MaskedImage:
        """Finds the image, and frees what only a replay would need.

        Args:
            first (FirstPass): The model with its inputs, and the layer's maps.
            place (int): The position of the image among the inputs.
            fill (Fill): As for :func:`captum_clustered.fills.fill_image`.

        Raises:
            TypeError: If the image is not floating point.
            ValueError: If there is no image at that position, or the maps lack its spatial axes.
        """
        args = first.model.args
        image = args[place] if place < len(args) else None
        if not isinstance(image, Tensor) or image.ndim < 3 or len(image) != first.model.n:
            got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
            raise ValueError(
                "`masked_input` must be the place of the images (N, C, *spatial) among the "
                f"`inputs`; got {place}, where there is {got}. Places are counted from 0."
            )
        if not image.is_floating_point() or image.layout is not torch.strided:
            raise TypeError(
                "`inputs` must be floating point and dense to be masked; got "
                f"{image.dtype}, {image.layout}. Convert them, for example with `.float()`."
            )
        for maps in first.maps:
            if maps.ndim != image.ndim:
                raise ValueError(
                    f"`layer` must give maps with the {image.ndim - 2} spatial axes of the input, "
                    f"which they mask; got {maps.ndim - 2}. Choose another layer, or pass a "
                    "`reshape_transform` that makes these axes."
                )
        first.prefix.clear()
        image = image.detach()
        image = image.clone() if image.is_inference() else image  # autograd refuses such a tensor
        return cls(first, place, image, fill_image(fill, image))

    def through(self, masks: Tensor) -> Tensor:
        """The image where masks are 1, the background where they are 0; shapes broadcast."""
        return masked(self.image, masks, self.background)

    def unsquashed(self, score: Score) -> Score:
        """The score, or what to take instead of it where the model returns probabilities.

        On an accelerator no value is read.
        """
        first = self.first
        if score not in ("softmax", "sigmoid", "log_odds") or not isinstance(first.output, Tensor):
            return score
        args = first.model.fresh()
        run = first.model.forward_func
        probable = are_probabilities(first.output, lambda: with_graph(run, args))
        if not probable:
            if probable is None:
                warn(squashed_twice(score))
            return score
        warn(
            f"The model returns probabilities. They are taken as they are: score={score!r} would "
            "squash them a second time. Pass score='identity' for a model that ends in a softmax "
            "or sigmoid."
        )
        return "identity" if score != "log_odds" else _logit

    def scores(self, shown: Tensor, score: Score) -> Tensor:
        """The scores `(N,)`, or `(1,)`, of images `(N, C, *spatial)`, with their graph."""
        output = self.first.model.copies(1, (), {self.place: shown})
        return target_scores(output, self.first.target, score)

    def see(
        self, joints: list[Tensor], score: Score, chunk: int | None, tick: Callable[[int], object]
    ) -> list[Seen]:
        """Has the model see the image through each joint map.

        Args:
            joints (list[Tensor]): `(N, K, *spatial)` for each of the layer's tensors.
            score (Score): What becomes of the model's output.
            chunk (int or None): Masks of an example in one pass; None for as many as fit.
            tick (callable): Told the number of masks that are done.

        Returns:
            *list[Seen]*: One for each of the layer's tensors.
        """
        score = self.unsquashed(score)
        chunk = chunk or fitting_inputs(self.first.model.nbytes, self.image.device)
        return [self._see(joint, score, chunk, tick) for joint in joints]

    def _see(self, joint: Tensor, score: Score, chunk: int, tick: Callable[[int], object]) -> Seen:
        first, size = self.first, self.image.shape[2:]
        flat = joint.new_empty(joint.shape[:2], dtype=torch.bool)  # (N, K)

        def make(part: range) -> list[Tensor]:
            at = slice(part.start, part.stop)
            masks, flat[:, at] = masks_of(joint[:, at], size)
            masks = masks.to(self.image.device).transpose(0, 1)  # (k, N, *spatial)
            return [self.through(masks.unsqueeze(2))]

        def run(values: list[Tensor], times: int, repeated: frozenset[int]) -> Any:
            def copied(shown: Tensor) -> Any:
                return first.model.copies(times, repeated - {self.place}, {self.place: shown})

            # a single copy is what the others are compared with
            return copied(values[0]) if times == 1 else self.layout(copied, values[0])

        def scored(output: Any, times: int) -> Tensor:
            return target_scores(output, repeat_target(first.target, times), score)

        copies = Copies(first, [self.image], make, run, (self.place,), scored, self.layout)
        found = copies.scores(joint.shape[1], chunk, tick)
        if found.remark is not None:
            warn(found.remark)
        return Seen(found.scores.T.expand(len(joint), -1).to(joint.device), flat)

    def see_hidden(
        self, joints: list[Tensor], score: Score, chunk: int | None, tick: Callable[[int], object]
    ) -> tuple[list[Seen], Tensor]:
        """The same, and the scores `(N,)` of the image when all of it is hidden."""
        blank = joints[0].new_zeros(joints[0][:, :1].shape)  # one more mask, which is flat
        first, *others = self.see(
            [torch.cat([blank, joints[0]], 1), *joints[1:]], score, chunk, tick
        )
        return [Seen(first.scores[:, 1:], first.flat[:, 1:]), *others], first.scores[:, 0]


def _logit(probabilities: Tensor) -> Tensor:
    """The log odds; of a probability of 0 or 1 those of a number beside it."""
    limits = torch.finfo(probabilities.dtype)
    others = (1 - probabilities).clamp(min=limits.eps)
    return probabilities.clamp(min=limits.tiny).log() - others.log()


def precise(tensor: Tensor) -> Tensor:
    """The tensor in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def joint_maps(maps: Tensor, groups: Groups) -> Tensor:
    """The sums of the groups' maps, `(N, K, *spatial)`."""
    return sum_by_group(maps, groups.labels, groups.n_groups)


def masks_of(joint: Tensor, size: torch.Size) -> tuple[Tensor, Tensor]:
    """Turns joint maps into masks.

    Args:
        joint (Tensor): `(N, k, *spatial)`.
        size (torch.Size): The spatial size of the image.

    Returns:
        *tuple*: Masks `(N, k, *size)` in [0, 1], and bool `(N, k)`: which joint maps are flat. The
        mask of a flat map hides everything.
    """
    large = enlarge(joint, size)
    flat = _is_flat(joint) | _is_flat(large)
    masks = normalize(large.flatten(0, 1)).view_as(large)
    return torch.where(flat.reshape(*flat.shape, *[1] * len(size)), 0, masks), flat


def _is_flat(maps: Tensor) -> Tensor:
    low, high = maps.flatten(2).aminmax(dim=2)
    # the weighted sum of equal numbers is not always that number
    return high - low <= 2 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
