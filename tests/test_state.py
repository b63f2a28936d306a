"""Models that write into themselves: each pass finds them as they were, and so does the caller."""

import copy
import functools
import gc
import io
import os
import random
import signal
import threading
import types
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules import module as torch_module
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from captum_clustered import LayerAblationCam, _state
from captum_clustered._borrow import lent
from captum_clustered._state import Memory
from captum_clustered.evaluation.judging import begin
from captum_clustered.layers import find_target_layer
from captum_clustered.methods import METHODS, make
from captum_clustered.metrics import confidences, deletion, infidelity, insertion, sensitivity_max
from captum_clustered.models import prepared
from stateful_models import (
    BUILDS,
    PUT_BACK,
    Attribute,
    Base,
    BufferByData,
    BufferInPlace,
    ModulesInADictionary,
)

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
OTHER = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
MODELS = [*PUT_BACK, *BUILDS]


@torch.no_grad()
def _model(kind):
    """A model, and a copy as each pass is to find it: after a plain pass, if it builds."""
    torch.manual_seed(1)
    model = kind()
    torch.manual_seed(2)
    like = copy.deepcopy(model)
    if kind in BUILDS:
        like(X)
    torch.manual_seed(2)
    return model, like


@torch.no_grad()
def _without(like, k):
    """By hand: the score of a fresh copy without the map `k`."""
    model = copy.deepcopy(like)

    def hook(_, __, output):
        return output * (torch.arange(4) != k).view(1, 4, 1, 1)

    model.a.register_forward_hook(hook)
    return model(X)[:, 1]


@torch.no_grad()
def _assert_as_it_was(model, like):
    """It runs, and gives bit by bit what it would have; it can be stored, copied and converted."""
    like = copy.deepcopy(like)
    copy.deepcopy(model)
    torch.save(model.state_dict(), io.BytesIO())
    assert {k: v.tolist() for k, v in model.state_dict().items()} == {
        k: v.tolist() for k, v in like.state_dict().items()
    }
    assert [m.training for m in model.modules()] == [m.training for m in like.modules()]
    assert [len(m._forward_hooks) for m in model.modules()] == [
        len(m._forward_hooks) for m in like.modules()
    ]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    for x in (X, OTHER):
        assert torch.equal(model(x), like(x))
    if not isinstance(model, ModulesInADictionary):  # which torch does not convert
        assert torch.equal(model.double()(X.double()), like.double()(X.double()))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("replay", ["auto", "full"])
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_fresh_copies(kind, replay):
    model, like = _model(kind)
    cam = LayerAblationCam(model, model.a, replay=replay)
    for _ in range(2):
        result = cam.explain(X, target=1, perturbations_per_eval=1)
        torch.testing.assert_close(result.scores, _without(like, -1))
        expected = torch.stack([_without(like, k) for k in range(4)], 1)
        torch.testing.assert_close(result.ablated_scores, expected)
    _assert_as_it_was(model, like)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_every_method_leaves_the_model_as_it_was(kind):
    for name, method in METHODS.items():
        model, like = _model(kind)
        small = {"n_clusters": 2} if method.clusters else {}
        cam = make(name, model, model.a, **small)
        first = cam.attribute(X, target=1)
        assert torch.equal(first, cam.attribute(X, target=1)), name
        _assert_as_it_was(model, like)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
@pytest.mark.filterwarnings("ignore:The images stay in the batch:UserWarning")
def test_every_metric_leaves_the_model_as_it_was(kind):
    model, like = _model(kind)
    heat = X.mean(1, keepdim=True)
    with torch.no_grad():
        alone, blank = copy.deepcopy(like)(X), copy.deepcopy(like)(0 * X)
    for _ in range(2):
        found = confidences(model, X, 0 * heat, 1, score="identity", normalize=None)
        torch.testing.assert_close(found.original.float(), alone[:, 1])
        torch.testing.assert_close(found.masked.float(), blank[:, 1])
        torch.testing.assert_close(found.complement.float(), alone[:, 1])
    for metric in (insertion, deletion, infidelity):
        first, again = (metric(model, X, heat, 1) for _ in range(2))
        pair = (first, again) if metric is infidelity else (first.scores, again.scores)
        assert torch.equal(*pair)
    _assert_as_it_was(model, like)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_sensitivity_explains_the_model_as_it_was_each_time(kind, hidden):
    model, like = _model(kind)

    def fresh(x, target):
        one = copy.deepcopy(like)
        return LayerGradCam(one, one.a).attribute(x, target)

    cam = LayerGradCam(model, model.a)
    explain = functools.partial(lambda cams, *args: cams[0].attribute(*args), [cam])
    found = sensitivity_max(
        (lambda x, target: explain(x, target)) if hidden else cam.attribute,
        X,
        1,
        perturb_radius=0.3,
        n_perturb_samples=3,
        max_examples_per_batch=2,
    )
    right = sensitivity_max(
        fresh, X, 1, perturb_radius=0.3, n_perturb_samples=3, max_examples_per_batch=2
    )
    torch.testing.assert_close(found, right)
    _assert_as_it_was(model, like)


def _finds_a_layer(model):
    assert find_target_layer(model, X).name == "a"


def _begins_to_judge(model):
    begin(model, X)


def _prepares(model):
    prepared._scores(model, X)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("door", [_finds_a_layer, _begins_to_judge, _prepares])
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
def test_whoever_runs_the_model_leaves_it_as_it_was(kind, door):
    model, like = _model(kind)
    door(model)
    _assert_as_it_was(model, like)


class SparseBuffer(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("graph", torch.eye(4).to_sparse())

    def state(self, h):
        self.graph.mul_(2)
        return torch.sparse.mm(self.graph, h.T).T


def test_a_sparse_buffer_is_put_back():
    model = SparseBuffer()
    first, again = (LayerAblationCam(model, model.a).attribute(X, target=1) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(model.graph.to_dense(), torch.eye(4))


class BuildsAndWritesIntoItsInput(Base):
    def forward(self, x):
        if not hasattr(self, "head"):
            self.head = torch.nn.Linear(4, 2)
        return self.head(self.a(x.sub_(0.5)).mean((2, 3)))


@torch.no_grad()
def test_a_model_is_built_by_the_images_as_they_are():
    model, heat = BuildsAndWritesIntoItsInput(), X.mean(1, keepdim=True)
    kept = X.clone()
    found = confidences(model, X, heat, 1, score="identity").original
    assert torch.equal(X, kept)
    torch.testing.assert_close(found.float(), model(X.clone())[:, 1])
    assert deletion(model, X, heat, 1, score="identity", step=16).scores[0, 0] == found[0]


class WritesIntoAnArgument(Base):
    def forward(self, x, scale):
        scale.mul_(2)
        return self.f(self.a(x).mean((2, 3))) * scale[:, None]


def test_metrics_take_an_argument_that_is_written_to_as_it_is():
    model, heat, scale = WritesIntoAnArgument(), X.mean(1, keepdim=True), torch.tensor([1.0, 3.0])
    kept = {"step": 16, "score": "identity"}
    found = deletion(model, X, heat, 1, additional_forward_args=scale, **kept)  # without a warning
    assert scale.tolist() == [1, 3]
    alone = [
        deletion(model, X[i : i + 1], heat[i : i + 1], 1, additional_forward_args=scale[i : i + 1],
                 **kept).scores
        for i in range(2)
    ]  # fmt: skip
    torch.testing.assert_close(found.scores, torch.cat(alone))


# --- what is remembered, and when it is compared --------------------------------------------------


class NamesFirst(torch.nn.Module):
    """Has an attribute before those that every module has."""

    def __init__(self):
        self.__dict__["early"] = []
        super().__init__()
        self.flag = True
        self.fold = torch.nn.Conv2d(1, 2, 2, bias=False)
        self.norm = torch.nn.BatchNorm2d(2)
        self.eval()


def _rename(model):
    model.other = model.__dict__.pop("flag")


@pytest.mark.parametrize(
    "write",
    [
        _rename,
        lambda model: model.early.append(1),
        lambda model: model.__dict__.update(early=[]),
        lambda model: model.__dict__.update(_forward_hooks={}),
        lambda model: setattr(model.fold, "stride", (1, 1)),
        lambda model: setattr(model.fold, "flag", None),
        lambda model: model.fold.register_parameter("bias", torch.nn.Parameter(torch.ones(2))),
        lambda model: model.fold.weight.requires_grad_(False),
        lambda model: setattr(model.fold.weight, "grad", torch.ones(2, 1, 2, 2)),
        lambda model: model.norm.running_mean.add_(1),
        lambda model: setattr(model.norm, "running_var", torch.ones(2)),
        lambda model: model.norm.register_state_dict_pre_hook(lambda *_: None),
        lambda model: model.norm.register_full_backward_hook(print),
        lambda model: model.norm.train(),
        lambda model: model._modules.update(norm=model._modules.pop("fold")),
    ],
)
@pytest.mark.parametrize("stored", [False, True])
def test_a_write_is_seen_and_taken_back(write, stored):
    model = NamesFirst()
    if stored:  # the names of its attributes are then other strings
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        model = torch.load(buffer, weights_only=False)
    memory = Memory()
    memory.add(model)
    before = [list(module.__dict__.items()) for module in model.modules()]
    held = [copy.copy(value) for _, value in before[0] if isinstance(value, (dict, list))]
    assert not memory.changed()
    write(model)
    assert memory.changed()
    memory.put_back()
    assert not memory.changed()
    after = [list(module.__dict__.items()) for module in model.modules()]
    for was, now in zip(before, after, strict=True):
        assert [name for name, _ in was] == [name for name, _ in now]
        assert all(one is other for (_, one), (_, other) in zip(was, now, strict=True))
    assert held == [value for _, value in after[0] if isinstance(value, (dict, list))]
    assert model.norm.running_mean.tolist() == [0, 0]
    assert model.fold.weight.requires_grad
    assert model.fold.weight.grad is None


class _Written(TorchDispatchMode):
    """Notes the numbers of tensors that were written, operation by operation."""

    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("aten::_foreach_copy_", "aten::copy_"):
            self.counts.append(len(args[0]) if isinstance(args[0], list) else 1)
        return func(*args, **(kwargs or {}))


def test_what_nobody_can_write_is_not_written_at_once():
    one = torch.zeros(1)
    assert not _state._written_at_once([one, one.expand(3)], [torch.ones(1), torch.ones(3)])
    assert _state._written_at_once([one, torch.ones(3)], [torch.ones(1), torch.ones(3)])
    assert one == 1


def test_statistics_on_an_accelerator_are_written_back_unread_at_once(monkeypatch):
    monkeypatch.setattr(_state, "_PLAIN", (FakeTensor,))
    norms = [torch.nn.BatchNorm2d(3) for _ in range(4)]
    model = torch.nn.Sequential(*norms).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device("cuda"):
        for norm in norms:
            norm.running_mean, norm.running_var = torch.zeros(3), torch.ones(3)
        memory = Memory()
        memory.add(model)
        x, norm = torch.rand(2, 3, 4, 4), norms[0]
        before = norm.running_mean._version
        torch.nn.functional.batch_norm(x, norm.running_mean, norm.running_var, training=True)
        assert norm.running_mean._version == before, "batch norm is counted by now"
        assert memory.changed()
        with _Written() as written:
            memory.put_back()
    assert written.counts == [8]


def test_a_model_that_writes_nothing_is_put_back_once(monkeypatch):
    put_back, times = Memory.put_back, []
    monkeypatch.setattr(Memory, "put_back", lambda self: (times.append(self), put_back(self)))
    model = Base()
    model.state = lambda h: h
    LayerAblationCam(model, model.a).attribute(X, target=1)
    assert len(times) == 1, "at the end; before that the comparison after the first pass is enough"
    times.clear()
    model = Attribute()
    LayerAblationCam(model, model.a).attribute(X, target=1)
    assert len(times) == 2, "before the second pass, too"


def test_what_is_remembered_is_freed_without_a_collection(monkeypatch):
    made = []

    class Noted(Memory):
        def __init__(self, **how):
            super().__init__(**how)
            made.append(weakref.ref(self))

    monkeypatch.setattr("captum_clustered._borrow.Memory", Noted)
    model = Attribute()
    gc.disable()
    try:
        LayerAblationCam(model, model.a).attribute(X, target=1)
        assert len(made) == 3
        assert not any(one() for one in made)
    finally:
        gc.enable()


def test_what_a_backward_pass_writes_is_put_back_before_the_next_pass():
    class Adapts(Base):
        level = 1.0

        def state(self, h):
            return h * self.level

    model = Adapts()
    model.f.register_full_backward_hook(lambda *_: setattr(model, "level", model.level + 1))
    expected = model(X)
    with lent(model) as lent_model:
        lent_model(X).sum().backward()
        assert model.level == 2
        assert torch.equal(lent_model(X), expected)
    assert model.level == 1


class OfTheClass(Base):
    """Keeps for all its objects what it saw."""

    seen = None
    past: ClassVar = []

    def state(self, h):
        h = h if self.seen is None else h + self.seen
        h = h + sum(self.past) + getattr(self, "late", 0)
        type(self).seen = type(self).late = h
        self.past.append(h)
        return h


@pytest.mark.parametrize("replay", ["auto", "full"])
def test_tensors_that_a_class_keeps_are_put_back(replay):
    torch.manual_seed(1)
    model = OfTheClass()
    with torch.no_grad():
        maps = model.a(X).mean((2, 3))
        scores = [model.f(maps * (torch.arange(4) != k))[:, 1] for k in range(-1, 4)]
    for _ in range(2):
        result = LayerAblationCam(model, model.a, replay=replay).explain(X, 1)
        torch.testing.assert_close(result.scores, scores[0])
        torch.testing.assert_close(result.ablated_scores, torch.stack(scores[1:], 1))
    assert OfTheClass.seen is None
    assert not OfTheClass.past
    assert not hasattr(OfTheClass, "late")


class HooksAllModules(Base):
    def state(self, h):
        register_module_forward_hook(_does_nothing)
        return h


def _does_nothing(*_):
    return None


def test_hooks_on_all_modules_do_not_pile_up():
    hooks = torch_module._global_forward_hooks
    assert not hooks
    try:
        LayerAblationCam(model := HooksAllModules(), model.a, replay="full").attribute(X, target=1)
        assert len(hooks) == 1, "as after one pass, since a model may install them for good"
    finally:
        hooks.clear()


class WritesInInferenceMode(Base):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(3).eval()
        self.register_buffer("mean", torch.ones(4))
        self.scale = torch.nn.Parameter(torch.ones(4))

    def state(self, h):
        with torch.inference_mode():
            self.mean += 1
        return h * self.scale * self.mean


@torch.inference_mode()
def _made_in_inference_mode():
    return WritesInInferenceMode()


def test_a_model_made_in_inference_mode_is_found_as_it_was():
    model = _made_in_inference_mode()
    with torch.no_grad(), lent(model) as lent_model:
        assert lent_model(X).equal(lent_model(X))
    assert model.mean.tolist() == [1] * 4


@pytest.mark.parametrize("door", [_finds_a_layer, _begins_to_judge, _prepares])
def test_whoever_runs_a_model_made_in_inference_mode_leaves_it(door):
    model = _made_in_inference_mode()
    door(model)
    assert model.mean.tolist() == [1] * 4


def test_a_model_made_in_inference_mode_is_explained():
    model = _made_in_inference_mode()
    result = LayerAblationCam(model, model.a).explain(X, target=1)
    assert result.attributions.isfinite().all()
    assert model.mean.tolist() == [1] * 4


class Doubles(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(4))

    def forward(self, h):
        self.scale.data.mul_(2)
        return h * self.scale


class ListedParameters(Base):
    """Its parameters are found in a list before they are found in their modules."""

    def __init__(self):
        super().__init__()
        self.part = Doubles()
        self.trainable = list(self.parameters())

    def state(self, h):
        return self.part(h)


@torch.no_grad()
def test_parameters_are_watched_whatever_leads_to_them():
    model = ListedParameters()
    with lent(model) as lent_model:
        assert lent_model(X).equal(lent_model(X))


# --- hooks of others ------------------------------------------------------------------------------


class Store:
    """Keeps features in many ways; `kept` is the last of each."""

    shared: ClassVar = {}
    __slots__ = ("one",)

    def hook(self, _, __, output):
        self.one = output.detach()
        Store.shared["one"] = output.detach()


KEPT = {}
last = None


def _keeps_in_globals(_, __, output):
    global last
    last = output.detach()
    KEPT["one"] = [output.detach()]


@pytest.mark.parametrize("name", METHODS)
def test_hooks_of_others_have_seen_the_model_as_it_is(name):
    model = Attribute()
    listed, inner, store = [], types.SimpleNamespace(one=None), Store()
    hooks = [
        lambda _, __, output: listed.append(output.detach()),
        lambda _, __, output, inner=inner: setattr(inner, "one", output.detach()),
        store.hook,
        functools.partial(lambda at, *found: at.update(one=found[-1]), KEPT.setdefault("deep", {})),
        _keeps_in_globals,
    ]
    for module in (model.a[0], model.a, model.f):
        for hook in hooks:
            module.register_forward_hook(hook)
    with torch.no_grad():
        features = [model.a[0](X), model.a(X), model(X)]
    model.mem = None
    listed.clear()
    small = {"n_clusters": 2} if METHODS[name].clusters else {}
    make(name, model, model.a, **small).attribute(X, target=1)
    kept = [inner.one, store.one, Store.shared["one"], last, KEPT["one"][0], KEPT["deep"]["one"]]
    for tensor in kept:
        assert np.array_equal(tensor.numpy(), features[2].numpy())
    for tensor, feature in zip(listed, features, strict=True):
        assert np.array_equal(tensor.numpy(), feature.numpy())
    assert model.mem is None


def test_what_hooks_count_is_left_to_them():
    model, runs = Attribute(), []
    model.a[0].register_forward_hook(lambda *args: runs.append(len(args[2])))
    LayerAblationCam(model, model.a).attribute(X, target=1)
    assert runs == [2]  # the first pass; no further one for the hook's sake


# --- what a function closes over ------------------------------------------------------------------


class Predictor:
    """No module, but it holds one, and something of its last call."""

    def __init__(self):
        self.model = Attribute()
        self.last = None

    def predict(self, x):
        self.last = self.model(x) + (0 if self.last is None else self.last)
        return self.last

    __call__ = predict


@pytest.mark.parametrize(
    "wrap",
    [
        lambda p: p,
        lambda p: p.predict,
        lambda p: functools.partial(Predictor.predict, p),
        lambda p: lambda x: p.model.f(p.model.state(p.model.a(x).mean((2, 3)))),
    ],
)
def test_the_model_behind_a_function(wrap):
    torch.manual_seed(1)
    predictor = Predictor()
    like = copy.deepcopy(predictor.model)
    for _ in range(2):
        result = LayerAblationCam(wrap(predictor), predictor.model.a).explain(X, target=1)
        expected = torch.stack([_without(like, k) for k in range(4)], 1)
        torch.testing.assert_close(result.ablated_scores, expected)
    assert predictor.last is None
    _assert_as_it_was(predictor.model, like)


def test_a_cache_among_the_arguments():
    class Takes(Base):
        def forward(self, x, past):
            past.append(self.a(x).mean((2, 3)))
            return self.f(sum(past))

    model, past = Takes(), []
    result = LayerAblationCam(model, model.a).explain(X, target=1, additional_forward_args=(past,))
    with torch.no_grad():
        torch.testing.assert_close(result.scores, model(X, [])[:, 1])
    assert past == []


# --- torch's own state ----------------------------------------------------------------------------


def test_flags_that_a_model_sets_are_put_back():
    class Sets(Attribute):
        def state(self, h):
            torch.set_default_dtype(torch.float64)
            torch.backends.cudnn.benchmark = True
            return h

    model = Sets()
    LayerAblationCam(model, model.a).attribute(X, target=1)
    assert torch.get_default_dtype() is torch.float32
    assert not torch.backends.cudnn.benchmark


def test_writing_back_is_not_counted_as_a_change():
    """A graph that was made before the explanation can still be differentiated."""
    model = BufferByData()
    score = model(X).sum()
    LayerAblationCam(model, model.a).attribute(X, target=1)
    score.backward()
    assert model.mean._version == 0


class Draws(Attribute):
    def state(self, h):
        noise = torch.rand(4) + random.random() + float(np.random.rand())
        return h + noise


@pytest.mark.parametrize("replay", ["auto", "full"])
def test_the_random_numbers_of_a_model_that_draws_are_put_back(replay):
    model = Draws()
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        LayerAblationCam(model, model.a, replay=replay).attribute(X, target=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert repr(np.random.get_state()) == before[2]


def test_the_random_numbers_of_others_do_not_come_again():
    """Drawn by another thread while a model is explained that draws none."""

    class Waits(Base):
        def state(self, h):
            drawn.append(pool.submit(torch.rand, 4).result())
            return h

    drawn = []
    torch.manual_seed(5)
    with ThreadPoolExecutor(1) as pool:
        model = Waits()
        LayerAblationCam(model, model.a, replay="full").attribute(X, target=1)
    drawn.append(torch.rand(4))
    assert len({tuple(numbers.tolist()) for numbers in drawn}) == len(drawn) > 3


# --- threads and processes ------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_process_that_forks_while_another_thread_explains_does_not_hang():
    model = BufferInPlace()
    begun, stop = threading.Event(), threading.Event()

    class Slow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            begun.set()
            stop.wait(0.01)
            return self.model(x)

    slow = Slow()
    cam = LayerAblationCam(slow, model.a, replay="full")

    def explain():
        while not stop.is_set():
            cam.attribute(X, target=1, perturbations_per_eval=1)

    expected = cam.attribute(X, target=1)
    thread = threading.Thread(target=explain)
    begun.clear()
    thread.start()
    begun.wait()
    child = os.fork()
    if child == 0:  # no exception may leave this branch
        signal.alarm(30)
        same = torch.equal(LayerAblationCam(slow, model.a).attribute(X, target=1), expected)
        os._exit(0 if same and "forward" not in model.a.__dict__ else 1)
    stop.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
