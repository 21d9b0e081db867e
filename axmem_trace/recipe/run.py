"""How the model is trained, and on what: checkpointing, kernels, loss, optimizer, batches, card, allocator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from axmem_trace.recipe.model import empty_mapping

Offload = Literal["none", "activations", "legacy", "disk", "hidden_states"]
"""What activation offloading moves to the host, and how."""
Implementation = Literal["fused", "foreach", "for-loop", "library"]
"""How an optimizer steps."""
LIGER_KEYS = {
    "rope": "liger_rope",
    "rms_norm": "liger_rms_norm",
    "rms_norm_gated": "liger_rms_norm_gated",
    "layer_norm": "liger_layer_norm",
    "glu_activation": "liger_glu_activation",
}
"""Of Liger's layers (`Kernels.liger`), the configuration's key for each."""
LORA_KERNEL_KEYS = {
    "mlp": "lora_mlp_kernel",
    "qkv": "lora_qkv_kernel",
    "o": "lora_o_kernel",
    "embedding": "lora_embedding_kernel",
}
"""The same of axolotl's fused LoRA kernels (`Kernels.lora`)."""
VALIDATED_LORA_KERNEL_KEYS = tuple(LORA_KERNEL_KEYS[kernel] for kernel in ("mlp", "qkv", "o"))
"""Those that axolotl's validators look at: all but the embedding's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing:
    """Gradient (activation) checkpointing and what is moved off the GPU."""

    enabled: bool = False
    use_reentrant: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=empty_mapping)
    offload: Offload = "none"
    selective_save: tuple[str, ...] = ()
    """Non-empty: `selective_checkpointing`, the operators whose outputs are kept (`attention`, ...)."""
    selective_details: Mapping[str, Any] = field(default_factory=empty_mapping)
    selective_sees_varlen: bool = False
    """`attention` includes packed SDPA."""
    layer_offloading: bool = False

    @property
    def selective_offload(self) -> bool:
        """Outputs that selective checkpointing saves are in host memory."""
        return bool(self.selective_save and self.selective_details.get("offload"))

    @property
    def moves_tensors(self) -> bool:
        """True if something is moved to the host and back during a step."""
        return self.offload != "none" or self.layer_offloading or self.selective_offload


@dataclass(frozen=True, kw_only=True, slots=True)
class Attention:
    """The attention kernel, as transformers names it.

    `sdpa`, `eager`, `flash_attention_2`, `flash_attention_3`, `flash_attention_4`, `flex_attention`, `xformers`,
    `sage`, `varlen` (axolotl's packed SDPA).
    """

    kernel: str = "sdpa"
    fused_attn_kernel: bool = False
    gemma4_hybrid: bool = False
    """Gemma 4's global layers run SDPA though the kernel is FlashAttention-2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """How logits become a loss.

    `native`: what the installed transformers does; `shifted_copy`: `logits.float()` followed by a contiguous shifted
    copy, as in transformers 4.46 to 4.50; `upcast_shifted_copy`: the same in the model's own forward, which returns
    the fp32 logits, as before 4.46; `half_shifted_copy`: only the copy, as in GPT-BigCode before 4.50; `none`: no loss,
    the step runs backward from the logits' mean; the others are the fused or chunked kernels that axolotl installs.
    """

    path: Literal[
        "native",
        "shifted_copy",
        "liger_cross_entropy",
        "liger_fused_linear",
        "cut_cross_entropy",
        "chunked",
        "eaft",
        "kd",
        "diffusion",
        "none",
        "upcast_shifted_copy",
        "half_shifted_copy",
    ] = "native"
    num_chunks: int = 8
    token_scaling: bool = False
    """Liger's fused linear loss multiplies each token's loss by its probability."""
    teacher_tokens: int = 0
    """Distillation from a server: how many of the teacher's tokens come with each of the batch."""
    cross_entropy: Literal["torch", "in_place", "flash"] = "torch"
    """`flash`: flash-attn's kernel. `in_place`: other trainers' fused kernel (Unsloth's), which writes the gradient over
    the logits it is given."""
    holds_outputs: bool = False
    """A variable of the loop keeps the outputs of a step, with logits, until those of the next step replace them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Fused kernels that axolotl patches into the model."""

    liger: frozenset[str] = frozenset()
    """Any of `rope`, `rms_norm`, `rms_norm_gated`, `layer_norm`, `glu_activation`."""
    lora: frozenset[str] = frozenset()
    """Any of `mlp`, `qkv`, `o`, `embedding`: axolotl's fused LoRA kernels."""
    lora_gradients: Literal["step", "parameter"] = "parameter"
    """The dtype in which these kernels return the gradients of A and B: the step's, or the parameter's."""
    liger_loss: Literal["0.8.1", "0.8.4"] = "0.8.4"
    """The release of liger-kernel whose fused linear loss runs."""
    tiled_mlp: bool = False
    tiled_mlp_shards: int = 0
    torch_compile: bool = False


BITSANDBYTES_OPTIMIZERS = tuple(
    """
    adamw_bnb_8bit paged_adamw_32bit paged_adamw_8bit lion_32bit lion_8bit paged_lion_32bit paged_lion_8bit ademamix
    ademamix_8bit paged_ademamix_32bit paged_ademamix_8bit rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit
    """.split()
)
"""Optimizers of bitsandbytes, by axolotl's names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """The optimizer, by axolotl's name."""

    name: str = "adamw_torch_fused"
    implementation: Implementation = "fused"
    """How a torch optimizer steps; `library`: as the optimizer's own package does."""
    args: Mapping[str, Any] = field(default_factory=empty_mapping)
    target_modules: tuple[str, ...] | str = ()
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """0: no clipping."""
    grokfast: bool = False
    """Gradients are amplified by a moving average of them, which is kept."""
    extra: Mapping[str, Any] = field(default_factory=empty_mapping)
    """Keys of only one optimizer: `qgalore_rank`, `dion_rank_fraction`, ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The shape of one GPU's batch in one forward."""

    rows: int = 1
    row_tokens: int = 512
    packed: bool = False
    """Several samples share a row; attention sees `samples_per_row` of them through position ids."""
    samples_per_row: int = 1
    attention_mask: bool = True
    """A 2-D padding mask is passed (collated batches); packed flash batches pass none."""
    padded: bool = False
    """The mask has zeros in it (rows padded to a common length), as opposed to all ones."""
    gradient_accumulation_steps: int = 1
    neftune: bool = False
    image_size: tuple[int, ...] = ()
    """Height and width given by `image_size`; empty: the processor's own."""
    images_per_row: int = 0
    audio_seconds_per_row: float = 0.0
    processor_options: Mapping[str, Any] = field(default_factory=empty_mapping)
    """`processor_kwargs`: `min_pixels`, `max_pixels`, `size`, ... as the processor's class takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Evaluation; if axolotl evaluates, it also does so before step 1."""

    enabled: bool = False
    before_training: bool = False
    rows: int = 1
    row_tokens: int = 512
    packed: bool = False
    gathers_logits: bool = False
    """Not `prediction_loss_only`: the fp32 logits are gathered."""
    generated_rows: int = 0
    """Text is generated after evaluation, this many rows at once; 0: none is."""
    generated_tokens: int = 0
    """Of each row, prompt and new ones: the length that the key-value cache comes to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The target card. `memory_bytes` 0: none was named, so it is not known whether the run fits."""

    name: str = ""
    memory_bytes: int = 0
    compute_capability: tuple[int, int] = (8, 0)
    context_bytes: int = 0
    """CUDA context and libraries, outside the allocator: assumed."""
    nccl_bytes: int = 0
    """Of NCCL's communicators, where there are several GPUs; outside the allocator: assumed."""
    count: int = 1
    margin_bytes: int = 0
    """What must stay free of each card, or the run does not fit (`--margin`)."""
    margin_share: float = 0.0
    """The share of the card that `margin_bytes` is, where it was given as one."""
    remarks: tuple[str, ...] = ()
    """Remarks on this card: which of several was used, that its memory is the system's, ..."""

    @property
    def outside_bytes(self) -> int:
        """All memory of the process outside PyTorch's allocator."""
        return self.context_bytes + self.nccl_bytes

    def at_most(self, nbytes: int, reserve_bytes: int) -> int:
        """`nbytes`, or the memory of a named card without `reserve_bytes`, if that is less."""
        return min(nbytes, self.memory_bytes - reserve_bytes) if self.memory_bytes else nbytes

    def is_exceeded(self, nbytes: int, share: float) -> bool:
        """True if `nbytes` are more than this share of what a named card has for the allocator."""
        return bool(self.memory_bytes) and nbytes > share * (self.memory_bytes - self.outside_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocator:
    """Settings of the CUDA caching allocator (`PYTORCH_ALLOC_CONF`), parsed."""

    expandable_segments: bool = True
    max_split_size_bytes: int = 0
    """0: no limit."""
    roundup_power2_divisions: Mapping[int, int] | int = 0
    """0: off. A mapping gives divisions per size class, as PyTorch's option does."""
    garbage_collection_threshold: float = 0.0
    empty_cache_steps: int = 0
    collect_steps: int = 0
    """`gc_collect_steps`: the cache is emptied before the first step and evaluation, and after every so many steps where
    it is positive; 0: never."""
    settings: str = "expandable_segments:True"
    large_segment_bytes: int = 20 << 20
    """`large_segment_size_mb`: a segment for requests of 1 to 10 MiB, and a page of large expandable segments."""
    max_non_split_rounding_bytes: int = 20 << 20
    """`max_non_split_rounding_mb`: by how much a block beyond `max_split_size_bytes` may be larger than the request."""
    per_process_memory_fraction: float = 1.0
    """Below 1: the part of the card that the process may reserve; only then garbage is collected."""
    backend: Literal["native", "cudaMallocAsync"] = "native"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axolotl:
    """The release of axolotl whose rules apply."""

    version: str = ""
    pins: Mapping[str, str] = field(default_factory=empty_mapping)
    """Library -> what this release requires of it, as in `==5.20.1`."""
