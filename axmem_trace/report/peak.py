"""The peak of the run, and the request for which the card had not enough memory."""

from __future__ import annotations

from axmem_trace.allocator.reservation import Reservation
from axmem_trace.ledger import Ledger
from axmem_trace.ledger.spans import Survey
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.report.holders import HolderNames
from axmem_trace.report.types import OutOfMemory, Peak


def make_peak(recipe: Recipe, names: HolderNames, found: Survey, reservation: Reservation) -> Peak:
    """The moment with the most live bytes. The allocator's maxima are those of the whole run."""
    span = found.peak
    reached = span.peak_allocation
    return Peak(
        allocated_bytes=max(span.peak_bytes, 0),
        active_bytes=max(reservation.peak_active_bytes, reservation.peak_allocated_bytes, span.peak_bytes, 0),
        counted_bytes=max(reservation.peak_allocated_bytes, span.peak_bytes, 0),
        reserved_bytes=reservation.peak_reserved_bytes,
        device_bytes=reservation.peak_reserved_bytes + recipe.gpu.outside_bytes,
        context_bytes=recipe.gpu.context_bytes,
        nccl_bytes=recipe.gpu.nccl_bytes,
        phase=span.phase,
        step=span.step,
        module=reached.module if reached else "",
        op=reached.op if reached else "",
        tick=span.peak_tick if reached else 0,
        holder=names.of(reached) if reached else "",
    )


def make_out_of_memory(names: HolderNames, ledger: Ledger, reservation: Reservation) -> OutOfMemory | None:
    """The request at which the run ended because the card was full; None if the card was never full."""
    failure = reservation.out_of_memory
    if failure is None:
        return None
    wanted = ledger.allocations[failure.index]
    return OutOfMemory(
        tick=failure.tick,
        requested_bytes=failure.requested_bytes,
        phase=wanted.phase,
        step=wanted.step,
        module=wanted.module,
        op=wanted.op,
        holder=names.of(wanted),
    )
