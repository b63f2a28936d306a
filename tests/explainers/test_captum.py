"""A good citizen of Captum: its models, its forms of arguments, its tools.

Values come from Captum's own small test models, see `captum.testing.helpers.basic_models`.
"""

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution, LayerFeatureAblation, LayerGradCam, NoiseTunnel
from captum.concept import TCAV, Concept
from captum.testing.helpers.basic_models import (
    BasicModel_ConvNet,
    BasicModel_ConvNet_One_Conv,
    BasicModel_MultiLayer,
    BasicModel_MultiLayer_MultiInput,
)
from torch import nn

from captum_clustered import ClusteredLayerAblation
from small_models import split_cnn

IMAGE = torch.arange(16.0).view(1, 1, 4, 4)
ONES = torch.ones(1, 1, 4, 4)


def _raw_drop(scores, ablated_scores, labels, activations):
    return scores.unsqueeze(1) - ablated_scores


def _raw(model, layer, **settings):
    """Each whole map alone: what Captum can switch off as well."""
    settings = {"clusterer": "every-map", "weighting": _raw_drop, "parts": "whole", **settings}
    return ClusteredLayerAblation(model, layer, **settings)


def _drops(result):
    """The drop of each map's group, `(N, C)`; 0 for a dead map."""
    drops = (result.scores[:, None] - result.ablated_scores).gather(1, result.labels.clamp(min=0))
    return drops * (result.labels >= 0)


class TestValues:
    """Drops and maps of Captum's convolutional model, by hand and with LayerFeatureAblation."""

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize("ppe", [None, 1, 2, 8])
    @pytest.mark.parametrize(
        ("layer", "parts", "inputs", "drops", "heat"),
        [  # conv1 gives (-5, 4, 31, 40), (-30, -21, 6, 15); (4, 13, 40, 49), (-21, -12, 15, 24)
            ("conv1", "whole", IMAGE, [54, -21], [[0, 0], [1548, 1845]]),
            ("conv1", "signed", IMAGE, [54, -21], [[0, 216], [1548, 1845]]),
            ("relu1", "signed", IMAGE, [54, -21], [[0, 216], [1548, 1845]]),
            ("conv1", "whole", (IMAGE, ONES), [67, -39], [[0, 403], [2095, 2347]]),
            ("conv1", "signed", (IMAGE, ONES), [67, -39], [[268, 871], [2095, 2347]]),
            ("relu1", "signed", (IMAGE, ONES), [67, -39], [[268, 871], [2095, 2347]]),
        ],
    )
    def test_convolution(self, layer, parts, inputs, drops, heat, ppe, inplace):
        model = BasicModel_ConvNet_One_Conv(inplace=inplace).eval()
        result = _raw(model, getattr(model, layer), parts=parts).explain(
            inputs, target=0, perturbations_per_eval=ppe
        )
        assert _drops(result).tolist() == [drops]
        assert result.attributions.tolist() == [[heat]]
        if parts == "signed":  # the ReLU behind conv1 sees nothing of what lies below zero
            below = result.labels_below[0]
            assert result.drops[0, below[below >= 0]].count_nonzero() == 0

    def test_weights_relative_to_the_score_are_those_of_ablation_cam(self):
        model = BasicModel_ConvNet_One_Conv().eval()
        heat = _raw(model, model.relu1, weighting="drop").attribute(IMAGE, target=0)
        expected = torch.tensor([[[[0, 216.0], [1548, 1845]]]]) / 54
        torch.testing.assert_close(heat, expected)

    @pytest.mark.parametrize("ppe", [None, 1, 2, 3])
    @pytest.mark.parametrize(
        "find", [lambda m: (m.model.linear1, True), lambda m: (m.model.linear0, False)]
    )
    def test_several_inputs_a_baseline_and_groups_for_each_example(self, find, ppe):
        model = BasicModel_MultiLayer_MultiInput().eval()
        layer, at_input = find(model)
        inputs = (
            torch.tensor([[23.0, 100, 0], [20, 50, 30]]),
            torch.tensor([[20.0, 50, 30], [0, 100, 0]]),
            torch.tensor([[0.0, 100, 10], [2, 10, 3]]),
        )
        arguments = {
            "target": 0,
            "additional_forward_args": (1,),
            "layer_baselines": torch.tensor([[1.0, 2.0, 3.0]]),
            "attribute_to_layer_input": at_input,
            "perturbations_per_eval": ppe,
        }
        single = _raw(model, layer).explain(inputs, **arguments)
        assert _drops(single).tolist() == [[168, 992, 148], [84, 632, 120]]
        labels = torch.tensor([[0, 1, 0], [0, 1, 2]])
        grouped = _raw(model, layer, clusterer=labels).explain(inputs, **arguments)
        assert _drops(grouped).tolist() == [[316, 992, 316], [84, 632, 120]]

    def test_the_input_of_a_layer(self):
        model = BasicModel_MultiLayer().eval()
        labels = torch.tensor([0, 0, 1])
        result = _raw(model, model.linear0, clusterer=labels).explain(
            torch.tensor([[20.0, 50.0, 30.0]]), target=0, attribute_to_layer_input=True
        )
        assert _drops(result).tolist() == [[280, 280, 120]]

    @pytest.mark.parametrize("at_input", [False, True])
    def test_a_layer_of_two_tensors_gives_two_of_everything(self, at_input):
        model = BasicModel_MultiLayer(multi_input_module=True).eval()
        x = torch.tensor([[0.0, 6.0, 0.0]])
        cam = _raw(model, model.multi_relu)
        result = cam.explain(x, target=0, attribute_to_layer_input=at_input)
        assert isinstance(result.attributions, tuple)
        assert [heat.shape for heat in result.attributions] == [(1, 1), (1, 1)]
        drops = [
            (result.scores[:, None] - ablated).gather(1, labels.clamp(min=0)) * (labels >= 0)
            for ablated, labels in zip(result.ablated_scores, result.labels, strict=True)
        ]
        assert [d.tolist() for d in drops] == [[[0, 7, 7, 7]], [[0, 7, 7, 7]]]


X = 100 * torch.randn(4, 1, 10, 10, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize(
    "target",
    [
        1,
        np.int64(1),
        torch.tensor(1),
        torch.tensor([1]),
        [1, 0, 2, 1],
        [np.int64(1), np.int64(0), np.int64(2), np.int64(1)],
        torch.tensor([1, 0, 2, 1]),
        torch.tensor([[1], [0], [2], [1]]),
        (1,),
        [(1,), (0,), (2,), (1,)],
        -2,
    ],
    ids=str,
)
@pytest.mark.parametrize("ppe", [None, 3])
def test_targets_in_a_batch_equal_those_of_single_examples(target, ppe):
    model = BasicModel_ConvNet().double().eval()
    model.softmax = nn.Identity()  # it is saturated
    cam = _raw(model, model.conv2)
    batch = cam.attribute(X, target=target, perturbations_per_eval=ppe)
    for i in range(4):
        one = target
        if isinstance(target, list) or (isinstance(target, torch.Tensor) and target.numel() == 4):
            one = target[i]
        alone = cam.attribute(X[i : i + 1], target=one, perturbations_per_eval=ppe)
        torch.testing.assert_close(batch[i : i + 1], alone)


def test_several_perturbations_with_a_target_for_each_example():
    """Captum's LayerFeatureAblation fails here; its results one at a time are the reference."""
    model = split_cnn()
    x, target = torch.rand(3, 3, 8, 8, dtype=torch.float64), [0, 3, 1]
    mask = torch.arange(6).view(1, 6, 1, 1)
    theirs = LayerFeatureAblation(model, model[0]).attribute(x, target=target, layer_mask=mask)
    for replay in ("suffix", "full"):
        result = _raw(model, model[0], replay=replay).explain(x, target, perturbations_per_eval=4)
        torch.testing.assert_close(_drops(result), theirs[:, :, 0, 0])


def test_an_output_of_several_axes_takes_a_tuple():
    net = split_cnn()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)

    def pixels(images):
        return net[0](images).cumsum(1)  # (N, 6, 6, 6): a score for each class and pixel

    result = _raw(pixels, net[0]).explain(x, target=[(5, 0, 3), (4, 2, 2)])
    torch.testing.assert_close(_drops(result)[0], net[0](x)[0, :, 0, 3].detach())


@pytest.mark.parametrize(
    ("forward", "scores"),
    [
        (lambda out: out[:, 1], 2),
        (lambda out: out[:, 1:2], 2),
        (lambda out: out[:, 1].sum(), 1),
        (lambda out: out[:, 1].sum().reshape(1), 1),
        (lambda out: out[:, 1].sum().item(), 1),
        (lambda out: out.argmax(1), 2),
    ],
    ids=["(N,)", "(N,1)", "0-d", "(1,)", "float", "int"],
)
@pytest.mark.filterwarnings("ignore:The whole model runs again")  # .item() cannot be batched
def test_a_model_that_gives_one_score_needs_no_target(forward, scores):
    net = split_cnn()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    result = _raw(lambda images: forward(net(images)), net[0]).explain(x)
    assert result.scores.shape == (scores,)
    assert result.attributions.shape == (2, 1, 6, 6)
    if scores == 1:  # Captum ablates a map in the whole batch at once
        mask = torch.arange(6).view(1, 6, 1, 1)
        theirs = LayerFeatureAblation(lambda images: net(images)[:, 1].sum(), net[0])
        theirs = theirs.attribute(x, layer_mask=mask)[0, :, 0, 0]
        ours = (result.scores[:, None] - result.ablated_scores)[0, result.labels[0].clamp(min=0)]
        alive = result.labels[0] >= 0
        torch.testing.assert_close(ours[alive], theirs[alive], check_dtype=False)
        assert torch.equal(result.labels[0], result.labels[1])


class ListLayer(nn.Module):
    """Gives its maps in another form."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.form(self.conv(x))


class Reads(nn.Module):
    """Reads the maps of `ListLayer` from its form."""

    def __init__(self, form, read):
        super().__init__()
        self.layer, self.read = ListLayer(form), read

    def forward(self, x):
        return self.read(self.layer(x)).mean((2, 3)) ** 2


@pytest.mark.parametrize(
    ("form", "read", "single"),
    [
        (lambda a: a, lambda v: v, True),
        (lambda a: (a,), lambda v: v[0], True),
        (lambda a: [a], lambda v: v[0], True),
        (lambda a: [a, 2 * a], lambda v: v[0] + v[1], False),
        (lambda a: torch.sort(a, 1), lambda v: v.values, None),
        (lambda a: {"maps": a}, lambda v: v["maps"], None),
        (lambda a: (a, None), lambda v: v[0], None),
    ],
    ids=["tensor", "1-tuple", "1-list", "list", "integers inside", "dict", "None inside"],
)
def test_forms_of_a_layer_output(form, read, single):
    model, x = Reads(form, read), torch.rand(2, 3, 6, 6)
    cam = _raw(model, model.layer)
    if single is None:
        with pytest.raises(TypeError, match="`layer` must"):
            cam.attribute(x, target=0)
        return
    result = cam.explain(x, target=0)
    assert isinstance(result.attributions, torch.Tensor) is single
    labels = result.labels if single else result.labels[0]
    ablated = result.ablated_scores if single else result.ablated_scores[0]
    assert result.scores.shape == (2,)
    plain = model.layer.conv(x)[:, 0].mean((1, 2)) * (1 if single else 3)
    torch.testing.assert_close(result.scores, (plain**2).detach())
    left = 0 if single else 2 / 3  # without the first tensor's map, the second is still there
    torch.testing.assert_close(ablated[:, 0], ((plain * left) ** 2).detach())
    assert labels.tolist() == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda out: {"logits": out}, r"`forward_func` must return one tensor; got dict.*lambda"),
        (lambda out: (out, out), "`forward_func` must return one tensor; got tuple"),
        (lambda out: None, "`forward_func` must return one tensor; got NoneType"),
    ],
)
def test_a_model_that_returns_no_tensor_is_refused(forward, message):
    net = split_cnn()
    with pytest.raises(TypeError, match=message):
        _raw(lambda x: forward(net(x)), net[0]).attribute(torch.rand(1, 3, 8, 8).double(), 0)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.conv(self.relu(self.conv(x)))).mean((2, 3))


@pytest.mark.parametrize("at_input", [False, True])
def test_a_layer_that_runs_twice_is_refused(at_input):
    model = Twice()
    with pytest.raises(
        ValueError, match=r"`layer` must run once .* ran 2 times.*module of its own"
    ):
        _raw(model, model.relu).attribute(
            torch.rand(1, 3, 6, 6), 0, attribute_to_layer_input=at_input
        )


def test_a_layer_that_does_not_run_is_refused():
    model = split_cnn()
    with pytest.raises(ValueError, match="`layer` must run when `forward_func` is called"):
        _raw(model, nn.ReLU()).attribute(torch.rand(1, 3, 8, 8).double(), 0)


@pytest.mark.parametrize("inputs", [[torch.rand(1, 3, 8, 8)], None, (torch.rand(1, 3), 3)])
def test_inputs_of_other_types_are_refused(inputs):
    model = split_cnn()
    with pytest.raises(TypeError, match="`inputs` must be a tensor or a tuple of tensors; got"):
        _raw(model, model[0]).attribute(inputs, 0)


@pytest.mark.parametrize(
    "baseline",
    [0.5, torch.tensor(0.5), torch.full((1, 6, 1, 1), 0.5), torch.full((6, 6, 6), 0.5),
     torch.full((2, 6, 6, 6), 0.5), (0.5,)],
    ids=lambda b: str(getattr(b, "shape", b)),
)  # fmt: skip
@pytest.mark.parametrize("ppe", [1, 4])
def test_forms_of_a_baseline(baseline, ppe):
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mask = torch.arange(6).view(1, 6, 1, 1)
    theirs = LayerFeatureAblation(model, model[0]).attribute(
        x, target=1, layer_mask=mask, layer_baselines=0.5
    )
    for replay in ("suffix", "full"):
        result = _raw(model, model[0], replay=replay).explain(
            x, 1, layer_baselines=baseline, perturbations_per_eval=ppe
        )
        assert (result.labels >= 0).all()
        torch.testing.assert_close(_drops(result), theirs[:, :, 0, 0])


def test_an_infinite_baseline_takes_only_the_maps_of_its_group():
    class Tail(nn.Module):
        def forward(self, maps):
            return maps.amax((2, 3)).sigmoid()  # without a map, its class has 0 exactly

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Tail())
    for parts in ("whole", "signed"):  # nothing lies below such a baseline
        result = _raw(model, model[0], parts=parts).explain(
            torch.rand(1, 3, 5, 5), 2, layer_baselines=float("-inf")
        )
        expected = result.scores[:, None].repeat(1, 4)
        expected[0, 2] = 0
        torch.testing.assert_close(result.ablated_scores, expected)
        magnitude = result.activations[:, 2:3].abs() * result.scores
        torch.testing.assert_close(result.attributions, magnitude)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: nn.DataParallel(m, device_ids=[])])
def test_data_parallel_on_a_machine_without_gpu(wrap):
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = _raw(model, model[0]).attribute(x, 1)
    torch.testing.assert_close(_raw(wrap(model), model[0]).attribute(x, 1), expected)
    torch.testing.assert_close(_raw(wrap(model), model[0], device_ids=[]).attribute(x, 1), expected)


def test_a_compiled_model_runs_as_it_is_written():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = _raw(model, model[0]).attribute(x, 1)
    compiled = torch.compile(model, backend="eager")
    compiled(x)
    for forward in (compiled, lambda images: compiled(images)):
        result = _raw(forward, model[0]).explain(x, 1)
        assert result.replay == "suffix"
        torch.testing.assert_close(result.attributions, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_traced_model_is_refused_with_the_remedy():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    traced = torch.jit.trace(model, x)
    with pytest.raises(ValueError, match="not one inside a TorchScript module"):
        _raw(traced, model[0]).attribute(x, 1)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_head_gives_the_same():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    expected = _raw(model, model[0]).attribute(x, 1)
    scripted = nn.Sequential(model[0], torch.jit.script(model[1]))
    torch.testing.assert_close(_raw(scripted, scripted[0]).attribute(x, 1), expected)


def test_linear_layers_have_maps_without_space():
    model = BasicModel_MultiLayer().eval()
    result = _raw(model, model.linear0).explain(torch.tensor([[0.0, 100.0, 0.0]]), target=0)
    gradients = LayerGradCam(model, model.linear0).attribute(torch.tensor([[0.0, 100, 0]]), 0)
    assert result.attributions.shape == gradients.shape == (1, 1)


def test_replaces_layer_grad_cam_in_a_line():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for make in (LayerGradCam, ClusteredLayerAblation):
        heat = make(model, model[0]).attribute(x, target=3)
        assert heat.shape == (2, 1, 6, 6)
        assert LayerAttribution.interpolate(heat, (8, 8), "bilinear").shape == (2, 1, 8, 8)
        single = make(model, model[0]).attribute(x, target=3, attr_dim_summation=False)
        assert single.shape == (2, 6, 6, 6)


def test_the_layer_is_read_when_called():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    cam = _raw(model, model[0])
    cam.layer = model[1][0]
    torch.testing.assert_close(cam.attribute(x, 1), _raw(model, model[1][0]).attribute(x, 1))


def test_noise_tunnel():
    model, x = split_cnn(), torch.rand(2, 3, 8, 8, dtype=torch.float64)
    cam = ClusteredLayerAblation(model, model[0], n_clusters=3)
    smooth = NoiseTunnel(cam).attribute(
        x, nt_samples=3, nt_samples_batch_size=2, stdevs=1e-9, target=[1, 2]
    )
    torch.testing.assert_close(smooth, cam.attribute(x, target=[1, 2]), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
def test_tcav(tmp_path):
    model = split_cnn().float()
    data = [torch.rand(3, 8, 8) + i for i in range(2) for _ in range(8)]
    concepts = [
        Concept(
            i, f"concept{i}", torch.utils.data.DataLoader(data[8 * i : 8 * i + 8], batch_size=4)
        )
        for i in range(2)
    ]
    tcav = TCAV(model, ["0"], layer_attr_method=_raw(model, model[1]), save_path=str(tmp_path))
    scores = tcav.interpret(torch.rand(2, 3, 8, 8), [concepts], target=1, attr_dim_summation=False)
    assert scores["0-1"]["0"]["magnitude"].shape == (2,)


def test_a_dead_map_is_one_that_equals_its_baseline():
    """A map of zeros is switched off too where the baseline is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    model[0].bias.data[1] = -10
    x, labels = torch.rand(2, 1, 8, 8), torch.tensor([0, 0, 1, 1])
    theirs = LayerFeatureAblation(model, model[1]).attribute(
        x, target=1, layer_mask=labels.view(1, 4, 1, 1), layer_baselines=1.0
    )
    cam = ClusteredLayerAblation(model, model[1], clusterer=labels)
    ours = cam.explain(x, target=1, layer_baselines=1.0)
    assert ours.labels[0].tolist() == [0, 0, 1, 1]
    drops = ours.scores[:, None] - ours.ablated_scores
    torch.testing.assert_close(drops, theirs[:, ::2, 0, 0])
