"""Optional libraries: imported where they are needed, with a word on what to install."""

from __future__ import annotations

import importlib
from typing import Any


def require(module: str, extra: str, purpose: str) -> Any:
    """Imports a library of an extra, or says which extra it is."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{module} is needed {purpose}; pip install 'captum-clustered[{extra}]'", name=module
        ) from error
