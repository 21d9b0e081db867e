"""Progress of an estimate: the name of each stage as it begins, and its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

Progress = Callable[[str], None]
"""Called with the name of each stage as it begins."""


@dataclass
class Stopwatch:
    """Seconds by stage, summed if a stage begins several times. It reports the beginning of each stage to
    `progress`."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    _stage: str = ""
    _since: float = 0.0

    def start(self, stage: str, text: str) -> None:
        """Begins a stage, and ends the one before it, if there is one."""
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        self.progress(text)

    def stop(self) -> None:
        """Ends the current stage."""
        if self._stage:
            elapsed = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._since
            self.seconds[self._stage] = round(elapsed, 3)
            self._stage = ""
