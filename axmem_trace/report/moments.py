"""Selected moments of a run, with the memory that was allocated then: by purpose, by source and by module.

All bytes are block bytes. Each of the three has the sum of the allocated bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from axmem_trace.allocator.reservation import Reservation
from axmem_trace.ledger import BUCKETS, Ledger
from axmem_trace.ledger.columns import Columns
from axmem_trace.report.holders import HolderNames
from axmem_trace.report.types import Buckets, Holder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NUM_MOMENTS = 160
"""About as many as a chart can show separately."""
NUM_SHOWN = 12
"""The number of sources and modules of a moment. The last one is the sum of all smaller ones."""
REST = "all others"
ROOT = "(in no part of it: loss, optimizer, inputs)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    """The allocated memory at one moment: the moment with the most bytes in its part of the run.

    Attributes:
        allocated_bytes, reserved_bytes: the bytes at this moment.
        buckets: the bytes by purpose.
        holders: the bytes by source, as in `Report.holders`; their sum is `allocated_bytes`.
        modules: the bytes by module, with `*` for numbers of layers; their sum is `allocated_bytes`.
    """

    tick: int
    phase: str
    step: int
    module: str
    op: str
    allocated_bytes: int
    reserved_bytes: int
    buckets: Buckets
    holders: tuple[Holder, ...]
    modules: tuple[Holder, ...]


def make_moments(
    ledger: Ledger, reservation: Reservation, names: HolderNames, *, number: int = NUM_MOMENTS
) -> tuple[Moment, ...]:
    """The highest moment of each of `number` equal parts of the run, and the last one. The peak is among them."""
    positions, columns = _choose(ledger, number), ledger.columns
    groups = [group_module(module) for module in columns.modules]
    places = {group: code for code, group in enumerate(dict.fromkeys(groups))}
    labels = (
        (list(BUCKETS), columns.codes(lambda kind: BUCKETS.index(kind.bucket))),
        names.of_all(columns),
        (list(places), _codes([places[group] for group in groups])[columns.module]),
    )
    examples = _examples(columns)
    sums = zip(*(_sums(ledger, positions, shown, codes, examples) for shown, codes in labels), strict=True)
    found = zip(positions, sums, strict=True)
    return tuple(_moment(ledger, position, reservation, *parts) for position, parts in found)


def _choose(ledger: Ledger, number: int) -> list[int]:
    """The chosen moments, as positions in the ledger's moves."""
    levels = ledger.live_bytes
    size = -(-len(levels) // number) or 1
    positions = [start + int(levels[start : start + size].argmax(axis=0)) for start in range(0, len(levels), size)]
    last = [len(levels) - 1] if positions and positions[-1] != len(levels) - 1 else []
    return [*positions, *last]


def _codes(numbers: Sequence[int]) -> NDArray[np.intp]:
    import numpy as np

    return np.array(numbers, dtype=np.intp)


def _examples(columns: Columns) -> NDArray[np.intp]:
    """The first allocation of each kind and module on the GPU, sorted by kind, then by module."""
    import numpy as np

    on_gpu = np.flatnonzero(columns.where(lambda kind: kind.device == "gpu"))
    pairs = columns.kind[on_gpu].astype(np.int64) * max(1, len(columns.modules)) + columns.module[on_gpu]
    _, first = np.unique(pairs, return_index=True)
    return on_gpu[first]


def _sums(
    ledger: Ledger,
    positions: Sequence[int],
    names: Sequence[str],
    codes: NDArray[np.intp],
    examples: NDArray[np.intp],
) -> list[dict[str, int]]:
    """Bytes of each name after each of the moves at these positions. The names are in the order of the examples.

    Args:
        codes: for each allocation, the position of its name.
    """
    import numpy as np

    _, indices, frees = ledger.moved
    sizes = ledger.columns.block_bytes[indices]
    changes, moved = np.where(frees, -sizes, sizes), codes[indices]
    order = list(dict.fromkeys(codes[examples].tolist()))
    ordered = [names[code] for code in order]
    live, done, found = np.zeros(len(names), dtype=np.int64), 0, []
    for position in positions:
        np.add.at(live, moved[done : position + 1], changes[done : position + 1])
        done = position + 1
        found.append(dict(zip(ordered, live[order].tolist(), strict=True)))
    return found


def _moment(
    ledger: Ledger,
    position: int,
    reservation: Reservation,
    buckets: dict[str, int],
    holders: dict[str, int],
    modules: dict[str, int],
) -> Moment:
    tick = int(ledger.moved.ticks[position])
    mark = next(interval.mark for interval in ledger.intervals if position < interval.end)
    reached = ledger.allocations[int(ledger.moved.indices[position])]
    return Moment(
        tick=tick,
        phase=mark.phase,
        step=mark.step,
        module=reached.module,
        op=reached.op,
        allocated_bytes=int(ledger.live_bytes[position]),
        reserved_bytes=reservation.reserved_at(tick),
        buckets=Buckets(**buckets),
        holders=_largest(holders),
        modules=_largest(modules),
    )


def _largest(sums: dict[str, int]) -> tuple[Holder, ...]:
    ranked = sorted(((name, nbytes) for name, nbytes in sums.items() if nbytes), key=lambda item: -item[1])
    rest = sum(nbytes for _, nbytes in ranked[NUM_SHOWN:])
    shown = [*ranked[:NUM_SHOWN], *([(REST, rest)] if rest else [])]
    return tuple(Holder(name=name, bytes=nbytes) for name, nbytes in shown)


def group_module(module: str) -> str:
    """The part of the model: numbers are replaced by `*`, and the name ends one part below a layer.

    >>> group_module("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default"), group_module("lm_head")
    ('model.layers.*.self_attn', 'lm_head')
    """
    if module in ("base_model", "base_model.model"):
        return ROOT
    parts = module.removeprefix("base_model.model.").split(".")
    number = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    kept = parts[:3] if number is None else [*parts[:number], "*", *parts[number + 1 : number + 2]]
    return ".".join(kept) or ROOT
