"""The files that `axolotl fetch deepspeed_configs` downloads: only the settings that affect memory.

Source: axolotl 0.19 `deepspeed_configs/`; no later release changes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_AUTO = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "gradient_clipping": "auto"}
_BF16 = {"bf16": {"enabled": True}, "gradient_clipping": "auto"}
_STAGE_1 = {"stage": 1, "overlap_comm": True}
_STAGE_2 = {"stage": 2, "offload_optimizer": {"device": "cpu"}, "contiguous_gradients": True, "overlap_comm": True}
_STAGE_3 = {
    "stage": 3,
    "overlap_comm": True,
    "contiguous_gradients": True,
    "sub_group_size": 0,
    "reduce_bucket_size": "auto",
    "stage3_prefetch_bucket_size": "auto",
    "stage3_param_persistence_threshold": "auto",
    "max_live_parameters": 0,
    "max_reuse_distance": 0,
    "gather_16bit_weights_on_model_save": True,
}
_PINNED = {"device": "cpu", "pin_memory": True}
_OWN_CPU_OPTIMIZER = {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}


def _file(zero: Mapping[str, Any], **rest: Any) -> Mapping[str, Any]:
    return {"zero_optimization": zero, **rest}


STOCK: Mapping[str, Mapping[str, Any]] = {
    "zero1": _file(_STAGE_1, **_AUTO),
    "zero1_torch_compile": _file(_STAGE_1, **_AUTO),
    "zero2": _file(_STAGE_2, **_AUTO),
    "zero2_torch_compile": _file(_STAGE_2, **_AUTO),
    "zero3": _file(_STAGE_3, **_AUTO),
    "zero3_bf16": _file(_STAGE_3, **_BF16),
    "zero3_bf16_cpuoffload_params": _file({**_STAGE_3, "offload_param": _PINNED}, **_BF16, **_OWN_CPU_OPTIMIZER),
    "zero3_bf16_cpuoffload_all": _file(
        {**_STAGE_3, "offload_param": _PINNED, "offload_optimizer": _PINNED}, **_BF16, **_OWN_CPU_OPTIMIZER
    ),
}
"""By the file's name without `.json`."""
