"""The target GPU and the caching allocator's settings. Source of the defaults: axolotl `utils/__init__.py`
`set_pytorch_cuda_alloc_conf`."""

from __future__ import annotations

import os
from dataclasses import replace

from axmem_trace.config.document.draft import Draft
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Allocator, Gpu
from axmem_trace.units import parse_margin

AXOLOTL_ALLOC_CONF = "expandable_segments:True"
"""The value that axolotl sets with torch 2.9 and later, unless the user has set the variable."""


def read_count(gpu: str, num_gpus: int) -> tuple[int, str]:
    """The number of cards and the card's name: `4 x A100-40GB` has both.

    >>> read_count("4 x A100-40GB", 0)
    (4, 'A100-40GB')

    Raises:
        ConfigError: `num_gpus` is another number, or the number in `gpu` is 0.
    """
    from axmem_trace.catalogue.gpus import split_count

    count, name = split_count(gpu)
    if not count:
        return num_gpus, gpu
    if num_gpus not in (0, count):
        problem = f"--gpu {gpu} and --gpus {num_gpus} name different numbers of cards"
        raise ConfigError(problem=problem, key="--gpu", remedy="give the number once")
    return count, name


def derive_gpu(gpu: str, num_gpus: int) -> Gpu:
    """The card with this name or size. If `gpu` is empty: `UNNAMED_GPU`, which has no size.

    Raises:
        ConfigError: no such card.
    """
    from axmem_trace.catalogue.gpus import UNNAMED_GPU, find_gpu

    try:
        found = find_gpu(gpu) if gpu else UNNAMED_GPU
    except ConfigError as error:
        error.key, error.flag = gpu, "--gpu"
        raise
    return replace(found, count=max(1, num_gpus))


def derive_margin(margin: str, gpu: Gpu) -> Gpu:
    """The card with the memory that must stay free: a size (`1GiB`) or a share of the card (`5%`); empty: none.

    Raises:
        ConfigError: it is neither, or no card was named.
    """
    if not margin:
        return gpu
    try:
        nbytes, share = parse_margin(margin)
    except (ValueError, OverflowError) as error:
        raise ConfigError(problem=str(error), key="--margin", accepted="1GiB, 512MiB, 5%") from None
    if not gpu.memory_bytes:
        problem = f"--margin {margin} is memory that must stay free on the card, but no card was named"
        raise ConfigError(problem=problem, key="--margin", remedy="name the card with --gpu (gpu=)")
    return replace(gpu, margin_bytes=nbytes or round(share * gpu.memory_bytes), margin_share=share)


def derive_allocator(draft: Draft) -> Allocator:
    """The settings in the environment, else axolotl's.

    `PYTORCH_CUDA_ALLOC_CONF` takes precedence over `PYTORCH_ALLOC_CONF`, which axolotl sets if it is not set
    (c10/cuda/CUDAAllocatorConfig.h). An empty value of either means PyTorch's defaults.

    Raises:
        ConfigError: PyTorch would refuse the variable's value.
    """
    from axmem_trace.allocator.conf import parse_alloc_conf

    settings, origin = AXOLOTL_ALLOC_CONF, "axolotl sets it (torch 2.9 and later)"
    for variable in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        value = os.environ.get(variable)
        if value is not None:
            settings, origin = value, f"the environment variable {variable}, as it is here"
            break
    draft.reason(
        "allocator.settings",
        settings or "default",
        origin,
        origin="default" if settings == AXOLOTL_ALLOC_CONF else "derived",
    )
    steps, collect = draft.get("torch_empty_cache_steps") or 0, draft.get("gc_collect_steps") or 0
    return replace(parse_alloc_conf(settings), empty_cache_steps=max(0, steps), collect_steps=collect)
