"""The peaks of PyTorch's allocator on this rank, by phase of the run. Its counters are never reset here.

axolotl resets the peaks when the model is loaded, and on rank 0 whenever it logs (axolotl 0.21.0 `utils/bench.py`
`gpu_memory_usage_all`, from `loaders/model.py` and `core/trainers/base.py` `log`); TRL's trainers never do. A reset
here would change the figures in axolotl's log. So the counters are read more often than they are reset. A figure that
has changed since the last reading belongs to the time between the two readings. A figure that has not changed is only
an upper limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Peaks(NamedTuple):
    """Peaks since the last reset, in bytes: `active_bytes.all.peak`, `max_memory_allocated`, `max_memory_reserved`."""

    active: int
    allocated: int
    reserved: int


FIGURES = Peaks._fields


@dataclass
class PhasePeaks:
    """The peaks of one phase.

    Attributes:
        reached: for each figure, the bytes that the phase certainly reached.
        at_most: for each figure, bytes that an earlier phase had reached already, and that this phase did not exceed.
    """

    reached: dict[str, int] = field(default_factory=dict)
    at_most: dict[str, int] = field(default_factory=dict)

    def is_limit(self, figure: str) -> bool:
        """True if only an upper limit is known."""
        return self.at_most.get(figure, 0) > self.reached.get(figure, 0)

    def bytes_of(self, figure: str) -> int:
        """The peak, or its upper limit."""
        return max(self.reached.get(figure, 0), self.at_most.get(figure, 0))


class PeakMeter:
    """Reads the counters and assigns each peak to a phase.

    >>> readings = iter([Peaks(5, 5, 8), Peaks(9, 9, 12), Peaks(9, 9, 12), Peaks(6, 6, 12), Peaks(7, 7, 12)])
    >>> meter = PeakMeter(lambda: next(readings))
    >>> for phase in ("load", "step_1", "step_2", "log", "step_2"):
    ...     meter.read(phase)
    >>> meter.phases["step_1"].bytes_of("allocated"), meter.phases["step_1"].is_limit("allocated")
    (9, False)
    >>> meter.phases["step_2"].bytes_of("allocated"), meter.phases["step_2"].is_limit("allocated")
    (9, True)
    """

    def __init__(self, read: Callable[[], Peaks | None]) -> None:
        """Takes a function that reads the counters. It returns None if there is no CUDA device."""
        self._read = read
        self._last: Peaks | None = None
        self.phases: dict[str, PhasePeaks] = {}

    def read(self, phase: str) -> None:
        """Reads the counters. A figure that has changed since the last reading belongs to the phase."""
        now = self._read()
        if now is None:
            return
        last, self._last = self._last, now
        was_reset = last is not None and any(new < old for new, old in zip(now, last, strict=True))
        kept = self.phases.setdefault(phase, PhasePeaks())
        for figure, new, old in zip(FIGURES, now, last or Peaks(-1, -1, -1), strict=True):
            side = kept.reached if was_reset or new > old else kept.at_most
            side[figure] = max(side.get(figure, 0), new)


def read_cuda_peaks() -> Peaks | None:
    """The peaks of this rank's device. None without CUDA, or if CUDA was not used yet."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return None
    stats = torch.cuda.memory_stats()
    return Peaks(*(int(stats.get(f"{name}_bytes.all.peak", 0)) for name in FIGURES))
