"""The recipe: everything a configuration asks for, resolved. Frozen, and without torch.

Every room after `recipe` reads these fields and nothing else; no field is `None` to mean "the default". A value that
axolotl derives by itself keeps its reason in `Recipe.reasons`, under the field's dotted path (`"attention.kernel"`).
Dtypes are torch's names without the prefix: `"bfloat16"`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from axmem_trace.notes import Note

Dtype = Literal["bfloat16", "float16", "float32"]
EMPTY: Mapping[str, Any] = MappingProxyType({})


def _empty() -> Mapping[str, Any]:
    """A factory, because before Python 3.12 a mapping proxy has no hash and dataclasses refuse it as a default."""
    return EMPTY


@dataclass(frozen=True, kw_only=True, slots=True)
class Reason:
    """Why a value is what it is.

    `origin` is `config` (the YAML says so), `default` (axolotl's own default), `derived` (axolotl works it out from
    other keys or from the model), `assume` (`--assume`) or `override` (`--set`).
    """

    value: str
    text: str
    origin: Literal["config", "default", "derived", "assume", "override"]
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The base model's `config.json`, and where it was found."""

    name: str
    config: Mapping[str, Any]
    """The file's content, with `overrides_of_model_config` already merged."""
    source: str
    """`directory …`, `cache …`, `catalogue …` or `hub …`."""
    directory: str = ""
    """Local directory with the file (and remote code), where there is one."""
    model_type: str = ""
    text_model_type: str = ""
    """`model_type` of the language model inside a multimodal one; else the same as `model_type`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Which class is built, and how its vocabulary and towers are changed after loading."""

    base: BaseModel
    task: Literal["causal-lm", "image-text-to-text", "sequence-classification", "token-classification"] = "causal-lm"
    type_of_model: str = ""
    """A transformers class named by the configuration (`type_of_model`); empty: the Auto class of `task`."""
    num_labels: int = 0
    trust_remote_code: bool = False
    """Allowed by the configuration *and* by the command line."""
    added_tokens: int = 0
    """Rows that `tokens` / `special_tokens` may add to the vocabulary."""
    resize_embeddings_to_32x: bool = False
    shrink_embeddings: bool = False
    mean_resizing: bool = False
    """New rows are drawn from the distribution of the old ones."""
    fix_untrained_tokens: bool = False
    experts_implementation: str = ""
    """`eager`, `grouped_mm`, `batched_mm`, `scattermoe`, `sonicmoe`; empty: what transformers picks."""
    freeze_multimodal: bool = False
    llama4_linearized_experts: bool = False
    experts_layout: Literal["fused", "linear"] = "fused"
    """`linear`: a layer per expert and projection, as before transformers 5."""
    use_onebitllms: bool = False
    use_cache: bool = False
    """Keys and values of the forward are kept in its outputs. axolotl never does."""
    loading: Literal["current", "before_4_50"] = "current"
    """How weights come to the card: as transformers does it now, or as releases before 4.50 did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Dtypes of loading and of the step (axolotl's `resolve_dtype`, accelerate's `prepare_model`)."""

    load_dtype: Dtype = "bfloat16"
    autocast: bool = True
    autocast_dtype: Dtype = "bfloat16"
    grad_scaler: bool = False
    output_dtype: Literal["float32", "same"] = "float32"
    """`float32`: accelerate copies every floating output of the model (the logits too) to fp32."""
    upcast_before: bool = True
    """Norms, `*.gate` modules and embeddings are cast to fp32 after loading (not under FSDP)."""
    upcast_embeddings: bool = True
    """False with `embeddings_skip_upcast`."""
    cast_back: bool = False
    """Norms and embeddings are cast back to `load_dtype` after k-bit preparation."""
    norm_dtype: Dtype | Literal["as_loaded"] = "as_loaded"
    """`--assume norm_dtype=…`: overrules both casts for the norms."""
    embedding_dtype: Dtype | Literal["as_loaded"] = "as_loaded"
    """`--assume embedding_dtype=…`: overrules both casts for embeddings and heads."""
    fp32_norms: bool = False
    fp32_norm_classes: tuple[str, ...] = ()
    fp8: bool = False
    """Linear layers multiply in float8 (torchao)."""
    fp8_recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = "tensorwise"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How the base weights are stored.

    `checkpoint` means: as the base model's own `quantization_config` says (`GPTQ`, `AWQ`, pre-quantised nf4, ...).
    """

    method: Literal["none", "bnb_4bit", "bnb_8bit", "gptq", "awq", "mxfp4", "fp8", "checkpoint"] = "none"
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    storage_dtype: str = "bfloat16"
    compute_dtype: str = "bfloat16"
    skip_modules: tuple[str, ...] = ()
    """Empty: what transformers' quantizer skips by itself (output embedding, tied and last modules)."""
    int8_threshold: float = 6.0
    int8_outliers: int = 0
    """Columns of each 8-bit layer's input that hold a value beyond the threshold: known on real data only."""
    kbit_preparation: bool = False
    """peft's `prepare_model_for_kbit_training` runs: what is not quantised becomes fp32."""
    keeps_inputs: bool = False
    """bitsandbytes until 0.43.1: the graph keeps the input of every 4-bit layer that backward passes through."""
    quantise_moe_experts: bool = False
    details: Mapping[str, Any] = field(default_factory=_empty)
    """`model_quantization_config_kwargs`, or the checkpoint's `quantization_config`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where modules are put when the model is loaded. As it is here: all of them on the GPU."""

    automatic: bool = False
    """`device_map: auto`, axolotl's default: on the GPU while they fill no more than nine tenths of it."""
    max_memory: Mapping[Any, Any] = field(default_factory=_empty)
    """By GPU or `cpu`, what may be filled, in bytes or as text that accelerate reads."""
    on_host: tuple[str, ...] = ()
    """Modules that `device_map` puts on the CPU or the disk, beside others on the GPU."""
    on_host_first: bool = False
    """`device_map: cpu`: loaded, cast and adapted there; the trainer moves the model to the GPU."""
    key: str = ""
    """The YAML key that says so."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeQuantisation:
    """`qat`: linear layers see weights (and inputs) that have been quantised and dequantised."""

    weight: Literal["int4", "float8"]
    activation: Literal["", "int8", "float8"] = ""
    group_size: int = 32
    embeddings: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """The adapter, in peft's words. `kind` is `none` for a full fine-tune."""

    kind: Literal["none", "lora", "qlora", "llama-adapter"] = "none"
    rank: int = 8
    alpha: int = 8
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ()
    """Names, or one regular expression."""
    target_linear: bool = False
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=_empty)
    alpha_pattern: Mapping[str, int] = field(default_factory=_empty)
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: tuple[str, ...] = ()
    layer_replication: tuple[tuple[int, int], ...] = ()
    trainable_token_indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] = ()
    dora: bool = False
    rslora: bool = False
    fan_in_fan_out: bool = False
    ensure_weight_tying: bool = False
    init: str = ""
    """`init_lora_weights`: empty for peft's default, or `gaussian`, `pissa`, `olora`, `loftq`, ..."""
    loftq_bits: int = 4
    """Of `loftq_config`: 4 (nf4) or 8."""
    dtype: Literal["autocast", "base", "float32", "bfloat16", "float16"] = "autocast"
    """`autocast`: peft casts half-precision A/B to fp32 (its default); `base`: they stay in the base's dtype."""
    on_cpu: bool = False
    loraplus: bool = False
    bias: str = "none"
    """Of a saved adapter: which biases train (`none`, `all`, `lora_only`). axolotl's own adapters have none."""
    exclude_modules: tuple[str, ...] | str = ()
    """Of a saved adapter."""
    from_file: bool = False
    """`lora_model_dir`: loaded from a file, which lies on the GPU beside the adapter until it is copied into it."""
    file_tensor_bytes: tuple[int, ...] = ()
    """Of each tensor in that file, where it could be read."""
    relora_steps: int = 0
    """`jagged_restart_steps` under `relora`: how often the adapter is merged and made anew; 0: never."""
    relora_cpu_offload: bool = False
    relora_prunes_at_random: bool = False
    """`relora_prune_method`: `random` or `reset`, not by magnitude."""
    adapter_layers: int = 0
    """`llama-adapter`: how many of the last layers get a prompt."""
    adapter_len: int = 0
    """`llama-adapter`: length of that prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freezing:
    """What trains in a full fine-tune. Empty `unfrozen`: everything."""

    unfrozen: tuple[str, ...] = ()
    """`unfrozen_parameters`: regular expressions; a range (`name[0:1000]`) trains the whole parameter's memory."""
    lisa_layers: int = 0
    spectrum_top_fraction: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpointing:
    """Gradient (activation) checkpointing and what is moved off the GPU."""

    enabled: bool = False
    use_reentrant: bool = True
    kwargs: Mapping[str, Any] = field(default_factory=_empty)
    offload: Literal["none", "activations", "legacy", "disk", "hidden_states"] = "none"
    selective_save: tuple[str, ...] = ()
    """Non-empty: `selective_checkpointing`, the operators whose outputs are kept (`attention`, ...)."""
    selective_details: Mapping[str, Any] = field(default_factory=_empty)
    layer_offloading: bool = False

    @property
    def selective_offload(self) -> bool:
        """What selective checkpointing saves waits in host memory."""
        return bool(self.selective_save and self.selective_details.get("offload"))

    @property
    def moves_tensors(self) -> bool:
        """Something goes to the host and comes back during a step."""
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
    repeats_kv: bool = False
    """FlashAttention-2 gets keys and values repeated to all query heads: Mistral's code before transformers 4.48."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """How logits become a loss.

    `native`: what the installed transformers does; `shifted_copy`: `logits.float()` followed by a contiguous shifted
    copy, as in transformers 4.46 to 4.50; `upcast_shifted_copy`: the same in the model's own forward, which puts out
    the fp32 logits, as before 4.46; `half_shifted_copy`: the copy alone, as in GPT-BigCode before 4.50; `none`: no loss,
    the step runs backward from the logits' mean; the others are the fused or chunked kernels that axolotl installs.
    """

    path: Literal["native", "shifted_copy", "liger_cross_entropy", "liger_fused_linear", "cut_cross_entropy",
                  "chunked", "eaft", "kd", "diffusion", "none", "upcast_shifted_copy",
                  "half_shifted_copy"] = "native"  # fmt: skip
    num_chunks: int = 8
    token_scaling: bool = False
    """Liger's fused linear loss multiplies each token's loss by its probability."""
    teacher_tokens: int = 0
    """Distillation from a server: how many of the teacher's tokens come with each of the batch."""
    cross_entropy: Literal["torch", "in_place", "flash"] = "torch"
    """`flash`: flash-attn's kernel. `in_place`: other trainers' fused kernel (Unsloth's), which writes the gradient over
    the logits it is given."""
    holds_outputs: bool = False
    """A loop's own variable keeps the outputs of a step, logits included, until those of the next take their place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Fused kernels that axolotl patches into the model."""

    liger: frozenset[str] = frozenset()
    """Any of `rope`, `rms_norm`, `rms_norm_gated`, `layer_norm`, `glu_activation`."""
    lora: frozenset[str] = frozenset()
    """Any of `mlp`, `qkv`, `o`, `embedding`: axolotl's fused LoRA kernels."""
    tiled_mlp: bool = False
    tiled_mlp_shards: int = 0
    torch_compile: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """The optimizer, by axolotl's name."""

    name: str = "adamw_torch_fused"
    implementation: Literal["fused", "foreach", "for-loop", "library"] = "fused"
    """How a torch optimizer steps; `library`: as the optimizer's own package does."""
    args: Mapping[str, Any] = field(default_factory=_empty)
    target_modules: tuple[str, ...] | str = ()
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """0: no clipping."""
    grokfast: bool = False
    """Gradients are amplified by a moving average of them, which is kept."""
    extra: Mapping[str, Any] = field(default_factory=_empty)
    """Keys of one optimizer alone: `qgalore_rank`, `dion_rank_fraction`, ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The shape of what one GPU sees in one forward."""

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
    """Height and width asked for with `image_size`; empty: the processor's own."""
    images_per_row: int = 0
    audio_seconds_per_row: float = 0.0
    processor_options: Mapping[str, Any] = field(default_factory=_empty)
    """`processor_kwargs`: `min_pixels`, `max_pixels`, `size`, ... as the processor's class takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Evaluation, which axolotl runs before step 1 whenever it runs at all."""

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
    """The target card. `memory_bytes` 0: none was named, so nothing can be said about fitting."""

    name: str = ""
    memory_bytes: int = 0
    compute_capability: tuple[int, int] = (8, 0)
    context_bytes: int = 0
    """CUDA context and libraries, outside the allocator: assumed."""
    count: int = 1


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
    """`max_non_split_rounding_mb`: by how much a block beyond `max_split_size_bytes` may be larger than asked for."""
    per_process_memory_fraction: float = 1.0
    """Below 1: the part of the card that the process may reserve; only then garbage is collected."""
    backend: Literal["native", "cudaMallocAsync"] = "native"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallelism:
    """What the configuration says of many GPUs. Only one GPU is estimated so far; the rest is noted."""

    num_gpus: int = 1
    deepspeed_stage: int = 0
    fsdp_version: int = 0
    tensor: int = 1
    context: int = 1
    expert: int = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, wholly resolved."""

    name: str
    """The configuration file's path as given, or `<config>` for a mapping."""
    model: Model
    precision: Precision = Precision()
    quantisation: Quantisation = Quantisation()
    placement: Placement = Placement()
    fake_quantisation: FakeQuantisation | None = None
    """`qat`; None: the layers are plain."""
    adapter: Adapter = Adapter()
    freezing: Freezing = Freezing()
    checkpointing: Checkpointing = Checkpointing()
    attention: Attention = Attention()
    loss: Loss = Loss()
    kernels: Kernels = Kernels()
    optimizer: Optimizer = Optimizer()
    batch: Batch = Batch()
    evaluation: Evaluation = Evaluation()
    gpu: Gpu = Gpu()
    allocator: Allocator = Allocator()
    parallelism: Parallelism = Parallelism()
    router: Literal["balanced", "worst"] = "balanced"
    rl: str = ""
    reasons: Mapping[str, Reason] = field(default_factory=_empty)
    notes: tuple[Note, ...] = ()
    lines: Mapping[str, int] = field(default_factory=_empty)
    """Where each key stands in the file, dots between the names of nested ones."""
