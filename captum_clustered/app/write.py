"""What the command line writes: pictures, arrays, records, pages and DICOM files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captum_clustered._files import whole, without_nan
from captum_clustered.app.explain import Demo, Explanation
from captum_clustered.models.medical import is_dicom, save_secondary_capture
from captum_clustered.page.image import image_page
from captum_clustered.visualization import compare, groups, overlay

__all__ = ["make_folder", "unique_stems", "write_demo", "write_explanation"]


def make_folder(out: Path) -> None:
    """Makes a folder for results, with those around it, unless it is there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"`out` must be a folder; got {out}, where a file is.") from error


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """A name for each image's results: its stem, with a number where another has it already.

    Example::

        >>> unique_stems([Path("a/cat.png"), Path("b/Cat.jpg"), Path("cat-2.png")])
        ['cat', 'Cat-3', 'cat-2']
    """
    stems = [path.stem.removesuffix(".nii") for path in paths]  # of .nii.gz
    taken = {stem.casefold() for stem in stems}  # some file systems do not tell Cat from cat
    seen: set[str] = set()
    names = []
    for stem in stems:
        name, number = stem, 2
        while name.casefold() in (seen if name == stem else seen | taken):
            name, number = f"{stem}-{number}", number + 1
        seen.add(name.casefold())
        names.append(name)
    return names


def write_explanation(
    explanation: Explanation,
    out: Path,
    stem: str,
    *,
    html: bool = False,
    dicom: bool = False,
    keep_identifiers: bool = False,
) -> Path:
    """Writes an explanation's files into a folder, the record last.

    Args:
        explanation (Explanation): From :func:`captum_clustered.app.explain.explain_image`.
        out (Path): The folder.
        stem (str): How the files' names begin.
        html (bool, optional): Whether to write a page; the explanation must have levels.
            Default: False
        dicom (bool, optional): Whether to save the overlay as DICOM too. Default: False
        keep_identifiers (bool, optional): Whether that names patient and study. Default: False

    Returns:
        *Path*: The overlay.
    """
    files = {
        "overlay": out / f"{stem}.overlay.png",
        "heatmap": out / f"{stem}.heatmap.npy",
        "map": out / f"{stem}.map.npy",
    }
    image, heatmap, where = _one_slice(explanation)
    figure = compare(image, {"Clustered-CAM": heatmap}, title=explanation.title + where)
    _save_figure(figure, files["overlay"])
    _save_array(explanation.heatmap, files["heatmap"])
    _save_array(explanation.map, files["map"])
    if dicom:
        files["dicom"] = out / f"{stem}.overlay.dcm"
        save_secondary_capture(
            overlay(image, heatmap),
            files["dicom"],
            source=explanation.path if is_dicom(explanation.path) else None,
            frame=explanation.frame,
            keep_identifiers=keep_identifiers,
        )
    if html:
        files["page"] = out / f"{stem}.html"
        _save_text(_page(explanation, stem), files["page"])
    record = dict(explanation.record, files={kind: path.name for kind, path in files.items()})
    text = json.dumps(without_nan(record), indent=2, ensure_ascii=False, allow_nan=False)
    _save_text(text + "\n", out / f"{stem}.json")
    return files["overlay"]


def _one_slice(explanation: Explanation) -> tuple[np.ndarray, np.ndarray, str]:
    """What a flat picture shows: of a volume the slice with the most heat."""
    image, heatmap = explanation.image, explanation.heatmap
    if heatmap.ndim == 2:
        return image, heatmap, ""
    best = int(np.nan_to_num(heatmap).sum((1, 2)).argmax())
    return image[best], heatmap[best], f", slice {best + 1} of {len(image)}"


def _page(explanation: Explanation, stem: str) -> str:
    record = explanation.record
    shown = ("image_size", "frame", "settings", "map", "replay", "versions", "seconds")
    notes = [record["heatmap"]["note"]]
    if record["settings"]["weights"] == "random":
        notes.append("The weights are random, so the page means nothing.")
    return image_page(
        explanation.image,
        explanation.levels,
        record["settings"]["clusters"],
        title=stem,
        subtitle=explanation.title,
        classes=explanation.classes,
        settings={name: record[name] for name in shown if name in record},
        notes=[note for note in notes if note],
    )


def write_demo(demo: Demo, out: Path) -> list[Path]:
    """Writes the pictures of a photograph; returns where they are."""
    stem = Path(demo.name).stem
    figures = {
        out / f"{stem}.compare.png": compare(demo.image, demo.heatmaps, title=demo.title),
        out / f"{stem}.groups.png": groups(demo.result, image=demo.image, title=demo.title),
    }
    for path, figure in figures.items():
        _save_figure(figure, path)
    return list(figures)


def _save_figure(figure: Any, path: Path) -> None:
    with whole(path) as part:
        figure.savefig(part, format="png")


def _save_text(text: str, path: Path) -> None:
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def _save_array(array: np.ndarray, path: Path) -> None:
    with whole(path) as part, part.open("wb") as file:
        np.save(file, array)
