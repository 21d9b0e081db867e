"""`--assume key=value`: replaces a value that would be derived as axolotl does.

With it the run of another trainer can be described."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from axmem_trace.config.document.coercion import coerce, describe
from axmem_trace.config.document.overrides import Settings, parse_settings
from axmem_trace.errors import ConfigError
from axmem_trace.recipe.recipe import Reason, Recipe
from axmem_trace.units import parse_bytes

_DTYPES = "'bfloat16'|'float16'|'float32'"
_COUNT = "int"
_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16"}
_LORA_KERNELS = ("mlp", "qkv", "o", "embedding")
MAX_COUNT = 1 << 27


@dataclass(frozen=True, slots=True)
class Assumption:
    """One key: the type of its value (as in `keys.json`), what it means, and the fields that it sets."""

    type: str
    meaning: str
    apply: Callable[[Recipe, Any], Recipe]
    fields: tuple[str, ...]
    """Dotted fields of the recipe; the first one gets the reason."""


def _set(path: str) -> Callable[[Recipe, Any], Recipe]:
    group, name = path.split(".")
    return lambda recipe, value: _replace(recipe, group, **{name: value})


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
        names = _LORA_KERNELS if value else ()
    else:
        names = tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else tuple(value)
    unknown = [name for name in names if name not in _LORA_KERNELS]
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
    "autocast": Assumption(f"bool|{_DTYPES}", "mixed precision of the step", _autocast, ("precision.autocast",)),
    "output_dtype": Assumption(
        "'float32'|'same'", "accelerate's fp32 copy of the logits", _set("precision.output_dtype"),
        ("precision.output_dtype",)),
    "grad_scaler": Assumption(
        "bool", "fp16's gradient scaler", _set("precision.grad_scaler"), ("precision.grad_scaler",)),
    "load_dtype": Assumption(
        _DTYPES, "dtype of the loaded model", _set("precision.load_dtype"), ("precision.load_dtype",)),
    "adapter_dtype": Assumption(
        f"'autocast'|'base'|{_DTYPES}", "dtype of the adapter's weights", _set("adapter.dtype"), ("adapter.dtype",)),
    "input_gradients": Assumption(
        "bool", "the embedding's output asks for a gradient (axolotl: under every adapter)",
        _set("adapter.input_gradients"), ("adapter.input_gradients",)),
    "norm_dtype": Assumption(
        f"'as_loaded'|{_DTYPES}", "dtype of the norms", _set("precision.norm_dtype"), ("precision.norm_dtype",)),
    "embedding_dtype": Assumption(
        f"'as_loaded'|{_DTYPES}", "dtype of embeddings and head", _set("precision.embedding_dtype"),
        ("precision.embedding_dtype",)),
    "upcast_before": Assumption(
        "bool", "axolotl's fp32 cast of norms, gates and embeddings", _set("precision.upcast_before"),
        ("precision.upcast_before",)),
    "cast_back": Assumption(
        "bool", "axolotl's cast of norms and embeddings back", _set("precision.cast_back"), ("precision.cast_back",)),
    "kbit_preparation": Assumption(
        "bool", "peft's prepare_model_for_kbit_training", _set("quantisation.kbit_preparation"),
        ("quantisation.kbit_preparation",)),
    "int8_outliers": Assumption(
        _COUNT, "outlier columns in the input of each 8-bit layer", _set("quantisation.int8_outliers"),
        ("quantisation.int8_outliers",)),
    "bnb_keeps_inputs": Assumption(
        "bool", "the graph keeps the inputs of 4-bit layers, as with bitsandbytes before 0.43.2",
        _set("older.bnb_keeps_inputs"), ("older.bnb_keeps_inputs",)),
    "gptq_kernel": Assumption(
        "'torch'|'triton'", "what multiplies with GPTQ weights (triton: AutoGPTQ's kernel, which keeps them packed)",
        _set("quantisation.gptq_kernel"), ("quantisation.gptq_kernel",)),
    "use_reentrant": Assumption(
        "bool", "variant of checkpointing", _set("checkpointing.use_reentrant"), ("checkpointing.use_reentrant",)),
    "lora_kernels": Assumption(
        "bool|str|list[str]", "fused LoRA kernels: true, false or some of mlp, qkv, o, embedding", _lora_kernels,
        ("kernels.lora",)),
    "optimizer_implementation": Assumption(
        "'fused'|'foreach'|'for-loop'|'library'", "how the optimizer steps", _set("optimizer.implementation"),
        ("optimizer.implementation",)),
    "loss_path": Assumption(
        "'native'|'shifted_copy'|'upcast_shifted_copy'|'half_shifted_copy'|'none'|'liger_cross_entropy'|"
        "'liger_fused_linear'|'cut_cross_entropy'|'chunked'",
        "how logits become a loss (none: backward from the mean of the logits)", _set("loss.path"), ("loss.path",)),
    "cross_entropy": Assumption(
        "'torch'|'in_place'", "the kernel of the loss (in_place: the gradient overwrites the logits, as Unsloth's)",
        _set("loss.cross_entropy"), ("loss.cross_entropy",)),
    "use_cache": Assumption(
        "bool", "the forward keeps its keys and values, where the model's code does so in training",
        _set("older.use_cache"), ("older.use_cache",)),
    "repeats_kv": Assumption(
        "bool", "keys and values are repeated to all heads for FlashAttention-2, as Mistral's were before transformers 4.48",
        _set("older.repeats_kv"), ("older.repeats_kv",)),
    "loading": Assumption(
        "'current'|'before_4_50'", "the order in which weights come to the card (before_4_50: transformers before that)",
        _set("older.loading"), ("older.loading",)),
    "mean_keeps_input": Assumption(
        "bool", "backward of a mean keeps what was averaged, as PyTorch's before 2.2 (every RMSNorm has one)",
        _set("older.mean_keeps_input"), ("older.mean_keeps_input",)),
    "whole_slices": Assumption(
        "bool", "`:` in an index has a backward of its own, as with PyTorch 2.4 (in the older losses)",
        _set("older.whole_slices"), ("older.whole_slices",)),
    "holds_outputs": Assumption(
        "bool", "the loop keeps the model's outputs until the next forward has returned", _set("loss.holds_outputs"),
        ("loss.holds_outputs",)),
    "rows": Assumption(_COUNT, "rows of a batch", _set("batch.rows"), ("batch.rows",)),
    "row_tokens": Assumption(_COUNT, "tokens of a row", _set("batch.row_tokens"), ("batch.row_tokens",)),
    "completion_tokens": Assumption(
        _COUNT, "tokens of the longest completion (preference and GRPO training)", _completion_tokens,
        ("objective.completion_tokens",)),
    "prompt_tokens": Assumption(
        _COUNT, "tokens of the longest prompt; rows are then prompt and completion long", _prompt_tokens,
        ("objective.prompt_tokens",)),
    "loss_helpers": Assumption(
        "'trl'|'axolotl'|'torch'",
        "whose code makes log-probabilities of logits (axolotl: its own kernels, until 0.19; torch: TRL's without Triton)",
        _set("objective.helpers"), ("objective.helpers",)),
    "samples_per_row": Assumption(
        _COUNT, "samples in a packed row", _set("batch.samples_per_row"), ("batch.samples_per_row",)),
    "attention_mask": Assumption(
        "bool", "a padding mask is passed", _set("batch.attention_mask"), ("batch.attention_mask",)),
    "padded": Assumption("bool", "the mask has zeros in it", _set("batch.padded"), ("batch.padded",)),
    "eval_rows": Assumption(_COUNT, "rows of an evaluation batch", _set("evaluation.rows"), ("evaluation.rows",)),
    "eval_row_tokens": Assumption(
        _COUNT, "tokens of an evaluation row", _set("evaluation.row_tokens"), ("evaluation.row_tokens",)),
    "images_per_row": Assumption(
        _COUNT, "images in a row", _set("batch.images_per_row"), ("batch.images_per_row",)),
    "audio_seconds_per_row": Assumption(
        "float", "seconds of audio in a row", _set("batch.audio_seconds_per_row"), ("batch.audio_seconds_per_row",)),
    "added_tokens": Assumption(
        _COUNT, "rows that the tokenizer adds to the vocabulary", _set("model.added_tokens"), ("model.added_tokens",)),
    "experts_layout": Assumption(
        "'fused'|'linear'", "experts are fused parameters, or a linear layer each as before transformers 5",
        _set("older.experts_layout"), ("older.experts_layout",)),
    "checkpoints_units": Assumption(
        "bool", "an FSDP1 unit is checkpointed as a whole, gathers included, as before transformers 4.53",
        _set("older.checkpoints_units"), ("older.checkpoints_units",)),
    "fsdp_prefetch": Assumption(
        "'none'|'pre'|'post'", "FSDP1's backward_prefetch, which axolotl can't set", _fsdp("prefetch"),
        ("parallel.fsdp.prefetch",)),
    "fsdp_dtype": Assumption(
        f"'stored'|{_DTYPES}", "FSDP's mixed precision (stored: none, parameters are used as they are stored)", _fsdp_dtype,
        ("parallel.fsdp.param_dtype",)),
    "fsdp_adapters": Assumption(
        "'layer'|'own'|'ignored'", "adapters are in their layer's FSDP unit, units of their own, or whole on each GPU",
        _fsdp("adapters"), ("parallel.fsdp.adapters",)),
    "router": Assumption("'balanced'|'worst'", "how tokens spread over experts", _router, ("router",)),
    "fold": Assumption(
        "bool", "layers that repeat are traced once and unfolded (false: every layer is traced; slower, the same figures)",
        _fold, ("fold",)),
    "allocator": Assumption(
        "str", "a PYTORCH_ALLOC_CONF, or `default` for PyTorch's own", _allocator, ("allocator.settings",)),
    "cuda_context_bytes": Assumption(
        "int|str", "memory outside the allocator, such as 500MiB", _context, ("gpu.context_bytes",)),
}  # fmt: skip
"""Every key of `--assume`."""

_MAY_BE_ZERO = ("images_per_row", "added_tokens", "int8_outliers")


def apply_assumptions(recipe: Recipe, assumptions: Settings) -> Recipe:
    """The recipe with what is assumed, and its reasons.

    Raises:
        ConfigError: an unknown key, or a value that it does not take.
    """
    given = dict(parse_settings(assumptions, "--assume"))
    for key in given:
        if key not in ASSUMPTIONS:
            raise _unknown(key)
    reasons = dict(recipe.reasons)
    for key in sorted(given, key=list(ASSUMPTIONS).index):
        assumption = ASSUMPTIONS[key]
        value = _value(key, assumption, given[key])
        try:
            recipe = assumption.apply(recipe, value)
        except ValueError as error:
            raise _bad_value(key, assumption, given[key], str(error)) from error
        except ConfigError as error:
            raise ConfigError(
                problem=error.problem, key=key, flag="--assume", value=given[key], accepted=error.accepted
            ) from error
        reasons[assumption.fields[0]] = Reason(value=str(value), text=f"--assume {key}", origin="assume")
    return replace(recipe, reasons=reasons)


def _value(key: str, assumption: Assumption, given: Any) -> Any:
    given = _ALIASES.get(given, given) if isinstance(given, str) else given
    if key == "optimizer_implementation" and given in ("for_loop", "forloop", "loop"):
        given = "for-loop"
    try:
        value = coerce(given, assumption.type)
    except ValueError:
        raise _bad_value(key, assumption, given) from None
    if assumption.type == _COUNT and not (0 if key in _MAY_BE_ZERO else 1) <= value <= MAX_COUNT:
        raise _bad_value(key, assumption, given, "out of range")
    if assumption.type == "float" and not 0 <= value <= MAX_COUNT:
        raise _bad_value(key, assumption, given, "out of range")
    return value


def _bad_value(key: str, assumption: Assumption, given: Any, why: str = "not a value of this key") -> ConfigError:
    accepted = f"{describe(assumption.type)} ({assumption.meaning})"
    return ConfigError(problem=why, key=key, flag="--assume", value=given, accepted=accepted)


def _unknown(key: str) -> ConfigError:
    near = difflib.get_close_matches(key, ASSUMPTIONS, n=1, cutoff=0.5)
    return ConfigError(
        problem="nothing of this name can be assumed",
        key=key,
        flag="--assume",
        accepted=", ".join(ASSUMPTIONS),
        remedy=f"did you mean `{near[0]}`?" if near else "use --set for keys of the configuration",
    )
