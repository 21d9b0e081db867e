"""A frozen second model under ZeRO-3. It is sharded like the policy, and gathered module by module when it runs. No
optimizer updates it.

Source: TRL 1.14.1 `models/utils.py` `prepare_deepspeed`, called in `__init__` of the trainer; deepspeed 0.19.8
`runtime/engine.py` `_configure_zero_optimizer` (no optimizer: `runtime/zero/parameter_offload.py`
`DeepSpeedZeRoOffload`), `runtime/config_utils.py` `DeepSpeedConfigModel.__init__`, `runtime/zero/config.py`.
"""

from __future__ import annotations

import torch
from torch import nn

from axmem_trace.parallel.host import HostMemory
from axmem_trace.parallel.wrapped_names import plain_name
from axmem_trace.parallel.zero.gathering import gather_by_hooks
from axmem_trace.parallel.zero.leaves import leaf_test
from axmem_trace.parallel.zero.loading import cast_model, divide_made
from axmem_trace.parallel.zero.parts import Parts
from axmem_trace.recipe.parallel import Zero
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder

_DEFAULTS = Zero()


def divide_frozen(recipe: Recipe, recorder: Recorder, model: nn.Module, *, while_loading: bool) -> None:
    """Shards the model as part of loading, and adds the hooks with which its modules gather their parameters.

    TRL makes the engine before the Trainer replaces "auto" by sizes from the hidden size. TRL writes its own sizes to
    keys that DeepSpeed does not read. So DeepSpeed ignores "auto" and uses its defaults: it prefetches 5e7 elements,
    and parameters of up to 1e5 elements stay whole.

    Args:
        while_loading: whether `zero.Init` shards each module when it is made. Otherwise the whole model is first on the
            GPU.
    """
    zero, device = recipe.parallel.zero, torch.device(recorder.traced_device)
    parts = Parts(
        recorder, HostMemory(recorder, pins=zero.pins_params), offload=bool(zero.offload_params), device=device
    )
    names = {plain_name(name): plain_name(name).rpartition(".")[0] for name, _ in model.named_parameters()}
    dtype = getattr(torch, recipe.precision.load_dtype)
    for tensor in model.buffers():
        recorder.register(tensor, role="reference")
    if while_loading:
        divide_made(model, names, parts, recorder, role="reference", dtype=dtype)
    else:
        for tensor in model.parameters():
            recorder.register(tensor, role="reference")
        cast_model(model, dtype, buffers=zero.casts_buffers)
        for name, parameter in model.named_parameters():
            parts.divide(parameter, role="reference", module=names[plain_name(name)])
    gather_by_hooks(
        model,
        parts,
        zero,
        prefetch=_size(zero.prefetch_bucket_elements, _DEFAULTS.prefetch_bucket_elements),
        persistence=_size(zero.persistence_elements, _DEFAULTS.persistence_elements),
        is_leaf=leaf_test(model),
        device=device,
    )


def _size(said: int, default: int) -> int:
    return said if said >= 0 else default
