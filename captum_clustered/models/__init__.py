"""Models by name, images from files, classes by name: what the command line builds on.

None of this is needed to use the library from Python on a model that is already there.
"""

from captum_clustered.models.loading import (
    WEIGHTS,
    LoadedModel,
    load,
    read_image,
    resolve_target,
)

__all__ = ["WEIGHTS", "LoadedModel", "load", "read_image", "resolve_target"]
