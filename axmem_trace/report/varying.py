"""Reserved memory with batches of different lengths: the assumed lengths, and the figure that the verdict uses."""

from __future__ import annotations

from dataclasses import dataclass

from axmem_trace.lengths.draw import describe_lengths
from axmem_trace.lengths.simulate import NUM_SEQUENCES, NUM_STEPS, Simulated
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.units import format_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class VaryingRows:
    """Bytes that the allocator reserves in a run with batches of different lengths.

    Several sequences of steps are simulated, each with other lengths in another order, and with a batch of the longest rows
    at its end.

    Attributes:
        lengths: the assumed or known lengths of the samples, in words.
        known: whether the user gave the lengths; False: they are assumed.
        full_reserved_bytes: reserved bytes with rows of the full length in each step: `peak.reserved_bytes`.
        median_reserved_bytes, worst_reserved_bytes: the median and the maximum of the sequences.
        sequences, steps: the number of sequences, and of steps in all of them.
        longest_row_tokens: tokens of a row in the longest batch.
        traced_row_tokens: the lengths for which sizes were recorded. Other lengths follow laws, which one of these
            recordings checks.
        unproved_sizes: the number of allocations without such a law. Their sizes are those of the next longer trace.
        failures: the number of sequences for which the card does not have enough memory.
        cache_emptied: how often the allocator had to free its cache on this card in the worst sequence, which is slow.
        decides: whether the verdict uses `worst_reserved_bytes`; False: rows of the full length need more.
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
    """The figures of the simulation; None if all rows have the full length, or if nothing was simulated."""
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
