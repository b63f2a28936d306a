"""Models by name, pictures from files, and a model that is ready to be explained.

The command line and the evaluation build on this. You do not need it if you already have a model in
Python.
"""

from captum_clustered.models.images import read_image
from captum_clustered.models.loading import WEIGHTS, LoadedModel, load, resolve_target
from captum_clustered.models.prepared import Prepared, prepare

__all__ = [
    "WEIGHTS",
    "LoadedModel",
    "Prepared",
    "load",
    "prepare",
    "read_image",
    "resolve_target",
]
