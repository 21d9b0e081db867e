"""What fails with a transformers that axolotl does not pin names the releases that a run would have."""

from __future__ import annotations

import pytest
import transformers
from support.paths import ROOT
from support.whole_runs import make_config

import axmem_trace
from axmem_trace.errors import ConfigError
from axmem_trace.models import pins

BROKEN = "def forward(self, hidden):\n    raise AttributeError('what this release lacks')\n"


def test_a_hint_only_where_another_release_is_installed(monkeypatch):
    monkeypatch.setattr(pins, "PINNED_TRANSFORMERS", {"0.7": transformers.__version__, "0.8": "9.9.9"})
    assert not pins.hint_at_pins()
    monkeypatch.setattr(pins, "PINNED_TRANSFORMERS", {"0.7": "8.8.8", "0.8": "9.9.9"})
    assert "a run has 8.8.8 (axolotl 0.7) or 9.9.9 (axolotl 0.8)" in pins.hint_at_pins()


def test_the_pins_are_those_that_ci_installs():
    for version, release in pins.PINNED_TRANSFORMERS.items():
        lines = (ROOT / ".ci" / f"pins-{version}.txt").read_text(encoding="utf-8").splitlines()
        assert f"transformers=={release}" in lines


def test_a_model_that_stops_in_its_code_names_them(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(pins, "PINNED_TRANSFORMERS", {"0.8": "9.9.9"})
    names = {}
    exec(compile(BROKEN, transformers.__file__, "exec"), names)  # in a file of the library
    monkeypatch.setattr(LlamaMLP, "forward", names["forward"])
    with pytest.raises(ConfigError) as caught:
        axmem_trace.estimate(make_config(tmp_path, "llama", sequence_len=32), hub="never")
    assert f"axolotl does not pin the installed transformers {transformers.__version__}" in caught.value.remedy
    assert "9.9.9 (axolotl 0.8), with which this may work" in caught.value.remedy
