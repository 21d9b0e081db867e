"""If a model fails with a transformers release that axolotl does not pin, the message names the releases of a real
run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import transformers
from support.paths import ROOT
from support.whole_runs import make_config

import axmem_trace
from axmem_trace.config.axolotl import releases
from axmem_trace.config.axolotl.releases import NEWEST, RELEASES
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.pins import hint_at_pin
from axmem_trace.recipe.run import Axolotl

BROKEN = "def forward(self, hidden):\n    raise AttributeError('what this release lacks')\n"


def test_there_is_a_hint_only_if_another_release_is_installed():
    axolotl = Axolotl(version="0.8.0", pins={"transformers": "==9.9.9"})
    assert not hint_at_pin(axolotl, "9.9.9")
    assert not hint_at_pin(Axolotl(version="0.8.0"), "8.8.8")
    assert "installed transformers 8.8.8: a run has 9.9.9" in hint_at_pin(axolotl, "8.8.8")


@pytest.mark.parametrize("version", ["0.19", "0.21"])
def test_the_pins_equal_those_that_ci_installs(version):
    (release,) = [each for each in RELEASES if each.version.startswith(version)]
    lines = (ROOT / ".ci" / f"pins-{version}.txt").read_text(encoding="utf-8").splitlines()
    assert f"transformers{release.pins['transformers']}" in lines


def test_a_model_that_fails_in_its_code_names_the_pins(tmp_path, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaMLP

    newest = replace(NEWEST, pins={**NEWEST.pins, "transformers": "==9.9.9"})
    monkeypatch.setattr(releases, "RELEASES", (newest,))
    monkeypatch.setattr(releases, "NEWEST", newest)
    names = {}
    exec(compile(BROKEN, transformers.__file__, "exec"), names)  # in a file of the library
    monkeypatch.setattr(LlamaMLP, "forward", names["forward"])
    with pytest.raises(ConfigError) as caught:
        axmem_trace.estimate(make_config(tmp_path, "llama", sequence_len=32), hub="never", axolotl=NEWEST.version)
    assert f"does not pin the installed transformers {transformers.__version__}" in caught.value.remedy
    assert "a run has 9.9.9, with which this may work" in caught.value.remedy
