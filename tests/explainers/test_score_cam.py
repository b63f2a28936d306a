"""Scores of groups: a literal reference, which groups are scored, and what is refused."""

import math

import pytest
import torch
from torch.nn import functional as F

from captum_clustered import ClusteredLayerScore, LayerScoreCam
from captum_clustered.fills import fill_image
from captum_clustered.targets import format_target, target_scores
from small_models import split_cnn

LABELS = torch.tensor([[0, 1, 2, 0, 1, 3], [0, 0, 1, 2, 3, 3]])
TARGET = [1, 3]


def _model(seed=0, dims=2):
    model = split_cnn(seed, dims=dims)
    with torch.no_grad():
        model[1][-1].weight *= 20  # scores that are far enough apart for weights to differ
    return model


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 7, dtype=torch.float64) - 0.3


def _log_odds(model, image, cls):
    p = model(image[None])[0].softmax(0)[cls]
    return math.log(p / (1 - p))


@torch.no_grad()
def _reference(model, x, weigh_by, temperature, share, fill):
    """Image by image, group by group; groups in a list of (members, score)."""
    background = fill_image(fill, x).expand_as(x)
    heats = []
    for i, (image, cls, row) in enumerate(zip(x, TARGET, LABELS, strict=True)):
        maps = model[0](image[None])[0]
        row = torch.where(maps.flatten(1).any(1), row, -1)  # dead maps are in no group
        found = []
        for k in range(int(row.max()) + 1):
            joint = maps[row == k].sum(0)
            large = F.interpolate(joint[None, None], image.shape[1:], mode="bilinear")[0]
            if large.max() - large.min() > 1e-12:
                mask = (large - large.min()) / (large.max() - large.min())
                seen = image * mask + background[i] * (1 - mask)
                found.append((k, _log_odds(model, seen, cls)))
        if weigh_by == "softmax":
            total = sum(math.exp(score / temperature) for _, score in found)
            weights = {k: math.exp(score / temperature) / total for k, score in found}
        elif weigh_by == "gain":
            hidden = _log_odds(model, background[i], cls)
            weights = {k: max(0, score - hidden) for k, score in found}
        else:
            weights = dict(found)
        heat = torch.zeros_like(maps[0])
        for k, weight in weights.items():
            joint = maps[row == k].sum(0)
            by = {"none": 1, "map": int((row == k).sum()), "mass": float(joint.abs().sum())}
            heat += weight / by[share] * joint
        heats.append(heat.clamp(min=0))
    return torch.stack(heats)


@pytest.mark.parametrize("fill", [0.0, "blur"])
@pytest.mark.parametrize(
    ("weigh_by", "temperature", "share"),
    [
        ("softmax", 0.5, "mass"),
        ("softmax", 2.0, "map"),
        ("gain", 1.0, "mass"),
        ("gain", 1.0, "none"),
        ("score", 1.0, "mass"),
    ],
)
def test_equals_the_literal_reference(x, weigh_by, temperature, share, fill):
    model = _model()
    cam = ClusteredLayerScore(
        model, model[0], clusterer=LABELS, weigh_by=weigh_by, temperature=temperature,
        share=share, fill=fill,
    )  # fmt: skip
    heat = cam.attribute(x, target=TARGET)
    expected = _reference(model, x, weigh_by, temperature, share, fill)
    torch.testing.assert_close(heat[:, 0], expected)
    assert heat.amax() > 0 or weigh_by == "score"  # log-odds may all be negative


def test_score_cam_is_the_limit_of_single_maps(x):
    model = _model()
    every = ClusteredLayerScore(
        model, model[0], clusterer="every-map", score="identity", temperature=1.0, share="map"
    )
    expected = LayerScoreCam(model, model[0]).attribute(x, target=TARGET)
    assert torch.equal(every.attribute(x, target=TARGET), expected)


@pytest.mark.parametrize("chunk", [1, 3, None])
def test_neither_the_chunk_nor_the_batch_changes_the_result(x, chunk):
    model = _model()
    cam = ClusteredLayerScore(model, model[0], n_clusters=4)
    together = cam.explain(x, target=TARGET, perturbations_per_eval=chunk)
    for i, cls in enumerate(TARGET):
        alone = cam.attribute(x[i : i + 1], target=cls)
        torch.testing.assert_close(together.attributions[i : i + 1], alone)


def test_keep_fraction_leaves_the_groups_of_the_highest_scores(x):
    model = _model()
    cam = ClusteredLayerScore(model, model[0], clusterer=LABELS, keep_fraction=0.5)
    found = cam.explain(x, TARGET)
    assert found.valid.all()
    kept = found.group_weights > 0
    assert kept.sum(1).tolist() == [2, 2]
    best = found.masked_scores.topk(2).indices
    assert torch.equal(kept, torch.zeros(2, 4, dtype=torch.bool).scatter(1, best, True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weigh_by": "drop"}, "`weigh_by` must be one of 'softmax', 'gain', 'score'; got 'drop'"),
        ({"temperature": 0}, "`temperature` must be a number > 0; got 0"),
        ({"keep_fraction": 0}, r"`keep_fraction` must lie in \(0, 1\], or be None; got 0"),
        ({"share": "all"}, "`share` must be one of"),
        ({"n_clusters": "auto", "clusterer": "kmeans"}, "`n_clusters` must be an int"),
    ],
)
def test_refuses(settings, message):
    model = _model()
    with pytest.raises(ValueError, match=message):
        ClusteredLayerScore(model, model[0], **settings)


class TestLogOdds:
    def test_by_hand(self):
        logits = torch.tensor([[1.0, 2.0, 4.0]])
        expected = [
            value - math.log(sum(math.exp(o) for o in (1.0, 2.0, 4.0) if o != value))
            for value in (1.0, 2.0, 4.0)
        ]
        for cls in range(3):
            found = target_scores(logits, format_target(cls, 1), "log_odds")
            assert found.item() == pytest.approx(expected[cls], abs=1e-12)

    def test_a_sure_model_has_finite_log_odds_and_gradients(self):
        logits = torch.tensor([[900.0, 0.0, -5.0]], requires_grad=True)
        found = target_scores(logits, format_target(0, 1), "log_odds")
        assert found.item() == pytest.approx(900 - math.log1p(math.exp(-5)), rel=1e-12)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(gradient).all()
        assert gradient[0, 0] == 1
        assert target_scores(logits, format_target(1, 1), "log_odds").item() == pytest.approx(-900)

    def test_the_gradient_is_the_numerical_one(self):
        logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
        targets = format_target([0, 2, 4], 3)
        assert torch.autograd.gradcheck(lambda z: target_scores(z, targets, "log_odds"), logits)

    def test_a_single_logit_is_its_own(self):
        assert target_scores(torch.tensor([[0.7]]), format_target(0, 1), "log_odds").item() == (
            pytest.approx(0.7)
        )
