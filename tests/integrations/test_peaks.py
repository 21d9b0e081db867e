"""The assignment of peaks to phases, although only axolotl may reset the counters."""

from __future__ import annotations

from axmem_trace.integrations.peaks import PeakMeter, Peaks
from axmem_trace.integrations.record import describe_phases


class Card:
    """Counters like PyTorch's: a reset sets the peak to the current level."""

    def __init__(self):
        self.level = self.peak = self.reserved = 0

    def use(self, peak: int, level: int) -> None:
        self.peak, self.level, self.reserved = max(self.peak, peak), level, max(self.reserved, peak + 2)

    def reset(self) -> None:
        self.peak = self.level

    def read(self) -> Peaks:
        return Peaks(active=self.peak, allocated=self.peak, reserved=self.reserved)


def measured(card: Card, *moves) -> dict[str, tuple[int, bool, int]]:
    """For each phase: allocated bytes, whether this is only a limit, and reserved bytes. A move is `reset`, or a phase
    with peak and level."""
    meter = PeakMeter(card.read)
    for move in moves:
        if move == "reset":
            card.reset()
        else:
            phase, peak, level = move
            card.use(peak, level)
            meter.read(phase)
    return {
        phase: (peaks.bytes_of("allocated"), peaks.is_limit("allocated"), peaks.bytes_of("reserved"))
        for phase, peaks in meter.phases.items()
    }


def test_a_reset_before_each_phase():
    found = measured(
        Card(), ("load", 50, 40), "reset", ("step_1", 100, 45), "reset", ("step_2", 90, 45), "reset", ("eval", 60, 45)
    )
    assert found == {
        "load": (50, False, 52),
        "step_1": (100, False, 102),
        "step_2": (90, False, 102),
        "eval": (60, False, 102),
    }


def test_no_reset_gives_limits():
    found = measured(Card(), ("load", 50, 40), ("step_1", 100, 45), ("step_2", 90, 45), ("eval", 120, 45))
    assert found == {
        "load": (50, False, 52),
        "step_1": (100, False, 102),
        "step_2": (100, True, 102),
        "eval": (120, False, 122),
    }


def test_a_phase_that_later_exceeds_its_limit():
    found = measured(Card(), ("step_1", 100, 45), ("step_2", 90, 45), ("step_2", 110, 45))
    assert found["step_2"][:2] == (110, False)


def test_a_reset_to_the_same_figure_gives_a_limit():
    """The level equals the peak, so the reset can't be noticed. The phase has only a limit, which is correct."""
    assert measured(Card(), ("load", 50, 50), "reset", ("step_1", 50, 50))["step_1"][:2] == (50, True)


def test_without_a_card_nothing_is_measured():
    meter = PeakMeter(lambda: None)
    meter.read("step_1")
    assert meter.phases == {}


def test_as_plain_values():
    meter = PeakMeter(iter([Peaks(9, 8, 12), Peaks(9, 8, 14)]).__next__)
    meter.read("step_1")
    meter.read("step_2")
    assert describe_phases(meter.phases) == {
        "step_1": {"active_bytes": 9, "allocated_bytes": 8, "reserved_bytes": 12, "upper_limits": []},
        "step_2": {
            "active_bytes": 9,
            "allocated_bytes": 8,
            "reserved_bytes": 14,
            "upper_limits": ["active_bytes", "allocated_bytes"],
        },
    }
