"""Masked images go through a model channels-last, so many at a time; the numbers stay the same."""

import pytest
import torch
from torch import nn

from captum_clustered import (
    ClusteredLayerAblation,
    ClusteredLayerScore,
    LayerAblationCam,
    LayerGroupCam,
    LayerScoreCam,
    _layout,
)
from captum_clustered._layout import Layout, channels_last
from captum_clustered.calibration import calibrate
from captum_clustered.metrics import confidences, deletion, infidelity, insertion
from captum_clustered.metrics.scoring import at_a_time

NEEDS_ONEDNN = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN"
)
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
HEAT = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(4))


class Net(nn.Module):
    """A convolution in front of maps and classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.conv = nn.Conv2d(4, 6, 3)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x):
        return self.fc(self.relu(self.conv(self.stem(self.before(x)))).flatten(1))

    def before(self, x):
        return x


class TakesItsInputApart(Net):
    def before(self, x):
        return x.view(len(x), -1).mul(2).view(x.shape)


class WantsTheUsualLayout(Net):
    def before(self, x):
        assert x.is_contiguous()
        return x


class ReadsMemoryInOrder(Net):
    def before(self, x):
        return torch.as_strided(x, (len(x), 192), (192, 1)).view(x.shape)


class Resizes(Net):
    def before(self, x):
        return x.clone().resize_(len(x), 192).view(x.shape)


class FillsMemoryInOrder(Net):
    def before(self, x):
        noise = torch.empty_like(x[:1]).normal_(generator=torch.Generator().manual_seed(0))
        return x + noise


class WritesIntoItsInput(Net):
    def before(self, x):
        x -= 0.5
        return x


def _net(make=Net):
    torch.manual_seed(0)
    return make().eval()


def _explained(explainer, **settings):
    def run(model, x, _):
        return explainer(model, model.relu, **settings).explain(x, 1).masked_scores

    return run


WAYS = {
    "insertion": lambda model, x, heat: insertion(model, x, heat, 1, step=5).scores,
    "deletion": lambda model, x, heat: deletion(model, x, heat, 1, step=5).scores,
    "confidences": lambda model, x, heat: confidences(model, x, heat, 1).masked,
    "infidelity": lambda model, x, heat: infidelity(model, x, heat, 1, noise=0.5),
    "calibrate": lambda model, x, heat: calibrate(model, x, heat, 1).scores,
    "score-cam": _explained(LayerScoreCam),
    "clustered-score": _explained(ClusteredLayerScore, n_clusters=5),
    "group-cam": _explained(LayerGroupCam, n_clusters=3),
}
ALONE = WAYS["confidences"]  # it never puts several examples' masks into a batch
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


@NEEDS_ONEDNN
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_images_are_laid_out(dtype):
    laid = channels_last(X.to(dtype))
    assert laid.stride(1) == 1
    assert laid.equal(X.to(dtype))
    assert channels_last(laid) is laid


@pytest.mark.parametrize(
    "x", [X[:1], X.double(), X.flatten(2), X.unsqueeze(2)], ids=["one", "double", "1-D", "3-D"]
)
def test_nothing_else_is(x):
    assert channels_last(x) is x


def test_as_many_images_as_fit_go_at_a_time(monkeypatch):
    assert at_a_time(torch.empty(2, 3, 224, 224, device="meta")) == 55  # 588 KiB each
    assert at_a_time(torch.empty(1, 3, 224, 224)) == 6
    assert at_a_time(torch.empty(1, 3, 9000, 9000, device="meta")) == 1
    assert at_a_time(torch.empty(0, 3, 8, 8)) >= 1
    monkeypatch.setitem(_layout.BUDGET, "cpu", 8 * 4 * X[0].nbytes)
    assert at_a_time(X) == 4
    assert at_a_time(X, 9) == 9


@every_way
@pytest.mark.parametrize(
    "make",
    [
        Net,
        TakesItsInputApart,
        WantsTheUsualLayout,
        ReadsMemoryInOrder,
        Resizes,
        FillsMemoryInOrder,
        WritesIntoItsInput,
    ],
)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.filterwarnings("error")  # none is said to mix its examples
def test_the_numbers_are_those_of_the_usual_layout(way, make, n, monkeypatch):
    found = way(_net(make), X[:n].clone(), HEAT[:n])
    monkeypatch.setattr(_layout, "channels_last", lambda images: images)
    torch.testing.assert_close(found, way(_net(make), X[:n].clone(), HEAT[:n]))


@NEEDS_ONEDNN
@every_way
def test_masked_batches_are_laid_out_and_the_images_themselves_are_not(way):
    model, seen = _net(), []
    model.stem.register_forward_hook(lambda _, __, out: seen.append((len(out), out.stride(1))))
    way(model, X, HEAT)
    assert seen[0] == (2, 36)
    assert {stride for images, stride in seen if images > 2} == ({1} if way is not ALONE else set())


@NEEDS_ONEDNN
def test_a_model_that_takes_its_input_apart_is_asked_once():
    layout, layouts = Layout(), []

    def run(images):
        layouts.append(images.stride(1))
        return images.view(len(images), -1)

    assert layout(run, X).equal(X.flatten(1))
    layout(run, X)
    assert layouts == [1, 64, 64]


@NEEDS_ONEDNN
def test_a_model_that_fails_either_way_says_so_itself_and_keeps_the_layout():
    layout = Layout()

    def fail(_):
        raise ValueError("two of these do not fit")

    with pytest.raises(ValueError, match="do not fit"):
        layout(fail, X)
    assert layout(lambda images: images.stride(1), X) == 1


# The first pass, where no answer in the usual layout is known


class AsksForStrides(Net):
    def before(self, x):
        return x * (1 + x.stride(1))


class GoesByTheLayout(Net):
    def before(self, x):
        return x if x.is_contiguous() else x.flip(1)


class ReadsByAnOperator(Net):
    def before(self, x):
        return torch.ops.aten.as_strided.default(x, (len(x), 192), (192, 1)).view(x.shape)


class ReadsBehindTheStem(Net):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(self.stem, AsNumbers())


class AsNumbers(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.numpy().ravel("K")).view(x.shape)


class ReadsInTorchScript(Net):
    def __init__(self):
        super().__init__()
        self.before = torch.jit.script(InOrder())


class InOrder(nn.Module):
    def forward(self, x):
        return torch.as_strided(x, (x.shape[0], 192), (192, 1)).view(x.shape)


class DropsItsComplaint(Net):
    """It goes on after an error."""

    def before(self, x):
        try:
            return torch.as_strided(x, (len(x), 192), (192, 1)).view(x.shape)
        except Exception:
            return x


class WritesIntoAView(Net):
    def before(self, x):
        x.contiguous().sub_(0.5)
        return x


class WritesIntoWhatItAskedFor(Net):
    def before(self, x):
        x.to(memory_format=torch.contiguous_format).sub_(0.5)
        return x


class WritesIntoPartOfAView(Net):
    def before(self, x):
        x.flatten(1)[:, :50] = 0.5
        return x


class WritesIntoACopy(Net):
    def before(self, x):
        nn.functional.threshold(x.permute(0, 2, 3, 1).reshape(len(x), 64, 3), 0.5, 1, inplace=True)
        return x


class WritesOut(Net):
    def before(self, x):
        flat = x.reshape(len(x), -1)
        torch.sub(flat, 0.5, out=flat)
        return x


class WritesWhereAViewWasTaken(Net):
    def before(self, x):
        flat = x.flatten(1)
        x.mul_(0.5)
        return flat.view(x.shape)


READERS = [
    ReadsMemoryInOrder,
    Resizes,
    FillsMemoryInOrder,
    AsksForStrides,
    GoesByTheLayout,
    ReadsByAnOperator,
    ReadsBehindTheStem,
    ReadsInTorchScript,
    DropsItsComplaint,
    WritesIntoAView,
    WritesIntoWhatItAskedFor,
    WritesIntoPartOfAView,
    WritesIntoACopy,
    WritesOut,
    WritesWhereAViewWasTaken,
]


@pytest.mark.parametrize("make", READERS)
@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: lambda x: model(x)])
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_first_pass_never_hangs_on_the_layout(make, wrap):
    model = _net(make)
    cam = LayerAblationCam(wrap(model), model.relu, parts="whole")
    found = cam.explain(X.clone(), 1)
    alone = [cam.explain(x.clone(), 1) for x in X.split(1)]  # a single image is never laid out
    assert found.replay == "suffix"
    torch.testing.assert_close(found.scores, torch.cat([one.scores for one in alone]))
    torch.testing.assert_close(found.attributions, torch.cat([one.attributions for one in alone]))


class AsMostDo(Net):
    """It flattens, reshapes, and works in place elsewhere."""

    def before(self, x):
        x = x.to(torch.float32)
        x -= 0.5
        tokens = x.permute(0, 2, 3, 1).reshape(len(x), -1, 3)
        moved = (tokens * 2).transpose(1, 2).reshape(x.shape).contiguous()
        shift = moved.mean((2, 3), keepdim=True)
        shift[:, 0] = 0
        return nn.functional.relu(moved + shift, inplace=True)


@NEEDS_ONEDNN
@pytest.mark.parametrize("make", [Net, AsMostDo])
def test_what_most_models_do_is_laid_out_in_a_single_pass(make):
    model, strides = _net(make), []
    model.stem.register_forward_pre_hook(lambda _, args: strides.append(args[0].numel()))
    ClusteredLayerAblation(model, model.relu, n_clusters=2).attribute(X, 1)
    assert strides == [X.numel()] * 2  # the second for the hook, which is not the library's


@NEEDS_ONEDNN
def test_images_that_came_channels_last_stay_so():
    model = _net(GoesByTheLayout)
    x = X.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = model(x)[:, 1]
    found = LayerAblationCam(model, model.relu).explain(x, 1)
    torch.testing.assert_close(found.scores, plain)
