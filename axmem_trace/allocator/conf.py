"""`PYTORCH_ALLOC_CONF`: the allocator's settings as PyTorch reads them.

Sources: `AcceleratorAllocatorConfig::parseArgs` and `ConfigTokenizer` (c10/core/AllocatorConfig.h, .cpp) for the
options of all accelerators, `CUDAAllocatorConfig` (c10/cuda/CUDAAllocatorConfig.h, .cpp) for CUDA's own; torch 2.13.
If both `PYTORCH_CUDA_ALLOC_CONF` and `PYTORCH_ALLOC_CONF` are set, `CUDAAllocatorConfig::instance` uses the first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from axmem_trace.allocator.sizes import MIN_LARGE_BYTES, NUM_SIZE_CLASSES, size_class
from axmem_trace.errors import ConfigError
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Allocator
from axmem_trace.units import MIB

MAX_REGISTER_THREADS = 128
BACKENDS = ("native", "cudaMallocAsync")
WITHOUT_EFFECT = {
    "pinned_use_background_threads": "bool", "pinned_max_round_threshold_mb": "count",
    "pinned_max_cached_size_mb": "count", "pinned_use_cuda_host_register": "bool",
    "pinned_use_hip_host_register": "bool", "pinned_num_register_threads": "threads",
    "pinned_reserve_segment_size_mb": "count", "pinned_free_catch_all": "bool",
    "release_lock_on_cudamalloc": "bool", "release_lock_on_hipmalloc": "bool",
    "graph_capture_record_stream_reuse": "bool", "throw_on_cudamalloc_oom": "bool",
}  # fmt: skip
"""Options for host memory, locks and CUDA graphs. They are checked, but do not change the reserved bytes."""


def parse_alloc_conf(text: str) -> Allocator:
    """The settings in `PYTORCH_ALLOC_CONF=text` (or `PYTORCH_CUDA_ALLOC_CONF`), and PyTorch's defaults for all others.

    Raises:
        ConfigError: PyTorch would refuse the string. The error names the option and the accepted values.

    >>> parse_alloc_conf("expandable_segments:True,max_split_size_mb:128").max_split_size_bytes >> 20
    128
    >>> parse_alloc_conf("").expandable_segments
    False
    """
    found: dict[str, Any] = {}
    for key, value in _split_options(text):
        reader = _READERS.get(key)
        if reader is None:
            raise ConfigError(
                f"PyTorch's allocator has no option {key!r}",
                key="PYTORCH_ALLOC_CONF",
                value=text,
                accepted=", ".join(sorted(_READERS)),
            )
        try:
            found[key] = reader(value)
        except ValueError as error:
            raise _refuse(text, key, value, str(error)) from None
    large_segment_mb = found.get("large_segment_size_mb", 20)
    for key in ("max_split_size_mb", "max_non_split_rounding_mb"):
        if found.get(key, large_segment_mb) < large_segment_mb:
            raise _refuse(
                text, key, str(found[key]), f"at least {large_segment_mb}, the size of a large segment in MiB"
            )
    return Allocator(
        expandable_segments=found.get("expandable_segments", False),
        max_split_size_bytes=_mebibytes(found.get("max_split_size_mb", 0)),
        roundup_power2_divisions=found.get("roundup_power2_divisions", 0),
        garbage_collection_threshold=found.get("garbage_collection_threshold", 0.0),
        settings=text,
        large_segment_bytes=large_segment_mb * MIB,
        max_non_split_rounding_bytes=found.get("max_non_split_rounding_mb", large_segment_mb) * MIB,
        per_process_memory_fraction=found.get("per_process_memory_fraction", 1.0),
        backend=found.get("backend", "native"),
    )


def describe_settings(allocator: Allocator) -> tuple[Note, ...]:
    """Warnings about settings that are not modelled or have no effect."""
    notes = Notes()
    if allocator.backend == "cudaMallocAsync":
        text = (
            "backend:cudaMallocAsync: the driver's own memory pool is not modelled; reserved bytes are those of "
            "the native allocator without its options"
        )
        notes.append(Note(kind="not_modelled", key="PYTORCH_ALLOC_CONF", text=text, direction="either"))
    if allocator.garbage_collection_threshold > 0 and allocator.per_process_memory_fraction >= 1.0:
        text = (
            "garbage_collection_threshold has no effect unless the process's memory is limited "
            "(per_process_memory_fraction below 1, or torch.cuda.set_per_process_memory_fraction)"
        )
        notes.append(Note(kind="ignored", key="PYTORCH_ALLOC_CONF", text=text))
    return tuple(notes)


def _split_options(text: str) -> Iterator[tuple[str, str]]:
    """Splits `a:1,b:[x:1,y:2]` into (`a`, `1`), (`b`, `[x:1,y:2]`). Blanks are dropped; one comma may follow the last
    option."""
    rest = re.sub(r"\s", "", text)
    while rest:
        match = re.match(r"([^,:\[\]]+):(\[[^\[\]]*\]|[^,:\[\]]+)(,|$)", rest)
        if match is None:
            raise ConfigError(
                f"cannot read {rest!r}",
                key="PYTORCH_ALLOC_CONF",
                value=text,
                accepted="option:value,option:value; a list is written [a:1,b:2]",
            )
        yield match[1], match[2]
        rest = rest[match.end() :]


def _refuse(text: str, key: str, value: str, accepted: str) -> ConfigError:
    return ConfigError(
        f"PyTorch's allocator refuses {key}:{value}", key="PYTORCH_ALLOC_CONF", value=text, accepted=accepted
    )


def _mebibytes(count: int) -> int:
    """MiB to bytes; a number larger than any card means no limit."""
    return count * MIB if count < 1 << 32 else 0


def _read_bool(value: str) -> bool:
    if value not in ("True", "False"):
        raise ValueError("True or False")
    return value == "True"


def _read_count(value: str) -> int:
    """Reads like C++'s `stoull`: leading digits count, the rest is dropped, and a negative number wraps around to a
    huge one."""
    match = re.match(r"([+-]?)(\d+)", value)
    if match is None or int(match[2]) >= 1 << 64:
        raise ValueError("a whole number")
    return int(match[2]) if match[1] != "-" else (1 << 64) - int(match[2])


def _read_float(value: str) -> float:
    """Reads like C++'s `stod`: a leading number counts, also a hexadecimal one; the rest is dropped."""
    hexadecimal = re.match(r"[+-]?0[xX][\da-fA-F]+(\.[\da-fA-F]*)?([pP][+-]?\d+)?", value)
    if hexadecimal is not None:
        return float.fromhex(hexadecimal[0])
    match = re.match(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value)
    if match is None:
        raise ValueError("a number")
    return float(match[0])


def _read_threshold(value: str) -> float:
    threshold = _read_float(value)
    if not 0.0 < threshold < 1.0:
        raise ValueError("a number between 0 and 1, both excluded")
    return threshold


def _read_fraction(value: str) -> float:
    fraction = _read_float(value)
    if not 0.0 <= fraction <= 1.0:
        raise ValueError("a number from 0 to 1")
    return fraction


def _read_large_segment(value: str) -> int:
    if _read_count(value) <= MIN_LARGE_BYTES // MIB:
        raise ValueError(f"more than {MIN_LARGE_BYTES // MIB} (MiB)")
    return _read_count(value)


def _read_backend(value: str) -> str:
    if value not in BACKENDS:
        raise ValueError(" or ".join(BACKENDS))
    return value


def _is_power_of_2(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _read_divisions(value: str) -> dict[int, int] | int:
    """Reads `4`, or `[256:1,512:2,>:4]`. Returns the divisions by the lower bound in MiB of each size class; all
    classes are listed.

    Sizes up to the first boundary have its value. A class that is not listed between two listed classes has 0 (off).
    """
    if not value.startswith("["):
        number = _read_count(value)
        if not _is_power_of_2(number):
            raise ValueError("a power of 2, or a list such as [256:1,512:2,>:4]")
        return number
    divisions, last, first = [0] * NUM_SIZE_CLASSES, 0, True
    items = value.strip("[]").split(",")
    for item in items if items[-1] else items[:-1]:  # one comma may follow the last item, as in the whole list
        boundary, colon, parts = item.partition(":")
        number = _read_count(parts) if colon else -1
        if number != 0 and not _is_power_of_2(number):
            raise ValueError("in a list: boundary:divisions; the divisions are a power of 2, or 0 to switch off")
        if boundary == ">":
            divisions[last + 1 :] = [number] * (NUM_SIZE_CLASSES - last - 1)
            continue
        if not _is_power_of_2(_read_count(boundary)):
            raise ValueError("in a list: boundaries in MiB that are powers of 2, or > for all larger sizes")
        last = size_class(_read_count(boundary))
        if first:
            divisions[:last], first = [number] * last, False
        divisions[last] = number
    return {1 << index: number for index, number in enumerate(divisions)}


def _read_threads(value: str) -> int:
    threads = _read_count(value)
    if not (_is_power_of_2(threads) and threads <= MAX_REGISTER_THREADS):
        raise ValueError(f"a power of 2, at most {MAX_REGISTER_THREADS}")
    return threads


_READERS_WITHOUT_EFFECT: dict[str, Callable[[str], Any]] = {
    "bool": _read_bool,
    "count": _read_count,
    "threads": _read_threads,
}
_READERS: dict[str, Callable[[str], Any]] = {
    "backend": _read_backend,
    "expandable_segments": _read_bool,
    "garbage_collection_threshold": _read_threshold,
    "large_segment_size_mb": _read_large_segment,
    "max_non_split_rounding_mb": _read_count,
    "max_split_size_mb": _read_count,
    "per_process_memory_fraction": _read_fraction,
    "roundup_power2_divisions": _read_divisions,
    **{key: _READERS_WITHOUT_EFFECT[kind] for key, kind in WITHOUT_EFFECT.items()},
}
