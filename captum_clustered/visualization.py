"""Pictures of heat maps.

Everywhere in this module a heat map is a float array in [0, 1] of the image's size, and an image is
a float array `(H, W, 3)` in [0, 1]. Other ranges and sizes are refused, never rescaled. Figures are
plain matplotlib objects made without pyplot: no window opens, and no global state changes.

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

from captum_clustered._pictures import (
    AGAINST,
    ALPHA,
    CMAP,
    FOR,
    PANEL,
    add_colour_bar,
    by_drop,
    check_image,
    coloured,
    compare,
    counted,
    describe,
    new_figure,
    overlay,
    plain,
    show_picture,
    summary,
    to_array,
)
from captum_clustered.heatmap import enlarge, scaled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from captum_clustered.explainers.results import ClusteredAttribution, Group

__all__ = ["compare", "describe", "groups", "overlay", "plain", "sweep", "to_captum"]

_KEY = "each picture: the mean of a group's maps, its colours from the lower number to the higher"
_TRACE = 1e-4  # of the largest value: what Captum can still divide by without a warning


def groups(
    result: ClusteredAttribution,
    example: int = 0,
    n: int = 8,
    *,
    image: Any = None,
    title: str | None = None,
    cmap: str = CMAP,
    alpha: float = ALPHA,
) -> Figure:
    """Shows the groups with the largest drops: where they respond, and how far the score falls.

    Each picture is the mean of a group's maps. It is enlarged to the image and scaled from its own
    minimum to its own maximum; both are written beneath it. All bars have the same scale. They show
    how far the score falls when the group is switched off. The drops need not add up to the score.

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
    own_size = _size_of_maps(result)
    found = by_drop(result.groups(example))
    shown = found[:n]
    rows = max(1, -(-len(shown) // 4))
    columns = max(1, -(-len(shown) // rows))  # full rows, as far as that goes
    picture = None if image is None else check_image(image)
    size = own_size if picture is None else picture.shape[:2]

    side = PANEL * 0.75
    figure = new_figure(side * columns + 3.6, (side * size[0] / size[1] + 0.55) * rows + 1.0)
    grid = figure.add_gridspec(rows, columns + 1, width_ratios=[*[side] * columns, 3.6])
    for place, group in enumerate(shown):
        ax = figure.add_subplot(grid[place // columns, place % columns])
        _show_group(ax, place + 1, group, picture, size, cmap, alpha)
    bars = figure.add_subplot(grid[:, columns])
    score = float(result.scores[example if len(result.scores) > 1 else 0])
    _bars(bars, [group.drop for group in shown], score)
    lines = [title] if title else []
    lines.append(summary(result.counts(example), len(found), len(shown)))
    figure.suptitle("\n".join(lines))
    if shown:
        figure.supxlabel(_KEY, fontsize="small")
    return figure


def _size_of_maps(result: ClusteredAttribution) -> tuple[int, ...]:
    """Height and width of a layer's maps."""
    maps = result.activations
    if isinstance(maps, tuple) or maps.ndim != 4:
        shapes = [tuple(one.shape) for one in (maps if isinstance(maps, tuple) else [maps])]
        raise ValueError(
            "`result` must have maps of two dimensions to be drawn; got activations of shape "
            f"{', '.join(map(str, shapes))}. `result.show` draws a slice of a volume, and "
            "`result.select` takes one of several tensors."
        )
    return tuple(maps.shape[2:])


def _show_group(
    ax: Axes,
    place: int,
    group: Group,
    image: np.ndarray | None,
    size: tuple[int, ...],
    cmap: str,
    alpha: float,
) -> None:
    """The mean of a group's maps, over the image where there is one."""
    mean = to_array(group.mean_map)
    heatmap = scaled(group.mean_map, size).numpy()
    if image is None:
        picture = coloured(heatmap, cmap)
    else:
        picture = overlay(image, heatmap, cmap=cmap, alpha=alpha)
    note = describe(heatmap) or f"mean activation {mean.min():.2g} to {mean.max():.2g}"
    show_picture(ax, picture, f"{place}: {group.words}", note)


def sweep(
    image: Any,
    results: Mapping[int, ClusteredAttribution],
    example: int = 0,
    *,
    title: str | None = None,
    cmap: str = CMAP,
    alpha: float = ALPHA,
) -> Figure:
    """Shows the heat map of one image for several numbers of groups, with one colour scale.

    The line beneath each map gives the largest drop of a group and the agreement with the map
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
    image = check_image(image)
    height, width = image.shape[:2]
    columns = min(4, 1 + len(results))
    rows = -(-(1 + len(results)) // columns)
    figure = new_figure(0.7 + PANEL * columns, (0.8 + PANEL * height / width) * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    show_picture(axes[0], image, "image")
    before: np.ndarray | None = None
    for ax, count in zip(axes[1:], sorted(results), strict=False):
        _size_of_maps(results[count])
        found = results[count].groups(example)
        heatmap = scaled(results[count].map_of(example), (height, width)).numpy()
        fault = describe(heatmap)
        note = fault or _agreement(found, heatmap, before)
        before = heatmap if fault is None else None
        show_picture(ax, overlay(image, heatmap, cmap=cmap, alpha=alpha), f"K={count}", note)
    for ax in axes[1 + len(results) :]:
        ax.set_visible(False)
    add_colour_bar(figure, list(axes), cmap, alpha)
    figure.supxlabel("each map: 0 is its minimum, 1 its maximum", fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def _agreement(found: Sequence[Group], heatmap: np.ndarray, before: np.ndarray | None) -> str:
    words = counted(len(found), "group")
    if found:
        words += f", largest drop {np.nanmax([group.drop for group in found]):.2g}"
    if before is not None:
        r = np.corrcoef(before.ravel(), heatmap.ravel())[0, 1]
        words += f"\nr = {r:.2f} with the one before"
    return words


def to_captum(heat: Any, image: Any = None) -> dict[str, Any]:
    """Makes the arguments of ``captum.attr.visualization.visualize_image_attr`` and ``…_multiple``.

    Captum's functions scale each map again. They draw a map that is smaller than the image into its
    corner and read `(1, H, W)` as an image of one row. They fail on flat maps, on NaN, and on maps
    without a value of the requested sign. The map returned here has the shape `(H, W, 1)`, the
    image's size and a largest absolute value of 1. It works with every method and sign that Captum
    allows; ``sign="all"`` with ``"masked_image"`` or ``"alpha_scaling"`` has no meaning there.

    If no value is positive, or none is negative, the faintest pixel becomes 0.0001 or -0.0001, and
    the picture for that sign shows this pixel only. NaN becomes 0, with a warning. Outliers are not
    cut off, so maps stay comparable.

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
    values = to_array(heat)
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
        picture = to_array(image)
        picture = picture[..., None] if picture.ndim == 2 else picture
        picture = picture.repeat(3, axis=2) if picture.shape[2:] == (1,) else picture
        picture = check_image(picture)
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


def _bars(ax: Axes, drops: list[float], score: float) -> None:
    places = np.arange(1, len(drops) + 1)
    finite = np.nan_to_num(np.array(drops, dtype=float))
    ax.barh(places, finite, color=[FOR if drop >= 0 else AGAINST for drop in finite])
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
    ax.set_title(f"how far the score of {score:.3g} drops", fontsize="medium")
    ax.set_xlabel("when the group is switched off\n(negative: the score rises)", fontsize="small")
