"""Average drop, increase in confidence, average gain, drop on the complement, win rate."""

import inspect
import math
import pickle

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from captum_clustered.metrics import (
    Black,
    Blur,
    Status,
    average_drop,
    average_gain,
    confidences,
    drop,
    drop_on_complement,
    gain,
    increase,
    increase_in_confidence,
    mean_area,
    wins,
)

METRICS = [average_drop, increase_in_confidence, average_gain, drop_on_complement]


def two_classes(x, shift=0.0):
    """Logits: the sum of all pixels, and nought."""
    total = x.sum((1, 2, 3)) + shift
    return torch.stack([total, torch.zeros_like(total)], 1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def network():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    ).eval()


# --- arithmetic ----------------------------------------------------------------------------------

P = torch.tensor([0.8, 0.5, 0.5, 0.0, 1.0, 1.0])
O = torch.tensor([0.2, 0.9, 0.5, 0.3, 1.0, 0.4])  # noqa: E741


def test_drop_by_hand():
    expected = torch.tensor([75.0, 0.0, 0.0, 0.0, 0.0, 60.0])
    torch.testing.assert_close(drop(P, O), expected)


def test_drop_without_clamp():
    expected = torch.tensor([75.0, -80.0, 0.0, -math.inf, 0.0, 60.0])
    torch.testing.assert_close(drop(P, O, clamp=False), expected)


def test_gain_by_hand():
    expected = torch.tensor([0.0, 80.0, 0.0, 30.0, 0.0, 0.0])
    torch.testing.assert_close(gain(P, O), expected)


def test_increase_by_hand():
    assert increase(P, O).tolist() == [0, 100, 0, 100, 0, 0]
    assert increase(P + 0.35, O).tolist() == [0, 100, 0, 0, 0, 0]  # a tolerance


def test_a_negative_score_is_divided_by_its_size():
    # the score falls from -2 to -3: a loss, not a gain
    assert drop(torch.tensor([-2.0]), torch.tensor([-3.0])).tolist() == [50]
    assert drop(torch.tensor([-2.0]), torch.tensor([-1.0])).tolist() == [0]


@pytest.mark.parametrize("metric", [drop, gain, increase, wins])
def test_nan_stays_nan(metric):
    number, missing = torch.tensor([0.5]), torch.tensor([math.nan])
    assert metric(number, missing).isnan().all()
    assert metric(missing, number).isnan().all()


def test_wins_by_hand():
    first, second = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2.0, 4.0, 3.0])
    assert wins(first, second).tolist() == [100, 0, 0]
    assert wins(first, second, higher_is_better=True).tolist() == [0, 100, 0]


def test_wins_wants_the_same_images():
    with pytest.raises(ValueError, match=r"same images; got shapes \(2,\) and \(3,\)"):
        wins(torch.zeros(2), torch.zeros(3))


# --- one image by hand ---------------------------------------------------------------------------


def test_an_image_by_hand():
    image = torch.tensor([[[[2.0, -1.0]]]])
    heat = torch.tensor([[[[5.0, 0.0]]]])
    found = confidences(two_classes, image, heat, target=0)
    p, o, rest = sigmoid(1), sigmoid(2), sigmoid(-1)
    assert found.original.tolist() == pytest.approx([p])
    assert found.masked.tolist() == pytest.approx([o])
    assert found.complement.tolist() == pytest.approx([rest])
    assert found.area.tolist() == [50]
    assert found.status.tolist() == [Status.OK]
    assert average_drop(two_classes, image, heat, 0).tolist() == [0]
    assert increase_in_confidence(two_classes, image, heat, 0).tolist() == [100]
    assert average_gain(two_classes, image, heat, 0).tolist() == pytest.approx(
        [100 * (o - p) / (1 - p)]
    )
    assert drop_on_complement(two_classes, image, heat, 0).tolist() == pytest.approx(
        [100 * (p - rest) / p]
    )


def _literal(model, images, heatmaps, targets, fill):
    """The papers' formulas, pixel by pixel and image by image, in float64."""
    rows = []
    for image, heat, target in zip(images, heatmaps, targets, strict=True):
        low, high = float(heat.min()), float(heat.max())
        seen, hidden = image.clone(), image.clone()
        for channel in range(image.shape[0]):
            for i in range(image.shape[1]):
                for j in range(image.shape[2]):
                    m = (float(heat[0, i, j]) - low) / (high - low)
                    value = float(image[channel, i, j])
                    seen[channel, i, j] = value * m + fill[channel] * (1 - m)
                    hidden[channel, i, j] = value * (1 - m) + fill[channel] * m

        def probability(x, target=target):
            logits = model(x[None])[0].tolist()
            total = sum(math.exp(z) for z in logits)
            return math.exp(logits[target]) / total

        p, o, rest = probability(image), probability(seen), probability(hidden)
        rows.append(
            (100 * max(0, p - o) / p, 100 * (o > p), 100 * max(0, o - p) / (1 - p),
             100 * (p - rest) / p)
        )  # fmt: skip
    return torch.tensor(rows, dtype=torch.float64).T


def test_all_against_the_literal_formulas(network):
    network = network.double()
    images = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    heatmaps = torch.rand(5, 1, 6, 6, dtype=torch.float64)
    targets = [0, 1, 2, 3, 0]
    fill = Black((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    with torch.no_grad():
        expected = _literal(network, images, heatmaps, targets, fill.values)
    assert expected[1].unique().tolist() == [0, 100]  # the images show both
    for metric, values in zip(METRICS, expected, strict=True):
        found = metric(network, images, heatmaps, targets, fill=fill)
        torch.testing.assert_close(found, values, msg=metric.__name__)


# --- what is known beforehand --------------------------------------------------------------------


@pytest.mark.parametrize("fill", [0.0, "mean", "blur", Black(0.5, 0.2), Blur(3, 1.0)])
def test_a_map_of_ones_drops_nothing(network, fill):
    images, ones = torch.randn(3, 3, 8, 8), torch.ones(3, 1, 8, 8)
    found = confidences(network, images, ones, fill=fill)
    assert found.average_drop.tolist() == [0, 0, 0]
    assert found.increase_in_confidence.tolist() == [0, 0, 0]
    assert found.average_gain.tolist() == [0, 0, 0]
    assert found.area.tolist() == [100, 100, 100]
    assert found.status.tolist() == [Status.FLAT] * 3


def test_fake_cam_fools_the_drop_but_not_the_gain(network):
    images, fake = torch.rand(8, 3, 64, 64), torch.ones(8, 1, 64, 64)
    fake[:, :, 0, 0] = 0
    found = confidences(network, images, fake)
    assert found.status.tolist() == [Status.OK] * 8
    assert 0 < found.average_drop.mean() < 0.1
    assert found.average_gain.max() < 0.1
    assert found.area.min() > 99.9


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_a_map_that_shows_nothing_has_the_score_of_the_fill(network, value):
    images, fill = torch.randn(2, 3, 8, 8), torch.randn(3, 8, 8)
    found = confidences(network, images, torch.full((2, 1, 8, 8), value), target=1, fill=fill)
    expected = network(fill[None]).double().softmax(1)[0, 1].item()
    assert found.masked.tolist() == pytest.approx([expected] * 2)
    torch.testing.assert_close(found.complement, found.original)
    assert set(found.status.tolist()) == {Status.NOT_FINITE if value else Status.FLAT}


def test_batch_is_one_at_a_time(network):
    images, heatmaps = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 4, 4)
    whole = confidences(network, images, heatmaps)
    for i in range(4):
        single = confidences(network, images[i : i + 1], heatmaps[i : i + 1])
        for name, column in whole.columns().items():
            other = single.columns()[name]
            torch.testing.assert_close(other, column[i : i + 1], atol=1e-3, rtol=1e-4, msg=name)


# --- conventions ---------------------------------------------------------------------------------


def test_the_predicted_class_is_that_of_the_whole_image():
    # masked, the prediction would be class 1
    image, heat = torch.tensor([[[[2.0, -1.0]]]]), torch.tensor([[[[0.0, 1.0]]]])
    found = confidences(two_classes, image, heat)
    assert found.target.tolist() == [0]
    assert found.masked.tolist() == pytest.approx([sigmoid(-1)])
    assert found.conventions.target == "predicted"
    given = confidences(two_classes, image, heat, target=torch.tensor([1]))
    assert given.masked.tolist() == pytest.approx([sigmoid(1)])
    assert given.conventions.target == "given"


@pytest.mark.parametrize("target", [1, [1, 1], torch.tensor([1, 1]), torch.tensor([[1], [1]])])
def test_forms_of_target(network, target):
    images, heatmaps = torch.randn(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    expected = network(images).double().softmax(1)[:, 1]
    found = confidences(network, images, heatmaps, target)
    torch.testing.assert_close(found.original, expected.detach())
    assert found.target.tolist() == [1, 1]


def test_a_target_outside_the_output(network):
    with pytest.raises(ValueError, match=r"`target` must lie in 0\.\.3.*got 7"):
        average_drop(network, torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8), 7)


def test_scores():
    image, heat = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])

    def square(logits):
        return logits**2

    for score, p, o in [
        ("identity", 3, 2),
        ("softmax", sigmoid(3), sigmoid(2)),
        ("sigmoid", sigmoid(3), sigmoid(2)),
        (square, 9, 4),
    ]:
        found = confidences(two_classes, image, heat, target=0, score=score)
        assert found.original.tolist() == pytest.approx([p])
        assert average_drop(two_classes, image, heat, 0, score=score).tolist() == pytest.approx(
            [100 * (p - o) / p]
        )
    assert found.conventions.score.endswith("square")


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_a_model_with_one_logit(shape):
    def one(x):
        return x.sum((1, 2, 3)).reshape(shape)

    image, heat = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    found = confidences(one, image, heat, score="sigmoid")
    assert found.original.tolist() == pytest.approx([sigmoid(3)])
    assert found.target is None
    assert found.conventions.target == "only"
    with pytest.raises(ValueError, match=r"at least two classes.*score='sigmoid'"):
        confidences(one, image, heat)


def test_an_output_of_several_axes():
    def per_pixel(x):  # (N, 2, H, W)
        return torch.cat([x, torch.zeros_like(x)], 1)

    image, heat = torch.tensor([[[[2.0, 1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    found = confidences(per_pixel, image, heat, target=(0, 0, 1))
    assert found.original.tolist() == pytest.approx([sigmoid(1)])
    assert found.masked.tolist() == pytest.approx([0.5])
    assert found.target.tolist() == [[0, 0, 1]]
    assert "target" not in found.columns()


def test_the_gain_wants_a_probability(network):
    with pytest.raises(ValueError, match="must be a probability for the average gain"):
        average_gain(network, torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8), score="identity")


def test_a_sure_model_is_not_at_its_ceiling():
    # in float32 both probabilities are 1
    image, heat = torch.tensor([[[[20.0, -1.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    assert increase_in_confidence(two_classes, image, heat).tolist() == [100]
    (found,) = average_gain(two_classes, image, heat).tolist()
    assert found == pytest.approx(100 * (1 - math.exp(-1)), rel=1e-6)


def test_conventions_are_written_down(network):
    found = confidences(
        network,
        torch.rand(2, 3, 8, 8),
        torch.rand(2, 1, 8, 8),
        1,
        score="sigmoid",
        normalize=None,
        interpolation=None,
        fill=Black(0.5, 0.2),
    )
    assert found.conventions.as_dict() == {
        "score": "sigmoid",
        "target": "given",
        "fill": "Black(mean=0.5, std=0.2)",
        "normalize": "none",
        "interpolation": "none",
    }


def test_columns(network):
    images, heatmaps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    names = [
        "original", "masked", "complement", "target", "area", "status", "average_drop",
        "increase_in_confidence", "average_gain", "drop_on_complement",
    ]  # fmt: skip
    columns = confidences(network, images, heatmaps).columns()
    assert list(columns) == names
    assert {column.shape for column in columns.values()} == {(2,)}
    fewer = confidences(network, images, heatmaps, complement=False, score="identity").columns()
    assert set(names) - set(fewer) == {"complement", "average_gain", "drop_on_complement"}


def test_the_complement_has_to_be_asked_for(network):
    found = confidences(network, torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8), complement=False)
    with pytest.raises(ValueError, match="`complement` must be True"):
        _ = found.drop_on_complement


# --- the model -----------------------------------------------------------------------------------


class Counting(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        type(self).seen = []  # of the class: what is the model's own is put back

    def forward(self, x):
        self.seen.append(len(x))
        return self.model(x)


def test_each_masked_image_runs_once(network):
    model = Counting(network)
    images, heatmaps = torch.rand(5, 3, 8, 8), torch.rand(5, 1, 8, 8)
    first = confidences(model, images, heatmaps)
    first.columns()
    assert model.seen == [5, 5, 5]
    again = confidences(
        model, images, heatmaps, first.target, original=first.original, complement=False
    )
    assert model.seen == [5, 5, 5, 5]
    assert again.original.equal(first.original)
    assert again.masked.equal(first.masked)


def test_known_scores_want_their_target(network):
    images, heatmaps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    with pytest.raises(ValueError, match="`target` must be given with `original`"):
        confidences(network, images, heatmaps, original=torch.zeros(2))
    with pytest.raises(ValueError, match=r"each of the 2 images; got shape \(3,\)"):
        confidences(network, images, heatmaps, 0, original=torch.zeros(3))


def test_further_inputs_and_arguments_pass_through():
    def model(x, scale, shift):
        return two_classes(x * scale.view(-1, 1, 1, 1), shift)

    images, heatmaps = torch.rand(2, 1, 1, 3), torch.rand(2, 1, 1, 3)
    scale = torch.tensor([1.0, 3.0])
    expected = average_drop(
        lambda x: model(x, scale, 0.5), images, heatmaps, 0
    )  # fmt: skip
    assert expected.min() > 0
    for inputs, more in [(images, (scale, 0.5)), ((images, scale), 0.5)]:
        found = average_drop(model, inputs, heatmaps, 0, additional_forward_args=more)
        torch.testing.assert_close(found, expected)


def test_bfloat16_model(network):
    images, heatmaps = torch.rand(2, 3, 8, 8), torch.rand(2, 1, 4, 4)
    expected = confidences(network, images, heatmaps, 1)
    found = confidences(network.bfloat16(), images.bfloat16(), heatmaps, 1)
    assert found.masked.dtype == torch.float64
    torch.testing.assert_close(found.masked, expected.masked, atol=0.01, rtol=0)


def test_no_gradient_and_nothing_changed(network):
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    heatmaps = torch.rand(2, 1, 8, 8, requires_grad=True)
    before = images.detach().clone(), heatmaps.detach().clone()
    found = confidences(network, images, heatmaps, fill="blur")
    assert not any(column.requires_grad for column in found.columns().values())
    assert images.equal(before[0])
    assert heatmaps.equal(before[1])
    assert images.grad is None


def test_volumes_and_signals():
    for size in [(5,), (3, 4, 5)]:

        def model(x):
            return two_classes(x.flatten(2)[:, :, None])

        found = average_drop(
            model, torch.rand(2, 1, *size), torch.rand(2, 1, *[2] * len(size)), 0, fill="blur"
        )  # fmt: skip
        assert found.shape == (2,)
        assert not found.isnan().any()


def test_an_empty_batch(network):
    found = confidences(network, torch.rand(0, 3, 8, 8), torch.rand(0, 1, 4, 4))
    assert {column.shape for column in found.columns().values()} == {(0,)}


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((None, torch.rand(1, 3, 8, 8)), TypeError, "`forward_func` must be .*got None"),
        ((two_classes, [1]), TypeError, "`inputs` must be a tensor.*got list"),
        ((two_classes, ()), TypeError, "`inputs` must be a tensor.*got tuple"),
        ((two_classes, torch.rand(8, 8)), ValueError, r"images \(N, C, \*spatial\)"),
        ((two_classes, torch.ones(1, 3, 8, 8, dtype=int)), ValueError, "floating point images"),
        ((lambda x: (x,), torch.rand(1, 3, 8, 8)), TypeError, "one tensor; got tuple"),
        ((lambda x: x.sum(), torch.rand(1, 3, 8, 8)), ValueError, r"one row for each of 1.*\(\)"),
    ],
)
def test_wrong_arguments(args, error, message):
    with pytest.raises(error, match=message):
        average_drop(*args, torch.rand(1, 1, 8, 8))


def test_wrong_score(network):
    images, heatmaps = torch.rand(1, 3, 8, 8), torch.rand(1, 1, 8, 8)
    with pytest.raises(ValueError, match="or a callable; got 'probability'"):
        average_drop(network, images, heatmaps, score="probability")
    with pytest.raises(TypeError, match="or a callable; got None"):
        average_drop(network, images, heatmaps, score=None)


def test_nothing_is_read_from_the_device():
    """On a GPU a value that is read, or a tensor on the wrong device, would raise here."""
    with FakeTensorMode(), torch.device("cuda"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
        images = torch.rand(2, 3, 8, 8)
        for fill in (Black((0.5, 0.4, 0.3), 0.2), "blur"):
            for target in (None, 1, [0, 1]):
                found = confidences(model, images, torch.rand(2, 1, 4, 4), target, fill=fill)
                assert {c.device.type for c in found.columns().values()} == {"cuda"}


# --- area ----------------------------------------------------------------------------------------


def test_mean_area_by_hand():
    heat = torch.tensor([[[0.0, 2.0], [2.0, 4.0]]])
    assert mean_area(heat).tolist() == [50]
    assert mean_area(heat[:, None]).tolist() == [50]
    assert mean_area(heat / 4, normalize=None).tolist() == [50]


def test_mean_area_at_the_images_size(network):
    heat = torch.rand(2, 1, 4, 4)
    found = confidences(network, torch.rand(2, 3, 8, 8), heat)
    torch.testing.assert_close(mean_area(heat, (8, 8)), found.area)
    assert (mean_area(heat) - found.area).abs().min() > 0.01


@pytest.mark.parametrize("metric", [increase_in_confidence, average_gain, drop_on_complement])
def test_single_metrics_take_the_same_arguments(metric):
    assert inspect.signature(metric) == inspect.signature(average_drop)
    assert metric.__annotations__ == average_drop.__annotations__
    for name in inspect.signature(average_drop).parameters:
        assert metric.__doc__.count(f"    {name} (") == 1
    sections = ["Args:", "Returns:", "Example::"]
    assert sorted(sections, key=metric.__doc__.index) == sections
    own = {increase_in_confidence: "PIC", average_gain: "AG", drop_on_complement: "ADD"}
    assert f"({own[metric]}" in metric.__doc__
    assert pickle.loads(pickle.dumps(metric)) is metric
