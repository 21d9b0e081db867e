"""The page: one file that makes no network request, works without a script, and shows the report's figures."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess

import pytest
from render.test_html import check
from support.hand_made_run import make_hand_made_report

from axmem_trace.__main__ import main
from axmem_trace.render.html.document import render_page
from axmem_trace.render.html.stacked import BUCKETS, LEAST_POINTS, lay_out, positions
from axmem_trace.render.html.treemap import Rectangle, divide
from axmem_trace.report import Report
from axmem_trace.report.rank_types import RankUse
from axmem_trace.units import GIB, format_bytes

REPORT = make_hand_made_report(24 * GIB)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FIT = {
    "changes": [
        {"words": "Cut <Cross> Entropy", "need_bytes": 3 << 30, "saved_bytes": 1 << 30, "fits": True, "cost": "none"},
        {
            "words": "8-bit optimizer",
            "need_bytes": 0,
            "saved_bytes": 0,
            "fits": None,
            "cost": "",
            "blocked": "you set it",
        },
    ]
}


def data_of(page: str) -> dict:
    return json.loads(re.search(r"id='moments'>(.*?)</script>", page, re.DOTALL)[1])


def without_data(page: str) -> str:
    return re.sub(r"id='moments'>.*?</script>", "></script>", page, flags=re.DOTALL)


def test_it_makes_no_request_and_is_small():
    page = render_page(REPORT)
    text = without_data(page)
    assert page.startswith("<!doctype html>")
    assert len(text.encode()) < 150_000
    assert not re.search(r"https?:|url\(|@import|\bon\w+=|fetch\(|XMLHttp|<img|<iframe", text)
    assert "default-src 'none'" in text


def test_the_figures_are_shown_without_a_script():
    body = re.sub(r"<script.*?</script>", "", render_page(REPORT), flags=re.DOTALL)
    text = check(re.sub(r"<!doctype html>|<(meta|link|input)[^>]*>", "", body)).text
    for nbytes in (REPORT.peak.allocated_bytes, REPORT.peak.device_bytes, *(holder.bytes for holder in REPORT.holders)):
        assert format_bytes(nbytes) in text
    assert all(holder.name in text for holder in REPORT.holders)
    assert "How to read this" in text
    assert "How it was made" in text
    assert "torch 2.13.0" in text


def test_it_is_made_from_only_a_saved_report(tmp_path):
    (tmp_path / "report.json").write_text(REPORT.to_json())
    (tmp_path / "fit.json").write_text(json.dumps(FIT))
    arguments = [str(tmp_path / "report.json"), "--fit", str(tmp_path / "fit.json"), "-o", str(tmp_path / "page.html")]
    assert main(["page", *arguments]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == render_page(REPORT, fit=FIT)


@pytest.mark.parametrize("content", [None, "no json", "{}", '{"schema_version": 99}'])
def test_a_file_that_is_not_a_report(tmp_path, capsys, content):
    path = tmp_path / "report.json"
    if content is not None:
        path.write_text(content)
    assert main(["page", str(path)]) == 2
    assert str(path.name) in capsys.readouterr().err


def test_a_brief_report_says_what_is_missing():
    brief = dataclasses.replace(REPORT, moments=(), timeline=())
    assert "--format json --full" in render_page(brief)


def test_texts_cannot_break_it():
    attack = "</script><script>alert(1)</script>\"'&"
    model = dataclasses.replace(REPORT.model, name=attack)
    moments = tuple(dataclasses.replace(moment, op=attack, module=attack) for moment in REPORT.moments)
    page = render_page(dataclasses.replace(REPORT, model=model, moments=moments))
    assert attack not in page
    assert page.count("<script") == 2
    assert attack in data_of(page)["moments"][0]["last"]


def test_each_of_the_three_divisions_of_a_moment_adds_up():
    assert max(moment.allocated_bytes for moment in REPORT.moments) == REPORT.peak.allocated_bytes
    for moment in REPORT.moments:
        assert moment.buckets.total == moment.allocated_bytes
        assert sum(each.bytes for each in moment.holders) == moment.allocated_bytes
        assert sum(each.bytes for each in moment.modules) == moment.allocated_bytes
    peak = max(REPORT.moments, key=lambda moment: moment.allocated_bytes)
    assert peak.buckets == REPORT.buckets
    assert {each.name: each.bytes for each in peak.holders} == {each.name: each.bytes for each in REPORT.holders}


def test_the_script_gets_the_same_moments():
    data = data_of(render_page(REPORT))
    assert [moment["bytes"] for moment in data["moments"]] == [moment.allocated_bytes for moment in REPORT.moments]
    assert data["moments"][data["peak"]]["bytes"] == REPORT.peak.allocated_bytes
    assert tuple(data["buckets"]) == BUCKETS
    for given, moment in zip(data["moments"], REPORT.moments, strict=True):
        assert {data["names"][at]: nbytes for at, nbytes in given["sources"]} == {
            each.name: each.bytes for each in moment.holders
        }


def test_positions_of_phases():
    stretches = lay_out(REPORT.moments)
    assert sum(stretch.width for stretch in stretches) == pytest.approx(100)
    xs = positions(stretches)
    assert xs == sorted(xs)
    least = 100 * LEAST_POINTS / sum(max(len(stretch.moments), LEAST_POINTS) for stretch in stretches)
    assert min(stretch.width for stretch in stretches) >= least - 1e-9
    words = ["load", "forward", "backward", "optimizer", "forward", "backward", "optimizer"]
    assert [stretch.phase for stretch in stretches] == words


def test_a_tab_for_each_group_of_ranks():
    def use(ranks: str, count: int, nbytes: int, *, worst: bool = False) -> RankUse:
        return RankUse(
            ranks=ranks,
            count=count,
            worst=worst,
            allocated_bytes=nbytes,
            active_bytes=nbytes,
            counted_bytes=nbytes,
            reserved_bytes=nbytes,
            device_bytes=nbytes,
            phase="backward",
            step=2,
        )

    page = render_page(dataclasses.replace(REPORT, ranks=(use("0-6", 7, 5 << 30), use("7", 1, 6 << 30, worst=True))))
    assert page.count("type='radio'") == 2
    assert re.search(r"id='rank1' checked", page)
    assert "#rank1:checked~#pane1{display:block}" in page
    assert "type='radio'" not in render_page(REPORT)
    # rank 0's own picture again, and one of the other's moments, which is not clicked into
    assert page.count("<div class='chart'") == 2
    others = tuple(dataclasses.replace(each, allocated_bytes=each.allocated_bytes + 1) for each in REPORT.moments[:9])
    pair = (use("0-6", 7, 5 << 30), dataclasses.replace(use("7", 1, 6 << 30, worst=True), moments=others))
    page = render_page(dataclasses.replace(REPORT, ranks=pair))
    assert page.count("<div class='chart'") == 3
    assert page.count("id='chart'") == page.count("id='mark'") == 1
    highest = max(each.allocated_bytes for each in others)
    assert f"{format_bytes(highest)} allocated, the largest sources" in page
    assert "Memory over time, rank 0-6" in page


def test_the_changes_that_fit_has_tried():
    page = render_page(REPORT, fit=FIT)
    assert "Cut &lt;Cross&gt; Entropy" in page
    assert "3.00 GiB" in page
    assert "you set it" in page
    assert "What would change it" not in render_page(REPORT)


@pytest.mark.parametrize("sizes", [[1], [5, 5], [6, 6, 4, 3, 2, 2, 1], [1e7, 1, 1], [1] * 40])
def test_a_treemap_divides_its_area(sizes):
    """The rectangles' areas are in proportion to the sizes. They are inside the whole and do not overlap: their sum is
    the whole."""
    placed = divide(sizes, Rectangle(0, 0, 6, 4))
    for size, (left, top, width, height) in zip(sizes, placed, strict=True):
        assert width * height == pytest.approx(24 * size / sum(sizes))
        assert min(left, top) >= -1e-9
        assert left + width <= 6 + 1e-6
        assert top + height <= 4 + 1e-6


def test_the_example_of_the_paper():
    """Bruls, Huizing and van Wijk, figure 6: 6, 6, 4, 3, 2, 2, 1 in 6 x 4. The first column is 3 wide and holds two
    areas of 6."""
    assert divide([6, 6, 4, 3, 2, 2, 1], Rectangle(0, 0, 6, 4))[:3] == [
        Rectangle(0, 0, 3, 2),
        Rectangle(0, 2, 3, 2),
        Rectangle(3, 0, pytest.approx(12 / 7), pytest.approx(7 / 3)),
    ]


def in_chromium(path) -> tuple[str, str]:
    """The page's content after its script has run, and the messages of the browser's console."""
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--v=0",
        "--virtual-time-budget=3000",
        "--window-size=1200,900",
        "--dump-dom",
        path.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_in_a_browser(tmp_path, theme):
    """The console has no message. A click at the left edge shows loading instead of the peak."""
    page = render_page(REPORT, fit=FIT).replace("<html lang='en'>", f"<html lang='en' data-theme='{theme}'>")
    path = tmp_path / "page.html"
    path.write_text(page, encoding="utf-8")
    content, console = in_chromium(path)
    assert console == ""
    when = re.search(r"id=\"when\"[^>]*>([^<]*)<", content)[1]
    assert format_bytes(REPORT.peak.allocated_bytes) in when
    click = """<script>{ const chart = document.getElementById("chart"), box = chart.getBoundingClientRect();
    chart.dispatchEvent(new MouseEvent("click", {clientX: box.left + 1, clientY: box.top + 5}));
    document.getElementById("theme").click(); }</script></body>"""
    path.write_text(page.replace("</body>", click), encoding="utf-8")
    content, console = in_chromium(path)
    assert console == ""
    when = re.search(r"id=\"when\"[^>]*>([^<]*)<", content)[1]
    first = REPORT.moments[0]
    assert when.startswith("loading: ")
    assert format_bytes(first.allocated_bytes) in when
    assert f'data-theme="{"light" if theme == "dark" else "dark"}"' in content


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed here")
def test_an_error_in_the_script_would_be_found(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(render_page(REPORT).replace("</body>", "<script>nothing.here()</script></body>"), encoding="utf-8")
    assert "nothing is not defined" in in_chromium(path)[1]


def test_reports_without_moments_can_be_read():
    older = json.loads(REPORT.to_json())
    del older["moments"]
    assert Report.from_json(json.dumps(older)).moments == ()
