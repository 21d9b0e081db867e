"""`KernelContext`: what a rule can read and do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from axmem_trace.notes import Note, Notes

if TYPE_CHECKING:
    from axmem_trace.tracing.recorder import Recorder


@dataclass(kw_only=True)
class KernelContext:
    """The target card, the run's settings, and the recorder that gets allocations and notes.

    It is made first, and then belongs to the one `Recorder` that it is given to.
    """

    compute_capability: tuple[int, int] = (8, 0)
    num_sms: int = 0
    """Streaming multiprocessors; 0: those of the usual card of the compute capability."""
    attention: str = "sdpa"
    """The kernel, as transformers names it."""
    repeats_kv: bool = False
    """FlashAttention-2 gets keys and values repeated to all query heads."""
    mean_keeps_input: bool = False
    """Backward of a mean keeps what was averaged."""
    int8_outliers: int = 0
    """Columns of each 8-bit layer's input that hold a value beyond the threshold."""
    notes: Notes = field(default_factory=Notes)
    _held: set[str] = field(default_factory=set)
    """The names with which `hold_once` has been called."""
    _recorder: Recorder | None = None

    @property
    def recorder(self) -> Recorder:
        """The recorder that this context was given to."""
        assert self._recorder is not None, "this context has not been given to a recorder"
        return self._recorder

    def belong_to(self, recorder: Recorder) -> None:
        """Called by the recorder, once.

        Raises:
            AssertionError: it belongs to a recorder already: its notes and blocks are those of one recording.
        """
        assert self._recorder is None, "this context belongs to another recorder"
        self._recorder = recorder

    def note(self, note: Note) -> None:
        """Adds a note, unless an equal one is there."""
        self.notes.append(note)

    def workspace(self, nbytes: int, op: str) -> None:
        """Records a block that is allocated and freed immediately."""
        self.recorder.workspace(nbytes, op)

    def hold_once(self, what: str, nbytes: int, op: str) -> bool:
        """Records a block that the process allocates at its first use and keeps. Returns False if it exists already."""
        if what in self._held:
            return False
        self._held.add(what)
        self.recorder.hold(nbytes, op)
        return True
