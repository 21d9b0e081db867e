"""`plugins: [axmem_trace.MemoryPlugin]`: predicts before the model is loaded, measures during training, and compares at
the end.

It never changes a run: it only reads the allocator's counters, the estimate runs in a separate process, and an error in
the plugin is only printed. Only `memory_check: stop` ends a run, before its model is loaded.
"""

from __future__ import annotations

import copy
import functools
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from axolotl.integrations.base import BasePlugin

from axmem_trace.errors import EXIT_DOES_NOT_FIT
from axmem_trace.integrations.callback import OTHER, PeakCallback
from axmem_trace.integrations.peaks import PeakMeter, read_cuda_peaks
from axmem_trace.integrations.prediction import Outcome, Prediction
from axmem_trace.integrations.record import (
    FILE_NAME,
    append_run,
    collect_ranks,
    compare_lines,
    describe_phases,
    forget_ranks,
    leave_for_rank_0,
)
from axmem_trace.integrations.run_request import RunRequest, find_changes, name_card
from axmem_trace.units import format_bytes

T = TypeVar("T")
SECONDS_FOR_RANKS = 20.0
"""How many seconds rank 0 waits after training for the figures of the other ranks."""
SECONDS_AFTER_FAILURE = 2.0


def harmless(method: Callable[..., T]) -> Callable[..., T | None]:
    """Decorates a method so that an error in it is printed, and the run continues as if the method had returned
    None."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> T | None:
        try:
            return method(*args, **kwargs)
        except Exception as error:  # no error may end the run
            say(f"{method.__name__} failed, and the run goes on without it: {type(error).__name__}: {error}")
            return None

    return call


def say(text: str) -> None:
    """Prints to standard error, which axolotl copies to `output_dir/debug.log`."""
    print(f"axmem_trace: {text}", file=sys.stderr, flush=True)


class MemoryPlugin(BasePlugin):
    """The plugin. axolotl's `PluginManager` calls the methods below on every rank, in this order."""

    def __init__(self) -> None:
        """Starts nothing: the plugin begins its work when a training begins."""
        super().__init__()
        self.rank, self.world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self._config: dict[str, Any] = {}
        self._prediction: Prediction | None = None
        self._outcome: Outcome | None = None
        self._meter = PeakMeter(read_cuda_peaks)
        self._training = self._finished = False

    @harmless
    def register(self, cfg: Any) -> None:
        """Stores the configuration as the user gave it, including the command line, before axolotl validates it."""
        self._config = copy.deepcopy(cfg.to_dict() if hasattr(cfg, "to_dict") else dict(cfg))

    def get_input_args(self) -> str:
        """The import path of the class with this plugin's keys, for axolotl's schema."""
        return "axmem_trace.integrations.plugin_keys.MemoryCheckArgs"

    @harmless
    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """Starts the estimate while the data is loaded. axolotl calls this with `preprocess` false only for training,
        not for inference or a merge (axolotl `cli/train.py` `do_train`)."""
        if preprocess:
            return
        self._training = True
        if self.rank == 0:
            forget_ranks(Path(cfg.output_dir))
            self._prediction = Prediction(self._make_request())

    @harmless
    def pre_model_load(self, cfg: Any) -> None:
        """Prints the prediction. Raises `SystemExit` for `memory_check: stop` if the run does not fit."""
        if self._prediction is None or self._outcome is not None:
            return
        self._outcome = self._prediction.wait()
        report = self._outcome.report
        if report is None:
            say(f"no prediction: {self._outcome.problem}")
            return
        from axmem_trace.render.text import render_for_stream

        print(render_for_stream(report, sys.stderr), file=sys.stderr, flush=True)
        _report_free_memory(report.peak.device_bytes)
        if report.fits is False and cfg.get("memory_check") == "stop":
            say("the run does not fit, and `memory_check: stop` is set: it ends before the model is loaded")
            raise SystemExit(EXIT_DOES_NOT_FIT)

    def post_model_build(self, cfg: Any, model: Any) -> None:
        """Reads the peaks when the model is loaded without adapters. axolotl resets the peaks after that, and after the
        adapters are loaded."""
        self._read("load")

    def pre_lora_load(self, cfg: Any, model: Any) -> None:
        """Reads the peaks when the model is prepared for adapters."""
        self._read("load")

    def post_lora_load(self, cfg: Any, model: Any) -> None:
        """Reads the peaks when the adapters are loaded."""
        self._read("load")

    def post_model_load(self, cfg: Any, model: Any) -> None:
        """Reads the peaks when everything is loaded."""
        self._read("load")

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """The callback that reads the peaks, for supervised training and for TRL's trainers."""
        return [PeakCallback(self._read, functools.partial(self._leave_figures, cfg))] if self._training else []

    @harmless
    def post_train_unload(self, cfg: Any) -> None:
        """Called at the end, from axolotl 0.20 on also after a failed run: prints predicted and measured figures, and
        writes them to a file."""
        if not self._training or self._finished:
            return
        self._read(OTHER)
        self._finished = True
        failed = _describe_failure()
        if self.rank != 0:
            self._leave_figures(cfg, failed)
            return
        others = collect_ranks(
            Path(cfg.output_dir), range(1, self.world_size), SECONDS_AFTER_FAILURE if failed else SECONDS_FOR_RANKS
        )
        ranks = [self._describe_rank(failed), *others]
        report = self._outcome.report if self._outcome else None
        for line in compare_lines(report, ranks):
            print(line, file=sys.stderr, flush=True)
        if len(ranks) < self.world_size:
            say(f"figures of {self.world_size - len(ranks)} ranks are missing: they left none in {cfg.output_dir}")
        self._append(cfg, report, ranks)

    def _append(self, cfg: Any, report: Any, ranks: list[dict[str, Any]]) -> None:
        from axmem_trace.render.json import render_json

        run: dict[str, Any] = {
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "world_size": self.world_size,
            "measured": ranks,
            "predicted": None,
        }
        if report is not None:
            import json

            run["predicted"] = json.loads(render_json(report, brief=True))
        elif self._outcome is not None:
            run["problem"] = self._outcome.problem
        say(f"written to {append_run(Path(cfg.output_dir) / FILE_NAME, run)}")

    @harmless
    def _read(self, phase: str) -> None:
        self._meter.read(phase)

    @harmless
    def _leave_figures(self, cfg: Any, failed: str = "") -> None:
        """On ranks other than 0, writes the figures to a file, which rank 0 reads later."""
        if self.rank != 0:
            leave_for_rank_0(Path(cfg.output_dir), self.rank, self._describe_rank(failed))

    def _describe_rank(self, failed: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "rank": self.rank,
            "device": _device()[0],
            "phases": describe_phases(self._meter.phases),
        }
        return {**found, "failed": failed} if failed else found

    def _make_request(self) -> RunRequest:
        from axolotl.cli.args import TrainerCliArgs

        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.world_size))
        name, memory_bytes = _device()
        return RunRequest(
            config=Path(self._config["axolotl_config_path"]),
            changes=find_changes(self._config, [each.name for each in fields(TrainerCliArgs)]),
            card=name_card(name, memory_bytes) if memory_bytes else "",
            num_gpus=local,
            num_nodes=max(1, self.world_size // max(1, local)),
            trust_remote_code=bool(self._config.get("trust_remote_code")),
        )


def _device() -> tuple[str, int]:
    """Name and bytes of this rank's card; an empty name and 0 without a card."""
    import torch

    if not torch.cuda.is_available():
        return "", 0
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    return card.name, int(card.total_memory)


def _report_free_memory(needed_bytes: int) -> None:
    """Prints a message if other processes use so much of the card that there is not enough memory for the run."""
    import torch

    if torch.cuda.is_available():
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        if free_bytes < needed_bytes <= total_bytes:
            say(f"only {format_bytes(free_bytes)} of the card are free now: other processes use it too")


def _describe_failure() -> str:
    """The error that ends the run; empty without an error. axolotl 0.20 and later call `post_train_unload` in a
    `finally`."""
    error = sys.exc_info()[1]
    if error is None:
        return ""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:300]
