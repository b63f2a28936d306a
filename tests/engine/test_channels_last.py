"""On the CPU several images reach the layer channels-last; nobody else may notice."""

import pytest
import torch
from captum.attr import LayerFeatureAblation
from torch import nn

import small_models
from captum_clustered import ClusteredLayerAblation
from captum_clustered._layout import unheard

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN"
)

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
LAST = torch.channels_last


class Net(nn.Module):
    """Two convolutions, pooling and three classes; the classes below differ in between."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x):
        return self.fc(self.tail(self.conv(self.middle(self.stem(x)))))

    def middle(self, x):
        return self.relu(x)

    def tail(self, x):
        return x.view(len(x), -1)


class AnyLayout(Net):
    def tail(self, x):
        return x.flatten(1)


class ViewInFront(Net):
    def middle(self, x):
        return x.view(len(x), -1).relu().view(x.shape)


class WantsTheUsualLayout(Net):
    def middle(self, x):
        assert x.is_contiguous()
        return self.relu(x)


class InPlaceWithAlias(Net):
    """Who wrote into a copy of the layer's output would leave the alias as it was."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def tail(self, x):
        alias = x
        y = self.layer(x)
        y.mul_(2)
        return (y + alias).flatten(1)


class WritesIntoItsInput(AnyLayout):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def _model(make):
    torch.manual_seed(0)
    return make().eval()


def _explain(model, x, layer=None, **settings):
    """Each whole map alone: what Captum can switch off as well."""
    settings = {"clusterer": "every-map", "parts": "whole", **settings}
    cam = ClusteredLayerAblation(model, layer or model.conv, **settings)
    return cam.explain(x, target=[1, 2][: len(x)])


def _assert_equals_captum(model, layer, result, x=X):
    mask = torch.arange(result.labels.shape[1]).view(1, -1, 1, 1)
    theirs = LayerFeatureAblation(model, layer).attribute(x, target=[1, 2], layer_mask=mask)
    drops = result.scores[:, None] - result.ablated_scores
    ours = drops.gather(1, result.labels.clamp(min=0)) * (result.labels >= 0)
    torch.testing.assert_close(ours, theirs[:, :, 0, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_images_are_laid_out_up_to_the_layer(dtype):
    model = _model(Net).to(dtype)
    seen = []
    model.stem.register_forward_hook(unheard(lambda _, __, out: seen.append(out.stride(1))))
    result = _explain(model, X.to(dtype))
    assert seen[0] == 1, "channels are next to each other"
    assert result.replay == "suffix"
    assert result.activations.is_contiguous()


@pytest.mark.parametrize(
    "x", [X[:1], X.double(), X.flatten(2), X.unsqueeze(2)], ids=["one", "double", "1-D", "3-D"]
)
def test_nothing_else_is(x):
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[x.ndim]
    stem = kind(3, 4, 1).to(x.dtype)
    model = nn.Sequential(stem, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3, dtype=x.dtype))
    model(x)
    seen = []
    stem.register_forward_hook(lambda _, __, out: seen.append(out.is_contiguous()))
    ClusteredLayerAblation(model, model[1]).attribute(x, target=1)
    assert all(seen)


def _layouts(model, x):
    """Whether the stem's output was laid out as usual, for each time that the model ran."""
    seen = []
    handle = model.stem.register_forward_hook(
        unheard(lambda _, __, out: seen.append(out.is_contiguous()))
    )
    result = _explain(model, x)
    handle.remove()
    assert result.replay == "suffix"
    if len(x) > 1:
        _assert_equals_captum(model, model.conv, result)
    return seen


def test_what_lies_behind_sees_the_usual_form_at_once():
    model = _model(Net)  # its tail takes the maps apart by `view`
    several, one = _layouts(model, X), _layouts(model, X[:1])
    assert several[0] is False
    assert len(several) == len(one), "nothing had to be done again"


@pytest.mark.parametrize("make", [ViewInFront, WantsTheUsualLayout])
def test_a_model_that_needs_the_usual_form_in_front_gets_it(make):
    model = _model(make)
    several, one = _layouts(model, X), _layouts(model, X[:1])
    assert several == [False, *one]
    assert all(one)


def test_aliases_of_the_layers_value_are_written_as_well():
    model = _model(InPlaceWithAlias)
    with pytest.warns(UserWarning, match="something else holds the value too"):
        result = _explain(model, X, layer=model.layer, replay="full")
    torch.testing.assert_close(result.scores, model(X).detach()[[0, 1], [1, 2]])


@pytest.mark.parametrize("x", [X, X.contiguous(memory_format=LAST)], ids=["usual", "last"])
@pytest.mark.parametrize("make", [AnyLayout, WritesIntoItsInput])
def test_the_callers_input_stays_as_it_is(make, x):
    before, strides, place = x.clone(), x.stride(), x.data_ptr()
    _explain(_model(make), x, replay="full")
    assert torch.equal(x, before)
    assert x.stride() == strides
    assert x.data_ptr() == place


def test_the_input_of_the_first_layer_stays_as_it_is():
    x = X.contiguous(memory_format=LAST)
    cam = ClusteredLayerAblation(model := _model(AnyLayout), model.stem)
    cam.attribute(x, target=1, attribute_to_layer_input=True)
    assert x.is_contiguous(memory_format=LAST)
    assert not x.is_contiguous()


def test_an_error_of_the_model_is_raised_as_it_is():
    class Broken(Net):
        def middle(self, x):
            raise RuntimeError("a part of the model is out of order")

    with pytest.raises(RuntimeError, match="a part of the model is out of order"):
        _explain(_model(Broken), X)


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (small_models.SharedReLU, "conv2"),
        (small_models.InPlaceBehindLayer, "layer"),
        (small_models.InPlaceOnPrefix, "layer"),
        (small_models.SharedChild, "layer"),
    ],
)
def test_models_with_faults_are_explained_as_by_captum(make, layer):
    model = _model(make)
    result = _explain(model, X, model.get_submodule(layer))
    _assert_equals_captum(model, model.get_submodule(layer), result)
