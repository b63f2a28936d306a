"""Clustered-CAM and its family for Captum: which part of the image made the model say so?"""

from captum_clustered.ablation import ClusteredAttribution, ClusteredLayerAblation

__all__ = ["ClusteredAttribution", "ClusteredLayerAblation", "__version__"]

__version__ = "0.1.0"
