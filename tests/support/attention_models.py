"""Two-layer models on meta, one training step of each under the whole attention installation."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import _engine_run_backward

from axmem_trace.kernels.attention.install import install_attention
from axmem_trace.ledger import Ledger
from axmem_trace.models.skeleton.attention_request import attention_without_packages, request_attention
from axmem_trace.notes import Notes
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.cuda_mode import CudaMode
from support.kernel_recording import gpu_recording, site_of

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "num_key_value_heads": 2},
    "gemma2": {"model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 64,
               "query_pre_attn_scalar": 64},
    "gpt_oss": {"model_type": "gpt_oss", "num_key_value_heads": 2, "head_dim": 64, "sliding_window": 64,
                "num_local_experts": 4, "num_experts_per_tok": 2},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 64},
    "falcon": {"model_type": "falcon"},
    "gptj": {"model_type": "gptj", "rotary_dim": 32},
    "deepseek_v3": {"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
                    "qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 32, "first_k_dense_replace": 2},
}  # fmt: skip
_COMMON = {
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


def build(family: str, kernel: str, **changes: Any) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**{**_COMMON, **CONFIGS[family], **changes})
    config.use_cache = False
    request_attention(config, kernel)
    with attention_without_packages(kernel, Notes()), init_empty_weights(include_buffers=True):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return model.train()


def make_inputs(*, rows: int, tokens: int, samples: int = 1, padded: bool = False, mask: bool = True) -> dict[str, Any]:
    ids = torch.full((rows, tokens), 5)
    inputs = {"input_ids": ids, "labels": ids.clone()}
    if mask:
        inputs["attention_mask"] = torch.ones_like(ids)
        if padded:
            inputs["attention_mask"][-1, -16:] = 0
    if samples > 1:
        inputs["position_ids"] = (torch.arange(tokens) % (tokens // samples)).expand(rows, -1).clone()
    return inputs


def trace(
    model: Any, inputs: dict[str, Any], *, kernel: str, capability: tuple[int, int] = (8, 0)
) -> tuple[Ledger, KernelContext]:
    """Forward and backward of one batch; the ledger's phases are `forward` and `backward` of step 1."""
    recording = gpu_recording(compute_capability=capability, attention=kernel)
    recorder = recording.recorder
    context = recording.context
    with site_of(recording, model) as site, recording, recorder.watch(model), CudaMode(recording).opened():
        install_attention(site)
        recorder.mark("forward", 1)
        placed = {name: recorder.place(value) for name, value in inputs.items()}
        loss = model(**placed, use_cache=False).loss
        recorder.mark("backward", 1)
        _engine_run_backward(
            (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
        )
        return recorder.make_ledger(), context


def kept_by(ledger: Ledger, *, op: str = "", module: str = "self_attn") -> list[int]:
    """Sizes kept for backward by operators whose name contains `op`, in modules whose name contains `module`."""
    return sorted(
        (each.nbytes for each in ledger.allocations if each.kept and op in each.op and module in each.module),
        reverse=True,
    )


def operators(ledger: Ledger) -> set[str]:
    return {each.op for each in ledger.allocations}
