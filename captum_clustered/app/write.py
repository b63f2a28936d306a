"""What the command line writes: results, pages and DICOM files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captum_clustered._files import to_json, write_figure, write_text
from captum_clustered._pictures import busiest
from captum_clustered.models.medical import is_dicom, save_secondary_capture
from captum_clustered.page.image import image_page
from captum_clustered.visualization import compare, describe, overlay

if TYPE_CHECKING:
    from captum_clustered.app.explain import Explained, Explanation

__all__ = ["unique_stems", "write_explanation"]


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Names for the results of images: the file's stem, with a number if another file has it.

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
    """Writes the files of an explanation into a folder, the record last.

    With one method these are what :meth:`captum_clustered.explainers.results.Attribution.save`
    writes under the name ``STEM``. With several, each method has these files under the name
    ``STEM.METHOD``; ``STEM.overlay.png`` shows all side by side, and ``STEM.json`` lists them.

    Args:
        explanation (Explanation): From :func:`captum_clustered.app.explain.explain_image`.
        out (Path): The folder; it is there.
        stem (str): The beginning of the files' names.
        html (bool, optional): Whether to write a page. Default: False
        dicom (bool, optional): Whether to save the overlay of the first method as DICOM too.
            Default: False
        keep_identifiers (bool, optional): Whether that names patient and study. Default: False

    Returns:
        *Path*: The overlay.

    Raises:
        ValueError: If a page is wanted, and no method has groups.
    """
    more: dict[str, str] = {}
    if dicom:
        more["dicom"] = f"{stem}.overlay.dcm"
        _write_dicom(explanation, out / more["dicom"], keep_identifiers)
    if html:
        more["page"] = f"{stem}.html"
        write_text(out / more["page"], _page(explanation, stem))
    if len(explanation.found) == 1:
        one = explanation.found[0]
        record = {**explanation.record, **_merged(explanation, one), "files": more}
        files = one.result.save(
            out, explanation.image, name=stem, title=explanation.title, record=record
        )
        return files["overlay"]
    return _write_several(explanation, out, stem, more)


def _write_several(explanation: Explanation, out: Path, stem: str, more: dict[str, str]) -> Path:
    methods = {}
    for one in explanation.found:
        files = one.result.save(
            out,
            explanation.image,
            name=f"{stem}.{one.panel.name}",
            title=f"{one.panel.title}: {explanation.title}",
            record={**explanation.record, **_merged(explanation, one)},
        )
        names = {kind: path.name for kind, path in files.items()}
        methods[one.panel.name] = {**one.record, "files": names}
    image, heatmaps, where = _one_slice(explanation)
    path = out / f"{stem}.overlay.png"
    write_figure(path, compare(image, heatmaps, title=explanation.title + where))
    files_of_all = {"overlay": path.name, **more}
    record = {**explanation.record, "methods": methods, "files": files_of_all}
    write_text(out / f"{stem}.json", to_json(record))
    return path


def _merged(explanation: Explanation, one: Explained) -> dict[str, Any]:
    """The entries to which the image and the method both add."""
    return {
        name: {**explanation.record[name], **one.record[name]} for name in ("settings", "seconds")
    }


def _write_dicom(explanation: Explanation, path: Path, keep_identifiers: bool) -> None:
    image, heatmaps, _ = _one_slice(explanation)
    save_secondary_capture(
        overlay(image, next(iter(heatmaps.values()))),
        path,
        source=explanation.path if is_dicom(explanation.path) else None,
        frame=explanation.frame,
        keep_identifiers=keep_identifiers,
    )


def _one_slice(explanation: Explanation) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """What a flat picture shows; of a volume, the slice where the first method has most heat."""
    image = explanation.image
    heatmaps = {one.panel.title: one.heatmap for one in explanation.found}
    if image.ndim == 3:
        return image, heatmaps, ""
    first = explanation.found[0].heatmap
    best = busiest(first)
    where = f", slice {best + 1} of {len(image)}"
    return image[best], {title: heat[best] for title, heat in heatmaps.items()}, where


def _page(explanation: Explanation, stem: str) -> str:
    shown = explanation.shown
    if shown is None:
        raise ValueError("`html` must come with a method that has groups; got none.")
    record = {**explanation.record, **_merged(explanation, shown)}
    result = explanation.levels[explanation.level]
    record["replay"] = {"path": result.replay, "reason": result.replay_reason}
    notes = [describe(shown.heatmap)]
    if record["settings"]["weights"] == "random":
        notes.append("The weights are random, so the page means nothing.")
    others = [one.panel.title for one in explanation.found if one is not shown]
    if others:
        notes.append(
            f"This page shows {shown.panel.title}; {stem}.overlay.png also shows "
            f"{', '.join(others)}."
        )
    names = ("image_size", "frame", "settings", "replay", "versions", "seconds")
    return image_page(
        explanation.image,
        explanation.levels,
        explanation.level,
        title=stem,
        subtitle=explanation.title,
        classes=explanation.classes,
        settings={name: record[name] for name in names if name in record},
        notes=[note for note in notes if note],
    )
