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

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from captum_clustered.heatmap import enlarge, normalize

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from captum_clustered.explainers.results import ClusteredAttribution

__all__ = ["compare", "describe", "groups", "overlay", "sweep", "to_captum"]

_CMAP = "inferno"  # perceptually uniform, and readable without red or green
_ALPHA = 0.55
_FOR, _AGAINST = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
_PANEL = 2.9  # inches
_SLACK = 1e-5  # what rounding may add to a value of 1
_TRACE = 1e-4  # of the largest value: what Captum can still divide by without a warning


def overlay(
    image: Any,
    heatmap: Any,
    *,
    cmap: str = _CMAP,
    alpha: float = _ALPHA,
    gray: bool = True,
    outline: Any = None,
    ax: Axes | None = None,
) -> np.ndarray:
    """Lays a heat map over an image.

    Args:
        image (array): `(H, W, 3)`, float in [0, 1].
        heatmap (array or Tensor): `(H, W)`, float in [0, 1]. Where it is NaN the image stays bare.
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): Share of the colour, in [0, 1]. Default: 0.55
        gray (bool, optional): Whether the image loses its own colours, so that every colour in the
            result is the heat map's. Default: True
        outline (array or Tensor, optional): What is drawn around: a mask `(H, W)`, true on the
            object, or boxes `(n, 4)` as x0, y0, x1, y1 in pixels. Default: None
        ax (matplotlib Axes, optional): Where to show the result as well. Default: None

    Returns:
        *array*: `(H, W, 3)`, float64 in [0, 1]. ``PIL.Image.fromarray(np.uint8(255 * result))`` is
        the same as an image.

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
    result = np.where(np.isnan(heatmap)[..., None], image, blended)
    if outline is not None:
        _draw_outline(result, outline)
    if ax is not None:
        _show(ax, result, "")
    return result


def _draw_outline(picture: np.ndarray, outline: Any) -> None:
    """White with black around it: to be seen on every colour."""
    from scipy.ndimage import binary_dilation, binary_erosion

    shapes = _array(outline)
    height, width = picture.shape[:2]
    if shapes.shape == (height, width):
        masks = [shapes > 0]
    elif shapes.ndim == 2 and shapes.shape[1] == 4:
        masks = []
        for x0, y0, x1, y1 in shapes:
            mask = np.zeros((height, width), bool)
            mask[max(0, round(y0)) : max(0, round(y1)), max(0, round(x0)) : max(0, round(x1))] = 1
            masks.append(mask)
    else:
        raise ValueError(
            f"`outline` must be a mask of shape {(height, width)} or boxes of shape (n, 4); got "
            f"shape {shapes.shape}."
        )
    for mask in masks:
        edge = mask & ~binary_erosion(mask, border_value=0)
        picture[binary_dilation(edge) & ~edge] = 0
        picture[edge] = 1


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
    scores: Sequence[float] | None = None,
    masked_scores: Mapping[str, Sequence[float]] | None = None,
    outlines: Sequence[Any] | None = None,
    title: str | None = None,
    cmap: str = _CMAP,
    alpha: float = _ALPHA,
) -> Figure:
    """Shows heat maps side by side: images in rows, methods in columns, one colour scale for all.

    Args:
        image (array): `(H, W, 3)`, or several of one size `(N, H, W, 3)`, float in [0, 1].
        heatmaps (mapping): Heat maps `(H, W)`, or `(N, H, W)`, float in [0, 1], by their methods.
        scores (sequence of float, optional): The score of each image; stands above it.
            Default: None
        masked_scores (mapping, optional): By method, the score of what its map leaves of each
            image; stands above the map with the drop in percent. Default: None
        outlines (sequence, optional): For each image what :func:`overlay` draws around, or None.
            Default: None
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
        >>> figure = compare(
        ...     image, {"Grad-CAM": heatmap}, scores=[0.5], masked_scores={"Grad-CAM": [0.4]}
        ... )
        >>> [axes.get_title() for axes in figure.axes[:2]]
        ['image: 0.50', 'Grad-CAM: 0.40, drop 20 %']
    """
    if not heatmaps:
        raise ValueError("`heatmaps` must have at least one heat map; got none.")
    several = _array(image).ndim == 4
    images = [_check_image(one) for one in (_array(image) if several else [image])]
    rows = {name: list(_array(maps) if several else [maps]) for name, maps in heatmaps.items()}
    _check_lengths(len(images), rows, scores, masked_scores, outlines)
    height, width = images[0].shape[:2]
    n_panels = 1 + len(rows)
    size = _PANEL * (1 if len(images) == 1 else 0.8)
    figure = _figure(0.7 + size * n_panels, 0.9 + (size * height / width + 0.25) * len(images))
    grid = figure.subplots(len(images), n_panels, squeeze=False)
    for i, (one, axes) in enumerate(zip(images, grid, strict=True)):
        score = None if scores is None else scores[i]
        _show(axes[0], one, "image" if score is None else f"image: {score:.2f}")
        for ax, (name, maps) in zip(axes[1:], rows.items(), strict=True):
            words = name
            if masked_scores is not None and name in masked_scores:
                words += f": {masked_scores[name][i]:.2f}"
                if score is not None and score > 0:
                    drop = 100 * max(0.0, 1 - masked_scores[name][i] / score)
                    words += f", drop {drop:.0f} %"
            outline = None if outlines is None else outlines[i]
            picture = overlay(one, maps[i], cmap=cmap, alpha=alpha, outline=outline)
            _show(ax, picture, words, describe(maps[i]))
    _colour_bar(figure, list(grid.ravel()), cmap, alpha)
    figure.supxlabel("each map: 0 is its minimum, 1 its maximum", fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def _check_lengths(
    n: int,
    rows: Mapping[str, Sequence[Any]],
    scores: Sequence[float] | None,
    masked_scores: Mapping[str, Sequence[float]] | None,
    outlines: Sequence[Any] | None,
) -> None:
    given = {f"heatmaps[{name!r}]": maps for name, maps in rows.items()}
    given |= {f"masked_scores[{name!r}]": v for name, v in (masked_scores or {}).items()}
    given |= {} if scores is None else {"scores": scores}
    given |= {} if outlines is None else {"outlines": outlines}
    for name, values in given.items():
        if len(values) != n:
            raise ValueError(
                f"`{name}` must have one entry for each of the {n} images; got {len(values)}."
            )


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


def sweep(
    image: Any,
    results: Mapping[int, ClusteredAttribution],
    example: int = 0,
    *,
    title: str | None = None,
    cmap: str = _CMAP,
    alpha: float = _ALPHA,
) -> Figure:
    """Shows the heat map of one image for several numbers of groups, with one colour scale.

    Beneath each map stand the group with the largest drop, and how well the map agrees with the one
    before: Pearson's correlation, r.

    Args:
        image (array): `(H, W, 3)`, float in [0, 1].
        results (mapping): From :meth:`ClusteredLayerAblation.explain`, by the number of groups that
            was asked for.
        example (int, optional): Which example of the batch. Default: 0
        title (str, optional): A line above all. Default: None
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): As for :func:`overlay`. Default: 0.55

    Returns:
        *Figure*: Save it with ``figure.savefig(path)``.

    Raises:
        ValueError: If there is no result, or its maps are not two-dimensional.

    Example::

        >>> import torch
        >>> from torch import nn
        >>> from captum_clustered import ClusteredLayerAblation
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
        >>> x = torch.rand(1, 3, 8, 8)
        >>> results = {
        ...     k: ClusteredLayerAblation(model.eval(), model[1], n_clusters=k).explain(x, target=0)
        ...     for k in (2, 4)
        ... }
        >>> figure = sweep(np.full((8, 8, 3), 0.5), results)
        >>> [axes.get_title() for axes in figure.axes[:3]]
        ['image', 'K=2', 'K=4']
    """
    if not results:
        raise ValueError("`results` must have at least one result; got none.")
    image = _check_image(image)
    height, width = image.shape[:2]
    columns = min(4, 1 + len(results))
    rows = -(-(1 + len(results)) // columns)
    figure = _figure(0.7 + _PANEL * columns, (0.8 + _PANEL * height / width) * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    _show(axes[0], image, "image")
    before: np.ndarray | None = None
    for ax, count in zip(axes[1:], sorted(results), strict=False):
        parts = _Parts(results[count], example)
        attributions = results[count].attributions
        assert not isinstance(attributions, tuple)
        heatmap = _enlarged(_array(attributions[example, 0]), (height, width))
        fault = describe(heatmap)
        note = fault or _agreement(parts, heatmap, before)
        before = heatmap if fault is None else None
        _show(ax, overlay(image, heatmap, cmap=cmap, alpha=alpha), f"K={count}", note)
    for ax in axes[1 + len(results) :]:
        ax.set_visible(False)
    _colour_bar(figure, list(axes), cmap, alpha)
    figure.supxlabel("each map: 0 is its minimum, 1 its maximum", fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def _agreement(parts: _Parts, heatmap: np.ndarray, before: np.ndarray | None) -> str:
    present = np.flatnonzero(parts.valid)
    words = _counted(len(present), "group")
    if len(present):
        words += f", largest drop {np.nanmax(parts.drops[present]):.2g}"
    if before is not None:
        words += (
            f"\nr = {np.corrcoef(before.ravel(), heatmap.ravel())[0, 1]:.2f} with the one before"
        )
    return words


def to_captum(heat: Any, image: Any = None) -> dict[str, Any]:
    """What ``captum.attr.visualization.visualize_image_attr`` and ``…_multiple`` need.

    Captum's functions scale each map anew, draw a map smaller than the image into its corner, take
    `(1, H, W)` for an image of one row, and fail on flat maps, on maps without a value of the sign
    that is asked for, and on NaN. What this returns is of the form `(H, W, 1)`, as large as the
    image, with a largest absolute value of 1, and goes through every method and sign that Captum
    allows (not ``sign="all"`` with ``"masked_image"`` or ``"alpha_scaling"``, which mean nothing).

    Where no value is positive, or none negative, the faintest pixel becomes 0.0001 or -0.0001, so
    that the picture for that sign is empty but for this pixel. NaN becomes 0, with a warning. No
    outlier is cut off, so that maps stay comparable.

    Args:
        heat (array or Tensor): `(h, w)`, `(1, h, w)` or `(1, 1, h, w)`, any range.
        image (array or Tensor, optional): `(H, W, 3)`, `(H, W, 1)` or `(H, W)`, float in [0, 1].
            Default: None (the heat map keeps its size)

    Returns:
        *dict*: Keyword arguments: `attr` `(H, W, 1)`, `original_image` `(H, W, 3)` or None, and
        `outlier_perc`.

    Raises:
        ValueError: If a shape or a range does not fit.

    Example::

        >>> from captum.attr import visualization
        >>> given = to_captum(torch.zeros(1, 1, 7, 7), np.full((16, 16, 3), 0.5))
        >>> given["attr"].shape
        (16, 16, 1)
        >>> figure, axes = visualization.visualize_image_attr(
        ...     **given, method="blended_heat_map", sign="positive", use_pyplot=False
        ... )
    """
    values = _array(heat)
    if values.ndim < 2 or values.size != values.shape[-1] * values.shape[-2] or not values.size:
        raise ValueError(
            f"`heat` must have shape (h, w), (1, h, w) or (1, 1, h, w); got {values.shape}. "
            "Take one example and one channel."
        )
    values = values.reshape(values.shape[-2:]).astype(np.float32)
    if not np.isfinite(values).all():
        warnings.warn(f"{describe(values) or 'infinite values'}; drawn as 0", stacklevel=2)
        values = np.where(np.isfinite(values), values, 0)
    picture = None
    if image is not None:
        picture = _array(image)
        picture = picture[..., None] if picture.ndim == 2 else picture
        picture = picture.repeat(3, axis=2) if picture.shape[2:] == (1,) else picture
        picture = _check_image(picture)
        maps = torch.from_numpy(values)[None, None]
        values = enlarge(maps, picture.shape[:2])[0, 0].numpy()
    attr = values / (np.abs(values).max() or 1)
    faintest = iter(np.argsort(np.abs(attr), axis=None, kind="stable"))
    for sign in (1, -1):
        if (sign * attr).max() < _TRACE:
            place = next(faintest, None)  # a map of one pixel has room for one sign
            if place is not None:
                attr.flat[place] = sign * _TRACE
    return {"attr": attr[..., None], "original_image": picture, "outlier_perc": 0}


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
