"""The allocations of a ledger in columns: five arrays instead of an object for each. No torch here.

Hundreds of allocations differ only in size, ticks and module; they are of one kind (`kinds`). Many allocations have the
same module. A query about an attribute is computed once for each kind. One array operation then gives the results for
all allocations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

from axmem_trace.ledger.allocation import Allocation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KIND_FIELDS = tuple(
    each.name for each in fields(Allocation) if each.name not in ("nbytes", "allocated_tick", "freed_tick", "module")
)
"""The attributes that are equal for all allocations of one kind."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Columns:
    """One entry per allocation in each array, in order of allocation.

    Attributes:
        nbytes, allocated_tick, freed_tick: int64.
        module: position in `modules`, int32.
        kind: position in `kinds`, int32.
        modules: the names of modules, each name once.
        kinds: all other attributes, as allocations with no bytes and no module.
    """

    nbytes: NDArray[np.int64]
    allocated_tick: NDArray[np.int64]
    freed_tick: NDArray[np.int64]
    module: NDArray[np.int32]
    kind: NDArray[np.int32]
    modules: tuple[str, ...]
    kinds: tuple[Allocation, ...]

    def __len__(self) -> int:
        return len(self.nbytes)

    @property
    def block_bytes(self) -> NDArray[np.int64]:
        """For each allocation, the bytes that `torch.cuda.memory_allocated` counts."""
        from axmem_trace.ledger.allocation import BLOCK_BYTES

        return -(-self.nbytes // BLOCK_BYTES) * BLOCK_BYTES

    def where(self, question: Callable[[Allocation], bool]) -> NDArray[np.bool_]:
        """For each allocation, the answer to a question about its kind: `where(lambda a: a.role == "x")`."""
        import numpy as np

        return np.fromiter(map(question, self.kinds), dtype=bool, count=len(self.kinds))[self.kind]

    def codes(self, question: Callable[[Allocation], int]) -> NDArray[np.int64]:
        """For each allocation, a number that depends only on its kind."""
        import numpy as np

        return np.fromiter(map(question, self.kinds), dtype=np.int64, count=len(self.kinds))[self.kind]

    def alive(self, tick: int) -> NDArray[np.bool_]:
        """For each allocation, `Allocation.alive(tick)`."""
        return (self.allocated_tick <= tick) & (tick < self.freed_tick)

    def make(self, index: int) -> Allocation:
        """One allocation as an object."""
        kind = self.kinds[self.kind[index]]
        return Allocation(
            nbytes=int(self.nbytes[index]),
            allocated_tick=int(self.allocated_tick[index]),
            freed_tick=int(self.freed_tick[index]),
            module=self.modules[self.module[index]],
            **{name: getattr(kind, name) for name in KIND_FIELDS},
        )

    def sum_by_module(self, indices: NDArray[np.intp], sizes: NDArray[np.int64]) -> dict[str, int]:
        """The sizes of the allocations at these positions, summed by module. Modules without allocations are left
        out."""
        import numpy as np

        sums = np.zeros(len(self.modules), dtype=np.int64)
        np.add.at(sums, self.module[indices], sizes[indices])
        return {self.modules[code]: int(sums[code]) for code in sums.nonzero()[0].tolist()}


def make_columns(items: Iterable[Any]) -> Columns:
    """Columns of allocations, or of any objects with their attributes."""
    import numpy as np

    nbytes, allocated, freed, module, kind = [], [], [], [], []
    modules: dict[str, int] = {}
    kinds: dict[tuple[Any, ...], int] = {}
    kind_of = attrgetter(*KIND_FIELDS)
    for item in items:
        nbytes.append(item.nbytes)
        allocated.append(item.allocated_tick)
        freed.append(item.freed_tick)
        module.append(modules.setdefault(item.module, len(modules)))
        kind.append(kinds.setdefault(kind_of(item), len(kinds)))
    return Columns(
        nbytes=np.array(nbytes, dtype=np.int64),
        allocated_tick=np.array(allocated, dtype=np.int64),
        freed_tick=np.array(freed, dtype=np.int64),
        module=np.array(module, dtype=np.int32),
        kind=np.array(kind, dtype=np.int32),
        modules=tuple(modules),
        kinds=tuple(
            Allocation(nbytes=0, allocated_tick=0, **dict(zip(KIND_FIELDS, each, strict=True))) for each in kinds
        ),
    )


class Allocations(Sequence[Allocation]):
    """A sequence of `Allocation`s over columns. Each object is made when it is read."""

    __slots__ = ("_made", "columns")

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._made: tuple[Allocation, ...] = ()

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Allocation: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Allocation]: ...
    def __getitem__(self, index: int | slice) -> Allocation | Sequence[Allocation]:
        if isinstance(index, slice) or self._made:
            return self.made[index]
        return self.columns.make(range(len(self))[index])

    @property
    def made(self) -> tuple[Allocation, ...]:
        """All allocations as objects; they are made only once."""
        if len(self._made) != len(self.columns):
            self._made = tuple(self._make_all())
        return self._made

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self.made)

    def _make_all(self) -> Iterator[Allocation]:
        columns = self.columns
        numbers = (columns.nbytes.tolist(), columns.allocated_tick.tolist(), columns.freed_tick.tolist())
        known = [{name: getattr(kind, name) for name in KIND_FIELDS} for kind in columns.kinds]
        for nbytes, allocated, freed, module, kind in zip(
            *numbers, columns.module.tolist(), columns.kind.tolist(), strict=True
        ):
            yield Allocation(
                nbytes=nbytes, allocated_tick=allocated, freed_tick=freed, module=columns.modules[module], **known[kind]
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Allocations({len(self)})"
