"""`simulate_lengths`: what the allocator reserves for a run whose rows differ in length from batch to batch.

Short batches come first, and their freed blocks are cached. A longer one does not fit into them: with PyTorch's default
allocator new segments are added. So the figure depends on the order, and several sequences of steps are simulated.
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
"""An odd number, so that one is the median. After a batch of the longest rows nothing more is reserved, so that 160 steps
reserve what few do; what differs is what came before it."""
_SECOND, _THIRD, _FOURTH = (9, 32), (25, 32), (17, 32)
"""Lengths of the further traces, as shares of the longest: odd multiples, so that rounding to 128 shows."""

Trace = Callable[[Recipe], Ledger]


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """The outcome of all sequences.

    Attributes:
        reservations: one for each sequence; with a card that is too small, of unlimited memory.
        lengths: tokens of a row in the traces, rising.
        num_jumps: allocations whose size follows no law; they are taken as in the trace of the next longer rows.
        failures: sequences that the card has not enough memory for.
        longest: tokens of the longest rows of a batch.
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
        """Half of the sequences reserve at most this."""
        return int(statistics.median_low(self.reserved_bytes))

    @property
    def worst_bytes(self) -> int:
        """The sequence that reserves the most."""
        return max(self.reserved_bytes)


def simulate_lengths(recipe: Recipe, ledger: Ledger, trace: Trace, *, capacity_bytes: int = 0) -> Simulated:
    """Continues the run for `NUM_SEQUENCES` times `NUM_STEPS` steps and replays the allocator.

    Args:
        ledger: of the recipe's run, whose rows have the full length.
        trace: records the run of a recipe; it is asked for rows of two or three other lengths.
        capacity_bytes: what the allocator can get; 0: unlimited memory.

    Raises:
        DifferentEvents: the run does other things with rows of another length, so that sizes can't be scaled.
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
    """The laws of the sizes. Rows of a quarter of the length may run something else (attention within a window); then the
    further traces are nearer to the full length, and shorter rows are taken to do as those do.

    Raises:
        DifferentEvents: even those run something else.
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
    """The same run with rows of another length; of preference pairs, prompt and completion keep their shares."""
    objective, whole = recipe.objective, recipe.batch.row_tokens
    if objective.completion_tokens:
        completion = max(1, min(tokens - 1, round(objective.completion_tokens * tokens / whole)))
        objective = replace(objective, completion_tokens=completion, prompt_tokens=tokens - completion)
    return replace(recipe, batch=replace(recipe.batch, row_tokens=tokens), objective=objective)
