"""Insertion and deletion against hand-made numbers and a literal loop."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from captum_clustered import _layout
from captum_clustered.fills import fill_image
from captum_clustered.metrics import (
    Black,
    Blur,
    Status,
    confidences,
    deletion,
    insertion,
    scoring,
)


def brightness(x):
    return x.sum((1, 2, 3))


IMAGE = torch.tensor([[[[0.1, 0.2], [0.3, 0.4]]]])


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3)).eval()


@pytest.fixture
def batch():
    return torch.randn(3, 2, 4, 4), torch.rand(3, 1, 4, 4)


def test_curves_by_hand():
    kept = {"score": "identity", "fill": 0.0, "step": 1}
    best = insertion(brightness, IMAGE, IMAGE, **kept)
    assert best.fractions.tolist() == [0, 0.25, 0.5, 0.75, 1]
    torch.testing.assert_close(best.scores.float(), torch.tensor([[0.0, 0.4, 0.7, 0.9, 1.0]]))
    assert best.area.tolist() == pytest.approx([62.5])
    worst = insertion(brightness, IMAGE, -IMAGE, **kept)
    assert worst.area.tolist() == pytest.approx([37.5])
    # taking out is putting in, read from the end
    assert deletion(brightness, IMAGE, IMAGE, **kept).area.tolist() == pytest.approx([37.5])
    assert deletion(brightness, IMAGE, -IMAGE, **kept).area.tolist() == pytest.approx([62.5])


def test_the_last_step_may_be_shorter():
    curve = deletion(brightness, IMAGE, IMAGE, score="identity", step=3)
    assert curve.fractions.tolist() == [0, 0.75, 1]
    assert curve.scores.flatten().tolist() == pytest.approx([1, 0.1, 0])
    assert curve.area.tolist() == pytest.approx([100 * (0.75 * 0.55 + 0.25 * 0.05)])


def test_a_step_larger_than_the_image():
    curve = deletion(brightness, IMAGE, IMAGE, score="identity")
    assert curve.scores.flatten().tolist() == pytest.approx([1, 0])
    assert curve.conventions.step == 224


def _literal(model, images, heatmaps, classes, start, end, step):
    """RISE, one pixel at a time; pixels that are equally hot in reading order."""
    rows = []
    for i in range(len(images)):
        height, width = images.shape[2:]
        places = [(h, w) for h in range(height) for w in range(width)]
        places.sort(key=lambda place: -heatmaps[i, 0, place[0], place[1]].item())
        picture, scores = start[i].clone(), []
        for count in range(len(places) + 1):
            if count:
                h, w = places[count - 1]
                picture[:, h, w] = end[i, :, h, w]
            if count % step == 0 or count == len(places):
                scores.append(model(picture[None]).double().softmax(1)[0, classes[i]])
        rows.append(torch.stack(scores))
    return torch.stack(rows)


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize("function", [insertion, deletion])
def test_against_the_literal_loop(network, batch, function, step):
    images, heatmaps = batch
    heatmaps = (4 * heatmaps).round()  # with ties
    fill = Blur(3, 1.0) if function is insertion else Black(0.5, 0.2)
    other = fill_image(fill, images).expand_as(images)
    start, end = (other, images) if function is insertion else (images, other)
    with torch.no_grad():
        expected = _literal(network, images, heatmaps, [2, 0, 1], start, end, step)
    found = function(network, images, heatmaps, [2, 0, 1], fill=fill, step=step)
    torch.testing.assert_close(found.scores, expected, atol=1e-6, rtol=1e-6)
    assert found.kind == function.__name__


def test_ends_are_the_two_images(network, batch):
    images, heatmaps = batch
    found = confidences(network, images, heatmaps)
    put, taken = (f(network, images, heatmaps, step=5) for f in (insertion, deletion))
    torch.testing.assert_close(put.scores[:, -1], found.original)
    torch.testing.assert_close(taken.scores[:, 0], found.original)
    assert put.target.equal(found.target)
    assert put.conventions.target == "predicted"


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        type(self).seen = []  # of the class: what is the model's own is put back

    def forward(self, x, *more):
        self.seen.append(len(x))
        return self.model(x, *more)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_chunks_change_nothing(network, batch, chunk):
    expected = deletion(network, *batch, step=3).scores
    model = Counting(network)
    found = deletion(model, *batch, step=3, max_examples_per_batch=chunk).scores
    torch.testing.assert_close(found, expected)
    # the images themselves, the batch with one of them changed, then 6 more stages of each of 3
    # images, and 3 that go along as a check
    assert model.seen[:2] == [3, 3]
    assert sum(model.seen[2:]) == 18 + 3
    assert max(model.seen[2:]) == max(4, min(chunk, 21))


def test_chunks_fit_the_budget(network, batch, monkeypatch):
    monkeypatch.setitem(_layout.BUDGET, "cpu", 8 * 4 * (2 * 16 * 4))  # four images
    model = Counting(network)
    deletion(model, *batch, step=3)
    assert model.seen[2:] == [4, 4, 4, 4, 4, 1]  # three of the first go along as a check


def test_rounding_of_a_large_score_is_no_sign_that_images_mix():
    """The black image scores a thousand times as high, and is rounded as much more coarsely."""
    passes = []

    def inverse(x):
        passes.append(len(x))
        scores = 1 / (x.mean((1, 2, 3)) + 1e-3)
        return scores * (1 + 1e-6 * (len(x) > 1))  # another order of summation in a batch

    image = torch.ones(1, 1, 4, 4)
    insertion(inverse, image, image, score=torch.abs, fill=0.0, step=2, max_examples_per_batch=6)
    assert passes == [1, 1, 6, 6]  # with the image in the last one, too, which is smaller


def test_arguments_follow_their_image(batch):
    def model(x, scale, shift):
        return brightness(x) * scale + shift

    images, heatmaps = batch
    scale = torch.tensor([1.0, 2.0, 3.0])
    found = deletion(
        model, images, heatmaps, score="identity", step=4, max_examples_per_batch=2,
        additional_forward_args=(scale, 5.0),
    )  # fmt: skip
    for i in range(3):
        single = deletion(
            lambda x, i=i: model(x, scale[i], 5.0), images[i : i + 1], heatmaps[i : i + 1],
            score="identity", step=4,
        )  # fmt: skip
        # float32 sums, whose order depends on the layout
        torch.testing.assert_close(found.scores[i], single.scores[0], rtol=1e-6, atol=1e-6)


def test_only_the_order_counts(network, batch):
    images, heatmaps = batch
    expected = insertion(network, images, heatmaps, step=2).scores
    torch.testing.assert_close(insertion(network, images, heatmaps**3 - 7, step=2).scores, expected)


def test_ties():
    flat = torch.zeros(1, 1, 2, 2)
    kept = {"score": "identity", "step": 1}
    in_order = deletion(brightness, IMAGE, flat, **kept)
    assert in_order.scores[0].tolist() == pytest.approx([1, 0.9, 0.7, 0.4, 0])
    assert in_order.conventions.ties == "reading order"
    assert in_order.status.tolist() == [Status.FLAT]
    seeded = [deletion(brightness, IMAGE, flat, seed=seed, **kept) for seed in range(20)]
    assert len({tuple(curve.scores[0].tolist()) for curve in seeded}) > 5
    assert seeded[3].scores.equal(deletion(brightness, IMAGE, flat, seed=3, **kept).scores)
    assert seeded[3].conventions.ties == "random, seed 3"
    # without ties the seed has nothing to say
    assert deletion(brightness, IMAGE, IMAGE, seed=3, **kept).scores.equal(
        deletion(brightness, IMAGE, IMAGE, **kept).scores
    )


def test_random_ties_leave_the_global_generator_alone():
    before = torch.get_rng_state()
    deletion(brightness, IMAGE, IMAGE, score="identity", seed=1)
    assert torch.get_rng_state().equal(before)


def test_a_map_of_low_resolution(network, batch):
    images, _ = batch
    assert deletion(network, images, torch.rand(3, 2, 2), step=4).scores.shape == (3, 5)


def test_an_empty_batch(network):
    curve = insertion(network, torch.rand(0, 2, 4, 4), torch.rand(0, 1, 4, 4), step=4)
    assert curve.scores.shape == (0, 5)
    assert curve.area.shape == (0,)


def test_conventions(network, batch):
    found = insertion(network, *batch, 1).conventions.as_dict()
    assert found == {
        "score": "softmax",
        "target": "given",
        "fill": "Blur(kernel_size=11, sigma=5.0)",
        "normalize": "ranks",
        "interpolation": "bilinear",
        "step": 224,
        "ties": "reading order",
    }


@pytest.mark.parametrize("name", ["step", "max_examples_per_batch"])
@pytest.mark.parametrize("value", [0, 2.5, True])
def test_wrong_numbers(network, batch, name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be an int >= 1.*; got {value}"):
        deletion(network, *batch, **{name: value})


def test_one_value_is_read_from_the_device(monkeypatch):
    checks = []
    monkeypatch.setattr(scoring, "agree", lambda *_: checks.append(1) or True)
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(16, 3))
        for target in (None, 1):
            curve = insertion(
                model, torch.rand(3, 2, 4, 4), torch.rand(3, 1, 4, 4), target, seed=1, step=2
            )
            assert curve.area.device.type == "cuda"
    assert len(checks) == 4
