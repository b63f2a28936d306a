"""What the command line writes: results, pages and DICOM files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._files import to_json, whole, write_figure, write_text
from captum_clustered._pictures import ALPHA, CMAP, busiest
from captum_clustered.app.units import replaced
from captum_clustered.models.images import crop_of
from captum_clustered.models.medical import is_dicom, save_secondary_capture
from captum_clustered.page.image import image_page
from captum_clustered.visualization import compare, describe, overlay

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from captum_clustered.app.explain import Explained, Explanation, Page
    from captum_clustered.models.prepared import Prepared

__all__ = ["Output", "write_explanation"]


@dataclass(frozen=True)
class Output:
    """How results look, and which files are written beside the usual ones.

    Attributes:
        html (bool): Whether to write a page for each class.
        bare (bool): Whether to write overlays without words: on what the model sees, and on the
            whole image.
        dicom (bool): Whether to save the overlay of the first method as DICOM too.
        keep_identifiers (bool): Whether that names patient and study.
        colormap (str): A matplotlib colour map.
        alpha (float): Share of the colour over the image, in [0, 1].
    """

    html: bool = False
    bare: bool = False
    dicom: bool = False
    keep_identifiers: bool = False
    colormap: str = CMAP
    alpha: float = ALPHA

    @property
    def look(self) -> dict[str, Any]:
        """What the record says of the look."""
        return {"colormap": self.colormap, "alpha": self.alpha}

    @property
    def kinds(self) -> list[str]:
        """The files that the record lists beside the usual ones."""
        wanted = {"page": self.html, "bare": self.bare, "dicom": self.dicom}
        return [kind for kind, is_wanted in wanted.items() if is_wanted]


def write_explanation(
    explanation: Explanation, prepared: Prepared, out: Path, stem: str, output: Output
) -> Path:
    """Writes the files of an explanation into a folder, in place of older ones of this name.

    With one method and class these are what
    :meth:`captum_clustered.explainers.results.Attribution.save` writes under the name ``STEM``.
    With several methods, layers or classes, each map has these files under a name of its own, such
    as ``STEM.METHOD.LAYER.class7``, of which only the parts that differ are named;
    ``STEM.overlay.png`` shows all side by side, and ``STEM.json`` lists them.

    Args:
        explanation (Explanation): From :func:`captum_clustered.app.explain.explain_image`.
        prepared (Prepared): The model with its transform.
        out (Path): The folder; it is there.
        stem (str): The beginning of the files' names.
        output (Output): How the results look and which files are written.

    Returns:
        *Path*: The overlay.

    Raises:
        ValueError: If a page is wanted, and no method has groups.
    """
    with replaced(out, stem) as part:
        _Writing(explanation, prepared, part, stem, output).write()
    return out / f"{stem}.overlay.png"


@dataclass(frozen=True)
class _Writing:
    """One explanation on its way into a folder."""

    explanation: Explanation
    prepared: Prepared
    folder: Path
    stem: str
    output: Output

    def write(self) -> None:
        more: dict[str, str] = {}
        if self.output.dicom:
            more["dicom"] = self._dicom()
        if self.output.html:
            more |= self._pages()
        if len(self.explanation.found) == 1:
            self._save(self.explanation.found[0], self.stem, self.explanation.title, more)
            return
        methods = {}
        for one in self.explanation.found:
            name = self._name(one)
            title = f"{one.panel.title}: {self.explanation.titles[one.target]}"
            files = self._save(one, f"{self.stem}.{name}", title, {})
            methods[name] = {**one.record, "class": one.target, "files": files}
        write_figure(self.folder / f"{self.stem}.overlay.png", self._side_by_side())
        record = {
            **self.explanation.record,
            "look": self.output.look,
            "methods": methods,
            "files": {"overlay": f"{self.stem}.overlay.png", **more},
        }
        write_text(self.folder / f"{self.stem}.json", to_json(record))

    def _name(self, one: Explained) -> str:
        """What tells the files of one heat map from those of the others."""
        several_classes = len(self.explanation.titles) > 1
        several_panels = len(self.explanation.found) > len(self.explanation.titles)
        parts = [one.panel.name] if several_panels or not several_classes else []
        return ".".join([*parts, f"class{one.target}"] if several_classes else parts)

    def _save(self, one: Explained, name: str, title: str, more: dict[str, str]) -> dict[str, str]:
        """The files of one heat map; returns their names."""
        merged = {
            part: {**self.explanation.record[part], **one.record[part]}
            for part in ("settings", "seconds")
        }
        more = {**more, **(self._bare(one, name) if self.output.bare else {})}
        files = one.result.save(
            self.folder,
            self.explanation.image,
            name=name,
            title=title,
            record={
                **self.explanation.record,
                **one.record,
                **merged,
                "look": self.output.look,
                "files": more,
            },
            cmap=self.output.colormap,
            alpha=self.output.alpha,
        )
        return {**{kind: path.name for kind, path in files.items()}, **more}

    def _bare(self, one: Explained, name: str) -> dict[str, str]:
        """Overlays without words: on what the model sees, and where that is known, on the image."""
        image, heatmap = self._flat(one)
        files = {"bare": f"{name}.bare.png"}
        _write_picture(self.folder / files["bare"], self._overlay(image, heatmap))
        pixels = self.explanation.picture.pixels
        if isinstance(pixels, np.ndarray):
            return files
        if self._crop is None:
            return files
        files["original"] = f"{name}.original.png"
        whole_image = np.asarray(pixels, dtype=np.float32) / 255
        placed = _placed(heatmap, self._crop, pixels.size)
        _write_picture(self.folder / files["original"], self._overlay(whole_image, placed))
        return files

    @cached_property
    def _crop(self) -> Any:
        """Where the network's input lies in the image; the same for all maps."""
        pixels: Any = self.explanation.picture.pixels  # an image
        return crop_of(self.prepared.loaded.transform, pixels.size)

    def _overlay(self, image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
        return overlay(image, heatmap, cmap=self.output.colormap, alpha=self.output.alpha)

    def _flat(self, one: Explained) -> tuple[np.ndarray, np.ndarray]:
        """Image and heat map; of a volume the slice where the first method has most heat."""
        image = self.explanation.image
        if image.ndim == 3:
            return image, one.heatmap
        best = busiest(self.explanation.found[0].heatmap)
        return image[best], one.heatmap[best]

    def _side_by_side(self) -> Figure:
        """Methods in columns, layers and classes in rows; of one method, layers in columns."""
        titles, found = self.explanation.titles, self.explanation.found
        one_method = len({one.panel.method_title for one in found}) == 1
        has_layers = bool(found[0].panel.layer_title)
        where = ""
        if self.explanation.image.ndim == 4:
            best = busiest(found[0].heatmap)
            where = f"slice {best + 1} of {len(self.explanation.image)}"
        image = self._flat(found[0])[0]
        maps: dict[str, list[np.ndarray]] = {}
        rows: dict[tuple[int, str], str] = {}
        for one in found:
            panel = one.panel
            label = [titles[one.target].replace(", ", "\n", 1)] if len(titles) > 1 else []
            if has_layers and one_method:
                rows[one.target, ""] = "\n".join(label)
                column = panel.layer_title
            else:
                rows[one.key] = "\n".join([*label, *([panel.layer_title] if has_layers else [])])
                column = panel.method_title
            maps.setdefault(column, []).append(self._flat(one)[1])
        look: dict[str, Any] = {"cmap": self.output.colormap, "alpha": self.output.alpha}
        head = [*(titles.values() if len(titles) == 1 else ()), *([where] if where else ())]
        images = np.stack([image] * len(rows))
        heatmaps = {name: np.stack(own) for name, own in maps.items()}
        labels = [label or "image" for label in rows.values()]
        return compare(images, heatmaps, labels=labels, title=", ".join(head) or None, **look)

    def _dicom(self) -> str:
        name = f"{self.stem}.overlay.dcm"
        path = self.explanation.path
        save_secondary_capture(
            self._overlay(*self._flat(self.explanation.found[0])),
            self.folder / name,
            source=path if is_dicom(path) else None,
            frame=self.explanation.frame,
            keep_identifiers=self.output.keep_identifiers,
        )
        return name

    # --- pages ---

    def _pages(self) -> dict[str, str]:
        """A page for each class and layer, that of the first under the image's own name."""
        pages = self.explanation.pages
        if not pages:
            raise ValueError("`html` must come with a method that has groups; got none.")
        first_target, first_layer = pages[0].shown.key
        names: dict[tuple[int, str], str] = {}
        kinds: dict[str, str] = {}
        for page in pages:
            target, layer = page.shown.key
            parts = [page.shown.panel.layer_name] if layer != first_layer else []
            parts += [f"class{target}"] if target != first_target else []
            names[page.shown.key] = ".".join([self.stem, *parts, "html"])
            kinds[".".join(["page", *parts])] = names[page.shown.key]
        for page in pages:
            write_text(self.folder / names[page.shown.key], self._page(page, names))
        return kinds

    def _alike(self, shown: Explained) -> list[str]:
        """What is said of a map that other classes have as well."""
        return [
            one.words(self.explanation.names)
            for one in self.explanation.alike
            if one.panel == shown.panel.name and shown.target in one.classes
        ]

    def _page(self, page: Page, names: Mapping[tuple[int, str], str]) -> str:
        shown, titles = page.shown, self.explanation.titles
        target, layer = shown.key
        result = page.levels[page.level]
        settings = {**self.explanation.record["settings"], **shown.record["settings"]}
        record = {**self.explanation.record, "settings": settings}
        record["seconds"] = {**record["seconds"], **shown.record["seconds"]}
        record["replay"] = {"path": result.replay, "reason": result.replay_reason}
        notes = [describe(shown.heatmap), *self._alike(shown)]
        if settings["weights"] == "random":
            notes.append("The weights are random, so the page means nothing.")
        others = dict.fromkeys(
            one.panel.method_title
            for one in self.explanation.found
            if one.panel.method_title != shown.panel.method_title
        )
        if others:
            notes.append(
                f"This page shows {shown.panel.method_title}; {self.stem}.overlay.png also shows "
                f"{', '.join(others)}."
            )
        entries = ("image_size", "frame", "settings", "replay", "versions", "seconds")
        return image_page(
            self.explanation.image,
            page.levels,
            page.level,
            title=self.explanation.path.name,
            subtitle=titles[target],
            classes=page.classes,
            pages=[(title, names[t, layer], t == target) for t, title in titles.items()],
            layers=[
                (words, name, words == layer) for (t, words), name in names.items() if t == target
            ],
            settings={name: record[name] for name in entries if name in record},
            notes=[note for note in notes if note],
            cmap=self.output.colormap,
            alpha=self.output.alpha,
        )


def _write_picture(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    with whole(path) as part:
        Image.fromarray(np.round(255 * picture).astype(np.uint8)).save(part, format="png")


def _placed(heatmap: np.ndarray, crop: Any, size: tuple[int, int]) -> np.ndarray:
    """A heat map `(h, w)` laid where it belongs in an image of a size; NaN around it."""
    (across, x0), (down, y0) = crop
    columns = (np.arange(size[0]) + 0.5 - x0) / across  # in the heat map's pixels
    rows = (np.arange(size[1]) + 0.5 - y0) / down
    height, width = heatmap.shape
    x1, x2, dx = _between(columns, width)
    y1, y2, dy = _between(rows, height)
    lines = heatmap[:, x1] * (1 - dx) + heatmap[:, x2] * dx  # (h, W)
    placed: np.ndarray = lines[y1] * (1 - dy)[:, None] + lines[y2] * dy[:, None]  # (H, W)
    placed[(rows < 0) | (rows > height)] = np.nan
    placed[:, (columns < 0) | (columns > width)] = np.nan
    return placed


def _between(places: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each place the pixel before it, the one behind it, and the share of the latter."""
    at = np.clip(places - 0.5, 0, length - 1)
    first = np.floor(at).astype(int)
    return first, np.minimum(first + 1, length - 1), at - first
