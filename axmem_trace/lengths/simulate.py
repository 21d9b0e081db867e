"""`simulate_lengths`: the reserved memory of a run whose rows have another length in each batch.

The freed blocks of a short batch are cached. The tensors of a longer batch do not fit into them, so PyTorch's default
allocator adds new segments. So the figure depends on the order of the batches, and several sequences of steps are
simulated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from axmem_trace.allocator import Reservation, replay
from axmem_trace.ledger import Ledger
from axmem_trace.lengths.draw import draw_steps, longest_row
from axmem_trace.lengths.laws import DifferentEvents, SizeLaws, find_laws
from axmem_trace.lengths.steps import count_micro_batches, make_steps
from axmem_trace.recipe.lengths import RowLengths
from axmem_trace.recipe.recipe import Recipe

NUM_SEQUENCES, NUM_STEPS = 5, 8
"""The number of sequences is odd, so that one of them is the median. After a batch with the longest rows, no more
memory is reserved, so 160 steps reserve as much as a few steps. The sequences differ in the batches before it."""
_SECOND, _THIRD, _FOURTH = (9, 32), (25, 32), (17, 32)
"""Lengths of the other traces, as shares of the longest. They are odd multiples, so that rounding to 128 has an
effect."""

Trace = Callable[[Recipe], Ledger]


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """The results of all sequences.

    Attributes:
        reservations: one for each sequence. If the card is too small, it is that with unlimited memory.
        lengths: the tokens of a row in each trace, in ascending order.
        num_jumps: number of allocations whose size follows no law. Their sizes are those of the trace with the next
            longer rows.
        failures: number of sequences for which the card does not have enough memory.
        longest: the tokens of the longest row of a batch.
    """

    reservations: tuple[Reservation, ...]
    lengths: tuple[int, ...]
    num_jumps: int
    failures: int
    longest: int

    @property
    def reserved_bytes(self) -> tuple[int, ...]:
        """The peak of each sequence."""
        return tuple(each.peak_reserved_bytes for each in self.reservations)

    @property
    def median_bytes(self) -> int:
        """The median of the sequences' peaks."""
        return int(statistics.median_low(self.reserved_bytes))

    @property
    def worst_bytes(self) -> int:
        """The peak of the sequence that reserves the most."""
        return max(self.reserved_bytes)


def simulate_lengths(recipe: Recipe, ledger: Ledger, trace: Trace, *, capacity_bytes: int = 0) -> Simulated:
    """Continues the run for `NUM_SEQUENCES` times `NUM_STEPS` steps and replays the allocator.

    Args:
        ledger: that of the recipe's run, whose rows have the full length.
        trace: records the run of a recipe. It is called for rows of two or three other lengths.
        capacity_bytes: the memory that the allocator can get; 0: unlimited memory.

    Raises:
        DifferentEvents: with rows of another length the run has other events, so sizes can't be scaled.
    """
    if recipe.objective.rollouts is not None:
        raise DifferentEvents("generated rows are as long as the model makes them")
    if recipe.batch.images_per_row or recipe.batch.audio_seconds_per_row:
        raise DifferentEvents("images and audio take tokens that do not get fewer")
    laws = trace_laws(recipe, ledger, trace)
    found, failures = [], 0
    for whole in make_sequences(recipe, ledger, laws):
        reservation = replay(whole, recipe.allocator, capacity_bytes=capacity_bytes)
        if reservation.out_of_memory is not None:
            failures += 1
            reservation = replay(whole, recipe.allocator)
        found.append(reservation)
    return Simulated(
        reservations=tuple(found),
        lengths=laws.lengths,
        num_jumps=laws.num_jumps,
        failures=failures,
        longest=longest_row(recipe.lengths, recipe.batch),
    )


def make_sequences(recipe: Recipe, ledger: Ledger, laws: SizeLaws) -> Iterator[Ledger]:
    """The ledger of each sequence of steps."""
    micro_batches = count_micro_batches(ledger)
    for seed in range(NUM_SEQUENCES):
        tokens = draw_steps(recipe.lengths, recipe.batch, seed, NUM_STEPS, micro_batches)
        yield make_steps(ledger, laws, tokens, recipe.allocator)


def trace_laws(recipe: Recipe, ledger: Ledger, trace: Trace) -> SizeLaws:
    """The laws of the sizes.

    Rows with a quarter of the length may run other operators (attention within a window). Then the other traces use
    lengths nearer to the full length, and shorter rows are assumed to have the same events as these.

    Raises:
        DifferentEvents: these lengths have other events too.
    """
    whole = recipe.batch.row_tokens
    traces, reason = {whole: ledger}, DifferentEvents("rows are too short to be shortened")
    for share in (_SECOND, _THIRD, _FOURTH):
        tokens = _share_of(whole, share, recipe.lengths)
        if not 1 <= tokens < whole or tokens in traces:
            continue
        candidate = {**traces, tokens: trace(with_row_tokens(recipe, tokens))}
        try:
            laws = find_laws(candidate)
        except DifferentEvents as error:
            reason = error
            continue
        traces = candidate
        if len(traces) > 2 and not laws.num_jumps:
            return laws
    if len(traces) < 3:
        raise reason
    return find_laws(traces)


def _share_of(whole: int, share: tuple[int, int], lengths: RowLengths) -> int:
    tokens = whole * share[0] // share[1]
    return -(-tokens // lengths.multiple) * lengths.multiple


def with_row_tokens(recipe: Recipe, tokens: int) -> Recipe:
    """The same run with rows of another length. In preference pairs, prompt and completion keep their shares of the
    row."""
    objective, whole = recipe.objective, recipe.batch.row_tokens
    if objective.completion_tokens:
        completion = max(1, min(tokens - 1, round(objective.completion_tokens * tokens / whole)))
        objective = replace(objective, completion_tokens=completion, prompt_tokens=tokens - completion)
    return replace(recipe, batch=replace(recipe.batch, row_tokens=tokens), objective=objective)
