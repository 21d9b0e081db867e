"""Reserved memory where batches differ in length: what is assumed of the lengths, and what the verdict uses."""

from __future__ import annotations

from dataclasses import dataclass

from axmem_trace.lengths.draw import describe_lengths
from axmem_trace.lengths.simulate import NUM_SEQUENCES, NUM_STEPS, Simulated
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.units import format_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class VaryingRows:
    """Bytes that the allocator reserves in a run whose batches differ in length.

    Several sequences of steps are simulated, each with other lengths in another order, and with a batch of the longest rows
    at its end.

    Attributes:
        lengths: what is assumed or known of the samples, in words.
        known: the lengths were given; False: they are assumed.
        full_reserved_bytes: with rows of the full length in each step: `peak.reserved_bytes`.
        median_reserved_bytes, worst_reserved_bytes: of the sequences.
        sequences, steps: how many sequences, and steps in all of them.
        longest_row_tokens: of the longest batch.
        traced_row_tokens: the lengths at which sizes were recorded; those between follow laws that one of them proves.
        unproved_sizes: allocations without such a law: taken as in the next longer trace.
        failures: sequences that the card has not enough memory for.
        cache_emptied: how often, in the worst sequence, the allocator had to free its cache on this card: slow.
        decides: the verdict uses `worst_reserved_bytes`; False: rows of the full length need more.
        text: the figures in one sentence.
    """

    lengths: str
    known: bool
    full_reserved_bytes: int
    median_reserved_bytes: int
    worst_reserved_bytes: int
    sequences: int
    steps: int
    longest_row_tokens: int
    traced_row_tokens: tuple[int, ...]
    unproved_sizes: int
    failures: int
    cache_emptied: int
    decides: bool
    text: str


def make_varying(recipe: Recipe, simulated: Simulated | None, full_reserved_bytes: int) -> VaryingRows | None:
    """None where all rows have the full length, or nothing was simulated."""
    if simulated is None:
        return None
    worst, known = simulated.worst_bytes, recipe.lengths.known
    decides = known or worst > full_reserved_bytes or simulated.failures > 0
    lengths, steps = describe_lengths(recipe.lengths, recipe.batch), NUM_SEQUENCES * NUM_STEPS
    used = "the worst" if decides else "full rows"
    text = (
        f"reserved with full rows {format_bytes(full_reserved_bytes)}; with rows that vary ({lengths}) median "
        f"{format_bytes(simulated.median_bytes)}, worst of {steps} steps {format_bytes(worst)}: {used} counts"
    )
    return VaryingRows(
        lengths=lengths,
        known=known,
        full_reserved_bytes=full_reserved_bytes,
        median_reserved_bytes=simulated.median_bytes,
        worst_reserved_bytes=worst,
        sequences=NUM_SEQUENCES,
        steps=steps,
        longest_row_tokens=simulated.longest,
        traced_row_tokens=simulated.lengths,
        unproved_sizes=simulated.num_jumps,
        failures=simulated.failures,
        cache_emptied=max(each.num_retries for each in simulated.reservations),
        decides=decides,
        text=text,
    )
