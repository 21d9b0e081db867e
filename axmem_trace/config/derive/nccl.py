"""NCCL's memory on each GPU, outside PyTorch's allocator. Each communicator has buffers from its first exchange on.

Source: NCCL 2.30 (`src/init.cc`, `src/transport/p2p.cc`, `src/transport/nvls.cc`). A channel of a ring has buffers of 9.2
MiB in total, mapped as 10 MiB to receive and 2 MiB to send. Cards that are connected by an NVSwitch get 24 channels. From
Hopper on, the switch itself can compute sums (NVLS), which needs 256 MiB more. Trees, other algorithms, `NCCL_*` variables
and other versions need other amounts: the bytes added here are assumed. PyTorch never counts them.
"""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.parallel import Parallel
from axmem_trace.recipe.recipe import Gpu
from axmem_trace.units import format_bytes

MIB = 1 << 20
CHANNEL_BYTES, SWITCH_CHANNELS, NVLS_BYTES = 12 * MIB, 24, 256 * MIB
ON_PCIE_BYTES = 150 * MIB
"""Cards without a switch: fewer channels."""
WITH_NVLS = ((9, 0), (10, 0), (10, 3))
WITH_SWITCH = ((7, 0), (8, 0), *WITH_NVLS)
"""Compute capabilities of cards that are mostly sold in machines with an NVSwitch: V100, A100, H100, H200, B200, B300."""


def derive_nccl_bytes(draft: Draft, gpu: Gpu, parallel: Parallel) -> int:
    """Bytes on each GPU; 0 for a single GPU."""
    if parallel.num_gpus < 2:
        return 0
    each, groups = bytes_of_communicator(gpu), name_communicators(parallel)
    text = (
        f"NCCL's buffers: {format_bytes(each)} on each GPU for each of {len(groups)} communicator(s) ({', '.join(groups)}), "
        "assumed from this card's usual links. nvidia-smi shows them, PyTorch does not count them. NCCL_NVLS_ENABLE=0 and "
        "fewer channels (NCCL_MAX_NCHANNELS) reduce them"
    )
    draft.note("assumed", "nccl", text)
    return each * len(groups)


def bytes_of_communicator(gpu: Gpu) -> int:
    """Bytes of one communicator.

    >>> bytes_of_communicator(Gpu(compute_capability=(9, 0))) >> 20  # 24 channels of 12 MiB, and NVLS
    544
    """
    if gpu.compute_capability not in WITH_SWITCH:
        return ON_PCIE_BYTES
    nvls = NVLS_BYTES if gpu.compute_capability in WITH_NVLS else 0
    return SWITCH_CHANNELS * CHANNEL_BYTES + nvls


def name_communicators(parallel: Parallel) -> tuple[str, ...]:
    """The groups of ranks that communicate: the group of all ranks, and one for each further axis of the mesh.

    DeepSpeed also clones the group of all ranks (`deepspeed/utils/groups.py`, `_clone_world_group`).

    >>> from axmem_trace.recipe.parallel import Mesh
    >>> name_communicators(Parallel(engine="tensor", num_gpus=8, mesh=Mesh(shard=4, tensor=2)))
    ('all ranks', 'shards', 'tensor parallelism')
    """
    mesh = parallel.mesh
    axes = {
        "copies": mesh.replicate,
        "shards": mesh.num_shards,
        "experts": mesh.expert,
        "shards of experts": mesh.num_shards // mesh.expert if mesh.expert > 1 else 1,
        "tensor parallelism": mesh.tensor,
        "context parallelism": mesh.context,
    }
    divided = [name for name, size in axes.items() if 1 < size < parallel.num_gpus]
    clone = ["DeepSpeed's copy of it"] if parallel.engine.startswith("zero") else []
    return ("all ranks", *clone, *divided)
