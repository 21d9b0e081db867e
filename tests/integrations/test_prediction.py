"""The estimate in a separate process."""

from __future__ import annotations

import yaml
from support.whole_runs import make_config

from axmem_trace.integrations import prediction
from axmem_trace.integrations.prediction import Prediction
from axmem_trace.integrations.run_request import RunRequest


def write(folder, config):
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_report(tmp_path, monkeypatch):
    """The ranks and GPUs of the training run are not visible: the estimate uses one GPU and does not wait for other
    ranks."""
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "4",
        "MASTER_ADDR": "nowhere",
        "ACCELERATE_USE_FSDP": "true",
    }.items():
        monkeypatch.setenv(name, value)
    path = write(tmp_path, make_config(tmp_path))
    request = RunRequest(config=path, changes={"micro_batch_size": 3}, card="1GiB")
    outcome = Prediction(request).wait()
    assert outcome.problem == ""
    assert outcome.report.batch.rows == 3
    assert outcome.report.gpu.memory_bytes == 1 << 30
    assert outcome.report.modules
    assert outcome.report.timeline


def test_the_reason_if_there_is_no_prediction(tmp_path):
    path = write(tmp_path, {"base_model": "nobody/none", "micro_batch_size": 1})
    outcome = Prediction(RunRequest(config=path)).wait()
    assert outcome.report is None
    assert "nobody/none" in outcome.problem


def test_it_is_ended_when_it_takes_too_long(tmp_path, monkeypatch):
    path = write(tmp_path, make_config(tmp_path))
    started = Prediction(RunRequest(config=path))
    outcome = started.wait(seconds=0)
    assert outcome.problem == "it took more than 0 seconds"
    assert started._process.poll() is not None


def test_its_environment(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")
    found = prediction._environment()
    assert {"LOCAL_RANK", "TORCHELASTIC_RUN_ID"} & {*found} == set()
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "backend:native", "the allocator's settings are those of the run"
    assert found["CUDA_VISIBLE_DEVICES"] == ""
