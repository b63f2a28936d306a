"""Pictures of heat maps.

A heat map is a float array in [0, 1] of the image's size everywhere in this module, an image a
float array `(H, W, 3)` in [0, 1]; what is not is refused, never rescaled. Figures are plain
matplotlib objects without pyplot: nothing opens, and no global state changes.

Example::

    >>> import numpy as np
    >>> image = np.full((4, 6, 3), 0.5)
    >>> heatmap = np.linspace(0, 1, 24).reshape(4, 6)
    >>> overlay(image, heatmap).shape
    (4, 6, 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from captum_clustered.heatmap import normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from captum_clustered.ablation import ClusteredAttribution

__all__ = ["compare", "describe", "groups", "overlay"]

_CMAP = "inferno"  # perceptually uniform, and readable without red or green
_ALPHA = 0.55
_FOR, _AGAINST = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
_PANEL = 2.9  # inches
_SLACK = 1e-5  # what rounding may add to a value of 1


def overlay(
    image: Any, heatmap: Any, *, cmap: str = _CMAP, alpha: float = _ALPHA, gray: bool = True
) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
        image (array): `(H, W, 3)`, float in [0, 1].
        heatmap (array or Tensor): `(H, W)`, float in [0, 1]. Where it is NaN the image stays bare.
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): Share of the colour, in [0, 1]. Default: 0.55
        gray (bool, optional): Whether the image loses its own colours, so that every colour in the
            result is the heat map's. Default: True

    Returns:
        *array*: `(H, W, 3)`, float64 in [0, 1].

    Raises:
        TypeError: If image or heat map are not floating point.
        ValueError: If their shapes or ranges do not fit.

    Example::

        >>> overlay(np.zeros((1, 2, 3)), np.array([[0.0, 1.0]]), cmap="gray", alpha=0.5)[0, 1]
        array([0.5, 0.5, 0.5])
    """
    from matplotlib import colormaps

    image = _check_image(image)
    heatmap = _check_heatmap(heatmap, image)
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1]; got {alpha}.")
    colours = colormaps[cmap](heatmap)[..., :3]
    base = _luminance(image) if gray else image
    blended: np.ndarray = (1 - alpha) * base + alpha * colours
    return np.where(np.isnan(heatmap)[..., None], image, blended)


def describe(heatmap: Any) -> str | None:
    """What is wrong with a heat map, in words to stand in a picture.

    Args:
        heatmap (array or Tensor): Any shape.

    Returns:
        *str* or *None*: None for a heat map that shows something.

    Example::

        >>> describe(np.zeros((2, 2)))
        'flat map: the same value everywhere'
    """
    values = _array(heatmap)
    undefined = int(np.isnan(values).sum())
    if undefined == values.size:
        return "no map: every value is NaN"
    if undefined:
        return f"broken map: {undefined} of {values.size} values are NaN"
    if values.min() == values.max():
        return "flat map: the same value everywhere"
    return None


def compare(
    image: Any,
    heatmaps: Mapping[str, Any],
    *,
    title: str | None = None,
    cmap: str = _CMAP,
    alpha: float = _ALPHA,
) -> Figure:
    """Shows an image beside one or more heat maps of it, all with one colour scale.

    Args:
        image (array): `(H, W, 3)`, float in [0, 1].
        heatmaps (mapping): Heat maps `(H, W)`, float in [0, 1], by their titles.
        title (str, optional): A line above all. Default: None
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): As for :func:`overlay`. Default: 0.55

    Returns:
        *Figure*: Save it with ``figure.savefig(path)``. A flat map, or one with NaN, has a line
        beneath that says so.

    Raises:
        TypeError: If image or heat map are not floating point.
        ValueError: If there is no heat map, or their shapes or ranges do not fit.

    Example::

        >>> image, heatmap = np.full((8, 8, 3), 0.5), np.eye(8)
        >>> figure = compare(image, {"Grad-CAM": heatmap, "Clustered-CAM": heatmap})
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'Grad-CAM', 'Clustered-CAM']
    """
    if not heatmaps:
        raise ValueError("`heatmaps` must have at least one heat map; got none.")
    image = _check_image(image)
    overlays = {
        name: overlay(image, heatmap, cmap=cmap, alpha=alpha) for name, heatmap in heatmaps.items()
    }
    height, width = image.shape[:2]
    n_panels = 1 + len(overlays)
    figure = _figure(0.7 + _PANEL * n_panels, 0.9 + _PANEL * height / width)
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    _show(axes[0], image, "image")
    for ax, (name, picture) in zip(axes[1:], overlays.items(), strict=True):
        _show(ax, picture, name, describe(heatmaps[name]))
    _colour_bar(figure, list(axes), cmap, alpha)
    figure.supxlabel("each map: 0 is its minimum, 1 its maximum", fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def groups(
    result: ClusteredAttribution,
    example: int = 0,
    n: int = 8,
    *,
    image: Any = None,
    title: str | None = None,
    cmap: str = _CMAP,
    alpha: float = _ALPHA,
) -> Figure:
    """Shows the largest groups: where they respond, and what the score loses without them.

    Each picture is the mean of a group's maps, enlarged to the image and scaled from its own
    smallest to its own largest value, which stand beneath it. The bars have one scale: how much the
    score falls when the group is switched off. The drops need not add up to the score.

    Args:
        result (ClusteredAttribution): From :meth:`ClusteredLayerAblation.explain`.
        example (int, optional): Which example of the batch. Default: 0
        n (int, optional): Number of groups to show at most. Default: 8
        image (array, optional): `(H, W, 3)`, float in [0, 1], to lay the maps over. Default: None
        title (str, optional): A line above all. Default: None
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): As for :func:`overlay`. Default: 0.55

    Returns:
        *Figure*: Save it with ``figure.savefig(path)``.

    Raises:
        ValueError: If the maps are not two-dimensional, or there is no such example.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> cam = ClusteredLayerAblation(model.eval(), model[1], n_clusters=2)
        >>> figure = groups(cam.explain(torch.rand(1, 3, 8, 8), target=0))
        >>> figure.get_suptitle().splitlines()[-1][:19]
        '4 maps in 2 groups,'
    """
    parts = _Parts(result, example)
    order = parts.largest(n)
    columns = min(4, max(1, len(order)))
    rows = max(1, -(-len(order) // columns))
    picture = None if image is None else _check_image(image)
    size = parts.maps.shape[-2:] if picture is None else picture.shape[:2]

    side = _PANEL * 0.75
    figure = _figure(side * columns + 3.6, (side * size[0] / size[1] + 0.55) * rows + 1.0)
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[*[side] * columns, 3.6])
    for place, group in enumerate(order):
        ax = figure.add_subplot(grid[place // columns, place % columns])
        mean = parts.mean_map(group)
        heatmap = _enlarged(mean, size)
        shown = _coloured(heatmap, cmap) if picture is None else None
        if picture is not None:
            shown = overlay(picture, heatmap, cmap=cmap, alpha=alpha)
        _show(
            ax,
            shown,
            f"{place + 1}: {_counted(parts.sizes[group], 'map')}",
            describe(heatmap) or f"mean {mean.min():.2g} to {mean.max():.2g}",
        )
    bars = figure.add_subplot(grid[:, columns])
    _bars(bars, [parts.drops[group] for group in order], parts.score)
    lines = [title] if title else []
    figure.suptitle("\n".join([*lines, parts.summary(len(order))]))
    return figure


class _Parts:
    """One example of a result, in NumPy."""

    def __init__(self, result: ClusteredAttribution, example: int) -> None:
        if isinstance(result.activations, tuple):
            raise ValueError(
                f"`result` must be of a layer with one tensor; got {len(result.activations)}. Take "
                "them apart first."
            )
        if result.activations.ndim != 4:
            raise ValueError(
                "`result` must have maps of two dimensions to be shown; got activations of shape "
                f"{tuple(result.activations.shape)}."
            )
        if not -len(result.activations) <= example < len(result.activations):
            raise ValueError(f"`example` must be one of {len(result.activations)}; got {example}.")
        self.maps = _array(result.activations[example])
        self.labels = _array(result.labels[example])
        self.valid = _array(result.valid[example])
        score = result.scores[example % len(result.scores)]
        self.score = float(score)
        self.drops = _array(score - result.ablated_scores[example])
        self.sizes = [int((self.labels == group).sum()) for group in range(len(self.valid))]

    def largest(self, n: int) -> list[int]:
        present = [int(group) for group in np.flatnonzero(self.valid)]
        return sorted(present, key=lambda group: -self.sizes[group])[:n]

    def mean_map(self, group: int) -> np.ndarray:
        mean: np.ndarray = self.maps[self.labels == group].mean(0)
        return mean

    def summary(self, shown: int) -> str:
        dead = int((self.maps == 0).all((1, 2)).sum())
        left_out = int((self.labels < 0).sum()) - dead
        present = int(self.valid.sum())
        which = f"the {shown} largest shown" if shown < present else "all shown"
        parts = [
            f"{_counted(len(self.maps), 'map')} in {_counted(present, 'group')}, {which}",
            f"{dead} dead",
        ]
        return "; ".join([*parts, f"{left_out} in no group"] if left_out > 0 else parts)


def _bars(ax: Axes, drops: list[float], score: float) -> None:
    places = np.arange(1, len(drops) + 1)
    finite = np.nan_to_num(np.array(drops, dtype=float))
    ax.barh(places, finite, color=[_FOR if drop >= 0 else _AGAINST for drop in finite])
    reach = max(np.abs(finite).max(initial=0), 1e-12)
    left, right = finite.min(initial=0), finite.max(initial=0)
    ax.set_xlim(left - 0.45 * reach * (left < 0), right + 0.4 * reach)  # room for the numbers
    for place, drop in zip(places, drops, strict=True):
        falls = not drop < 0
        ax.annotate(
            f"{drop:+.2g}",
            (drop if np.isfinite(drop) else 0, place),
            xytext=(4 if falls else -4, 0),
            textcoords="offset points",
            ha="left" if falls else "right",
            va="center",
            fontsize="small",
        )
    ax.set_ylim(len(drops) + 0.6, 0.4)
    ax.set_yticks(places)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.tick_params(labelsize="small")
    ax.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
    ax.set_title(f"drop of the score, of {score:.3g}", fontsize="medium")
    ax.set_xlabel("when the group is switched off\n(negative: the score rises)", fontsize="small")


# --- parts of figures -----------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _show(ax: Axes, picture: Any, title: str, note: str | None = None) -> None:
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title, fontsize="medium")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if note:
        ax.set_xlabel(note, fontsize="small")


def _colour_bar(figure: Figure, axes: list[Axes], cmap: str, alpha: float) -> None:
    """The scale, in the colours as they come out over a mid-grey image."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = (1 - alpha) * 0.5 + alpha * colormaps[cmap](np.linspace(0, 1, 256))[:, :3]
    scale = ScalarMappable(cmap=ListedColormap(colours))
    scale.set_clim(0, 1)
    bar = figure.colorbar(scale, ax=axes, shrink=0.8, aspect=22, pad=0.01, ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)


def _coloured(heatmap: np.ndarray, cmap: str) -> np.ndarray:
    from matplotlib import colormaps

    colours: np.ndarray = colormaps[cmap](heatmap)[..., :3]
    return colours


def _enlarged(mean: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    maps = torch.from_numpy(mean.astype(np.float32))[None, None]
    large = torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)
    enlarged: np.ndarray = normalize(large)[0, 0].numpy()
    return enlarged


def _luminance(image: np.ndarray) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    gray: np.ndarray = (image @ weights)[..., None].repeat(3, axis=2)
    return gray


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# --- checks ---------------------------------------------------------------------------------------


def _array(value: Any) -> np.ndarray:
    """A NumPy array of an array or of a tensor on any device, with or without a gradient."""
    if hasattr(value, "detach"):
        tensor: torch.Tensor = value.detach().cpu()
        value = tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
    return np.asarray(value)


def _check_image(image: Any) -> np.ndarray:
    image = _array(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"`image` must have shape (H, W, 3); got {image.shape}. Move the axis of the colours "
            "to the end, and repeat a single one three times."
        )
    return _check_range("image", image, "Divide bytes by 255; undo the model's normalisation.")


def _check_heatmap(heatmap: Any, image: np.ndarray) -> np.ndarray:
    heatmap = _array(heatmap)
    if heatmap.shape != image.shape[:2]:
        raise ValueError(
            f"`heatmap` must have the image's size {image.shape[:2]}; got shape {heatmap.shape}. "
            "Enlarge it with LayerAttribution.interpolate, then take one example and channel."
        )
    return _check_range("heatmap", heatmap, "Use captum_clustered.heatmap.normalize.")


def _check_range(name: str, values: np.ndarray, remedy: str) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"`{name}` must be floating point in [0, 1]; got {values.dtype}. {remedy}")
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    if low < -_SLACK or high > 1 + _SLACK:
        raise ValueError(
            f"`{name}` must lie in [0, 1]; got values from {low:.4g} to {high:.4g}. {remedy}"
        )
    clipped: np.ndarray = np.clip(values, 0, 1)
    return clipped
