"""The torchmetrics classes against the functions they stand on; batches; two processes."""

import math
import pickle

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import nn
from torchmetrics import MetricCollection

from captum_clustered import metrics as functional
from captum_clustered.metrics import streaming

SIZES = [4, 1, 7, 2]  # of the batches
SETTINGS = {"PointingGame": {"tolerance": 1}}  # on these small images 15 pixels are everything


def _model():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 3)
    ).eval()  # fmt: skip


def _data():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(sum(SIZES), 3, 8, 8, generator=generator)
    heatmaps = torch.rand(sum(SIZES), 1, 8, 8, generator=generator)
    masks = torch.rand(sum(SIZES), 1, 8, 8, generator=generator) > 0.8
    heatmaps[3] = 0
    heatmaps[5] = math.nan
    heatmaps[6] -= 2
    masks[2] = False
    return images, heatmaps, masks


def _explain(images, target):
    return images.sum(1, keepdim=True)


def _numbers(model, images, heatmaps, masks):
    """Each class: what `update` takes, and the numbers whose mean `compute` gives."""
    found = functional.confidences(model, images, heatmaps, 1)
    parts = functional.adcc(model, _explain, images, heatmaps, 1)
    put = functional.insertion(model, images, heatmaps, 1, step=16)
    taken = functional.deletion(model, images, heatmaps, 1, step=16)
    pair, drops = (heatmaps, masks), functional.average_drop(model, images, heatmaps, 1)
    other = functional.average_drop(model, images, heatmaps.flip(3), 1)
    return {
        "AverageDrop": ((found,), drops),
        "IncreaseInConfidence": (
            (found,), functional.increase_in_confidence(model, images, heatmaps, 1)
        ),
        "AverageGain": ((found,), functional.average_gain(model, images, heatmaps, 1)),
        "DropOnComplement": ((found,), functional.drop_on_complement(model, images, heatmaps, 1)),
        "MeanArea": ((found,), functional.mean_area(heatmaps)),
        "WinRate": ((drops, other), functional.wins(drops, other)),
        "Adcc": ((parts,), parts.per_image),
        "Insertion": ((put,), put.area),
        "Deletion": ((taken,), taken.area),
        "PointingGame": (pair, functional.pointing_game(*pair, tolerance=1)),
        "EnergyInside": (pair, functional.energy_inside(*pair)),
        "Iou": (pair, functional.iou(*pair)),
    }  # fmt: skip


MEANS = [name for name in streaming.__all__ if name != "StatusCounts"]


def _fed(name, rank=0, world=1):
    """A metric that has seen every `world`-th batch."""
    torch.manual_seed(0)
    model, metric = _model(), getattr(streaming, name)(**SETTINGS.get(name, {}))
    batches = zip(*(column.split(SIZES) for column in _data()), strict=True)
    for index, batch in enumerate(batches):
        if index % world == rank:
            if name == "StatusCounts":
                metric.update(functional.prepare(batch[1], (8, 8)))
            else:
                metric.update(*_numbers(model, *batch)[name][0])
    return metric


@pytest.mark.parametrize("name", MEANS)
def test_uneven_batches_give_the_mean_over_images(name):
    torch.manual_seed(0)
    expected = _numbers(_model(), *_data())[name][1].double().nanmean()
    assert 0 < expected.abs() < 100
    torch.testing.assert_close(_fed(name).compute(), expected, atol=1e-4, rtol=1e-5)


def test_maps_are_counted_by_status():
    assert _fed("StatusCounts").compute().tolist() == [11, 1, 1, 1]


def test_both_aggregates_of_adcc():
    torch.manual_seed(0)
    model, (images, heatmaps, _) = _model(), _data()
    metrics = [streaming.Adcc(aggregate) for aggregate in ("per_image", "of_means")]
    for batch in zip(images.split(SIZES), heatmaps.split(SIZES), strict=True):
        for metric in metrics:
            metric.update(functional.adcc(model, _explain, *batch, 1))
    whole = functional.adcc(model, _explain, images, heatmaps, 1)
    per_image, of_means = (metric.compute() for metric in metrics)
    torch.testing.assert_close(per_image, whole.per_image.mean(), atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(of_means, whole.of_means, atol=1e-4, rtol=1e-5)
    assert (of_means - per_image).abs() > 0.1
    with pytest.raises(ValueError, match="`aggregate` must be one of 'per_image', 'of_means'"):
        streaming.Adcc("mean")


def test_settings_reach_the_functions():
    heat, mask = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
    heat[0, 4, 4], heat[0, 4, 5], mask[0, 4, 6] = 1.0, 0.4, 1
    for metric, value in [
        (streaming.PointingGame(tolerance=1), 0),
        (streaming.PointingGame(tolerance=2), 100),
        (streaming.Iou(threshold=0.3), 0),
    ]:
        metric.update(heat, mask)
        assert metric.compute() == value
    found = streaming.WinRate(larger_wins=True)
    found.update(torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([0.0, 3.0, 4.0, 2.0]))
    assert found.compute() == 25
    maps = torch.tensor([[[0.0, 1.0]]])
    metric = streaming.EnergyInside(interpolation=None)
    with pytest.raises(ValueError, match="must have the size"):
        metric.update(maps, torch.ones(1, 2, 4))


def test_a_collection_keeps_metrics_apart_that_begin_alike():
    """torchmetrics merges metrics whose states are equal after the first batch."""

    def scored(original, masked):
        numbers = torch.tensor([original]), torch.tensor([masked])
        kept = functional.Conventions("softmax", "given", "0", "minmax", "bilinear")
        return functional.Confidences(*numbers, None, None, torch.zeros(1), torch.zeros(1), kept)

    collection = MetricCollection(
        {
            "drop": streaming.AverageDrop(),
            "gain": streaming.AverageGain(),
            "rise": streaming.IncreaseInConfidence(),
        }
    )
    collection.update(scored(0.5, 0.5))  # all are 0
    collection.update(scored(0.5, 0.75))
    found = {name: value.item() for name, value in collection.compute().items()}
    assert found == {"drop": 0, "gain": 25, "rise": 50}


def test_a_collection_keeps_settings_apart():
    collection = MetricCollection(
        {"near": streaming.PointingGame(1), "far": streaming.PointingGame(3)}
    )
    mask = torch.zeros(1, 9, 9)
    mask[0, 0, 0] = 1
    for place in (0, 2):  # the first hit is one for both
        heat = torch.zeros(1, 9, 9)
        heat[0, 0, place] = 1
        collection.update(heat, mask)
    assert {name: value.item() for name, value in collection.compute().items()} == {
        "near": 50, "far": 100,
    }  # fmt: skip


@pytest.mark.parametrize("name", streaming.__all__)
def test_direction_and_bounds_are_stated(name):
    metric = getattr(streaming, name)
    lower = {"AverageDrop", "MeanArea", "Deletion"}
    expected = None if name == "StatusCounts" else name not in lower
    assert metric.higher_is_better is expected
    assert metric.plot_lower_bound == (None if name == "DropOnComplement" else 0)
    assert metric.plot_upper_bound == (None if name == "StatusCounts" else 100)
    assert metric.is_differentiable is False


def test_conventions_must_agree():
    model, (images, heatmaps, _) = _model(), _data()
    metric = streaming.AverageDrop()
    first = functional.confidences(model, images, heatmaps, 1)
    metric.update(first)
    assert metric.conventions == first.conventions
    other = functional.confidences(model, images, heatmaps, 1, fill="blur")
    for feed in (metric.update, metric):
        with pytest.raises(ValueError, match=r"same conventions; got .*Blur.* after .*fill='0'"):
            feed(other)


def test_a_curve_of_the_wrong_kind():
    model, (images, heatmaps, _) = _model(), _data()
    curve = functional.deletion(model, images, heatmaps, step=32)
    with pytest.raises(ValueError, match="must be of kind 'insertion'; got 'deletion'"):
        streaming.Insertion().update(curve)


def test_a_value_of_a_batch_reset_and_pickle():
    metric = streaming.WinRate()
    one, two = torch.ones(2), torch.tensor([0.0, 2.0])
    assert metric(one, two) == 50
    assert metric(one, one + 1) == 100
    assert metric.compute() == 75
    assert pickle.loads(pickle.dumps(metric)).compute() == 75
    metric.reset()
    metric.update(one, one)
    assert metric.compute() == 0


def test_without_images_there_is_no_mean():
    metric = streaming.PointingGame()
    metric.update(torch.rand(1, 4, 4), torch.zeros(1, 4, 4))
    assert metric.compute().isnan()


def _worker(rank, world, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world
    )
    try:
        found = {name: _fed(name, rank, world).compute() for name in streaming.__all__}
    finally:
        torch.distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="torch was built without gloo",
)
def test_two_processes_give_what_one_gives(tmp_path):
    torch.multiprocessing.spawn(_worker, (2, tmp_path), nprocs=2)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in streaming.__all__:
        expected = _fed(name).compute()
        for result in results:
            torch.testing.assert_close(result[name], expected, msg=name)
