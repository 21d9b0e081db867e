"""Folding and grouping of module rows: the sums never change."""

from __future__ import annotations

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.report.row_folding import SUMMED, depth_of, fold_modules, group_repeated
from axmem_trace.report.types import ModuleRow


def assert_same_sums(rows, others):
    for column in SUMMED:
        assert sum(getattr(row, column) for row in rows) == sum(getattr(row, column) for row in others), column


@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4, 5, 9])
def test_folding_keeps_the_sums(depth):
    report = make_hand_made_report()
    rows = report.by_module(depth)
    assert_same_sums(rows, report.modules)
    assert max(depth_of(row.name) for row in rows) <= depth


def test_no_depth_folds_nothing():
    report = make_hand_made_report()
    assert report.by_module() == report.modules


def test_a_folded_row_keeps_its_own_name_and_class():
    layer = next(row for row in make_hand_made_report().by_module(3) if row.name == "model.layers.0")
    # the layer, its projection, lora_A and lora_B: 2308 + 2 * 2048 bytes of weights
    assert (layer.class_name, layer.num_modules, layer.weight_bytes) == ("TinyLayer", 4, 2308 + 4096)


def test_an_ancestor_that_is_not_a_module_has_no_class():
    rows = fold_modules([ModuleRow(name="a.b", class_name="B"), ModuleRow(name="a.c", class_name="C")], 1)
    assert [(row.name, row.class_name, row.num_modules) for row in rows] == [("a", "", 2)]


def rows_named(*names, class_name="L"):
    return [ModuleRow(name=name, class_name=class_name, weight_bytes=1) for name in names]


@pytest.mark.parametrize(
    ("names", "grouped"),
    [
        (("layers.0", "layers.1", "layers.2"), ["layers.{0-2}"]),
        (("layers.0", "layers.2", "layers.4"), ["layers.{0,2,4}"]),
        (("layers.0.a", "layers.0.b"), ["layers.0.a", "layers.0.b"]),
        (("l.0.e.0", "l.0.e.1", "l.1.e.0", "l.1.e.1"), ["l.{0-1}.e.{0-1}"]),
        (tuple(f"layers.{n}" for n in range(0, 40, 2)), ["layers.{20 of 0-38}"]),
        (("", "head"), ["", "head"]),
    ],
)
def test_repeated_layers_share_a_row(names, grouped):
    rows = rows_named(*names)
    assert [row.name for row in group_repeated(rows)] == grouped
    assert_same_sums(group_repeated(rows), rows)


def test_layers_of_different_classes_do_not_share_a_row():
    rows = rows_named("layers.0", "layers.2") + rows_named("layers.1", class_name="M")
    assert [row.name for row in group_repeated(rows)] == ["layers.{0,2}", "layers.1"]
