"""Every method on its own scale and on a calibrated one: the numbers are the functions' own."""

import pytest
import torch
from torch import nn

from captum_clustered.calibration import calibrate
from captum_clustered.evaluation.calibrating import with_calibration
from captum_clustered.evaluation.judging import Metric, as_metrics, begin, measure
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.metrics import adcc, confidences, deletion
from captum_clustered.metrics.localization import energy_inside


@pytest.fixture
def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3)).eval()


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MAPS = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(1))
OBJECTS = torch.zeros(4, 1, 8, 8, dtype=torch.bool)
OBJECTS[..., 2:6, 2:6] = True


def _measured(network, *names, score="softmax", fill=0.5, maps=MAPS):
    def explain(images, target):
        return images.mean(1, keepdim=True) + 0 * target.view(-1, 1, 1, 1)

    chosen = {name: METRICS[name] for name in (*names, "area")}
    batch = begin(network, IMAGES, OBJECTS, fill=fill, score=score, step=8)
    rows = measure(with_calibration(chosen), batch, maps, explain)
    return batch, {
        name: torch.tensor([row[name] for row in rows])
        for name in rows[0]
        if name != "conventions" and not isinstance(rows[0][name], str | list | dict)
    }


def test_what_reads_only_the_order_stands_once():
    found = with_calibration(METRICS)
    assert [name for name in METRICS if f"{name}_calibrated" not in found] == [
        "insertion", "deletion", "pointing",
    ]  # fmt: skip
    assert list(found)[:4] == ["adc", "adc_calibrated", "pic", "pic_calibrated"]
    assert found["pic_calibrated"].head == "PIC, calibrated ↑"
    assert found["pic_calibrated"].is_rate
    outside = with_calibration(as_metrics({"mine": lambda *_: torch.zeros(4)}))
    assert list(outside) == ["mine", "mine_calibrated"]


def test_the_numbers_are_those_of_calibrated_maps(network):
    batch, found = _measured(network, "adc", "pic", "ag", "complement", "energy", "deletion")
    maps = calibrate(network, IMAGES, MAPS, batch.classes, fill=0.5).heatmaps
    assert not torch.allclose(maps.mean((1, 2, 3)), torch.full((4,), 0.5), atol=1e-3)
    for suffix, heat in (("", MAPS), ("_calibrated", maps)):
        want = confidences(network, IMAGES, heat, batch.classes, fill=0.5)
        for name, value in (
            ("adc", want.average_drop),
            ("pic", want.increase_in_confidence),
            ("ag", want.average_gain),
            ("complement", want.drop_on_complement),
            ("area", want.area),
            ("energy", energy_inside(heat, OBJECTS)),
        ):
            torch.testing.assert_close(
                found[name + suffix].double(), value.double(), rtol=1e-4, atol=1e-4
            )
    after = deletion(network, IMAGES, maps, batch.classes, fill=0.5, step=8)
    torch.testing.assert_close(found["deletion"].double(), after.area, rtol=1e-5, atol=1e-5)


def test_adcc_explains_again_on_the_same_scale(network):
    batch, found = _measured(network, "adcc")

    def explain(images, target):
        heat = images.mean(1, keepdim=True)
        return calibrate(network, images, heat, target, fill=0.5).heatmaps

    maps = calibrate(network, IMAGES, MAPS, batch.classes, fill=0.5).heatmaps
    want = adcc(network, explain, IMAGES, maps, batch.classes, fill=0.5).per_image
    torch.testing.assert_close(
        found["adcc_calibrated"].double(), want.double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("score", ["sigmoid", "identity"])
def test_other_scores_are_calibrated_by_the_logit(network, score):
    batch, found = _measured(network, "adc", score=score)
    maps = calibrate(network, IMAGES, MAPS, batch.classes, score="identity", fill=0.5).heatmaps
    want = confidences(network, IMAGES, maps, batch.classes, score=score, fill=0.5)
    torch.testing.assert_close(
        found["adc_calibrated"].double(), want.average_drop.double(), rtol=1e-4, atol=1e-4
    )


def test_faulty_maps_are_counted_as_before(network):
    maps = MAPS.clone()
    maps[0] = torch.nan
    maps[1] = 0.0
    _, found = _measured(network, "adc", maps=maps)
    torch.testing.assert_close(found["adc"][:2], found["adc_calibrated"][:2])
    assert found["area_calibrated"][:2].tolist() == [0, 0]


def test_calibration_is_done_once_for_all_metrics(network):
    passes = []

    def counting(x):
        passes.append(len(x))
        return network(x)

    def count(*names):
        passes.clear()
        batch = begin(counting, IMAGES, OBJECTS)
        measure(
            with_calibration({name: METRICS[name] for name in (*names, "area")}),
            batch,
            MAPS,
            lambda images, target: images,
        )
        return sum(passes)

    assert count("adc") == count("adc", "pic", "ag", "energy")
    assert isinstance(METRICS["adc"], Metric)
