"""Heat maps at the door: shape, size, range, status; what fills the masked part."""

import numpy as np
import pytest
import torch
from captum.attr import LayerAttribution
from scipy.ndimage import gaussian_filter

from captum_clustered.fills import describe, fill_image, masked
from captum_clustered.metrics import Black, Blur, Status, prepare

NAN, INF = float("nan"), float("inf")


def _one(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1)


# --- shape and size ------------------------------------------------------------------------------


FORMS = {
    "other bytes": lambda maps: maps.astype(">f4"),
    "from right to left": lambda maps: maps[..., ::-1].copy()[..., ::-1],
    "in another order": lambda maps: maps.copy(order="F"),
    "read only": lambda maps: np.frombuffer(maps.tobytes(), np.float32).reshape(maps.shape),
    "long double": lambda maps: maps.astype(np.longdouble),
    "sparse": lambda maps: torch.from_numpy(maps).to_sparse(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_map_may_lie_in_memory_in_any_way(form):
    maps = np.random.default_rng(0).random((2, 3, 4), np.float32)
    found = prepare(FORMS[form](maps), (3, 4), n_examples=2).values
    torch.testing.assert_close(found, prepare(maps, (3, 4)).values, check_dtype=False)


def test_an_array_of_objects_is_named():
    with pytest.raises(TypeError, match="`heatmaps` must be floating point; got object"):
        prepare(np.ones((2, 3, 4), object), (3, 4))


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 3, 4)])
@pytest.mark.parametrize("as_array", [False, True])
def test_all_forms_of_one_map_are_equal(shape, as_array):
    values = torch.arange(24.0).reshape(shape)
    found = prepare(values.numpy() if as_array else values, (3, 4), n_examples=2).values
    # each image on its own: 0..11 and 12..23
    torch.testing.assert_close(found, (torch.arange(12.0) / 11).expand(2, 12).view(2, 1, 3, 4))


def test_resizing_is_captums():
    heat = torch.rand(2, 1, 3, 3)
    expected = LayerAttribution.interpolate(heat, (7, 8), "bilinear")
    low, high = expected.amin((1, 2, 3), True), expected.amax((1, 2, 3), True)
    torch.testing.assert_close(prepare(heat, (7, 8)).values, (expected - low) / (high - low))


def test_resizing_comes_before_scaling():
    # resized to 0.5 and 0
    assert prepare(_one([0.0, 1.0, 0.0, 0.0]), (2,)).values.flatten().tolist() == [1, 0]


def test_a_map_may_become_flat_by_resizing():
    found = prepare(_one([0.0, 1.0, 0.0]), (2,))
    assert found.status.tolist() == [Status.FLAT]
    assert found.values.flatten().tolist() == [0.25, 0.25]


@pytest.mark.parametrize("size", [(6,), (6, 6), (4, 6, 6)])
def test_any_number_of_axes(size):
    heat = torch.rand(2, 1, *[2] * len(size))
    assert prepare(heat, size).values.shape == (2, 1, *size)


def test_nearest_repeats_pixels():
    found = prepare(_one([0.0, 1.0]), (4,), interpolation="nearest").values
    assert found.flatten().tolist() == [0, 0, 1, 1]


def test_a_map_of_another_size_can_be_refused():
    with pytest.raises(ValueError, match=r"must have the size \(4,\) .*got \(2,\).*'bilinear'"):
        prepare(_one([0.0, 1.0]), (4,), interpolation=None)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (4, 4), (2, 1, 1, 4, 4), (2, 1, 0, 4)])
def test_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \(N, 1, H, W\) or \(N, H, W\); got"):
        prepare(torch.rand(shape), (4, 4))


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="one map for each of the 3 images; got 2"):
        prepare(torch.rand(2, 1, 4, 4), (4, 4), n_examples=3)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_numbers_without_a_point_are_refused(dtype):
    with pytest.raises(TypeError, match=f"must be floating point; got {dtype}"):
        prepare(torch.ones(1, 1, 2, 2, dtype=dtype), (2, 2))


def test_a_list_of_maps_is_refused():
    with pytest.raises(TypeError, match="must be a tensor or an array; got list"):
        prepare([torch.rand(1, 4, 4)], (4, 4))


# --- range ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("normalize", "expected"), [("minmax", [0.0, 1 / 3, 1.0]), ("max", [0.0, 0.0, 1.0])]
)
def test_normalisation(normalize, expected):
    found = prepare(_one([-1.0, 0.0, 2.0]), (3,), normalize=normalize)
    torch.testing.assert_close(found.values.flatten(), torch.tensor(expected))
    assert found.status.tolist() == [Status.OK]


def test_a_map_may_be_taken_as_it_is():
    found = prepare(_one([0.25, 0.5]), (2,), normalize=None)
    assert found.values.flatten().tolist() == [0.25, 0.5]


@pytest.mark.parametrize("values", [[0.0, 1.5], [-0.5, 0.0]])
def test_a_map_as_it_is_must_lie_in_0_1(values):
    low, high = values
    with pytest.raises(ValueError, match=rf"in \[0, 1\].*from {low:g} to {high:g}.*'minmax'"):
        prepare(_one(values), (2,), normalize=None)


@pytest.mark.parametrize("name", ["normalize", "interpolation"])
@pytest.mark.parametrize("value", ["magic", True, 1])
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be one of .*; got {value!r}"):
        prepare(_one([0.0, 1.0]), (2,), **{name: value})


def test_half_precision_is_scaled_in_float32():
    found = prepare(torch.tensor([[0.0, 1.0, 3.0]], dtype=torch.bfloat16), (3,)).values
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 1 / 3, 1.0]))


def test_float64_maps_keep_their_order():
    values = torch.tensor([[0.0, 1.0, 1.0 + 1e-12]], dtype=torch.float64)
    found = prepare(values, (3,)).values.flatten()
    assert found[1] < found[2]


# --- status --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["minmax", "max"])
@pytest.mark.parametrize(
    ("values", "status", "expected"),
    [
        ([0.0, 0.0], Status.FLAT, [0.0, 0.0]),
        ([1.0, 1.0], Status.FLAT, [1.0, 1.0]),
        ([0.25, 0.25], Status.FLAT, [0.25, 0.25]),
        ([7.0, 7.0], Status.FLAT, [1.0, 1.0]),
        ([-7.0, -7.0], Status.FLAT, [0.0, 0.0]),
        ([0.0, NAN], Status.NOT_FINITE, [0.0, 0.0]),
        ([0.0, INF], Status.NOT_FINITE, [0.0, 0.0]),
        ([0.0, 2.0], Status.OK, [0.0, 1.0]),
    ],
)
def test_status(values, status, expected, normalize):
    # the neighbour in the batch changes nothing
    found = prepare(torch.stack([_one(values)[0], _one([0.0, 1.0])[0]]), (2,), normalize=normalize)
    assert found.status.tolist() == [status, Status.OK]
    assert found.values.flatten(1).tolist() == [expected, [0.0, 1.0]]


@pytest.mark.parametrize(("normalize", "expected"), [("minmax", [0, 0.5, 1]), ("max", [0, 0, 0])])
def test_a_map_without_a_positive_value_is_flagged(normalize, expected):
    found = prepare(_one([-3.0, -2.0, -1.0]), (3,), normalize=normalize)
    assert found.status.tolist() == [Status.NEGATIVE]
    assert found.values.flatten().tolist() == expected


def test_rounding_is_no_shape():
    values = torch.full((1, 1, 3), 0.3)
    values[0, 0, 1] = torch.nextafter(values[0, 0, 1], torch.tensor(1.0))
    found = prepare(values, (3,))
    assert found.status.tolist() == [Status.FLAT]
    torch.testing.assert_close(found.values, torch.full((1, 1, 3), 0.3))


def test_resizing_a_flat_map_gives_no_shape():
    # bilinear weights do not add up to 1 exactly
    heat = torch.rand(64, 1, 1, 1).expand(64, 1, 3, 3)
    for size in range(9, 60, 10):
        found = prepare(heat, (size, size))
        assert found.status.tolist() == [Status.FLAT] * 64
        torch.testing.assert_close(found.values, heat[:, :, :1, :1].expand_as(found.values))


# --- what fills the masked part ------------------------------------------------------------------


def test_masking_is_exact_at_both_ends():
    image, fill = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert masked(image, torch.ones(2, 1, 4, 4), fill).equal(image)
    assert masked(image, torch.zeros(2, 1, 4, 4), fill).equal(fill)


def test_masking_with_black_is_masking_before_normalisation():
    pixels, heat = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def normalised(x):
        return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    black = fill_image(Black(mean, std), normalised(pixels))
    torch.testing.assert_close(masked(normalised(pixels), heat, black), normalised(pixels * heat))


@pytest.mark.parametrize(
    ("fill", "expected", "name"),
    [
        (0.0, [0, 0], "0"),
        (2, [2, 2], "2"),
        ("mean", [0, 0], "mean colour"),
        ((1.0, 2.0), [1, 2], "(1.0, 2.0)"),
        ([1.0, 2.0], [1, 2], "(1.0, 2.0)"),
        (torch.tensor([1.0, 2.0]), [1, 2], "tensor of shape (2,)"),
        (torch.tensor([1.0, 2.0]).view(2, 1, 1), [1, 2], "tensor of shape (2, 1, 1)"),
        (Black(0.5, 0.25), [-2, -2], "Black(mean=0.5, std=0.25)"),
        (Black([0.5, 0.25], 0.25), [-2, -1], "Black(mean=(0.5, 0.25), std=0.25)"),
    ],
)
def test_forms_of_fill(fill, expected, name):
    images = torch.rand(3, 2, 4, 4, dtype=torch.float64)
    values = fill_image(fill, images)
    assert values.dtype == torch.float64
    assert values.expand(3, 2, 4, 4)[0, :, 0, 0].tolist() == expected
    assert describe(fill) == name


def test_blur_is_scipys():
    images = torch.rand(2, 3, 20, 16, dtype=torch.float64)
    expected = gaussian_filter(
        images.numpy(), (0, 0, 5.0, 5.0), mode="nearest", radius=(0, 0, 5, 5)
    )
    found = fill_image(Blur(11, 5.0), images)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_blur_by_name_is_the_default_blur():
    images = torch.rand(1, 1, 8, 8)
    assert fill_image("blur", images).equal(fill_image(Blur(), images))
    assert describe("blur") == "Blur(kernel_size=51, sigma=50.0)"


def test_blur_of_half_precision():
    images = torch.rand(1, 1, 8, 8)
    found = fill_image(Blur(5, 1.0), images.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), fill_image(Blur(5, 1.0), images), atol=0.01, rtol=0)


@pytest.mark.parametrize(
    ("fill", "error", "message"),
    [
        ("black", ValueError, r"must say where black lies.*Black\(mean, std\)"),
        ("grey", ValueError, "'mean' or 'blur'; got 'grey'"),
        (None, TypeError, "got NoneType"),
        ((1.0, 2.0, 3.0), ValueError, r"each of the 2 channels.*got shape \(3,\)"),
        (torch.zeros(5, 2, 4, 4), ValueError, r"got shape \(5, 2, 4, 4\)"),
    ],
)
def test_wrong_fill(fill, error, message):
    with pytest.raises(error, match=message):
        fill_image(fill, torch.rand(3, 2, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Black((0.5, 0.5), (1.0, 1.0, 1.0)), "one entry for each channel"),
        (lambda: Black(0.5, 0), "`std` must not be 0; got 0"),
        (lambda: Blur(4), "`kernel_size` must be an odd int >= 1; got 4"),
        (lambda: Blur(5, 0.0), "`sigma` must be a number > 0; got 0.0"),
    ],
)
def test_wrong_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
