"""Expert and context parallelism: plugins of axolotl that are always active from 0.21.0 on, without being listed.

Source: axolotl 0.20.0 and 0.21.0 `integrations/{expert_parallel,context_parallel}/args.py`, `utils/schemas/validation.py`.
"""

from __future__ import annotations

from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, reentrant

SINCE = "0.20.0"
_UNSUPPORTED_OPTIMIZERS = ("adamw_torch_4bit", "ao_adamw_4bit", "ao_adamw_fp8")


def _expert(draft: Draft) -> bool:
    return draft.is_live("expert_parallel_size") and (draft.get("expert_parallel_size") or 1) > 1


def _recomputes_experts(draft: Draft) -> bool:
    """True if torch's exchange of tokens runs inside checkpointing. `auto` uses DeepEP only if it is installed."""
    torch_backend = draft.get("expert_parallel_backend") != "deep_ep"
    return _expert(draft) and torch_backend and bool(draft.get("gradient_checkpointing"))


def context_parallel_size(draft: Draft) -> int:
    """The size from the key, or from the block `context_parallel`."""
    size = draft.get("context_parallel_size")
    inner = draft.sub("context_parallel").get("size")
    return int(size or inner or 1)


def _block(draft: Draft, name: str) -> Any:
    return draft.sub("context_parallel").get(name)


def _block_sizes_disagree(draft: Draft) -> bool:
    size, flat = _block(draft, "size"), draft.get("context_parallel_size")
    return size is not None and flat is not None and size != flat


def _degrees_do_not_divide(draft: Draft) -> bool:
    size = _block(draft, "size") or 1
    ulysses, ring = _block(draft, "ulysses_size"), _block(draft, "ring_size")
    if any(degree is not None and (degree < 1 or size % degree) for degree in (ulysses, ring)):
        return True
    backend = _block(draft, "backend")
    if backend == "ulysses" and (ring not in (None, 1) or ulysses not in (None, size)):
        return True
    if backend == "ring" and (ulysses not in (None, 1) or ring not in (None, size)):
        return True
    return bool(ulysses and ring and ulysses * ring != size)


def _unknown_in_block(draft: Draft) -> bool:
    """True if the block has an unknown key, which it refuses (`extra="forbid"`)."""
    given = draft.raw.get("context_parallel")
    return isinstance(given, dict) and any(f"context_parallel.{name}" not in draft.keys for name in given)


def _not_ulysses(draft: Draft) -> bool:
    ring = _block(draft, "ring_size") not in (None, 1)
    partly = _block(draft, "ulysses_size") not in (None, _block(draft, "size"))
    return _block(draft, "backend") not in (None, "auto", "ulysses") or ring or partly


EXPERT_RULES = (
    Rule(
        "expert_parallel_size",
        lambda d: _expert(d) and (d.get("tensor_parallel_size") or 1) > 1,
        "tensor_parallel_size cannot be combined with expert_parallel_size",
        "use dp_shard_size in place of tensor parallelism",
        since=SINCE,
    ),
    Rule(
        "expert_parallel_size",
        lambda d: _expert(d) and not d.get("fsdp_config"),
        "expert_parallel_size above 1 requires FSDP2 (fsdp_config)",
        "add `fsdp_config:` with `state_dict_type: FULL_STATE_DICT`",
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        lambda d: _expert(d) and d.sub("fsdp_config").get("state_dict_type") != "FULL_STATE_DICT",
        "expert_parallel_size above 1 requires fsdp_config.state_dict_type: FULL_STATE_DICT",
        "set it",
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        lambda d: _expert(d) and d.sub("fsdp_config").get("final_state_dict_type") not in (None, "FULL_STATE_DICT"),
        "expert_parallel_size above 1 requires fsdp_config.final_state_dict_type: FULL_STATE_DICT",
        "remove final_state_dict_type",
        since=SINCE,
    ),
    Rule(
        "optimizer",
        lambda d: _expert(d) and d.get("optimizer") in _UNSUPPORTED_OPTIMIZERS,
        f"expert_parallel_size above 1 does not support {', '.join(_UNSUPPORTED_OPTIMIZERS)}",
        "use adamw_torch_8bit",
        since="0.21.0",
    ),
    Rule(
        "gradient_checkpointing_kwargs",
        lambda d: _recomputes_experts(d) and reentrant(d),
        "torch's expert parallelism requires non-reentrant checkpointing",
        "set `use_reentrant: false`",
        since=SINCE,
    ),
    Rule(
        "activation_offloading",
        lambda d: _recomputes_experts(d) and d.get("activation_offloading") in (True, "legacy", "disk"),
        "torch's expert parallelism cannot be used with activation_offloading",
        "set `activation_offloading: hidden_states`, or remove it",
        since=SINCE,
    ),
    Rule(
        "expert_parallel_dispatch_chunks",
        lambda d: (d.get("expert_parallel_dispatch_chunks") or 1) > 1 and d.get("expert_parallel_backend") == "deep_ep",
        "expert_parallel_dispatch_chunks above 1 requires expert_parallel_backend: torch",
        "set the backend, or remove the chunks",
        since=SINCE,
    ),
    Rule(
        "expert_parallel_dispatch_chunks",
        lambda d: d.is_live("expert_parallel_dispatch_chunks") and d.get("expert_parallel_dispatch_chunks") == 0,
        "expert_parallel_dispatch_chunks must be at least 1",
        "raise it",
        since=SINCE,
    ),
)

CONTEXT_RULES = (
    Rule(
        "context_parallel",
        _block_sizes_disagree,
        "context_parallel.size and context_parallel_size differ",
        "keep one of them",
        since=SINCE,
    ),
    Rule(
        "context_parallel",
        _degrees_do_not_divide,
        "the product of context_parallel's ulysses_size and ring_size is not its size",
        "remove them: axolotl chooses",
        since=SINCE,
    ),
    Rule("context_parallel", _unknown_in_block, "context_parallel has an unknown key", "remove it", since=SINCE),
    Rule(
        "context_parallel",
        lambda d: d.get("deepspeed") and context_parallel_size(d) > 1 and _not_ulysses(d),
        "under DeepSpeed, only Ulysses can be used for context parallelism",
        "set `backend: ulysses`, or use FSDP",
        since="0.21.0",
    ),
    Rule(
        "rl",
        lambda d: d.get("deepspeed") and context_parallel_size(d) > 1 and d.get("rl"),
        "preference training with context parallelism is not supported under DeepSpeed",
        "use FSDP",
        since="0.21.0",
    ),
)

PARALLEL_PLUGIN_RULES = (*EXPERT_RULES, *CONTEXT_RULES)
