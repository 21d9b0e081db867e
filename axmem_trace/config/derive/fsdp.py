"""The settings of FSDP. Source: axolotl 0.19 and 0.21 `utils/schemas/fsdp.py`, `utils/trainer.py` `setup_fsdp_envs`,
`monkeypatch/accelerate/fsdp2.py`; accelerate 1.15 `utils/dataclasses.py` `FullyShardedDataParallelPlugin`."""

from __future__ import annotations

from typing import Literal

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.model import Dtype
from axmem_trace.recipe.parallel import Fsdp


def requests_fsdp(draft: Draft) -> bool:
    """True if axolotl's validators see FSDP, of either version. `uses_fsdp` says whether axolotl's loader sees it."""
    return bool(draft.get("fsdp") or draft.get("fsdp_config"))


def fsdp_version(draft: Draft) -> int:
    """The version in the keys, or the one that was set when old names of keys were replaced; else axolotl's default."""
    default = draft.release.behaviour.default_fsdp_version
    return int(draft.get("fsdp_version") or draft.sub("fsdp_config").get("fsdp_version") or default)


def derive_fsdp(draft: Draft, version: int) -> Fsdp:
    """`Fsdp` from `fsdp_config`; mixed precision depends only on bf16 and fp16.

    FSDP1 is always FULL_SHARD in axolotl: its strategy and its prefetch cannot be set (`setup_fsdp_envs`).
    """
    config = draft.sub("fsdp_config")
    dtype = _half(draft)
    reshard = config.get("reshard_after_forward")
    loads_on_host = bool(config.get("cpu_ram_efficient_loading"))
    stages = loads_on_host and version == 2 and draft.release.behaviour.stages_nf4 and shards_qlora(draft)
    if loads_on_host and draft.get("load_in_4bit") and not stages:
        text = "loading is assumed to put the whole 4-bit model on each GPU first; loading through the host needs less"
        draft.note("assumed", "fsdp_config.cpu_ram_efficient_loading", text)
        loads_on_host = False
    return Fsdp(
        wrap=_wrap(config.get("auto_wrap_policy")),
        wrap_classes=_names(config.get("transformer_layer_cls_to_wrap")),
        min_num_params=config.get("min_num_params") or 0,
        reshard_after_forward=True if reshard is None else bool(reshard),
        offload_params=bool(config.get("offload_params")),
        pins_offloaded=config.get("cpu_offload_pin_memory") is not False,
        loads_on_host=loads_on_host,
        stages_packed=stages,
        syncs_states=loads_on_host or config.get("sync_module_states") is not False,
        uses_orig_params=config.get("use_orig_params") is not False,
        saves_whole=_saves_whole(draft, version),
        saves_states=_saves_states(draft, version),
        activation_checkpointing=bool(config.get("activation_checkpointing")),
        param_dtype=dtype,
        reduce_dtype=dtype,
        output_dtype=dtype if version == 2 else "",
    )


def shards_qlora(draft: Draft) -> bool:
    """`qlora_sharded_model_loading`, which axolotl switches on for QLoRA with `cpu_ram_efficient_loading`."""
    asked = draft.get("qlora_sharded_model_loading")
    if asked is not None:
        return bool(asked)
    efficient = draft.sub("fsdp_config").get("cpu_ram_efficient_loading")
    return bool(efficient and draft.get("adapter") == "qlora" and draft.get("load_in_4bit"))


def _saves_whole(draft: Draft, version: int) -> bool:
    """True if a checkpoint or the final model is saved as one whole state dict.

    With an adapter, FSDP2 saves only the adapter at the end.
    """
    checkpoint = _checkpoint_type(draft, version)
    final = draft.sub("fsdp_config").get("final_state_dict_type") or draft.get("fsdp_final_state_dict_type")
    ends_whole = (final or checkpoint) == "FULL_STATE_DICT" and not (version == 2 and draft.get("adapter"))
    return ends_whole or (_saves_checkpoints(draft) and checkpoint == "FULL_STATE_DICT")


def _saves_states(draft: Draft, version: int) -> Literal["", "whole", "parts"]:
    """How a checkpoint saves the optimizer's states (transformers 5.20 `trainer.py` `_save_optimizer_and_scheduler`)."""
    if not _saves_checkpoints(draft) or draft.get("save_only_model"):
        return ""
    return "whole" if _checkpoint_type(draft, version) == "FULL_STATE_DICT" else "parts"


def _checkpoint_type(draft: Draft, version: int) -> str:
    """Without a type FSDP1 saves the whole state, and FSDP2 its shards (accelerate 1.15 `utils/dataclasses.py:2049`)."""
    default = "FULL_STATE_DICT" if version == 1 else "SHARDED_STATE_DICT"
    return str(draft.sub("fsdp_config").get("state_dict_type") or default)


def _saves_checkpoints(draft: Draft) -> bool:
    return str(draft.get("save_strategy")) not in ("no", "False")


def _half(draft: Draft) -> Dtype | Literal[""]:
    """The dtype of the Trainer's mixed precision (accelerate `set_mixed_precision`); empty: parameters stay as stored."""
    if draft.get("bf16") or draft.get("bfloat16"):
        return "bfloat16"
    return "float16" if draft.get("fp16") else ""


def _wrap(policy: object) -> Literal["transformer", "size"]:
    return "size" if policy == "SIZE_BASED_WRAP" else "transformer"


def _names(value: object) -> tuple[str, ...]:
    return tuple(name.strip() for name in str(value).split(",") if name.strip()) if value else ()
