"""The range of the memory that a card needs: how far `nvidia-smi` was from the estimate in measured runs.

`errors.json` has the table (`ranges`), which `scripts/write_errors.py` writes from `tests/measured/published/runs.json`.
Two causes are known. First, `nvidia-smi` is above the estimate in every run of one software stack (transformers 4.48):
0.6 to 1.4 GiB are outside PyTorch's allocator. The bytes are the same for every model, batch and method; their use is
not known. Second, `nvidia-smi` is below the estimate in runs that fill the card, where the default allocator frees its
cache: `nvidia-smi` was read only once a second, so it missed the highest moment.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache

from axmem_trace.report.accuracy import FILE
from axmem_trace.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRange:
    """How far `nvidia-smi` was from the estimate in measured runs, on one GPU or on several.

    Attributes:
        engines: `one GPU` or `several GPUs`.
        runs: the number of measured runs.
        missing_share, missing_gib: how much more than estimated a run needed at most: as a share of the estimate, and
            in GiB.
        extra_share: nine of ten runs needed less than estimated by at most this share of the estimate.
    """

    engines: str
    runs: int
    missing_share: float
    missing_gib: float
    extra_share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRange:
    """The range in which `nvidia-smi` will be, according to measured runs.

    Attributes:
        low_bytes: in proportion, nine of ten measured runs were not below this.
        high_bytes: no measured run was above this: the smaller of the largest missing share and the most missing bytes.
        runs: the number of measured runs. Those on one GPU used PyTorch's default allocator.
    """

    low_bytes: int = 0
    high_bytes: int = 0
    runs: int = 0


@cache
def read_ranges() -> dict[str, MeasuredRange]:
    """The package's table, by `MeasuredRange.engines`."""
    rows = json.loads(FILE.read_text(encoding="utf-8"))["ranges"]
    return {row["engines"]: MeasuredRange(**row) for row in rows}


def find_range(device_bytes: int, *, num_gpus: int) -> DeviceRange:
    """The range of what a card needs.

    Args:
        device_bytes: the estimate: reserved memory, CUDA context, NCCL's buffers.
        num_gpus: the number of GPUs of the run.
    """
    return apply_range(read_ranges()["one GPU" if num_gpus == 1 else "several GPUs"], device_bytes)


def apply_range(measured: MeasuredRange, device_bytes: int) -> DeviceRange:
    """The range around an estimate.

    >>> measured = MeasuredRange(engines="one GPU", runs=5, missing_share=0.1, missing_gib=2.0, extra_share=0.05)
    >>> small, large = apply_range(measured, 10 * GIB), apply_range(measured, 40 * GIB)
    >>> small.high_bytes / GIB, large.high_bytes / GIB, large.low_bytes / GIB
    (11.0, 42.0, 38.0)
    """
    missing = min(measured.missing_share * device_bytes, measured.missing_gib * GIB)
    low = round(device_bytes * (1 - measured.extra_share))
    return DeviceRange(low_bytes=low, high_bytes=round(device_bytes + missing), runs=measured.runs)
