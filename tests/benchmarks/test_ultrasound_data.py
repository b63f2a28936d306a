"""The thyroid experiment's data: three layouts with every fault, regions, and the phantom."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.ultrasound import phantom as phantoms
from benchmarks.ultrasound.contours import area, binary, clipped, filled, joined
from benchmarks.ultrasound.data import Lesion, Skipped, read
from benchmarks.ultrasound.regions import crop, crop_mask, prepare, region

SQUARE = ((10, 10), (30, 10), (30, 25), (10, 25))


def _picture(path, size=(60, 40), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, value).save(path)
    return path


def _svg(*polygons):
    return json.dumps([{"points": [{"x": x, "y": y} for x, y in points]} for points in polygons])


def _case(path, number, tirads, **marks):
    """A case as DDTI has it; `marks` are `_1="svg"`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    inner = "".join(
        f"<mark><image>{name[1:]}</image><svg>{svg}</svg></mark>" for name, svg in marks.items()
    )
    path.write_text(
        f"<case><number>{number}</number><tirads>{tirads}</tirads>{inner}</case>", encoding="utf-8"
    )


def _reasons(skipped):
    return {line.what: line.reason for line in skipped}


# --- DDTI -----------------------------------------------------------------------------------------


def test_ddti_every_polygon_is_a_nodule(tmp_path):
    _picture(tmp_path / "images" / "with_artifacts" / "7_1.jpg")
    _picture(tmp_path / "images" / "7_2.jpg")
    other = ((40, 5), (50, 5), (50, 15))
    _case(tmp_path / "xml" / "7.xml", 7, "4a", _1=_svg(SQUARE, other), _2=_svg(other))

    lesions, skipped = read(tmp_path, "ddti")

    assert skipped == []
    assert [n.name for n in lesions] == ["7_1-1", "7_1-2", "7_2"]
    assert [n.tags for n in lesions] == [("with_artifacts",), ("with_artifacts",), ()]
    assert {n.case for n in lesions} == {"7"}
    assert lesions[0].contour == tuple((float(x), float(y)) for x, y in SQUARE)
    assert lesions[0].image.name == "7_1.jpg"


@pytest.mark.parametrize(
    ("tirads", "label"),
    [("2", 0), ("3", 0), ("4a", 1), ("4b", 1), ("4c", 1), ("5", 1), (" 4C ", 1), ("", None)],
)
def test_ddti_label_is_tirads(tmp_path, tirads, label):
    _picture(tmp_path / "1_1.jpg")
    _case(tmp_path / "1.xml", 1, tirads, _1=_svg(SQUARE))
    assert [n.label for n in read(tmp_path, "ddti")[0]] == [label]


def test_ddti_cases_come_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 9, 100):
        _picture(tmp_path / f"{number}_1.jpg")
        _case(tmp_path / f"{number}.xml", number, "2", _1=_svg(SQUARE))
    assert [n.case for n in read(tmp_path, "ddti")[0]] == ["9", "10", "100"]


def test_ddti_faults_are_listed_and_stop_nothing(tmp_path):
    for name in range(1, 11):
        _picture(tmp_path / "images" / f"1_{name}.jpg")
    (tmp_path / "images" / "1_10.jpg").write_bytes(b"no picture")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    cut_short = tmp_path / "images" / "1_12.jpg"
    Image.fromarray(noise).save(cut_short)
    cut_short.write_bytes(cut_short.read_bytes()[:-900])
    marks = {
        "_1": _svg(SQUARE),
        "_2": "",
        "_3": "[{",
        "_4": '[{"points": 3}]',
        "_5": '[{"points": [{"x": 1}]}]',
        "_6": "[]",
        "_7": _svg(((1, 1), (5, 5))),
        "_8": _svg(((1, 1), (20, 20), (39, 39))),
        "_9": _svg(((100, 100), (150, 100), (150, 150)), SQUARE),
        "_10": _svg(SQUARE),
        "_11": _svg(SQUARE),
        "_12": _svg(SQUARE),
    }
    _case(tmp_path / "1.xml", 1, "2", **marks)
    (tmp_path / "2.xml").write_text("<case><number>2</number>", encoding="utf-8")
    (tmp_path / "3.xml").write_bytes(b"<?xml version='1.0' encoding='martian'?><case/>")
    _case(tmp_path / "4.xml", 1, "5", _1=_svg(SQUARE))

    lesions, skipped = read(tmp_path, "ddti")

    assert [n.name for n in lesions] == ["1_1", "1_9-2"]
    reasons = _reasons(skipped)
    assert reasons.pop("2.xml").startswith("not XML")
    assert reasons.pop("3.xml").startswith("not XML")
    assert reasons == {
        "1_2": "no contour",
        "1_3": "the contour cannot be read (JSONDecodeError)",
        "1_4": "the contour cannot be read (TypeError)",
        "1_5": "the contour cannot be read (KeyError)",
        "1_6": "no contour",
        "1_7": "the contour has 2 points",
        "1_8": "the contour has no area",
        "1_9-1": "the contour lies outside the frame",
        "1_10": "the picture cannot be read",
        "1_11": "no picture of that name",
        "1_12": "the picture cannot be read",
        "1_1": "marked twice, again in 4.xml",
    }


def test_ddti_contour_that_leaves_the_frame_is_clipped(tmp_path):
    _picture(tmp_path / "1_1.jpg", size=(60, 40))
    _case(tmp_path / "1.xml", 1, "2", _1=_svg(((40, 10), (80, 10), (80, 30), (40, 30))))
    (lesion,), _ = read(tmp_path, "ddti")
    assert set(lesion.contour) == {(40, 10), (60, 10), (60, 30), (40, 30)}


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1" + 400 * "0"])
def test_ddti_points_that_are_no_numbers(tmp_path, number):
    _picture(tmp_path / "1_1.jpg")
    svg = f'[{{"points": [{{"x": {number}, "y": 1}}, {{"x": 9, "y": 1}}, {{"x": 9, "y": 9}}]}}]'
    _case(tmp_path / "1.xml", 1, "2", _1=svg)
    with pytest.raises(ValueError, match=r"1_1: the contour (cannot be read|has points)"):
        read(tmp_path, "ddti")


def test_ddti_as_released(shared_data):
    if not (shared_data / "ddti" / "xml").is_dir():
        pytest.skip("needs DDTI in the folder of real images")
    lesions, skipped = read(shared_data, "ddti")
    assert len(lesions) == 657
    assert len({n.image for n in lesions}) == 470
    assert len({n.name for n in lesions}) == 657
    images = {label: {n.image for n in lesions if n.label == label} for label in (0, 1)}
    assert {label: len(found) for label, found in images.items()} == {0: 60, 1: 286}
    assert {line.reason for line in skipped} == {"no contour"}


# --- TN3K -----------------------------------------------------------------------------------------


def _mask(path, size=(60, 40), value=255, box=(10, 10, 30, 25)):
    mask = Image.new("L", size)
    mask.paste(value, box)
    path.parent.mkdir(parents=True, exist_ok=True)
    mask.save(path)
    return path


def _tn3k(folder):
    for part, count in (("trainval", 3), ("test", 2)):
        for number in range(count):
            _picture(folder / f"{part}-image" / f"{number:04d}.jpg")
            _mask(folder / f"{part}-mask" / f"{number:04d}.jpg")


def test_tn3k_both_parts_have_their_own_labels(tmp_path):
    _tn3k(tmp_path)
    (tmp_path / "label4trainval.csv").write_text("name,label\n0000.jpg,1\n0001.jpg,0\n")
    (tmp_path / "label4test.csv").write_text(",image,class\n0,0000.jpg,0\n1,0001.jpg,malignant\n")
    lesions, skipped = read(tmp_path, "tn3k")
    assert skipped == []
    assert {n.name: n.label for n in lesions} == {
        "trainval-0000": 1,
        "trainval-0001": 0,
        "trainval-0002": None,
        "test-0000": 0,
        "test-0001": 1,
    }
    assert len({n.case for n in lesions}) == 5
    assert {n.tags for n in lesions} == {("trainval",), ("test",)}


def test_tn3k_another_parts_labels_are_not_taken(tmp_path):
    _tn3k(tmp_path)
    (tmp_path / "trainval.csv").write_text("0000.jpg,1\n")
    labels = {n.name: n.label for n in read(tmp_path, "tn3k")[0]}
    assert labels["trainval-0000"] == 1
    assert labels["test-0000"] is None


def test_tn3k_faults_are_listed(tmp_path):
    _tn3k(tmp_path)
    _picture(tmp_path / "test-image" / "0002.jpg")
    _mask(tmp_path / "test-mask" / "0003.jpg")
    _mask(tmp_path / "test-mask" / "0000.jpg", size=(50, 40))
    _picture(tmp_path / "test-mask" / "0001.jpg", value=0)
    (tmp_path / "trainval-mask" / "0000.jpg").write_bytes(b"")
    (tmp_path / "trainval-image" / "0001.jpg").write_bytes(b"")
    (tmp_path / "test.csv").write_bytes(b"\xff\xfe\x00")
    lesions, skipped = read(tmp_path, "tn3k")
    assert [n.name for n in lesions] == ["trainval-0002"]
    reasons = _reasons(skipped)
    assert reasons.pop("test.csv").startswith("not a table")
    assert reasons == {
        "trainval-0000": "the mask cannot be read",
        "trainval-0001": "the picture cannot be read",
        "test-0000": "the mask has size (50, 40), the picture (60, 40)",
        "test-0001": "the mask is empty",
        "test-0002": "no mask of that name",
        "test-0003": "no picture of that name",
    }


# --- a table --------------------------------------------------------------------------------------


def _table(folder, *rows, columns="image,case,label,contour,mask,tags"):
    path = folder / "mine.csv"
    path.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return path


def test_table_with_contours_and_masks(tmp_path):
    _picture(tmp_path / "a" / "one.png")
    _mask(tmp_path / "two-mask.png")
    table = _table(
        tmp_path,
        "a/one.png,P1,benign,10 10; 30 10; 30 25; 10 25,,biopsy left",
        "a/one.png,P1,1,40 5;50 5;50 15;,,",
        "a/one.png,,,,two-mask.png,",
    )
    lesions, skipped = read(table)
    assert skipped == []
    assert [n.name for n in lesions] == ["0001-one", "0002-one", "0003-one"]
    assert [n.case for n in lesions] == ["P1", "P1", "a/one.png"]
    assert [n.label for n in lesions] == [0, 1, None]
    assert lesions[0].contour == tuple((float(x), float(y)) for x, y in SQUARE)
    assert lesions[0].tags == ("biopsy", "left")
    assert (lesions[2].contour, lesions[2].masks) == (None, (tmp_path / "two-mask.png",))


def test_table_columns_in_any_order_and_case(tmp_path):
    _picture(tmp_path / "one.png")
    table = _table(tmp_path, "10 10; 30 10; 30 25,one.png", columns="Contour, Image")
    assert [n.name for n in read(table)[0]] == ["0001-one"]


def test_table_faults_are_listed(tmp_path):
    _picture(tmp_path / "one.png")
    _mask(tmp_path / "small.png", size=(20, 20), box=(1, 1, 9, 9))
    Image.fromarray(np.full((40, 60), 4000, np.uint16)).save(tmp_path / "deep.png")
    outline = "10 10; 30 10; 30 25"
    table = _table(
        tmp_path,
        f"one.png,P,0,{outline},,",
        f"one.png,P,maybe,{outline},,",
        f"gone.png,P,0,{outline},,",
        f",P,0,{outline},,",
        "one.png,P,0,,,",
        "one.png,P,0,10 10; 30,,",
        "one.png,P,0,10 10; 30 ten; 30 30,,",
        "one.png,P,0,10 10; 30 30,,",
        "one.png,P,0,,small.png,",
        "one.png,P,0,,gone.png,",
        f"deep.png,P,0,{outline},,",
        "one.png",
    )
    lesions, skipped = read(table)
    assert [n.name for n in lesions] == ["0001-one"]
    assert _reasons(skipped) == {
        "0002-one": "label 'maybe' is none of 0, 1, benign, malignant",
        "0003-gone": "the picture cannot be read",
        "0004-": "the picture cannot be read",
        "0005-one": "no contour",
        "0006-one": "the contour cannot be read",
        "0007-one": "the contour cannot be read",
        "0008-one": "the contour has 2 points",
        "0009-one": "the mask has size (20, 20), the picture (60, 40)",
        "0010-one": "the mask cannot be read",
        "0011-deep": "the picture has more than 8 bits a pixel (mode I;16)",
        "0012-one": "no contour",
    }


def test_table_without_the_columns(tmp_path):
    table = _table(tmp_path, "a,b", columns="picture,label")
    with pytest.raises(
        ValueError, match=r"must have the columns image and contour or mask.*picture"
    ):
        read(table)


def test_table_of_another_encoding(tmp_path):
    table = tmp_path / "mine.csv"
    table.write_bytes("image,contour,größe\n".encode("latin-1"))
    with pytest.raises(ValueError, match="must be a CSV file in UTF-8"):
        read(table)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ("busbra", r"BUS-BRA: a folder with bus_data.csv"),
        ("busi", r"BUSI: a folder with benign/ and malignant/"),
        ("ddti", r"DDTI: a folder with XML files"),
        ("tn3k", r"TN3K: a folder with trainval-image/ or test-image/"),
        ("csv", r"a table: a folder with one \*_table.csv"),
    ],
)
def test_another_layout(tmp_path, dataset, words):
    with pytest.raises(ValueError, match=rf"`data` must be {words}.*which has none\."):
        read(tmp_path, dataset)
    with pytest.raises(ValueError, match=r"`data` must be .*which does not exist\."):
        read(tmp_path / "gone", dataset)


def test_an_unknown_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"`dataset` must be .*'busbra'.*'brain'"):
        read(tmp_path, "brain")


def test_no_lesion_left_says_why(tmp_path):
    _case(tmp_path / "1.xml", 1, "2", _1=_svg(SQUARE))
    with pytest.raises(ValueError, match=r"has none\. The first reason: 1_1: no picture of that"):
        read(tmp_path, "ddti")


# --- breast ---------------------------------------------------------------------------------------


def _busbra(folder, folds=True):
    for name in ("0001-l", "0001-r", "0002-l", "0003-l"):
        _picture(folder / "Images" / f"bus_{name}.png")
        if name != "0003-l":
            _mask(folder / "Masks" / f"mask_{name}.png")
    lines = ["ID,Case,Pathology"]
    lines += [f"bus_{name},{case},{word}" for name, case, word in (
        ("0001-l", 1, "malignant"), ("0001-r", 1, "malignant"), ("0002-l", 2, "benign"),
        ("0003-l", 3, "benign"))]  # fmt: skip
    (folder / "bus_data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if folds:
        lines = ["ID,kFold", "bus_0001-l.png,3", "bus_0001-r.png,3", "bus_0002-l.png,5"]
        (folder / "5-fold-cv.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_busbra_as_released(tmp_path):
    _busbra(tmp_path / "busbra")
    lesions, skipped = read(tmp_path, "busbra")  # the folder that has it in one of its name
    assert [(n.name, n.case, n.label, n.fold) for n in lesions] == [
        ("bus_0001-l", "1", 1, 3),
        ("bus_0001-r", "1", 1, 3),
        ("bus_0002-l", "2", 0, 5),
    ]
    assert [(line.what, line.reason) for line in skipped] == [
        ("bus_0003-l", "the mask cannot be read")
    ]
    assert read(tmp_path / "busbra", "busbra")[0] == lesions
    folds = tmp_path / "busbra" / "5-fold-cv.csv"
    folds.write_text(folds.read_text().replace(",3", ",3.0"))
    assert read(tmp_path, "busbra")[0] == lesions
    folds.write_text(folds.read_text().replace(",3.0", ",third"))
    with pytest.raises(ValueError, match=r"`fold` must be whole numbers; line 2 of .*'third'"):
        read(tmp_path, "busbra")
    folds.write_text("ID;kFold\n")
    with pytest.raises(ValueError, match=r"must have the columns ID, kFold in .*it has ID;kFold"):
        read(tmp_path, "busbra")
    folds.unlink()
    assert {n.fold for n in read(tmp_path, "busbra")[0]} == {None}


def test_busi_as_released_joins_the_masks_of_a_frame(tmp_path):
    for word in ("benign", "malignant", "normal"):
        _picture(tmp_path / word / f"{word} (1).png")
    left, right = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    left[5:15, 5:15], right[20:30, 30:45] = 255, 255
    Image.fromarray(left).save(tmp_path / "benign" / "benign (1)_mask.png")
    Image.fromarray(right).save(tmp_path / "benign" / "benign (1)_mask_1.png")
    lesions, skipped = read(tmp_path, "busi")
    (lesion,) = lesions
    assert (lesion.name, lesion.label, len(lesion.masks)) == ("benign-1", 0, 2)
    assert [(line.what, line.reason) for line in skipped] == [
        ("malignant (1)", "no mask of that name")
    ]
    assert joined(lesion.masks).getbbox() == (5, 5, 45, 30)
    (row,) = prepare(lesions, skipped, tmp_path / "out", str)
    # 40 x 25 and 8 % of it on each side: 1.8 to 48.2, 3 to 32
    assert (row["width"], row["height"]) == (48, 29)


def test_a_table_has_folds_and_other_names_of_its_columns(tmp_path):
    _picture(tmp_path / "busi" / "one.png")
    _mask(tmp_path / "busi" / "mask.png")
    (tmp_path / "busi" / "busi_table.csv").write_text(
        "path,class,case,fold,mask\none.png,malignant,c,4,mask.png\none.png,benign,d,,mask.png\n",
        encoding="utf-8",
    )
    for dataset in ("busi", "csv"):
        place = tmp_path if dataset == "busi" else tmp_path / "busi"
        lesions, _ = read(place, dataset)
        assert [(n.label, n.case, n.fold) for n in lesions] == [(1, "c", 4), (0, "d", None)]


def test_two_lesions_of_a_frame_are_one_patient_s(tmp_path):
    _picture(tmp_path / "a.png")
    for number in (1, 2):
        _mask(tmp_path / f"m{number}.png")
    table = _table(tmp_path, "a.png,,0,,m1.png,", "a.png,,1,,m2.png,")
    assert [n.case for n in read(table)[0]] == ["a.png", "a.png"]


def test_real_breast_data(shared_data):
    lesions, skipped = read(shared_data, "busbra")
    assert (len(lesions), skipped) == (1492, [])
    assert {n.fold for n in lesions} == {1, 2, 3, 4}
    lesions, skipped = read(shared_data, "busi")
    assert [sum(n.label == label for n in lesions) for label in (0, 1)] == [320, 150]
    assert {line.reason.split(" is ")[0] for line in skipped} == {"label 'normal'"}


# --- regions --------------------------------------------------------------------------------------


def test_region_by_hand():
    # 100 wide and 50 high: 8 more to the left and right, 4 above and below
    assert region((100, 50, 200, 100), (560, 360)) == (92, 46, 208, 104)
    # a part of a pixel counts as a whole one: 10 - 1.2 and 25 + 1.2
    assert region((10, 10, 25, 25), (60, 40)) == (8, 8, 27, 27)
    assert region((10, 10, 25, 25), (60, 40), margin=0) == (10, 10, 25, 25)
    # 10.2 - 0.08 * 27.5 is 8, though not in binary
    assert region((10.2, 10, 37.7, 30), (60, 40))[0] == 8
    # at the edge there is no margin
    assert region((0, 3, 60, 38), (60, 40)) == (0, 0, 60, 40)


@pytest.mark.parametrize(
    "box", [(10, 10, 10, 20), (20, 10, 10, 20), (60, 10, 70, 20), (-9, 0, 0, 9), (1, 2, 3, np.nan)]
)
def test_region_needs_an_area_within_the_frame(box):
    with pytest.raises(ValueError, match="`box` must have an area within the frame; got"):
        region(box, (60, 40))


coordinate = st.floats(-100, 200, allow_subnormal=False)


@given(
    st.tuples(coordinate, coordinate),
    st.tuples(st.floats(0.5, 100), st.floats(0.5, 100)),
    st.tuples(st.integers(1, 120), st.integers(1, 90)),
    st.floats(0, 0.5),
)
def test_region_holds_the_nodule_and_stays_in_the_frame(corner, extent, size, margin):
    box = (*corner, corner[0] + extent[0], corner[1] + extent[1])
    if box[0] >= size[0] or box[1] >= size[1] or box[2] <= 0 or box[3] <= 0:
        return
    left, top, right, bottom = region(box, size, margin)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    slack = 1e-5  # a hair of rounding does not cost a pixel
    assert left <= max(box[0] - margin * extent[0], 0) + slack
    assert top <= max(box[1] - margin * extent[1], 0) + slack
    assert right >= min(box[2] + margin * extent[0], size[0]) - slack
    assert bottom >= min(box[3] + margin * extent[1], size[1]) - slack
    if margin == 0:
        assert left >= box[0] - 1 or left == 0


@given(st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8))
def test_clipped_stays_in_the_frame_and_never_grows(contour):
    inside = clipped(tuple(contour), (60, 40))
    for x, y in inside:
        assert -1e-9 <= x <= 60 + 1e-9
        assert -1e-9 <= y <= 40 + 1e-9
    assert clipped(inside, (60, 40)) == inside or area(inside) == pytest.approx(
        area(clipped(inside, (60, 40))), abs=1e-6
    )


@given(st.floats(-50, 100), st.floats(-50, 100), st.floats(0.1, 100), st.floats(0.1, 100))
def test_clipped_rectangle_has_the_area_in_common(x, y, width, height):
    rectangle = ((x, y), (x + width, y), (x + width, y + height), (x, y + height))
    common = max(0, min(x + width, 60) - max(x, 0)) * max(0, min(y + height, 40) - max(y, 0))
    assert area(clipped(rectangle, (60, 40))) == pytest.approx(common, abs=1e-6)


def test_area_by_hand():
    assert area(((0, 0), (4, 0), (0, 3))) == 6
    assert area(((0, 0), (0, 3), (4, 0))) == 6
    assert area(((0, 0), (4, 0))) == 0


def test_crop_takes_the_box_and_nothing_else():
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:25, 10:30] = 200
    cut = np.array(crop(Image.fromarray(pixels), (10, 10, 30, 25), size=32))
    assert cut.shape == (32, 32, 3)
    assert (cut[4:-4, 4:-4] == 200).all()  # bicubic sees over the edge, as for any picture
    wider = np.array(crop(Image.fromarray(pixels), (0, 10, 40, 25), size=40))[..., 0]
    assert (wider[8:-8, 14:26] > 195).all()
    assert (wider[:, :6] < 5).all()


def test_crop_is_bicubic():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)
    image = Image.fromarray(pixels)
    cut = np.array(crop(image, (10, 0, 20, 10), size=224))
    expected = image.resize((224, 224), Image.Resampling.BICUBIC, box=(10, 0, 20, 10))
    assert (cut[..., 0] == np.array(expected)).all()


def test_mask_goes_along_with_the_region():
    mask = filled(((20, 10), (40, 10), (40, 30), (20, 30)), (60, 40))
    cut = np.array(crop_mask(mask, (10, 0, 50, 40), size=80))  # two pixels for one
    assert set(np.unique(cut)) == {0, 255}
    rows, columns = np.nonzero(cut)
    # PIL fills the edge's own pixels too: 20 to 40, both included
    assert (columns.min(), columns.max()) == (20, 61)
    assert (rows.min(), rows.max()) == (20, 61)


@pytest.mark.parametrize("bright", [1, 3, 255])
def test_binary_takes_what_is_bright(bright):
    values = np.array([[0, bright], [bright, 0]], np.uint8)
    assert np.array(binary(Image.fromarray(values))).tolist() == [[0, 255], [255, 0]]


def test_binary_ignores_the_noise_of_jpeg(tmp_path):
    rng = np.random.default_rng(0)
    disc = np.hypot(*np.mgrid[-32:32, -32:32]) < 15 + rng.random()
    Image.fromarray(disc.astype(np.uint8) * 255).save(tmp_path / "mask.jpg", quality=60)
    with Image.open(tmp_path / "mask.jpg") as file:
        assert (np.array(file)[~disc] > 0).any()  # the noise is there
        assert (np.array(binary(file)) > 0).sum() == pytest.approx(disc.sum(), rel=0.02)


def test_binary_of_an_empty_mask_and_of_16_bits():
    assert binary(Image.new("L", (4, 3))).getbbox() is None
    deep = np.zeros((3, 4), np.uint16)
    deep[1, 2] = 1
    assert binary(Image.fromarray(deep)).getbbox() == (2, 1, 3, 2)


# --- prepare --------------------------------------------------------------------------------------


def test_prepare_writes_regions_masks_and_tables(tmp_path):
    image = tmp_path / "frame.png"
    pixels = np.zeros((40, 60), np.uint8)
    pixels[10:25, 10:30] = 200
    Image.fromarray(pixels).save(image)
    mask = _mask(tmp_path / "mask.png", value=1)
    contour = tuple((float(x), float(y)) for x, y in SQUARE)
    lesions = [
        Lesion("one", image, "P1", 0, contour=contour, tags=("a", "b")),
        Lesion("two", image, "P2", None, masks=(mask,)),
    ]
    said = []

    rows = prepare(lesions, [Skipped("three", "no contour, alas")], tmp_path / "out", said.append)

    out = tmp_path / "out"
    with (out / "lesions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert table == [{name: str(value) for name, value in row.items()} for row in rows]
    # 20 x 15 and 8 % of it on each side: 8.4 to 31.6, 8.8 to 26.2
    assert table[0] == {
        "name": "one",
        "path": "regions/one.png",
        "mask": "masks/one.png",
        "case": "P1",
        "label": "0",
        "fold": "",
        "tags": "a b",
        "width": "24",
        "height": "19",
    }
    assert (table[1]["label"], table[1]["width"], table[1]["height"]) == ("", "24", "19")
    for row in table:
        with Image.open(out / row["path"]) as file:
            assert (file.mode, file.size) == ("RGB", (224, 224))
            values = np.array(file)[..., 0]
        with Image.open(out / row["mask"]) as file:
            assert (file.mode, file.size) == ("L", (224, 224))
            inside = np.array(file) == 255
        assert np.median(values[inside]) == 200
        assert np.median(values[~inside]) < 20
    with (out / "skipped.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["what", "reason"], ["three", "no contour, alas"]]
    assert said == [
        "2 lesions of 2 cases: 1 benign (1 cases), 0 malignant (0 cases), 1 without label "
        f"(1 cases); 1 left out, see {out / 'skipped.csv'}"
    ]
    assert not list(out.rglob("*.part"))


def test_a_view_of_whole_frames(tmp_path):
    image, mask = _picture(tmp_path / "a.png"), _mask(tmp_path / "m.png")
    lesions = [Lesion("one", image, "P1", 0, masks=(mask,), fold=2)]
    (row,) = prepare(lesions, [], tmp_path / "out", str, view="frame")
    assert (row["width"], row["height"], row["fold"]) == (60, 40, 2)
    with Image.open(tmp_path / "out" / row["mask"]) as file:
        assert float((np.array(file) > 0).mean()) == pytest.approx(20 * 15 / 2400, abs=0.01)
    with pytest.raises(ValueError, match=r"`out` must have one view.*has 'frame', not 'region'"):
        prepare(lesions, [], tmp_path / "out", str)
    with pytest.raises(ValueError, match=r"`view` must be"):
        prepare(lesions, [], tmp_path / "other", str, view="half")


# --- the phantom ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn():
    return [phantoms.phantom(seed, bool(seed % 2)) for seed in range(40)]


def _inside(made):
    return np.array(filled(made.contour, made.image.shape[::-1])) > 0


def test_phantom_is_its_seed():
    one, same, other = (phantoms.phantom(seed, malignant=True) for seed in (3, 3, 4))
    assert (one.image == same.image).all()
    assert (one.contour, one.attributes, one.foci) == (same.contour, same.attributes, same.foci)
    assert (one.image != other.image).any()
    np.random.seed(1)  # nor does a global random state matter
    assert (phantoms.phantom(3, malignant=True).image == one.image).all()


def test_phantom_has_what_it_says(drawn):
    for made in drawn:
        height, width = made.image.shape
        assert made.image.dtype == np.uint8
        x, y = np.array(made.contour).T
        assert x.min() >= 3
        assert y.min() >= 3
        assert x.max() <= width - 4
        assert y.max() <= height - 4
        assert 2000 < area(made.contour) < 14000
        assert set(made.attributes) == set(phantoms.ATTRIBUTES)
        assert bool(made.foci) == made.attributes["foci"]
    assert [made.label for made in drawn] == [seed % 2 for seed in range(40)]


def test_phantom_echogenicity_is_seen(drawn):
    for made in drawn:
        if made.attributes["cystic"]:
            continue
        inside = _inside(made)
        rows, columns = np.nonzero(inside)
        away = np.zeros_like(inside)  # gland beside the lesion, at its depth
        away[rows.min() + 10 : rows.max() - 10, columns.min() - 8 : columns.max() + 9] = True
        away &= ~inside
        darker = np.median(made.image[away]) - np.median(made.image[inside])
        if made.attributes["hypoechoic"]:
            assert darker > 20
        else:
            assert darker < 10


def test_phantom_shape_margin_cysts_and_foci_are_seen(drawn):
    def of(name, has, value):
        return [value(made) for made in drawn if made.attributes[name] == has]

    def roughness(made):  # how much of the convex hull's outline is bent in
        from scipy.spatial import ConvexHull

        return 1 - area(made.contour) / ConvexHull(np.array(made.contour)).volume

    def height_by_width(made):
        x, y = np.array(made.contour).T
        return np.ptp(y) / np.ptp(x)

    def black(made):
        return (made.image[_inside(made)] < 10).mean()

    assert min(of("irregular", True, roughness)) > max(of("irregular", False, roughness))
    assert np.mean(of("taller", True, height_by_width)) > 1.1
    assert np.mean(of("taller", False, height_by_width)) < 0.9
    assert min(of("cystic", True, black)) > 0.05 > max(of("cystic", False, black))
    for made in drawn:
        inside = _inside(made)
        for x, y in made.foci:
            assert inside[y, x]
            assert made.image[y - 1 : y + 2, x - 1 : x + 2].max() > np.quantile(
                made.image[inside], 0.97
            )


def test_phantom_label_needs_more_than_one_attribute():
    """Each alone errs often; all together are nearly always right."""
    rng = np.random.default_rng(0)
    odds = np.array(list(phantoms.ATTRIBUTES.values()))
    benign, malignant = (rng.random((4000, len(odds))) < odds[:, label] for label in (0, 1))
    weight = np.log(odds[:, 1] / odds[:, 0]), np.log((1 - odds[:, 1]) / (1 - odds[:, 0]))

    def auc(low, high):
        return (low[:, None] < high).mean() + (low[:, None] == high).mean() / 2

    score = [np.where(has, *weight).sum(1) for has in (benign, malignant)]
    assert auc(*score) > 0.93
    for one in range(len(odds)):
        assert (
            0.6
            < max(
                auc(benign[:, one], malignant[:, one]), 1 - auc(benign[:, one], malignant[:, one])
            )
            < 0.85
        )


def test_phantom_evidence_lies_where_the_label_shows(drawn):
    for made in drawn:
        evidence = made.evidence
        assert evidence.any() == (made.attributes["irregular"] or made.attributes["foci"])
        assert all(evidence[y, x] for x, y in made.foci)
        edge = [evidence[round(y), round(x)] for x, y in made.contour]
        assert all(edge) if made.attributes["irregular"] else not all(edge)
        assert evidence.sum() < 0.1 * evidence.size


def test_calipers_are_burnt_in_at_the_extremes_and_nowhere_else():
    plain, marked = (phantoms.phantom(5, True, calipers) for calipers in (False, True))
    changed = np.argwhere(plain.image != marked.image)
    x, y = np.array(marked.contour).T
    ends = [(y[i], x[i]) for i in (x.argmin(), x.argmax(), y.argmin(), y.argmax())]
    assert len(changed) > 30
    for place in changed:
        assert min(np.abs(place - end).max() for end in ends) <= 5
    assert (marked.image[tuple(changed.T)] == 255).all()
    assert (plain.calipers, marked.calipers) == (False, True)


def test_written_phantoms_are_read_and_prepared(tmp_path):
    said = []
    table = phantoms.write(tmp_path / "frames", 5, 2, 0.5, say=said.append)
    lesions, skipped = read(table)
    assert skipped == []
    assert [n.case for n in lesions] == ["0", "0", "1", "1", "2"]
    assert [lesions[i].label == lesions[i + 1].label for i in (0, 2)] == [True, True]
    made = phantoms.phantom(2 * 1_000_003, bool(lesions[0].label))
    assert lesions[0].contour == made.contour
    with Image.open(lesions[0].image) as file:
        assert (np.array(file) == made.image).all()
    malignant = sum(n.label for n in lesions)
    assert said == [f"5 frames, {malignant} of them malignant: {table}"]
    rows = prepare(lesions, skipped, tmp_path / "out", said.append)
    assert len(rows) == 5
    again = phantoms.write(tmp_path / "again", 5, 2, 0.5, say=said.append)
    assert again.read_bytes() == table.read_bytes()


@pytest.mark.parametrize(
    ("shares", "marked"),
    [
        ({}, {0: 0, 1: 0}),
        ({"calipers": 1}, {0: 0, 1: 1}),
        ({"benign_calipers": 1}, {0: 1, 1: 0}),
        ({"calipers": 1, "benign_calipers": 1}, {0: 1, 1: 1}),
    ],
)
def test_calipers_go_with_the_label_as_asked(tmp_path, shares, marked):
    lesions, _ = read(phantoms.write(tmp_path, 10, say=str, **shares))
    assert {n.label for n in lesions} == {0, 1}
    for lesion in lesions:
        assert lesion.tags == marked[lesion.label] * ("calipers",)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.5, 21), (1, 40)])
def test_share_of_malignant_patients(tmp_path, monkeypatch, share, count):
    made = phantoms.phantom(0, malignant=False)
    monkeypatch.setattr(phantoms, "phantom", lambda seed, label, _: replace(made, label=int(label)))
    lesions, _ = read(phantoms.write(tmp_path, 40, malignant=share, say=str))
    assert sum(n.label for n in lesions) == pytest.approx(count, abs=9 if share == 0.5 else 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": 0}, "`n` must be an int >= 1; got 0"),
        ({"seed": -1}, "`seed` must be an int >= 0; got -1"),
        ({"malignant": 1.5}, "`malignant` must be a share from 0 to 1; got 1.5"),
        ({"calipers": -0.1}, "`calipers` must be a share from 0 to 1; got -0.1"),
        ({"benign_calipers": 2}, "`benign_calipers` must be a share from 0 to 1; got 2"),
    ],
)
def test_phantom_numbers_out_of_range(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        phantoms.write(tmp_path, **{"n": 2, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_phantom_seed_out_of_range():
    with pytest.raises(ValueError, match="`seed` must be an int >= 0; got -2"):
        phantoms.phantom(-2, malignant=False)
