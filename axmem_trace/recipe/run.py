"""How the model is trained, and on which card: checkpointing, kernels, loss, optimizer, batches, card, allocator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from axmem_trace.recipe.model import empty_mapping

Offload = Literal["none", "activations", "legacy", "disk", "hidden_states"]
"""The kind of activation offloading: which tensors are moved to the host, and how."""
Implementation = Literal["fused", "foreach", "for-loop", "library"]
"""How an optimizer steps."""
LIGER_KEYS = {
    "rope": "liger_rope",
    "rms_norm": "liger_rms_norm",
    "rms_norm_gated": "liger_rms_norm_gated",
    "layer_norm": "liger_layer_norm",
    "glu_activation": "liger_glu_activation",
}
"""Layer of Liger (`Kernels.liger`) -> the key of the configuration."""
LORA_KERNEL_KEYS = {
    "mlp": "lora_mlp_kernel",
    "qkv": "lora_qkv_kernel",
    "o": "lora_o_kernel",
    "embedding": "lora_embedding_kernel",
}
"""Fused LoRA kernel of axolotl (`Kernels.lora`) -> the key of the configuration."""
VALIDATED_LORA_KERNEL_KEYS = tuple(LORA_KERNEL_KEYS[kernel] for kernel in ("mlp", "qkv", "o"))
"""The keys that axolotl's validators check: all except the embedding's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing:
    """Gradient (activation) checkpointing, and offloading to the host."""

    enabled: bool = False
    use_reentrant: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=empty_mapping)
    offload: Offload = "none"
    selective_save: tuple[str, ...] = ()
    """The operators whose outputs `selective_checkpointing` keeps (`attention`, ...); empty: it is off."""
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
    """Gemma 4's global layers run SDPA, although the kernel is FlashAttention-2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """How a loss is computed from logits.

    `native`: by the installed transformers. `shifted_copy`: `logits.float()`, then a contiguous shifted copy, as in
    transformers 4.46 to 4.50. `upcast_shifted_copy`: the same in the model's own forward, which returns the fp32 logits, as
    before 4.46. `half_shifted_copy`: only the copy, as in GPT-BigCode before 4.50. `none`: no loss, backward starts from the
    mean of the logits. The others are the fused or chunked kernels that axolotl installs.
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
    """Distillation from a server: the number of the teacher's tokens for each token of the batch."""
    cross_entropy: Literal["torch", "in_place", "flash"] = "torch"
    """`flash`: flash-attn's kernel. `in_place`: the fused kernel of other trainers (Unsloth's), which writes the gradient
    into the memory of the logits."""
    holds_outputs: bool = False
    """A variable of the training loop keeps the outputs of a step, with logits, until the next step's outputs replace
    them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Fused kernels that axolotl patches into the model."""

    liger: frozenset[str] = frozenset()
    """Any of `rope`, `rms_norm`, `rms_norm_gated`, `layer_norm`, `glu_activation`."""
    lora: frozenset[str] = frozenset()
    """Any of `mlp`, `qkv`, `o`, `embedding`: axolotl's fused LoRA kernels."""
    lora_library: Literal["axolotl", "fms_acceleration"] = "axolotl"
    """The package whose fused LoRA kernels run."""
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
    """A multiple of the gradients' moving average, which is kept, is added to them."""
    extra: Mapping[str, Any] = field(default_factory=empty_mapping)
    """Keys of only one optimizer: `qgalore_rank`, `dion_rank_fraction`, ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The shape of one GPU's batch in one forward."""

    rows: int = 1
    row_tokens: int = 512
    packed: bool = False
    """A row has several samples. Attention separates them by position ids."""
    samples_per_row: int = 1
    attention_mask: bool = True
    """The batch has a 2-D padding mask. Packed batches for FlashAttention have none."""
    padded: bool = False
    """The mask has zeros, because rows are padded to a common length; otherwise it has only ones."""
    gradient_accumulation_steps: int = 1
    neftune: bool = False
    image_size: tuple[int, ...] = ()
    """Height and width in `image_size`; empty: the processor's own."""
    images_per_row: int = 0
    audio_seconds_per_row: float = 0.0
    processor_options: Mapping[str, Any] = field(default_factory=empty_mapping)
    """`processor_kwargs`: `min_pixels`, `max_pixels`, `size`, ...: arguments of the processor's class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The shape of evaluation batches, and whether the run evaluates, also before step 1."""

    enabled: bool = False
    before_training: bool = False
    rows: int = 1
    row_tokens: int = 512
    packed: bool = False
    gathers_logits: bool = False
    """The fp32 logits are gathered, because `prediction_loss_only` is off."""
    generated_rows: int = 0
    """The number of rows that are generated together after evaluation; 0: nothing is generated."""
    generated_tokens: int = 0
    """The tokens of each generated row, prompt included: the final length of the key-value cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """The target card. `memory_bytes` 0: no card was named, so it is not known whether the run fits."""

    name: str = ""
    memory_bytes: int = 0
    compute_capability: tuple[int, int] = (8, 0)
    context_bytes: int = 0
    """Memory of CUDA's context and libraries, outside the allocator: assumed."""
    nccl_bytes: int = 0
    """Memory of NCCL's communicators with several GPUs, outside the allocator: assumed."""
    count: int = 1
    margin_bytes: int = 0
    """Memory of each card that must stay free; otherwise the run does not fit (`--margin`)."""
    margin_share: float = 0.0
    """`margin_bytes` as a share of the card, if the user gave a share; else 0."""
    remarks: tuple[str, ...] = ()
    """Remarks on this card, such as: which of several cards with the name was used, or that its memory is the system's."""

    @property
    def outside_bytes(self) -> int:
        """All memory of the process outside PyTorch's allocator."""
        return self.context_bytes + self.nccl_bytes

    def at_most(self, nbytes: int, reserve_bytes: int) -> int:
        """`nbytes`, but not more than the memory of a named card minus `reserve_bytes`."""
        return min(nbytes, self.memory_bytes - reserve_bytes) if self.memory_bytes else nbytes

    def is_exceeded(self, nbytes: int, share: float) -> bool:
        """True if `nbytes` are more than this share of the memory that a named card has for the allocator."""
        return bool(self.memory_bytes) and nbytes > share * (self.memory_bytes - self.outside_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Allocator:
    """Settings of the CUDA caching allocator (`PYTORCH_ALLOC_CONF`), parsed."""

    expandable_segments: bool = True
    max_split_size_bytes: int = 0
    """0: no limit."""
    roundup_power2_divisions: Mapping[int, int] | int = 0
    """0: off. A mapping has the divisions of each size class, as in PyTorch's option."""
    garbage_collection_threshold: float = 0.0
    empty_cache_steps: int = 0
    collect_steps: int = 0
    """`gc_collect_steps`: the cache is emptied before the first step and before evaluation. If the number is positive, it is
    also emptied each time this many steps have ended. 0: never."""
    settings: str = "expandable_segments:True"
    large_segment_bytes: int = 20 << 20
    """`large_segment_size_mb`: the size of a segment for requests of 1 to 10 MiB, and of a page of large expandable
    segments."""
    max_non_split_rounding_bytes: int = 20 << 20
    """`max_non_split_rounding_mb`: a block above `max_split_size_bytes` may exceed the request by this much."""
    per_process_memory_fraction: float = 1.0
    """The share of the card that the process may reserve. Garbage is collected only if it is below 1."""
    backend: Literal["native", "cudaMallocAsync"] = "native"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axolotl:
    """The release of axolotl whose rules apply."""

    version: str = ""
    pins: Mapping[str, str] = field(default_factory=empty_mapping)
    """Library -> the versions that this release allows, such as `==5.20.1`."""
