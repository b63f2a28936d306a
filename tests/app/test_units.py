"""The files of one image are one unit: names, folders, going on, full disks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from command_line import explain, one_error


def _image_of(folder, stem):
    return json.loads((folder / f"out/{stem}.json").read_text())["image"]


def _two_of_one_name(folder):
    for number, name in enumerate(["x/same.png", "y/same.png"]):
        (folder / name).parent.mkdir()
        Image.new("RGB", (30, 40), (200 * number, 0, 50)).save(name)


def test_the_results_of_another_image_stay(folder):
    _two_of_one_name(folder)
    assert explain("x/same.png", "--html", "--method", "clustered-cam,grad-cam").exit_code == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    result = explain("y/same.png")
    assert result.exit_code == 0, result.output
    note = "note: y/same.png: out has results of another image under the name same\n"
    assert note in result.stderr
    assert "see out/same-2.overlay.png" in result.stdout
    after = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    assert {name: after[name] for name in before} == before
    assert _image_of(folder, "same-2") == "y/same.png"
    # and each finds its own again
    assert explain("y/same.png").exit_code == explain("x/same.png").exit_code == 0
    assert _image_of(folder, "same") == "x/same.png"
    assert _image_of(folder, "same-2") == "y/same.png"
    assert not (folder / "out/same-3.json").exists()


def test_the_results_of_the_same_image_are_replaced_whole(folder):
    assert explain("cat.png", "--html", "--method", "clustered-cam,grad-cam").exit_code == 0
    assert (folder / "out/cat.html").is_file()
    assert (folder / "out/cat.grad-cam.json").is_file()
    (folder / "out/cat.notes.txt").write_text("mine")
    assert explain("cat.png").exit_code == 0
    names = {path.name for path in (folder / "out").iterdir()}
    plain = {"cat.overlay.png", "cat.heatmap.npy", "cat.map.npy", "cat.json"}
    assert names == plain | {"cat.notes.txt"}


def test_one_relative_path_may_mean_two_images(folder, monkeypatch):
    _two_of_one_name(folder)
    for place in ("x", "y"):
        monkeypatch.chdir(folder / place)
        monkeypatch.syspath_prepend(folder)
        assert explain("same.png", out=folder / "out").exit_code == 0
    assert (folder / "out/same-2.json").is_file()


def test_files_that_are_not_ours_stay(folder):
    (folder / "out").mkdir()
    for text in ('{"my": "notes"}', "no json"):
        (folder / "out/cat.json").write_text(text)
        assert explain("cat.png").exit_code == 0
        assert (folder / "out/cat.json").read_text() == text
    assert _image_of(folder, "cat-2") == "cat.png"


def test_a_name_may_be_that_of_a_method(folder):
    Image.new("RGB", (30, 40), "green").save("cat.grad-cam.png")
    options = ["--method", "clustered-cam,grad-cam"]
    for order in (["cat.png", "cat.grad-cam.png"], ["cat.grad-cam.png", "cat.png"]):
        out = "-".join(order)
        assert explain(*order, *options, out=out).exit_code == 0
        records = [json.loads(path.read_text()) for path in (folder / out).glob("*.json")]
        images = [record["image"] for record in records]
        assert images.count("cat.png") == images.count("cat.grad-cam.png") == 3


def test_resume_explains_only_what_is_missing(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    seen = []
    real = explaining.explain_image

    def watched(explainer, path, **options):
        seen.append(path.name)
        return real(explainer, path, **options)

    monkeypatch.setattr(explaining, "explain_image", watched)
    both = ["cat.png", "dog.png", "--resume", "--method", "clustered-cam,grad-cam"]
    assert explain("cat.png", *both[2:]).exit_code == 0
    result = explain(*both)
    assert seen == ["cat.png", "dog.png"]
    assert "1 image of 2 had been explained before; see out\n" in result.stdout
    seen.clear()
    assert explain(*both).exit_code == 0
    assert seen == []
    Image.new("RGB", (30, 40), "green").save("dog.png")
    assert explain(*both).exit_code == 0
    assert seen == ["dog.png"]
    for more in (["--seed", "1"], ["--colormap", "jet"], ["--html"], ["--method", "hires-cam"]):
        seen.clear()
        assert explain("cat.png", *both[2:], *more).exit_code == 0
        assert seen == ["cat.png"], more
    seen.clear()
    (folder / "out/cat.grad-cam.map.npy").unlink()
    assert explain("cat.png", *both[2:]).exit_code == 0
    assert seen == ["cat.png"]


def test_a_folder_stands_for_its_images(folder):
    for name in ("photos/b.png", "photos/deep/a.jpg", "photos/.hidden/c.png", "photos/out/d.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 40), "green").save(name)
    (folder / "photos/text.txt").write_text("no image")
    result = explain("photos", "cat.png", out="photos/out")
    assert result.exit_code == 0, result.output
    done = [line.split(":")[0] for line in result.stdout.splitlines()]
    assert done == ["photos/b.png", "photos/deep/a.jpg", "cat.png"]
    (folder / "empty").mkdir()
    line = one_error(explain("empty"))
    assert line == "`images` must be files or folders of images; got none in empty."


def test_pictures_that_pillow_may_not_read_are_not_left_out_in_silence(folder):
    (folder / "photos").mkdir()
    (folder / "photos/a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    Image.new("RGB", (30, 40), "green").save("photos/b.jfif", format="JPEG")
    result = explain("photos")
    assert result.exit_code == 2
    words = "got photos/a.heic. Save it as PNG or JPEG.\n"
    assert f"error: image must be in a format that Pillow reads; {words}" in result.stderr
    assert result.stdout.startswith("photos/b.jfif: ")


def test_names_that_cannot_be_shown_do_not_stop_the_others(folder):
    name = os.fsdecode(b"caf\xe9.png")  # not UTF-8
    try:
        Image.new("RGB", (30, 40), "green").save(os.fsencode(name).decode("latin-1"))
        os.rename(b"caf\xc3\xa9.png", b"caf\xe9.png")
    except OSError:
        pytest.skip("the file system has UTF-8 names only")
    result = explain(name, "cat.png", "--html")
    assert result.exit_code == 0, result.output
    assert "caf\\udce9.png: " in result.stdout
    record = json.loads((folder / "out" / name).with_suffix(".json").read_text())
    assert record["image"] == name
    assert (folder / "out/cat.json").is_file()
    code = "from captum_clustered.app.cli import main; main()"
    Image.new("RGB", (30, 40), "green").save("\u732b.png")
    shell = subprocess.run(
        [sys.executable, "-c", code, "explain", "\u732b.png", "cat.png", "--model", "nets:net"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shell.returncode == 0, shell.stderr
    assert shell.stdout.startswith("\\u732b.png: class (")


def test_a_name_of_any_length_leaves_room_for_what_is_added_to_it(folder):
    names = ["\u732b" * 83, "\u732b" * 83 + "x", "\u732b" * 39 + "xyz"]  # 249 bytes and more
    for number, name in enumerate(names):
        Image.new("RGB", (30, 40), (80 * number, 0, 0)).save(f"{name}.png")
    files = [f"{name}.png" for name in names]
    options = ["--method", "clustered-cam,grad-cam", "--target", "0,1", "--html", "--bare"]
    result = explain(*files, "cat.png", *options)
    assert result.exit_code == 0, result.output
    stem = "\u732b" * 40
    found = [_image_of(folder, own) for own in (stem, f"{stem}-2", names[2])]
    assert found == files
    assert (folder / "out/cat.json").is_file()
    result = explain(*files, *options, "--resume")  # the names are found again
    assert "3 images of 3 had been explained before" in result.stdout


def test_a_name_does_not_steer_the_terminal(folder):
    for name in ("new\nline.png", "\x1b[31mred.png", "\u202egnp.png"):
        Image.new("RGB", (30, 40), "green").save(name)
    result = explain("new\nline.png", "\x1b[31mred.png", "\u202egnp.png", "gone\n.png")
    lines = result.stdout.splitlines()
    begins = [line.partition(": ")[0] for line in lines]
    assert begins == [r"new\nline.png", r"\x1b[31mred.png", r"\u202egnp.png"]
    assert "\x1b" not in result.stderr.replace("\x1b[A", "")  # of the progress bar


def test_a_folder_that_cannot_be_looked_into_is_said_for_each_image(folder, monkeypatch):
    real = Path.exists

    def guarded(self, **named):
        if self.suffix == ".json":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, **named)

    monkeypatch.setattr(Path, "exists", guarded)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 2, result.output
    for name in ("cat", "dog"):
        assert f"error: {name}.png: [Errno 13] Permission denied: 'out/" in result.stderr


def test_a_file_that_may_not_be_read_does_not_stop_the_others(folder, monkeypatch):
    real = Path.open

    def guarded(self, *arguments, **named):
        if self.name == "cat.png":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", guarded)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 2
    assert "error: [Errno 13] Permission denied: 'cat.png'" in result.stderr
    assert "Traceback" not in result.output
    assert (folder / "out/dog.json").is_file()
    # this looks at all files first
    result = explain("cat.png", "dog.png", "--dicom", "--dicom-identifiers", out="new")
    assert "Traceback" not in result.output


def test_a_narrow_picture_is_refused_before_it_fills_the_memory(folder):
    Image.new("RGB", (1, 12000)).save("line.png")
    result = explain("line.png", "--weights", "none", model="squeezenet1_1")
    assert result.exit_code == 2
    assert "got 1 x 12000 pixels, of which the model's transform would make 256 x 3072000" in (
        result.stderr
    )
    Image.new("RGB", (40, 4000)).save("strip.png")
    result = explain("strip.png", "--weights", "none", model="squeezenet1_1")
    assert result.exit_code == 0, result.output


def test_a_full_disk_leaves_whole_units_only(folder, monkeypatch):
    assert explain("dog.png", "--seed", "1").exit_code == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    save = np.save

    def full(file, array):
        if "dog" in file.name:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(file, array)

    monkeypatch.setattr(np, "save", full)
    result = explain("cat.png", "dog.png", "bird.png")
    assert result.exit_code == 2
    assert "bird" not in result.output  # nor is there room for it
    assert "error: dog.png: out cannot be written (No space left on device). The" in result.stderr
    assert "make room, and start the same command again with --resume." in result.stderr
    names = {path.name for path in (folder / "out").iterdir()}
    cats = {"cat.json", "cat.heatmap.npy", "cat.map.npy", "cat.overlay.png"}
    assert names == cats | set(before)
    assert all((folder / "out" / name).read_bytes() == old for name, old in before.items())


@pytest.mark.parametrize("target", ["0,2", "top:4"])
def test_a_name_may_be_that_of_a_class(folder, target):
    """`cat.class2.png`, explained alone, has the names that class 2 of `cat.png` would have."""
    Image.new("RGB", (30, 40), "green").save("cat.class2.png")
    assert explain("cat.class2.png").exit_code == 0
    result = explain("cat.png", "--target", target)
    if target == "0,2":
        assert "has results of another image under the name cat\n" in result.stderr
        assert _image_of(folder, "cat-2.class2") == "cat.png"
    assert result.exit_code == 0, result.output
    assert _image_of(folder, "cat.class2") == "cat.class2.png"
