"""`report.plot()`: the timeline by matplotlib."""

from __future__ import annotations

import dataclasses
import sys

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.units import GIB, gib

REPORT = make_hand_made_report(24 * GIB)


@pytest.fixture
def axes():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def test_it_is_stacked_up_to_the_allocated_memory(axes):
    drawn = REPORT.plot(axes)
    assert drawn is axes
    top = max(path.vertices[:, 1].max() for area in axes.collections for path in area.get_paths())
    assert top == pytest.approx(gib(REPORT.peak.allocated_bytes))
    labels = axes.get_legend_handles_labels()[1]
    assert {"weights", "activations", "reserved", "test card for PyTorch"} <= {*labels}
    assert "backward of step 2" in [label.get_text() for label in axes.get_xticklabels()]
    axes.figure.canvas.draw()


def test_without_moments_there_is_one_area(axes):
    dataclasses.replace(REPORT, moments=()).plot(axes)
    assert "allocated" in axes.get_legend_handles_labels()[1]


def test_a_brief_report_cannot_be_plotted():
    with pytest.raises(ValueError, match="--full"):
        dataclasses.replace(REPORT, moments=(), timeline=()).plot()


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"axmem_trace\[plot\]"):
        REPORT.plot()
