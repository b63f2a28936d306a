"""Layers by name, and the last one with maps: what is found, and what is said when nothing is."""

import re
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torchvision import models as vision

from captum_clustered import ClusteredLayerAblation, LayerEGradCam, LayerHiResCam
from captum_clustered.layers import find_finer_layer, find_layer, find_target_layer

LAST_LAYER = {
    "alexnet": "features",
    "convnext_tiny": "features",
    "densenet121": "features",
    "efficientnet_b0": "features",
    "efficientnet_v2_s": "features",
    "googlenet": "inception5b",
    "inception_v3": "Mixed_7c",
    "maxvit_t": "blocks.3",
    "mnasnet0_5": "layers",
    "mobilenet_v2": "features",
    "mobilenet_v3_small": "features",
    "regnet_x_400mf": "trunk_output",
    "regnet_y_400mf": "trunk_output",
    "resnet18": "layer4",
    "resnext50_32x4d": "layer4",
    "shufflenet_v2_x0_5": "conv5",
    "squeezenet1_0": "features",
    "squeezenet1_1": "features",
    "swin_t": "permute",
    "swin_v2_t": "permute",
    "vgg11": "features",
    "vgg11_bn": "features",
    "vit_b_32": "encoder.layers.encoder_layer_11.ln_1",
    "wide_resnet50_2": "layer4",
}


def test_no_family_of_torchvision_is_left_out():
    def family(name):
        return re.match("[a-z]+(_v2|_v3|_x_|_y_)?", name)[0]

    names = vision.list_models(module=vision)
    assert {family(name) for name in LAST_LAYER} == {family(name) for name in names}


@pytest.mark.parametrize("name", LAST_LAYER)
def test_last_layer_of_each_torchvision_family(name):
    size = 299 if name == "inception_v3" else 224
    options = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    # on the meta device nothing is computed; RegNet's construction needs values
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = vision.get_model(name, **options)
        found = find_target_layer(model, torch.zeros(1, 3, size, size))
    assert found.name == LAST_LAYER[name]
    assert found.layer is model.get_submodule(found.name)
    assert not found.at_input
    tokens = name.startswith("vit")
    assert found.channel_dim == (-1 if tokens else 1)
    assert (found.reshape_transform is not None) == tokens


def _explained(model, x, name="auto", idle=False):
    with pytest.warns(UserWarning, match="cannot change what the model") if idle else nullcontext():
        found = find_layer(model, name, x)
    cam = ClusteredLayerAblation(
        model,
        found.layer,
        n_clusters=4,
        channel_dim=found.channel_dim,
        reshape_transform=found.reshape_transform,
    )
    with pytest.warns(UserWarning, match="means nothing") if idle else nullcontext():
        return found, cam.attribute(x, target=1, attribute_to_layer_input=found.at_input)


def _vision_transformer():
    return vision.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=16,
        num_classes=5,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["auto", "encoder.layers.encoder_layer_0", "encoder"])
def test_tokens_become_a_grid_without_the_class_token(name):
    model = _vision_transformer()
    found, heat = _explained(model, torch.rand(2, 3, 32, 32), name)
    assert found.reshape_transform.keywords == {
        "height": 4,
        "width": 4,
        "prefix_tokens": 1,
        "frames": None,
    }
    assert heat.shape == (2, 1, 4, 4)


def _video_transformer():
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    def block(width, stride):
        return MSBlockConfig(1, 8, width, [3, 3, 3], [3, 3, 3], stride, [1, 1, 1])

    return MViT(
        spatial_size=(64, 64), temporal_size=16, num_classes=5, residual_pool=True,
        residual_with_cls_embed=False, rel_pos_embed=True, proj_after_attn=True,
        block_setting=[block(8, [1, 1, 1]), block(8, [1, 4, 4]), block(8, [1, 1, 1])],
    ).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "grid"), [("auto", (8, 4, 4)), ("blocks.1.norm1", (8, 16, 16)), ("norm", (8, 4, 4))]
)
def test_tokens_of_a_video_are_told_by_the_frames_of_its_patches(name, grid):
    """8 frames of 4 x 4 patches are as many tokens as 2 of 8 x 8, which fit the video better."""
    model, x = _video_transformer(), torch.rand(2, 3, 16, 64, 64)
    found, heat = _explained(model, x, name, idle=name == "norm")
    assert found.name == ("blocks.2.norm1" if name == "auto" else name)
    assert heat.shape == (2, 1, *grid)
    settings = {"channel_dim": -1, "reshape_transform": found.reshape_transform}
    settings |= {"clusterer": "contiguous", "n_clusters": 3}
    with pytest.warns(UserWarning, match="means nothing") if name == "norm" else nullcontext():
        fast, full = (
            ClusteredLayerAblation(model, found.layer, replay=replay, **settings).explain(
                x, target=1
            )
            for replay in ("suffix", "full")
        )
    torch.testing.assert_close(fast.ablated_scores, full.ablated_scores)
    if name != "norm":  # behind it the class token alone is read
        assert (full.ablated_scores != full.scores[:, None]).all()


def test_tokens_of_a_video_without_maps_before_them_are_no_grid():
    model = nn.Sequential(nn.Flatten(2), nn.LayerNorm(32), nn.Flatten(), nn.LazyLinear(5))
    x = torch.rand(2, 3, 2, 4, 4)
    assert find_layer(model.eval(), "1", x).reshape_transform is None


def test_channels_last_are_told_by_the_shape_of_the_image():
    model = vision.SwinTransformer(
        patch_size=[4, 4], embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=[2, 2],
        num_classes=5,
    ).eval()  # fmt: skip
    x = torch.rand(1, 3, 32, 48)
    found, heat = _explained(model, x)
    assert (found.name, found.channel_dim) == ("permute", 1)
    before, same = _explained(model, x, "norm")
    assert (before.channel_dim, before.reshape_transform) == (-1, None)
    assert heat.shape == (1, 1, 4, 6)
    torch.testing.assert_close(heat, same)


class SharedReLU(nn.Module):
    """One ReLU serves twice, so it cannot be the layer, yet it makes the maps."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.conv2(self.relu(self.conv1(x))))
        return self.fc(self.pool(x).flatten(1))


def test_maps_behind_a_shared_relu_are_the_input_of_the_pooling():
    model, x = SharedReLU().eval(), torch.rand(2, 3, 12, 12)
    found, heat = _explained(model, x)
    assert (found.name, found.at_input) == ("pool", True)
    assert heat.shape == (2, 1, 8, 8)


def test_pooling_of_the_layers_own_output_changes_nothing():
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = nn.Sequential(
        features, nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    found = find_target_layer(model, torch.rand(1, 3, 12, 12))
    assert (found.name, found.at_input) == ("0", False)


def test_maps_without_a_batch_axis_are_not_the_layer():
    class Position(nn.Module):
        def __init__(self):
            super().__init__()
            self.maps = nn.Parameter(torch.rand(1, 4, 10, 10))

        def forward(self):
            return self.maps * 2

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.position, self.fc = nn.Conv2d(3, 4, 3), Position(), nn.Linear(4, 5)

        def forward(self, x):
            return self.fc((self.conv(x) + self.position()).mean((2, 3)))

    assert find_target_layer(Net(), torch.rand(1, 3, 12, 12)).name == "conv"


def test_maps_of_classes_are_not_the_layer():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )  # fmt: skip
    assert find_target_layer(model, torch.rand(1, 3, 12, 12)).name == "1"


@pytest.mark.parametrize("dims", [1, 3])
def test_one_and_three_dimensions(dims):
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    model = nn.Sequential(conv(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    found = find_target_layer(model, torch.rand(1, 3, *[6] * dims))
    assert (found.name, found.channel_dim) == ("1", 1)


def test_attention_whose_tokens_are_no_grid_is_refused():
    class Attention(nn.Module):
        def forward(self, x):
            return x * 2

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Flatten(2), Attention(), Attention(), nn.Flatten(), nn.LazyLinear(5)
    )
    with pytest.raises(ValueError, match=r"`layer` could not be found: .*; got an output of"):
        find_target_layer(model, torch.rand(1, 3, 9, 20))


def test_a_model_without_maps_is_refused():
    with pytest.raises(ValueError, match=r"`layer` could not be found"):
        find_target_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.rand(1, 3, 2, 2))


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert find_target_layer(model, torch.rand(2, 3, 8, 8)).name == "1"
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        find_target_layer(model, torch.rand(2, 3, 9, 9))
    assert [module.training for module in model.modules()] == [True, True, False, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_compiled_model_runs_as_it_is_written():
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    model = torch.compile(inner, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of hooks that cannot be compiled
        assert find_layer(model, inputs=torch.rand(2, 3, 8, 8)).layer is inner[1]


def test_layer_by_name():
    model = vision.resnet18()
    found = find_layer(model, "layer3.1")
    assert found.layer is model.layer3[1]
    assert (found.channel_dim, found.at_input) == (1, False)
    with pytest.raises(ValueError, match=r"got 'layer5'\. Close are: .*layer4"):
        find_layer(model, "layer5")
    with pytest.raises(ValueError, match=r"got 'zzz'\. The outermost are: conv1, bn1, .*fc\.$"):
        find_layer(model, "zzz")


# The axis of the maps is read from the modules


class Strip(nn.Module):
    """Networks for sound pool one axis of the image away."""

    def __init__(self, channels_last=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.mix = nn.Linear(24, 24) if channels_last else nn.Conv2d(24, 24, 1)
        self.norm = nn.LayerNorm(24) if channels_last else nn.BatchNorm2d(24)
        self.act, self.head = nn.ReLU(), nn.Linear(24, 3)
        self.spatial = (1, 2) if channels_last else (2, 3)

    def forward(self, x):
        x = self.conv(x).mean(3, keepdim=True)
        x = x.movedim(1, -1) if self.spatial == (1, 2) else x
        return self.head(self.act(self.norm(self.mix(x))).mean(self.spatial))


@pytest.mark.parametrize("name", ["auto", "conv", "mix", "norm", "act"])
@pytest.mark.parametrize("size", [(64, 64), (48, 64)])
def test_a_convolution_knows_its_channels(name, size):
    """The proportions of (24, 32, 1) fit those of (1, 24, 32) better."""
    assert find_layer(Strip().eval(), name, torch.rand(2, 3, *size)).channel_dim == 1


@pytest.mark.parametrize(("name", "dim"), [("auto", -1), ("conv", 1), ("norm", -1), ("act", -1)])
def test_channels_last_are_known_by_the_norm(name, dim):
    model = Strip(channels_last=True).eval()
    assert find_layer(model, name, torch.rand(2, 3, 64, 64)).channel_dim == dim


def test_tokens_of_a_signal_have_their_channels_last():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm = nn.Conv1d(1, 8, 4, 4), nn.LayerNorm(8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.norm(self.patch(x).mT).mean(1))

    model, x = Net().eval(), torch.rand(2, 1, 32)  # 8 tokens of 8 features
    assert find_layer(model, "norm", x).channel_dim == -1
    assert find_layer(model, "patch", x).channel_dim == 1


# the second takes images whose channels come last, which cannot be told here
@pytest.mark.filterwarnings("ignore:Layer 1 gives maps that change elsewhere")
@pytest.mark.parametrize("dims", [(0, 2, 3, 1), (0, 3, 1, 2)])
def test_a_permutation_is_followed_where_all_axes_are_equal(dims):
    from torchvision.ops import Permute

    first = dims == (0, 2, 3, 1)
    before = nn.Conv2d(3, 8, 3, padding=1) if first else nn.LayerNorm(8)
    model = nn.Sequential(before, Permute(list(dims)), nn.Flatten(), nn.LazyLinear(2)).eval()
    x = torch.rand(2, 3 if first else 8, 8, 8)
    assert find_layer(model, "1", x).channel_dim == (-1 if first else 1)


# Maps must be able to change what the model returns


class Mixer(nn.Module):
    """A transformer whose attention has another name; the class token alone is read."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.heads = nn.MultiheadAttention(8, 2, batch_first=True)
            self.heads.__class__ = type("SABlock", (nn.MultiheadAttention,), {})
            self.mlp = nn.Linear(8, 8)

        def forward(self, x):
            y = self.norm1(x)
            x = x + self.heads(y, y, y, need_weights=False)[0]
            return x + self.mlp(self.norm2(x))

    def __init__(self, several=False):
        super().__init__()
        self.several = several
        self.patch, self.token = nn.Conv2d(1, 8, 8, 8), nn.Parameter(torch.rand(1, 1, 8))
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        x = self.norm(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1)))
        return (self.head(x[:, 0]), x) if self.several else self.head(x[:, 0])


@pytest.mark.parametrize("several", [False, True])
def test_a_layer_whose_maps_change_nothing_is_not_found(several):
    torch.manual_seed(0)
    found = find_layer(Mixer(several).eval(), inputs=torch.rand(1, 1, 32, 32))
    assert found.name == "blocks.1.norm1"


@pytest.mark.parametrize("name", ["norm", "blocks", "blocks.1.norm2", "blocks.1.mlp"])
def test_a_chosen_layer_whose_maps_change_nothing_is_warned_of(name):
    model, x = Mixer().eval(), torch.rand(1, 1, 32, 32)
    with pytest.warns(UserWarning, match=f"Layer {name} gives maps that cannot change"):
        found = find_layer(model, name, x)
    for method in (ClusteredLayerAblation, LayerEGradCam):
        with pytest.warns(UserWarning, match="none that the heat map shows changes the score"):
            method(model, found.layer, **found.settings).attribute(x, 1)


def test_a_branch_that_is_not_read_is_not_the_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.side = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            maps = self.trunk(x)
            self.side(maps)
            return self.head(maps.mean((2, 3)))

    assert find_layer(Net().eval(), inputs=torch.rand(1, 3, 16, 16)).name == "trunk"


# Tokens must have a place in the image


class FoldedNorm(nn.Module):
    """Blocks of tokens without a norm that returns tokens: it gets those of all examples."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return x + self.norm(self.mix(x).flatten(0, 1)).reshape_as(x)

    def __init__(self):
        super().__init__()
        self.patch, self.head = nn.Conv2d(1, 8, 8, 8), nn.Linear(8, 2)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.attn = nn.ModuleList(
            type("Attention", (nn.Identity,), {})() for _ in range(2)
        )  # a single one would be taken for pooling

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        for attn in self.attn:
            x = attn(x)
        return self.head(self.blocks(x).mean(1))


def test_tokens_without_a_norm_end_with_the_last_module_that_returns_them():
    found = find_layer(FoldedNorm().eval(), inputs=torch.rand(1, 1, 32, 48))
    assert found.name == "blocks"
    assert found.channel_dim == -1
    assert found.reshape_transform(torch.zeros(1, 24, 8)).shape == (1, 8, 4, 6)


class Latents(nn.Module):
    """Parameters, of a number that would fit a grid, ask the tokens of the image."""

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.heads = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, latents, x):
            return latents + self.heads(self.norm(latents), x, x, need_weights=False)[0]

    def __init__(self):
        super().__init__()
        self.patch, self.latents = nn.Conv2d(1, 8, 4, 4), nn.Parameter(torch.randn(1, 16, 8))
        self.across, self.among = self.Attention(), self.Attention()
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.patch(x).flatten(2).mT
        latents = self.across(self.latents.expand(len(x), -1, -1), x)
        latents = self.norm(self.among(latents, latents))
        return self.head(latents.mean(1))


def test_a_network_around_an_attention_is_none():
    class AttentionLayer(nn.Module):  # a level of a U-net, as in MONAI's AttentionUnet
        def __init__(self, wide, below):
            super().__init__()
            self.down = nn.Conv2d(wide, 2 * wide, 3, stride=2, padding=1)
            self.below = below
            self.up = nn.ConvTranspose2d(2 * wide, wide, 2, stride=2)
            self.attention = nn.Sequential(nn.Conv2d(wide, 1, 1), nn.Sigmoid())

        def forward(self, x):
            return x * self.attention(self.up(self.below(self.down(x))))

    class AttentionUnet(nn.Sequential):
        pass

    levels = AttentionLayer(4, AttentionLayer(8, nn.Conv2d(16, 16, 3, padding=1)))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    model = AttentionUnet(nn.Conv2d(1, 4, 3, padding=1), levels, *head)
    assert find_target_layer(model, torch.rand(1, 1, 16, 16)).name == "1"


def test_latents_are_not_the_layer():
    model = Latents().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = find_layer(model, inputs=torch.zeros(1, 1, 32, 32))
    assert (found.name, found.channel_dim, found.reshape_transform) == ("patch", 1, None)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_latents_that_are_chosen_are_refused():
    with pytest.raises(ValueError, match=r"got norm, of whose 16 tokens some begin as"):
        find_layer(Latents().eval(), "norm", torch.rand(1, 1, 32, 32))


def test_tokens_with_parameters_behind_them_are_no_grid():
    class Detecting(Latents):  # 16 patches and 9 more, which a class token and a grid might be
        def forward(self, x):
            x = self.patch(x).flatten(2).mT
            x = torch.cat([x, self.latents[:, :9].expand(len(x), -1, -1)], 1)
            return self.head(self.norm(self.among(x, x))[:, 16:].mean(1))

    model, x = Detecting().eval(), torch.rand(1, 1, 16, 16)
    assert find_layer(model, inputs=x).name == "patch"
    with pytest.raises(ValueError, match=r"got norm, of whose 25 tokens some begin as parameters"):
        find_layer(model, "norm", x)


@pytest.mark.parametrize("error", [ValueError, AssertionError, RuntimeError])
@pytest.mark.parametrize("name", ["patch", "norm", "auto"])
def test_a_model_that_takes_no_other_values_has_its_layer(name, error):
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.norm = nn.Conv2d(1, 8, 8, 8), nn.LayerNorm(8)
            self.head = nn.Linear(8, 2)

        def forward(self, x):
            if x.min() < 0 or x.max() > 1:
                raise error("pixels must lie in [0, 1]")
            return self.head(self.norm(self.patch(x).flatten(2).mT).mean(1))

    found = find_layer(Choosy().eval(), name, torch.rand(1, 1, 32, 32))
    assert found.name == ("norm" if name == "auto" else name)


def test_places_that_a_module_makes_of_numbers_make_no_latents():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch, self.place = nn.Conv2d(1, 8, 8, 8), nn.Embedding(16, 8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x):
            places = self.place(torch.arange(16).expand(len(x), -1))
            return self.head(self.norm(self.patch(x).flatten(2).mT + places).mean(1))

    assert find_layer(Placed().eval(), inputs=torch.zeros(1, 1, 32, 32)).name == "norm"


class Windows(nn.Module):
    """The tokens of each window of 4 x 4 patches stay together, as in Hiera."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.patch, self.norm = nn.Conv2d(1, 8, 4, 4), nn.LayerNorm(8)
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        maps = self.patch(x)  # (N, 8, 12, 12)
        windows = maps.unfold(2, self.size, self.size).unfold(3, self.size, self.size)
        tokens = windows.flatten(2).mT
        return self.head((tokens + self.mlp(self.norm(tokens))).mean(1))


@pytest.mark.parametrize("x", [torch.rand(1, 1, 48, 48), torch.zeros(1, 1, 48, 48)])
def test_tokens_of_windows_are_no_rows(x):
    model = Windows(4).eval()
    for name in ("norm", "mlp"):
        with pytest.raises(ValueError, match=rf"image row by row; got {name}, whose tokens .*"):
            find_layer(model, name, x)
    assert find_layer(model, inputs=x).name == "patch"


def test_so_they_are_where_a_model_takes_pixels_of_a_range_only():
    model, x = Windows(4).eval(), torch.rand(1, 1, 48, 48)

    def check(_, args):
        if args[0].min() < 0 or args[0].max() > 1:
            raise ValueError("pixels must lie in [0, 1]")

    model.register_forward_pre_hook(check)
    with pytest.raises(ValueError, match=r"image row by row; got mlp"):
        find_layer(model, "mlp", x)


class Moved(nn.Module):
    """What lies behind the first convolution is moved."""

    def __init__(self, move):
        super().__init__()
        torch.manual_seed(0)
        self.move = move
        self.stem, self.mix = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.mix(self.move(self.stem(x))).mean((2, 3)))


class Scanned(Moved):
    """Of the rows every second is read from right to left."""

    def forward(self, x):
        rows = self.stem(x).unbind(2)
        rows = [row.flip(2) if number % 2 else row for number, row in enumerate(rows)]
        tokens = self.norm(torch.stack(rows, 2).flatten(2).mT)
        return self.head(tokens.mean(1))


MOVES = {
    "transposed": lambda maps: maps.transpose(2, 3),
    "flipped": lambda maps: maps.flip(3),
    "turned round": lambda maps: maps.flip(2, 3),
    "padded": lambda maps: nn.functional.pad(maps, (0, 6, 0, 6)),
}


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize("move", MOVES)
def test_maps_that_are_moved_are_not_the_layer(move, size):
    model, x = Moved(MOVES[move]).eval(), torch.rand(1, 3, *size)
    assert find_layer(model, inputs=x).name == "stem"
    with pytest.warns(UserWarning, match="Layer mix gives maps that change elsewhere than the"):
        assert find_layer(model, "mix", x).name == "mix"
    assert find_layer(Moved(lambda maps: maps).eval(), inputs=x).name == "mix"


def test_maps_that_are_moved_can_be_turned_back():
    model, x = Moved(MOVES["transposed"]).eval(), torch.zeros(1, 3, 64, 96)
    x[..., :8, 80:] = 1  # top right
    cam = ClusteredLayerAblation(
        model, "mix", clusterer="every-map", reshape_transform=lambda maps: maps.transpose(2, 3)
    )
    heat = cam.attribute(x, 1, relu_attributions=False)[0, 0].abs()
    assert heat.shape == (16, 24)
    assert heat[:3, 19:].amax() == heat.amax()


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
def test_a_scan_that_turns_back_has_no_rows(size):
    model, x = Scanned(None).eval(), torch.rand(1, 3, *size)
    assert find_layer(model, inputs=x).name == "stem"
    with pytest.raises(ValueError, match="image row by row; got norm, whose tokens"):
        find_layer(model, "norm", x)


def test_a_map_for_each_class_of_each_pixel_is_not_the_layer():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    assert find_layer(model, inputs=torch.rand(1, 3, 16, 16)).name == "1"


def test_frozen_torchscript_has_no_mode():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        body = torch.jit.script(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval())
        body = torch.jit.freeze(body)
    model = nn.Sequential(body, nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 3))
    model[1].train()
    assert find_layer(model, inputs=torch.rand(1, 3, 16, 16)).name == "1"
    assert model[1].training


def test_a_compiled_model_that_has_run_before():
    model, x = Moved(lambda maps: maps).eval(), torch.rand(1, 3, 32, 32)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(x)
    try:
        assert find_layer(compiled, inputs=x).layer is model.mix
    finally:
        torch._dynamo.reset()


def test_tokens_in_rows_are_taken():
    x = torch.rand(1, 1, 48, 48)
    found = find_layer(Windows(1).eval(), "mlp", x)
    assert found.reshape_transform(torch.zeros(1, 144, 8)).shape == (1, 8, 12, 12)


@pytest.mark.parametrize("size", [4, 1])
def test_tokens_that_change_alike_lie_as_those_before_them_do(size):
    class Mean(nn.Module):
        def forward(self, tokens):
            return tokens.mean(1, keepdim=True).expand_as(tokens)

    model = Windows(size).eval()
    model.mlp = nn.Sequential(nn.Linear(8, 8), Mean(), nn.ReLU())
    x = torch.rand(1, 1, 48, 48)
    for name in ("mlp", "mlp.1", "mlp.2"):
        if size == 1:
            assert find_layer(model, name, x).reshape_transform is not None
        else:
            with pytest.raises(ValueError, match=rf"image row by row; got {name}, whose"):
                find_layer(model, name, x)


def test_where_no_tokens_tell_it_rows_are_assumed():
    model = Windows(4).eval()
    model.norm.register_forward_hook(lambda *args: args[2].mean(1, keepdim=True).expand(-1, 144, 8))
    assert find_layer(model, "mlp", torch.rand(1, 1, 48, 48)).reshape_transform is not None


# What may be passed


def test_an_explainer_takes_the_name_of_a_layer():
    model, x = Strip().eval(), torch.rand(2, 3, 16, 16)
    wanted = ClusteredLayerAblation(model, model.mix, n_clusters=3).attribute(x, 1)
    for layer in ("mix", ["mix"], [model.mix], (model.mix,)):
        heat = ClusteredLayerAblation(model, layer, n_clusters=3).attribute(x, 1)
        assert torch.equal(heat, wanted)
    assert find_layer(model, model.mix, x).name == find_layer(model, ["mix"], x).name == "mix"


@pytest.mark.parametrize(
    ("layer", "error", "words"),
    [
        ("mux", ValueError, "must be the name of a module in the model; got 'mux'. Close are: mix"),
        (["mix", "conv"], TypeError, "must be one module, or its name.*got list of 2"),
        (3, TypeError, "must be one module, or its name in the model; got int"),
        (None, TypeError, "must be one module, or its name in the model; got NoneType"),
    ],
)
def test_what_is_no_layer(layer, error, words):
    model = Strip().eval()
    with pytest.raises(error, match=words):
        LayerEGradCam(model, layer)
    with pytest.raises(error, match=words):
        find_layer(model, layer, torch.rand(1, 3, 16, 16))


def test_a_function_has_no_layers_with_names():
    with pytest.raises(ValueError, match=r"Pass for example `model.get_submodule\('mix'\)`"):
        LayerEGradCam(lambda x: x, "mix")


def test_a_layer_of_another_model():
    with pytest.raises(ValueError, match="`name` must be a module of the model; got a ReLU"):
        find_layer(Strip().eval(), nn.ReLU(), torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("first", "example"),
    [
        (nn.Conv1d(2, 4, 3), "(1, 2, 1000)"),
        (nn.Conv2d(1, 4, 3), "(1, 1, 224, 224)"),
        (nn.Conv3d(3, 4, 3), "(1, 3, 64, 64, 64)"),
    ],
)
def test_without_inputs_the_error_says_what_to_give(first, example):
    words = re.escape(f"such as torch.zeros{example}.")
    with pytest.raises(ValueError, match=r"`inputs` must be given.*" + words):
        find_layer(nn.Sequential(first, nn.Flatten()))


@pytest.mark.parametrize("name", ["auto", "0"])
def test_without_inputs_a_model_of_another_size_says_so(name):
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 6 * 6, 3))
    with pytest.raises(ValueError, match=r"`inputs` must be given.*mat1 and mat2.*Pass an example"):
        find_layer(model, name)
    assert find_layer(model, name, torch.zeros(1, 3, 8, 8)).name == "0"


# A finer layer

FINER_LAYER = {
    "convnext_tiny": "features.5",
    "densenet121": "features.denseblock3",
    "efficientnet_b0": "features.5",
    "googlenet": "inception4e",
    "inception_v3": "Mixed_6e",
    "mobilenet_v2": "features.13",
    "resnet18": "layer3",
    "shufflenet_v2_x0_5": "stage3",
    "swin_t": "features.5",
    "vgg11": "features.19",
    "vit_b_32": None,
}


@pytest.mark.parametrize(("name", "want"), FINER_LAYER.items())
def test_the_last_layer_with_finer_maps(name, want):
    model = getattr(vision, name)(
        **({"init_weights": False} if name in {"googlenet", "inception_v3"} else {})
    )
    x = torch.zeros(1, 3, 224, 224)
    last = find_target_layer(model.eval(), x)
    found = find_finer_layer(model, last.layer, x, at_input=last.at_input)
    assert (found and found.name) == want
    if found is not None:
        heat = LayerHiResCam(model, found.layer, **found.settings).attribute(x, 1)
        assert heat[0].numel() >= 2 * 49


def test_a_finer_layer_behind_a_function_and_in_training_mode():
    model = vision.resnet18()
    x = torch.zeros(2, 3, 64, 64)
    assert find_finer_layer(lambda x, y: y * model(x), model.layer4, x, 2).name == "Sequential"
    assert find_finer_layer(model, model.layer4, x).name == "layer3"
    assert model.training
    assert model.layer3.training


def test_a_layer_that_does_not_run_once_has_no_finer_layer():
    model = vision.resnet18().eval()
    relu = model.layer4[0].relu
    assert find_finer_layer(model, relu, torch.zeros(1, 3, 64, 64)) is None
    assert find_finer_layer(model, nn.ReLU(), torch.zeros(1, 3, 64, 64)) is None
