"""Calipers and burnt-in text, and whether they draw heat.

What a machine writes into a frame is thin and bright: brighter by :data:`STEP` than the median
around it. Speckle seldom is. The heat on a frame's marks is compared with the heat of the *other*
frames at the same places, since text has its usual places; no frame counts where its own lesion is.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["STEP", "heat_on_marks", "map_of", "marks"]

STEP = 90
"""How much brighter than its surroundings a mark is, of 255."""

_WIDTH = 7  # pixels: strokes are thinner than half of it
_AROUND = 9  # pixels: as coarse as the maps are
_FEWEST = 60  # pixels: less may be speckle


def marks(pixels: np.ndarray) -> np.ndarray:
    """Where a picture has marks.

    Args:
        pixels (array): Grey, `(H, W)`, 0 to 255.

    Returns:
        *array*: bool `(H, W)`.

    Example::

        >>> frame = np.full((40, 40), 60)
        >>> frame[10, 5:30] = 250  # a line
        >>> frame[20:35, 10:30] = 250  # bright tissue
        >>> found = marks(frame)
        >>> bool(found[10, 15]), bool(found[28, 20])
        (True, False)
    """
    from scipy.ndimage import median_filter

    grey = np.asarray(pixels, dtype=np.int16)
    found: np.ndarray = grey - median_filter(grey, _WIDTH) > STEP
    return found


def map_of(row: Mapping[str, Any], size: int) -> np.ndarray:
    """The heat map that a row of an evaluation keeps, enlarged to `(size, size)`, in [0, 1]."""
    from PIL import Image

    kept = row["heat"]
    small = np.frombuffer(base64.b64decode(kept["bytes"]), np.uint8).reshape(kept["shape"])
    large = Image.fromarray(small).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(large, dtype=np.float32) / 255


def heat_on_marks(
    maps: np.ndarray, pictures: Sequence[np.ndarray], lesions: Sequence[np.ndarray], apart: int
) -> np.ndarray:
    """Heat on the marks of each frame, less that of the other frames at the same places.

    Args:
        maps (array): Heat maps `(N, H, W)`; each is taken as a share of its own mean.
        pictures (sequence of array): Grey, `(H, W)` each, 0 to 255.
        lesions (sequence of array): bool `(H, W)` each; marks on it do not count.
        apart (int): Pixels around a lesion that do not count either.

    Returns:
        *array*: `(N,)`: 0 if marks draw nothing, 1 if they have the heat of a mean pixel more; NaN
        where a frame has too few marks.
    """
    shares = maps / np.maximum(maps.mean((1, 2), keepdims=True), 1e-6)  # (N, H, W)
    far = np.stack([~_around(lesion, apart) for lesion in lesions])  # where it counts
    total, count = (shares * far).sum(0), far.sum(0)  # (H, W)
    found = np.full(len(maps), np.nan)
    for i, picture in enumerate(pictures):
        seen = marks(picture) & far[i]
        others = count - far[i]  # how many other frames have no lesion there
        where = _around(seen, _AROUND) & far[i] & (others > 0)
        if seen.sum() < _FEWEST or not where.any():
            continue
        theirs = (total - shares[i] * far[i])[where] / others[where]
        found[i] = shares[i][where].mean() - theirs.mean()
    return found


def _around(where: np.ndarray, pixels: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    grown: np.ndarray = binary_dilation(where, iterations=pixels) if pixels else where
    return grown
