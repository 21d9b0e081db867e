"""The estimate in a separate process. So it can't change the training process, its GPU or its state."""

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
"""An estimate that takes longer is stopped. It usually takes 10 to 30 seconds."""
_OF_THIS_RUN = tuple(
    """
    RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT
    """.split()
)
"""Environment variables that would make the estimate a rank of the training run."""
_PREFIXES_OF_THIS_RUN = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PARALLELISM_CONFIG_")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A report, or the reason why there is none."""

    report: Report | None = None
    problem: str = ""


class Prediction:
    """An estimate in a separate process, at the same time as the training. The process sees no GPU."""

    def __init__(self, request: RunRequest) -> None:
        """Starts the process.

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
        """The result. A failed estimate raises nothing."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return Outcome(problem=f"it took more than {seconds:.0f} seconds")
        finally:
            self._end()
        try:
            written = self._output.read_text(encoding="utf-8") if self._output.exists() else "{}"
            if "run" in json.loads(written):  # otherwise only the reasons, which are on standard error too
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
    """The environment of this process, without the variables for ranks and GPUs."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_THIS_RUN and not name.startswith(_PREFIXES_OF_THIS_RUN)
    }
    return {**kept, "CUDA_VISIBLE_DEVICES": "", "TERM": "dumb"}
