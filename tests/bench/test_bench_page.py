from __future__ import annotations

import importlib.resources
import math
import re
from html.parser import HTMLParser

import browser
import pytest
from made_up_rows import CEILINGS, TIMES, group

from gankernels.bench import page
from gankernels.errors import InputError

EVIL = "<script>alert('gankernels')</script>\"'&"


def rows():
    """Two ops, two dtypes, a step, a loss, a wrong row and one that did not run."""
    return [
        *group(),
        *group({name: 0.1 * ms for name, ms in TIMES.items()}, position="Net G block 10"),
        *group(TIMES | {"gankernels-cpu": 12.5}, position="Net G block 9"),
        *group(TIMES | {"gankernels-cpu": "wrong: dx is off by 3.1 times eager's error"}, dtype="bfloat16"),
        *group(TIMES | {"compile": "error: Unsupported: " + "call_function " * 12}, op="shift", mode="forward"),
        *group({"eager": 80.0, "gankernels-auto": 32.0}, op="d_step", shape="64x3x32x32", mode="step"),
    ]


def steps(**columns):
    """Both steps of a preset that takes five of the first, in two dtypes; in the second no peer is right in one."""
    shared = {"position": "wgan-gp-64", "shape": "16x3x64x64", "mode": "step"} | columns
    d, g = {"op": "d_step_wgan_gp"} | shared, {"op": "g_step"} | shared
    return [
        *group({"eager": 30.0, "compile": 20.0, "gankernels-auto": 10.0}, **d),
        *group({"eager": 40.0, "compile": 60.0, "gankernels-auto": 30.0}, **g),
        *group({"eager": "wrong: off by 2", "gankernels-auto": 6.0}, dtype="bfloat16", **d),
        *group({"eager": 40.0, "gankernels-auto": 10.0}, dtype="bfloat16", **g),
    ]


class _Elements(HTMLParser):
    """The tags of a page, and what must be closed but is not."""

    VOID = frozenset(("meta", "link", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text):
    parser = _Elements()
    parser.feed(text)
    assert not parser.open
    return parser.tags


def test_the_page_is_one_file_and_asks_for_nothing(tmp_path):
    page.write(tmp_path / "page.html", rows(), CEILINGS)
    text = (tmp_path / "page.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
    assert "://" not in text
    for tag, attributes in parse(text):
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith(("#", "data:")), tag
    assert "Content-Security-Policy" in text
    assert 'name=viewport content="width=device-width, initial-scale=1"' in text
    assert "prefers-color-scheme: dark" in text


def test_every_row_is_there_and_failures_are_marked():
    text = page.render(rows(), CEILINGS, "bench")
    table = text[text.index("<table id=all>") :]
    assert table.count("<tr class=") == len(rows())
    assert "<td class=bad>✕ wrong: dx is off by 3.1 times eager&#x27;s error</td>" in table
    assert "<td class=bad>✕ error: Unsupported: call_function" in table
    assert "1 of 22 rows are wrong, 1 did not run" in text
    assert "faster than the best peer in <b>4</b> and slower in <b>1</b>" in text
    for fact in ("2.13.0+cpu", "abc1234", "2026-01-02", "34.7 GB/s", "180 GB/s", "151 GFLOP/s", "4.1 us"):
        assert fact in text
    assert '<td class="number c-images/s" data-value="2000.0">2,000</td>' in table


def test_the_scoreboard_has_means_and_ranges():
    text = page.render(rows(), None, "bench")
    (line,) = re.findall(r'<tr data-op="scale" data-dtype="float32".*?</tr>', text.split("id=all")[0])
    # Positions at 2, 2 and 0.8 times the best peer; 40%, 400% and 16% of the floor.
    values = re.findall(r'data-value="([^"]*)"', line)
    assert [float(value) for value in values] == pytest.approx(
        [3.2 ** (1 / 3), 0.8, 2, 5.5296 ** (1 / 3), 0.256 ** (1 / 3), 3, 1]
    )


def test_iterations_are_made_of_their_steps():
    text = page.render(rows() + steps(), None, "bench")
    parse(text)
    table = text[text.index("<table id=iterations>") : text.index("<section id=method>")]
    lines = re.findall(r"<tr data-op=.*?</tr>", table)
    assert [re.findall(r"<th scope=row>(.*?)<small>(.*?)</small></th>", line) for line in lines] == [
        [("wgan-gp-64", "float32")],
        [("wgan-gp-64", "bfloat16")],
    ]
    # Five steps of D and one of G: 80 ms, the best peers' 140, eager's 190; 40 ms in bf16, with no peer for the first.
    figures = [re.findall(r'data-value="([^"]*)"', line) for line in lines]
    assert [float(figure) for figure in figures[0]] == pytest.approx(
        [140 / 80, 5 * 16e3 / 80, 5 * 16e3 / 140, 5 * 16e3 / 190, 5, 16, 12.5, 12.5]
    )
    assert [float(figure or "nan") for figure in figures[1]] == pytest.approx(
        [math.nan, 5 * 16e3 / 40, math.nan, math.nan, 5, 16, 12.5, math.nan], nan_ok=True
    )
    assert EVIL not in page.render(steps(device=EVIL), None, "bench")


def test_without_both_steps_there_is_no_section_of_iterations():
    assert "id=iterations" not in page.render(rows(), None, "bench")
    assert "id=iterations" not in page.render(steps()[:3], None, "bench")


@pytest.mark.parametrize(
    "column", ["op", "position", "shape", "dtype", "layout", "provider", "impl", "correct", "device", "torch"]
)
def test_what_comes_from_outside_is_escaped(column):
    evil = [*group(), *group(**{column: EVIL})]
    text = page.render(evil, None, EVIL)
    assert EVIL not in text
    assert "&lt;script&gt;alert(" in text
    scripts = [tag for tag, _ in parse(text) if tag == "script"]
    assert len(scripts) == 1


def test_no_rows_and_no_peers_make_a_page():
    parse(page.render([], None, "empty"))
    parse(page.render(group({"gankernels-cpu": 1.0}), None, "ours alone"))
    parse(page.render(group({"eager": "error: no", "gankernels-cpu": "wrong: all"}), None, "nobody"))


def test_a_page_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(InputError, match="expected a file that can be written"):
        page.write(tmp_path / "no such folder" / "page.html", rows())


def test_the_style_and_the_script_are_installed():
    for name in ("page.css", "page.js"):
        assert importlib.resources.files("gankernels.bench").joinpath(name).is_file()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """The page in a browser, and the file that it lies in."""
    program = browser.find()
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is installed")
    folder = tmp_path_factory.mktemp("browser")
    page.write(folder / "page.html", rows(), CEILINGS)
    with browser.chromium(program, folder / "profile") as tab:
        yield tab, folder / "page.html"


def column(tab, index, table="all"):
    """What a column shows, in the order of the rows that are not hidden."""
    rows = f"document.querySelectorAll('#{table} tbody tr:not([hidden])')"
    return tab.evaluate(f"Array.from({rows}, row => row.cells[{index}].textContent)")


def header(tab, name):
    """The number of a column of the large table, counted from 0."""
    return tab.evaluate("Array.from(document.querySelectorAll('#all th'), th => th.textContent)").index(name)


def click(tab, index):
    tab.click(f"#all th:nth-child({index + 1}) button")
    return tab.evaluate("Array.from(document.querySelectorAll('#all th'), th => th.ariaSort)")[index]


def choose(tab, name, value):
    """As a user does in one of the filters."""
    tab.evaluate(
        f"{{ const e = document.querySelector('[name={name}]'); e.value = '{value}';"
        " e.dispatchEvent(new Event('input', {bubbles: true})); }"
    )


def test_a_click_sorts_numbers_and_another_reverses(tab):
    tab, path = tab
    tab.open(path)
    index = header(tab, "ms")
    before = column(tab, index)
    assert click(tab, index) == "ascending"
    ascending = column(tab, index)
    assert click(tab, index) == "descending"
    descending = column(tab, index)
    assert sorted(before) == sorted(ascending) == sorted(descending)
    for shown, reverse in ((ascending, False), (descending, True)):
        assert shown[-2:] == ["", ""], "what has no time comes last either way"
        times = [float(text) for text in shown[:-2]]
        assert times == sorted(times, reverse=reverse)
        assert times != [float(text) for text in before if text]
    assert not tab.problems


def test_text_sorts_as_people_count(tab):
    tab, path = tab
    tab.open(path)
    index = header(tab, "position")
    click(tab, index)
    assert list(dict.fromkeys(column(tab, index))) == ["Net G block 1", "Net G block 9", "Net G block 10"]


def test_filters_choose_rows_and_charts(tab):
    tab, path = tab
    tab.open(path)

    def shown():
        return tab.evaluate("document.querySelectorAll('.panel:not([hidden])').length"), len(column(tab, 0))

    assert shown() == (4, 22)
    choose(tab, "dtype", "bfloat16")
    assert shown() == (1, 4)
    assert tab.evaluate("document.getElementById('count').textContent") == "4 of 22"
    assert len(column(tab, 0, "scoreboard")) == 1
    choose(tab, "dtype", "")
    choose(tab, "rows", "lost")
    assert column(tab, header(tab, "ms")) == ["12.5"]
    choose(tab, "rows", "bad")
    assert column(tab, header(tab, "provider")) == ["gankernels-cpu", "compile"]
    choose(tab, "rows", "")
    choose(tab, "search", "Block 9 EAGER")
    assert column(tab, header(tab, "provider")) == ["eager", "eager-best"]
    assert not tab.problems


@pytest.mark.parametrize("width", [1280, 390])
def test_iterations_fit_and_are_filtered(tab, tmp_path, width):
    tab, _ = tab
    page.write(tmp_path / "page.html", rows() + steps(), CEILINGS)
    tab.open(tmp_path / "page.html", width=width, height=844)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert column(tab, 2, "iterations") == ["1,000", "2,000"]
    tab.click("#iterations th:nth-child(3) button")
    tab.click("#iterations th:nth-child(3) button")
    assert column(tab, 2, "iterations") == ["2,000", "1,000"]
    choose(tab, "dtype", "float32")
    assert column(tab, 2, "iterations") == ["1,000"]
    assert not tab.problems


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)])
def test_the_page_fits_the_window(tab, width, dark):
    tab, path = tab
    tab.open(path, width=width, height=844, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.evaluate("innerWidth") == width
    bars = tab.evaluate(
        "Array.from(document.querySelectorAll('svg.bar rect'), bar => bar.getBoundingClientRect())"
        ".map(box => [box.width, box.height])"
    )
    assert len(bars) == 20
    assert min(height for _, height in bars) > 5
    assert min(width for width, _ in bars) > 1
    # Speed: in each group eager is 12 ms and eager-best 10.
    assert bars[0][0] / bars[1][0] == pytest.approx(10 / 12, rel=0.01)
    ranges = "Array.from(document.querySelectorAll('svg.range'), plot => plot.getBoundingClientRect().width)"
    assert min(tab.evaluate(ranges)) > 100
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 128) == dark
    assert not tab.problems
    assert {url.split(":")[0] for url in tab.requests} <= {"file", "data"}
