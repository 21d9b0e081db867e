"""bitsandbytes' optimizers: the real classes, run on meta.

The update itself is one CUDA kernel that works in place and needs no workspace (bitsandbytes/backends/cuda/ops.py,
`_optimizer_update_32bit_impl`, `_optimizer_update_8bit_blockwise_impl`); bitsandbytes registers a fake kernel for it,
so it runs on meta. This file replaces two other parts: managed memory, which needs a GPU's driver, and bitsandbytes'
process-wide registries, which must not keep the parameters of one run for the next run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from axmem_trace.tracing.patching import replaced, replaced_all
from axmem_trace.training.optimizers.groups import uses_axolotl_groups
from axmem_trace.training.optimizers.outside_gpu import empty_outside_gpu
from axmem_trace.training.optimizers.request import Request
from axmem_trace.training.optimizers.traced import TracedOptimizer


def build_bnb(request: Request) -> TracedOptimizer:
    """transformers/trainer_optimizer.py, `_get_bitsandbytes_optimizer`, and the override of embeddings in
    `Trainer.create_optimizer`.

    8-bit state is one byte for each element plus one fp32 `absmax` for each block of 256. Tensors of fewer than 4096
    elements and the weights of `nn.Embedding` keep fp32 state. axolotl's own `create_optimizer` (used with
    `embedding_lr`, `lr_groups` or LoRA+) checks for a class called `Adam8bit`, which transformers never passes. So
    embeddings have 8-bit state in these runs.
    """
    optimizer_class, kwargs = _class_and_kwargs(request)
    with own_registries() as manager, managed_memory_on_meta():
        optimizer = optimizer_class(request.groups, lr=request.lr, **kwargs)
        if kwargs["optim_bits"] == 8:
            _keep_embeddings_in_fp32(request, manager)
    if kwargs.get("is_paged"):
        request.note(
            "ruled",
            "paged states of 100,000 elements or more are CUDA managed memory, outside PyTorch's "
            "allocator (bitsandbytes/optim/optimizer.py, get_state_buffer)",
        )
    return request.traced(optimizer, around_step=managed_memory_on_meta)


def _class_and_kwargs(request: Request) -> tuple[Any, dict[str, Any]]:
    from bitsandbytes import optim

    name, bits = request.name, 8 if "8bit" in request.name else 32
    kwargs: dict[str, Any] = {"optim_bits": bits}
    if "rmsprop" in name:
        keys = ("alpha", "eps", "weight_decay", "momentum", "centered", "max_unorm", "min_8bit_size")
        kwargs.update({key: request.arg(key, None, float) for key in keys if key in request.args})
        return optim.RMSprop, kwargs
    kwargs["is_paged"] = "paged" in name
    betas, eps = request.adam_kwargs["betas"], request.adam_kwargs["eps"]
    if "ademamix" in name:
        betas = tuple(request.arg(f"beta{i + 1}", beta, float) for i, beta in enumerate((*betas, 0.9999)))
        kwargs.update(betas=betas, eps=request.arg("eps", eps, float), alpha=request.arg("alpha", 5.0, float))
        kwargs.update({key: request.arg(key, None, int) for key in ("t_alpha", "t_beta3") if key in request.args})
        return optim.AdEMAMix, kwargs
    kwargs["betas"] = betas
    if "lion" in name:
        return optim.Lion, kwargs
    return optim.AdamW, {**kwargs, "eps": eps}


def _keep_embeddings_in_fp32(request: Request, manager: Any) -> None:
    if uses_axolotl_groups(request.recipe, custom=False):
        request.note(
            "traced",
            "embeddings get 8-bit optimizer state: with embedding_lr, lr_groups or LoRA+ axolotl's "
            "fp32 exception never matches (core/trainers/mixins/optimizer.py, create_optimizer)",
        )
        return
    for module in request.module.modules():
        if isinstance(module, nn.Embedding):
            manager.register_module_override(module, "weight", {"optim_bits": 32})


@contextmanager
def own_registries() -> Iterator[Any]:
    """While open, the optimizers use new `GlobalOptimManager` and `GlobalPageManager` objects; yields the first of
    them.

    bitsandbytes has one of each in a process. They keep overrides by `id(parameter)`, and every paged tensor,
    permanently.
    """
    from bitsandbytes.functional import GlobalPageManager
    from bitsandbytes.optim import GlobalOptimManager

    with replaced(GlobalOptimManager, "_instance", None), replaced(GlobalPageManager, "_instance", None):
        yield GlobalOptimManager.get_instance()


@contextmanager
def managed_memory_on_meta() -> Iterator[None]:
    """Replaces bitsandbytes' calls into the CUDA driver for paged state.

    `get_paged` returns a meta tensor that is marked as paged. It is not recorded, because managed memory is not part of
    the caching allocator. `fill` and `prefetch_tensor` allocate nothing.
    """
    import bitsandbytes.functional as functional

    def get_paged(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        buffer = empty_outside_gpu(shape, dtype, "managed")
        buffer.is_paged, buffer.page_deviceid = True, 0  # type: ignore[attr-defined]
        return buffer

    def nothing(*_: Any, **__: Any) -> None:
        return None

    answers = {"get_paged": get_paged, "fill": nothing, "prefetch_tensor": nothing}
    with replaced_all(functional, answers):
        yield
