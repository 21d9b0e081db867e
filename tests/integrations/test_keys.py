"""A configuration that names the plugin is read without a warning about it."""

from __future__ import annotations

import pytest

from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError
from axmem_trace.notes import RefusalNote

RUN = {
    "base_model": "Qwen/Qwen2.5-0.5B",
    "micro_batch_size": 1,
    "sequence_len": 512,
    "adapter": "lora",
    "lora_r": 8,
    "lora_target_linear": True,
    "learning_rate": 1e-4,
    "num_epochs": 1,
    "datasets": [{"path": "a", "type": "alpaca"}],
}
PLUGIN = "axmem_trace.MemoryPlugin"


def notes(axolotl: str, **keys):
    recipe = read_recipe({**RUN, **keys}, hub="never", axolotl=axolotl)
    return [note for note in recipe.notes if note.key.partition(".")[0] in ("plugins", "memory_check")]


@pytest.mark.parametrize("axolotl", ["0.19.0", "0.20.0", "0.21.0"])
@pytest.mark.parametrize("name", [PLUGIN, "axmem_trace.integrations.axolotl_plugin.MemoryPlugin"])
@pytest.mark.parametrize("key", [{}, {"memory_check": "warn"}, {"memory_check": "stop"}, {"memory_check": None}])
def test_there_is_no_note_about_the_plugin(axolotl, name, key):
    assert notes(axolotl, plugins=[name], **key) == []


def test_strict_accepts_the_plugin():
    read_recipe({**RUN, "plugins": [PLUGIN], "memory_check": "stop"}, hub="never", strict=True)


def test_a_wrong_value_is_refused():
    found = notes("0.21.0", plugins=[PLUGIN], memory_check="maybe")
    assert [type(note) for note in found] == [RefusalNote]


def test_without_the_plugin_the_key_has_no_effect():
    (note,) = notes("0.21.0", memory_check="stop")
    assert note.kind == "warning"
    assert PLUGIN in note.text


def test_a_misspelt_class_is_refused():
    (note, *_) = notes("0.21.0", plugins=["axmem_trace.MemoryPlug"])
    assert isinstance(note, RefusalNote)
    assert PLUGIN in note.text


def test_another_plugin_is_still_named():
    with pytest.raises(ConfigError):
        read_recipe({**RUN, "plugins": [PLUGIN, "someone.Else"]}, hub="never", strict=True)
