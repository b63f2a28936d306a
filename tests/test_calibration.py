"""Calibration: values by hand, the order that stays, and metrics of this library as an oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from captum_clustered.calibration import (
    POWERS,
    SIGMOIDS,
    Knots,
    Order,
    Power,
    Sigmoid,
    calibrate,
)
from captum_clustered.metrics import (
    Status,
    confidences,
    deletion,
    insertion,
    mean_area,
    prepare,
)


def halves(x):
    """Two classes: how bright the left half is, and the right half."""
    middle = x.shape[-1] // 2
    return torch.stack([x[..., :middle].flatten(1).sum(1), x[..., middle:].flatten(1).sum(1)], 1)


ROW = torch.tensor([[[[1.0, 0.6, 0.4, 0.0]]]])


@pytest.fixture
def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()


@pytest.fixture
def batch():
    return torch.randn(5, 2, 8, 8), torch.rand(5, 1, 4, 4)


def test_scores_and_areas_by_hand():
    found = calibrate(
        halves, torch.ones(1, 1, 1, 4), ROW, target=0, curves=[Power(2.0)], area_weight=3.0
    )
    # the log-odds of two classes is the difference of their logits
    straight, square = 1.6 - 0.4, 1.36 - 0.16
    torch.testing.assert_close(found.scores, torch.tensor([[straight, square]]).double())
    torch.testing.assert_close(found.areas, torch.tensor([[0.5, 0.38]]).double())
    torch.testing.assert_close(
        found.objectives, torch.tensor([[straight - 1.5, square - 1.14]]).double()
    )
    assert found.chosen.tolist() == [1]
    assert found.names == ["Power(exponent=2.0)"]
    assert found.passes == 3  # the image, and two maps
    torch.testing.assert_close(found.heatmaps, torch.tensor([[[[1.0, 0.36, 0.16, 0.0]]]]))


def test_the_price_of_the_area_decides():
    chosen = [
        calibrate(
            halves, torch.ones(1, 1, 1, 4), ROW, target=0, curves=[Power(0.5)], area_weight=weight
        ).chosen.item()
        for weight in (0.0, 10.0)
    ]
    # 1 + sqrt(.6) - sqrt(.4) = 1.14 < 1.2: the root grows the wrong half more
    assert chosen == [0, 0]
    whole = torch.tensor([[[[1.0, 0.6, 0.0, 0.0]]]])
    chosen = [
        calibrate(
            halves, torch.ones(1, 1, 1, 4), whole, target=0, curves=[Power(0.5)], area_weight=weight
        ).chosen.item()
        for weight in (0.0, 10.0)
    ]
    assert chosen == [1, 0]  # .17 more of the score for .04 more of the area


def test_a_curve_is_scaled_so_that_the_ends_stay():
    found = calibrate(halves, torch.ones(1, 1, 1, 4), ROW, 0, curves=[Sigmoid(0.5, 0.2)])
    low, high = 1 / (1 + np.exp(2.5)), 1 / (1 + np.exp(-2.5))
    middle = 1 / (1 + np.exp(-0.5))
    want = torch.tensor(
        [[[[1, (middle - low) / (high - low), (1 - middle - low) / (high - low), 0]]]]
    )
    assert found.chosen.item() == 1
    torch.testing.assert_close(found.heatmaps, want.float())


def test_what_is_returned_has_the_objective_that_was_chosen(network, batch):
    images, maps = batch
    found = calibrate(network, images, maps, [0, 1, 2, 0, 1], fill=0.5, area_weight=1.0)
    again = confidences(
        network, images, found.heatmaps, [0, 1, 2, 0, 1], score="log_odds", fill=0.5, normalize=None
    )
    objective = again.masked - again.area / 100
    torch.testing.assert_close(objective, found.objectives.amax(1))
    before = confidences(network, images, maps, [0, 1, 2, 0, 1], score="log_odds", fill=0.5)
    torch.testing.assert_close(before.masked - before.area / 100, found.objectives[:, 0])
    assert (objective >= before.masked - before.area / 100 - 1e-6).all()
    assert (found.chosen > 0).any()  # else nothing was shown


def test_the_class_is_the_predicted_one_by_default(network, batch):
    images, maps = batch
    predicted = network(images).argmax(1)
    found = calibrate(network, images, maps)
    torch.testing.assert_close(found.scores, calibrate(network, images, maps, predicted).scores)
    assert found.target.tolist() == predicted.tolist()


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_batches_change_nothing(network, batch, size):
    images, maps = batch
    whole = calibrate(network, images, maps, 1)
    parts = calibrate(network, images, maps, 1, max_examples_per_batch=size)
    torch.testing.assert_close(parts.scores, whole.scores)
    torch.testing.assert_close(parts.heatmaps, whole.heatmaps)


def test_no_batch_is_larger_than_asked(batch):
    images, maps = batch
    seen = []

    def model(x):
        seen.append(len(x))
        return halves(x)

    calibrate(model, images, maps, 1, max_examples_per_batch=5)
    assert max(seen) == 5
    # one is seen with the batch, three go along in the first pass to see if copies may share it,
    # and one in each of the four that are smaller
    assert sum(seen) == 5 * (len(SIGMOIDS) + 3) + 3 + 4


@pytest.mark.filterwarnings("ignore:The images stay in the batch")
@pytest.mark.parametrize("size", [1, 4, None])
def test_a_model_that_mixes_examples_sees_each_batch_whole(batch, size):
    def model(x):  # normalises over the batch
        return halves(x) / x.abs().amax()

    images, maps = batch
    found = calibrate(
        model, images, maps, 1, curves=[Power(0.5), Power(2.0)], max_examples_per_batch=size
    )
    before = prepare(maps, (8, 8)).values
    for index, exponent in enumerate((1.0, 0.5, 2.0)):
        behind = model(images * before**exponent)  # one image of each example, and nothing else
        want = (behind[:, 1] - behind[:, 0]).double()  # the log-odds of two classes
        torch.testing.assert_close(found.scores[:, index], want, rtol=1e-4, atol=1e-4)


def test_a_model_that_mixes_examples_is_named(batch):
    images, maps = batch

    def model(x):
        return halves(x) / x.abs().amax()

    with pytest.warns(UserWarning, match="The images stay in the batch"):
        calibrate(model, images, maps, 1)


# The order stays


@pytest.mark.parametrize("curves", [SIGMOIDS, POWERS, [Sigmoid(0.5, 1e-3)], [Power(50.0)]])
def test_insertion_and_deletion_stay_as_they_were(network, batch, curves):
    images, maps = batch
    maps = (maps * 4).round() / 4 + 1e-6 * torch.rand(5, 1, 4, 4)  # nearly equal values
    found = calibrate(network, images, maps, 1, curves=curves, area_weight=0.0)
    for curve in (insertion, deletion):
        one, other = (curve(network, images, heat, 1, step=1) for heat in (maps, found.heatmaps))
        assert torch.equal(one.scores, other.scores)


@given(
    st.lists(
        st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.5, 0.5 + 2**-24, 1 - 2**-24, 1.0]),
        min_size=2,
        max_size=30,
    ),
    st.sampled_from([*SIGMOIDS, *POWERS, Sigmoid(0.3, 1e-4), Sigmoid(2.0, 0.01), Power(40.0)]),
)
@settings(max_examples=200, deadline=None)
def test_ties_and_strict_order_stay(numbers, curve):
    before = torch.tensor([numbers])
    after = Order.of(before).keep(curve(before).clamp(0, 1))
    one, other = (torch.sign(x[0, :, None] - x[0, None]) for x in (before, after))
    assert torch.equal(one, other)
    assert after.min() >= 0
    assert after.max() <= 1
    torch.testing.assert_close(after, curve(before).clamp(0, 1))


def test_the_order_of_a_level_curve_is_made_by_the_next_numbers():
    kept = Order.of(torch.tensor([[0.1, 0.3, 0.2, 0.3]])).keep(torch.full((1, 4), 0.5))
    step = 2**-24  # of float32 from 0.5 on
    assert ((kept - 0.5) / step).tolist() == [[0.0, 2.0, 1.0, 2.0]]
    kept = Order.of(torch.tensor([[0.1, 0.3, 0.2]])).keep(torch.ones(1, 3))
    assert ((1 - kept) / step).tolist() == [[2.0, 0.0, 1.0]]


# Maps with faults


def test_faulty_maps_stay_faulty(network, batch):
    images = batch[0]
    maps = torch.stack(
        [
            torch.full((1, 8, 8), 0.25),
            torch.zeros(1, 8, 8),
            torch.full((1, 8, 8), torch.nan),
            torch.rand(1, 8, 8).index_fill(1, torch.tensor([3]), torch.inf),
            -1 - torch.rand(1, 8, 8),
        ]
    )
    found = calibrate(network, images, maps, 1)
    assert [Status(status).name for status in found.status.tolist()] == [
        "FLAT",
        "FLAT",
        "NOT_FINITE",
        "NOT_FINITE",
        "NEGATIVE",
    ]
    assert found.chosen[:4].tolist() == [0] * 4
    assert (found.heatmaps[0] == 0.25).all()
    assert (found.heatmaps[1] == 0).all()
    assert found.heatmaps[2:4].isnan().all()
    assert found.heatmaps[4].min() == 0
    assert found.heatmaps[4].max() == 1
    after = confidences(network, images, found.heatmaps, 1).status.tolist()
    assert after[2] == after[3] == Status.NOT_FINITE


def test_a_score_that_is_not_a_number_leaves_the_map(batch):
    images, maps = batch
    found = calibrate(lambda x: halves(x) * torch.nan, images, maps, 1)
    assert found.chosen.tolist() == [0] * 5
    torch.testing.assert_close(found.areas[:, 0].float() * 100, mean_area(maps, (8, 8)))


def test_one_score_that_is_not_a_number_is_not_chosen():
    def model(x):  # the root shows more than 2.2 of the row
        return torch.where(x.flatten(1).sum(1, keepdim=True) > 2.2, torch.nan, halves(x))

    found = calibrate(
        model, torch.ones(1, 1, 1, 4), ROW, 0, curves=[Power(0.5)], max_examples_per_batch=1
    )
    assert found.scores.isnan().tolist() == [[False, True]]
    assert found.chosen.item() == 0


# Any form


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channel", [True, False])
def test_any_number_of_axes(dims, channel):
    images = torch.rand(2, 3, *[6] * dims)
    maps = torch.rand(2, *[1] * channel, *[3] * dims)
    found = calibrate(halves, images, maps, 0)
    assert found.heatmaps.shape == (2, 1, *[6] * dims)
    assert found.heatmaps.flatten(1).amin(1).tolist() == [0, 0]
    assert found.heatmaps.flatten(1).amax(1).tolist() == [1, 1]


def test_other_inputs_go_with_their_images():
    images, shift = torch.rand(3, 1, 4, 4), torch.tensor([0.0, 5.0, -5.0])

    def model(x, shift, scale):
        return scale * halves(x) + torch.stack([shift, 0 * shift], 1)

    maps = torch.rand(3, 1, 4, 4)
    together = calibrate(model, (images, shift), maps, 0, additional_forward_args=2.0)
    alone = [
        calibrate(
            model,
            (images[i : i + 1], shift[i : i + 1]),
            maps[i : i + 1],
            0,
            additional_forward_args=2.0,
        ).scores
        for i in range(3)
    ]
    torch.testing.assert_close(together.scores, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_arrays_half_precision_and_one_score_per_image(batch):
    images, maps = batch
    found = calibrate(lambda x: x.sum((1, 2, 3)), images, maps.numpy().astype(np.float16))
    assert found.target is None
    assert found.heatmaps.dtype == torch.float32
    found = calibrate(halves, images.bfloat16(), maps, 0)
    assert found.heatmaps.isfinite().all()


def test_no_gradient_and_no_trace_in_the_model(network, batch):
    images, maps = batch
    found = calibrate(network, images.requires_grad_(), maps.requires_grad_(), 1)
    assert not found.heatmaps.requires_grad
    assert images.grad is None


def test_a_model_may_write_into_its_input(batch):
    images, maps = batch
    before = images.clone()

    def doubling(x):
        return halves(x.mul_(2))

    found = calibrate(doubling, images, maps, 1)
    assert torch.equal(images, before)
    want = calibrate(lambda x: halves(2 * x), images, maps, 1)
    torch.testing.assert_close(found.scores, want.scores)


def test_no_images():
    found = calibrate(halves, torch.rand(0, 1, 4, 4), torch.rand(0, 1, 2, 2), 0)
    assert found.heatmaps.shape == (0, 1, 4, 4)
    assert found.scores.shape == (0, len(SIGMOIDS) + 1)


# Steps


def literally_fitted(model, image, heat, label, curve, n_steps, price):
    """The best objective and the curve's heights, as the method is described, for one image."""
    grid = np.linspace(0, 1, 9)
    begin = curve(torch.from_numpy(grid)).numpy()
    begin = (begin - begin[0]) / (begin[-1] - begin[0])
    free = torch.tensor(np.log(np.maximum(np.diff(begin), 0.01)), requires_grad=True)
    adam = torch.optim.Adam([free], lr=0.5)
    best = -np.inf, None
    for _ in range(n_steps + 1):
        rises = free.exp() / free.exp().sum()
        mask = torch.zeros_like(heat)
        for line in range(8):  # each line is climbed from its foot to its head
            mask = mask + rises[line] * (8 * heat - line).clamp(0, 1)
        logits = model((image * mask).unsqueeze(0))[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        objective = logits[label] - others.logsumexp(0) - price * mask.mean()
        if objective.item() > best[0]:
            best = objective.item(), [0.0, *rises.detach().cumsum(0).tolist()]
        adam.zero_grad()
        (-objective).backward()
        adam.step()
    return best


@pytest.mark.parametrize("size", [None, 2, 20])
def test_steps_against_a_literal_reference(network, batch, size):
    network, images, maps = network.double(), batch[0].double(), batch[1].double()
    curves = [Power(0.5), Sigmoid(0.4, 0.1)]
    arguments = {"curves": curves, "area_weight": 0.7, "max_examples_per_batch": size}
    found = calibrate(network, images, maps, 2, n_steps=4, **arguments)
    plain = calibrate(network, images, maps, 2, **arguments)
    torch.testing.assert_close(found.objectives[:, :3], plain.objectives)
    assert found.passes == plain.passes + 5
    straight = prepare(maps, (8, 8)).values
    taken = found.objectives.gather(1, found.chosen[:, None])[:, 0]
    assert (taken >= plain.objectives.amax(1)).all()
    assert (found.chosen == 3).any()
    for i, curve in enumerate([Power(1.0), *curves][index] for index in plain.chosen.tolist()):
        best, heights = literally_fitted(network, images[i], straight[i], 2, curve, 4, 0.7)
        assert found.objectives[i, 3].item() == pytest.approx(best, rel=1e-7)
        assert found.fitted[i].heights == pytest.approx(heights, abs=1e-7)
        if found.chosen[i] == 3:
            assert found.names[i] == repr(found.fitted[i])
            torch.testing.assert_close(found.heatmaps[i], found.fitted[i](straight[i]))


def test_steps_keep_the_order_and_leave_no_trace(network, batch):
    images, maps = batch
    maps = (maps * 4).round() / 4 + 1e-6 * torch.rand(5, 1, 4, 4)  # nearly equal values
    found = calibrate(network, images.requires_grad_(), maps, 1, n_steps=3, area_weight=0.0)
    assert not found.heatmaps.requires_grad
    assert not found.objectives.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    assert images.grad is None
    for curve in (insertion, deletion):
        one, other = (curve(network, images, heat, 1, step=1) for heat in (maps, found.heatmaps))
        assert torch.equal(one.scores, other.scores)


def test_steps_leave_faulty_maps_as_they_are(network, batch):
    maps = torch.rand(5, 1, 8, 8)
    maps[0], maps[1, 0, 0, 0] = 0.25, torch.nan
    found = calibrate(network, batch[0], maps, 1, n_steps=2)
    assert (found.heatmaps[0] == 0.25).all()
    assert found.heatmaps[1].isnan().all()
    assert found.heatmaps[2:].isfinite().all()
    assert calibrate(network, batch[0][:0], maps[:0], 1, n_steps=2).fitted == ()


@pytest.mark.filterwarnings("ignore:The images stay in the batch")
def test_steps_of_a_model_that_mixes_examples(batch):
    def model(x):  # normalises over the batch
        return halves(x) / x.detach().abs().amax()

    images, maps = batch
    found = calibrate(model, images, maps, 1, curves=[Power(0.5)], n_steps=2)
    before = prepare(maps, (8, 8)).values
    bent = torch.stack([knots(heat) for knots, heat in zip(found.fitted, before, strict=True)])
    # the curves of all images are those of their best steps, which need not be the same step
    assert ((bent - before).abs() <= 1).all()
    best = found.objectives.gather(1, found.chosen[:, None])[:, 0]
    assert (best >= found.objectives[:, :2].amax(1)).all()


def without_a_graph(network, x):
    return network(x).detach()


def with_a_graph_to_the_weights_alone(network, x):
    return network(x.detach())


@pytest.mark.parametrize("run", [without_a_graph, with_a_graph_to_the_weights_alone])
def test_steps_need_a_gradient(network, batch, run):
    with pytest.raises(ValueError, match="`n_steps` must be 0 where the score has no gradient"):
        calibrate(lambda x: run(network, x), *batch, 1, n_steps=1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.lists(st.floats(0, 1), min_size=1))
def test_knots_are_joined_by_lines(heights, values):
    heights = sorted(heights)
    want = np.interp(values, np.linspace(0, 1, len(heights)), heights)
    found = Knots(tuple(heights))(torch.tensor(values, dtype=torch.float64))
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("heights", [(), (1.0,), (0.0, 0.5, 0.4), (0.0, float("nan"))])
def test_knots_do_not_fall(heights):
    with pytest.raises(ValueError, match="`heights` must be two or more numbers that do not fall"):
        Knots(heights)


# Errors


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_steps": -1}, ValueError, r"`n_steps` must be an int >= 0; got -1"),
        ({"area_weight": -1.0}, ValueError, r"`area_weight` must be a number >= 0; got -1.0"),
        ({"curves": Power(2.0)}, TypeError, r"`curves` must be a sequence of callables; got Power"),
        ({"curves": [0.5]}, TypeError, r"`curves` must be a sequence of callables; got \[0.5\]"),
        ({"curves": [lambda v: -v]}, ValueError, r"`curves` must rise from 0 to 1 .*change the"),
        ({"curves": [lambda v: 0 * v]}, ValueError, r"`curves` must rise from 0 to 1"),
        # in float64 it rises, in float32 it does not
        ({"curves": [Sigmoid(3.0, 0.01)]}, ValueError, r"`curves` must rise from 0 to 1"),
        ({"curves": [torch.log]}, ValueError, r"`curves` must rise from 0 to 1 and be finite"),
        ({"curves": [torch.sum]}, TypeError, r"`curves` must return a tensor of the shape"),
        (
            {"max_examples_per_batch": 0},
            ValueError,
            r"`max_examples_per_batch` must be an int >= 1",
        ),
        ({"interpolation": None}, ValueError, r"`heatmaps` must have the size \(8, 8\)"),
        ({"target": 7}, ValueError, r"`target` must lie in 0..2"),
    ],
)
def test_wrong_arguments(network, batch, arguments, error, message):
    with pytest.raises(error, match=message):
        calibrate(network, *batch, **arguments)


@pytest.mark.parametrize("make", [lambda: Sigmoid(0.5, 0.0), lambda: Sigmoid(0.5, -1)])
def test_a_sigmoid_has_a_width(make):
    with pytest.raises(ValueError, match="`width` must be a number > 0; got"):
        make()


def test_a_power_has_an_exponent_above_zero():
    with pytest.raises(ValueError, match=r"`exponent` must be a number > 0; got -0\.5"):
        Power(-0.5)
