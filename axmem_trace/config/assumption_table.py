"""The keys of `--assume`: the type of each value, what it means, and the field of the recipe that it sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from axmem_trace.config.derive.lengths import assume_lengths
from axmem_trace.recipe.recipe import Recipe
from axmem_trace.recipe.run import LORA_KERNEL_KEYS
from axmem_trace.units import parse_bytes

_DTYPES = "'bfloat16'|'float16'|'float32'"
COUNT = "int"


@dataclass(frozen=True, slots=True)
class Assumption:
    """One key of `--assume`."""

    type: str
    """As in `keys.json`."""
    meaning: str
    field: str
    """The dotted field of the recipe that the key sets, and that gets the reason."""
    apply: Callable[[Recipe, Any], Recipe] | None = None
    """Given if setting `field` to the value is not enough."""

    def apply_to(self, recipe: Recipe, value: Any) -> Recipe:
        """The recipe with this value.

        Raises:
            ValueError: the value does not apply to this recipe.
        """
        if self.apply is not None:
            return self.apply(recipe, value)
        group, name = self.field.split(".")
        return _replace(recipe, group, **{name: value})


def _replace(recipe: Recipe, group: str, **changes: Any) -> Recipe:
    return replace(recipe, **{group: replace(getattr(recipe, group), **changes)})


def _fsdp(name: str) -> Callable[[Recipe, Any], Recipe]:
    return lambda recipe, value: _replace(recipe, "parallel", fsdp=replace(recipe.parallel.fsdp, **{name: value}))


def _fsdp_dtype(recipe: Recipe, value: Any) -> Recipe:
    dtype: Any = "" if value == "stored" else value
    fsdp = replace(recipe.parallel.fsdp, param_dtype=dtype, reduce_dtype=dtype)
    output: Any = dtype if recipe.parallel.engine == "fsdp2" else ""
    return _replace(recipe, "parallel", fsdp=replace(fsdp, output_dtype=output))


def _autocast(recipe: Recipe, value: Any) -> Recipe:
    """Off also means no fp32 copy of the outputs and no gradient scaler: accelerate switches all three together."""
    if value is False:
        return _replace(recipe, "precision", autocast=False, output_dtype="same", grad_scaler=False)
    dtype = recipe.precision.autocast_dtype if value is True else value
    return _replace(
        recipe, "precision", autocast=True, autocast_dtype=dtype, output_dtype="float32", grad_scaler=dtype == "float16"
    )


def _router(recipe: Recipe, value: Any) -> Recipe:
    return replace(recipe, router=value)


def _fold(recipe: Recipe, value: bool) -> Recipe:
    return replace(recipe, fold=value)


def _allocator(recipe: Recipe, value: str) -> Recipe:
    from axmem_trace.allocator.conf import parse_alloc_conf

    parsed = parse_alloc_conf("" if value == "default" else value)
    kept = recipe.allocator
    parsed = replace(parsed, empty_cache_steps=kept.empty_cache_steps, collect_steps=kept.collect_steps)
    return replace(recipe, allocator=parsed)


def _context(recipe: Recipe, value: Any) -> Recipe:
    return _replace(recipe, "gpu", context_bytes=parse_bytes(value))


def _lora_kernels(recipe: Recipe, value: Any) -> Recipe:
    names: tuple[Any, ...]
    if isinstance(value, bool):
        names = tuple(LORA_KERNEL_KEYS) if value else ()
    else:
        names = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    unknown = [name for name in names if name not in LORA_KERNEL_KEYS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no LoRA kernel")
    return _replace(recipe, "kernels", lora=frozenset(names))


def _completion_tokens(recipe: Recipe, value: int) -> Recipe:
    """The length of rows does not change, unless they are generated."""
    _require_completions(recipe)
    if recipe.objective.rollouts is not None:
        return _rows_of(_replace(recipe, "objective", completion_tokens=value))
    if value >= recipe.batch.row_tokens:
        raise ValueError(f"a row has {recipe.batch.row_tokens} tokens, and at least one is prompt")
    return _replace(recipe, "objective", completion_tokens=value, prompt_tokens=recipe.batch.row_tokens - value)


def _prompt_tokens(recipe: Recipe, value: int) -> Recipe:
    """Rows are as long as prompt and completion together."""
    _require_completions(recipe)
    return _rows_of(_replace(recipe, "objective", prompt_tokens=value))


def _require_completions(recipe: Recipe) -> None:
    if recipe.objective.method in ("supervised", "reward", "process_reward"):
        raise ValueError("only preference and GRPO training have prompts and completions")


def _rows_of(recipe: Recipe) -> Recipe:
    tokens = recipe.objective.prompt_tokens + recipe.objective.completion_tokens
    return _replace(_replace(recipe, "batch", row_tokens=tokens), "evaluation", row_tokens=tokens)


ASSUMPTIONS: Mapping[str, Assumption] = {
    "autocast": Assumption(f"bool|{_DTYPES}", "mixed precision of the step", "precision.autocast", _autocast),
    "output_dtype": Assumption("'float32'|'same'", "accelerate's fp32 copy of the logits", "precision.output_dtype"),
    "grad_scaler": Assumption("bool", "fp16's gradient scaler", "precision.grad_scaler"),
    "load_dtype": Assumption(_DTYPES, "dtype of the loaded model", "precision.load_dtype"),
    "adapter_dtype": Assumption(f"'autocast'|'base'|{_DTYPES}", "dtype of the adapter's weights", "adapter.dtype"),
    "input_gradients": Assumption(
        "bool", "the embedding's output requires a gradient (axolotl: under every adapter)", "adapter.input_gradients"
    ),
    "norm_dtype": Assumption(f"'as_loaded'|{_DTYPES}", "dtype of the norms", "precision.norm_dtype"),
    "embedding_dtype": Assumption(
        f"'as_loaded'|{_DTYPES}", "dtype of embeddings and head", "precision.embedding_dtype"
    ),
    "upcast_before": Assumption(
        "bool", "axolotl's fp32 cast of norms, gates and embeddings", "precision.upcast_before"
    ),
    "cast_back": Assumption("bool", "axolotl's cast of norms and embeddings back", "precision.cast_back"),
    "kbit_preparation": Assumption("bool", "peft's prepare_model_for_kbit_training", "quantisation.kbit_preparation"),
    "int8_outliers": Assumption(
        COUNT, "outlier columns in the input of each 8-bit layer", "quantisation.int8_outliers"
    ),
    "bnb_keeps_inputs": Assumption(
        "bool",
        "the graph keeps the inputs of 4-bit layers, as with bitsandbytes before 0.43.2",
        "older.bnb_keeps_inputs",
    ),
    "gptq_kernel": Assumption(
        "'torch'|'triton'",
        "the kernel that multiplies by GPTQ weights (triton: AutoGPTQ's, which keeps them packed)",
        "quantisation.gptq_kernel",
    ),
    "gptq_weights": Assumption(
        "'buffers'|'parameters'",
        "GPTQ's packed words are buffers, or frozen parameters that FSDP divides, as fms-acceleration makes them",
        "quantisation.gptq_weights",
    ),
    "use_reentrant": Assumption("bool", "variant of checkpointing", "checkpointing.use_reentrant"),
    "lora_kernels": Assumption(
        "bool|str|list[str]",
        "fused LoRA kernels: true, false or some of mlp, qkv, o, embedding",
        "kernels.lora",
        _lora_kernels,
    ),
    "lora_kernels_of": Assumption(
        "'axolotl'|'fms_acceleration'",
        "the package of the fused LoRA kernels (fms_acceleration: a dropout for each projection; q, k, v and o alone)",
        "kernels.lora_library",
    ),
    "optimizer_implementation": Assumption(
        "'fused'|'foreach'|'for-loop'|'library'", "how the optimizer steps", "optimizer.implementation"
    ),
    "loss_path": Assumption(
        "'native'|'shifted_copy'|'upcast_shifted_copy'|'half_shifted_copy'|'none'|'liger_cross_entropy'|"
        "'liger_fused_linear'|'cut_cross_entropy'|'chunked'",
        "how logits become a loss (none: backward from the mean of the logits)",
        "loss.path",
    ),
    "cross_entropy": Assumption(
        "'torch'|'in_place'",
        "the kernel of the loss (in_place: the gradient overwrites the logits, as in Unsloth)",
        "loss.cross_entropy",
    ),
    "use_cache": Assumption(
        "bool", "the forward keeps its keys and values, where the model's code does so in training", "older.use_cache"
    ),
    "repeats_kv": Assumption(
        "bool",
        "keys and values are repeated for all heads before FlashAttention-2, as in Mistral before transformers 4.48",
        "older.repeats_kv",
    ),
    "loading": Assumption(
        "'current'|'before_4_50'",
        "the order in which weights are loaded onto the card (before_4_50: as in transformers before 4.50)",
        "older.loading",
    ),
    "mean_keeps_input": Assumption(
        "bool",
        "backward of a mean keeps the mean's input, as in PyTorch before 2.2 (every RMSNorm has a mean)",
        "older.mean_keeps_input",
    ),
    "whole_slices": Assumption(
        "bool",
        "`:` in an index has its own backward operator, as in PyTorch 2.4 (only in the older losses)",
        "older.whole_slices",
    ),
    "holds_outputs": Assumption(
        "bool", "the loop keeps the model's outputs until the next forward has returned", "loss.holds_outputs"
    ),
    "rows": Assumption(COUNT, "rows of a batch", "batch.rows"),
    "row_tokens": Assumption(COUNT, "tokens of a row", "batch.row_tokens"),
    "completion_tokens": Assumption(
        COUNT,
        "tokens of the longest completion (preference and GRPO training)",
        "objective.completion_tokens",
        _completion_tokens,
    ),
    "prompt_tokens": Assumption(
        COUNT,
        "tokens of the longest prompt; a row is then as long as prompt and completion together",
        "objective.prompt_tokens",
        _prompt_tokens,
    ),
    "loss_helpers": Assumption(
        "'trl'|'axolotl'|'torch'",
        "whose code computes log-probabilities of tokens (axolotl: its own kernels, until 0.19; torch: TRL without Triton)",
        "objective.helpers",
    ),
    "samples_per_row": Assumption(COUNT, "samples in a packed row", "batch.samples_per_row"),
    "lengths": Assumption(
        "str|list[int]",
        "how long samples are: `full`, `vary` (a range is assumed), `200-1500` (any length between), a list of lengths, or "
        "a file of them; batches that differ in length are then simulated",
        "lengths.source",
        assume_lengths,
    ),
    "attention_mask": Assumption("bool", "a padding mask is passed", "batch.attention_mask"),
    "padded": Assumption("bool", "the mask has zeros in it", "batch.padded"),
    "eval_rows": Assumption(COUNT, "rows of an evaluation batch", "evaluation.rows"),
    "eval_row_tokens": Assumption(COUNT, "tokens of an evaluation row", "evaluation.row_tokens"),
    "images_per_row": Assumption(COUNT, "images in a row", "batch.images_per_row"),
    "audio_seconds_per_row": Assumption("float", "seconds of audio in a row", "batch.audio_seconds_per_row"),
    "added_tokens": Assumption(COUNT, "rows that the tokenizer adds to the vocabulary", "model.added_tokens"),
    "experts_layout": Assumption(
        "'fused'|'linear'",
        "experts are fused parameters, or a linear layer each as before transformers 5",
        "older.experts_layout",
    ),
    "checkpoints_units": Assumption(
        "bool",
        "an FSDP1 unit is checkpointed as a whole, gathers included, as before transformers 4.53",
        "older.checkpoints_units",
    ),
    "fsdp_prefetch": Assumption(
        "'none'|'pre'|'post'",
        "FSDP1's backward_prefetch, which axolotl can't set",
        "parallel.fsdp.prefetch",
        _fsdp("prefetch"),
    ),
    "fsdp_dtype": Assumption(
        f"'stored'|{_DTYPES}",
        "FSDP's mixed precision (stored: none, parameters are used as they are stored)",
        "parallel.fsdp.param_dtype",
        _fsdp_dtype,
    ),
    "fsdp_loads_on_host": Assumption(
        "bool",
        "FSDP1: the model stays on the host until its units are created, also in 4 bits (transformers without axolotl)",
        "parallel.fsdp.loads_on_host",
        _fsdp("loads_on_host"),
    ),
    "fsdp_orig_params": Assumption(
        "bool",
        "FSDP1's use_orig_params (false: the optimizer steps over whole flat shards)",
        "parallel.fsdp.uses_orig_params",
        _fsdp("uses_orig_params"),
    ),
    "fsdp_adapters": Assumption(
        "'layer'|'own'|'ignored'",
        "adapters are in their layer's FSDP unit, units of their own, or whole on each GPU",
        "parallel.fsdp.adapters",
        _fsdp("adapters"),
    ),
    "router": Assumption("'balanced'|'worst'", "how tokens spread over experts", "router", _router),
    "fold": Assumption(
        "bool",
        "layers that repeat are traced once and unfolded (false: every layer is traced; slower, the same figures)",
        "fold",
        _fold,
    ),
    "allocator": Assumption(
        "str", "a PYTORCH_ALLOC_CONF, or `default` for PyTorch's own", "allocator.settings", _allocator
    ),
    "cuda_context_bytes": Assumption(
        "int|str", "memory outside the allocator, such as 500MiB", "gpu.context_bytes", _context
    ),
}
"""Every key of `--assume`."""
