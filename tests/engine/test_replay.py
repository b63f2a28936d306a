"""The engine: what runs, what does not, what it leaves behind, and how it can be silently wrong."""

import itertools
import threading
import warnings
import weakref

import numpy as np
import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

import captum_clustered.engine.switching as switching
import small_models
from captum_clustered import ClusteredLayerAblation, _layout
from captum_clustered._borrow import borrowed
from captum_clustered.engine.capture import Call, LayerIO, capture
from captum_clustered.engine.model import as_model

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
TARGET = [1, 2]


def _model(make):
    torch.manual_seed(0)
    return make().double().eval()


def _explain(model, layer, **settings):
    """Each whole map alone: what Captum can switch off as well."""
    settings = {"clusterer": "every-map", "parts": "whole", **settings}
    return ClusteredLayerAblation(model, layer, **settings).explain(X, TARGET)


def _assert_equals_captum(model, layer, result):
    mask = torch.arange(result.labels.shape[1]).view(1, -1, 1, 1)
    theirs = LayerFeatureAblation(model, layer).attribute(X, target=TARGET, layer_mask=mask)
    drops = result.scores[:, None] - result.ablated_scores
    ours = drops.gather(1, result.labels.clamp(min=0)) * (result.labels >= 0)
    torch.testing.assert_close(ours, theirs[:, :, 0, 0], rtol=1e-9, atol=1e-12)


HARD = {
    "u-net": (small_models.UNet, lambda m: m.middle),
    "shared in-place relu": (small_models.SharedReLU, lambda m: m.conv2),
    "in-place behind layer": (small_models.InPlaceBehindLayer, lambda m: m.layer),
    "fault 1": (small_models.InPlaceAfterLayer, lambda m: m.conv),
    "fault 2": (small_models.InPlaceOnPrefix, lambda m: m.layer),
    "fault 3": (small_models.SharedChild, lambda m: m.layer),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_models_take_the_fast_path_and_equal_captum(name):
    make, find = HARD[name]
    model = _model(make)
    if name == "u-net":
        whole = model
        model = lambda x: whole(x).mean((2, 3)) ** 2  # noqa: E731
        layer = find(whole)
    else:
        layer = find(model)
    result = _explain(model, layer)
    assert result.replay == "suffix", result.replay_reason
    if name == "fault 1":  # Captum lets the model overwrite the activations that it ablates next
        activation = layer(X).detach()
        for k in range(6):
            without = activation.clone()
            without[:, k] = 0
            scores = model.fc((without * -2).relu().mean((2, 3)) ** 2)[[0, 1], TARGET]
            torch.testing.assert_close(result.ablated_scores[:, k], scores.detach())
    else:
        _assert_equals_captum(model, layer, result)


class TestEachCureIsNeeded:
    """Without its cure each fault is noticed by the self-check, which then takes the full path."""

    def _assert_noticed(self, name, said="did not reproduce the score"):
        make, find = HARD[name]
        model = _model(make)
        with pytest.warns(UserWarning, match=said):
            result = _explain(model, find(model))
        assert result.replay == "full"
        return model, find(model), result

    def test_activation_is_cloned(self, monkeypatch):
        monkeypatch.setattr(torch.Tensor, "clone", lambda self, **_: self)
        self._assert_noticed("fault 1", "something else holds the value too")

    def test_changed_outputs_leave_the_prefix(self, monkeypatch):
        monkeypatch.setattr(Call, "unchanged", lambda self: True)
        self._assert_noticed("fault 2")

    def test_skipped_calls_count(self, monkeypatch):
        make = Call.__init__

        def forgetful(self, *args, **kwargs):
            make(self, *args, **kwargs)
            self.inside = []

        monkeypatch.setattr(Call, "__init__", forgetful)
        self._assert_noticed("fault 3")

    def test_the_full_path_is_right_all_the_same(self, monkeypatch):
        monkeypatch.setattr(Call, "unchanged", lambda self: True)
        model, layer, result = self._assert_noticed("fault 2")
        monkeypatch.undo()
        _assert_equals_captum(model, layer, result)


@pytest.mark.parametrize("chunk", [None, 1, 4, 100])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_layers_up_to_the_target_run_once(groups, chunk):
    model = small_models.split_cnn()
    images, heads = [], []
    model[0][0].register_forward_hook(lambda _, args, __: images.append(len(args[0])))
    model[1][0].register_forward_hook(lambda *_: heads.append(1))
    cam = ClusteredLayerAblation(model, model[0], n_clusters=groups)
    result = cam.explain(X, TARGET, perturbations_per_eval=chunk)
    assert images == [2]
    copies = result.ablated_scores.shape[1] + 1  # one stays whole
    passes = -(-copies // chunk) if chunk else 1
    assert len(heads) == 1 + passes


def test_the_full_path_runs_the_model_as_captum_does():
    model = small_models.split_cnn()
    images = []
    model[0][0].register_forward_hook(lambda _, args, __: images.append(len(args[0])))
    with torch.no_grad():
        model[0][0].bias += 1  # no map is dead
    labels = torch.tensor([0, 1, 2, 3, 4, 4])
    cam = ClusteredLayerAblation(model, model[0], clusterer=labels, replay="full")
    result = cam.explain(X, TARGET, perturbations_per_eval=5)
    assert result.ablated_scores.shape == (2, 5)
    # one copy alone, three go along as a check, and one in the last pass, which is smaller
    assert images == [2, 2, 10, 8]


class Recurrent(nn.Module):
    """An LSTM behind the layer has no batching rule."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.lstm = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x):
        maps = self.conv(x)
        return self.lstm(maps.flatten(2).transpose(1, 2))[0][:, -1]


class Branching(nn.Module):
    """Control flow on the values behind the layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)

    def forward(self, x):
        means = self.conv(x).mean((2, 3))
        return means if means.sum() > 0 else means**2


@pytest.mark.parametrize(
    ("make", "reason"), [(Recurrent, "lstm"), (Branching, "the model reads values")]
)
def test_where_vmap_cannot_go_the_full_path_says_why_once(make, reason):
    model = _model(make)
    with pytest.warns(UserWarning, match=f"(?i)The whole model runs again .*{reason}") as caught:
        result = _explain(model, model.conv)
    assert len(caught) == 1
    assert result.replay == "full"
    assert reason in result.replay_reason.lower()
    if make is Recurrent:
        _assert_equals_captum(model, model.conv, result)


def test_the_full_path_can_be_asked_for_without_a_warning():
    model = _model(Recurrent)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = _explain(model, model.conv, replay="full")
    assert (result.replay, result.replay_reason) == ("full", "it was asked for")


def test_the_suffix_path_can_be_insisted_on():
    model = _model(Recurrent)
    with pytest.raises(RuntimeError, match=r"(?i)`replay` must be .* got 'suffix', .*lstm"):
        _explain(model, model.conv, replay="suffix")


class Wider(nn.Module):
    """Ten times as many maps behind the layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.wide = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 60, 1)

    def forward(self, x):
        return self.wide(self.conv(x)).relu().mean((2, 3))


def _copies_at_a_time(model, layer, budget, monkeypatch):
    sizes = []
    monkeypatch.setitem(_layout.BUDGET, "cpu", budget)
    without = switching.Ablation.without

    def spy(self, groups, room=None):
        sizes.append(len(groups))
        return without(self, groups, room)

    monkeypatch.setattr(switching.Ablation, "without", spy)
    result = _explain(model, layer)
    assert sum(sizes) == result.ablated_scores.shape[1] + 1  # one stays whole
    return sizes


def test_memory_is_bounded_by_the_budget(monkeypatch):
    model = small_models.split_cnn()
    copy = 2 * 6 * 36 * 8  # bytes of the layer's output
    sizes = _copies_at_a_time(model, model[0], 5 * copy + copy // 2, monkeypatch)
    assert sizes == [3, 3]  # as few as can be, and as equal


def test_memory_is_bounded_by_the_largest_value_behind_the_layer(monkeypatch):
    model = _model(Wider)
    largest = model.wide(model.conv(X)).nbytes
    sizes = _copies_at_a_time(model, model.conv, 2 * largest, monkeypatch)
    assert max(sizes) == 2


class Remembers(nn.Module):
    """Keeps what it saw, as many models do."""

    def __init__(self):
        super().__init__()
        self.net = small_models.split_cnn()
        self.last = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.last = self.net[0](x)
        self.extra = self.net[1](self.last)
        return self.extra


class Fails(nn.Module):
    """Raises from its n-th call on."""

    def __init__(self, call):
        super().__init__()
        self.call = call
        self.calls = itertools.count(1)  # unlike a number, not put back

    def forward(self, x):
        if next(self.calls) >= self.call:
            raise ArithmeticError("broken")
        return x


def _state(model):
    return {
        name: (
            dict(module.__dict__),
            [dict(hooks) for hooks in (module._forward_hooks, module._forward_pre_hooks)],
            module.training,
        )
        for name, module in model.named_modules()
    }


def _assert_nothing_left(model, before, buffers):
    for name, (attributes, hooks, training) in _state(model).items():
        assert attributes.keys() == before[name][0].keys()
        assert all(value is before[name][0][key] for key, value in attributes.items())
        assert hooks == before[name][1]
        assert training == before[name][2]
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        torch.testing.assert_close(buffer, value)
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_nothing_is_left_behind():
    model = Remembers()
    before, buffers = _state(model), [b.clone() for b in model.buffers()]
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    x = X.clone()
    ClusteredLayerAblation(model, model.net[0], n_clusters=3).attribute(x, TARGET)
    _assert_nothing_left(model, before, buffers)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert torch.equal(x, X)


class Overwrites(nn.Module):
    """Normalises what it is given in place."""

    def __init__(self):
        super().__init__()
        self.net = small_models.split_cnn()

    def forward(self, x, shift):
        x.sub_(shift)
        shift.add_(1)
        return self.net(x)


@pytest.mark.parametrize("replay", ["suffix", "full"])
def test_a_model_that_overwrites_its_arguments(replay):
    model = Overwrites()
    expected = _explain(model.net, model.net[0])  # of the image that is left after the shift
    x, shift = X + 0.25, torch.tensor(0.25, dtype=torch.float64)
    cam = ClusteredLayerAblation(model, model.net[0], clusterer="every-map", replay=replay)
    result = cam.explain(x, TARGET, additional_forward_args=shift, perturbations_per_eval=2)
    torch.testing.assert_close(result.ablated_scores, expected.ablated_scores)
    assert torch.equal(x, X + 0.25)
    assert float(shift) == 0.25


@pytest.mark.parametrize("call", [1, 2, 3])
def test_nothing_is_left_behind_after_an_exception(call):
    """In the capture, in the first chunk of the replay, in the full path."""
    net = small_models.split_cnn()
    net.append(Fails(call))
    before = _state(net)
    cam = ClusteredLayerAblation(net, net[0], replay="full" if call == 3 else "suffix")
    with pytest.raises((ArithmeticError, RuntimeError), match="broken"):
        cam.attribute(X, TARGET, perturbations_per_eval=1)
    for name, (attributes, hooks, _) in _state(net).items():
        assert attributes.keys() == before[name][0].keys()
        assert hooks == before[name][1]
    assert not torch.nn.modules.module._global_forward_hooks


def test_nothing_is_left_behind_after_a_bad_target():
    model = Remembers()
    before, buffers = _state(model), [b.clone() for b in model.buffers()]
    with pytest.raises(ValueError, match="`target` must lie in"):
        ClusteredLayerAblation(model, model.net[0]).attribute(X, 99)
    _assert_nothing_left(model, before, buffers)


def test_a_model_in_training_mode_warns_and_keeps_its_statistics():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5),
        nn.Linear(144, 3),
    ).double()  # fmt: skip
    before, buffers = _state(model), [b.clone() for b in model.buffers()]
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"training mode.*model\.eval\(\)") as caught:
        result = ClusteredLayerAblation(model, model[2], n_clusters=2).explain(X, TARGET)
    assert len(caught) == 1
    assert result.replay == "full"
    assert "training mode" in result.replay_reason
    _assert_nothing_left(model, before, buffers)
    assert torch.equal(state, torch.get_rng_state())


def test_two_threads_may_share_an_object_and_its_model():
    model = small_models.split_cnn()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=4)
    batches = [X, X.flip(0) + 0.1]
    expected = [cam.attribute(x, TARGET) for x in batches]
    plain = model(X)
    wrong = []

    def work(i):
        for _ in range(10):
            if not torch.equal(cam.attribute(batches[i], TARGET), expected[i]):
                wrong.append(i)

    def run_the_model():
        for _ in range(100):
            if not torch.equal(model(X), plain):
                wrong.append("plain")

    threads = [threading.Thread(target=work, args=(i,)) for i in (0, 1)]
    threads.append(threading.Thread(target=run_the_model))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradient_modes_do_not_matter(context):
    model = small_models.split_cnn()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=3)
    expected = cam.attribute(X, TARGET)
    with context():
        x = X.clone()
        result = cam.explain(x, TARGET)
    assert result.replay == "suffix"
    torch.testing.assert_close(result.attributions, expected)


def test_frozen_parameters_do_not_matter():
    model = small_models.split_cnn()
    expected = ClusteredLayerAblation(model, model[0], n_clusters=3).attribute(X, TARGET)
    model.requires_grad_(False)
    result = ClusteredLayerAblation(model, model[0], n_clusters=3).attribute(X, TARGET)
    assert torch.equal(result, expected)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
def test_lower_precision(dtype, tolerance):
    model = small_models.split_cnn()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    expected = ClusteredLayerAblation(model, model[0], clusterer=labels).attribute(X, TARGET)
    low = small_models.split_cnn().to(dtype)
    result = ClusteredLayerAblation(low, low[0], clusterer=labels).explain(X.to(dtype), TARGET)
    assert result.replay == "suffix"
    assert result.attributions.dtype == dtype
    scale = float(expected.max())
    assert (result.attributions.double() - expected).abs().max() < tolerance * scale


def test_under_autocast():
    model = small_models.split_cnn().float()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=3)
    with torch.autocast("cpu", torch.bfloat16):
        result = cam.explain(X.float(), TARGET)
        full = ClusteredLayerAblation(
            model, model[0], clusterer=result.labels, replay="full"
        ).explain(X.float(), TARGET)
    assert result.replay == "suffix"
    torch.testing.assert_close(
        result.ablated_scores.float(), full.ablated_scores.float(), rtol=0.05, atol=0.02
    )


def test_the_progress_bar_counts_groups(capsys):
    model = small_models.split_cnn()
    cam = ClusteredLayerAblation(model, model[0], n_clusters=6)
    cam.attribute(X, TARGET, show_progress=True, perturbations_per_eval=2)
    assert "Clustered Layer Ablation attribution: 100%" in capsys.readouterr().err


class Counted(nn.Conv2d):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        type(self).runs = []  # of the class: what is the model's own is put back

    def forward(self, x):
        self.runs.append(len(x))
        return super().forward(x)


class Stem(nn.Module):
    """What the stem gives is overwritten, and then needed by nobody."""

    def __init__(self):
        super().__init__()
        self.stem = Counted(3, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.layer = nn.Conv2d(5, 5, 3, padding=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.layer(self.relu(self.stem(x)))
        return self.fc(x.mean((2, 3)) ** 2)


class SkipFromStem(Stem):
    """What the next module has taken is needed behind the layer, in another form."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.stem(x)
        skip = x.tanh()
        x = self.relu(x)
        x = self.layer(x) + skip
        return self.fc(x.mean((2, 3)) ** 2)


class LengthOfStem(Stem):
    """The same, but only its size is needed."""

    def forward(self, x):
        x = self.stem(x)
        size = x.shape[-1]
        x = self.layer(self.relu(x))
        return self.fc(x.mean((2, 3)) ** 2 * size)


def _captured(model, whole=False):
    with borrowed(model) as forward_func:
        args = as_model(forward_func, X, None)
        return capture(args, LayerIO(model.layer), torch.tensor([[1], [2]]), whole=whole).prefix


def test_of_the_prefix_only_what_the_model_holds_is_kept():
    model = nn.Sequential()
    model.a, model.b, model.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
    model.layer = nn.Conv2d(3, 4, 1)
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.double()
    devices = [call.output.device.type for call in _captured(model)]
    assert devices == ["meta", "meta", "cpu", "cpu"]  # c's is the layer's argument
    assert all(call.output.device.type == "cpu" for call in _captured(model, whole=True))


def test_outputs_inside_a_block_without_the_layer_are_not_kept():
    model = small_models.split_cnn()
    block = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(3))).double()
    outputs, gone = [], []
    block[0].register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    block[2].register_forward_pre_hook(lambda *_: gone.append(outputs[0]() is None))
    layer = model[0]
    ClusteredLayerAblation(nn.Sequential(block, model), layer, n_clusters=2).attribute(X, target=1)
    assert gone == [True]


@pytest.mark.parametrize(("make", "runs"), [(Stem, 1), (SkipFromStem, 2), (LengthOfStem, 1)])
def test_a_model_that_needs_what_was_not_kept_runs_once_more(make, runs):
    model = _model(make)
    result = _explain(model, model.layer)
    assert model.stem.runs == [2] * runs
    assert result.replay == "suffix", result.replay_reason
    _assert_equals_captum(model, model.layer, result)
