"""The trained model: the base model, its dtypes, quantisation and devices, its adapter, and its frozen parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Dtype = Literal["bfloat16", "float16", "float32"]
EMPTY: Mapping[str, Any] = MappingProxyType({})
EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
"""Names of the number of routed experts in configurations."""


def empty_mapping() -> Mapping[str, Any]:
    """A factory, because before Python 3.12 a mapping proxy has no hash and dataclasses refuse it as a default."""
    return EMPTY


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseModel:
    """The base model's `config.json`, and where it was found."""

    name: str
    config: Mapping[str, Any]
    """The file's content, with `overrides_of_model_config` already merged."""
    source: str
    """`directory …`, `cache …`, `catalogue …` or `hub …`."""
    caution: str = ""
    """One sentence: why the content may differ from the published file; empty if it is that file or a copy."""
    directory: str = ""
    """The local directory with the file (and remote code), if there is one."""
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
    """Rows that `tokens` and `special_tokens` may add to the embeddings."""
    resize_embeddings_to_32x: bool = False
    shrink_embeddings: bool = False
    mean_resizing: bool = False
    """New rows are sampled from the distribution of the old ones."""
    fix_untrained_tokens: bool = False
    experts_implementation: str = ""
    """`eager`, `grouped_mm`, `batched_mm`, `scattermoe`, `sonicmoe`; empty: transformers' choice."""
    freeze_multimodal: bool = False
    llama4_linearized_experts: bool = False
    use_onebitllms: bool = False
    embedding_names: tuple[str, str] = ("embed_tokens", "lm_head")
    """Parts of the names by which axolotl finds the input embedding and the output head."""


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
    """This first cast to fp32 includes embeddings and head."""
    kbit_skips: tuple[str, ...] = ()
    """Parts of the names of parameters that peft's k-bit preparation leaves in their dtype."""
    cast_back: bool = False
    """Norms and embeddings are cast back to `load_dtype` after k-bit preparation."""
    norm_dtype: Dtype | Literal["as_loaded"] = "as_loaded"
    """`--assume norm_dtype=…`: replaces both casts for the norms."""
    embedding_dtype: Dtype | Literal["as_loaded"] = "as_loaded"
    """`--assume embedding_dtype=…`: replaces both casts for embeddings and heads."""
    fp32_norms: bool = False
    fp32_norm_classes: tuple[str, ...] = ()
    fp8: bool = False
    """Linear layers multiply in float8 (torchao)."""
    fp8_recipe: Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] = "tensorwise"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """How the base weights are stored.

    `checkpoint` means: by the base model's own `quantization_config` (`GPTQ`, `AWQ`, pre-quantised nf4, ...).
    """

    method: Literal["none", "bnb_4bit", "bnb_8bit", "gptq", "awq", "mxfp4", "fp8", "checkpoint"] = "none"
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = True
    storage_dtype: str = "bfloat16"
    compute_dtype: str = "bfloat16"
    skip_modules: tuple[str, ...] = ()
    """Empty: the defaults of transformers' quantizer (output embedding, tied and last modules)."""
    int8_threshold: float = 6.0
    int8_outliers: int = 0
    """The number of columns with a value above the threshold, in the input of each 8-bit layer; only real data has them."""
    kbit_preparation: bool = False
    """peft's `prepare_model_for_kbit_training` runs: parameters that are not quantised become fp32."""
    gptq_kernel: Literal["torch", "triton"] = "torch"
    """The code that multiplies by GPTQ's packed weights: gptqmodel's torch code, or AutoGPTQ's Triton kernel."""
    gptq_weights: Literal["buffers", "parameters"] = "buffers"
    """`parameters`: GPTQ's packed words are frozen parameters of the load dtype, so FSDP divides them."""
    quantise_moe_experts: bool = False
    double_quant_experts: bool = True
    """The scales of 4-bit experts are quantised as well."""
    int8_experts_stay_unpacked: bool = False
    """Unpacked copies of 8-bit experts stay in memory once a recomputation has stopped in the middle of a layer."""
    guard_relaxed: bool = False
    """axolotl's kernels plugin allows an adapter over FP8 and MXFP4 weights, which transformers refuses."""
    hub_kernels: bool = False
    """`use_kernels`: with it, transformers dequantises MXFP4."""
    details: Mapping[str, Any] = field(default_factory=empty_mapping)
    """`model_quantization_config_kwargs`, or the checkpoint's `quantization_config`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """The device of each module when the model is loaded. The default here: all of them on the GPU."""

    automatic: bool = False
    """`device_map: auto`, axolotl's default: modules go to the GPU until they fill nine tenths of it."""
    max_memory: Mapping[Any, Any] = field(default_factory=empty_mapping)
    """The limit of each GPU or `cpu`, in bytes or as text that accelerate reads."""
    on_host: tuple[str, ...] = ()
    """Modules that `device_map` puts on the CPU or the disk, while others are on the GPU."""
    on_host_first: bool = False
    """`device_map: cpu`: the model is loaded and cast on the CPU, and gets its adapter there. Then the trainer moves it to
    the GPU."""
    key: str = ""
    """The YAML key that decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FakeQuantisation:
    """`qat`: linear layers compute with weights (and inputs) that were quantised and dequantised."""

    weight: Literal["int4", "float8"]
    activation: Literal["", "int8", "float8"] = ""
    group_size: int = 32
    embeddings: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """The adapter, in peft's terms. `kind` is `none` for a full fine-tune."""

    kind: Literal["none", "lora", "qlora", "llama-adapter"] = "none"
    rank: int = 8
    alpha: int = 8
    dropout: float = 0.0
    target_modules: tuple[str, ...] | str = ()
    """Names, or one regular expression."""
    target_linear: bool = False
    target_parameters: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    rank_pattern: Mapping[str, int] = field(default_factory=empty_mapping)
    alpha_pattern: Mapping[str, int] = field(default_factory=empty_mapping)
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
    """The bits in `loftq_config`: 4 (nf4) or 8."""
    dtype: Literal["autocast", "base", "float32", "bfloat16", "float16"] = "autocast"
    """`autocast`: peft casts half-precision A/B to fp32 (its default); `base`: they stay in the base's dtype."""
    input_gradients: bool = True
    """The embedding's output requires a gradient, which reentrant checkpointing needs: axolotl always sets it."""
    on_cpu: bool = False
    loraplus: bool = False
    bias: str = "none"
    """Only a saved adapter sets it: which biases train (`none`, `all`, `lora_only`). axolotl's own adapters train none."""
    exclude_modules: tuple[str, ...] | str = ()
    """Only a saved adapter sets it."""
    from_file: bool = False
    """`lora_model_dir`: loaded from a file, whose tensors are on the GPU until they are copied into the adapter."""
    file_tensor_bytes: tuple[int, ...] = ()
    """The size of each tensor in that file; empty if the file could not be read."""
    relora_steps: int = 0
    """`jagged_restart_steps` under `relora`: the adapter is merged and initialised again after this many steps; 0: never."""
    relora_cpu_offload: bool = False
    relora_prunes_at_random: bool = False
    """`relora_prune_method`: `random` or `reset`, not by magnitude."""
    adapter_layers: int = 0
    """`llama-adapter`: the number of layers, counted from the last, that get a prompt."""
    adapter_len: int = 0
    """`llama-adapter`: the length of that prompt in tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Freezing:
    """Which parameters train in a full fine-tune. Empty `unfrozen`: all of them."""

    unfrozen: tuple[str, ...] = ()
    """`unfrozen_parameters`: regular expressions; a range (`name[0:1000]`) needs the memory of the whole parameter."""
    lisa_layers: int = 0
    spectrum_top_fraction: float = 0.0
