"""A speckle phantom of the thyroid: ultrasound that nobody's privacy depends on.

Scatterers of random phase and strength pass a point-spread function that widens with depth; the
envelope is compressed logarithmically. Around the nodule lie the layers of the neck, the carotid
artery and the windpipe. The nodule differs as TI-RADS describes: echogenicity, margin, shape,
composition and punctate foci. Each of these only makes one class likelier, so that none of them
gives the label away, and the contour is known by construction. This is a picture that looks and
behaves like ultrasound in those respects, not a simulation of acoustics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.files import write_table
from benchmarks.ultrasound.contours import Contour, filled
from captum_clustered._files import whole

__all__ = ["ATTRIBUTES", "Phantom", "phantom", "write"]

SIZE = (240, 320)  # height and width
_RANGE = 60.0  # decibels from black to white
_REACH = 4  # pixels
_WHITE = 35.0  # decibels that are white; a gland has about 0

ATTRIBUTES = {
    "hypoechoic": (0.25, 0.80),
    "irregular": (0.15, 0.70),
    "taller": (0.15, 0.60),
    "foci": (0.10, 0.65),
    "cystic": (0.50, 0.05),
}
"""How often a benign and a malignant nodule has each."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """A frame with one nodule.

    Attributes:
        image (array): uint8 `(H, W)`.
        contour (tuple): The nodule's edge, points `(x, y)`.
        label (int): 0 for benign, 1 for malignant.
        attributes (dict[str, bool]): Which of :data:`ATTRIBUTES` it has.
        foci (tuple): Where the punctate foci are, points `(x, y)`.
        calipers (bool): Whether a measurement is burnt into the picture.
    """

    image: np.ndarray
    contour: Contour
    label: int
    attributes: dict[str, bool]
    foci: tuple[tuple[int, int], ...]
    calipers: bool

    @property
    def evidence(self) -> np.ndarray:
        """Bool `(H, W)`, true where the label shows at a place.

        That is within four pixels of each focus, and of the contour if that is irregular.
        Echogenicity, shape and cysts show in the nodule as a whole and are not in it.
        """
        inside = np.array(filled(self.contour, SIZE[::-1])) > 0
        places = np.zeros(SIZE, bool)
        if self.attributes["irregular"]:
            places |= inside ^ ndimage.binary_erosion(inside)
        for x, y in self.foci:
            places[y, x] = True
        return ndimage.distance_transform_edt(~places) <= _REACH if places.any() else places


def phantom(seed: int, malignant: bool, calipers: bool = False) -> Phantom:
    """Draws a frame; the same seed gives the same frame.

    Args:
        seed (int): Of everything drawn.
        malignant (bool): The label.
        calipers (bool, optional): Whether four crosses mark the nodule's extent, as those of a
            measurement. Default: False

    Returns:
        *Phantom*: The frame with its contour.

    Example::

        >>> made = phantom(0, malignant=True)
        >>> made.image.shape, made.image.dtype.name, made.label
        ((240, 320), 'uint8', 1)
    """
    _check_seed(seed)
    draw = np.random.default_rng([seed, int(malignant)])
    has = {name: bool(draw.random() < odds[malignant]) for name, odds in ATTRIBUTES.items()}
    contour = _contour(draw, has)
    inside = np.array(filled(contour, SIZE[::-1])) > 0
    strength = _tissue(draw)
    depths, columns = np.nonzero(inside)
    around = strength[_ring(inside)].mean()
    level = around + (draw.uniform(-13, -8) if has["hypoechoic"] else draw.uniform(-1, 5))
    nodule = level + _uneven(draw, draw.uniform(4, 9), 1.5)
    if has["cystic"]:
        # few wide holes, or many small ones as in a sponge
        holes = _uneven(draw, draw.choice([2.5, 8.0]), 1)
        holes = inside & (holes > np.quantile(holes[inside], draw.uniform(0.6, 0.85)))
        nodule = np.where(holes, -45.0, nodule)
        # fluid does not weaken sound, so that what lies below is brighter
        below = np.arange(SIZE[0])[:, None] > depths.max()
        strength = strength + below * ndimage.gaussian_filter1d(holes.sum(0) / 8.0, 4)
    edge = ndimage.gaussian_filter(inside.astype(float), 1.0)
    strength = strength * (1 - edge) + edge * nodule
    if not has["irregular"]:  # a smooth nodule has a thin dark halo, and its sides throw shadows
        soft = ndimage.gaussian_filter(inside.astype(float), 2.5)
        strength = strength - draw.uniform(8, 24) * soft * (1 - soft)
        for side in (columns.min(), columns.max()):
            shadow = np.exp(-(((np.arange(SIZE[1]) - side) / 3.0) ** 2))
            start = depths[columns == side].mean()
            strength = strength - 3 * shadow * (np.arange(SIZE[0])[:, None] > start)
    speckle = _speckle(draw, 10 ** (strength / 20))
    foci: list[tuple[int, int]] = []
    if has["foci"]:
        deep = np.argwhere(ndimage.binary_erosion(inside, iterations=6))
        peak = 10 ** (max(level, -14) / 20)
        for y, x in deep[draw.integers(len(deep), size=draw.integers(6, 14))]:
            foci.append((int(x), int(y)))
            speckle[y, x - 1 : x + 2] += peak * draw.uniform(10, 18)
            speckle[y - 1, x - 1 : x + 1] += peak * draw.uniform(6, 14)
    decibels = 20 * np.log10(ndimage.gaussian_filter(speckle, 0.5) + 1e-4)
    image = np.clip((decibels + _RANGE - _WHITE) / _RANGE, 0, 1) * 255
    image = image.astype(np.uint8)
    if calipers:
        _mark(image, contour)
    return Phantom(image, contour, int(malignant), has, tuple(foci), calipers)


def _check_seed(seed: int) -> None:
    if seed < 0:
        raise ValueError(f"`seed` must be an int >= 0; got {seed}.")


def _contour(draw: np.random.Generator, has: dict[str, bool]) -> Contour:
    height, width = SIZE
    radius = draw.uniform(38, 60)
    stretch = draw.uniform(1.15, 1.45)
    a, b = (radius / stretch, radius) if has["taller"] else (radius, radius / stretch)
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    wobble = np.zeros_like(angle)
    waves, size = (range(4, 13), 0.25) if has["irregular"] else (range(2, 5), 0.05)
    for wave in waves:
        wobble += size / wave * draw.normal() * np.cos(wave * angle + draw.uniform(0, 2 * np.pi))
    reach = np.clip(1 + wobble, 0.6, 1.4)
    x = width / 2 + draw.uniform(-40, 40) + a * reach * np.cos(angle)
    y = height * 0.53 + draw.uniform(-6, 10) + b * reach * np.sin(angle)
    inside = np.clip(x, 3, width - 4), np.clip(y, 3, height - 4)
    return tuple(zip(inside[0].round(2).tolist(), inside[1].round(2).tolist(), strict=True))


def _uneven(draw: np.random.Generator, width: float, strength: float) -> np.ndarray:
    """Smooth noise of that width in pixels and that standard deviation."""
    noise = ndimage.gaussian_filter(draw.normal(size=SIZE), width)
    return strength * noise / noise.std()


def _ring(inside: np.ndarray) -> np.ndarray:
    """The tissue next to the nodule."""
    return ndimage.binary_dilation(inside, iterations=8) & ~inside


def _tissue(draw: np.random.Generator) -> np.ndarray:
    """The neck without the nodule, in decibels: layers, the gland, and what lies beside and below.

    From the top: skin, fat with bright septa, muscle with fibres, the gland between two lines of
    its capsule, muscle. Beside the gland lies the carotid artery on one side, the windpipe with the
    shadow below its wall on the other.
    """
    height, width = SIZE
    across, down = np.arange(width)[None], np.arange(height)[:, None]
    wave = np.sin(across / draw.uniform(40, 90) + draw.uniform(0, 6))
    depth = down + draw.uniform(2, 5) * wave
    fat, muscle, gland = 9, draw.uniform(20, 26), draw.uniform(36, 44)
    back = draw.uniform(208, 222) + 12 * ((across - width / 2) / width * 2) ** 2
    fibres = ndimage.gaussian_filter(draw.normal(size=SIZE), (0.9, 14))
    fibres = 3.5 * fibres / fibres.std()
    strength = draw.uniform(-3, 2) + _uneven(draw, 14, 1.5) + _uneven(draw, 3, 1.2)
    strength = np.where(depth < gland, -12 + fibres, strength)
    strength = np.where(depth < muscle, -8 + _uneven(draw, 4, 2) + 0.8 * fibres, strength)
    strength = np.where(depth < fat, 5.0, strength)
    strength = np.where(depth > back, -11 + fibres, strength)
    for line, height_of, thick in ((muscle, 7, 1.0), (gland, 9, 1.3), (back, 9, 1.5)):
        seen = ndimage.gaussian_filter1d(draw.normal(size=width), 12)  # more here, less there
        bright = height_of + 3 * seen / seen.std()
        strength = strength + np.exp(-(((depth - line) / thick) ** 2)) * (bright - strength)
    mirrored = bool(draw.random() < 0.5)
    away = across if mirrored else width - 1 - across
    artery = np.hypot(away - draw.uniform(4, 12), down - draw.uniform(110, 150))
    radius = draw.uniform(24, 32)
    strength = np.where(artery < radius, -40.0, strength)
    strength = np.maximum(strength, 8 - 3 * (artery - radius) ** 2)
    beside = width - 1 - away + draw.uniform(12, 24)
    below = down - draw.uniform(110, 140)
    radius = draw.uniform(42, 54)
    windpipe = np.hypot(beside, np.minimum(below, 0))
    strength = np.where(windpipe < radius, -22 - 0.15 * (radius - windpipe), strength)
    wall = 10 - 2 * (windpipe - radius) ** 2 - 0.5 * np.maximum(below + 10, 0)
    strength = np.maximum(strength, wall)
    focus = draw.uniform(0.35, 0.65) * height
    gain = 2 * np.exp(-(((down - focus) / 50) ** 2)) - draw.uniform(0.02, 0.05) * down
    return np.maximum(strength, -45.0) + gain


def _speckle(draw: np.random.Generator, amplitude: np.ndarray) -> np.ndarray:
    """The envelope of scatterers behind a point-spread function that widens with depth."""
    noise = draw.normal(size=(2, *SIZE)) * amplitude
    near, far = (
        np.stack([ndimage.gaussian_filter(part, (axial, lateral)) for part in noise])
        / np.sqrt(1 / (4 * np.pi * axial * lateral))
        for axial, lateral in ((0.7, 1.0), (0.8, 2.0))
    )
    share = np.linspace(0, 1, SIZE[0])[:, None]
    real, imaginary = near * np.sqrt(1 - share) + far * np.sqrt(share)
    return np.hypot(real, imaginary)


def _mark(image: np.ndarray, contour: Contour) -> None:
    points = np.array(contour)
    for axis in (0, 1):
        for end in (points[:, axis].argmin(), points[:, axis].argmax()):
            x, y = points[end].round().astype(int)
            image[max(0, y - 4) : y + 5, x] = 255
            image[y, max(0, x - 4) : x + 5] = 255


def write(
    out: Path,
    n: int,
    seed: int = 0,
    malignant: float = 0.5,
    calipers: float = 0.0,
    say: Callable[[str], object] = print,
    *,
    benign_calipers: float = 0.0,
) -> Path:
    """Writes frames as a data set of one's own, see :mod:`benchmarks.ultrasound.data`.

    Args:
        out (Path): Folder for ``images/`` and ``phantom.csv``.
        n (int): Number of frames, two of each patient; they have the label in common.
        seed (int, optional): Of everything drawn. Default: 0
        malignant (float, optional): Share of malignant patients. Default: 0.5
        calipers (float, optional): Share of the malignant frames with calipers: a shortcut, unless
            as many benign ones have them. Default: 0
        say (callable, optional): Told in a line what was done. Default: print
        benign_calipers (float, optional): Share of the benign frames with calipers. Default: 0

    Returns:
        *Path*: The CSV file.

    Raises:
        ValueError: If a number is out of its range.
    """
    from PIL import Image

    if n < 1:
        raise ValueError(f"`n` must be an int >= 1; got {n}.")
    _check_seed(seed)
    shares = {"malignant": malignant, "calipers": calipers, "benign_calipers": benign_calipers}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"`{name}` must be a share from 0 to 1; got {share}.")
    draw = np.random.default_rng(seed)
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(n):
        case = number // 2
        if number % 2 == 0:
            label = bool(draw.random() < malignant)
        marked = bool(draw.random() < (calipers if label else benign_calipers))
        made = phantom(seed * 1_000_003 + number, label, marked)
        path = f"images/{case:04d}_{number % 2}.png"
        with whole(out / path) as part:
            Image.fromarray(made.image).save(part, format="PNG")
        rows.append(
            {
                "image": path,
                "case": case,
                "label": made.label,
                "contour": "; ".join(f"{x:g} {y:g}" for x, y in made.contour),
                "tags": "calipers" if made.calipers else "",
            }
        )
    table = out / "phantom.csv"
    write_table(table, list(rows[0]), rows)
    say(f"{n} frames, {sum(row['label'] for row in rows)} of them malignant: {table}")
    return table
