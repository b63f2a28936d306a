"""Captum's metrics infidelity and sensitivity, for heat maps of layer methods.

Called directly, Captum's functions go wrong with such maps:

- `captum.metrics.sensitivity_max` (0.9.0) takes the single tensor that a layer method returns for a
  tuple with one tensor per example. For several images that is an error; for one image the result
  is too large by the square root of `n_perturb_samples`. Here it gets a tuple.
- `captum.metrics.infidelity` needs attributions of the shape of the input. To repeat a heat map for
  three channels would triple its values; here each channel gets a third.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum import metrics as captum_metrics
from torch import Tensor

from captum_clustered._borrow import lent, lent_to
from captum_clustered._checks import check_int
from captum_clustered._copies import Parted
from captum_clustered.metrics.maps import Interpolation, resize
from captum_clustered.metrics.scoring import (
    ImageModel,
    Mixed,
    at_a_time,
    check_score,
    resolve_target,
)
from captum_clustered.targets import Score, Target, plain, target_scores

__all__ = ["infidelity", "sensitivity_max"]


@torch.no_grad()
def infidelity(
    forward_func: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    heatmaps: Any,
    target: Target = None,
    *,
    additional_forward_args: Any = None,
    score: Score = "identity",
    interpolation: Interpolation = "bilinear",
    perturb_func: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None,
    noise: float = 0.003,
    seed: int = 0,
    n_perturb_samples: int = 10,
    normalize: bool = True,
    max_examples_per_batch: int | None = None,
) -> Tensor:
    r"""The error of the map when it predicts how small changes of the image change the score.

    This is :math:`E_I [(I \cdot \phi - (f(x) - f(x - I)))^2]`, computed by
    `captum.metrics.infidelity` (Yeh et al., "On the (In)fidelity and Sensitivity of Explanations",
    NeurIPS 2019). The map is resized to the image without scaling its values, and each pixel's
    value is divided equally among the channels. A map with a NaN counts as a map of zeros.

    Args:
        forward_func (callable): The model, or a function that returns its logits.
        inputs (Tensor or tuple[Tensor, ...]): As for :func:`~captum_clustered.metrics.confidences`;
            only the images are perturbed.
        heatmaps (Tensor or array): `(N, 1, *spatial)` or `(N, *spatial)`, floating point.
        target (int, tuple, Tensor or list, optional): Default: None (the predicted class)
        additional_forward_args (Any, optional): Default: None
        score (str or callable, optional): As for :func:`~captum_clustered.metrics.confidences`. The
            default is the logit, as in Captum: noise hardly changes the probability of a confident
            model. Default: ``"identity"``
        interpolation (str or None, optional): How a map of another size is resized.
            Default: ``"bilinear"``
        perturb_func (callable, optional): Takes images, returns a pair (perturbation, perturbed
            images), as in Captum. Default: None (Gaussian noise)
        noise (float, optional): Standard deviation of the Gaussian noise, in units of the model's
            input. Default: 0.003 (as in Captum's documentation)
        seed (int, optional): Seed of the Gaussian noise; torch's global generators are not used.
            Default: 0
        n_perturb_samples (int, optional): Number of perturbations of each image. Default: 10
        normalize (bool, optional): Whether the map is multiplied by the factor with the smallest
            error, so that only its shape counts. Default: True
        max_examples_per_batch (int, optional): Images in one forward pass; the batch is the least.
            Changes memory and time, never the noise. Default: None (as many as fit into a fixed
            budget)

    Returns:
        *Tensor*: `(N,)`, >= 0, lower is better, in squared units of the score.

    Raises:
        TypeError: If an argument, or what the model returns, is of a wrong type.
        ValueError: If a shape or a value does not fit.

    Example::

        >>> def logits(x):
        ...     return (x * torch.tensor([1.0, 2.0, 3.0])).sum((1, 2, 3))
        >>> exact = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> bool(infidelity(logits, torch.rand(1, 1, 1, 3), exact, noise=1.0) < 1e-8)
        True
    """
    check_int("n_perturb_samples", n_perturb_samples, 1)
    model = ImageModel.of(forward_func, inputs, additional_forward_args)
    image = model.image
    maps = resize(heatmaps, image.shape[2:], len(image), image.device, interpolation)
    # Captum subtracts large squares that are nearly equal, which needs float64
    maps = maps.float() if image.device.type == "mps" else maps.double()
    spread = (maps / image.shape[1]).expand_as(image)
    with lent_to(model) as model:
        output = model(image)
        check_score(score, output, model)
        classes = resolve_target(output, target)
        known: list[Mixed] = []

        def scores(perturbed: Tensor, rows: Tensor) -> Tensor:
            chosen = None if classes is None else classes[rows]
            if not known:
                mixed, found = model.mixed(perturbed, rows, output)
                known.append(mixed)
                if found is not None:
                    return target_scores(found, chosen, score)
            try:
                found = known[0](perturbed, rows)
            except Parted as parted:
                known[0] = model.parted(parted)
                found = known[0](perturbed, rows)
            return target_scores(found, chosen, score)

        return captum_metrics.infidelity(  # type: ignore[no-any-return]
            scores,
            perturb_func or _gaussian_noise(noise, seed, image),
            image,
            spread,
            additional_forward_args=torch.arange(len(image), device=image.device),
            n_perturb_samples=n_perturb_samples,
            normalize=normalize,
            max_examples_per_batch=_at_a_time(image, n_perturb_samples, max_examples_per_batch),
        )


def sensitivity_max(
    explain: Callable[..., Any],
    inputs: Tensor | tuple[Tensor, ...],
    target: Target = None,
    *,
    perturb_func: Callable[..., Any] | None = None,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: str | float = "fro",
    seed: int = 0,
    max_examples_per_batch: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """The largest change of the map for small changes of the image, relative to the map's norm.

    This is `captum.metrics.sensitivity_max` (Yeh et al. 2019). If the method draws random numbers,
    seed them, or the result means little. If the method clusters, the result jumps where a map
    changes its group. Each call of the method finds the model as it was, and so do you afterwards.

    Args:
        explain (callable): The method, called as ``explain(inputs, target=target, **kwargs)``, such
            as `attribute` of a Captum method. Returns a tensor or a tuple of tensors, the examples
            on the first axis. Each call gets up to `n_perturb_samples` copies of the images.
        inputs (Tensor or tuple[Tensor, ...]): What `explain` takes, the examples on the first axis.
        target (int, tuple, Tensor or list, optional): Passed on to `explain`, one entry per example
            or one for all. Default: None (`explain` is called without a target)
        perturb_func (callable, optional): Takes inputs, and `perturb_radius` if it has a second
            argument; returns perturbed inputs, as in Captum. Default: None (uniform noise)
        perturb_radius (float, optional): Largest change of each value. Default: 0.02
        n_perturb_samples (int, optional): Number of perturbations of each example. Default: 10
        norm_ord (str or float, optional): The norm, as in :func:`torch.norm`. Default: ``"fro"``
        seed (int, optional): Seed of the uniform noise; torch's global generators are not used.
            Default: 0
        max_examples_per_batch (int, optional): Examples in one call of `explain`; the batch is the
            least. Changes memory and time, never the noise. Default: None (as many as fit into a
            fixed budget)
        **kwargs (Any): Passed on to `explain`; Captum repeats `additional_forward_args` and
            `baselines` for the perturbed examples.

    Returns:
        *Tensor*: `(N,)`, >= 0; lower is better.

    Raises:
        TypeError: If `inputs` is neither a tensor nor a tuple of tensors.
        ValueError: If `n_perturb_samples` is not an int >= 1.

    Example::

        >>> def explain(images, target):
        ...     return images.sum(1, keepdim=True)
        >>> moved = sensitivity_max(explain, torch.ones(2, 1, 3, 3), target=0)
        >>> moved.shape, bool((moved <= 0.02).all())
        (torch.Size([2]), True)
    """
    check_int("n_perturb_samples", n_perturb_samples, 1)
    inputs = plain(inputs, "inputs")
    tensors = inputs if isinstance(inputs, tuple) else (inputs,)
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        got = ", ".join(type(tensor).__name__ for tensor in tensors) or "an empty tuple"
        raise TypeError(
            f"`inputs` must be a tensor or a tuple of tensors; got {got}. Convert arrays with "
            "`torch.as_tensor`."
        )
    if target is not None:
        kwargs["target"] = target

    with lent(functools.partial(_explained, explain), *kwargs.values()) as run:
        return captum_metrics.sensitivity_max(  # type: ignore[no-any-return]
            lambda given, **arguments: run(given, arguments),
            inputs,
            perturb_func or _uniform_noise(seed, tensors),
            perturb_radius=perturb_radius,
            n_perturb_samples=n_perturb_samples,
            norm_ord=norm_ord,
            max_examples_per_batch=_at_a_time(
                tensors[0], n_perturb_samples, max_examples_per_batch
            ),
            **kwargs,
        )


def _explained(explain: Callable[..., Any], given: Any, arguments: dict[str, Any]) -> Any:
    """The maps as a tuple, which is what Captum takes."""
    if isinstance(given, tuple) and len(given) == 1:
        given = given[0]
    found = explain(given, **arguments)
    maps = found if isinstance(found, tuple) else (found,)
    return tuple(heat.detach().contiguous() for heat in maps)


def _at_a_time(image: Tensor, samples: int, given: int | None) -> int:
    """Examples in one pass; Captum needs at least the batch, and at most all perturbations."""
    n = len(image)
    return min(max(n, at_a_time(image, given)), n * samples)


def _gaussian_noise(
    deviation: float, seed: int, image: Tensor
) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator(image.device).manual_seed(seed)

    def perturb(images: Tensor) -> tuple[Tensor, Tensor]:
        (drawn,) = _drawn(torch.randn, [image], len(images), generator)
        noise = deviation * drawn
        return noise, images - noise

    return perturb


def _uniform_noise(
    seed: int, tensors: tuple[Tensor, ...]
) -> Callable[[Any, float], Tensor | tuple[Tensor, ...]]:
    generator = torch.Generator(tensors[0].device).manual_seed(seed)

    def perturb(inputs: Any, radius: float) -> Tensor | tuple[Tensor, ...]:
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        noise = _drawn(torch.rand, tensors, len(given[0]), generator)
        moved = tuple(
            tensor + radius * (2 * drawn - 1) for tensor, drawn in zip(given, noise, strict=True)
        )
        return moved if isinstance(inputs, tuple) else moved[0]

    return perturb


def _drawn(
    draw: Callable[..., Tensor], tensors: Sequence[Tensor], rows: int, generator: torch.Generator
) -> list[Tensor]:
    """Noise for so many rows, which are copies of examples, those of an example in turn.

    Each copy of all examples has a draw of its own. One draw for the copies of a pass would give
    numbers that depend on how many copies a pass takes.
    """
    copies = [
        [
            draw(one.shape, generator=generator, dtype=one.dtype, device=generator.device)
            for one in tensors
        ]
        for _ in range(rows // len(tensors[0]))
    ]
    return [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*copies, strict=True)]
