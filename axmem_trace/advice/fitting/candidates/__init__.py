"""The changes that `fit` tries. Each file has the settings, the cost and the explanation of one kind of change."""

from __future__ import annotations

from axmem_trace.advice.fitting.candidate import Candidate
from axmem_trace.advice.fitting.candidates import (
    activation_offloading,
    attention_kernel,
    checkpointing,
    checkpointing_kind,
    chunked_cross_entropy,
    cut_cross_entropy,
    eight_bit_optimizer,
    evaluation_batch,
    expandable_segments,
    layer_offloading,
    liger_fused_loss,
    liger_layers,
    lora_kernels,
    micro_batch,
    paged_optimizer,
    quantised_base,
    rank,
    sequence_len,
    sharding,
    tiled_mlp,
)

CANDIDATES: tuple[Candidate, ...] = (
    cut_cross_entropy.CANDIDATE,
    liger_fused_loss.CANDIDATE,
    chunked_cross_entropy.CANDIDATE,
    checkpointing.CANDIDATE,
    checkpointing_kind.CANDIDATE,
    attention_kernel.CANDIDATE,
    lora_kernels.CANDIDATE,
    liger_layers.CANDIDATE,
    expandable_segments.CANDIDATE,
    evaluation_batch.CANDIDATE,
    micro_batch.CANDIDATE,
    tiled_mlp.CANDIDATE,
    activation_offloading.CANDIDATE,
    layer_offloading.CANDIDATE,
    paged_optimizer.CANDIDATE,
    eight_bit_optimizer.CANDIDATE,
    sharding.FSDP,
    sharding.ZERO,
    quantised_base.CANDIDATE,
    rank.CANDIDATE,
    sequence_len.CANDIDATE,
)
"""The candidates in the order in which they are shown and tried, the gentlest first."""
