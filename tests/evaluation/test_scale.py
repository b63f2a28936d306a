"""Many rows: by columns, by an engine or without, the same table; what is kept in memory."""

import importlib.util
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captum_clustered.evaluation import reading, records, report, resampling
from captum_clustered.evaluation.resampling import Resampled, case_numbers
from captum_clustered.evaluation.rows import Grid, Variant, key_of
from captum_clustered.evaluation.table import FAULTS, Table
from captum_clustered.statistics import mean_interval, paired_difference, rate_interval

ENGINE = pytest.mark.skipif(
    importlib.util.find_spec("duckdb") is None, reason="DuckDB is not installed"
)
VARIANTS = [
    Variant("ablation-cam", None, "drop"),
    Variant("clustered-cam", 4, "drop"),
    Variant("random-groups", 4, "drop", control=True),
]
METRICS = ["adc", "pic", "iou", 'it\'s "mine"']
COLUMNS = [
    report.Column("adc", "ADC"),
    report.Column("pic", "PIC", is_rate=True),
    report.Column("iou", "IoU", needs_object=True),
    report.Column('it\'s "mine"', "mine", is_rate=True),
]


def simulated(n, cases, seed=0):
    """Rows with all that may happen to one: failures, faults, missing numbers, curves."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        case = None if cases is None or rng.random() < 0.2 else f"case {rng.integers(cases)}"
        for variant in VARIANTS:
            row = {
                "image": f"ä '{i}'.png",
                "case": case,
                "label": None,
                "method": variant.method,
                "clusters": variant.clusters,
                "weighting": variant.weighting,
            }
            if rng.random() < 0.1:
                row |= {"status": "failed", "reason": f"bad luck {i}", "place": "a.py:1"}
            else:
                has_object = rng.random() < 0.8
                row |= {
                    "status": "ok",
                    "reason": None,
                    "adc": rng.normal(30, 20),
                    "pic": 100.0 * (rng.random() < 0.3),
                    "iou": rng.random() if has_object else math.nan,
                    'it\'s "mine"': float(rng.integers(2)) * 100,
                    "original_score": 0.5,
                    "map": rng.choice(["ok", "ok", *FAULTS[:3]]).item(),
                    "heat": {"shape": [1, 1], "bytes": "AA=="},
                    "conventions": {"score": "softmax"},
                    "insertion_curve": rng.random(5).tolist(),
                    "seconds": rng.random(),
                    "object": "inside" if has_object else "cut_off",
                }
            rows.append(row)
    return rows


def written(folder, rows, processes=1):
    for rank in range(processes):
        with records.Rows(folder, rank) as file:
            for row in rows[rank::processes]:
                file.append(row)
    return folder / "rows.jsonl"


def grid_of(rows):
    return Grid(list(dict.fromkeys(row["image"] for row in rows)), VARIANTS)


def assert_same(found, expected):
    assert (found.n, found.n_cases, found.method) == (expected.n, expected.n_cases, expected.method)
    ends = [(one.estimate, one.low, one.high) for one in (found, expected)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-11, nan_ok=True)


# One bootstrap for all


@pytest.mark.parametrize("method", ["percentile", "normal"])
@pytest.mark.parametrize("cases", [None, 9, 1])
def test_the_report_has_the_intervals_of_each_number_alone(cases, method, monkeypatch):
    if method == "normal":
        monkeypatch.setattr(resampling, "MANY", 0)  # what holds from very many cases on
    rows = simulated(40, cases)
    grid = grid_of(rows)
    by_key = {(r["image"], r["method"], r["clusters"], r["weighting"]): r for r in rows}
    found = report.make_report(by_key, grid.images, VARIANTS, COLUMNS)

    def number(image, variant, name):
        row = by_key[key_of(image, variant)]
        value = row[name] if row["status"] == "ok" else None
        return None if value is None or math.isnan(value) else value

    def case(images):
        given = [by_key[key_of(image, VARIANTS[0])]["case"] for image in images]
        if all(one is None for one in given):
            return None
        return [
            (one,) if one is not None else image for one, image in zip(given, images, strict=True)
        ]

    for line in found.lines:
        for column in COLUMNS:
            known = [i for i in grid.images if number(i, line.variant, column.name) is not None]
            values = [number(i, line.variant, column.name) for i in known]
            wilson = column.is_rate and case(known) is None
            alone = rate_interval if wilson else partial(mean_interval, method=method)
            assert_same(line.intervals[column.name], alone(values, cases=case(known)))
    assert [(d.first.method, d.second.method) for d in found.differences] == [
        ("clustered-cam", "ablation-cam"),
        ("clustered-cam", "random-groups"),
        ("random-groups", "ablation-cam"),
    ]
    for pair in found.differences:
        for column in COLUMNS:
            both = [
                [number(i, variant, column.name) for variant in (pair.first, pair.second)]
                for i in grid.images
            ]
            known = [k for k, numbers in enumerate(both) if None not in numbers]
            ours, theirs = zip(*(both[k] for k in known), strict=True)
            those = case([grid.images[k] for k in known])
            expected = paired_difference(ours, theirs, cases=those, method=method)
            assert_same(pair.intervals[column.name], expected)


def test_an_interval_that_touches_zero_does_not_leave_it_by_rounding():
    first = np.array([0.1, 0.2, 0.3, 0.7, 0.9, 0.4, 0.1])
    second = first.copy()
    second[0] -= 0.05  # most draws without this image differ by nothing
    known = np.ones(len(first), bool)
    means = Resampled(None)
    means.add("a", first, known)
    means.add("b", second, known)
    means.draw()
    assert means.ends(["a", "b"], first - second).low == 0


def test_cases_that_nobody_shares_are_images():
    assert case_numbers([None, None]) is None
    values, known = np.arange(5.0), np.ones(5, bool)
    alone, cases = Resampled(None), Resampled(case_numbers(["a", None, "b", None, "c"]))
    for means in (alone, cases):
        means.add("a", values, known)
        means.draw()
    assert alone.ends(["a"], values) == cases.ends(["a"], values)


# By an engine or without


@ENGINE
@pytest.mark.parametrize("cases", [None, 7])
def test_the_engine_and_python_read_the_same_table(tmp_path, monkeypatch, cases):
    folder = tmp_path / "it's [a] *folder?"
    folder.mkdir()
    rows = simulated(50, cases)
    path = written(folder, rows)
    for row in rows[::5]:  # a number of groups may be chosen for each image
        row["clusters"] = "auto" if row["clusters"] else None
    path.unlink()
    written(folder, rows)
    # some images and variants of the file only, in another order, and one that it does not have
    more = Variant("clustered-cam", "auto", "drop")
    grid = Grid([*grid_of(rows).images[5:40][::-1], "none.png"], [more, *VARIANTS[::-1]])
    monkeypatch.setattr(Table, "from_rows", None)
    found = reading.read_table(path, grid, METRICS, ["insertion"])
    monkeypatch.undo()
    expected = Table.from_rows(rows, grid, METRICS, ["insertion"])
    assert np.array_equal(found.state, expected.state)
    assert (found.state == -1).any()
    assert (found.state[0] != 0).any()
    for name in (*METRICS, "seconds"):
        assert np.array_equal(found.values[name], expected.values[name], equal_nan=True), name
    for fault in FAULTS:
        assert found.faults[fault].tolist() == expected.faults[fault].tolist()
    assert found.cases == expected.cases
    assert found.failures == expected.failures
    assert found.failures[0][1].startswith("bad luck")
    np.testing.assert_allclose(found.curves["insertion"], expected.curves["insertion"])
    tables = [
        report.make_report(table, grid.images, grid.variants, COLUMNS)
        for table in (found, expected)
    ]
    for form in (report.summary_csv, report.differences_csv, report.summary_md):
        assert form(tables[0]) == form(tables[1])


@ENGINE
def test_a_metric_may_have_the_name_of_a_column_of_the_engine(tmp_path, monkeypatch):
    rows = simulated(6, None)
    names = ["ok", "i", "v", "word_map"]
    for number, row in enumerate(rows):
        row.update({name: 10.0 * number + k for k, name in enumerate(names)})
    path = written(tmp_path, rows)
    expected = Table.from_rows(rows, grid_of(rows), names)
    monkeypatch.setattr(Table, "from_rows", None)
    found = reading.read_table(path, grid_of(rows), names)
    for name in names:
        assert np.array_equal(found.values[name], expected.values[name], equal_nan=True), name


@ENGINE
def test_what_the_engine_cannot_read_python_does(tmp_path):
    rows = simulated(4, None)
    rows[0]["image"] = "caf\udce9.png"  # a name that is not UTF-8
    path = written(tmp_path, rows)
    table = reading.read_table(path, grid_of(rows), METRICS)
    assert (table.state != 0).sum() == len(rows)
    path.write_bytes(path.read_bytes() + b'{"image": 3}\n')
    with pytest.raises(ValueError, match=r"line 13 is none"):
        reading.read_table(path, grid_of(rows), METRICS)


def test_without_the_engine_python_reads_line_by_line(tmp_path, monkeypatch):
    rows = simulated(6, None)
    path = written(tmp_path, rows)
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(reading, "_read_by_engine", None)
    table = reading.read_table(path, grid_of(rows), METRICS, ["insertion"])
    assert (table.state != 0).all()
    assert table.curves["insertion"].shape == (3, 5)


# What is there


def test_what_is_done_is_looked_up_without_the_rows(tmp_path):
    rows = simulated(10, None)
    written(tmp_path, rows[:20], processes=3)
    grid = grid_of(rows)
    done = records.find_done(tmp_path, grid, ["adc", "iou"])
    for row in rows:
        key = row["image"], row["method"], row["clusters"], row["weighting"]
        # null is a number that was looked for, and a failed row is tried again only if asked
        assert (key in done) == (row in rows[:20])
    assert len(done) == 20
    assert done.judged == {row["image"] for row in rows[:20] if row["status"] == "ok"}
    assert ("other.png", *key[1:]) not in done
    failed = sum(row["status"] == "failed" for row in rows[:20])
    assert len(records.find_done(tmp_path, grid, ["adc", "complement"])) == failed
    with records.Rows(tmp_path) as file:  # a metric that was added
        for row in rows[:2]:
            file.append({**row, "complement": 1.0, "adc": 99.0, "original_score": 0.5})
    assert len(records.find_done(tmp_path, grid, ["adc", "complement"])) >= failed


def test_a_text_like_the_end_of_the_numbers_does_not_end_them(tmp_path):
    (row, *_) = (row for row in simulated(9, None) if row["status"] == "ok")
    row = {**row, "image": 'a", "original_score": .png', "case": 'x", "original_score": 1'}
    written(tmp_path, [row])
    done = records.find_done(tmp_path, grid_of([row]), METRICS)
    assert done.there.sum() == 1


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(12)), processes=st.integers(1, 3), again=st.integers(0, 3))
def test_files_are_merged_in_the_order_of_the_plan(tmp_path_factory, order, processes, again):
    folder = tmp_path_factory.mktemp("rows")
    rows = simulated(4, None)
    grid = Grid(["ä '2'.png", "ä '0'.png"], VARIANTS[:2])
    more = [{**row, "late": 1.0} for row in rows[:again] if row["status"] == "ok"]
    written(folder, [rows[k] for k in order], processes)
    written(folder, more)
    expected = records.read_rows(folder)
    records.merge(folder, grid)
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
    assert records.read_rows(folder) == expected
    lines = (folder / "rows.jsonl").read_bytes().splitlines()
    assert len(lines) == len(rows)
    keys = [(row["image"], row["method"]) for row in map(json.loads, lines)]
    # the plan first, then what is not of it
    assert keys[:4] == [(i, v.method) for i in grid.images for v in grid.variants]
    # all numbers stand where they are looked for
    done = records.find_done(folder, grid_of(rows), ["adc"])
    assert len(done) == len(rows)


def test_a_file_in_order_is_left_as_it_is(tmp_path):
    rows = simulated(3, None)
    path = written(tmp_path, rows)
    before = path.stat().st_ino
    records.merge(tmp_path, grid_of(rows))
    assert path.stat().st_ino == before
    assert isinstance(path, Path)
