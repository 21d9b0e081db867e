"""Sizes: how the caching allocator rounds a request, and how many bytes it requests from the driver.

Sources: `c10/core/AllocatorConfig.h` (constants) and `DeviceCachingAllocator::round_size`, `get_allocation_size`
(c10/cuda/CUDACachingAllocator.cpp), `AcceleratorAllocatorConfig::roundup_power2_divisions`
(c10/core/AllocatorConfig.cpp); torch 2.13.
"""

from __future__ import annotations

from collections.abc import Mapping

from axmem_trace.units import MIB

MIN_BLOCK_BYTES = 512
"""`kMinBlockSize`: every block is a multiple of it."""
SMALL_BYTES = 1 * MIB
"""`kSmallSize`: the largest request that the small pool serves."""
SMALL_SEGMENT_BYTES = 2 * MIB
"""`kSmallBuffer`: a segment of the small pool, and a page of its expandable segment."""
MIN_LARGE_BYTES = 10 * MIB
"""`kMinLargeAlloc`: from this size on, a request gets a segment of its own size."""
ROUND_LARGE_BYTES = 2 * MIB
"""`kRoundLarge`: the size of such a segment is a multiple of this."""
NUM_SIZE_CLASSES = 16
"""Number of size classes of `roundup_power2_divisions`: one below 2 MiB, then one for each power of two; the last
begins at 32 GiB."""


def list_divisions(setting: Mapping[int, int] | int) -> tuple[int, ...]:
    """The divisions of each size class, smallest class first; 0 switches the rounding off.

    Args:
        setting: one number for all classes, or the divisions by class. A class is named by its lower bound in MiB (a
            power of two). Classes below the smallest named class have its value; other classes that are not named have
            0, as in the list form of PyTorch's option.
    """
    if not isinstance(setting, Mapping):
        return (int(setting),) * NUM_SIZE_CLASSES
    divisions = [0] * NUM_SIZE_CLASSES
    for rank, (boundary, value) in enumerate(sorted(setting.items())):
        index = size_class(boundary)
        if rank == 0:
            divisions[:index] = [value] * index
        divisions[index] = value
    return tuple(divisions)


def size_class(mebibytes: int) -> int:
    """Index of the size class that contains a size of this many MiB."""
    return min(max(mebibytes.bit_length() - 1, 0), NUM_SIZE_CLASSES - 1)


def round_size(nbytes: int, divisions: tuple[int, ...]) -> int:
    """Size of the block for a request of `nbytes` > 0: a multiple of 512 bytes. If N divisions are set for the size
    class, the size is rounded up to one of N equal steps between two powers of two.

    >>> round_size(1, (0,) * 16), round_size(513, (0,) * 16)
    (512, 1024)
    >>> round_size(1200, (4,) * 16)     # at most 4 blocks: plain rounding
    1536
    >>> round_size(1200 << 10, (4,) * 16) >> 10     # 1024 KiB + a quarter of it
    1280
    """
    if nbytes < MIN_BLOCK_BYTES:
        return MIN_BLOCK_BYTES
    parts = divisions[size_class(nbytes >> 20)]
    if parts > 1 and nbytes > MIN_BLOCK_BYTES * parts:
        step = (1 << (nbytes.bit_length() - 1)) // parts
        return -(-nbytes // step) * step
    return -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES


def segment_size(size: int, large_segment_bytes: int) -> int:
    """Bytes that are requested from the driver if no cached block is large enough for a block of `size` bytes."""
    if size <= SMALL_BYTES:
        return SMALL_SEGMENT_BYTES
    if size < MIN_LARGE_BYTES:
        return large_segment_bytes
    return -(-size // ROUND_LARGE_BYTES) * ROUND_LARGE_BYTES
