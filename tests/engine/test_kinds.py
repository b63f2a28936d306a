"""Tensors and models of other kinds are taken as what they are, or refused in one line."""

import warnings

import pytest
import torch
import torch.ao.quantization as tq
from captum.attr import LayerFeatureAblation
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import captum_clustered
from captum_clustered import ClusteredLayerAblation, LayerHiResCam, LayerScoreCam
from captum_clustered.engine.calls import Valueless
from captum_clustered.metrics import confidences
from captum_clustered.targets import plain

X = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))


class Stubborn(Tensor):
    """Refuses a call that torch takes, as MONAI's MetaTensor does."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is Tensor.new_empty:
            raise TypeError("new_empty(): argument 'size' must be tuple of ints, not int")
        return super().__torch_function__(func, types, args, kwargs or {})


class Wrapper(Tensor):
    """Holds another tensor and does operations on that."""

    @staticmethod
    def __new__(cls, inside):
        return Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype)

    def __init__(self, inside):
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        args, kwargs = tree_map_only(cls, lambda one: one.inside, (args, kwargs or {}))
        return tree_map_only(Tensor, cls, func(*args, **kwargs))


def _stubborn(tensor):
    return tensor.as_subclass(Stubborn)


class Does(nn.Module):
    def __init__(self, func):
        super().__init__()
        self.func = func

    def forward(self, x):
        return self.func(x)


def _body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()


def _head(channels=4):
    torch.manual_seed(1)
    parts = nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    return nn.Sequential(*parts).eval()


def _model(*between):
    """The layer is `model[0]`, what lies between it and the head comes after it."""
    return nn.Sequential(_body(), *between, _head()).eval()


def _explain(model, layer, inputs=X, **arguments):
    cam = ClusteredLayerAblation(model, layer, clusterer="every-map", parts="whole")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return cam.explain(inputs, 1, **arguments)


def _assert_captum(model, layer, result):
    """Captum's values, by a run of the whole model for each map."""
    mask = torch.arange(result.labels.shape[1]).view(1, -1, 1, 1)
    theirs = LayerFeatureAblation(model, layer).attribute(X, target=1, layer_mask=mask)
    drops = result.scores[:, None] - result.ablated_scores
    torch.testing.assert_close(drops, theirs[:, :, 0, 0], rtol=1e-4, atol=1e-6)


# Subclasses


def _image(tensor):
    return pytest.importorskip("torchvision.tv_tensors").Image(tensor)


@pytest.mark.parametrize("make", [_stubborn, _image, nn.Parameter])
@pytest.mark.parametrize(
    "name",
    [
        "ClusteredLayerAblation",
        "ClusteredLayerOptimization",
        "ClusteredLayerScore",
        "LayerEGradCam",
        "LayerGroupCam",
        "LayerHiResCam",
        "LayerScoreCam",
    ],
)
def test_inputs_of_a_subclass_have_the_map_of_plain_ones(name, make):
    model = _model()
    explainer = getattr(captum_clustered, name)(model, model[0])
    expected = explainer.attribute(X, target=1)
    found = explainer.attribute(make(X.clone()), target=1)
    assert type(found) is Tensor
    assert torch.equal(found, expected)


def test_subclasses_inside_the_model():
    model = _model(Does(_stubborn), nn.Identity(), Does(lambda x: x.as_subclass(Tensor)))
    for layer in (model[0], model[1], model[2]):
        result = _explain(model, layer)
        assert type(result.activations) is Tensor
        assert result.replay == "suffix"
        _assert_captum(model, layer, result)


def test_targets_baselines_and_scores_of_a_subclass():
    model = _model()
    expected = _explain(model, model[0], layer_baselines=torch.tensor(0.5)).attributions
    stubborn = nn.Sequential(model, Does(_stubborn))
    found = _explain(stubborn, model[0], layer_baselines=_stubborn(torch.tensor(0.5)))
    assert torch.equal(found.attributions, expected)


def test_metrics_take_subclasses():
    model = _model()
    heat = torch.rand(2, 1, 10, 10)
    expected = confidences(model, X, heat, target=1)
    stubborn = nn.Sequential(model, Does(_stubborn))
    found = confidences(stubborn, _stubborn(X.clone()), _stubborn(heat.clone()), target=1)
    assert torch.equal(found.masked, expected.masked)
    assert torch.equal(found.complement, expected.complement)


def test_wrappers_are_refused():
    model, rule = _model(), "plain tensors.*; got Wrapper, which has its own `__torch_dispatch__`"
    heat = torch.rand(2, 1, 10, 10)
    with pytest.raises(TypeError, match=f"`inputs` must be {rule}"):
        _explain(model, model[0], Wrapper(X))
    with pytest.raises(TypeError, match=f"`inputs` must be {rule}"):
        confidences(model, Wrapper(X), heat, target=1)
    with pytest.raises(TypeError, match=f"`heatmaps` must be {rule}"):
        confidences(model, X, Wrapper(heat), target=1)
    with pytest.raises(TypeError, match=f"`layer_baselines` must be {rule}"):
        _explain(model, model[0], layer_baselines=Wrapper(torch.zeros(1)))
    with pytest.raises(TypeError, match=f"`forward_func` must return {rule}"):
        _explain(nn.Sequential(model, Does(Wrapper)), model[0])
    wrapped = _model(Does(Wrapper), Does(lambda x: x.inside))
    with pytest.raises(TypeError, match=f"`layer` must give {rule}"):
        _explain(wrapped, wrapped[1])


def test_plain_leaves_other_values_alone():
    values = (1, "a", [X], X)
    assert plain(values, "inputs") == values


# Quantised models


class Quantised(nn.Module):
    def __init__(self):
        super().__init__()
        self.quant, self.body, self.dequant = tq.QuantStub(), _body(), tq.DeQuantStub()
        self.head = _head()

    def forward(self, x):
        return self.head(self.dequant(self.body(self.quant(x))))


@pytest.fixture
def quantised():
    engines = [name for name in torch.backends.quantized.supported_engines if name != "none"]
    if not engines:
        pytest.skip("torch was built without quantised operations")
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engines[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Quantised().eval()
        model.qconfig, model.head.qconfig = tq.get_default_qconfig(engines[0]), None
        tq.prepare(model, inplace=True)
        model(X)
        tq.convert(model, inplace=True)
    yield model
    torch.backends.quantized.engine = before


def test_a_quantised_part_before_the_layer(quantised):
    result = _explain(quantised, quantised.dequant)
    assert result.replay == "suffix"
    _assert_captum(quantised, quantised.dequant, result)


def test_a_quantised_layer_says_which_to_take(quantised):
    for make in (ClusteredLayerAblation, LayerHiResCam, LayerScoreCam):
        with pytest.raises(TypeError, match=r"`layer` must.*torch\.quint8.*the one that dequan"):
            make(quantised, quantised.body[0]).attribute(X, target=1)


def test_quantised_scores_are_dequantised():
    def quantise(x):
        return torch.quantize_per_tensor(x, 1e-3, 0, torch.qint32)

    model = _model()
    expected = _explain(nn.Sequential(model, Does(quantise), Does(Tensor.dequantize)), model[0])
    cam = ClusteredLayerAblation(
        nn.Sequential(model, Does(quantise)), model[0], clusterer="every-map", replay="full"
    )
    assert torch.equal(cam.explain(X, 1).scores, expected.scores)


# TorchScript and exported programs


def _optimised(module):
    return torch.jit.optimize_for_inference(torch.jit.script(module))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize(
    "compile",
    [
        torch.jit.script,
        lambda module: torch.jit.freeze(torch.jit.script(module)),
        lambda module: torch.jit.trace(module, X),
        _optimised,
    ],
)
def test_torchscript_before_the_layer(compile):
    plain_model = nn.Sequential(_body(), nn.Conv2d(4, 4, 1), _head()).eval()
    expected = _explain(plain_model, plain_model[1])
    model = nn.Sequential(compile(_body()), *plain_model[1:])
    result = _explain(model, model[1])
    assert result.replay == "suffix"
    torch.testing.assert_close(result.ablated_scores, expected.ablated_scores)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_as_the_layer_says_how():
    script = torch.jit.script(_body())
    model = nn.Sequential(script, _head()).eval()
    for at_input in (False, True):
        with pytest.raises(TypeError, match=r"`layer` must be.*TorchScript.*`nn\.Sequential\(mod"):
            _explain(model, script, attribute_to_layer_input=at_input)
    model = nn.Sequential(nn.Sequential(script), _head()).eval()
    _assert_captum(model, model[0], _explain(model, model[0]))


def test_exported_programs_say_how():
    model = _model()
    program = torch.export.export(model, (X,))
    with pytest.raises(TypeError, match=r"`forward_func` must.*ExportedProgram.*unflatten"):
        _explain(program, model[0])
    with pytest.raises(ValueError, match=r"it did not.*exported program \(`torch.export.unflatten"):
        _explain(program.module(), program.module().get_submodule("0.0"))
    modules = torch.export.unflatten(program)
    expected = _explain(model, model[0]).ablated_scores
    found = _explain(modules, modules.get_submodule("0")).ablated_scores
    torch.testing.assert_close(found, expected)


def test_no_hook_is_left_on_all_modules():
    model = _model()
    _explain(model, model[0])
    assert not torch.nn.modules.module._has_any_global_hook()


def test_fx_graphs():
    model = _model()
    graph = torch.fx.symbolic_trace(model)
    found = _explain(graph, graph.get_submodule("0.1")).ablated_scores
    assert torch.equal(found, _explain(model, model[0][1]).ablated_scores)


# Other layouts and types

SPECIAL = {
    "complex": (lambda x: torch.complex(x, x), lambda x: x.real),
    "sparse": (Tensor.to_sparse, Tensor.to_dense),
    "integer": (lambda x: (100 * x).int(), lambda x: x / 100),
    "8 bits": (lambda x: x.to(torch.float8_e4m3fn), Tensor.float),
    "nested": (
        lambda x: torch.nested.nested_tensor(list(x)),
        lambda x: torch.stack(list(x.unbind())),
    ),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("kind", SPECIAL)
def test_special_tensors_are_refused_as_the_layer_and_taken_before_it(kind):
    there, back = SPECIAL[kind]
    model = _model(Does(there), Does(back))
    for make in (ClusteredLayerAblation, LayerHiResCam):
        with pytest.raises(TypeError, match="`layer` must give floating point tensors, dense and"):
            make(model, model[1]).attribute(X, target=1)
    _assert_captum(model, model[2], _explain(model, model[2]))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_special_inputs_and_scores():
    model = _model()
    with pytest.raises(TypeError, match=r"`inputs` must be.*one nested.*Pad"):
        _explain(model, model[0], torch.nested.nested_tensor(list(X)))
    with pytest.raises(TypeError, match=r"`inputs` must be.*'meta', without values"):
        _explain(model, model[0], X.to("meta"))
    with pytest.raises(TypeError, match=r"floating point and dense to be masked.*sparse_coo"):
        LayerScoreCam(lambda x: model(x.to_dense()), model[0]).attribute(X.to_sparse(), target=1)
    with pytest.raises(ValueError, match=r"must be dense floating point images.*sparse_coo"):
        confidences(model, X.to_sparse(), torch.rand(2, 1, 10, 10))
    with pytest.raises(TypeError, match=r"must return real scores.*complex64"):
        _explain(nn.Sequential(model, Does(SPECIAL["complex"][0])), model[0])
    with pytest.raises(TypeError, match=r"`layer_baselines` must be real, dense.*sparse_coo"):
        _explain(model, model[0], layer_baselines=torch.zeros(1, 1, 1, 1).to_sparse())
    expected = _explain(model, model[0])
    sparse = _explain(lambda x: model(x.to_dense()), model[0], X.to_sparse())
    torch.testing.assert_close(sparse.ablated_scores, expected.ablated_scores)


LAID_OUT = {
    "expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "strided": lambda x: x.repeat_interleave(2, 0)[::2],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "with gradient": lambda x: x.clone().requires_grad_(),
    "negative": lambda x: torch.complex(x, -x).conj().imag,  # torch keeps the sign as a bit
}


@pytest.mark.parametrize("kind", LAID_OUT)
def test_inputs_in_any_layout(kind):
    model, inputs = _model(), LAID_OUT[kind](X)
    expected = _explain(model, model[0], inputs.detach().clone().contiguous()).ablated_scores
    torch.testing.assert_close(_explain(model, model[0], inputs).ablated_scores, expected)


# Tensors without values

V = Valueless.of(torch.empty(2, 3, device="meta"), torch.device("cpu"))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.copy_(V),
        lambda x: x.masked_fill_(V > 0, 1.0),
        lambda x: x.masked_fill(V > 0, 1.0),
        lambda x: x.add_(V),
        lambda x: x.lerp_(V, 0.5),
        lambda x: x.__setitem__(slice(0, 1), V[:1]),
        lambda x: x.index_put_((torch.tensor([0]),), V[0]),
        lambda x: torch.add(x, V, out=x),
        lambda x: torch.vmap(lambda row: row.masked_fill_(V[0] > 0, 1.0))(x),
    ],
)
def test_what_has_no_values_cannot_change_what_has(write):
    rule = "needs values|out of meta tensor|on device"
    with pytest.raises((RuntimeError, NotImplementedError), match=rule):
        write(torch.zeros(2, 3))


def test_what_is_made_of_no_values_has_none():
    for made in (V.relu(), V + 1, torch.cat([V, V]), *V.chunk(2), V.new_zeros(2)):
        assert type(made) is Valueless
        assert made.is_meta
    assert torch.zeros(2, 3)[:, :1].expand_as(V).shape == (2, 3)
    assert torch.zeros(2, device=V.device).sum() == 0


def test_sealed_tensors_cannot_be_written_to():
    empty = torch.empty(2, 3, device="meta")
    sealed = Valueless.of(empty, torch.device("cpu"), (empty,))
    sealed.relu().add_(1)  # a tensor of its own
    with pytest.raises(RuntimeError, match="needs values that were not computed again"):
        sealed[:, :1].add_(1)
