"""The HTML fragment: it is well-formed and self-contained, and the report's texts cannot break it."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

from support.hand_made_run import make_hand_made_report

from axmem_trace.notes import Note
from axmem_trace.render.html.page import render_html
from axmem_trace.report.run_types import Choice

VOID = {"br"}


class Checker(HTMLParser):
    """Collects tags and text, and checks that every tag is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def test_well_formed_and_self_contained():
    html = render_html(make_hand_made_report(24 << 30))
    checker = check(html)
    assert {"table", "svg", "style"} <= checker.tags
    assert not {"script", "link", "img", "iframe"} & checker.tags
    assert not re.search(r"https?:|url\(|@import|\bon\w+=", html)
    assert "memory/max_allocated" in checker.text


def test_texts_are_escaped():
    attack = "<script>alert('x')</script>\"&"
    report = make_hand_made_report()
    report = dataclasses.replace(
        report,
        model=dataclasses.replace(report.model, name=attack, class_name=attack, config_source=attack),
        gpu=dataclasses.replace(report.gpu, name=attack, memory_bytes=1 << 40),
        fits=True,
        headroom_bytes=1,
        run={"config": attack, "method": attack},
        peak=dataclasses.replace(report.peak, module=attack, op=attack),
        modules=tuple(dataclasses.replace(row, name=attack + row.name, class_name=attack) for row in report.modules),
        dtypes=tuple(dataclasses.replace(row, dtype=attack) for row in report.dtypes),
        timeline=tuple(dataclasses.replace(point, phase=attack) for point in report.timeline),
        notes=(Note(kind="warning", key=attack, text=attack),),
        choices={attack: Choice(value=attack, text=attack, origin=attack)},
        versions={attack: attack},
    )
    html = render_html(report)
    assert "<script" not in html
    assert check(html).text.count(attack) >= 15


def test_the_same_tables_as_in_text():
    checker = check(render_html(make_hand_made_report()))
    for word in ("Alive at the peak", "152,576", "model.layers.{0-1}.proj.lora_A", "Ruled", "Assumed"):
        assert word in checker.text


def test_depth_folds():
    assert "lora_A" not in check(render_html(make_hand_made_report(), depth=2)).text


def test_a_notebook_shows_it():
    report = make_hand_made_report()
    assert report._repr_html_() == render_html(report)
