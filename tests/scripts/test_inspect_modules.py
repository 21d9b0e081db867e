"""`scripts/inspect_modules.ipynb` runs with and without Jupyter, and the file contains no outputs."""

from __future__ import annotations

import json

import pytest
from support.paths import SCRIPTS

NOTEBOOK = SCRIPTS / "inspect_modules.ipynb"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_shipped_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) >= 8
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_shows_each_way_to_inspect_modules():
    source = "\n".join(code_cells())
    for door in ("estimate(", ".peak", ".by_module(", ".to_pandas()", '.to_pandas("timeline")', "from_json("):
        assert door in source


def test_cells_run_without_jupyter(monkeypatch):
    pytest.importorskip("pandas")
    monkeypatch.chdir(NOTEBOOK.parent)
    names: dict[str, object] = {}
    for cell in code_cells():
        exec(compile(cell, str(NOTEBOOK), "exec"), names)
    report, without, layer = names["report"], names["without"], names["layer"]
    assert without.buckets.activations > report.buckets.activations
    assert layer["weight_bytes"].sum() > 0
    assert layer["kept_bytes"].sum() > 0


@pytest.mark.slow
def test_runs_in_jupyter():
    nbclient = pytest.importorskip("nbclient", reason="nbclient is in the `test` extra")
    nbformat = pytest.importorskip("nbformat", reason="nbformat is in the `test` extra")
    pytest.importorskip("ipykernel", reason="ipykernel is in the `test` extra")
    pytest.importorskip("pandas")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in shown if output.output_type == "error"]
    assert [output.text for output in shown if output.output_type == "stream" and output.name == "stderr"] == []
    html = "".join(output.data.get("text/html", "") for output in shown if "data" in output)
    assert "class='axmem-trace'" in html
    assert "dataframe" in html
