"""The page about one image: its heat map, and the groups behind it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import without_nan
from captum_clustered._pictures import ALPHA, CMAP, busiest, coloured
from captum_clustered.heatmap import enlarge
from captum_clustered.page import picture_uri, render

if TYPE_CHECKING:
    from captum_clustered.explainers.results import ClusteredAttribution

__all__ = ["ClassScore", "colours", "image_page", "packed"]


@dataclass(frozen=True)
class ClassScore:
    """A class among the highest.

    Attributes:
        index (int): Its number.
        name (str or None): Its name.
        score (float): What the model gives.
        probability (float or None): In [0, 1]; None if the score says nothing of it.
        is_target (bool): Whether it is the class that is explained.
    """

    index: int
    name: str | None
    score: float
    probability: float | None
    is_target: bool = False


def image_page(
    pictures: np.ndarray,
    levels: Mapping[int, ClusteredAttribution],
    chosen: int,
    *,
    title: str,
    subtitle: str,
    classes: Sequence[ClassScore] = (),
    pages: Sequence[tuple[str, str, bool]] = (),
    layers: Sequence[tuple[str, str, bool]] = (),
    settings: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    cmap: str = CMAP,
    alpha: float = ALPHA,
) -> str:
    """A page about one image: its heat map, the groups behind it, and all settings.

    Args:
        pictures (array): The image as the model sees it, `(H, W, 3)`, or `(D, H, W, 3)` for a
            volume, float in [0, 1].
        levels (mapping): Results of one example, by the requested number of groups.
        chosen (int): The number that is shown first.
        title (str): The heading.
        subtitle (str): A line beneath, such as the class.
        classes (sequence of ClassScore, optional): The highest classes. Default: ()
        pages (sequence, optional): The pages of this image's classes, to switch between: for each
            its title, its file, and whether it is this one. Default: ()
        layers (sequence, optional): The pages of this class's layers, likewise. Default: ()
        settings (mapping, optional): All settings behind the map, by name; inner mappings are
            flattened. Default: None
        notes (sequence of str, optional): Warnings above the picture. Default: ()
        cmap (str, optional): A matplotlib colour map. Default: ``"inferno"``
        alpha (float, optional): Share of the colour when the page opens. Default: 0.55

    Returns:
        *str*: The HTML.

    Raises:
        ValueError: If `chosen` is not among the levels.
        ImportError: If Jinja2 is missing.
    """
    if chosen not in levels:
        raise ValueError(f"`chosen` must be one of {sorted(levels)}; got {chosen}.")
    slices = pictures if pictures.ndim == 4 else pictures[None]
    size = pictures.shape[:-1]
    counts = sorted(levels)
    data = {
        "size": [len(slices), *slices.shape[1:3]],
        "slices": [picture_uri(picture) for picture in slices],
        "start": int(_busiest(levels[chosen], size)),
        "levels": [_level(levels[count], count, size) for count in counts],
        "chosen": counts.index(chosen),
        "colours": colours(cmap),
        "opacity": round(100 * alpha),
    }
    return render(
        "image.html",
        title=title,
        subtitle=subtitle,
        notes=list(notes),
        data=without_nan(data),
        classes=classes,
        pages=_links(pages),
        layers=_links(layers),
        settings=_flat(settings or {}),
    )


def _links(pages: Sequence[tuple[str, str, bool]]) -> list[dict[str, Any]]:
    """What the template needs to switch between pages; nothing where there is one only."""
    if len(pages) < 2:
        return []
    return [{"title": words, "href": quote(file), "here": here} for words, file, here in pages]


def packed(grid: Tensor, size: Sequence[int]) -> dict[str, Any]:
    """A map as bytes for the script, with the range of the enlarged map.

    Args:
        grid (Tensor): `(h, w)` or `(d, h, w)`, any range.
        size (sequence of int): The size to which the page enlarges it.

    Returns:
        *dict*: The grid's shape of three axes, its values as base64 of bytes from 0 (minimum) to
        255 (maximum), `low` and `high` of the enlarged bytes, and the range of the values. NaN is
        0.
    """
    values = grid.detach().float().cpu()
    finite = torch.isfinite(values)
    values = torch.where(finite, values, 0)
    low, high = float(values.min()), float(values.max())
    scaled = ((values - low) * (255 / ((high - low) or 1))).round()
    large = enlarge(scaled[None, None], size)
    return {
        "grid": [*[1] * (3 - values.ndim), *values.shape],
        "bytes": base64.b64encode(scaled.to(torch.uint8).numpy().tobytes()).decode(),
        "low": float(large.min()),
        "high": float(large.max()),
        "range": [low, high],
        "finite": bool(finite.all()),
    }


def _level(result: ClusteredAttribution, count: int, size: Sequence[int]) -> dict[str, Any]:
    """What the page holds for one number of groups; the template reads these names."""
    counts = result.counts()
    groups = [
        {
            "size": group.size,
            "words": group.words,
            "members": list(group.members),
            "below": list(group.below) if group.size > len(group.members) else [],
            "drop": group.drop,
            "without": group.ablated_score,
            "weight": group.weight,
            **packed(group.mean_map, size),
        }
        for group in result.groups()
    ]
    return {
        "asked": count,
        "score": float(result.scores[0]),
        "map": packed(result.map_of(), size),
        "groups": groups,
        "maps": counts["maps"],
        "dead": counts["dead_maps"],
        "left_out": counts["maps_in_no_group"],
        "replay": result.replay,
    }


def _busiest(result: ClusteredAttribution, size: Sequence[int]) -> int:
    """The slice with the most heat."""
    if len(size) == 2:
        return 0
    return busiest(enlarge(result.map_of()[None, None], size)[0, 0])


def colours(cmap: str = CMAP) -> str:
    """The 256 colours of a scale as bytes in base64, for the script."""
    table = np.round(255 * coloured(np.linspace(0, 1, 256), cmap)).astype(np.uint8)
    return base64.b64encode(table.tobytes()).decode()


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in settings.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _flat(value, f"{words}: ")
        elif isinstance(value, float):
            rows.append((words, f"{value:.6g}"))
        else:
            rows.append((words, "-" if value is None else str(value)))
    return rows
