"""Clustered-CAM and its family for Captum: which part of the image made the model say so?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_clustered.explainers.ablation import (
        ClusteredLayerAblation as ClusteredLayerAblation,
    )
    from captum_clustered.explainers.ablation import LayerAblationCam as LayerAblationCam
    from captum_clustered.explainers.egrad_cam import LayerEGradCam as LayerEGradCam
    from captum_clustered.explainers.grad_cam import LayerHiResCam as LayerHiResCam
    from captum_clustered.explainers.group_cam import LayerGroupCam as LayerGroupCam
    from captum_clustered.explainers.layered import LayerCalibratedCam as LayerCalibratedCam
    from captum_clustered.explainers.layered import LayeredCam as LayeredCam
    from captum_clustered.explainers.opti_cam import (
        ClusteredLayerOptimization as ClusteredLayerOptimization,
    )
    from captum_clustered.explainers.results import ClusteredAttribution as ClusteredAttribution
    from captum_clustered.explainers.score_cam import ClusteredLayerScore as ClusteredLayerScore
    from captum_clustered.explainers.score_cam import LayerScoreCam as LayerScoreCam

__version__ = "0.1.0"

# loaded when first asked for, so that `captum-clustered --help` need not wait for torch
_HOMES = {
    "ClusteredAttribution": "explainers.results",
    "ClusteredLayerAblation": "explainers.ablation",
    "LayerAblationCam": "explainers.ablation",
    "LayerEGradCam": "explainers.egrad_cam",
    "ClusteredLayerOptimization": "explainers.opti_cam",
    "LayerCalibratedCam": "explainers.layered",
    "LayeredCam": "explainers.layered",
    "ClusteredLayerScore": "explainers.score_cam",
    "LayerGroupCam": "explainers.group_cam",
    "LayerHiResCam": "explainers.grad_cam",
    "LayerScoreCam": "explainers.score_cam",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
