"""A model that is ready: what is checked once, and the steps from a picture to scores."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.fills import Black
from captum_clustered.models import LoadedModel, Prepared, prepare
from captum_clustered.models.images import Picture, example_of, probe, read_picture


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()


def small(image):
    pixels = torch.from_numpy(np.array(image.resize((8, 6)))).movedim(2, 0)
    return (pixels / 255 - 0.5) / 0.25


def loaded(model=None, transform=small, names=("cat", "cow", "dog")):
    return LoadedModel(model or network(), transform, lambda image: None, names, "own", "as made")


def volumes():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    return loaded(model.eval(), lambda volume: torch.from_numpy(volume)[None], None)


def test_everything_a_caller_needs_is_there():
    prepared = prepare(loaded(), device="cpu")
    assert isinstance(prepared, Prepared)
    assert (prepared.layer.name, prepared.n_classes, prepared.device) == ("1", 3, "cpu")
    assert not prepared.gives_probabilities
    assert not prepared.has_random_weights
    x = prepared.input(Picture(Image.new("RGB", (20, 20), "white")))
    assert x.shape == (1, 3, 6, 8)
    assert x.unique().item() == 2
    scores = prepared.scores(x)
    torch.testing.assert_close(scores, prepared.model(x).detach())
    assert prepared.target("predicted", scores[0]) == scores[0].argmax()
    assert prepared.target("DOG") == prepared.target("2") == 2
    assert prepared.class_name(1) == "cow"
    assert prepared.probability(scores[0], 1) == (
        scores[0].softmax(0)[1].item(),
        "softmax of the scores",
    )
    assert prepared.probability(torch.tensor([0.25, 0.75]), 1)[0] == 0.75


def test_the_explainer_reads_the_layer_as_it_was_found():
    prepared = prepare(loaded(), layer="0", device="cpu")
    cam = prepared.explainer(ClusteredLayerAblation, n_clusters=2)
    assert (cam.layer, cam.channel_dim, cam.reshape_transform) == (prepared.model[0], 1, None)
    assert cam.clusterer.n_clusters == 2


def test_random_weights_follow_the_seed_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    first, second, other = (
        prepare("squeezenet1_1", weights="none", device="cpu", seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    weights = [next(one.model.parameters()) for one in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert first.has_random_weights


def test_fills_are_measured_on_the_transform():
    prepared = prepare(loaded(), device="cpu")
    assert prepared.fill("black") == Black((0.5,) * 3, (0.25,) * 3)
    assert (prepared.fill("mean"), prepared.fill("blur")) == ("mean", "blur")
    with pytest.raises(ValueError, match=r"`mask_fill` must be one of .*; got 'white'"):
        prepared.fill("white", "mask_fill")
    plain = prepare(loaded(transform=lambda image: small(image) / 4 + 0.5), device="cpu")
    assert plain.fill("black") == Black((0.0,) * 3, (1.0,) * 3)
    with pytest.raises(ValueError, match=r"`fill` must be blur .*; got mean"):
        plain.fill("mean")


def test_a_volume_has_its_own_black():
    example = np.zeros((5, 6, 7), np.float32)
    prepared = prepare(volumes(), example=example, device="cpu")
    assert prepared.layer.name == "1"
    assert prepared.fill("black") == Black((0.0,), (1.0,))
    shown = prepared.display(probe(example))
    assert shown.shape == (5, 6, 7, 3)
    assert (shown.min(), shown.max()) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transform": lambda image: 3}, r"must return a tensor \(C, H, W\); got int"),
        ({"transform": lambda image: torch.ones(3)}, r"\(C, H, W\); got \(3,\)"),
        ({"transform": lambda image: image.nothing}, r"PIL image .* it failed \(AttributeError: "),
        ({"model": nn.Conv2d(3, 4, 3)}, r"examples \(1\); got \(1, 4, 4, 6\)"),
        ({"model": nn.Conv2d(5, 4, 3)}, r"`model` failed on an input of shape \(1, 3, 6, 8\) \(Ru"),
    ],
)
def test_what_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        prepare(loaded(**changes), device="cpu")


def test_a_transform_for_images_cannot_take_a_volume():
    with pytest.raises(ValueError, match=r"float32 array .* it failed .*Use --model"):
        prepare(loaded(), example=np.zeros((2, 2, 2), np.float32), device="cpu")


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", ""])
def test_a_device_that_is_none(name):
    with pytest.raises(ValueError, match=r"`device` must be one of auto, cpu, cuda; got"):
        prepare("no such model", device=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"`device` {name} is not available here; use auto or cpu"):
        prepare("no such model", device=name)


def test_probabilities_are_noticed():
    assert prepare(loaded(nn.Sequential(network(), nn.Softmax(1))), device="cpu", layer="0.1")
    certain = prepare(loaded(nn.Sequential(network(), nn.Softmax(1))), device="cpu", layer="0.1")
    assert certain.gives_probabilities


def _ends_in(*, classes=3, squash=None, bias=0.0):
    net = network()
    net[-1] = nn.Linear(net[-1].in_features, classes)
    nn.init.constant_(net[-1].bias, bias)
    return nn.Sequential(net, squash) if squash is not None else net


@pytest.mark.parametrize(
    ("settings", "score", "of", "words"),
    [
        ({"classes": 1, "bias": -2.0}, "softmax", torch.sigmoid, "sigmoid of the score"),
        ({"classes": 1}, "identity", None, "none: the score is taken as it is"),
        ({"classes": 1, "squash": nn.Sigmoid()}, "softmax", lambda s: s, "the score: the model"),
        ({"squash": nn.Sigmoid()}, "softmax", lambda s: s, "the score: the model returns prob"),
        ({"squash": nn.Softmax(1)}, "sigmoid", lambda s: s, "the score: the model returns prob"),
        ({}, "sigmoid", torch.sigmoid, "sigmoid of the score"),
        ({}, "softmax", lambda s: s.softmax(0), "softmax of the scores"),
        ({}, "identity", None, "none: the score is taken as it is"),
    ],
)
def test_what_is_no_probability_is_not_called_so(settings, score, of, words):
    torch.manual_seed(0)
    model = loaded(_ends_in(**settings).eval(), names=None)
    layer = "0.1" if "squash" in settings else "1"
    prepared = prepare(model, device="cpu", layer=layer, score=score)
    scores = prepared.scores(torch.rand(1, 3, 6, 8))[0]
    value, how = prepared.probability(scores, 0)
    assert how.startswith(words)
    if of is None:
        assert value is None
        assert prepared.title(scores, 0) == f"class (0), score {float(scores[0]):.3g}"
    else:
        assert value == pytest.approx(float(of(scores)[0]))
        assert prepared.title(scores, 0) == f"class (0), probability {value:.2f}"


def test_what_is_said_to_be_a_probability_is_checked():
    prepared = prepare(loaded(), device="cpu", score="probabilities")
    with pytest.raises(ValueError, match=r"`score`='probabilities' must have scores in \[0, 1\]"):
        prepared.probability(torch.tensor([-0.3, 0.4, 2.0]), 0)


class Given(nn.Module):
    """What a function makes of the scores."""

    def __init__(self, func, classes=3):
        super().__init__()
        self.net, self.func = _ends_in(classes=classes), func

    def forward(self, x):
        return self.func(self.net(x))


@pytest.mark.parametrize(("classes", "score"), [(1, "sigmoid"), (3, "softmax")])
def test_what_may_be_a_probability_is_not_squashed_in_silence(classes, score):
    model = loaded(Given(lambda scores: scores.detach().sigmoid(), classes).eval(), names=None)
    words = f"score='{score}' squashes them a second time: pass score='probabilities'"
    with pytest.warns(UserWarning, match=words):
        prepare(model, device="cpu", layer="net.1")
    assert prepare(model, device="cpu", layer="net.1", score="probabilities").n_classes == classes
    assert prepare(model, device="cpu", layer="net.1", score="identity").n_classes == classes


@pytest.mark.parametrize(
    ("func", "got", "remedy"),
    [
        (lambda s: {"logits": s}, "dict", "self.model(x)['logits']"),
        (lambda s: (s, s), "tuple", "self.model(x)[0]"),
        (lambda s: s[:, 0], "(1,)", "self.model(x).reshape(len(x), 1)"),
        (lambda s: s[:, None], "(1, 1, 3)", "self.model(x).flatten(1)"),
        (lambda s: s[:, :, None, None], "(1, 3, 1, 1)", "self.model(x).flatten(1)"),
        (
            lambda s: s[:, :, None].expand(-1, -1, 4),
            "(1, 3, 4)",
            "self.model(x).flatten(2).mean(2)",
        ),
        (
            lambda s: s.repeat(5, 1),
            "(5, 3)",
            "self.model(x).reshape(len(x), -1, n_classes).mean(1)",
        ),
        (lambda s: s + 0j, "complex (1, 3)", "self.model(x).abs()"),
    ],
)
def test_what_is_no_row_of_scores_says_how_to_make_one(func, got, remedy):
    words = f"as many rows as examples (1); got {got}. Wrap it in a module whose forward gives, "
    model = loaded(Given(func).eval(), names=None)
    with pytest.raises(ValueError, match=re.escape(f"{words}for example, `{remedy}`.")):
        prepare(model, device="cpu", layer="net.1")


# Pictures


def test_the_file_says_what_it_is(tmp_path):
    Image.new("RGB", (4, 3)).save(tmp_path / "a.png")
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4)))
    image, volume = (read_picture(tmp_path / name) for name in ("a.png", "a.npy"))
    assert image.size == {"width": 4, "height": 3}
    assert volume.size == {"depth": 2, "height": 3, "width": 4}
    assert volume.pixels.dtype == np.float32
    with pytest.raises(ValueError, match=r"`frame` must be 1 for .* not DICOM; got 2 for .*a\.png"):
        read_picture(tmp_path / "a.png", 2)


def test_the_example_is_the_first_volume_that_can_be_read(tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no array")
    np.save(tmp_path / "good.npy", np.ones((2, 3, 4)))
    found = example_of([tmp_path / "bad.npy", tmp_path / "good.npy"])
    assert found.shape == (2, 3, 4)
    assert not found.any()
    assert example_of([tmp_path / "a.png"]) is None
    with pytest.raises(ValueError, match=r"must be all volumes or none; got .*npy and .*png"):
        example_of([tmp_path / "good.npy", tmp_path / "a.png"])
    with pytest.raises(ValueError, match=r"bad\.npy cannot be read"):
        example_of([tmp_path / "bad.npy"])
