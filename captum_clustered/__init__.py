"""Clustered-CAM and its family for Captum: which part of the image made the model say so?"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_clustered.ablation import ClusteredAttribution as ClusteredAttribution
    from captum_clustered.ablation import ClusteredLayerAblation as ClusteredLayerAblation
    from captum_clustered.ablation import LayerAblationCam as LayerAblationCam
    from captum_clustered.egrad_cam import LayerEGradCam as LayerEGradCam
    from captum_clustered.group_cam import LayerGroupCam as LayerGroupCam
    from captum_clustered.optimization import (
        ClusteredLayerOptimization as ClusteredLayerOptimization,
    )
    from captum_clustered.score_cam import ClusteredLayerScore as ClusteredLayerScore
    from captum_clustered.score_cam import LayerScoreCam as LayerScoreCam

__version__ = "0.1.0"

# loaded when first asked for, so that `captum-clustered --help` need not wait for torch
_HOMES = {
    "ClusteredAttribution": "ablation",
    "ClusteredLayerAblation": "ablation",
    "LayerAblationCam": "ablation",
    "LayerEGradCam": "egrad_cam",
    "ClusteredLayerOptimization": "optimization",
    "ClusteredLayerScore": "score_cam",
    "LayerGroupCam": "group_cam",
    "LayerScoreCam": "score_cam",
}

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
