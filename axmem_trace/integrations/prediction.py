"""The estimate in a process of its own: it can't change the training process, which keeps its GPU and its state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from axmem_trace.report import Report

if TYPE_CHECKING:
    from axmem_trace.integrations.run_request import RunRequest

MAX_SECONDS = 600
"""An estimate that takes longer is ended. Usual are 10 to 30 seconds."""
_OF_THIS_RUN = tuple(
    """
    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT
    """.split()
)
"""Variables that would make the estimate run as a rank of the run."""
_PREFIXES_OF_THIS_RUN = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A report, or why there is none."""

    report: Report | None = None
    problem: str = ""


class Prediction:
    """An estimate in a process of its own, at the same time as the training. It sees no GPU."""

    def __init__(self, request: RunRequest) -> None:
        """Starts it.

        Raises:
            OSError: the process can't be started.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="axmem_trace_")
        self._output = Path(self._folder.name) / "report.json"
        self._errors = Path(self._folder.name) / "errors.txt"
        command = [sys.executable, "-m", "axmem_trace", *request.arguments()]
        command += ["--format", "json", "--full", "--output", str(self._output)]
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                command, env=_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors
            )

    def wait(self, seconds: float = MAX_SECONDS) -> Outcome:
        """Its result. Never raises for what the estimate did."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Outcome(problem=f"it took more than {seconds:.0f} seconds")
        finally:
            self._end()
        try:
            written = self._output.read_text(encoding="utf-8") if self._output.exists() else "{}"
            if "run" in json.loads(written):  # else the reasons alone, which standard error has too
                return Outcome(report=Report.from_json(written))
            said = self._errors.read_text(encoding="utf-8", errors="replace").strip()
            return Outcome(problem=said.removeprefix("axmem_trace: ") or f"exit code {self._process.returncode}")
        except (OSError, ValueError) as error:
            return Outcome(problem=str(error))
        finally:
            self._folder.cleanup()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def _environment() -> dict[str, str]:
    """That of this process, without its ranks and its GPUs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_THIS_RUN and not name.startswith(_PREFIXES_OF_THIS_RUN)
    }
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb"}
