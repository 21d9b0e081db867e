"""There is no verdict if something that is not in the figures could make it wrong."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.paths import ROOT
from support.tiny_models import write_tiny_model

import axmem_trace
from axmem_trace.__main__ import main
from axmem_trace.notes import Direction, Note
from axmem_trace.render.describe import describe_fit
from axmem_trace.report.verdict import judge


def missing(direction: Direction, line: int = 0) -> Note:
    return Note(kind="not_modelled", key="rl", text="something", direction=direction, line=line)


@pytest.mark.parametrize("figures_fit", [True, False])
@pytest.mark.parametrize("direction", ["more", "less", "either", ""])
def test_only_notes_that_could_change_the_answer_prevent_a_verdict(figures_fit: bool, direction: Direction) -> None:
    turned_by = ("more", "either") if figures_fit else ("less", "either")
    words = {"more": "may need more", "less": "may need less", "either": "may need more or less"}.get(direction)
    expected = (None, f"{words}: something (line 7)") if direction in turned_by else (figures_fit, "")
    assert judge(figures_fit, [missing(direction, line=7)]) == expected


def test_without_a_card_there_is_no_verdict_to_prevent() -> None:
    assert judge(None, [missing("either")]) == (None, "")


def test_further_reasons_are_counted() -> None:
    assert judge(True, [missing("more"), missing("less"), missing("either")]) == (
        None,
        "may need more: something, and 1 more",
    )


def test_a_change_of_activations_does_not_prevent_a_verdict_that_follows_from_weights() -> None:
    less_kept = Note(kind="not_modelled", key="use_kernels", text="kernels", direction="less", touches="activations")
    assert judge(False, [less_kept], fits_without_activations=False) == (False, "")
    assert judge(False, [less_kept], fits_without_activations=True) == (None, "may need less: kernels")
    assert judge(False, [less_kept, missing("less")], fits_without_activations=False) == (
        None,
        "may need less: something",
    )


def test_weights_that_exceed_the_card_do_not_fit_with_any_kernels(tmp_path: Path) -> None:
    path = tmp_path / "c.yml"
    kernels = "use_kernels: true\nplugins:\n  - axolotl.integrations.kernels.KernelsPlugin\n"
    text = f"base_model: Qwen/Qwen2.5-0.5B\n{CONFIG.partition('plugins')[0]}{kernels}"
    path.write_text(text, encoding="utf-8")
    # 494,032,768 parameters in fp32 or bf16, their gradients, and two fp32 moments of AdamW: at least 8 bytes each with
    # the moments alone, 3.7 GiB: more than 3 GiB whatever is kept for backward, and not more than 8 GiB.
    small = axmem_trace.estimate(path, hub="never", gpu="3GiB")
    assert (small.fits, small.verdict, small.why) == (False, "does not fit", "")
    enough = axmem_trace.estimate(path, hub="never", gpu="80GiB")
    assert enough.fits is True


CONFIG = "micro_batch_size: 2\nsequence_len: 64\nlearning_rate: 0.0001\nplugins:\n  - somebody.elses.Plugin\n"


def test_a_run_with_an_unknown_part_fits_no_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.yml"
    path.write_text(f"base_model: {write_tiny_model('llama', tmp_path / 'llama')}\n{CONFIG}", encoding="utf-8")
    report = axmem_trace.estimate(path, hub="never", gpu="80GiB")
    assert report.fits is None
    assert report.headroom_bytes is not None
    assert "somebody.elses.Plugin" in report.why
    assert report.why.endswith("(line 6)")
    assert report.why.startswith("may need more or less: ")
    assert describe_fit(report).startswith("CANNOT SAY on 80GiB (80.00 GiB): needs ")
    assert describe_fit(report).endswith(f" left: {report.why}")
    assert main([str(path), "--gpu", "80GiB", "--offline"]) == 4
    assert "CANNOT SAY" in capsys.readouterr().out


def test_a_bound_below_the_missing_memory_does_not_prevent_a_verdict() -> None:
    """The figures are 2 GiB too high for the card, and a part that is not modelled saves at most 1 or 3 GiB."""
    little, much = (replace(missing("less"), at_most_bytes=each << 30) for each in (1, 3))
    assert judge(False, [little], free_bytes=-2 << 30) == (False, "")
    assert judge(False, [little, much], free_bytes=-2 << 30) == (None, "may need up to 3.00 GiB less: something")
    assert judge(False, [little]) == (None, "may need up to 1.00 GiB less: something")


SOURCES = sorted((ROOT / "axmem_trace").rglob("*.py"))


def test_every_not_modelled_note_has_a_direction() -> None:
    """Checks each literal `not_modelled` in the code, which must have a `direction`, and each such key in
    `keys.json`."""
    without = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                named = {each.arg: each.value for each in node.keywords}
                values = [*node.args, named.get("kind")]
                says_so = any(isinstance(each, ast.Constant) and each.value == "not_modelled" for each in values)
                if says_so and "direction" not in named:
                    without.append(ast.literal_eval(named["key"]))
    assert without == []
    keys = json.loads((ROOT / "axmem_trace/config/document/keys.json").read_text(encoding="utf-8"))["keys"]
    assert [
        name for name, key in keys.items() if key.get("verdict") == "not_modelled" and not key.get("direction")
    ] == []
