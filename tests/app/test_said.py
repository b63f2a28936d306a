"""What `explain` says: errors in one line, warnings, exit codes, and whose error it is."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from captum_clustered.app import demo, errors
from captum_clustered.app import write as writing
from captum_clustered.clustering import KMeans
from captum_clustered.models import load
from command_line import MODEL, explain, one_error, run

# What is said


def test_a_bad_image_does_not_stop_the_others(folder):
    (folder / "cut.png").write_bytes((folder / "cat.png").read_bytes()[:1500])
    (folder / "text.png").write_text("hello")
    result = explain("cut.png", "cat.png", "gone.png", "text.png", "dog.png")
    assert result.exit_code == 2
    errors = [line for line in result.stderr.splitlines() if "error: " in line]
    assert len(errors) == 3
    for line, words in zip(
        errors,
        ["image cut.png cannot be read", "gone.png, which does not exist", "reads; got text.png"],
        strict=True,
    ):
        assert words in line
    assert "Traceback" not in result.output
    assert {path.name for path in (folder / "out").glob("*.json")} == {"cat.json", "dog.json"}
    assert [line.split(":")[0] for line in result.stdout.splitlines()] == ["cat.png", "dog.png"]


def test_an_image_that_the_model_refuses_does_not_stop_the_others(folder):
    Image.new("RGB", (30, 40), "white").save("white.png")
    result = explain("white.png", "dog.png", model="nets:fussy")
    assert result.exit_code == 2
    number = MODEL.splitlines().index('            raise RuntimeError("too bright\\nfor me")') + 1
    words = "error: white.png: `model` failed on an input of shape (1, 3, 20, 24) (RuntimeError: "
    assert f"{words}too bright; nets.py:{number}).\n" in result.stderr
    assert (folder / "out/dog.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer", "featurs"], "`layer` must be the name of a module in the model; got 'featurs"),
        (["--target", "4"], "`target` must be a class from 0 to 3, since the model has 4; got 4."),
        (["--target", "-1"], "since the model has 4; got -1."),
        (["--target", "cat"], "'predicted' for a model without class names; got 'cat'."),
        (["--checkpoint", "gone.pth"], "`checkpoint` must be a file; got gone.pth, which does not"),
        (["--checkpoint", "cat.png"], "torch.load reads with weights_only=True; got cat.png ("),
        (["--clusterer", "kmean"], "`clusterer` must be one of 'kmeans', 'cosine'"),
        (["--weighting", "dorp"], "`weighting` must be one of"),
        (["--target", "given"], "`target` must be predicted, an index or a name where no data"),
        (["--method", "clustered"], "`methods` must be among clustered-cam,"),
        (["--method", "nets:nett"], "`method` must name something in module nets; got 'nets:nett'"),
        (["--method", ","], "`methods` must have at least one entry; got none."),
        (["--mask-fill", "white"], "`mask_fill` must be one of 'own', 'black',"),
        (["--html", "--method", "grad-cam"], "`html` must come with a method whose groups can be"),
        (["--weights", "best"], "`weights` must be one of 'default', 'none'; got 'best'."),
        (["--device", "tpu"], "`device` must be one of auto, cpu, cuda; got 'tpu'."),
        (["--model", "nets:nett"], "something in module nets; got 'nets:nett'. Close are: net"),
        (["--model", "nots:net"], "'nots:net' cannot be imported (ModuleNotFoundError"),
        (["--model", "nets:dense"], "as many rows as examples (1); got (1, 12, 8, 10). Wrap it in"),
        (["--out", "cat.png"], "`out` must be a folder; got cat.png, where a file is."),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line_before_any_image(folder, options, words):
    result = explain("cat.png", "dog.png", *options)
    assert words in one_error(result)
    assert not (folder / "out").exists()


def test_a_layer_without_maps_is_one_line(folder):
    line = one_error(explain("cat.png", "--layer", "head"))
    assert line == (
        "cat.png: `layer` must give maps of two dimensions; its heat map has shape (1, 1). Choose "
        "another."
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_one_line(folder):
    assert one_error(explain("cat.png", "--device", "cuda")).startswith(
        "`device` cuda is not avail"
    )


def test_usage_errors_have_the_same_exit_code():
    for arguments in (["explain", "cat.png"], ["explain", "--model", "x"], ["nonsense"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert "Traceback" not in result.output


def test_progress_is_shown_for_several_images_only(folder):
    assert "image" not in explain("cat.png").stderr
    assert "2/2" in explain("cat.png", "dog.png").stderr


def test_a_warning_is_one_line_and_said_once(folder):
    (folder / "loud.py").write_text(
        "import warnings\nfrom nets import Net, transform\n"
        "class Loud(Net):\n"
        "    def forward(self, x):\n"
        "        warnings.warn('mind\\nthe gap')\n"
        "        return super().forward(x)\n"
        "def net():\n    return Loud(), transform\n"
    )
    code = "from captum_clustered.app.cli import main; main()"
    arguments = ["evaluate", "--data", ".", "--model", "loud:net", "--out", "out"]
    shell = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    said = [line for line in re.split(r"[\r\n]+", shell.stderr) if "warning" in line]
    assert [line.strip() for line in said] == ["captum-clustered: warning: mind the gap"]


# Whose error it is


def _raised(function):
    try:
        function()
    except Exception as error:
        return error


def test_only_what_our_doors_raise_is_the_users_error():
    assert errors.is_the_users(_raised(lambda: KMeans(0)))
    assert errors.is_the_users(_raised(lambda: load("nowhere:net")))
    assert errors.is_the_users(_raised(lambda: Path("no such file").read_text()))
    # the same types, but not by a statement of ours
    assert not errors.is_the_users(_raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert not errors.is_the_users(_raised(lambda: torch.zeros(2).view(3, 3)))
    assert not errors.is_the_users(_raised(lambda: KMeans(1)("features")))
    assert not errors.is_the_users(_raised(lambda: KMeans(no_such_argument=1)))
    assert not errors.is_the_users(_raised(lambda: int("x")))
    # in our own file, but by no `raise`
    assert not errors.is_the_users(_raised(lambda: writing.write_explanation(None, None)))
    assert not errors.is_the_users(_raised(lambda: demo.compare_methods(None, None, None)))


def test_a_fault_of_ours_prints_its_traceback_and_the_other_images_go_on(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    real = explaining.explain_image

    def faulty(explainer, path, **options):
        if path.name == "cat.png":
            return [][1]
        return real(explainer, path, **options)

    monkeypatch.setattr(explaining, "explain_image", faulty)
    result = explain("cat.png", "dog.png")
    assert result.exit_code == 1
    assert "Traceback (most recent call last)" in result.stderr
    assert "error: cat.png: IndexError: list index out of range\n" in result.stderr
    assert (folder / "out/dog.json").is_file()


def test_a_fault_before_any_image_ends_with_exit_code_1(folder, monkeypatch):
    from captum_clustered.app import explain as explaining

    monkeypatch.setattr(explaining, "prepare_explainer", lambda *_: {}["no key"])
    result = explain("cat.png")
    assert result.exit_code == 1
    assert isinstance(result.exception, KeyError)


def test_debug_prints_the_traceback_too(folder):
    for options in (["--layer", "featurs"], ["--layer", "head"]):
        plain, debug = explain("cat.png", *options), explain("cat.png", *options, "--debug")
        assert plain.exit_code == debug.exit_code == 2
        assert "Traceback" not in plain.stderr
        assert "Traceback (most recent call last)" in debug.stderr
        assert debug.stderr.endswith(plain.stderr)


def test_a_full_disk_has_a_remedy():
    full = OSError(28, "No space left on device", "out/config.json")
    line = errors.one_line(full)
    assert line.startswith("[Errno 28] No space left on device: 'out/config.json'. Make room, and")
    assert errors.one_line(OSError(13, "Permission denied")) == "[Errno 13] Permission denied"
