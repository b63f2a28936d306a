"""Metrics for heat maps of any library: faithfulness, curves, localisation, robustness.

A metric takes the model, the images and the heat maps and returns one number per image, mostly in
percent. Each convention in which published numbers differ is an argument, and :class:`Conventions`
records them. :mod:`captum_clustered.metrics.streaming` has the same metrics for streams of batches
and for several processes; it needs torchmetrics (``pip install 'captum-clustered[metrics]'``).
Confidence intervals are in :mod:`captum_clustered.statistics`.
"""

from captum_clustered.fills import Black, Blur
from captum_clustered.metrics.adcc import AdccParts, adcc, adcc_score, coherency
from captum_clustered.metrics.confidence import (
    Confidences,
    average_drop,
    average_gain,
    confidences,
    drop,
    drop_on_complement,
    gain,
    increase,
    increase_in_confidence,
    mean_area,
    wins,
)
from captum_clustered.metrics.curves import Curve, deletion, insertion
from captum_clustered.metrics.localization import (
    boxes_to_masks,
    energy_inside,
    iou,
    pointing_game,
)
from captum_clustered.metrics.maps import Maps, Status, prepare
from captum_clustered.metrics.robustness import infidelity, sensitivity_max
from captum_clustered.metrics.scoring import Conventions

__all__ = [
    "AdccParts",
    "Black",
    "Blur",
    "Confidences",
    "Conventions",
    "Curve",
    "Maps",
    "Status",
    "adcc",
    "adcc_score",
    "average_drop",
    "average_gain",
    "boxes_to_masks",
    "coherency",
    "confidences",
    "deletion",
    "drop",
    "drop_on_complement",
    "energy_inside",
    "gain",
    "increase",
    "increase_in_confidence",
    "infidelity",
    "insertion",
    "iou",
    "mean_area",
    "pointing_game",
    "prepare",
    "sensitivity_max",
    "wins",
]
