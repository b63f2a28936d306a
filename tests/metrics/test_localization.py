"""Pointing game, energy inside, intersection over union, against hand-made numbers and loops."""

import math
from functools import partial

import pytest
import torch

from captum_clustered.metrics import boxes_to_masks, energy_inside, iou, pointing_game


def _square(size=9, top=2, left=3, height=3, width=2):
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, top : top + height, left : left + width] = True
    return mask


def _peak(row, column, size=9):
    heat = torch.zeros(1, 1, size, size)
    heat[0, 0, row, column] = 1
    return heat


# --- boxes ---------------------------------------------------------------------------------------


def test_boxes_by_hand():
    found = boxes_to_masks([[[1, 0, 3, 1]], [], [[0, 0, 1, 1], [3, 1, 4, 2]]], (2, 4))
    assert found.shape == (3, 1, 2, 4)
    assert found.dtype == torch.bool
    assert found.int().flatten(1).tolist() == [
        [0, 1, 1, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 1],
    ]


def test_boxes_in_another_scale():
    box = torch.tensor([[20.0, 10.0, 60.0, 50.0]])
    found = boxes_to_masks([box], (10, 20), image_size=(100, 200))
    assert found.equal(boxes_to_masks([box / 10], (10, 20)))
    assert found.sum() == 16


def test_one_box_may_stand_alone():
    assert boxes_to_masks([[1, 0, 3, 1]], (2, 4)).equal(boxes_to_masks([[[1, 0, 3, 1]]], (2, 4)))


def test_wrong_boxes():
    with pytest.raises(ValueError, match=r"four numbers each .*got shape \(1, 3\)"):
        boxes_to_masks([[[1, 2, 3]]], (4, 4))


# --- pointing game -------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0, 1, 1.5, 2, 3.7, 100])
def test_pointing_against_the_definition(tolerance):
    mask = _square()
    inside = mask[0].nonzero().tolist()
    for row in range(9):
        for column in range(9):
            near = any(math.dist((row, column), place) <= tolerance for place in inside)
            found = pointing_game(_peak(row, column), mask, tolerance=tolerance)
            assert found.tolist() == [100.0 * near], (row, column)


def test_the_default_tolerance_is_15_pixels():
    mask = torch.zeros(1, 40, 40)
    mask[0, 20, 20] = 1
    found = [pointing_game(_peak(20, column, 40), mask).item() for column in (35, 36)]
    assert found == [100, 0]


def test_several_largest_values_share():
    heat = torch.zeros(1, 4, 4)
    heat[0, 0, :] = 1
    assert pointing_game(heat, boxes_to_masks([[0, 0, 1, 4]], (4, 4)), tolerance=0).item() == 25


def test_a_flat_map_points_at_random():
    mask = _square()
    for value in (0.0, 1.0, math.nan):
        found = pointing_game(torch.full((1, 9, 9), value), mask, tolerance=0)
        assert found.tolist() == pytest.approx([100 * 6 / 81])


def test_a_map_of_low_resolution():
    heat = torch.zeros(1, 1, 3, 3)
    heat[0, 0, 2, 0] = 1
    corner = boxes_to_masks([[0, 6, 3, 9]], (9, 9))
    assert pointing_game(heat, corner, tolerance=0).item() == 100
    assert pointing_game(heat, corner.flip(2), tolerance=0).item() == 0


# --- energy and overlap --------------------------------------------------------------------------


def test_energy_and_iou_by_hand():
    heat = torch.tensor([[[0.0, 1.0], [3.0, 4.0]]])
    mask = torch.tensor([[[1, 1], [1, 0]]])
    assert energy_inside(heat, mask).tolist() == [50]
    # shown at 0.5: the lower row
    assert iou(heat, mask).tolist() == pytest.approx([25])
    assert iou(heat, mask, threshold=0.2).tolist() == pytest.approx([50])
    assert iou(heat, mask, threshold=0.75).tolist() == pytest.approx([25])
    assert iou(heat, mask, threshold=1).tolist() == [0]


def test_ends_of_the_scale():
    mask = _square()
    for metric in (energy_inside, iou):
        assert metric(mask.float(), mask).tolist() == [100]
        assert metric((~mask).float(), mask).tolist() == [0]


def test_a_map_of_zeros_shows_nothing():
    heat, mask = torch.zeros(1, 9, 9), _square()
    assert energy_inside(heat, mask).tolist() == [0]
    assert iou(heat, mask).tolist() == [0]


@pytest.mark.parametrize("metric", [energy_inside, iou, pointing_game])
def test_without_an_object_there_is_no_answer(metric):
    masks = torch.cat([_square(), torch.zeros(1, 9, 9, dtype=torch.bool)])
    found = metric(torch.rand(2, 9, 9), masks)
    assert found.isnan().tolist() == [False, True]


@pytest.mark.parametrize("metric", [energy_inside, iou, pointing_game])
def test_forms_of_mask(metric):
    heat, mask = torch.rand(2, 1, 9, 9), _square().expand(2, 9, 9)
    expected = metric(heat, mask)
    for other in (mask[:, None], mask.to(torch.uint8) * 255, mask.float()):
        assert metric(heat, other).equal(expected)


@pytest.mark.parametrize("metric", [energy_inside, iou, pointing_game])
def test_wrong_masks(metric):
    with pytest.raises(TypeError, match="`masks` must be a tensor; got list"):
        metric(torch.rand(1, 9, 9), [[1]])
    with pytest.raises(ValueError, match=r"`masks` must have shape .*got \(1, 2, 9, 9\)"):
        metric(torch.rand(1, 9, 9), torch.ones(1, 2, 9, 9))
    with pytest.raises(ValueError, match="one map for each of the 2 images; got 1"):
        metric(torch.rand(1, 9, 9), torch.ones(2, 9, 9))


def test_wrong_numbers():
    heat, mask = torch.rand(1, 9, 9), _square()
    with pytest.raises(ValueError, match="`tolerance` must be a number >= 0; got -1"):
        pointing_game(heat, mask, tolerance=-1)
    for threshold in (0, 1.5, "half"):
        with pytest.raises(
            ValueError, match=f"`threshold` must be a number > 0 and <= 1; got {threshold!r}"
        ):
            iou(heat, mask, threshold=threshold)


def test_a_volume_of_one_slice_is_judged_as_that_slice():
    torch.manual_seed(1)
    heat, mask = torch.rand(2, 1, 6, 7), torch.rand(2, 1, 6, 7) > 0.8
    for metric in (energy_inside, iou, partial(pointing_game, tolerance=2)):
        flat, deep = metric(heat, mask), metric(heat.unsqueeze(2), mask.unsqueeze(2))
        torch.testing.assert_close(deep, flat)


def test_the_pointing_game_reaches_through_the_slices():
    heat, mask = torch.zeros(2, 1, 4, 3, 3), torch.zeros(2, 1, 4, 3, 3, dtype=torch.bool)
    heat[:, 0, 2, 1, 1] = 1
    mask[0, 0, 0, 1, 1] = True
    found = [pointing_game(heat, mask, tolerance=t)[0].item() for t in (1, 2)]
    assert found == [0, 100]
    assert pointing_game(heat, mask, tolerance=2)[1].isnan()
