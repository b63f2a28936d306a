"""The pages: whole in one file, right where it counts, usable in a browser."""

import base64
import html
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from captum_clustered import ClusteredLayerAblation
from captum_clustered.evaluation import Settings, evaluate
from captum_clustered.evaluation.pages import write
from captum_clustered.evaluation.report import Column, Difference, Report
from captum_clustered.evaluation.rows import Variant
from captum_clustered.models import load
from captum_clustered.page import environment
from captum_clustered.page.image import ClassScore, image_page, packed
from captum_clustered.statistics import Interval

PICTURE = np.linspace(0, 1, 6 * 8 * 3).reshape(6, 8, 3)


def _model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 24, 2))
    return model.eval()


def _levels():
    model, x = _model(), torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    return {
        k: ClusteredLayerAblation(model, model[1], n_clusters=k).explain(x, target=1)
        for k in (2, 4)
    }


def _page(**settings):
    given = {
        "title": "cat <b>& dog",
        "subtitle": "class (1), probability 0.70",
        "classes": [ClassScore(1, "</script><b>", 2.0, 0.7, True), ClassScore(0, None, 1.0, 0.3)],
        "settings": {"layer": "1", "versions": {"torch": "2"}},
    }
    return image_page(PICTURE, _levels(), 4, **{**given, **settings})


class _Reader(HTMLParser):
    """Every address in a page, every element that carries one, and the texts of elements."""

    def __init__(self, page):
        super().__init__()
        self.addresses, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]


def _data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))


def test_a_page_is_whole_in_itself():
    reader = _Reader(_page())
    assert reader.addresses
    assert all(address.startswith("data:") for address in reader.addresses)
    assert not {"link", "iframe", "object", "embed"} & (set(reader.tags) - {"link"})
    assert reader.tags.count("link") == 1  # the empty icon
    assert "default-src 'none'" in _page()


def test_what_is_put_in_is_escaped():
    page = _page()
    assert "cat &lt;b&gt;&amp; dog" in page
    assert "&lt;/script&gt;&lt;b&gt;" in page
    assert "<b>" not in page
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1)
    assert "<" not in data


def test_the_data_are_those_of_the_results():
    levels = _levels()
    data = _data(_page())
    assert [level["asked"] for level in data["levels"]] == [2, 4]
    assert data["chosen"] == 1
    result = levels[4]
    shown = data["levels"][1]
    assert shown["score"] == pytest.approx(float(result.scores[0]))
    assert sorted(m for group in shown["groups"] for m in group["members"]) == [
        m for m in range(9) if result.labels[0, m] >= 0
    ]
    for group in shown["groups"]:
        label = int(result.labels[0, group["members"][0]])
        drop = result.scores[0] - result.ablated_scores[0, label]
        assert group["drop"] == pytest.approx(float(drop), abs=1e-6)
        assert group["without"] == pytest.approx(float(result.ablated_scores[0, label]))


def test_maps_are_packed_with_their_range():
    grid = torch.tensor([[0.0, 1.0], [2.0, 4.0]])
    found = packed(grid, (4, 4))
    assert found["grid"] == [1, 2, 2]
    assert found["range"] == [0.0, 4.0]
    assert packed(torch.tensor([[torch.nan, 1.0]]), (1, 2))["finite"] is False


def test_a_level_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"`chosen` must be one of \[2, 4\]; got 3"):
        image_page(PICTURE, _levels(), 3, title="", subtitle="")


def test_a_template_reads_entries_of_a_dict_whatever_their_names_are():
    jinja2 = pytest.importorskip("jinja2", reason="needs jinja2")
    entries = {"clear": 1, "items": 2, "size": 3}
    template = environment().from_string("{{ value.clear }} {{ value.items }} {{ value.size }}")
    assert template.render(value=entries) == "1 2 3"
    with pytest.raises(jinja2.UndefinedError, match="has no attribute 'keys'"):
        environment().from_string("{{ value.keys }}").render(value=entries)


def test_the_page_says_what_each_group_holds_and_switches_between_classes():
    pages = [("daisy (1)", "a.html", True), ("tulip <2>", "a b.html", False)]
    text = image_page(PICTURE, _levels(), 4, title="a.jpg", subtitle="daisy", pages=pages)
    assert '<strong aria-current="page">daisy (1)</strong>' in text
    assert '<a href="a%20b.html">tulip &lt;2&gt;</a>' in text
    assert "<h1>a.jpg</h1>" in text
    one = image_page(PICTURE, _levels(), 4, title="a.jpg", subtitle="daisy", pages=pages[:1])
    assert "aria-current" not in one


def test_a_colour_map_and_its_share_can_be_chosen():
    text = image_page(PICTURE, _levels(), 4, title="", subtitle="", cmap="gray", alpha=0.25)
    data = _data(text)
    assert data["opacity"] == 25
    table = np.frombuffer(base64.b64decode(data["colours"]), np.uint8).reshape(256, 3)
    assert (table == np.arange(256)[:, None]).all()


# An evaluation


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    images = folder / "images"
    images.mkdir()
    draw = np.random.default_rng(0)
    for name in ("a b.png", "c&d.png", "e.png"):
        pixels = draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / name)
    settings = Settings(
        data=images,
        model="efficientnet-lite0",
        out=folder / "out",
        methods=("clustered-cam", "ablation-cam", "grad-cam"),
        clusters=(4,),
        weights="none",
        html=True,
    )
    outcome = evaluate(settings, lambda line: None)
    assert folder / "out" / "report.html" in outcome.files
    return folder / "out"


def test_the_report_links_a_page_for_each_image_and_each_links_back(evaluated):
    pages = sorted((evaluated / "pages").iterdir())
    assert [page.name for page in pages] == ["1.html", "2.html", "3.html"]
    report = _Reader((evaluated / "report.html").read_text(encoding="utf-8"))
    assert [a for a in report.addresses if a.endswith(".html")] == [
        f"pages/{page.name}" for page in pages
    ]
    for page in pages:
        links = [a for a in _Reader(page.read_text(encoding="utf-8")).addresses if "data:" not in a]
        assert links[0] == "../report.html"
        for link in links:
            assert (page.parent / link).is_file()
    assert "c&amp;d.png" in pages[1].read_text(encoding="utf-8")


def test_the_pages_have_the_numbers_of_the_rows(evaluated):
    rows = [json.loads(line) for line in (evaluated / "rows.jsonl").read_text().splitlines()]
    page = (evaluated / "pages" / "1.html").read_text(encoding="utf-8")
    for row in rows:
        if row["image"] == "a b.png":
            assert f'data-value="{row["adc"]}"' in page


def test_the_page_of_an_image_has_the_maps_of_its_rows(evaluated):
    rows = [json.loads(line) for line in (evaluated / "rows.jsonl").read_text().splitlines()]
    data = _data((evaluated / "pages" / "1.html").read_text(encoding="utf-8"))
    own = [row for row in rows if row["image"] == "a b.png"]
    assert [found["bytes"] for found in data["maps"]] == [row["heat"]["bytes"] for row in own]
    assert data["size"] == [1, 224, 224]
    assert all(found["grid"] == [1, 7, 7] for found in data["maps"])


def test_classes_have_names_and_metrics_are_spelled_out(evaluated):
    rows = [json.loads(line) for line in (evaluated / "rows.jsonl").read_text().splitlines()]
    name = load("efficientnet-lite0", weights="none").class_names[rows[0]["target"]]
    report = (evaluated / "report.html").read_text(encoding="utf-8")
    assert f"<td>{html.escape(name)} ({rows[0]['target']})</td>" in report
    page = (evaluated / "pages" / "1.html").read_text(encoding="utf-8")
    assert f"class {html.escape(name)} ({rows[0]['target']}), score" in page
    assert "ADC: average drop in confidence" in report
    assert '>ADC (%)</button><span class="better">lower is better</span>' in report
    assert '<img src="data:image/png;base64,' in report


def test_bold_cells_are_those_of_the_summary(evaluated):
    report = (evaluated / "report.html").read_text(encoding="utf-8")
    summary = (evaluated / "summary.md").read_text(encoding="utf-8").partition("# Paired")[2]
    bold = re.findall(r'class="number clear" data-value="([^"]+)"', report)
    assert [f"{float(value):.2f}" for value in bold] == re.findall(r"\*\*(\S+) \[", summary)


def test_only_a_difference_whose_interval_excludes_zero_is_bold(tmp_path):
    ours, others = Variant("ablation-cam"), Variant("fake-cam", control=True)
    rest = (0.95, 9, 9, "percentile")
    intervals = {"adc": Interval(1.0, -1.0, 3.0, *rest), "pic": Interval(2.0, 1.0, 3.0, *rest)}
    columns = [Column("adc", "ADC ↓"), Column("pic", "PIC ↑")]
    tables = Report(columns, [], [Difference(ours, others, intervals)], [])
    page = write(tmp_path, tables, {}, []).read_text(encoding="utf-8")
    assert 'class="number" data-value="1.0"' in page
    assert 'class="number clear" data-value="2.0"' in page


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next((found for found in map(shutil.which, names) if found), None)
    if program is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is there")
    arguments = [
        *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    ]
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=arguments)
        yield opened
        opened.close()


def _opened(browser, path, **settings):
    context = browser.new_context(offline=True, **settings)
    page = context.new_page()
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
    page.goto(path.as_uri())
    return page, problems


PHONE = {"viewport": {"width": 360, "height": 700}, "is_mobile": True, "has_touch": True}


@pytest.mark.parametrize("look", [{}, PHONE, {"color_scheme": "dark"}], ids=["", "phone", "dark"])
def test_the_page_of_an_image_in_a_browser(browser, tmp_path, look):
    path = tmp_path / "page.html"
    path.write_text(_page(), encoding="utf-8")
    page, problems = _opened(browser, path, **look)
    groups = page.locator("#groups button")
    assert groups.count() == 4
    whole = page.locator("#said").inner_text()
    assert whole.startswith("The heat map of the class, from 4 groups")

    def pixels():
        return page.evaluate("document.getElementById('heat').toDataURL()")

    heat = pixels()
    groups.nth(1).focus()
    assert page.locator("#said").inner_text().startswith("Group 2, mean of")
    assert pixels() != heat
    page.keyboard.press("ArrowDown")
    assert page.locator("#said").inner_text().startswith("Group 3, mean of")
    page.keyboard.press("Escape")
    assert page.locator("#said").inner_text() == whole
    assert pixels() == heat
    page.locator("#opacity").fill("0")
    assert page.evaluate("document.getElementById('heat').style.opacity") == "0"
    page.locator("#level").fill("0")
    assert groups.count() == 2
    assert page.locator("#level-said").inner_text() == "K = 2"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == ("color_scheme" not in look)
    assert not problems


def test_long_words_stay_on_a_narrow_telephone(browser, tmp_path):
    path, word = tmp_path / "page.html", "ILSVRC2012_val_" + "0" * 60
    switch = [(word, "a.html", True), (word, "b.html", False)]
    page = image_page(
        PICTURE, _levels(), 4, title=word, subtitle="", notes=[f"{word}.png also shows"],
        pages=switch, layers=switch, classes=[ClassScore(0, word, 1.0, 0.5, True)],
        settings={word: word},
    )  # fmt: skip
    path.write_text(page, encoding="utf-8")
    page, problems = _opened(browser, path, viewport={"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    assert not problems


def test_a_volume_has_a_slice_at_a_time(browser, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 48, 2)).eval()
    x = torch.rand(1, 1, 6, 6, 5)
    result = ClusteredLayerAblation(model, model[1], n_clusters=3).explain(x, target=0)
    pictures = x[0, 0, ..., None].expand(-1, -1, -1, 3).numpy()
    path = tmp_path / "page.html"
    path.write_text(image_page(pictures, {3: result}, 3, title="v", subtitle=""), encoding="utf-8")
    page, problems = _opened(browser, path)
    seen = set()
    for number in range(1, 7):
        page.locator("#slice").fill(str(number))
        assert page.locator("#slice-said").inner_text() == f"{number} of 6"
        seen.add(page.evaluate("document.getElementById('image').src"))
    assert len(seen) == 6
    assert not problems


def test_tables_sort_by_mouse_and_keyboard(browser, evaluated):
    page, problems = _opened(browser, evaluated / "report.html", **PHONE)
    table = page.locator("table").first
    head = table.locator("th button").nth(1)

    def values():
        cells = table.locator("tbody tr td:nth-child(2)")
        return [float(v) for v in cells.evaluate_all("all => all.map(one => one.dataset.value)")]

    head.click()
    assert values() == sorted(values())
    head.press("Enter")
    assert values() == sorted(values(), reverse=True)
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "descending"
    rows = table.locator("tbody tr:visible").count()
    page.locator("#controls").uncheck()
    assert table.locator("tbody tr:visible").count() == 3 < rows
    page.locator("a", has_text="c&d.png").click()
    assert page.locator("h1").inner_text() == "c&d.png"
    page.locator("a[rel=next]").click()
    assert page.locator("h1").inner_text() == "e.png"
    page.locator("a", has_text="all images").click()
    assert page.locator("h1").inner_text() == "Evaluation"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not problems
