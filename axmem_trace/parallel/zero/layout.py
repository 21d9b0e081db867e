"""How ZeRO-1 and 2 shard a group of parameters: they are put one after the other into a flat buffer, which is divided
into equal partitions.

Source: deepspeed 0.19.8 `runtime/zero/stage_1_and_2.py` `get_data_parallel_partitions`, `get_partition_info`,
`initialize_gradient_partition`, `_round_robin_reorder`; `runtime/utils.py` `align_dense_tensors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

START_ALIGNMENT = 2
"""`nccl_start_alignment_factor`: each partition starts at a multiple of this number of elements."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The part of a parameter that is in one partition.

    Attributes:
        index: the position of the parameter in the flat buffer; 0 is the first.
        partition: the partition (rank) that owns it.
        start: the slice's first element in the parameter.
        offset: the slice's first element in the partition.
        elements: the number of elements.
    """

    index: int
    partition: int
    start: int
    offset: int
    elements: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A flat buffer of parameters with `sizes` elements, for `num_partitions` ranks.

    >>> layout = Layout((5, 6), num_partitions=2)
    >>> layout.elements, layout.partition_elements  # 11 rounded up to a multiple of 2 x 2
    (12, 6)
    >>> [(each.index, each.start, each.elements) for each in layout.slices(1)]
    [(1, 1, 5)]
    """

    sizes: tuple[int, ...]
    num_partitions: int

    @property
    def elements(self) -> int:
        """Elements of the buffer, including its padding at the end."""
        alignment = START_ALIGNMENT * self.num_partitions
        return -(-sum(self.sizes) // alignment) * alignment

    @property
    def partition_elements(self) -> int:
        """Elements of each partition."""
        return self.elements // self.num_partitions

    def slices(self, partition: int) -> tuple[Slice, ...]:
        """The slices of the parameters that are in a partition, in order."""
        return tuple(each for owned in self.owners() for each in owned if each.partition == partition)

    def owners(self) -> tuple[tuple[Slice, ...], ...]:
        """The slices of each parameter, in order."""
        found, begin = [], 0
        for index, count in enumerate(self.sizes):
            found.append(tuple(self._cut(index, begin, begin + count)))
            begin += count
        return tuple(found)

    def _cut(self, index: int, begin: int, end: int) -> Iterator[Slice]:
        size = self.partition_elements
        for partition in range(begin // size, -(-end // size)) if size else ():
            first, last = max(begin, partition * size), min(end, (partition + 1) * size)
            yield Slice(index, partition, first - begin, first - partition * size, last - first)


def elements_kept(layout: Layout) -> list[int]:
    """By rank, the elements of the gradients that it keeps: the whole gradient of each parameter that is at least
    partly in its partition.

    >>> elements_kept(Layout((10, 7, 3), 3))
    [10, 17, 10]
    """
    kept = [0] * layout.num_partitions
    for size, owners in zip(layout.sizes, layout.owners(), strict=True):
        for part in owners:
            kept[part.partition] += size
    return kept


def round_robin(count: int, num_partitions: int) -> tuple[int, ...]:
    """The order of the parameters with `round_robin_gradients`: neighbours are on different ranks.

    >>> round_robin(5, 2)
    (0, 2, 4, 1, 3)
    """
    return tuple(index for start in range(num_partitions) for index in range(start, count, num_partitions))


def joined(slices: Sequence[Slice]) -> list[tuple[int, int]]:
    """Owner and length of each range of a bucket. Adjacent slices of the same owner are one range, which is reduced at
    once."""
    runs: list[tuple[int, int]] = []
    for each in slices:
        if runs and runs[-1][0] == each.partition:
            runs[-1] = (each.partition, runs[-1][1] + each.elements)
        else:
            runs.append((each.partition, each.elements))
    return runs
