"""Networks as people use them: the fast path is taken and equals Captum."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from captum.attr import LayerFeatureAblation

from captum_clustered import ClusteredLayerAblation
from captum_clustered.heatmap import swin_reshape_transform, vit_reshape_transform

TARGET = [3, 1]
TOKENS = {"channel_dim": -1, "reshape_transform": vit_reshape_transform}
LAST = {"channel_dim": -1}

# name of a torchvision model, layer, further settings, size of the image
FAMILIES = [
    ("alexnet", "features", {}, 64),
    ("convnext_tiny", "features", {}, 64),
    ("densenet121", "features", {}, 64),
    ("efficientnet_b0", "features", {}, 64),
    ("efficientnet_v2_s", "features", {}, 64),
    ("googlenet", "inception5b", {}, 64),
    ("inception_v3", "Mixed_7c", {}, 96),
    ("maxvit_t", "blocks.3", {}, 224),
    ("mnasnet0_5", "layers", {}, 64),
    ("mobilenet_v2", "features", {}, 64),
    ("mobilenet_v3_large", "features", {}, 64),
    ("regnet_y_400mf", "trunk_output", {}, 64),
    ("resnet18", "layer4", {}, 64),
    ("resnext50_32x4d", "layer4", {}, 64),
    ("shufflenet_v2_x0_5", "conv5", {}, 64),
    ("squeezenet1_1", "features", {}, 64),
    ("swin_t", "features.7", LAST, 64),
    ("swin_v2_t", "features.7", LAST, 64),
    ("vgg11_bn", "features", {}, 64),
    ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", TOKENS, 64),
    ("wide_resnet50_2", "layer4", {}, 64),
]
INNER = [
    ("resnet18", "layer3.0.conv2", {}, 64),
    ("resnet18", "layer3.0.downsample", {}, 64),
    ("resnet50", "layer2.1.bn2", {}, 64),
    ("densenet121", "features.denseblock3.denselayer5.conv2", {}, 64),
    ("inception_v3", "Mixed_6c.branch7x7_2", {}, 96),
    ("googlenet", "inception4c.branch2", {}, 64),
    ("vit_b_16", "encoder.layers.encoder_layer_5.mlp", TOKENS, 64),
    ("swin_t", "features.5.2.mlp", LAST, 64),
    ("mobilenet_v3_large", "features.7.block.1", {}, 64),
    ("shufflenet_v2_x0_5", "stage3.1.branch2.2", {}, 64),
]


def _settings(name, size):
    settings = {"weights": None, "num_classes": 7}
    if name.startswith("vit"):
        settings["image_size"] = size
    if name in ("googlenet", "inception_v3"):
        settings |= {"init_weights": False, "aux_logits": False}
    return settings


def _wake(model):
    """Gives layers that start at zero (some heads, some scales) something to say."""
    for name, parameter in model.named_parameters():
        if not parameter.any() or "layer_scale" in name or "gamma" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def _assert_fast_and_equal(model, layer, x, tolerance, channel_dim=1, **settings):
    """Drops of the fast path against Captum's, relative to the largest; then those of parts."""
    settings = {"n_clusters": 4, "channel_dim": channel_dim, "weighting": "drop", **settings}
    cam = ClusteredLayerAblation(model, layer, parts="whole", unpainted="ablate", **settings)
    result = cam.explain(x, target=TARGET)
    assert result.replay == "suffix", result.replay_reason
    outputs = []
    handle = layer.register_forward_hook(lambda *args: outputs.append(args[-1].shape))
    model(x)
    handle.remove()
    shape = [1] * len(outputs[0])
    shape[0], shape[channel_dim] = result.labels.shape
    theirs = LayerFeatureAblation(model, layer).attribute(
        x, target=TARGET, layer_mask=result.labels.view(shape)
    )
    theirs = theirs.movedim(channel_dim, 1).flatten(2)[:, :, 0]
    drops = result.scores[:, None] - result.ablated_scores
    ours = drops.gather(1, result.labels.clamp(min=0))
    live = result.labels >= 0
    largest = theirs[live].abs().max()
    assert largest > 0
    assert (ours - theirs)[live].abs().max() <= tolerance * largest
    if (result.activations < 0).any():
        result = ClusteredLayerAblation(model, layer, **settings).explain(x, target=TARGET)
        assert result.replay == "suffix", result.replay_reason
        ours, theirs = result.drops, _clamped_by_hand(model, layer, x, result, settings)
        assert (theirs != 0).any(1).all()
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@torch.no_grad()
def _clamped_by_hand(model, layer, x, result, settings):
    """The drops of groups of parts, by the whole model; class tokens stay as they are."""
    prefix = 1 if settings.get("reshape_transform") is vit_reshape_transform else 0
    scores = model(x)[range(2), TARGET]
    drops = torch.zeros_like(result.drops)
    for k in range(drops.shape[1]):

        def clamp(_, __, output, k=k):
            maps = output.movedim(settings["channel_dim"], -1)
            shape = len(maps), *[1] * (maps.ndim - 2), -1
            above, below = (
                (labels == k).view(shape) for labels in (result.labels, result.labels_below)
            )
            off = torch.where(above & (maps > 0) | below & (maps < 0), 0, maps)
            if prefix:
                off[:, :prefix] = maps[:, :prefix]
            return off.movedim(-1, settings["channel_dim"])

        handle = layer.register_forward_hook(clamp)
        drops[:, k] = scores - model(x)[range(2), TARGET]
        handle.remove()
    return drops


@pytest.mark.parametrize(
    ("name", "layer", "settings", "size"),
    [*FAMILIES, *INNER],
    ids=[f"{name}:{layer}" for name, layer, *_ in [*FAMILIES, *INNER]],
)
def test_torchvision(name, layer, settings, size):
    model = _wake(torchvision.models.get_model(name, **_settings(name, size))).double()
    x = torch.rand(2, 3, size, size, dtype=torch.float64)
    _assert_fast_and_equal(model, model.get_submodule(layer), x, 1e-9, **settings)


@pytest.mark.parametrize(
    ("name", "layer"),
    [("resnet18", "layer4"), ("resnet18", "layer3.0.conv2"), ("vgg11", "features")],
)
def test_torchvision_in_float32(name, layer):
    model = _wake(torchvision.models.get_model(name, **_settings(name, 64)))
    _assert_fast_and_equal(model, model.get_submodule(layer), torch.rand(2, 3, 64, 64), 1e-4)


@pytest.mark.parametrize("layer", ["_conv_head", "_blocks.10._depthwise_conv", "_blocks.10"])
def test_efficientnet_lite_on_a_photograph(layer, lite0, photographs):
    """It takes the batch size from its input, and gives keyword arguments to its blocks."""
    x = torch.stack([photo[:, 100:324, 200:424] for photo in photographs])
    _assert_fast_and_equal(lite0, lite0.get_submodule(layer), x, 1e-4)


# each was silently wrong in some way in a first version of the engine, at a layer inside
TIMM = [
    ("coat_tiny", "serial_blocks2.0.mlp", TOKENS, 224),
    ("efficientvit_b0", "stages.2.blocks.1", {}, 64),
    ("efficientvit_m0", "stages.1.blocks.1", {}, 64),
    ("hrnet_w18_small", "stage3.0.branches.1", {}, 64),
    ("mobileone_s0", "stages.1.0", {}, 64),
    ("convit_tiny", "blocks.9.norm1", {}, 224),
    ("mixer_s32_224", "blocks.6.norm1", {}, 224),
]  # fmt: skip


@pytest.mark.parametrize(("name", "layer", "settings", "size"), TIMM, ids=[c[0] for c in TIMM])
def test_timm(name, layer, settings, size):
    if name.startswith("convit"):
        settings = {**TOKENS, "reshape_transform": partial(vit_reshape_transform, prefix_tokens=0)}
    if name.startswith("mixer"):
        settings = {"channel_dim": -1, "reshape_transform": swin_reshape_transform}
    model = _wake(timm.create_model(name, pretrained=False, num_classes=7)).double()
    x = torch.rand(2, 3, size, size, dtype=torch.float64)
    _assert_fast_and_equal(model, model.get_submodule(layer), x, 1e-9, **settings)


@pytest.mark.parametrize(
    ("name", "layer", "message"),
    [
        ("vit_b_16", "encoder.layers.encoder_layer_11.ln_1", r"Pass channel_dim=-1, .*vit_reshape"),
        ("swin_t", "features.7", r"`channel_dim` must be the axis .* on the last axis"),
    ],
)
def test_token_layers_without_a_channel_dim_are_refused(name, layer, message):
    model = torchvision.models.get_model(name, **_settings(name, 64)).eval()
    with pytest.raises(ValueError, match=message):
        ClusteredLayerAblation(model, model.get_submodule(layer)).attribute(
            torch.rand(1, 3, 64, 64), 0
        )


def test_a_token_layer_without_a_reshape_transform_is_refused():
    model = torchvision.models.vit_b_16(image_size=64).eval()
    layer = model.encoder.layers[-1].ln_1
    with pytest.raises(ValueError, match=r"`reshape_transform` is needed .*\(1, 17, 768\)"):
        ClusteredLayerAblation(model, layer, channel_dim=-1).attribute(torch.rand(1, 3, 64, 64), 0)


def test_a_reshape_transform_without_a_channel_dim_is_refused():
    model = torchvision.models.vit_b_16(image_size=64).eval()
    layer = model.encoder.layers[-1].ln_1
    with pytest.raises(ValueError, match=r"`reshape_transform` must return .*channel_dim=-1"):
        ClusteredLayerAblation(model, layer, reshape_transform=vit_reshape_transform).attribute(
            torch.rand(1, 3, 64, 64), 0
        )


def test_tokens_of_a_video_become_frames_in_their_order():
    grid = torch.arange(2 * 3 * 4, dtype=torch.float32).reshape(1, 1, 2, 3, 4)
    tokens = torch.cat([torch.full((1, 1, 1), -1.0), grid.flatten(2).transpose(1, 2)], 1)
    torch.testing.assert_close(vit_reshape_transform(tokens, 3, frames=2), grid)
    with pytest.raises(
        ValueError, match=r"a grid of 2 x 3 x 3 patches; got 25 tokens\. .*`frames`"
    ):
        vit_reshape_transform(tokens, 3, 3, frames=2)
    with pytest.raises(ValueError, match=r"a grid of 5 x 2 x 2 patches; got 25 tokens\."):
        vit_reshape_transform(tokens, frames=5)


def test_windows_folded_into_the_batch_are_refused():
    model = timm.create_model("maxvit_pico_rw_256", pretrained=False, img_size=64).eval()
    layer = model.stages[0].blocks[0].attn_block.attn
    with pytest.raises(ValueError, match=r"first axis is the batch of 2 examples; got shape"):
        ClusteredLayerAblation(model, layer, channel_dim=-1).attribute(torch.rand(2, 3, 64, 64), 0)
