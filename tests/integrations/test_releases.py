"""The plugin under the plugin managers of axolotl 0.19 and 0.20. Their calls are repeated here: neither release can be
installed beside the libraries of these tests.

Both managers make the same calls (axolotl 0.19.0 and 0.20.0 `integrations/base.py` `PluginManager`; `load_datasets` passes
`preprocess` by position). A failed run differs: 0.19.0 `cli/train.py` `do_train` calls `post_train_unload` only after a
run that did not fail, 0.20.0 in a `finally`.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from support.hand_made_run import make_hand_made_report

from axmem_trace.integrations.peaks import Peaks
from axmem_trace.integrations.prediction import Outcome
from axmem_trace.units import GIB

MIB = 1 << 20
LOADED, FIRST_STEP, LATER_STEPS = Peaks(5, 5, 6), Peaks(9, 9, 12), Peaks(10, 10, 14)


class Config(dict[str, Any]):
    """As axolotl's `DictDefault`: keys are attributes too, and a key that is not there is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def to_dict(self) -> dict[str, Any]:
        return dict(self)


@dataclass
class TrainerCliArgs:
    """The fields that are the same in both releases."""

    debug: bool = False
    prompter: str | None = None
    shard: bool = False


@pytest.fixture
def plugin_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The plugin's module, on axolotl's two classes that it imports."""
    classes = {
        "integrations.base": ("BasePlugin", type("BasePlugin", (), {})),
        "cli.args": ("TrainerCliArgs", TrainerCliArgs),
    }
    for path in ("", "integrations", "integrations.base", "cli", "cli.args"):
        module = ModuleType(f"axolotl.{path}".rstrip("."))
        if path in classes:
            setattr(module, *classes[path])
        monkeypatch.setitem(sys.modules, module.__name__, module)
    name = "axmem_trace.integrations.axolotl_plugin"
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


@pytest.fixture
def plugin(plugin_module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The plugin with a hand-made prediction and counters that a run sets."""
    prediction = SimpleNamespace(wait=lambda: Outcome(report=make_hand_made_report(24 * GIB)))
    monkeypatch.setattr(plugin_module, "Prediction", lambda request: prediction)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    made = plugin_module.MemoryPlugin()
    made.counters = None
    made._meter._read = lambda: made.counters
    return made


def config_in(folder: Path) -> Config:
    path = folder / "run.yml"
    path.write_text("base_model: x\n")
    return Config(axolotl_config_path=str(path), output_dir=str(folder / "out"), base_model="x")


def mib(peaks: Peaks) -> Peaks:
    return Peaks(*(number * MIB for number in peaks))


def train(plugin: Any, cfg: Config, *, adapter: bool = True, fails: bool = False) -> None:
    """The functions that `do_train` and the trainer call, in their order."""
    plugin.register(cfg)
    assert plugin.load_datasets(cfg, False) is None
    plugin.pre_model_load(cfg)
    plugin.counters = mib(LOADED)
    plugin.post_model_build(cfg, object())
    if adapter:
        plugin.pre_lora_load(cfg, object())
        plugin.post_lora_load(cfg, object())
    plugin.post_model_load(cfg, object())
    (callback,) = plugin.add_callbacks_post_trainer(cfg, object())
    callback.on_train_begin()
    for peaks in (FIRST_STEP, LATER_STEPS):
        callback.on_step_begin()
        plugin.counters = mib(peaks)
        if fails:
            raise RuntimeError("CUDA out of memory")
        callback.on_step_end()
        plugin.counters = mib(LOADED)  # axolotl logs, and resets the peaks
        callback.on_log()
    callback.on_train_end()


def written(folder: Path) -> list[dict[str, Any]]:
    path = folder / "out" / "axmem_trace.json"
    return json.loads(path.read_text())["runs"] if path.exists() else []


@pytest.mark.parametrize("adapter", [True, False])
def test_a_run_is_predicted_measured_and_written(plugin, tmp_path, capsys, adapter):
    cfg = config_in(tmp_path)
    train(plugin, cfg, adapter=adapter)
    plugin.post_train_unload(cfg)
    said = capsys.readouterr().err
    assert said.index("FITS WITH ROOM") < said.index("predicted")
    assert "failed" not in said
    (run,) = written(tmp_path)
    phases = run["measured"][0]["phases"]
    assert phases["load"]["reserved_bytes"] == LOADED.reserved * MIB
    assert phases["step_1"]["allocated_bytes"] == FIRST_STEP.allocated * MIB
    assert phases["step_2"]["reserved_bytes"] == LATER_STEPS.reserved * MIB
    assert run["predicted"]["peak"]["device_bytes"] > 0


def test_a_failed_run_of_0_20_is_written_with_its_error(plugin, tmp_path):
    cfg = config_in(tmp_path)

    def do_train() -> None:
        try:
            train(plugin, cfg, fails=True)
        finally:
            plugin.post_train_unload(cfg)

    with pytest.raises(RuntimeError, match="out of memory"):
        do_train()
    (run,) = written(tmp_path)
    assert run["measured"][0]["failed"] == "RuntimeError: CUDA out of memory"


def test_a_failed_run_of_0_19_has_its_prediction_only(plugin, tmp_path, capsys):
    with pytest.raises(RuntimeError):
        train(plugin, config_in(tmp_path), fails=True)
    assert "FITS WITH ROOM" in capsys.readouterr().err
    assert written(tmp_path) == []


def test_preprocessing_predicts_nothing(plugin, tmp_path, capsys):
    cfg = config_in(tmp_path)
    plugin.register(cfg)
    plugin.load_datasets(cfg, True)
    plugin.pre_model_load(cfg)
    assert plugin.add_callbacks_post_trainer(cfg, object()) == []
    plugin.post_train_unload(cfg)
    assert (capsys.readouterr().err, written(tmp_path)) == ("", [])
