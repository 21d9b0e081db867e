"""The caching allocator: a replay that computes CUDA's `reserved` bytes. No torch here.

sizes        rounding of requests, sizes of segments
blocks       blocks in use, and the pools of free blocks
expandable   segments that grow page by page
accounts     bytes allocated and reserved, limits, history
caching      `CachingAllocator`: malloc, free, empty_cache
conf         reads the settings in `PYTORCH_ALLOC_CONF`
plan         facts about each allocation, computed before a replay begins
replay       runs a ledger through the allocator; `reservation`: the result
"""

from __future__ import annotations

from axmem_trace.allocator.conf import describe_settings, parse_alloc_conf
from axmem_trace.allocator.replay import replay
from axmem_trace.allocator.reservation import OutOfMemory, Reservation

__all__ = ["OutOfMemory", "Reservation", "describe_settings", "parse_alloc_conf", "replay"]
