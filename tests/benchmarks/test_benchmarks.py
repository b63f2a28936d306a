"""The benchmarks: a smoke run of each command, and the rules that make their numbers honest."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional
from typer.testing import CliRunner

pytest.importorskip("jsonschema", reason="the extra benchmarks is not installed")
pytest.importorskip("pytorch_grad_cam", reason="the extra benchmarks is not installed")
pytest.importorskip("torchcam", reason="the extra benchmarks is not installed")

from benchmarks import (
    faithfulness,
    figures,
    memory,
    methods,
    pages,
    report,
    results,
    rows,
    runtime,
    scaling,
    sections,
    zoo,
)
from benchmarks.__main__ import app, main
from benchmarks.cases import Case, build
from benchmarks.floor import Flops, flops
from benchmarks.masked import masked_methods
from benchmarks.peers import output_of_input
from benchmarks.timing import counted, extrapolate, quartiles, rounds
from benchmarks.ultrasound import tables
from captum_clustered.evaluation.report import differences_csv, summary_csv
from captum_clustered.layers import TargetLayer
from captum_clustered.methods import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:::(torchcam|pytorch_grad_cam|ttach|cv2)")


def run(*words):
    outcome = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return outcome


# Commands


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with small results of the commands that need no data."""
    out = tmp_path_factory.mktemp("results")
    run(
        "runtime",
        "--networks",
        "tiny",
        "--clusters",
        "2,4",
        "--part",
        3,
        "--rounds",
        2,
        "--out",
        out,
    )
    run("memory", "--networks", "tiny", "--clusters", "1,4", "--out", out)
    return out


def test_runtime_can_be_asked_for_single_cases():
    assert runtime.cases(["resnet50/layer4"], "full") == {
        "resnet50/layer4/1": True,
        "resnet50/layer4/8": False,
    }
    assert list(runtime.cases(["resnet50/layer3/1", "vgg16/features/8"], "full")) == [
        "resnet50/layer3/1",
        "vgg16/features/8",
    ]
    with pytest.raises(ValueError, match=r"beginning of one of the cases resnet50/layer4/1, .*r"):
        runtime.cases(["resnet50/layer"], "quick")


def test_runtime_times_every_method_and_all_agree(made):
    rows = results.read(made)["runtime"]["rows"]
    own = [row for row in rows if row["case"] == "tiny/body/1"]
    assert {row["library"] for row in own} == {
        "torch", "captum", "captum_clustered", "pytorch-grad-cam", "torchcam",
    }  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}, [row for row in rows if row["status"] != "ok"]
    assert sum(row["error"] is not None for row in own) == (
        7 if find_spec("quantus") is None else 8
    )
    base = next(row for row in own if row["method"] == methods.BASE)
    assert base["ratio"]["median"] == 1
    assert all(len(row["rounds"]) == 2 for row in own)


def test_runtime_counts_images_and_marks_parts(made):
    rows = results.read(made)["runtime"]["rows"]
    own = {row["method"]: row for row in rows if row["case"] == "tiny/body/2"}
    assert own["LayerAblationCam"]["images"] == {"first": 2, "last": 16}
    theirs = own["pytorch-grad-cam AblationCAM"]
    assert theirs["part"] == {"done": 3, "of": 8, "fixed": 2}
    assert theirs["images"] == {"first": 2 * 2 + 2 * 8, "last": 2 * 2 + 2 * 8}
    assert own["forward pass"]["floor"]["ratio"] == 1


def test_masked_images_are_as_many_as_those_of_the_plain_passes():
    case = build("tiny", "body", 1)
    counts = {}
    for method in masked_methods(case, 8):
        with counted(case.model, case.inputs) as images:
            result = method.run()
        counts[method.name] = images.first
        assert method.error is None or method.error(result) < 1e-5
    plain, clustered = "8 forward passes, an image each", "ClusteredLayerScore contiguous K=8"
    assert counts[plain] == 8
    assert counts["8 forward passes, 6 images each, channels-last"] == 8
    # the image itself, a mask alone, and three images that go along as a check
    assert counts[clustered] <= 8 + 5
    assert counts["insertion and deletion in 8 steps"] == 2 * (8 + 5)
    # both share the plain pass and the one in which nothing is left of the image
    assert counts["torchcam DeletionInsertionMetric"] == 1 + 2 * 8 - 1


def test_pixel_flipping_is_deletion():
    pytest.importorskip("quantus", reason="it is no dependency")
    case = build("tiny", "body", 2)
    found = {method.library: method for method in masked_methods(case, 8)}
    assert found["quantus"].name == "quantus PixelFlipping in 24 steps"
    assert found["quantus"].error(found["quantus"].run()) < 1e-5


def test_the_core_cases_stand_beside_captum_with_their_operations(tmp_path):
    shown = run(
        "runtime", "--cases", "core", "--device", "cpu", "--networks", "tiny",
        "--clusters", "2,4", "--part", 3, "--rounds", 2, "--out", tmp_path,
    ).output  # fmt: skip
    assert not (tmp_path / "runtime.json").exists()  # the long run's results stay
    rows = results.read(tmp_path)["core"]["rows"]
    assert {row["library"] for row in rows} == {"torch", "captum", "captum_clustered"}
    profiles = {row["method"]: row["profile"] for row in rows if row["profile"]}
    assert set(profiles) == {methods.BASE, "ClusteredLayerAblation kmeans K=4"}
    for name, lines in profiles.items():
        assert any("convolution" in line["name"] for line in lines)
        assert f"Where {name} spends its time" in shown
    assert len(runtime.cases(None, "core")) < len(runtime.cases(None, "full"))


def test_what_cannot_be_measured_is_said(tmp_path, capsys, monkeypatch):
    def said(*words):
        monkeypatch.setattr("sys.argv", ["benchmarks", *map(str, words), "--out", str(tmp_path)])
        with pytest.raises(SystemExit):
            main()
        return capsys.readouterr().err

    assert "`device` must be one that torch can use here" in said("runtime", "--device", "abacus")
    assert "`cases` must be one of quick, core, full; got 'all'" in said(
        "runtime", "--cases", "all"
    )


def test_memory_does_not_grow_with_the_groups_and_is_the_same_again(made):
    rows = results.read(made)["memory"]["rows"]
    again = memory.measure("tiny/body/1", (1, 4))
    assert [row["peak_bytes"] for row in rows if row["case"] == "tiny/body/1"] == [
        row["peak_bytes"] for row in again
    ]
    assert all(row["status"] == "ok" for row in rows)


def test_scaling_has_floors_and_fits():
    plan = scaling.Plan(rounds=2).tiny()
    rows = [
        {"case": key, **row}
        for key in ("clusters/body", "channels", "batch", "depth")
        for row in scaling.measure(key, plan)
    ]
    assert all(row["floor"]["flops"] > row["floor"]["forward_flops"] for row in rows)
    fits = scaling.fits(rows)["fits"]
    assert [fit["axis"] for fit in fits] == ["clusters/body", "channels", "batch", "depth"]
    found = {"benchmark": "scaling", "settings": {}, "machine": results.machine(), "rows": rows}
    results.check({**found, "fits": fits})


def test_fits_by_hand():
    rows = [
        {"case": "a", "axis": "batch", "network": "n", "method": "m", "value": value,
         "seconds": {"median": seconds}}
        for value, seconds in ((1, 2.0), (2, 4.0), (3, 3.0))
    ]  # fmt: skip
    (fit,) = scaling.fits(rows)["fits"]
    assert fit["seconds_per_unit"] == pytest.approx(0.5)
    assert fit["fixed_seconds"] == pytest.approx(2.0)
    assert fit["r2"] == pytest.approx(0.25)  # 0.5 of a variance of 2
    constant = [{**row, "seconds": {"median": 2.0}} for row in rows]
    (fit,) = scaling.fits(constant)["fits"]
    assert (fit["exponent"], fit["seconds_per_unit"], fit["r2"]) == (0, 0, None)


def test_scaling_over_processes():
    plan = scaling.Plan(processes=(2,), rounds=1).tiny()
    (row,) = scaling.measure("processes", scaling.replace(plan, processes=(2,), images=2))
    assert row["value"] == 2
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"]["median"])


def test_scaling_over_rows_on_disk():
    plan = scaling.Plan().tiny()
    found = [{"case": "rows/python", **row} for row in scaling.measure("rows/python", plan)]
    assert [row["value"] for row in found] == [100, 1000]
    assert list(found[0]["parts"]) == ["write", "look up", "merge", "read", "summarise"]
    assert all(row["peak_bytes"] > 2**20 for row in found)
    settings = {"full": False}
    record = {"benchmark": "scaling", "settings": settings, "machine": results.machine()}
    record["rows"] = found
    results.check({**record, **scaling.fits(found)})
    assert "### Rows on disk, read by python" in report.page({"scaling": {**record, "fits": []}})


@pytest.mark.skipif(find_spec("duckdb") is None, reason="DuckDB is not installed")
def test_simulated_rows_give_the_same_table_by_either_way(tmp_path):
    tables = []
    for engine in (True, False):
        folder = tmp_path / str(engine)
        folder.mkdir()
        grid = rows.simulate(folder, 12)
        assert len(list(folder.iterdir())) == 2
        found, _ = rows.summarise(folder, grid, engine)
        assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
        assert [line.images for line in found.lines] == [12] * 20
        assert len(found.differences) == 28
        assert found.lines[1].intervals["pic"].method == "wilson"
        tables.append([summary_csv(found), differences_csv(found)])
    assert tables[0] == tables[1]


def test_zoo_compares_two_layers(tmp_path):
    run("zoo", "--only", "squeezenet1_1", "--out", tmp_path)
    rows = results.read(tmp_path)["zoo"]["rows"]
    assert [(row["place"], row["status"], row["replay"]) for row in rows] == [
        ("last", "ok", "suffix"),
        ("inner", "ok", "suffix"),
    ]


def test_zoo_says_why_a_network_does_not_run():
    rows = zoo.measure_network(
        nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(2, 3, 4), {}
    )
    assert [row["status"] for row in rows] == ["failed", "failed"]
    assert rows[0]["reason"].startswith("ValueError: `layer` could not be found")


def test_faithfulness_judges_the_other_libraries_maps(tmp_path, monkeypatch):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(2):
        Image.radial_gradient("L").rotate(90 * number).convert("RGB").save(folder / f"{number}.png")
    monkeypatch.setitem(__import__("sys").modules, "tiny_for_benchmarks", _Models)
    out = tmp_path / "out"
    run(
        "faithfulness", folder, "--model", "tiny_for_benchmarks:make", "--clusters", 2,
        "--methods", "clustered-cam,grad-cam,torchcam-grad-cam,pytorch-grad-cam",
        "--metrics", "adc", "--out", out,
    )  # fmt: skip
    rows = results.read(out)["faithfulness"]["rows"]
    by_method = {row["method"]: row for row in rows}
    assert all(row["failed"] == 0 for row in rows)
    assert by_method["fake-cam"]["control"]
    mine, theirs = (by_method[name]["metrics"]["adc"] for name in ("grad-cam", "torchcam-grad-cam"))
    assert theirs["mean"] == pytest.approx(mine["mean"], abs=1e-3)
    assert str(tmp_path) not in (out / "faithfulness.json").read_text()
    assert "torchcam-grad-cam" not in METHODS


class _Models:
    @staticmethod
    def make():
        from torchvision import transforms

        steps = [transforms.Resize((16, 16)), transforms.ToTensor()]
        normal = transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        return build("tiny", "body", 1).model, transforms.Compose([*steps, normal])


def test_report_shows_every_row(made, tmp_path):
    run("report", "--results", made, "--docs", tmp_path)
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    found = results.read(made)
    for name in ("runtime", "memory"):
        assert all(f"| {row['method']}" in page for row in found[name]["rows"])
        assert (tmp_path / "images" / f"benchmarks-{name}.png").stat().st_size > 1000
    assert "\u2020" in page
    assert page == report.page(found, ["runtime", "memory"])


def test_report_keeps_losses_and_failures(made):
    found = json.loads((made / "runtime.json").read_text(encoding="utf-8"))
    found["rows"][3].update(status="failed", reason="RuntimeError: broken", seconds=None)
    found["rows"][4].update(status="unequal", same_as="another", error=0.5)
    page = report.page({"runtime": found})
    assert f"| {found['rows'][3]['method']} | failed |" in page
    assert f"{found['rows'][3]['method']} failed: RuntimeError: broken" in page
    assert f"{found['rows'][4]['method']} \u2260 another: 0.5" in page


def test_several_cases_are_first_shown_in_one_table(made):
    found = json.loads((made / "runtime.json").read_text(encoding="utf-8"))
    one = next(rows for _, rows in sections.grouped(found["rows"]))
    number = found["settings"]["clusters"][len(found["settings"]["clusters"]) // 2]
    ours = next(r for r in one if r["method"] == f"ClusteredLayerAblation kmeans K={number}")
    exact = next(r for r in one if r["method"] == "LayerAblationCam")
    ours["ratio"]["median"] = 1.234
    exact.update(status="failed", reason="RuntimeError: broken")
    other = [{**r, "case": "other/body/8"} for r in one if r["method"] == "forward pass"]
    page = report.page({"runtime": {**found, "rows": [*one, *other]}})
    network, layer, batch = one[0]["case"].split("/")
    start = f"| {network} | `{layer}` | {batch} | {ours['ratio']['to']} | 1.23 | failed |"
    assert start in page
    assert "| other | `body` | 8 | " in page
    alone = report.page({"runtime": {**found, "rows": one}})
    assert "All cases" in page
    assert "All cases" not in alone


def test_the_short_table_has_the_cases_of_resnet50(made):
    found = results.read(made)
    assert report.short({}) == {}
    rows = [dict(row, case=report.SHORT[0]) for row in found["runtime"]["rows"][:3]]
    found = {"runtime": {**found["runtime"], "rows": rows}}
    table = report.short(found)["runtime"]
    for row in rows:
        assert row["status"] != "ok" or f"| {row['method']}" in table
    assert "| batch 1 | batch 8 |" in table


def test_only_a_file_is_renewed(tmp_path):
    page = tmp_path / "README.md"
    page.write_text("a <!-- table x -->old<!-- end --> b", encoding="utf-8")
    pages.renew(page, {"x": "new"})
    assert page.read_text(encoding="utf-8") == "a <!-- table x -->\n\nnew\n\n<!-- end --> b"
    for other in (tmp_path, tmp_path / "gone.md"):
        with pytest.raises(ValueError, match=r"`page` must be a Markdown file; .* is none"):
            pages.renew(other, {"x": "new"})


def test_the_pages_are_made_from_the_committed_results():
    root = Path(__file__).parents[2]
    found = results.read(root / "benchmarks" / "results")
    kept = (root / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert report.page(found, list(figures.FIGURES)) == kept
    ultrasound = (root / "docs" / "ultrasound.md").read_text(encoding="utf-8")
    for path in (root / "benchmarks" / "results" / "ultrasound").glob("*.json"):
        made = tables.markdown(json.loads(path.read_text(encoding="utf-8")))
        shown = [name for name in made if f"<!-- table {name} -->" in ultrasound]
        assert any(name.endswith("networks") for name in shown)
        assert pages.document(ultrasound, made) == ultrasound


def test_the_fits_are_those_of_the_committed_rows():
    found = results.read(Path(__file__).parents[2] / "benchmarks" / "results")["scaling"]
    assert scaling.fits(found["rows"])["fits"] == [pytest.approx(fit) for fit in found["fits"]]


def test_report_needs_results(tmp_path):
    with pytest.raises(ValueError, match=r"`results` must be a folder with results; .* has none"):
        report.write(tmp_path, tmp_path)


def test_the_program_says_an_error_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(
        "sys.argv", ["benchmarks", "runtime", "--networks", "x", "--out", str(tmp_path)]
    )
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "`networks` must be among resnet18" in capsys.readouterr().err


# Rows that survive


def test_a_killed_run_goes_on(tmp_path):
    done = []

    def measure(case):
        if case == "b" and "b" not in done:
            done.append("b")
            raise KeyboardInterrupt
        done.append(case)
        return [_memory_row()]

    arguments = ("memory", tmp_path, {"full": False}, ["a", "b", "c"], measure, lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        results.collect(*arguments)
    partial = tmp_path / "memory.jsonl"
    partial.write_text(partial.read_text() + '{"case": "b", "ro')  # torn
    results.collect(*arguments)
    assert done == ["a", "b", "b", "c"]
    assert [row["case"] for row in results.read(tmp_path)["memory"]["rows"]] == ["a", "b", "c"]
    assert not partial.exists()


def test_faithfulness_needs_data_of_different_names():
    with pytest.raises(ValueError, match=r"`data` must be folders of different names; got x, x"):
        faithfulness.Plan(data=(Path("a/x"), Path("b/x")), model="resnet18")


def test_rows_of_other_settings_are_refused(tmp_path):
    def fail(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.collect("memory", tmp_path, {"full": False}, ["a"], fail, lambda _: None)
    with pytest.raises(ValueError, match="`out` must be a folder without rows of another settings"):
        results.collect("memory", tmp_path, {"full": True}, ["a"], fail, lambda _: None)


def _memory_row():
    row = memory.measure("tiny/body/1", (2,))[0]
    return {**row, "peak_bytes": 1}


def test_the_schema_refuses_what_does_not_fit():
    found = {"benchmark": "memory", "settings": {}, "machine": results.machine(), "rows": [{}]}
    with pytest.raises(ValueError, match=r"results must fit schema.json; at \$\.rows\[0\]"):
        results.check(found)


# How time is measured


def test_rounds_take_turns_and_stop_at_the_budget():
    now = [0.0]
    order = []

    def work(name, seconds):
        order.append(name)
        now[0] += seconds

    methods = {"a": lambda: work("a", 1.0), "b": lambda: work("b", 2.0)}
    found = rounds(methods, repeats=10, budget=4.0, clock=lambda: now[0])
    assert "".join(order) == "ababababab"  # the budget begins with the fourth round
    assert found == {"a": [1.0] * 5, "b": [2.0] * 5}


def test_what_is_much_slower_is_measured_in_the_first_rounds_only():
    now = [0.0]

    def work(seconds):
        now[0] += seconds

    methods = {"a": lambda: work(1.0), "b": lambda: work(20.0), "c": lambda: work(21.0)}
    found = rounds(methods, repeats=6, budget=1e3, clock=lambda: now[0])
    assert {name: len(taken) for name, taken in found.items()} == {"a": 6, "b": 6, "c": 3}


def test_the_device_is_waited_for_inside_the_timed_region(monkeypatch):
    order = []
    monkeypatch.setattr("benchmarks.timing.synchronize", lambda: order.append("wait"))

    def clock():
        order.append("clock")
        return 0.0

    rounds({"a": lambda: order.append("work")}, repeats=1, budget=1.0, clock=clock)
    assert order[1:] == ["wait", "clock", "work", "wait", "clock"]


def test_quartiles_of_one_and_of_many():
    assert quartiles([2.0]).low == 2.0
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]).high == 4.0


def test_extrapolation_leaves_out_what_is_done_once():
    assert extrapolate(5.0, forward=1.0, done=3, of=30, fixed=2) == 32.0
    assert extrapolate(5.0, forward=9.0, done=3, of=30, fixed=2) == 5.0


def test_images_are_counted_through_vmap_and_through_stubs():
    case = build("tiny", "body", 2)
    labels = torch.tensor([[0, 0, 1, 1, 2, 2, 2, 2]]).expand(2, -1)
    cam = methods.ClusteredLayerAblation(case.model, case.layer, clusterer=labels)
    with counted(case.model, case.inputs) as counts:
        cam.attribute(case.inputs, target=0)
    # one pass of all, then each of three groups, and a copy that stays whole to compare with
    assert (counts.first, counts.last) == (2, 2 + 2 * 4)
    cam = methods.ClusteredLayerAblation(case.model, case.layer, clusterer=labels, replay="full")
    with counted(case.model, case.inputs) as counts:
        cam.attribute(case.inputs, target=0)
    # the plain pass, one group alone, three groups and the three copies that go along as a check
    assert (counts.first, counts.last) == (2 * 8, 2 * 8)
    assert all("forward" not in module.__dict__ for module in case.model.modules())


def test_the_floor_counts_what_lies_behind_the_layer():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 5)).eval()
    case = Case(model, torch.rand(2, 1, 2, 2), 0, TargetLayer(model[1], "1"), 3)
    behind = 2 * 2 * 3 * 5
    assert flops(case) == Flops(2 * 2 * (4 * 3 + 3 * 5), behind, summed=behind)


class Block(nn.Module):
    """Two sums over the layer's maps, one of each map alone, and one of what follows."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 4, 1)
        self.one, self.other = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        self.alone, self.last = nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        maps = functional.relu(self.layer(x))
        return (self.last(self.one(maps) + self.other(maps)) + self.alone(maps)).mean((2, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

    def forward(self, x):
        tokens = self.layer(x)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


@pytest.mark.parametrize(
    ("model", "shape", "summed"),
    [(Block(), (2, 1, 5, 5), 2 * 2 * 25 * 2 * 4 * 3), (Attention(), (2, 3, 4), 2 * 6 * 4 * 12)],
)
def test_the_floor_counts_sums_over_the_layers_maps_once(model, shape, summed):
    model = model.eval()
    case = Case(model, torch.rand(shape), 0, TargetLayer(model.layer, "layer"), 4)
    found = flops(case)
    assert found.summed == summed < found.behind
    assert found.floor(3) == found.forward + 3 * (found.behind - summed) + summed


# Equality before time


def test_a_method_that_differs_or_fails_is_marked(monkeypatch):
    def two(case, *_):
        yield methods.Method(methods.FORWARD, "torch", lambda: case.model(case.inputs))
        yield methods.Method(methods.BASE, "captum", lambda: 0, "the other", lambda _: 0.5)
        yield methods.Method("broken", "x", lambda: 1 / 0)

    monkeypatch.setattr(runtime, "methods_of", two)
    rows = runtime.measure("tiny/body/1", False, repeats=1)
    assert [row["status"] for row in rows] == ["ok", "unequal", "failed"]
    assert rows[2]["reason"] == "ZeroDivisionError: division by zero"
    assert rows[1]["ratio"]["to"] == methods.FORWARD  # what differs is no base


def test_the_check_of_captum_sees_another_mask():
    case = build("tiny", "body", 1)
    found = {method.name: method for method in methods.methods_of(case, (2,), 8)}
    method = found["captum LayerFeatureAblation channels"]
    assert method.error(method.run()) < 1e-4
    assert method.error(-method.run()) > 1


def test_a_layers_input_as_an_output():
    model = build("tiny", "body", 1).model
    seen = []
    with output_of_input(model, model.body[1]) as before:
        before.register_forward_hook(lambda *_: seen.append(1))
        model(torch.rand(1, 3, 16, 16))
    assert seen == [1]
    assert isinstance(model.body[1], nn.ReLU)


def test_every_method_of_a_full_run_is_known():
    assert set(faithfulness.FULL) <= {*METHODS, *faithfulness.PEERS}
    assert not set(faithfulness.PEERS) & set(METHODS)
