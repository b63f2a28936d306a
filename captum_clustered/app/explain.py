"""The command `explain`: images through one or more methods, side by side."""

from __future__ import annotations

import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_clustered._files import digest_of, is_full, make_folder, require
from captum_clustered._pictures import check_look, counted
from captum_clustered.app.alike import Alike, alike
from captum_clustered.app.errors import USER_ERROR, is_the_users, one_line, report, say
from captum_clustered.app.levels import highest_classes, other_levels, shown_on_page
from captum_clustered.app.records import (
    describe_class,
    is_current,
    name_of,
    own_settings_of,
    settings_of,
    versions,
)
from captum_clustered.app.units import belongs_to, unique_stems
from captum_clustered.app.write import Output, write_explanation
from captum_clustered.evaluation.images import image_files
from captum_clustered.evaluation.job import find_methods, prepare_choices
from captum_clustered.evaluation.plan import TOP, Choices
from captum_clustered.evaluation.rows import AUTO, OWN, Variant, title_of
from captum_clustered.evaluation.variants import AnyMethod, as_maps, make_explainer, named, variants
from captum_clustered.explainers.ablation import ClusteredLayerAblation
from captum_clustered.explainers.base import LayerExplainer
from captum_clustered.explainers.layered import LayeredCam
from captum_clustered.explainers.results import Attribution, ClusteredAttribution
from captum_clustered.heatmap import scaled
from captum_clustered.methods import METHODS
from captum_clustered.models.images import Picture, read_picture
from captum_clustered.models.medical import is_dicom
from captum_clustered.models.prepared import Prepared, find_device
from captum_clustered.page.image import ClassScore
from captum_clustered.visualization import describe

__all__ = [
    "Explained",
    "Explainer",
    "Explanation",
    "Page",
    "Panel",
    "explain_all",
    "explain_image",
    "prepare_explainer",
    "spatial",
]

# --- the command ----------------------------------------------------------------------------------


def explain_all(
    images: Sequence[Path],
    choices: Choices,
    output: Output | None = None,
    *,
    resume: bool = False,
    debug: bool = False,
) -> int:
    """Explains images and writes what was found into the folder of the choices.

    Args:
        images (sequence of Path): Files, and folders of files.
        choices (Choices): All that can be chosen.
        output (Output, optional): How the results look and which files are written. Default: None
            (the defaults)
        resume (bool, optional): Whether images are left out whose results are there already, with
            the same settings. Default: False
        debug (bool, optional): Whether to print the traceback of every error. Default: False

    Returns:
        *int*: The exit code: 0, 2 if an image could not be explained for a reason of the user's, 1
        if there was any other error.

    Raises:
        ValueError: If a choice does not fit.
        ImportError: If a package is missing.
    """
    output = Output(html=choices.html) if output is None else output
    images = _expanded(images, choices.out)
    _check(images, output)
    explainer = prepare_explainer(choices, images)
    make_folder(choices.out, "out")
    if explainer.prepared.has_random_weights:
        report("the weights are random, so the pictures mean nothing", "warning")
    return _each(explainer, images, output, resume, debug)


def _expanded(images: Sequence[Path], out: Path) -> list[Path]:
    """The files, with those in folders in place of the folders."""
    return [
        file
        for path in images
        for file in (image_files(path, apart=out) if path.is_dir() else [path])
    ]


def _check(images: Sequence[Path], output: Output) -> None:
    check_look(output.colormap, output.alpha, "colormap")
    if output.html:
        require("jinja2", "html", "to write HTML pages")
    if output.dicom:
        require("pydicom", "dicom", "to write DICOM")
    if output.keep_identifiers and not output.dicom:
        raise ValueError("`--dicom-identifiers` must come with --dicom; it came alone.")
    strangers = [path for path in images if not is_dicom(path)] if output.keep_identifiers else []
    if strangers:
        raise ValueError(
            f"`--dicom-identifiers` must have DICOM files as images; got {strangers[0]}."
        )


def _each(
    explainer: Explainer, images: Sequence[Path], output: Output, resume: bool, debug: bool
) -> int:
    from tqdm import tqdm

    code, there, out = 0, 0, explainer.choices.out
    stems = unique_stems(images, partial(_is_free, explainer))
    with tqdm(total=len(images), unit="image", disable=len(images) < 2, file=sys.stderr) as bar:
        for path in images:
            try:
                stem = next(stems)
                if resume and is_current(explainer, output, path, out / f"{stem}.json"):
                    there += 1
                    continue
                explanation = explain_image(explainer, path, levels=output.html)
                overlay = write_explanation(explanation, explainer.prepared, out, stem, output)
            except Exception as error:  # the other images may be good
                users = is_the_users(error)
                code = code if code == 1 else (USER_ERROR if users else 1)
                if debug or not users:
                    bar.write("".join(traceback.format_exception(error)), file=sys.stderr, end="")
                line = one_line(error) if users else f"{type(error).__name__}: {one_line(error)}"
                report(line if str(path) in line else f"{path}: {line}")
                if is_full(error):  # so it is for the other images
                    break
            else:
                page = f" and {out / stem}.html" if output.html else ""
                words = [explanation.title, *explanation.groups, *explanation.place]
                say(f"{path}: {'; '.join(words)}, see {overlay}{page}")
                for line in explanation.notes:
                    report(f"{path}: {line}", "note")
            finally:
                bar.update()
    if there:
        say(f"{counted(there, 'image')} of {len(images)} had been explained before; see {out}")
    return code


def _is_free(explainer: Explainer, path: Path, name: str) -> bool:
    """Whether the results of an image may have a name: no other image's files have it."""
    out = explainer.choices.out
    try:
        records = [out / file for file in _records(explainer, name)]
        if not any(record.exists() for record in records):
            return True
        image, digest = name_of(path), digest_of(path)
        free = all(belongs_to(record, image, digest) for record in records)
    except OSError:
        return True  # nothing will be written, and the reason is said there
    if not free:
        report(f"{path}: {out} has results of another image under the name {name}", "note")
    return free


def _records(explainer: Explainer, name: str) -> list[str]:
    """The records that the results of that name may have; of its classes, those that are there."""
    panels, targets, out = explainer.panels, explainer.targets, explainer.choices.out
    several = [f".{panel.name}" for panel in panels] if len(panels) > 1 else []
    found = [f"{name}{part}.json" for part in ("", *several)]
    if len(targets) > 1 or any(str(target).startswith(TOP) for target in targets):
        begin = rf"{re.escape(name)}({'|'.join(map(re.escape, several))})"
        own = re.compile(rf"{begin}\.class\d+\.json")
        found += [file.name for file in out.iterdir() if own.fullmatch(file.name)]
    return found


# --- what is found out ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """A variant of a method at a layer, ready for images.

    Attributes:
        variant (Variant): Which.
        method (AnyMethod): From the registry or from outside.
        explainer (LayerAttribution): What the method made.
        prepared (Prepared): The model with this layer.
        name (str): Part of the files' names.
        method_title (str): The variant in words.
        layer_title (str): The layer in words; empty where there is one layer only.
        layer_name (str): The layer as part of the files' names; empty where there is one only.
    """

    variant: Variant
    method: AnyMethod
    explainer: Any
    prepared: Prepared
    name: str
    method_title: str
    layer_title: str = ""
    layer_name: str = ""

    @property
    def title(self) -> str:
        """Variant and layer in words."""
        return " at ".join(part for part in (self.method_title, self.layer_title) if part)

    @property
    def has_groups(self) -> bool:
        """Whether its results have groups that a page can show."""
        return isinstance(self.explainer, ClusteredLayerAblation)


@dataclass(frozen=True)
class Explainer:
    """A model, its layers, methods and classes, ready for images.

    Attributes:
        choices (Choices): What it was made from.
        prepared (Prepared): The model with its first layer.
        panels (tuple[Panel, ...]): The methods that stand side by side, layer by layer.
        targets (tuple[int or str, ...]): The classes: an index, ``"predicted"``, or ``"top:N"``
            for the N highest.
    """

    choices: Choices
    prepared: Prepared
    panels: tuple[Panel, ...]
    targets: tuple[int | str, ...]

    @property
    def has_layers(self) -> bool:
        """Whether there are several layers."""
        return bool(self.panels[0].layer_title)


@dataclass(frozen=True)
class Explained:
    """What one method says of one image.

    Attributes:
        panel (Panel): The method.
        target (int): The class.
        result (Attribution): What it returned.
        heatmap (array): float32 `(H, W)` in [0, 1]; of a volume `(D, H, W)`.
        record (dict): What the record says of it, beside what the result itself says.
    """

    panel: Panel
    target: int
    result: Attribution
    heatmap: np.ndarray
    record: dict[str, Any]

    @property
    def key(self) -> tuple[int, str]:
        """Class and layer: what a page is about."""
        return self.target, self.panel.layer_title


@dataclass(frozen=True)
class Page:
    """What the page of one class and layer shows.

    Attributes:
        shown (Explained): Clustered-CAM, or the first method with groups.
        levels (mapping): Its results by the number of groups.
        level (int): Which of them was asked for.
        classes (tuple[ClassScore, ...]): The highest classes, and the one that is explained.
    """

    shown: Explained
    levels: Mapping[int, ClusteredAttribution]
    level: int
    classes: tuple[ClassScore, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """What is known of one image before anything is written.

    Attributes:
        image (array): `(H, W, 3)` in [0, 1]; of a volume `(D, H, W, 3)`.
        found (tuple[Explained, ...]): What each method says of each class.
        titles (mapping): From each class to its name and probability.
        record (dict): What the record says of the image.
        picture (Picture): The content of the file.
        path (Path): The file.
        frame (int): The frame of a DICOM file.
        pages (tuple[Page, ...]): One for each class and layer, if pages are wanted.
        alike (tuple[Alike, ...]): Classes whose maps are nearly the same.
        names (mapping): From each class to its name and index.
    """

    image: np.ndarray
    found: tuple[Explained, ...]
    titles: Mapping[int, str]
    record: dict[str, Any]
    picture: Picture
    path: Path
    frame: int = 1
    pages: tuple[Page, ...] = ()
    alike: tuple[Alike, ...] = ()
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """All classes in a line."""
        return "; ".join(self.titles.values())

    @property
    def groups(self) -> list[str]:
        """The numbers of groups that were chosen for this image, in words."""
        chosen = {
            one.panel.title: one.record["clusters_chosen"]
            for one in self.found
            if "clusters_chosen" in one.record
        }
        alone = len({one.panel.name for one in self.found}) == 1
        return [
            f"{counted(number, 'group')}{'' if alone else f' for {title}'}"
            for title, number in chosen.items()
        ]

    @property
    def place(self) -> list[str]:
        """Which frame of a file with several is shown, in words."""
        n_frames = self.picture.frames
        several = self.picture.is_dicom and n_frames > 1
        return [f"frame {self.frame} of {n_frames}"] if several else []

    @property
    def notes(self) -> list[str]:
        """What one must know to read the maps."""
        wrong = [
            f"{one.panel.title} of {self.names[one.target]}: {words}"
            for one in self.found
            if not one.panel.method.control and (words := describe(one.heatmap)) is not None
        ]
        return [*wrong, *(one.words(self.names) for one in self.alike)]


def prepare_explainer(choices: Choices, images: Sequence[Path] = ()) -> Explainer:
    """Loads the model and settles all that does not depend on an image.

    Args:
        choices (Choices): What was chosen.
        images (sequence of Path, optional): The files to come; the first volume among them tells
            the size of the input. Default: ()

    Returns:
        *Explainer*: The model on its device, with an explainer for each variant.

    Raises:
        ValueError: If a choice does not fit.
        ImportError: If a package is missing.
    """
    if "given" in choices.targets:
        raise ValueError(
            "`target` must be predicted, an index or a name where no data say the class; got given."
        )
    methods = find_methods(choices.methods, METHODS)
    wanted = variants(choices, methods)
    prepared = prepare_choices(choices, images, find_device(choices.device))
    targets = tuple(target for words in choices.targets for target in _targets(prepared, words))
    mask_fill = None if choices.mask_fill == OWN else prepared.fill(choices.mask_fill, "mask_fill")
    places = {_layer_names(prepared): prepared}
    for layer in choices.layers[1:]:
        there = prepared.at(layer)
        places.setdefault(_layer_names(there), there)
    panels = []
    for (layer_name, layer_title), there in places.items():
        for v in wanted:
            method = methods[v.method]
            explainer = make_explainer(
                v,
                method,
                there,
                clusterer=choices.clusterer,
                seed=choices.seed,
                mask_fill=mask_fill,
            )
            name, title = _names(v, wanted)
            panel = Panel(v, method, explainer, there, name, title)
            if len(places) > 1:
                name = layer_name if len(wanted) == 1 else f"{name}.{layer_name}"
                panel = replace(panel, name=name, layer_title=layer_title, layer_name=layer_name)
            panels.append(panel)
    if choices.html and not any(panel.has_groups for panel in panels):
        raise ValueError(
            "`html` must come with a method whose groups can be shown, such as clustered-cam; got "
            f"{', '.join(choices.methods)}."
        )
    return Explainer(choices, prepared, tuple(panels), targets)


def _targets(prepared: Prepared, words: str) -> list[int | str]:
    """The class of that name, which may have commas; else those between the commas."""
    parts = [word.strip() for word in words.split(",")]
    try:
        return [_target(prepared, words)]
    except ValueError:
        if len(parts) == 1:
            raise
    return [_target(prepared, word) for word in parts]


def _target(prepared: Prepared, word: str) -> int | str:
    """An index, or what depends on the image."""
    if word == "predicted":
        return word
    if not word.startswith(TOP):
        return prepared.target(word)
    count = word.removeprefix(TOP)
    if not count.isdecimal() or not 1 <= int(count) <= prepared.n_classes:
        raise ValueError(
            f"`target` must be top:N with N from 1 to {prepared.n_classes}, the number of classes; "
            f"got {word!r}."
        )
    return word


def _classes(targets: Sequence[int | str], scores: Tensor) -> tuple[int, ...]:
    """The classes of an image with scores `(n_classes,)`, each once."""
    order = scores.argsort(descending=True, stable=True).tolist()
    found: list[int] = []
    for target in targets:
        if isinstance(target, int):
            found.append(target)
        else:
            found += order[: 1 if target == "predicted" else int(target.removeprefix(TOP))]
    return tuple(dict.fromkeys(found))


def _names(variant: Variant, all_variants: Sequence[Variant]) -> tuple[str, str]:
    """Of a variant, what the files and the picture call it; a method's name where that will do."""
    alone = sum(other.method == variant.method for other in all_variants) == 1
    shown = Variant(variant.method) if alone else variant
    return _file_part(str(shown).replace("=", "")), title_of(shown)


def _layer_names(prepared: Prepared) -> tuple[str, str]:
    """Of a layer, what the files and the picture call it."""
    layer = prepared.layer
    if layer.at_input:
        return f"{_file_part(layer.name)}.input", f"the input of {layer.name}"
    return _file_part(layer.name), layer.name


def _file_part(words: str) -> str:
    return re.sub(r"[^\w.-]+", "-", words)


def explain_image(explainer: Explainer, path: Path, *, levels: bool = False) -> Explanation:
    """Explains one image file by each method.

    Args:
        explainer (Explainer): From :func:`prepare_explainer`.
        path (Path): The image.
        levels (bool, optional): Whether the first method with groups also explains it with other
            numbers of groups, for the page. Default: False

    Returns:
        *Explanation*: The heat maps and the record of how they were made.

    Raises:
        ValueError: If the file cannot be read, or the layer gives no maps with the image's axes.
    """
    prepared, frame = explainer.prepared, explainer.choices.frame
    begin = time.perf_counter()
    picture = read_picture(path, frame)
    x = prepared.input(picture)
    read = time.perf_counter()
    scores = prepared.scores(x)[0].float().cpu()
    seconds = {"read": read - begin, "forward": time.perf_counter() - read}
    _check_finite(x, scores)
    targets = _classes(explainer.targets, scores)
    titles = {target: prepared.title(scores, target) for target in targets}
    if prepared.has_random_weights:
        titles = {target: f"{title}, random weights" for target, title in titles.items()}
    found = tuple(
        _explained(explainer, panel, x, target) for target in targets for panel in explainer.panels
    )
    described = [describe_class(prepared, scores, target) for target in targets]
    same = tuple(alike(found))
    record = {
        "image": name_of(path),
        "image_digest": digest_of(path),
        "image_size": picture.size,
        **({"frame": {"number": frame, "of": picture.frames}} if picture.is_dicom else {}),
        "settings": settings_of(explainer),
        "versions": versions(),
        **({"target": described[0]} if len(described) == 1 else {"targets": described}),
        **({"alike": [one.record for one in same]} if len(targets) > 1 else {}),
        "seconds": seconds,
    }
    return Explanation(
        image=prepared.display(picture),
        found=found,
        titles=titles,
        record=record,
        picture=picture,
        path=path,
        frame=frame,
        pages=tuple(_pages(found, x, scores)) if levels else (),
        alike=same,
        names={
            target: f"{prepared.class_name(target) or 'class'} ({target})" for target in targets
        },
    )


def _check_finite(x: Tensor, scores: Tensor) -> None:
    """Refuses scores of which nothing follows; some models give -inf for a class that is barred."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError(
            "the model's input must be finite; its values are NaN or infinite. Look at the file, "
            "and at the transform."
        )
    if bool(scores.isnan().any() | scores.isposinf().any() | scores.isneginf().all()):
        raise ValueError(
            f"the model's scores must be finite; {int((~scores.isfinite()).sum())} of "
            f"{len(scores)} are not. Look at the weights, and at the type of their numbers."
        )


def _explained(explainer: Explainer, panel: Panel, x: Tensor, target: int) -> Explained:
    at_input = {"attribute_to_layer_input": True} if panel.prepared.layer.at_input else {}
    begin = time.perf_counter()
    ours = isinstance(panel.explainer, (LayerExplainer, LayeredCam))
    with named(panel.method):
        if ours:
            result = panel.explainer.explain(x, target, **at_input)
        else:
            found = panel.explainer.attribute(x, target=target, **at_input)
    if not ours:
        result = Attribution(as_maps(found, x, panel.variant.method))
    heat = spatial(result.attributions, x)
    record: dict[str, Any] = {
        "settings": own_settings_of(explainer, panel),
        "seconds": {"explain": time.perf_counter() - begin},
    }
    if panel.variant.clusters == AUTO and isinstance(getattr(result, "valid", None), Tensor):
        record["clusters_chosen"] = int(result.valid[0].sum())
    heatmap = scaled(heat[0, 0], x.shape[2:]).numpy()
    return Explained(panel, target, result, heatmap, record)


def _pages(found: Sequence[Explained], x: Tensor, scores: Tensor) -> Iterator[Page]:
    """A page for each class and layer."""
    for key in dict.fromkeys(one.key for one in found):
        shown = shown_on_page([one for one in found if one.key == key])
        if shown is not None:
            level, by_level = other_levels(shown, x)
            classes = highest_classes(shown.panel.prepared, scores, shown.target)
            yield Page(shown, by_level, level, classes)


def spatial(attributions: Any, x: Tensor) -> Tensor:
    """Checks that a heat map has the axes of the input.

    Args:
        attributions (Tensor or tuple[Tensor, ...]): What an explainer gave.
        x (Tensor): The model's input, `(1, C, *spatial)`.

    Returns:
        *Tensor*: The heat map, `(1, 1, *spatial)`.

    Raises:
        ValueError: If there are several tensors, or the axes are others.
    """
    if isinstance(attributions, tuple):
        raise ValueError(
            f"`layer` must give one tensor; it gives {len(attributions)}. Choose another."
        )
    if attributions.ndim != x.ndim:
        dimensions = "two" if x.ndim == 4 else "three"
        raise ValueError(
            f"`layer` must give maps of {dimensions} dimensions; its heat map has shape "
            f"{tuple(attributions.shape)}. Choose another."
        )
    heat: Tensor = attributions.detach()
    return heat
