"""By how much the run can need more or less because of what is not modelled: sizes for the notes, from what was recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from axmem_trace.ledger import Ledger
from axmem_trace.notes import Note, Notes
from axmem_trace.report.types import Buckets
from axmem_trace.report.verdict import bytes_besides_activations

SOLVER, SOLVER_OP = "workspace.cusolver", "aten._linalg_svd.default"
CONVOLUTIONS = "workspace.cudnn"
COMPILED = ("torch_compile", "torch_compile_regional")
FP32_GRADIENTS, FP32_HEAD = "lora_fp32_gradients", "cut_cross_entropy_accum_c_fp32"
_PRODUCTS = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.convolution.", "aten._scaled_mm.")
"""Operators that inductor's partitioner never recomputes: torch 2.14 torch/_functorch/partitioners.py
`get_default_op_list` (`compute_intensive_ops`). That list contains attention's kernels too."""
_ATTENTION = ("attention", "attn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The facts from which bounds are calculated: the run at its peak.

    Attributes:
        tick, allocated_bytes, reserved_bytes: of the peak.
        buckets: at the peak.
        gradient_bytes: the maximum of bytes of gradients alive at once.
        head_elements: the number of elements of the output head; 0 if the head does not train.
    """

    ledger: Ledger
    tick: int
    allocated_bytes: int
    reserved_bytes: int
    buckets: Buckets
    gradient_bytes: int
    head_elements: int


def bound_notes(notes: Iterable[Note], run: Recorded) -> tuple[Note, ...]:
    """The notes. A note on a part that is not modelled gets the maximum bytes of that part, if it is known."""
    return tuple(Notes(_bound(note, run) for note in _largest_of_each(list(notes))))


def _bound(note: Note, run: Recorded) -> Note:
    if note.kind != "not_modelled":
        return note
    if note.key == SOLVER:
        return _bound_solver(note, run)
    if note.key in COMPILED and note.direction == "more":
        return replace(note, at_most_bytes=run.gradient_bytes)
    if note.key == FP32_GRADIENTS:  # of adapters that have 2 bytes an element, or 4 already
        return replace(note, at_most_bytes=2 * run.gradient_bytes)
    if note.key == FP32_HEAD:
        return _at_most(note, 4 * run.head_elements)
    if (note.direction, note.touches) == ("less", "activations"):
        kept = _kept_products(run) if note.key in COMPILED else 0
        return replace(note, at_most_bytes=_besides(run) - kept)
    return note


def _besides(run: Recorded) -> int:
    """All that is reserved besides models, gradients and optimizer states: activations, and what is cached for them."""
    return max(0, run.reserved_bytes - bytes_besides_activations(run.buckets))


def _kept_products(run: Recorded) -> int:
    """Bytes at the peak of results of matrix products and of attention that forward keeps for backward."""
    columns = run.ledger.columns
    kept = columns.where(lambda kind: kind.kept and kind.device == "gpu" and kind.role == "" and _is_product(kind.op))
    return int(columns.block_bytes[kept & columns.alive(run.tick)].sum())


def _is_product(op: str) -> bool:
    return op.startswith(_PRODUCTS) or any(name in op for name in _ATTENTION)


def _bound_solver(note: Note, run: Recorded) -> Note:
    """The larger workspace counts only as far as it makes the decomposition's moment higher than the peak."""
    columns = run.ledger.columns
    ticks = columns.allocated_tick[columns.where(lambda kind: kind.op == SOLVER_OP and kind.device == "gpu")]
    highest = max((run.ledger.allocated_at(int(tick)) for tick in dict.fromkeys(ticks.tolist())), default=0)
    return _at_most(note, highest + note.at_most_bytes - run.allocated_bytes)


def _at_most(note: Note, nbytes: int) -> Note:
    """The note with its bound; a note about nothing is none on what is not modelled."""
    if nbytes > 0:
        return replace(note, at_most_bytes=nbytes)
    return replace(note, kind="ruled", direction="", at_most_bytes=0)


def _largest_of_each(notes: list[Note]) -> Iterator[Note]:
    """Of the notes on workspaces of closed libraries, which each operator adds, only the one with the most bytes."""
    largest: dict[str, Note] = {}
    for note in notes:
        if note.key in (SOLVER, CONVOLUTIONS):
            known = largest.get(note.key)
            if known is None or _size(note) > _size(known):
                largest[note.key] = note
    for note in notes:
        if note.key not in largest or largest[note.key] == note:
            yield note


def _size(note: Note) -> int:
    return max(note.bytes, note.at_most_bytes)
