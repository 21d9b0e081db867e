"""Runs on several GPUs that axolotl's validators accept, but that certainly fail later: when the model is loaded, or when
the trainer is created. Most depend on the number of GPUs, which a `Rule` does not see."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.parallel import Engine
from axmem_trace.recipe.run import BITSANDBYTES_OPTIMIZERS


def refuse_certain_stops(draft: Draft, engine: Engine, num_ranks: int) -> None:
    """Adds a refusal for each reason. The figures stay.

    Args:
        num_ranks: GPUs of the run.
    """
    if num_ranks < 2:
        return
    if engine == "tensor":
        _refuse_figures_of_tensor(draft)
    if engine in ("fsdp1", "fsdp2"):
        _refuse_fsdp(draft, engine)
    if engine in ("fsdp2", "tensor") and draft.get("optimizer") in BITSANDBYTES_OPTIMIZERS:
        _refuse_bitsandbytes(draft)
    tensor = draft.get("tensor_parallel_size") or 1
    if tensor > 1 and draft.release.is_before("0.20"):
        _refuse_tensor_0_19(draft, tensor, num_ranks)
    elif tensor > 1:
        _refuse_tensor(draft)
    if _reenters(draft):
        draft.refuse(
            "preference training of a QLoRA on several GPUs can't checkpoint with use_reentrant: true",
            "gradient_checkpointing_kwargs",
            remedy="set `use_reentrant: false`",
        )


def _refuse_fsdp(draft: Draft, engine: Engine) -> None:
    """transformers 5.16 and 5.20 `trainer.py` `create_accelerator_and_postprocess`; accelerate 1.13 `utils/dataclasses.py`
    `FullyShardedDataParallelPlugin.__post_init__`; axolotl 0.19 `utils/trainer.py` `setup_fsdp_envs`."""
    config = draft.sub("fsdp_config")
    if config.get("activation_checkpointing") and draft.get("gradient_checkpointing"):
        draft.refuse(
            "the Trainer refuses FSDP's activation_checkpointing together with gradient_checkpointing",
            "gradient_checkpointing",
            remedy="remove one of them",
        )
    if engine == "fsdp1" and config.get("reshard_after_forward"):
        draft.refuse(
            "with FSDP1, accelerate reads reshard_after_forward as the name of a sharding strategy: KeyError 'TRUE'",
            "fsdp_config",
            remedy="set `fsdp_version: 2`, or remove reshard_after_forward",
        )
    if draft.get("fsdp") and not draft.get("fsdp_config"):
        draft.refuse(
            "axolotl reads `fsdp_config` if `fsdp` is given, and fails without it",
            "fsdp",
            remedy="add `fsdp_config:`, or better replace `fsdp` by `fsdp_version: 2` with an `fsdp_config`",
        )


def _refuse_bitsandbytes(draft: Draft) -> None:
    """bitsandbytes 0.50 `optim/optimizer.py` gives the parameter itself to `optimizer_update_32bit` or
    `optimizer_update_8bit_blockwise`. These operators have no sharding strategy, so torch fails on a parameter that is a
    DTensor."""
    name = draft.get("optimizer")
    instead = "adamw_torch_8bit" if name.endswith("8bit") else "adamw_torch_fused"
    draft.refuse(
        "the first step fails: bitsandbytes' optimizers have no operators for the DTensors of FSDP2 and tensor parallelism "
        f"(the figures are with `optimizer: {instead}`)",
        "optimizer",
        remedy=f"use {instead}",
    )
    draft.values["optimizer"] = instead


def _refuse_tensor_0_19(draft: Draft, tensor: int, num_ranks: int) -> None:
    """transformers 5.16 `distributed/mixin.py`: axolotl 0.19 passes tp_size alone (`loaders/model.py`)."""
    if tensor != num_ranks:
        draft.refuse(
            f"transformers refuses to load: tensor_parallel_size {tensor} x 1 is not the number of GPUs, {num_ranks}",
            "tensor_parallel_size",
            remedy=f"set it to {num_ranks}, or name a newer axolotl with --axolotl 0.21.0",
        )
    elif not draft.get("unfrozen_parameters"):
        draft.refuse(
            "torch refuses to clip: the gradients of layers are DTensors, those of norms and of the embedding are not (the "
            "figures are those of axolotl 0.20, which makes all of them DTensors)",
            "tensor_parallel_size",
            remedy="name a newer axolotl with --axolotl 0.21.0",
        )


def _refuse_figures_of_tensor(draft: Draft) -> None:
    """There are no figures for adapters. Either the run fails while it loads the model (axolotl 0.21 `loaders/model.py`
    `check_tensor_parallel_adapter_support`), or the layers are NVFP4, which is not modelled."""
    if draft.get("adapter"):
        draft.fail(
            draft.error(
                "axolotl refuses tensor parallelism with an adapter, unless the base is native NVFP4, which is not modelled",
                "tensor_parallel_size",
                remedy="use FSDP (dp_shard_size) or context_parallel_size",
            )
        )
    if draft.get("rl"):
        text = "preference training and reinforcement learning with tensor parallelism are not modelled"
        draft.fail(draft.error(text, "tensor_parallel_size", remedy="use FSDP (fsdp_config)"))


def _refuse_tensor(draft: Draft) -> None:
    """transformers 5.20 `trainer.py` (`Trainer.__init__`: checkpoints; `create_accelerator_and_postprocess`: sizes);
    accelerate 1.15 `parallelism_config.py`."""
    if not draft.get("save_only_model") and draft.get("save_strategy") != "no":
        draft.refuse(
            "the Trainer can't save the optimizer of a model that was divided while it was loaded",
            "tensor_parallel_size",
            remedy="set `save_only_model: true`, or `save_strategy: 'no'`",
        )
    others = [key for key in ("dp_replicate_size", "context_parallel_size") if (draft.get(key) or 1) > 1]
    if others:
        draft.refuse(
            f"tensor parallelism with {others[0]}: the Trainer counts these GPUs twice, and accelerate refuses to start "
            "(the figures are for FSDP2 over them)",
            "tensor_parallel_size",
            remedy=f"remove {others[0]}",
        )


def _reenters(draft: Draft) -> bool:
    """`check_rl_config_gradient_checkpointing`."""
    reentrant = draft.sub("gradient_checkpointing_kwargs").get("use_reentrant")
    quantised = draft.get("load_in_4bit") and draft.get("adapter") == "qlora"
    return bool(draft.get("rl") and draft.get("gradient_checkpointing") and reentrant and quantised)
