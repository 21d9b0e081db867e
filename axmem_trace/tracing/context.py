"""What a rule may know and do while a run is traced."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from axmem_trace.notes import Note, Notes

if TYPE_CHECKING:
    from axmem_trace.tracing.recorder import Recorder


@dataclass(kw_only=True)
class KernelContext:
    """What a rule may know and do: the target card, the run's choices, and the recorder to report to."""

    recorder: Recorder
    compute_capability: tuple[int, int] = (8, 0)
    attention: str = "sdpa"
    router: str = "balanced"
    options: dict[str, Any] = field(default_factory=dict)
    """Anything else a rule needs from the recipe or the model: `num_experts`, `int8_outliers`, ..."""
    notes: Notes = field(default_factory=Notes)
    held: set[str] = field(default_factory=set)
    """What `hold_once` has been told."""

    def note(self, note: Note) -> None:
        """Adds a note, unless an equal one is there."""
        self.notes.append(note)

    def workspace(self, nbytes: int, op: str) -> None:
        """Records a block that lives only for the moment: born and died now."""
        self.recorder.workspace(nbytes, op)

    def hold_once(self, what: str, nbytes: int, op: str) -> bool:
        """Records a block that the process takes the first time it needs it, and keeps. False: it has it already."""
        if what in self.held:
            return False
        self.held.add(what)
        self.recorder.hold(nbytes, op)
        return True
