"""Copies of examples in one pass: they change memory and time, never the result."""

import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from captum_clustered import (
    ClusteredLayerAblation,
    ClusteredLayerScore,
    LayerAblationCam,
    LayerGroupCam,
    LayerScoreCam,
)
from captum_clustered._copies import OVER, READS, first_that_agrees, plans
from captum_clustered.metrics import deletion, infidelity, insertion

TARGET = 1


class Net(nn.Module):
    """A convolution, something done to its maps, a linear head."""

    def __init__(self, between=lambda maps: maps, head=None):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
        self.head = head or nn.Linear(6, 4)
        self.between = between

    def forward(self, x):
        return self.head(self.between(self.conv(x)).mean((2, 3)))


def early_if_sure(self_sure):
    class Early(Net):
        def forward(self, x):
            maps = self.conv(x)
            early = self.head(maps.mean((2, 3)))
            sure = bool(early.softmax(1).amax(1).min() > self_sure)
            return early if sure else 2 - self.head(maps.amax((2, 3)))

    return Early()


def halve_while_large(maps):
    while maps.abs().max() > 0.1:
        maps = maps / 2
    return maps


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())

    def forward(self, x, prompts):
        return 5 * self.conv(x).mean((2, 3)) @ prompts.T


class FixedBatch(Net):
    def forward(self, x):
        return super().forward(x.view(2, 3, 10, 10))


def lstm_int8():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU())
            self.lstm = nn.LSTM(6, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(self.conv(x).flatten(2).transpose(1, 2))[0][:, -1]

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Recurrent().eval(), {nn.LSTM}, torch.qint8)


def attend_across(maps):
    flat = maps.flatten(1)
    return ((flat @ flat.T).softmax(1) @ flat).view_as(maps)


def by_tolist(maps):
    return maps * max(maps.flatten(1).norm(dim=1).tolist())


def by_numpy(maps):
    return maps * float(maps.detach().flatten(1).norm(dim=1).numpy().max())


def doubled_if_any_is_weak(maps):
    """No copy of the first batch need be weak."""
    return 2 * maps if (maps.flatten(1).norm(dim=1) < 0.8).any() else maps


def room_for_a_hundred_places(maps):
    """As experts with a capacity have: who comes late gets nothing."""
    places = maps.permute(0, 2, 3, 1).flatten(0, 2)
    kept = (places[:, 0] > places[:, 1]).long().cumsum(0) <= 100
    return (places * kept[:, None]).view(*maps[:, 0].shape, -1).permute(0, 3, 1, 2)


def deviation_in_fours(maps):
    """The discriminator of StyleGAN does so, and leaves alone what makes no fours."""
    n = len(maps)
    fours = maps.unflatten(0, (4 if n % 4 == 0 else 1, -1))
    return maps + fours.std(0, unbiased=False).repeat(n // fours.shape[1], 1, 1, 1)


MODELS = {
    "room for a hundred places": lambda: Net(room_for_a_hundred_places),
    "deviation in fours": lambda: Net(deviation_in_fours),
    "neighbours in pairs": lambda: Net(
        lambda a: a if len(a) % 2 else a + a.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    ),
    "place in the order": lambda: Net(
        lambda a: a * a.sum((1, 2, 3)).argsort().argsort().view(-1, 1, 1, 1)
    ),
    "last twice": lambda: Net(lambda a: torch.cat([a[:-1], 2 * a[-1:]])),
    "largest of the batch": lambda: Net(lambda a: a / a.max()),
    "smallest of the batch": lambda: Net(lambda a: (a + 1) / (a + 1).min()),
    "mean of the batch": lambda: Net(lambda a: a - a.mean(0, keepdim=True)),
    "standardised over the batch": lambda: Net(lambda a: (a - a.mean()) / a.std()),
    "first of the batch": lambda: Net(lambda a: a * a[:1]),
    "last of the batch": lambda: Net(lambda a: a * a[-1:]),
    "the neighbour": lambda: Net(lambda a: a * a.roll(1, 0)),
    "batch norm without statistics": lambda: Net(
        nn.BatchNorm2d(6, track_running_stats=False).eval()
    ),
    "attention across examples": lambda: Net(attend_across),
    "early exit, sure": lambda: early_if_sure(0.2),
    "early exit, unsure": lambda: early_if_sure(0.3),
    "while": lambda: Net(halve_while_large),
    "by tolist": lambda: Net(by_tolist),
    "by numpy": lambda: Net(by_numpy),
    "if any is weak": lambda: Net(doubled_if_any_is_weak),
    "batch of two": FixedBatch,
    "int8 lstm": lstm_int8,
}  # fmt: skip

BY_PLACE_OR_NUMBER = ("room for a hundred places", "deviation in fours", "neighbours in pairs")


def _images(n=2, seed=0):
    return torch.rand(n, 3, 10, 10, generator=torch.Generator().manual_seed(seed))


def _quietly(explain, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return explain(*args, **kwargs)


def _by_hand(model, layer, x, labels, k, args=()):
    """The scores without group k of each example, by a hook."""

    def off(_, __, output):
        return torch.where((labels == k)[:, :, None, None], 0, output)

    handle = layer.register_forward_hook(off)
    try:
        with torch.no_grad():
            return model(x, *args)[:, TARGET]
    finally:
        handle.remove()


@pytest.mark.parametrize("replay", ["auto", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_each_copy_is_scored_as_if_alone(name, replay):
    model, x = MODELS[name]().eval(), _images()
    for chunk in (None, 3, 4, 100):
        cam = ClusteredLayerAblation(model, model.conv, n_clusters=4, replay=replay)
        found = _quietly(cam.explain, x, TARGET, perturbations_per_eval=chunk)
        for k in range(found.ablated_scores.shape[1]):
            expected = _by_hand(model, model.conv, x, found.labels, k)
            torch.testing.assert_close(found.ablated_scores[:, k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [5, 6, 7, None])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", BY_PLACE_OR_NUMBER)
def test_so_they_are_where_their_place_or_number_counts(name, n, chunk):
    model, x = MODELS[name]().eval(), _images(n)
    cam = LayerAblationCam(model, model.conv, replay="full")
    found = _quietly(cam.explain, x, TARGET, perturbations_per_eval=chunk)
    for k in range(found.ablated_scores.shape[1]):
        expected = _by_hand(model, model.conv, x, found.labels, k)
        torch.testing.assert_close(found.ablated_scores[:, k], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("metric", [insertion, deletion])
@pytest.mark.parametrize("name", BY_PLACE_OR_NUMBER)
def test_curves_where_place_or_number_counts(name, metric):
    model, x = MODELS[name]().eval(), _images(1)
    maps = torch.rand(1, 1, 10, 10, generator=torch.Generator().manual_seed(3))
    one, *others = (
        _quietly(
            metric, model, x, maps, TARGET, step=10, score="identity", fill=0.0,
            max_examples_per_batch=chunk,
        ).scores
        for chunk in (1, 5, 6, 7, 100)
    )  # fmt: skip
    for other in others:
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [ClusteredLayerScore, LayerScoreCam, LayerGroupCam])
@pytest.mark.parametrize("name", MODELS)
def test_each_masked_image_is_scored_as_if_alone(name, method):
    if name == "int8 lstm" and method is LayerGroupCam:
        pytest.skip("it has no gradient")
    model, x = MODELS[name]().eval(), _images()
    cam = method(model, model.conv, clusterer="kmeans", n_clusters=4)
    one, many = (
        _quietly(cam.explain, x, TARGET, perturbations_per_eval=chunk) for chunk in (1, None)
    )
    torch.testing.assert_close(many.masked_scores, one.masked_scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("metric", [insertion, deletion])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "int8 lstm"])
def test_curves_are_those_of_the_batch(name, metric):
    model, x = MODELS[name]().eval(), _images()
    maps = torch.rand(2, 1, 10, 10, generator=torch.Generator().manual_seed(3))
    stages = 5
    with torch.no_grad():
        plain = model(x)
    for chunk in (1, 3, 100):
        found = _quietly(
            metric, model, x, maps, TARGET, step=25, score="identity", fill=0.0,
            max_examples_per_batch=chunk,
        )  # fmt: skip
        order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
        for stage in range(stages):
            put = torch.zeros(2, 100, dtype=torch.bool)
            put.scatter_(1, order[:, : 25 * stage], True)
            put = put if metric is insertion else ~put
            with torch.no_grad():
                shown = torch.where(put.view(2, 1, 10, 10), x, 0.0)
                expected = plain if put.all() else model(shown)
            torch.testing.assert_close(
                found.scores[:, stage].float(), expected[:, TARGET], rtol=1e-4, atol=1e-5
            )


@pytest.mark.parametrize("between", [lambda a: a / a.max(), lambda a: a])
def test_infidelity_of_a_model_that_mixes(between):
    model, x, maps = Net(between).eval(), _images(), torch.rand(2, 1, 10, 10)

    def dimmed(images):  # by the same amount each time, so that batches can be compared
        return images / 10, images - images / 10

    one, many = (
        _quietly(
            infidelity, model, x, maps, TARGET, n_perturb_samples=4, normalize=False,
            perturb_func=dimmed, max_examples_per_batch=chunk,
        )
        for chunk in (2, 100)
    )  # fmt: skip
    torch.testing.assert_close(one, many, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("replay", ["auto", "full"])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_an_argument_that_all_share_is_not_repeated(n, replay):
    model, prompts = Prototypes().eval(), torch.randn(3, 6)
    x = _images(4)
    expected = ClusteredLayerScore(model, model.conv, n_clusters=3).explain(
        x, TARGET, additional_forward_args=prompts, perturbations_per_eval=1
    )
    found = ClusteredLayerScore(model, model.conv, n_clusters=3).explain(
        x[:n], TARGET, additional_forward_args=prompts
    )
    torch.testing.assert_close(found.masked_scores, expected.masked_scores[:n])
    cam = ClusteredLayerAblation(model, model.conv, n_clusters=3, replay=replay)
    found = cam.explain(x[:n], TARGET, additional_forward_args=prompts)
    for k in range(3):
        without = _by_hand(model, model.conv, x[:n], found.labels, k, (prompts,))
        torch.testing.assert_close(found.ablated_scores[:, k], without)
    maps = torch.rand(4, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    curves = [
        insertion(model, x[:m], maps[:m], TARGET, additional_forward_args=prompts, step=20)
        for m in (n, 4)
    ]
    torch.testing.assert_close(curves[0].scores, curves[1].scores[:n])


def test_an_argument_of_each_example_goes_with_it():
    class Shifted(Net):
        def forward(self, x, scale, shift):
            return super().forward(x) * scale[:, None] + shift

    model, x = Shifted().eval(), _images(3)
    scale, shift = torch.tensor([1.0, 2.0, 3.0]), torch.zeros(4).index_fill(0, torch.tensor(1), 1)
    cam = LayerAblationCam(model, model.conv, replay="full")
    found = cam.explain(x, TARGET, additional_forward_args=(scale, shift))
    for k in range(6):
        without = _by_hand(model, model.conv, x, found.labels, k, (scale, shift))
        torch.testing.assert_close(found.ablated_scores[:, k], without)


@given(
    n=st.integers(1, 3),
    chunk=st.sampled_from([None, 3, 4, 5, 17, 40]),
    power=st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]),
    statistic=st.sampled_from(["amax", "amin", "mean", "sum"]),
    axes=st.sampled_from([(0,), (1,), (0, 2, 3), (2, 3), (0, 1, 2, 3)]),
    seed=st.integers(0, 100),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_size_of_a_pass_never_changes_the_result(n, chunk, power, statistic, axes, seed):
    model = Net(lambda a: a * (getattr(a + 0.1, statistic)(axes, keepdim=True)) ** power).eval()
    x = _images(n, seed)
    for make in (
        lambda: ClusteredLayerScore(model, model.conv, n_clusters=4),
        lambda: ClusteredLayerAblation(model, model.conv, n_clusters=4, replay="full"),
    ):
        one, many = (
            _quietly(make().explain, x, TARGET, perturbations_per_eval=size) for size in (1, chunk)
        )
        torch.testing.assert_close(many.attributions, one.attributions, rtol=1e-3, atol=1e-6)


class SharedArgument(Net):
    """Reads an argument that all examples share, and averages it."""

    def forward(self, x, scale, weights):
        return super().forward(x) * scale.item() * weights.mean()


def test_what_all_share_may_be_read_and_averaged():
    model, x = SharedArgument().eval(), _images(2)
    more = (torch.tensor(2.0), torch.tensor([1.0, 3.0]))  # two weights, and two examples
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    cam = ClusteredLayerScore(model, model.conv, n_clusters=4)
    found = cam.explain(x, TARGET, additional_forward_args=more, perturbations_per_eval=8)
    few = len(passes)
    expected = cam.explain(x, TARGET, additional_forward_args=more, perturbations_per_eval=1)
    assert few < len(passes) - few
    torch.testing.assert_close(found.masked_scores, expected.masked_scores)
    maps = torch.rand(2, 1, 10, 10)
    deletion(model, x, maps, TARGET, additional_forward_args=more, step=20)


def test_an_axis_as_long_as_the_batch_of_copies_is_not_taken_for_it():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 6, 8), nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.conv(x).flatten(2).permute(2, 0, 1).mean(0))  # of (T, N, C)

    model, x = Tokens().eval(), _images(1)  # nine tokens
    for chunk in (8, 9, 10):
        cam = ClusteredLayerScore(model, model.conv, clusterer="contiguous", n_clusters=6)
        cam.explain(x, TARGET, perturbations_per_eval=chunk)


class Darker(Net):
    """The darker an image, the higher its score: a masked one has it a hundred times as high."""

    def forward(self, x):
        self.conv(x)
        score = (10 - 10 * x.mean((1, 2, 3))).exp()[:, None]
        return score * (1 + 1e-6 * (len(x) > 1))  # another order of summation in a batch


def test_rounding_of_a_large_score_is_no_sign_that_copies_mix():
    model = Darker().eval()
    x = 0.8 + 0.2 * _images(1).clamp(0, 1)
    cam = ClusteredLayerScore(model, model.conv, n_clusters=4, score="identity")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as that each copy has a pass of its own
        found = cam.explain(x, 0)
    assert found.masked_scores.max() > 100 * model(x)


def test_the_progress_bar_ends_at_its_total(capsys):
    model = Net(doubled_if_any_is_weak).eval()
    cam = LayerScoreCam(model, model.conv)
    _quietly(cam.attribute, _images(1), TARGET, perturbations_per_eval=4, show_progress=True)
    last = capsys.readouterr().err.rpartition("\r")[2]
    total = last.partition("/")[2].partition(" ")[0]
    assert f"{total}/{total}" in last


class TestWhatIsSaid:
    def test_of_a_model_that_mixes(self):
        model = Net(lambda a: a / a.max()).eval()
        with pytest.warns(
            UserWarning, match="has a pass of its own, because the model computes a value "
        ):
            ClusteredLayerScore(model, model.conv, n_clusters=4).explain(_images(), TARGET)

    def test_of_a_model_that_reads(self):
        model = Net(lambda a: a * float(a[0, 0, 0, 0])).eval()
        with pytest.warns(UserWarning, match="pass of its own, because the model reads values"):
            ClusteredLayerScore(model, model.conv, n_clusters=4).explain(_images(), TARGET)

    def test_of_a_model_for_one_size_of_batch(self):
        model = FixedBatch().eval()
        with pytest.warns(UserWarning, match="does not take several copies in one batch"):
            ClusteredLayerScore(model, model.conv, n_clusters=4).explain(_images(), TARGET)

    def test_of_curves(self):
        model = Net(lambda a: a / a.max()).eval()
        with pytest.warns(UserWarning, match="stay in the batch in which they were passed"):
            deletion(model, _images(), torch.rand(2, 1, 10, 10), TARGET, step=20)

    def test_of_curves_of_a_random_model(self):
        model = Net(lambda a: nn.functional.dropout(a, 0.5)).eval()
        with pytest.warns(UserWarning, match="another score when it ran again") as said:
            deletion(model, _images(), torch.rand(2, 1, 10, 10), TARGET, step=20)
        assert not [one for one in said if "right result" in str(one.message)]

    def test_nothing_where_one_copy_at_a_time_was_asked_for(self):
        model = Net(lambda a: a / a.max()).eval()
        cam = ClusteredLayerScore(model, model.conv, n_clusters=4)
        cam.explain(_images(), TARGET, perturbations_per_eval=1)

    @pytest.mark.parametrize("chunk", [None, 1])
    def test_of_a_random_model(self, chunk):
        model = Net(lambda a: nn.functional.dropout(a, 0.5)).eval()
        explain = ClusteredLayerScore(model, model.conv, n_clusters=4).explain
        with pytest.warns(UserWarning, match="another score when it ran again") as said:
            _ = explain(_images(), TARGET, perturbations_per_eval=chunk)
        assert not [one for one in said if "right result" in str(one.message)]

    @pytest.mark.parametrize("replay", ["auto", "full"])
    def test_a_random_model_is_not_said_to_give_the_same_numbers(self, replay):
        model = Net(lambda a: a + torch.rand(len(a), 1, 1, 1)).eval()
        cam = ClusteredLayerAblation(model, model.conv, n_clusters=4, replay=replay)
        with pytest.warns(UserWarning, match="another score when it ran again") as said:
            found = cam.explain(_images(), TARGET)
        assert found.replay == "full"
        assert "gives another score" in found.replay_reason
        assert not [one for one in said if "numbers are the same" in str(one.message)]

    def test_a_random_model_has_no_suffix(self):
        model = Net(lambda a: a + torch.rand(len(a), 1, 1, 1)).eval()
        cam = ClusteredLayerAblation(model, model.conv, n_clusters=4, replay="suffix")
        with pytest.raises(RuntimeError, match="gives another score when it runs again"):
            cam.explain(_images(), TARGET)


class TestChoices:
    def test_the_likeliest_comes_first(self):
        args = torch.rand(2, 3), torch.rand(2), "a", torch.tensor(1.0), torch.rand(2, 2)
        assert [sorted(one) for one in plans(args, 2, [0])] == [[0, 1, 4], [0, 1], [0, 4], [0]]

    def test_many_arguments(self):
        args = [torch.rand(2)] * 8
        found = [sorted(one) for one in plans(args, 2, [0])]
        assert found[:2] == [list(range(8)), [0]]
        assert len(found) == 2 + 7 + 7

    def test_what_is_written_into_counts_as_read(self):
        x, kept = torch.rand(3), torch.zeros(3)

        def run(_):
            return kept.add_(x)[0].item()

        found = first_that_agrees([frozenset()], lambda _: [x], run, lambda _: torch.ones(1))
        assert found == (None, READS, False)

    @pytest.mark.parametrize(
        ("read", "fine"),
        [
            (lambda x: x.isnan().any(), True),
            (lambda x: x.isfinite().all(), True),
            (lambda x: (x < 2).any(), False),  # of some, perhaps not of each
            (lambda x: (x < 0.5).all(), False),
            (lambda x: x.max() > 2, False),
        ],
    )
    def test_what_holds_for_all_may_be_read_if_it_holds_for_each(self, read, fine):
        x = torch.tensor([0.1, 0.9])

        def run(_):
            return 2 * x if read(x) else x

        shared = first_that_agrees([frozenset([0])], lambda _: [x], run, lambda output: output)
        assert (shared.repeated is not None) == shared.relied == fine
        assert fine or shared.found in (OVER, READS)

    def test_constants_may_be_read(self):
        x, constant = torch.rand(3), torch.ones(3)

        def run(_):
            return x * constant.sum().item()

        shared = first_that_agrees([frozenset([0])], lambda _: [x], run, lambda output: output)
        assert shared.repeated == {0}
        assert not shared.relied
        torch.testing.assert_close(shared.found, 3 * x)
