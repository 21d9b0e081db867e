"""The facts of a run (when each storage is allocated and freed), and the queries on them. No torch here.

allocation   one storage: size, first and last tick, where it was allocated, its role and bucket
columns      all of them as arrays
intervals    the time from one mark to the next, and the peak of a level in it
ledger       `Ledger`: all of them in order, the marks of the phases, and the queries
spans        the peak of each phase of each step, with its buckets
"""

from axmem_trace.ledger.allocation import (
    BLOCK_BYTES,
    BUCKETS,
    NEVER,
    Allocation,
    Bucket,
    Device,
    Mark,
    Phase,
    Role,
    block_bytes,
)
from axmem_trace.ledger.ledger import Event, Ledger, Moment, same_events, sum_by

__all__ = [
    "BLOCK_BYTES",
    "BUCKETS",
    "NEVER",
    "Allocation",
    "Bucket",
    "Device",
    "Event",
    "Ledger",
    "Mark",
    "Moment",
    "Phase",
    "Role",
    "block_bytes",
    "same_events",
    "sum_by",
]
