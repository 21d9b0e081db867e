"""The same run on 1, 2, 4, 8 and 16 GPUs, with the engine that its configuration names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from axmem_trace.errors import ConfigError
from axmem_trace.report import Report
from axmem_trace.report.verdict import Verdict

COUNTS = (1, 2, 4, 8, 16)
GPUS_OF_MACHINE = 8
"""The number of GPUs in one machine. More GPUs are in several machines."""

EstimateWith = Callable[[int, int], Report]
"""Returns the run's report for a number of GPUs in each machine, and a number of machines."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CountFit:
    """A number of GPUs, and the figures of the rank that needs the most.

    Attributes:
        count: the number of all GPUs.
        machines: the number of machines.
        verdict: as in a report; empty if no card was named, or if the run is impossible (`reason`).
        allocated_bytes, reserved_bytes, need_bytes: the `allocated_bytes`, `reserved_bytes` and `device_bytes` of a
            report.
        left_bytes: free bytes of the card; negative if the run does not fit; None without a card.
        reason: why the run is impossible with this number, or why there is no verdict.
        error: why there are no figures for this number; None if there are figures.
    """

    count: int
    machines: int
    verdict: Verdict = ""
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    need_bytes: int = 0
    left_bytes: int | None = None
    reason: str = ""
    error: ConfigError | None = None

    @property
    def fits(self) -> bool:
        """True if the run fits, also if the verdict is `tight`."""
        return self.verdict in ("fits with room", "fits", "tight")


def fit_counts(estimate_with: EstimateWith, counts: Sequence[int] = COUNTS) -> list[CountFit]:
    """One estimate of the run for each number of GPUs.

    Raises:
        ConfigError: there are no figures for any number, for the same reason in the configuration.
    """
    fits = [_fit(count, estimate_with) for count in counts]
    errors = {str(fit.error): fit.error for fit in fits}
    for error in errors.values():
        if error and len(errors) == 1:
            raise error
    return fits


def _fit(count: int, estimate_with: EstimateWith) -> CountFit:
    machines = -(-count // GPUS_OF_MACHINE)
    try:
        report = estimate_with(count // machines, machines)
    except ConfigError as error:
        return CountFit(count=count, machines=machines, reason=error.problem, error=error)
    worst = next((use for use in report.ranks if use.worst), None) or report.peak
    return CountFit(
        count=count,
        machines=machines,
        verdict="" if report.refusals else report.verdict,
        allocated_bytes=worst.allocated_bytes,
        reserved_bytes=worst.reserved_bytes,
        need_bytes=worst.device_bytes,
        left_bytes=report.headroom_bytes,
        reason=report.refusals[0].reason if report.refusals else report.why,
    )
