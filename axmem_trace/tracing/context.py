"""`KernelContext`: what a rule can read and do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from axmem_trace.notes import Note
from axmem_trace.tracing.originals import call_original
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.result_memo import ResultMemo, can_remember


@dataclass(kw_only=True)
class KernelContext:
    """The recorder that gets allocations and notes, the target card, and the run's settings."""

    recorder: Recorder = field(default_factory=Recorder)
    compute_capability: tuple[int, int] = (8, 0)
    num_sms: int = 0
    """Number of streaming multiprocessors; 0: as many as the usual card of the compute capability has."""
    attention: str = "sdpa"
    """The kernel, as transformers names it."""
    repeats_kv: bool = False
    """Whether keys and values are repeated to the number of query heads before FlashAttention-2 is called."""
    mean_keeps_input: bool = False
    """Whether the backward of a mean keeps the mean's input."""
    int8_outliers: int = 0
    """How many columns of each 8-bit layer's input have a value above the threshold."""
    memo: ResultMemo = field(default_factory=ResultMemo)
    held: set[str] = field(default_factory=set)
    """The names with which `hold_once` has been called."""

    def note(self, note: Note) -> None:
        """Adds a note, unless an equal one is there."""
        self.recorder.notes.append(note)

    def run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of the operator's meta kernel, for a rule that does not change the operator. It is taken from the
        memo of layouts if possible."""
        followed = bool(args) and self.recorder.values.may_follow(args)
        if followed or not can_remember(op):
            return call_original(op, args, kwargs)
        return self.memo.run(op, args, kwargs)

    def workspace(self, nbytes: int, op: str) -> None:
        """Records a block that is allocated and freed immediately."""
        self.recorder.workspace(nbytes, op)

    def hold_once(self, what: str, nbytes: int, op: str) -> bool:
        """Records a block that the process allocates at its first use and keeps. Returns False if it exists already."""
        if what in self.held:
            return False
        self.held.add(what)
        self.recorder.hold(nbytes, op)
        return True
