"""Which regions train, which choose, which are never seen: whole cases, balanced by label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["HOLDOUT", "Region", "folder_of", "read_regions", "split", "stopping"]

HOLDOUT = -1
"""The part that no fold sees; it plays the paper's Dataset B."""


@dataclass(frozen=True)
class Region:
    """A region of interest, as ``prepare`` wrote it.

    Attributes:
        name (str): Unlike all others.
        path (Path): The picture.
        mask (Path): Where the lesion is.
        case (str): The patient.
        label (int or None): 0 for benign, 1 for malignant, None where nobody told.
        fold (int or None): The part of the release's own cross-validation.
        tags (tuple[str, ...]): What else is known, such as ``"with_artifacts"``.
    """

    name: str
    path: Path
    mask: Path
    case: str
    label: int | None
    fold: int | None = None
    tags: tuple[str, ...] = ()


def folder_of(out: Path, network: str, masked: bool) -> Path:
    """Where a network is kept: beside the data sets; the one that saw masks has its own place."""
    return out / (f"{network}-masked" if masked else network)


def read_regions(folder: Path) -> list[Region]:
    """Reads ``lesions.csv``.

    Args:
        folder (Path): Where ``prepare`` wrote.

    Returns:
        *list*: The regions in the file's order.

    Raises:
        ValueError: If there is no such file, or no region in it.
    """
    table = folder / "lesions.csv"
    if not table.is_file():
        raise ValueError(
            f"`out` must be a folder with prepared regions; {table} does not exist. Run "
            "python -m benchmarks.ultrasound prepare first."
        )
    with table.open(encoding="utf-8", newline="") as file:
        regions = [
            Region(
                name=row["name"],
                path=folder / row["path"],
                mask=folder / row["mask"],
                case=row["case"],
                label=int(row["label"]) if row["label"] else None,
                fold=int(row["fold"]) if row["fold"] else None,
                tags=tuple(row["tags"].split()),
            )
            for row in csv.DictReader(file)
        ]
    if not regions:
        raise ValueError(f"`out` must have prepared regions; {table} has none.")
    return regions


def split(
    regions: Sequence[Region], folds: int = 10, holdout: float = 1 / 6, seed: int = 0
) -> dict[str, int]:
    """Deals labelled regions out, whole cases at a time, with the labels' shares kept.

    Where each of them has a fold of the release's, these are taken, and there is no hold-out.

    Args:
        regions (sequence of Region): All regions; those without a label are left out.
        folds (int, optional): Number of folds. Default: 10
        holdout (float, optional): Share of the regions that no fold sees; 0 for none. Default: 1/6
        seed (int, optional): Of the dealing. Default: 0

    Returns:
        *dict*: The fold of each region by its name, from 0; :data:`HOLDOUT` for those that no fold
        sees.

    Raises:
        ValueError: If a class has fewer cases than there are folds and the hold-out together, or
            the release's folds are not of all regions, are fewer than two, have a case in two of
            them or a part with one class only.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    known = [region for region in regions if region.label is not None]
    numbers = [region.fold for region in known if region.fold is not None]
    if numbers:
        _check_folds(known, numbers)
        official = sorted(set(numbers))
        return {r.name: official.index(r.fold) for r in known if r.fold is not None}
    labels = np.array([region.label for region in known])
    cases = np.array([region.case for region in known])
    for label in (0, 1):
        number = len(set(cases[labels == label]))
        if number < folds + 1:
            raise ValueError(
                "`folds` must be smaller than the number of cases of each class; label "
                f"{label} has {number} cases for {folds} folds and a hold-out. Choose fewer folds."
            )
    rest, apart = np.arange(len(known)), np.arange(0)
    if holdout:
        parts = StratifiedGroupKFold(max(2, round(1 / holdout)), shuffle=True, random_state=seed)
        rest, apart = next(parts.split(labels, labels, cases))
    found = {known[i].name: HOLDOUT for i in apart}
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(dealt.split(rest, labels[rest], cases[rest])):
        found.update({known[rest[i]].name: fold for i in test})
    return found


def stopping(
    regions: Sequence[Region], share: float = 1 / 7, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Parts training regions into those that teach and those that say when to stop.

    Args:
        regions (sequence of Region): With labels.
        share (float, optional): Share of the latter. Default: 1/7
        seed (int, optional): Of the dealing. Default: 0

    Returns:
        *tuple*: The positions of both in `regions`; no case is in both.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    labels = np.array([region.label for region in regions])
    cases = np.array([region.case for region in regions])
    number = min(max(2, round(1 / share)), *(len(set(cases[labels == k])) for k in (0, 1)))
    parts = StratifiedGroupKFold(number, shuffle=True, random_state=seed)
    teaching, telling = next(parts.split(labels, labels, cases))
    return teaching.tolist(), telling.tolist()


def _check_folds(regions: Sequence[Region], numbers: Sequence[int]) -> None:
    """Whether the folds of a release can be used."""
    fold_of: dict[str, int | None] = {}
    labels: dict[int | None, set[int | None]] = {}
    for region in regions:
        labels.setdefault(region.fold, set()).add(region.label)
        if fold_of.setdefault(region.case, region.fold) != region.fold:
            raise ValueError(
                "`fold` must keep each case together; case "
                f"{region.case} is in folds {fold_of[region.case]} and {region.fold}."
            )
    problem = ""
    if len(numbers) < len(regions):
        problem = f"be given for all regions or none; {len(regions) - len(numbers)} have none"
    elif len(labels) < 2:
        problem = f"have two parts at least; all are in {numbers[0]}"
    for fold, found in labels.items():
        if len(found) < 2:
            problem = problem or f"have both classes in each part; {fold} has one"
    if problem:
        raise ValueError(f"`fold` must {problem}. Correct the column, or remove it.")
