"""The parts of an evaluation: plan, images, rows on disk, loop, numbers, tables, figures."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

from captum_clustered.clustering import EveryMap
from captum_clustered.evaluation import figures, images, judging, records, report, running
from captum_clustered.evaluation.images import (
    Item,
    find_images,
    labels_of,
    load_mask,
    unknown_class,
)
from captum_clustered.evaluation.measures import METRICS
from captum_clustered.evaluation.plan import Settings, listed, numbers
from captum_clustered.evaluation.processes import World, joined
from captum_clustered.evaluation.rows import Grid, Variant, key_of, title_of
from captum_clustered.evaluation.table import Table
from captum_clustered.evaluation.variants import Outside, as_methods, variants
from captum_clustered.fills import Black
from captum_clustered.methods import METHODS
from captum_clustered.metrics import confidences, deletion, insertion
from captum_clustered.models.images import pixel_scale
from captum_clustered.statistics import mean_interval, paired_difference, rate_interval


def settings(**changes):
    given = {"data": Path("d"), "model": "m", "out": Path("o"), "methods": ("a",)}
    return Settings(**{**given, **changes})


# Plan


def grouped(forward_func, layer, *, n_clusters=8, clusterer="kmeans", weighting="drop"):
    """Stands for a method with groups."""


def plain(forward_func, layer):
    """Stands for a method without groups."""


EVERY_MAP = EveryMap()
OWN_METHODS = {
    "a": Outside("a", grouped),
    "b": Outside("b", plain),
    "null": Outside("null", lambda model, layer, *, n_clusters=9: None, control=True),
}


def planned(controls=True, **changes):
    return [str(one) for one in variants(settings(**changes), OWN_METHODS, controls)]


def test_the_variants_are_methods_times_groups_times_weightings_then_controls():
    found = planned(
        methods=("b", "a"), clusters=(2, 4), weightings=("drop", "drop_per_map"), controls=True
    )
    assert found == [
        "b",
        "a K=2 drop",
        "a K=2 drop_per_map",
        "a K=4 drop",
        "a K=4 drop_per_map",
        "null K=2",
        "null K=4",
    ]


def test_each_method_has_its_own_defaults_unless_one_is_named_for_all():
    assert planned() == ["a K=8 drop", "null K=9"]
    assert planned(weightings=("drop_per_map",)) == ["a K=8 drop_per_map", "null K=9"]
    chosen = settings(methods=("clustered-cam", "group-cam", "clustered-score-cam", "grad-cam"))
    found = [str(one) for one in variants(chosen, METHODS)]
    assert found == [
        "clustered-cam K=64",
        f"group-cam K={METHODS['group-cam'].settings['n_clusters']}",
        f"clustered-score-cam K={METHODS['clustered-score-cam'].settings['n_clusters']}",
        "grad-cam",
    ]


def test_a_method_that_ignores_the_number_has_one_row():
    assert planned(methods=("b",), clusters=(2, 4), controls=False) == ["b"]
    found = planned(clusterer="every-map", clusters=(2, 4))
    assert found == ["a drop", "null K=2", "null K=4"]
    chosen = settings(methods=tuple(METHODS), clusterer="every-map", clusters=(2, 4))
    found = [one for one in variants(chosen, METHODS) if one.clusters is not None]
    # these have groups of their own
    assert {one.method for one in found} == {
        "group-cam", "adaptive-ablation-cam", "contiguous-groups",
    }  # fmt: skip


def test_a_clusterer_of_its_own_that_ignores_the_number_counts_too():
    def every(forward_func, layer, *, n_clusters=4, clusterer=EVERY_MAP):
        """Stands for a method of single maps."""

    own = {"a": Outside("a", every)}
    assert [str(one) for one in variants(settings(clusters=(2, 3)), own)] == ["a"]


def test_controls_can_be_left_out_and_are_not_repeated():
    assert planned(methods=("b",), controls=False) == ["b"]
    assert planned(methods=("null", "b"), clusters=(2,)) == ["null K=2", "b"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ("c",)}, "`methods` must be among a, b, null, or module:callable; got c."),
        ({"weightings": ("dorp",)}, "`weighting` must be one of"),
        ({"clusterer": "kmean"}, "`clusterer` must be one of"),
        ({"clusterer": "kmean", "methods": ("b",)}, "`clusterer` must be one of"),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        planned(**changes)


def test_methods_from_outside_keep_their_names():
    found = as_methods({**METHODS, "My_cam": plain})
    assert found["grad-cam"] is METHODS["grad-cam"]
    assert found["My_cam"] == Outside("My_cam", plain)
    assert title_of(Variant("My_cam")) == "My_cam"
    assert title_of(Variant("random-groups", 4)) == "Random groups, K=4"
    with pytest.raises(TypeError, match="must hold methods or callables; x is int"):
        as_methods({"x": 3})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fill": "white"}, "`fill` must be one of 'black', 'mean', 'blur'; got 'white'."),
        ({"mask_fill": "white"}, "`mask_fill` must be one of 'own', 'black',"),
        ({"methods": ()}, "`methods` must have at least one entry; got none."),
        ({"frame": 0}, "`frame` must be an int >= 1; got 0."),
        ({"score": "logit"}, "`score` must be one of"),
        ({"batch_size": 0}, "`batch_size` must be an int >= 1; got 0."),
        ({"workers": -1}, "`workers` must be an int >= 0; got -1."),
        ({"limit": 0}, "`limit` must be an int >= 1; got 0."),
        ({"clusters": (4, 0)}, "`clusters` must be an int >= 1; got 0."),
    ],
)
def test_settings_are_checked_at_the_door(changes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        settings(**changes)


def test_numbers_of_groups_are_read_from_text():
    assert numbers("16, 32,16") == (16, 32)
    assert numbers(["16,8", "32"]) == (16, 8, 32)
    assert listed(["a,b", " b, c:d "]) == ("a", "b", "c:d")
    with pytest.raises(ValueError, match=r"`clusters` must be whole numbers .* got '16;32'"):
        numbers("16;32")


# Images


def picture(path, size=(8, 6), colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_flat_folder_is_read_in_order_and_without_hidden_files(tmp_path):
    for name in ("b.png", "a.JPG", "._b.png", "note.txt"):
        (tmp_path / name).touch()
    found = find_images(tmp_path)
    assert [(item.name, item.label) for item in found] == [("a.JPG", None), ("b.png", None)]


def test_a_folder_of_classes_is_read_as_image_folder_does(tmp_path):
    for name in ("dog/1.png", "cat/x/2.png", "cat/1.png", ".git/3.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_images(tmp_path)
    assert [(item.name, item.label) for item in found] == [
        ("cat/1.png", "cat"),
        ("cat/x/2.png", "cat"),
        ("dog/1.png", "dog"),
    ]


def test_a_table_gives_class_case_boxes_and_mask(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "﻿path,class,case,mask,boxes\n"
        'i/a.png,3,7,,"1 2 3 4; 5 6 7.5 8"\n'
        'b.png,,,m.png,"[[1, 2, 3, 4]]"\n',
        encoding="utf-8",
    )
    first, second = find_images(table)
    assert first == Item(
        "i/a.png", tmp_path / "i/a.png", "3", "7", ((1, 2, 3, 4), (5, 6, 7.5, 8)), None
    )
    assert second == Item(
        "b.png", tmp_path / "b.png", None, None, ((1, 2, 3, 4),), tmp_path / "m.png"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file\na.png\n", "must have a column path, and may have class, case, mask, boxes; "),
        ("path,klass\na.png,1\n", "has 'path', 'klass'. Rename the columns 'klass', or take them"),
        ("path;class;patient\na.png;1;2\n", "'patient'. Rename the columns 'patient', or take"),
        ("path\n./a.png\na.png\n", "line 3 of"),
        ('path,case\n"a.png","one\ntwo"\n,3\n', "line 4 of"),
        ("pa\u200bth,class\na.png,1\n", "has 'pa\\u200bth', 'class'. Rename"),
        ("path|class\na.png|1\n", "has 'path|class'. Rename the columns, and put commas between"),
        ("path,Path\na.png,b.png\n", "must have each column once;"),
        ("path,class\na.png,crane, bird\n", "fields in each line, as its head; line 2 of"),
        ("path\na.png\na.png\n", "line 3 of"),
        ("path,class\n,1\n", "has no path."),
        ("path,boxes\na.png,1 2 3\n", "`boxes` must be four numbers each"),
        ("path,boxes\na.png,1 2 3 x4\n", "has '1 2 3 x4'."),
        ("path\n", "`data` must have images; got none in"),
    ],
)
def test_a_table_that_is_wrong_is_refused(tmp_path, text, words):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)):
        find_images(table)


@pytest.mark.parametrize(
    "text",
    [
        "Path, Class ,BOXES\nb.png,3,1 2 3 4\n",
        "path;class;boxes\nb.png;3;1 2 3 4\n",
        "path\tclass\tboxes\nb.png\t3\t1 2 3 4\n",
        "path,class,boxes\n\nb.png,3,1 2 3 4\n,,\n",
        "path,class,boxes,\nb.png,3,1 2 3 4,\n",
        "class,boxes,path\r\n3,1 2 3 4,b.png\r\n",
        "\n \n\npath,class,boxes\nb.png,3.0,1 2 3 4\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-8-sig"])
def test_a_table_that_can_be_meant_only_one_way_is_read(tmp_path, text, encoding):
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    (item,) = find_images(tmp_path / "t.csv")
    expected = Item("b.png", tmp_path / "b.png", "3", None, ((1.0, 2.0, 3.0, 4.0),))
    assert item == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"path,class\nm\xfcll.jpg,1\n", "line 2 of {} has the byte 0xfc, which is none of UTF-8"),
        (b"path\na.png\nb\0.png\n", "line 3 of {} has a character with the code 0. Save"),
        (b'path\n"' + b"a" * 200_000 + b'"\n', "{} cannot be read (field larger than"),
    ],
)
def test_a_table_that_is_no_text_is_refused_by_line(tmp_path, raw, words):
    table = tmp_path / "table.csv"
    table.write_bytes(raw)
    with pytest.raises(ValueError, match=re.escape(words.format(table))):
        find_images(table)


def test_the_data_may_be_one_image(tmp_path):
    picture(tmp_path / "a.PNG", (3, 3))
    assert find_images(tmp_path / "a.PNG") == [Item("a.PNG", tmp_path / "a.PNG")]
    with pytest.raises(
        ValueError, match=r"must be a folder, an image or a CSV file; got .*, which"
    ):
        find_images(tmp_path / "b.png")


def test_a_class_that_is_not_known_is_found():
    items = [Item("a", Path(), "cat"), Item("b", Path()), Item("c", Path(), "1")]
    assert unknown_class(items, 2, ["Cat", "dog"]) is None
    assert unknown_class([*items, Item("d", Path(), "2")], 2, ["Cat", "dog"]).name == "d"
    assert unknown_class(items, 2, None).name == "a"


def test_data_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ValueError, match="which does not exist"):
        find_images(tmp_path / "gone")
    with pytest.raises(ValueError, match="got none in"):
        find_images(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "c/a.png")
    with pytest.raises(ValueError, match="has both"):
        find_images(tmp_path)


def test_a_folder_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    picture(tmp_path / "cat/a.png")
    picture(tmp_path / "dog/b.png")
    real = os.scandir

    def guarded(place):
        if str(place).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(place))
        return real(place)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.warns(
        UserWarning, match=r"dog cannot be read \(Permission denied\); what it holds"
    ):
        found = find_images(tmp_path)
    assert [item.name for item in found] == ["cat/a.png"]


def test_a_limit_spreads_over_all_classes(tmp_path):
    for name in "abcdef":
        (tmp_path / f"{name}.png").touch()
    assert [item.name for item in find_images(tmp_path, 3)] == ["a.png", "c.png", "e.png"]
    assert len(find_images(tmp_path, 9)) == 6


@pytest.mark.parametrize(
    ("words", "n_classes", "names", "expected"),
    [
        (["Dog", "cat"], 3, ["cat", "cow", "dog"], ([2, 0], "name")),
        (["7", "0"], 8, None, ([7, 0], "index")),
        (["dog", "cat"], 2, None, ([1, 0], "order")),
        (["5", "9"], 2, None, ([0, 1], "order")),
        (["dog", "cat"], 3, None, ([None, None], "unknown")),
        (["9"], 9, None, ([None], "unknown")),
        ([None, "1"], 9, None, ([None, 1], "index")),
        ([None], 9, None, ([None], "unknown")),
    ],
)
def test_class_words_become_indices(words, n_classes, names, expected):
    items = [Item(str(i), Path(), word) for i, word in enumerate(words)]
    assert labels_of(items, n_classes, names) == expected


NORMAL = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_scale_of_the_pixels_is_measured():
    steps = [transforms.Resize(9), transforms.CenterCrop(8), transforms.ToTensor(), NORMAL]
    scale = pixel_scale(transforms.Compose(steps))
    assert scale == Black((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert pixel_scale(transforms.ToTensor()) == Black((0.0,) * 3, (1.0,) * 3)


def test_a_transform_without_a_scale_is_recognised():
    def ramp(image):
        return transforms.ToTensor()(image) + torch.arange(256.0)

    assert pixel_scale(ramp) is None
    assert pixel_scale(lambda image: torch.zeros(3, *image.size)) is None


def test_boxes_and_masks_take_the_way_of_the_image(tmp_path):
    image = Image.new("RGB", (16, 8))
    # to half the size, then the middle of the width
    steps = [transforms.Resize((4, 8)), transforms.CenterCrop(4), transforms.ToTensor(), NORMAL]
    transform = transforms.Compose(steps)
    # columns 4 to 7 of 16 become 2 and 3 of 8, which are 0 and 1 of the middle 4
    expected = torch.tensor([[1, 1, 0, 0]] * 2 + [[0, 0, 0, 0]] * 2).bool()[None]
    item = Item("a", Path(), boxes=((4, 0, 8, 4),))
    found, what = load_mask(item, image, transform, (4, 4))
    assert found.equal(expected)
    assert what == "inside"
    mask = Image.new("L", (16, 8))
    mask.paste(1, (4, 0, 8, 4))  # labels count, not grey
    mask.save(tmp_path / "m.png")
    item = Item("a", Path(), mask=tmp_path / "m.png")
    assert load_mask(item, image, transform, (4, 4))[0].equal(expected)


def test_what_became_of_an_object_is_said(tmp_path):
    image = Image.new("RGB", (16, 8))
    steps = [transforms.Resize((4, 8)), transforms.CenterCrop(4), transforms.ToTensor()]
    transform = transforms.Compose(steps)
    Image.new("L", (16, 8)).save(tmp_path / "black.png")
    for item, expected in (
        (Item("a", Path()), "not_given"),
        (Item("a", Path(), mask=tmp_path / "black.png"), "empty"),
        (Item("a", Path(), boxes=((4.6, 0, 5.4, 8),)), "empty"),  # between two centres
        (Item("a", Path(), boxes=((0, 0, 3, 8),)), "cut_off"),
        (Item("a", Path(), boxes=((0, 0, 3, 8), (4, 0, 8, 4))), "inside"),
    ):
        found, what = load_mask(item, image, transform, (4, 4))
        assert what == expected
        assert bool(found.any()) == (expected == "inside")
    volume = Item("v", Path(), mask=tmp_path / "empty.npy")
    np.save(tmp_path / "empty.npy", np.zeros((2, 3, 4)))
    found, what = load_mask(
        volume, np.ones((2, 3, 4), np.float32), lambda v: torch.from_numpy(v)[None], (2, 3, 4)
    )
    assert what == "empty"


@pytest.mark.parametrize(
    "box", [(16, 0, 20, 4), (0, 8, 4, 9), (-5, 0, 0, 4), (0, -5, 4, 0), (100, 200, 300, 400)]
)
def test_a_box_outside_of_its_image_is_refused(box):
    item = Item("a", Path(), boxes=((1, 1, 2, 2), box))
    words = f"`boxes` must lie in the image; a is 16 x 8 pixels, got {' '.join(map(str, box))}."
    with pytest.raises(ValueError, match=re.escape(words)):
        load_mask(item, Image.new("RGB", (16, 8)), transforms.ToTensor(), (8, 16))


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ("8 2 4 6", "must be x0 y0 x1 y1 with x0 < x1 and y0 < y1; line 2 of"),
        ("4 6 8 2", "must be x0 y0 x1 y1 with x0 < x1 and y0 < y1; line 2 of"),
        ("1 2 3 4; 10 20 5 5", "If these are x, y, width and height, add x to the width"),
        ("0 0 20 0", "must be x0 y0 x1 y1 with x0 < x1"),
        ("0.1 0.2 0.5 0.9", "which looks like shares of the image. Multiply them by its width"),
        ("0 0 1 1", "which looks like shares of the image"),
    ],
)
def test_a_box_that_cannot_be_meant_is_refused(tmp_path, boxes, words):
    (tmp_path / "t.csv").write_text(f"path,boxes\na.png,{boxes}\n")
    with pytest.raises(ValueError, match=re.escape(words)):
        find_images(tmp_path / "t.csv")


def test_a_pixel_is_in_a_box_if_its_centre_is():
    image = Image.new("RGB", (4, 2))
    item = Item("a", Path(), boxes=((0.5, -3, 2.5, 0.6), (3.6, 0, 3.9, 9)))
    found, _ = load_mask(item, image, transforms.ToTensor(), (2, 4))
    assert found.int().tolist() == [[[1, 1, 0, 0], [0, 0, 0, 0]]]


def test_a_mask_of_another_size_is_refused(tmp_path):
    item = Item("a", Path(), mask=picture(tmp_path / "m.png", (3, 3)))
    with pytest.raises(ValueError, match=r"must have the image's size \(4, 2\); got \(3, 3\)"):
        load_mask(item, Image.new("RGB", (4, 2)), transforms.ToTensor(), (2, 4))


def test_a_mask_of_an_image_is_no_volume(tmp_path):
    """Of two axes or three: the error speaks of the mask."""
    np.save(tmp_path / "m.npy", np.ones((2, 4), np.uint8))
    item = Item("a.png", Path(), mask=tmp_path / "m.npy")
    with pytest.raises(
        ValueError, match=r"^mask must be an image, as a\.png is; .* Save it as PNG"
    ):
        load_mask(item, Image.new("RGB", (4, 2)), transforms.ToTensor(), (2, 4))


# Rows on disk

A, B = Variant("a", 2, "drop"), Variant("b")


def row(image, variant=A, **numbers):
    head = {"image": image, "case": None, "label": None, "method": variant.method}
    return {**head, "clusters": variant.clusters, "weighting": variant.weighting, **numbers}


def test_rows_come_back_as_they_were(tmp_path):
    with records.Rows(tmp_path) as rows:
        rows.append(row("ä.png", x=0.1 + 0.2, y=math.nan))
        rows.append(row("b.png", B, x=[1, 2]))
    assert records.read_rows(tmp_path) == {
        ("ä.png", "a", 2, "drop"): row("ä.png", x=0.1 + 0.2, y=None),
        ("b.png", "b", None, None): row("b.png", B, x=[1, 2]),
    }


@given(cut=st.integers(1, 200))
def test_a_torn_line_is_left_out_and_written_over(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "rows.jsonl"
    with records.Rows(folder) as rows:
        for name in "abc":
            rows.append(row(name))
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    kept = whole[:-cut].count(b"\n")
    assert [key[0] for key in records.read_rows(folder)] == list("abc")[:kept]
    with records.Rows(folder) as rows:
        for name in "abc"[kept:]:
            rows.append(row(name))
    assert path.read_bytes() == whole


class FullDisk:
    """Takes so many bytes, then no more."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self.file.write(data[: self.room])
        self.room -= written
        return written


def test_a_row_that_does_not_fit_is_taken_back(tmp_path):
    with records.Rows(tmp_path) as rows:
        rows.append(row("a"))
        before = rows.path.read_bytes()
        rows._file = FullDisk(rows._file, 20)
        with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)"):
            rows.append(row("b"))
        assert rows.path.read_bytes() == before


def test_a_line_that_is_no_row_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"image": "a"}\n')
    with pytest.raises(
        ValueError, match=r"rows.jsonl must have a row in each line; line 1 is none"
    ):
        records.read_rows(tmp_path)


def test_rows_of_several_processes_become_one_file(tmp_path):
    for rank, names in ((0, "ac"), (1, "bd"), (10, "e")):
        with records.Rows(tmp_path, rank) as rows:
            for name in names:
                rows.append(row(name))
    rows = records.read_rows(tmp_path)
    records.merge(tmp_path, Grid("abcde", [A]))
    assert records.read_rows(tmp_path) == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert [key[0] for key in records.read_rows(tmp_path)] == list("abcde")


def test_files_of_others_are_neither_read_nor_deleted(tmp_path):
    for name in ("rows-old.jsonl", "rows.1.old.jsonl", "rows.01.jsonl", "rows2.jsonl"):
        (tmp_path / name).write_text("not a row\n")
    with records.Rows(tmp_path, 1) as rows:
        rows.append(row("a"))
    records.merge(tmp_path, Grid("a", [A]))
    assert {path.name for path in tmp_path.iterdir()} == {
        "rows-old.jsonl", "rows.1.old.jsonl", "rows.01.jsonl", "rows2.jsonl", "rows.jsonl",
    }  # fmt: skip


def test_changed_settings_are_named(tmp_path):
    config = {"compared": {"fill": "black", "seed": 0, "variants": ["a"]}, "python": "3.12"}
    records.check_config(tmp_path, config)
    records.check_config(tmp_path, {"compared": {"fill": "blur"}})  # there are no rows yet
    records.check_config(tmp_path, config)
    with records.Rows(tmp_path) as rows:
        rows.append(row("a"))
    records.check_config(tmp_path, {**config, "python": "3.13"})
    changed = {"compared": {"fill": "blur", "seed": 0, "variants": ["b"]}}
    with pytest.raises(ValueError, match=r"other settings: fill \(black there, blur now\)\."):
        records.check_config(tmp_path, changed)
    assert json.loads((tmp_path / "config.json").read_text())["python"] == "3.13"


def test_variants_may_come_in_addition(tmp_path):
    records.check_config(tmp_path, {"compared": {"variants": ["a"]}})
    with records.Rows(tmp_path) as rows:
        rows.append(row("a"))
    assert records.check_config(tmp_path, {"compared": {"variants": ["b", "a"]}}) == {}


def test_some_of_the_variants_and_metrics_may_be_named(tmp_path):
    config = {"compared": {"variants": ["a", "b"], "metrics": ["adc", "deletion"], "step": 224}}
    records.check_config(tmp_path, config)
    with records.Rows(tmp_path) as rows:
        rows.append(row("a"))
    fewer = {"compared": {"variants": ["b"], "metrics": ["pic"], "step": None}}
    assert records.check_config(tmp_path, fewer) == {
        "variants": ["a"], "metrics": ["adc", "deletion"],
    }  # fmt: skip
    # what was ever named stays written down, with the step of the curves that are there
    assert json.loads((tmp_path / "config.json").read_text())["compared"] == {
        "variants": ["b", "a"], "metrics": ["pic", "adc", "deletion"], "step": 224,
    }  # fmt: skip


def test_metrics_may_come_in_addition_and_take_the_first_step_with_them(tmp_path):
    settings = {"compared": {"metrics": ["adc"], "variants": ["a"], "step": None}}
    records.check_config(tmp_path, settings)
    with records.Rows(tmp_path) as rows:
        rows.append(row("1", adc=1.0, status="ok", conventions={"score": "softmax"}))
    more = {"compared": {"metrics": ["adc", "deletion"], "variants": ["a"], "step": 224}}
    records.check_config(tmp_path, more)
    with records.Rows(tmp_path) as rows:
        found = {"score": "softmax", "deletion": {"step": 224}}
        rows.append(row("1", adc=2.0, deletion=3.0, status="ok", conventions=found))
    (both,) = records.read_rows(tmp_path).values()
    # the number that was there stays
    assert (both["adc"], both["deletion"], both["conventions"]) == (1.0, 3.0, found)
    other = {"compared": {**more["compared"], "step": 1}}
    with pytest.raises(ValueError, match=r"step \(224 there, 1 now\)"):
        records.check_config(tmp_path, other)


@pytest.mark.parametrize("failed_first", [True, False])
def test_a_metric_that_fails_later_takes_no_number_away(tmp_path, failed_first):
    bad, good = row("1", status="failed", reason="no deletion"), row("1", adc=1.0, status="ok")
    with records.Rows(tmp_path) as rows:
        for one in (bad, good) if failed_first else (good, bad):
            rows.append(one)
    (found,) = records.read_rows(tmp_path).values()
    assert (found["status"], found["adc"]) == ("ok", 1.0)
    grid = Grid("1", [A])
    (missed,) = records.merge(tmp_path, grid)
    assert missed["reason"] == "no deletion"
    assert records.merge(tmp_path, grid) == []
    assert records.read_rows(tmp_path) == {records._key(good): found}
    assert len(records.find_done(tmp_path, grid, ["adc"])) == 1
    assert len(records.find_done(tmp_path, grid, ["adc", "deletion"])) == 0  # tried again


def test_a_run_without_masks_remembers_them(tmp_path):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    image.write_bytes(b"image")
    mask.write_bytes(b"mask")
    records.check_inputs(tmp_path, {"a": [image, mask]}, {"a"})
    records.check_inputs(tmp_path, {"a": [image]}, {"a"})
    mask.write_bytes(b"another mask")
    with pytest.raises(ValueError, match="another content now"):
        records.check_inputs(tmp_path, {"a": [image, mask]}, {"a"})


def test_what_differs_is_shown_even_at_the_end_of_long_values(tmp_path):
    long = "Black(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), and more of it, seed="
    records.check_config(tmp_path, {"compared": {"fill": long + "1", "versions": {"a": "1"}}})
    with records.Rows(tmp_path) as rows:
        rows.append(row("1", status="ok"))
    with pytest.raises(ValueError, match="other settings") as caught:
        records.check_config(
            tmp_path, {"compared": {"fill": long + "2", "versions": {"a": "1", "b": "2"}}}
        )
    assert "it, seed=1 there, …nd more of it, seed=2 now); versions: b (null there, 2 now)" in str(
        caught.value
    )


def test_failed_rows_can_be_forgotten(tmp_path):
    with records.Rows(tmp_path) as rows:
        rows.append(row("1", status="ok"))
        rows.append(row("2", status="failed"))
    with records.Rows(tmp_path, rank=1) as rows:
        rows.append(row("3", status="failed"))
        rows.append(row("3", B, status="failed"))
    grid = Grid("123", [A])
    assert records.forget_failed(tmp_path, grid) == 2
    # what nobody named is not made again, and stays
    assert {key[:2] for key in records.read_rows(tmp_path)} == {("1", "a"), ("3", "b")}
    assert records.forget_failed(tmp_path, grid) == 0


def test_a_file_whose_content_changed_is_noticed(tmp_path, monkeypatch):
    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    image.write_bytes(b"first")
    mask.write_bytes(b"mask")
    inputs = {"a.png": [image, mask], "gone.png": [tmp_path / "gone.png"]}
    rows = {"a.png"}
    out = tmp_path / "out"
    out.mkdir()
    records.check_inputs(out, inputs, set())
    read = []
    real = records.digest_of
    monkeypatch.setattr(records, "digest_of", lambda file: read.append(file) or real(file))
    records.check_inputs(out, inputs, rows)
    assert read == []  # what is as large and as old as before is not read
    os.utime(image, (1, 1))
    records.check_inputs(out, inputs, rows)  # another time, but the same content
    mask.write_bytes(b"mark")
    os.utime(mask, (1, 1))
    with pytest.raises(
        ValueError, match=r"`data` must be the files of .*; a\.png has another cont"
    ):
        records.check_inputs(out, inputs, rows)
    status = image.stat()
    image.write_bytes(b"other")  # as large as before, and then as old as before
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    mask.write_bytes(b"mask")
    with pytest.raises(ValueError, match=r"of which .* has rows; a\.png has another content now"):
        records.check_inputs(out, inputs, rows)
    image.write_bytes(b"first")
    inputs["gone.png"][0].write_bytes(b"here")  # all its rows failed
    records.check_inputs(out, inputs, rows)
    (out / "inputs.json").write_text("{")
    with pytest.raises(ValueError, match=r"inputs\.json cannot be read. Name another folder"):
        records.check_inputs(out, inputs, rows)


def test_a_name_that_is_not_utf_8_comes_back(tmp_path):
    name = "caf\udce9.png"
    with records.Rows(tmp_path) as rows:
        rows.append(row(name, status="ok"))
    assert [key[0] for key in records.read_rows(tmp_path)] == [name]


@pytest.mark.parametrize("text", [None, "{", "{}"])
def test_rows_without_settings_are_left_alone(tmp_path, text):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("a")) + "\n")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(
        ValueError, match=r"has rows, but no config\.json that says of which settings"
    ):
        records.check_config(tmp_path, {"compared": {}})


def test_a_folder_has_one_user_at_a_time(tmp_path):
    with (
        records.sole_user(tmp_path),
        pytest.raises(ValueError, match="another evaluation is writing to"),
        records.sole_user(tmp_path),
    ):
        pass
    with records.sole_user(tmp_path):
        pass
    # the docstring says that this stays, and why
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [(".lock", 0)]


# The loop


class Bright(torch.nn.Module):
    """Two classes: how bright the left and the right half is. Fails on a pixel of 13."""

    def forward(self, x):
        if (x == 13).any():
            raise RuntimeError("bad\nluck")
        left, right = x[..., :2].sum((1, 2, 3)), x[..., 2:].sum((1, 2, 3))
        return torch.stack([left, right], 1)


def left_half(images, target):
    if (images == 7).any():
        raise ValueError("seven")
    maps = torch.zeros(len(images), 1, 1, 4)
    maps[..., :2] = 1
    return maps


def flat(images, target):
    return torch.full((len(images), 1, 1, 4), torch.nan)


def task(name, values, label=None, target=None):
    def load():
        if values is None:
            raise OSError("torn file")
        return images.Loaded(torch.tensor(values).reshape(1, 1, -1))

    return running.Task(name, None, label, load, target)


def work(tasks, explainers=None, metrics=("adc", "pic", "area"), **changes):
    def begin(images, objects, classes):
        judged = "predicted" if classes is None else "given"
        return judging.begin(Bright(), images, objects, classes, judged=judged)

    def measure(batch, heatmaps, explain):
        chosen = {name: METRICS[name] for name in metrics}
        return judging.measure(chosen, batch, heatmaps, explain)

    return running.Work(tasks, explainers or {A: left_half}, begin, measure, **changes)


def evaluated(folder, job, done=()):
    with records.Rows(folder) as rows:
        running.run(job, running.share(job, done, 0, 1), done, rows)
    return records.read_rows(folder)


BRIGHT = [1.0, 1.0, 0.0, 1.0]


def test_a_row_holds_what_the_metrics_give(tmp_path):
    job = work([task("a", BRIGHT), task("b", [0.0, 0.0, 0.0, 1.0])], batch_size=2)
    rows = evaluated(tmp_path, job)
    images = torch.tensor([BRIGHT, [0.0, 0.0, 0.0, 1.0]]).view(2, 1, 1, 4)
    expected = confidences(Bright(), images, left_half(images, None))
    for i, name in enumerate("ab"):
        found = rows[key_of(name, A)]
        assert found["status"] == "ok"
        assert found["target"] == expected.target[i] == i
        assert found["original_score"] == expected.original[i].item()
        assert found["masked_score"] == expected.masked[i].item()
        assert found["adc"] == expected.average_drop[i].item()
        assert found["pic"] == expected.increase_in_confidence[i].item()
        assert found["area"] == 50
        assert found["map"] == "ok"
        assert found["conventions"] == {**expected.conventions.as_dict(), "target": "predicted"}
        assert found["seconds"] > 0


def test_the_given_class_is_explained_and_judged(tmp_path):
    seen = []

    def explain(images, target):
        seen.append(target.tolist())
        return left_half(images, target)

    job = work([task("a", BRIGHT, label=1, target=1)], {A: explain})
    (found,) = evaluated(tmp_path, job).values()
    assert set(map(tuple, seen)) == {(1,)}
    assert (found["target"], found["label"], found["conventions"]["target"]) == (1, 1, "given")
    assert found["original_score"] == pytest.approx(1 / (1 + math.e))


def test_what_is_wrong_with_a_map_is_in_its_row_and_counts(tmp_path):
    (found,) = evaluated(tmp_path, work([task("a", BRIGHT)], {B: flat})).values()
    assert (found["status"], found["map"]) == ("ok", "not_finite")
    assert found["adc"] > 0


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_an_image_that_fails_says_why_and_the_others_go_on(tmp_path, batch_size):
    tasks = [
        task("torn", None),
        task("good", BRIGHT),
        task("model", [13.0, 0.0, 0.0, 0.0]),
        task("method", [7.0, 0.0, 0.0, 0.0]),
        task("wide", [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]),
    ]
    rows = evaluated(tmp_path, work(tasks, {A: left_half, B: flat}, batch_size=batch_size))
    assert len(rows) == 10
    status = {(image, method): found["status"] for (image, method, _, _), found in rows.items()}
    ok = {pair for pair, word in status.items() if word == "ok"}
    assert ok == {
        ("good", "a"), ("good", "b"), ("method", "b"), ("wide", "a"), ("wide", "b"),
    }  # fmt: skip
    reasons = {image: rows[key_of(image, A)]["reason"] for image in ("torn", "model")}
    assert reasons == {"torn": "OSError: torn file", "model": "RuntimeError: bad luck"}
    failed = rows[key_of("method", A)]
    assert (failed["reason"], failed["error"]) == ("ValueError: seven", "ValueError")
    file, line = failed["place"].rsplit(":", 1)
    assert Path(__file__).as_posix().endswith(Path(file).as_posix())
    assert (
        'raise ValueError("seven")' in Path(__file__).read_text("utf-8").splitlines()[int(line) - 1]
    )


def test_a_model_that_answers_nan_has_failed(tmp_path):
    (found,) = evaluated(tmp_path, work([task("a", [math.nan] * 4)])).values()
    assert (found["status"], found["adc"]) == ("failed", None)
    assert found["reason"] == "the model's score is not a number"


def test_only_missing_rows_are_made_and_the_first_call_is_not_timed(tmp_path):
    calls = []

    def explain(images, target):
        calls.append(len(images))
        return left_half(images, target)

    job = work([task(name, BRIGHT) for name in "abcde"], {A: explain}, batch_size=2)
    done = {key_of(name, A) for name in "abd"}
    rows = evaluated(tmp_path, job, done)
    # c comes with d, as it did the first time; the first batch also warms up
    assert calls == [2, 2, 1]
    assert [key[0] for key in rows] == ["c", "e"]


@given(
    n=st.integers(0, 12),
    batch_size=st.integers(1, 5),
    size=st.integers(1, 4),
    done=st.sets(st.integers(0, 11)),
)
def test_each_unfinished_batch_is_in_one_share(n, batch_size, size, done):
    job = work([task(str(i), BRIGHT) for i in range(n)], batch_size=batch_size)
    there = {key_of(str(i), A) for i in done}
    shares = [running.share(job, there, rank, size) for rank in range(size)]
    together = [tuple(task.image for task in batch) for part in shares for batch in part]
    batches = [tuple(map(str, range(i, min(i + batch_size, n)))) for i in range(0, n, batch_size)]
    left = [batch for batch in batches if not {int(name) for name in batch} <= done]
    assert sorted(together) == sorted(left)


def test_one_process_is_a_world_of_its_own(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as world:
        world.wait()
        assert world == World(0, 1, 0)
        assert world.leads
        assert world.from_leader("x") == "x"
        assert world.device("cuda") == "cuda"


# Numbers


def test_each_metric_is_what_its_function_gives():
    torch.manual_seed(0)
    images, heatmaps = torch.rand(2, 1, 4, 4), torch.rand(2, 1, 2, 2)
    objects = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    objects[0, :, :2] = True
    batch = judging.begin(Bright(), images, objects, fill=0.5, step=4)
    chosen = judging.check_metrics(list(METRICS), METRICS, "softmax", True)

    def explain(images, target):
        return images[..., ::2, ::2] + 0.1 * target.view(-1, 1, 1, 1)

    found = judging.measure(chosen, batch, heatmaps, explain)
    expected = confidences(Bright(), images, heatmaps, fill=0.5)
    into = insertion(Bright(), images, heatmaps, step=4)
    out = deletion(Bright(), images, heatmaps, step=4, fill=0.5)
    from captum_clustered.metrics import adcc, energy_inside, iou, pointing_game

    parts = adcc(Bright(), explain, images, heatmaps, fill=0.5)
    columns = {
        "adc": expected.average_drop,
        "pic": expected.increase_in_confidence,
        "ag": expected.average_gain,
        "complement": expected.drop_on_complement,
        "area": expected.area,
        "adcc": parts.per_image,
        "coherency": parts.coherency,
        "insertion": into.area,
        "deletion": out.area,
        "pointing": pointing_game(heatmaps, objects),
        "energy": energy_inside(heatmaps, objects),
        "iou": iou(heatmaps, objects),
        "complement_score": expected.complement,
    }
    assert set(METRICS) <= set(columns)
    for name, values in columns.items():
        np.testing.assert_allclose([one[name] for one in found], values, rtol=1e-6, err_msg=name)
    assert math.isnan(found[1]["iou"])  # nothing is marked there
    curve = found[0]["deletion_curve"]
    assert len(curve) == judging.POINTS
    assert curve[0] == pytest.approx(expected.original[0].item(), abs=1e-5)
    assert curve[-1] == pytest.approx(out.scores[0, -1].item(), abs=1e-5)
    assert found[0]["conventions"]["deletion"]["step"] == 4


@pytest.mark.parametrize(
    ("metrics", "score", "words"),
    [
        (["adk"], "softmax", "`metrics` must be among adc, pic"),
        (["iou"], "softmax", "got iou, but no image has a mask or boxes"),
        (["ag"], "identity", "`score` must be a probability for the metric ag"),
    ],
)
def test_metrics_that_cannot_be_had_are_refused(metrics, score, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        judging.check_metrics(metrics, METRICS, score, False)


def test_a_shared_part_of_two_metrics_is_computed_once():
    calls = []

    def explain(images, target):
        calls.append(len(images))
        return images.mean(1, keepdim=True)

    images = torch.rand(2, 1, 4, 4)
    batch = judging.begin(Bright(), images)
    chosen = judging.check_metrics(["adcc"], METRICS, "softmax", False)
    judging.measure(chosen, batch, images, explain)
    alone = len(calls)
    calls.clear()
    chosen = judging.check_metrics(["adcc", "coherency"], METRICS, "softmax", False)
    judging.measure(chosen, batch, images, explain)
    assert len(calls) == alone


def test_a_metric_from_outside():
    seen = []

    def mine(model, images, heatmaps, target):
        seen.append((type(model), images.shape, heatmaps.shape, target.tolist()))
        return np.arange(len(images))

    mine.higher_is_better = True
    chosen = judging.as_metrics({"mine": mine, **METRICS})
    assert (chosen["mine"].head, chosen["mine"].unit) == ("mine ↑", "")
    images = torch.tensor([BRIGHT, [0.0, 0.0, 0.0, 1.0]]).view(2, 1, 1, 4)
    batch = judging.begin(Bright(), images)
    wanted = judging.check_metrics(["mine"], chosen, "softmax", False)
    assert list(wanted) == ["mine", "area"]
    found = judging.measure(wanted, batch, left_half(images, None), left_half)
    assert [one["mine"] for one in found] == [0, 1]
    assert seen == [(Bright, (2, 1, 1, 4), (2, 1, 1, 4), [0, 1])]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (
            lambda *_: torch.ones(3),
            r"`metric` mine must return one number .* 2 images; got .*\(3,\)",
        ),
        (lambda *_: 1 / 0, r"`metric` mine failed \(ZeroDivisionError: division by zero; "),
        (lambda *_: "x", r"`metric` mine failed \(TypeError"),
    ],
)
def test_a_metric_from_outside_that_is_wrong_names_itself(function, words):
    images = torch.rand(2, 1, 1, 4)
    batch = judging.begin(Bright(), images)
    chosen = judging.as_metrics({"mine": function})
    with pytest.raises(ValueError, match=words):
        judging.measure(chosen, batch, left_half(images, None), left_half)
    with pytest.raises(TypeError, match="must hold metrics or callables; mine is int"):
        judging.as_metrics({"mine": 3})
    with pytest.raises(ValueError, match=r"`metrics` must not be called .*; got 'status'"):
        judging.as_metrics({"status": lambda *_: torch.zeros(1)})


# Tables

ADC, PIC = report.Column("adc", "ADC ↓"), report.Column("pic", "PIC ↑", is_rate=True)
IMAGES = [f"{i}.png" for i in range(6)]
ABLATION = Variant("ablation-cam")
OURS = Variant("clustered-cam", 4, "drop")
RANDOM = Variant("random-groups", 4, "drop", control=True)
ADCS = {
    ABLATION: [10.0, 20.0, 30.0, 40.0, 50.0, 60.0],
    OURS: [11.0, 19.0, 33.0, 38.0, 55.0, 60.0],
    RANDOM: [31.0, 25.0, 36.0, 48.0, 50.0, 70.0],
}


def judged(image, variant, adc, case=None, changes=None):
    pic = 100.0 if adc < 25 else 0.0
    numbers = {"adc": adc, "pic": pic, "map": "ok", "status": "ok", "seconds": adc / 1000}
    return {**row(image, variant), "case": case, **numbers, **(changes or {})}


def rows_of(cases=(None,) * 6, **changes):
    made = [
        judged(image, variant, adc, case, changes.get(image))
        for variant, adcs in ADCS.items()
        for image, adc, case in zip(IMAGES, adcs, cases, strict=True)
    ]
    made.reverse()  # the order of the rows does not matter
    return {(r["image"], r["method"], r["clusters"], r["weighting"]): r for r in made}


def reported(rows):
    return report.make_report(rows, IMAGES, list(ADCS), [ADC, PIC], ["a note"])


def assert_same(found, expected):
    """Two intervals that differ by rounding at most."""
    assert (found.n, found.n_cases, found.method) == (expected.n, expected.n_cases, expected.method)
    ends = [(each.estimate, each.low, each.high) for each in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-12, nan_ok=True)


def test_a_line_is_the_mean_with_its_interval():
    line = reported(rows_of()).lines[1]
    assert line.title == "Clustered-CAM, K=4, drop"
    assert_same(line.intervals["adc"], mean_interval(ADCS[OURS]))
    assert line.intervals["pic"] == rate_interval([100.0, 100.0, 0.0, 0.0, 0.0, 0.0])
    assert (line.images, line.failed, line.seconds) == (6, 0, pytest.approx(0.0355))


def test_differences_are_paired_and_against_the_right_ones():
    found = reported(rows_of()).differences
    pairs = [(difference.first, difference.second) for difference in found]
    assert pairs == [(OURS, ABLATION), (OURS, RANDOM), (RANDOM, ABLATION)]
    assert_same(found[1].intervals["adc"], paired_difference(ADCS[OURS], ADCS[RANDOM]))
    assert found[1].intervals["adc"].estimate == pytest.approx(-44 / 6)


def test_random_groups_of_another_number_or_weighting_are_no_reference():
    others = [Variant("random-groups", k, w, True) for k, w in ((8, "drop"), (4, "share"))]
    found = report.make_report({}, IMAGES, [OURS, *others], [ADC])
    assert found.differences == []


def test_images_of_one_case_are_drawn_together():
    cases = ["x", "x", "y", "y", None, None]
    found = reported(rows_of(cases))
    names = ["x", "x", "y", "y", "4", "5"]
    assert_same(found.lines[0].intervals["adc"], mean_interval(ADCS[ABLATION], cases=names))
    assert found.lines[0].intervals["pic"].n_cases == 4
    expected = paired_difference(ADCS[OURS], ADCS[ABLATION], cases=names)
    assert_same(found.differences[0].intervals["adc"], expected)


def test_faults_are_counted_and_failures_left_out():
    rows = rows_of(**{
        "0.png": {"map": "flat"},
        "1.png": {"map": "negative"},
        "2.png": {"status": "failed", "adc": None},
        "3.png": {"map": "not_finite"},
    })  # fmt: skip
    line = reported(rows).lines[0]
    assert line.faults == {"flat": 1, "not_finite": 1, "negative": 1}
    assert (line.images, line.failed, line.intervals["adc"].n) == (6, 1, 5)
    assert reported(rows).differences[0].intervals["adc"].n == 5


def test_tables_say_the_same_in_three_ways():
    found = reported(rows_of())
    text = report.summary_csv(found).splitlines()
    assert text[0].startswith("method,clusters,weighting,control,images,failed,flat,not_finite,")
    assert text[2].startswith("clustered-cam,4,drop,0,6,0,0,0,0,36.000000,")
    assert len(text) == 4
    interval = str(found.lines[1].intervals["adc"])
    markdown = report.summary_md(found)
    assert f"| Clustered-CAM, K=4, drop | 6 | {interval} |" in markdown
    assert "| *Random groups, K=4, drop* |" in markdown
    assert "| 35.5 ms |" in markdown
    assert "- a note" in markdown
    assert f"**{found.differences[1].intervals['adc']}**" in markdown
    tex = report.summary_tex(found)
    low, high = found.lines[1].intervals["adc"].low, found.lines[1].intervals["adc"].high
    assert rf"Clustered-CAM, $K$=4, drop & 36.00 {{\scriptsize [{low:.2f}, {high:.2f}]}} &" in tex
    assert r"Method & ADC $\downarrow$ & PIC $\uparrow$ & Time per image \\" in tex
    assert tex.count(r"\midrule") == 2
    assert tex.count(r"\\") == 4
    differences = report.differences_csv(found).splitlines()
    assert differences[1].startswith("clustered-cam,4,drop,ablation-cam,,,1.000000,")


def test_a_variant_without_numbers_is_shown_empty():
    rows = {
        key: {**found, "status": "failed", "adc": None, "pic": None}
        for key, found in rows_of().items()
    }
    found = reported(rows)
    assert report.summary_csv(found).splitlines()[1] == ("ablation-cam,,,0,6,6,0,0,0,,,,0,,,,0,")
    assert "| Ablation-CAM | 0 | - | - | - |" in report.summary_md(found)
    assert "nan" not in report.summary_md(found) + report.summary_tex(found)


def test_one_image_has_a_number_without_an_interval():
    rows = {key: found for key, found in rows_of().items() if key[0] == IMAGES[0]}
    columns = [report.Column("adc", "ADC ↓")]
    found = report.make_report(rows, IMAGES[:1], [Variant("ablation-cam")], columns)
    number = rows[key_of(IMAGES[0], Variant("ablation-cam"))]["adc"]
    assert f"| Ablation-CAM | 1 | {number:.2f} |" in report.summary_md(found)
    assert f"Ablation-CAM & {number:.2f} & " in report.summary_tex(found)


def test_a_metric_of_fewer_images_says_of_how_many():
    """Images without an object count as such, and are not part of what needs one."""
    rows = rows_of()
    for i, row in enumerate(rows.values()):
        row["object"] = "cut_off" if row["image"] == IMAGES[0] else "inside"
        row["iou"] = None if row["object"] == "cut_off" else float(i)
    columns = [report.Column("adc", "ADC ↓"), report.Column("iou", "IoU ↑", needs_object=True)]
    found = report.make_report(rows, IMAGES, [Variant("ablation-cam")], columns)
    assert found.lines[0].faults == {"flat": 0, "not_finite": 0, "negative": 0, "no_object": 1}
    head, _, line = report.summary_md(found).splitlines()[2:5]
    assert [cell.strip() for cell in head.strip("| ").split("|")] == [
        "Method", "images", "ADC ↓", "IoU ↑", "Time per image", "flat", "not finite", "negative",
        "no object", "failed",
    ]  # fmt: skip
    cells = [cell.strip() for cell in line.strip("| ").split("|")]
    n = len(IMAGES)
    assert cells[1] == str(n)
    assert "n=" not in cells[2]
    assert cells[3].endswith(f"] (n={n - 1})")
    assert cells[-2:] == ["1", "0"]
    figures.intervals(found).savefig(os.devnull, format="png")


# Figures


def test_the_figure_shows_each_interval(tmp_path):
    found = reported(rows_of())
    figure = figures.intervals(found)
    assert [ax.get_title() for ax in figure.axes] == ["ADC ↓ (%)", "PIC ↑ (%)"]
    bar, point = figure.axes[0].lines[2:4]  # of the second line
    interval = found.lines[1].intervals["adc"]
    assert list(bar.get_xdata()) == [interval.low, interval.high]
    assert list(point.get_xdata()) == [interval.estimate]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == [line.title for line in found.lines]
    figure.savefig(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")


def test_the_curves_are_means(tmp_path):
    rows = rows_of()
    for found in rows.values():
        found["insertion_curve"] = [0.0, found["adc"] / 100]
        found["insertion"] = found["adc"] / 2
    grid = Grid(IMAGES, list(ADCS))
    table = Table.from_rows(rows.values(), grid, ["insertion"], ["insertion"])
    figure = figures.curves("insertion", table)
    methods, controls = (ax.lines for ax in figure.axes)
    assert list(methods[1].get_ydata()) == [0.0, pytest.approx(0.36)]
    assert methods[1].get_label() == "Clustered-CAM, K=4, drop: 18.0"
    assert (len(methods), len(controls)) == (2, 1)
    figure.savefig(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1000


def test_no_two_of_many_methods_look_alike(tmp_path):
    variants = [Variant(f"method-{i}", control=i > 8) for i in range(12)]
    rows = [judged("a.png", v, 50.0, changes={"insertion_curve": [0, 1]}) for v in variants]
    table = Table.from_rows(rows, Grid(["a.png"], variants), ["adc"], ["insertion"])
    table.values["insertion"] = table.values["adc"]
    figure = figures.curves("insertion", table)
    lines = [line for ax in figure.axes for line in ax.lines]
    looks = [(str(line.get_color()), str(line._unscaled_dash_pattern)) for line in lines]
    assert len(set(looks)) == 12
    # up to the number of colours and of dashes, neither is used twice
    assert len({colour for colour, _ in looks[:7]}) == len({dash for _, dash in looks[:7]}) == 7


def test_panels_of_a_figure_stand_in_rows_as_equal_as_can_be():
    for n, across in ((1, 1), (4, 4), (5, 3), (7, 4), (8, 4), (9, 3)):
        columns = [report.Column("adc", f"{i}") for i in range(n)]
        found = report.make_report(rows_of(), IMAGES, list(ADCS), columns)
        grid = figures.intervals(found).axes[0].get_gridspec()
        assert grid.ncols == across
