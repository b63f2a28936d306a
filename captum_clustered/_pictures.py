"""Pictures made of plain arrays, and the parts of which all pictures are made.

It imports nothing of this package, since the results stand on it. What users import from here is in
:mod:`captum_clustered.visualization`. matplotlib loads when a picture is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CMAP = "inferno"  # perceptually uniform, and readable without red or green
FOR, AGAINST = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion
ALPHA = 0.55  # share of the colour over an image
PANEL = 2.9  # inches
_SLACK = 1e-5  # what rounding may add to a value of 1


# --- values ---------------------------------------------------------------------------------------


def to_array(value: Any) -> np.ndarray:
    """A NumPy array of an array or of a tensor on any device, with or without a gradient."""
    if hasattr(value, "detach"):
        tensor: torch.Tensor = value.detach().cpu()
        value = tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor
    return np.asarray(value)


def check_image(image: Any, n_axes: int = 2) -> np.ndarray:
    """An image `(H, W, 3)`, or with three axes a volume `(D, H, W, 3)`, as floats in [0, 1].

    Args:
        image (array or Tensor): What a caller passed as `image`.
        n_axes (int, optional): Number of spatial axes that it must have. Default: 2

    Returns:
        *array*: The image, clipped to [0, 1] by no more than rounding.

    Raises:
        TypeError: If it is not floating point.
        ValueError: If shape or range do not fit.
    """
    image = to_array(image)
    if image.ndim != n_axes + 1 or image.shape[-1] != 3:
        axes = "(H, W, 3)" if n_axes == 2 else "(D, H, W, 3), as the map has three axes"
        raise ValueError(
            f"`image` must have shape {axes}; got {image.shape}. Move the axis of the colours "
            "to the end, and repeat a single one three times."
        )
    return check_range("image", image, "Divide bytes by 255; undo the model's normalisation.")


def check_heatmap(heatmap: Any, size: tuple[int, ...] | None = None) -> np.ndarray:
    """A heat map `(H, W)` as floats in [0, 1]; where a size is given, of that size."""
    heatmap = to_array(heatmap)
    if size is None and heatmap.ndim != 2:
        raise ValueError(
            f"`heatmap` must have shape (H, W); got {heatmap.shape}. Take one example and channel."
        )
    if size is not None and heatmap.shape != size:
        raise ValueError(
            f"`heatmap` must have the image's size {size}; got shape {heatmap.shape}. "
            "Enlarge it with LayerAttribution.interpolate, then take one example and channel."
        )
    return check_range("heatmap", heatmap, "Use captum_clustered.heatmap.normalize.")


def check_range(name: str, values: np.ndarray, remedy: str) -> np.ndarray:
    """Values clipped to [0, 1] by no more than rounding; NaN is let through."""
    if not np.issubdtype(values.dtype, np.floating):
        raise TypeError(f"`{name}` must be floating point in [0, 1]; got {values.dtype}. {remedy}")
    low, high = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    if low < -_SLACK or high > 1 + _SLACK:
        raise ValueError(
            f"`{name}` must lie in [0, 1]; got values from {low:.4g} to {high:.4g}. {remedy}"
        )
    clipped: np.ndarray = np.clip(values, 0, 1)
    return clipped


def busiest(volume: Any) -> int:
    """The slice of a map `(D, H, W)` with the largest sum; NaN counts as 0."""
    return int(np.nan_to_num(to_array(volume)).sum((1, 2)).argmax())


def by_drop(groups: Iterable[Any]) -> list[Any]:
    """Groups in the order in which pictures show them: the largest drops first, NaN last."""
    return sorted(groups, key=lambda group: (math.isnan(group.drop), -group.drop))


# --- words ----------------------------------------------------------------------------------------


def describe(heatmap: Any) -> str | None:
    """Says what is wrong with a heat map, in words that can stand in a picture.

    Args:
        heatmap (array or Tensor): Any shape.

    Returns:
        *str* or *None*: None for a heat map that shows something.

    Example::

        >>> describe(np.zeros((2, 2)))
        'flat map: the same value everywhere'
    """
    values = to_array(heatmap)
    undefined = int(np.isnan(values).sum())
    if undefined == values.size:
        return "no map: every value is NaN"
    if undefined:
        return f"broken map: {undefined} of {values.size} values are NaN"
    if values.min() == values.max():
        return "flat map: the same value everywhere"
    return None


def counted(count: int, noun: str) -> str:
    """A number with its noun, in the plural where that is right."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def summary(counts: dict[str, int], n_groups: int, n_shown: int) -> str:
    """A line about the groups of one example.

    Args:
        counts (dict): From :meth:`ClusteredAttribution.counts`.
        n_groups (int): How many groups there are.
        n_shown (int): How many of them are shown, those with the largest drops.

    Returns:
        *str*: Such as ``"9 maps in 4 groups, all shown; 2 dead (zero everywhere)"``.
    """
    which = "all shown"
    if n_shown < n_groups:
        which = f"the {n_shown} with the largest drops shown"
    words = [f"{counted(counts['maps'], 'map')} in {counted(n_groups, 'group')}, {which}"]
    if counts["dead_maps"]:
        words.append(f"{counts['dead_maps']} dead (zero everywhere)")
    if counts["maps_in_no_group"]:
        words.append(f"{counts['maps_in_no_group']} in no group")
    return "; ".join(words)


# --- colours ----------------------------------------------------------------------------


def coloured(heatmap: np.ndarray, cmap: str = CMAP) -> np.ndarray:
    """The colours `(..., 3)` in [0, 1] of values in [0, 1]."""
    from matplotlib import colormaps

    check_look(cmap)
    colours: np.ndarray = colormaps[cmap](heatmap)[..., :3]
    return colours


def check_look(cmap: str, alpha: float = ALPHA, name: str = "cmap") -> None:
    """Raises unless matplotlib knows the colour map, called `name`, and `alpha` is a share."""
    from matplotlib import colormaps

    if cmap not in colormaps:
        near = get_close_matches(str(cmap), list(colormaps), 3)
        raise ValueError(
            f"`{name}` must be a colour map of matplotlib, such as inferno, viridis or jet; got "
            f"{cmap!r}.{' Close are: ' + ', '.join(near) if near else ''}"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"`alpha` must lie in [0, 1]; got {alpha}.")


# --- figures --------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """An empty figure in inches, made without pyplot: no window, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show_picture(ax: Axes, picture: Any, title: str, note: str | None = None) -> None:
    """Puts a picture into axes without ticks, a title above it and a note beneath."""
    ax.imshow(picture, interpolation="nearest")
    ax.set_title(title, fontsize="medium")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    if note:
        ax.set_xlabel(note, fontsize="small")


def add_colour_bar(figure: Figure, axes: Sequence[Axes], cmap: str, alpha: float) -> None:
    """The scale from 0 to 1, in the colours as they come out over a mid-grey image."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    colours = (1 - alpha) * 0.5 + alpha * coloured(np.linspace(0, 1, 256), cmap)
    scale = ScalarMappable(cmap=ListedColormap(colours))
    scale.set_clim(0, 1)
    slim = max(22, 5.4 * figure.get_figheight())  # as wide beside many rows as beside one
    bar = figure.colorbar(
        scale, ax=list(axes), shrink=0.8, aspect=slim, pad=0.01, ticks=[0, 0.5, 1]
    )
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)


# --- whole pictures -------------------------------------------------------------------------------


def overlay(
    image: Any,
    heatmap: Any,
    *,
    cmap: str = CMAP,
    alpha: float = ALPHA,
    gray: bool = True,
    outline: Any = None,
    ax: Axes | None = None,
) -> np.ndarray:
    """Draws a heat map over an image.

    Args:
        image (array): `(H, W, 3)`, float in [0, 1].
        heatmap (array or Tensor): `(H, W)`, float in [0, 1]. Where it is NaN the image stays bare.
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): Share of the colour, in [0, 1]. Default: 0.55
        gray (bool, optional): Whether the image is drawn in grey, so that every colour in the
            result comes from the heat map. Default: True
        outline (array or Tensor, optional): The object to draw an outline around: a mask `(H, W)`,
            true on the object, or boxes `(n, 4)` as x0, y0, x1, y1 in pixels. Default: None
        ax (matplotlib Axes, optional): Axes that also show the result. Default: None

    Returns:
        *array*: `(H, W, 3)`, float64 in [0, 1]. ``PIL.Image.fromarray(np.uint8(255 * result))``
        makes an image of it.

    Raises:
        TypeError: If image or heat map are not floating point.
        ValueError: If a shape or a range does not fit.

    Example::

        >>> overlay(np.zeros((1, 2, 3)), np.array([[0.0, 1.0]]), cmap="gray", alpha=0.5)[0, 1]
        array([0.5, 0.5, 0.5])
    """
    image = check_image(image)
    heatmap = check_heatmap(heatmap, image.shape[:2])
    check_look(cmap, alpha)
    colours = coloured(heatmap, cmap)
    base = _luminance(image) if gray else image
    blended: np.ndarray = (1 - alpha) * base + alpha * colours
    result = np.where(np.isnan(heatmap)[..., None], image, blended)
    if outline is not None:
        _draw_outline(result, outline)
    if ax is not None:
        show_picture(ax, result, "")
    return result


def _draw_outline(picture: np.ndarray, outline: Any) -> None:
    """Draws white lines with a black edge, which are visible on every colour."""
    from scipy.ndimage import binary_dilation, binary_erosion

    shapes = to_array(outline)
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


def compare(
    image: Any,
    heatmaps: Mapping[str, Any],
    *,
    scores: Sequence[float] | None = None,
    masked_scores: Mapping[str, Sequence[float]] | None = None,
    outlines: Sequence[Any] | None = None,
    labels: Sequence[str] | None = None,
    title: str | None = None,
    cmap: str = CMAP,
    alpha: float = ALPHA,
) -> Figure:
    """Shows heat maps side by side: images in rows, methods in columns, one colour scale for all.

    Args:
        image (array): `(H, W, 3)`, or several of one size `(N, H, W, 3)`, float in [0, 1].
        heatmaps (mapping): Heat maps `(H, W)`, or `(N, H, W)`, float in [0, 1], by their methods.
        scores (sequence of float, optional): The score of each image, written above it.
            Default: None
        masked_scores (mapping, optional): By method, the score of each image masked by its map;
            written above the map with the drop in percent. Default: None
        outlines (sequence, optional): For each image the `outline` for :func:`overlay`, or None.
            Default: None
        labels (sequence of str, optional): What is written above each image, instead of "image".
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
    several = to_array(image).ndim == 4
    images = [check_image(one) for one in (to_array(image) if several else [image])]
    rows = {name: list(to_array(maps) if several else [maps]) for name, maps in heatmaps.items()}
    _check_lengths(len(images), rows, scores, masked_scores, outlines, labels)
    height, width = images[0].shape[:2]
    n_panels = 1 + len(rows)
    size = PANEL * (1 if len(images) == 1 else 0.8)
    lines = max((label.count("\n") for label in labels or ()), default=0)
    row = size * height / width + 0.25 + 0.2 * lines
    figure = new_figure(0.7 + size * n_panels, 0.9 + row * len(images))
    grid = figure.subplots(len(images), n_panels, squeeze=False)
    for i, (one, axes) in enumerate(zip(images, grid, strict=True)):
        score = None if scores is None else scores[i]
        label = "image" if labels is None else labels[i]
        show_picture(axes[0], one, label if score is None else f"{label}: {score:.2f}")
        for ax, (name, maps) in zip(axes[1:], rows.items(), strict=True):
            words = name
            if masked_scores is not None and name in masked_scores:
                words += f": {masked_scores[name][i]:.2f}"
                if score is not None and score > 0:
                    drop = 100 * max(0.0, 1 - masked_scores[name][i] / score)
                    words += f", drop {drop:.0f} %"
            outline = None if outlines is None else outlines[i]
            picture = overlay(one, maps[i], cmap=cmap, alpha=alpha, outline=outline)
            show_picture(ax, picture, words, describe(maps[i]))
    add_colour_bar(figure, list(grid.ravel()), cmap, alpha)
    figure.supxlabel("each map: 0 is its minimum, 1 its maximum", fontsize="small")
    if title:
        figure.suptitle(title)
    return figure


def plain(heatmap: Any, *, title: str | None = None, cmap: str = CMAP) -> Figure:
    """Shows a heat map alone, where there is no image to lay it over.

    Args:
        heatmap (array or Tensor): `(H, W)`, float in [0, 1].
        title (str, optional): A line above. Default: None
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``

    Returns:
        *Figure*: Save it with ``figure.savefig(path)``. A flat map, or one with NaN, has a line
        beneath that says so.

    Raises:
        TypeError: If the heat map is not floating point.
        ValueError: If shape or range do not fit.

    Example::

        >>> plain(np.eye(3), title="daisy").axes[0].get_title()
        'daisy'
    """
    values = check_heatmap(heatmap)
    height, width = values.shape
    figure = new_figure(0.9 + PANEL, 0.7 + PANEL * height / width)
    ax = figure.subplots()
    show_picture(ax, coloured(values, cmap), title or "", describe(values))
    add_colour_bar(figure, [ax], cmap, alpha=1)
    return figure


def show_one(
    image: np.ndarray | None,
    heatmap: np.ndarray,
    title: str | None,
    cmap: str = CMAP,
    alpha: float = ALPHA,
) -> Figure:
    """An image and its heat map, or the map alone; of a volume the slice with the most heat.

    Args:
        image (array or None): `(H, W, 3)` or `(D, H, W, 3)`, float in [0, 1].
        heatmap (array): `(H, W)` or `(D, H, W)`, float in [0, 1].
        title (str or None): A line above.
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): As for :func:`overlay`. Default: 0.55

    Returns:
        *Figure*: With the number of the slice behind the title.
    """
    lines = [title] if title else []
    if heatmap.ndim == 3:
        best = busiest(heatmap)
        lines.append(f"slice {best + 1} of {len(heatmap)}")
        image, heatmap = None if image is None else image[best], heatmap[best]
    line = ", ".join(lines) or None
    if image is None:
        return plain(heatmap, title=line, cmap=cmap)
    return compare(image, {"heat map": heatmap}, title=line, cmap=cmap, alpha=alpha)


def _check_lengths(
    n: int,
    rows: Mapping[str, Sequence[Any]],
    scores: Sequence[float] | None,
    masked_scores: Mapping[str, Sequence[float]] | None,
    outlines: Sequence[Any] | None,
    labels: Sequence[str] | None,
) -> None:
    given = {f"heatmaps[{name!r}]": maps for name, maps in rows.items()}
    given |= {f"masked_scores[{name!r}]": v for name, v in (masked_scores or {}).items()}
    given |= {} if scores is None else {"scores": scores}
    given |= {} if outlines is None else {"outlines": outlines}
    given |= {} if labels is None else {"labels": labels}
    for name, values in given.items():
        if len(values) != n:
            raise ValueError(
                f"`{name}` must have one entry for each of the {n} images; got {len(values)}."
            )


def _luminance(image: np.ndarray) -> np.ndarray:
    weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    gray: np.ndarray = (image @ weights)[..., None].repeat(3, axis=2)
    return gray
