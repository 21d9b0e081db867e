"""The caching allocator: what CUDA's `reserved` bytes would have been. No torch here.

sizes        rounding of requests, sizes of segments
blocks       blocks in use, the pools of free ones
expandable   segments that grow page by page
accounts     bytes allocated and reserved, limits, history
caching      `CachingAllocator`: malloc, free, empty_cache
conf         `PYTORCH_ALLOC_CONF` to settings
plan         what a replay knows of each allocation before it begins
replay       a ledger through the allocator; `reservation`: what it held
"""

from __future__ import annotations

from axmem_trace.allocator.conf import describe_settings, parse_alloc_conf
from axmem_trace.allocator.replay import replay
from axmem_trace.allocator.reservation import OutOfMemory, Reservation

__all__ = ["OutOfMemory", "Reservation", "describe_settings", "parse_alloc_conf", "replay"]
