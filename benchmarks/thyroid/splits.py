"""Which regions train, which choose, which are never seen: whole cases, balanced by label."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["HOLDOUT", "Region", "read_regions", "split"]

HOLDOUT = -1
"""The part that no fold sees; it plays the paper's Dataset B."""


@dataclass(frozen=True)
class Region:
    """A region of interest, as ``prepare`` wrote it.

    Attributes:
        name (str): Unlike all others.
        path (Path): The picture.
        mask (Path): Where the nodule is.
        case (str): The patient.
        label (int or None): 0 for benign, 1 for malignant, None where nobody told.
        tags (tuple[str, ...]): What else is known, such as ``"with_artifacts"``.
    """

    name: str
    path: Path
    mask: Path
    case: str
    label: int | None
    tags: tuple[str, ...] = ()


def read_regions(folder: Path) -> list[Region]:
    """Reads ``nodules.csv``.

    Args:
        folder (Path): Where ``prepare`` wrote.

    Returns:
        *list*: The regions in the file's order.

    Raises:
        ValueError: If there is no such file, or no region in it.
    """
    table = folder / "nodules.csv"
    if not table.is_file():
        raise ValueError(
            f"`out` must be a folder with prepared regions; {table} does not exist. Run "
            "python -m benchmarks.thyroid prepare first."
        )
    with table.open(encoding="utf-8", newline="") as file:
        regions = [
            Region(
                name=row["name"],
                path=folder / row["path"],
                mask=folder / row["mask"],
                case=row["case"],
                label=int(row["label"]) if row["label"] else None,
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

    Args:
        regions (sequence of Region): All regions; those without a label are left out.
        folds (int, optional): Number of folds. Default: 10
        holdout (float, optional): Share of the regions that no fold sees. Default: 1/6
        seed (int, optional): Of the dealing. Default: 0

    Returns:
        *dict*: The fold of each region by its name; :data:`HOLDOUT` for those that no fold sees.

    Raises:
        ValueError: If a class has fewer cases than there are folds and the hold-out together.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    known = [region for region in regions if region.label is not None]
    labels = np.array([region.label for region in known])
    cases = np.array([region.case for region in known])
    for label in (0, 1):
        number = len(set(cases[labels == label]))
        if number < folds + 1:
            raise ValueError(
                "`folds` must be smaller than the number of cases of each class; label "
                f"{label} has {number} cases for {folds} folds and a hold-out. Choose fewer folds."
            )
    parts = StratifiedGroupKFold(max(2, round(1 / holdout)), shuffle=True, random_state=seed)
    rest, apart = next(parts.split(labels, labels, cases))
    found = {known[i].name: HOLDOUT for i in apart}
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(dealt.split(rest, labels[rest], cases[rest])):
        found.update({known[rest[i]].name: fold for i in test})
    return found
