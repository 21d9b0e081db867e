"""Context parallelism: `context_parallel_size` and the `context_parallel` block. Several ranks share each row.

Source: axolotl 0.21 `integrations/context_parallel/{plugin,settings,collator,trainer}.py`; ringmaster 0.2.7
`strategies/usp.py` `auto_select`, `strategies/ring.py` `resolve_ring_impl`, `mesh.py` `intra_node_size`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.parallel_plugins import context_parallel_size
from axmem_trace.recipe.model import Model
from axmem_trace.recipe.parallel import Context, Parallel
from axmem_trace.recipe.run import Attention

KEY = "context_parallel_size"
BLOCK = "context_parallel"
SINCE = "0.20"
"""The first modelled release. Earlier releases use ring-flash-attn."""
_OF_RING = "flash_attention_2"
_FLASH = (_OF_RING, "flash_attention_3", "flash_attention_4")
_EXCHANGING = ("sdpa", "varlen", "flex_attention", *_FLASH)
"""Kernels that are modelled with an exchange before and after them."""


def derive_context(draft: Draft, model: Model, parallel: Parallel, kernel: str) -> Context:
    """`Context` from the keys and the base model's heads. Its size is 1 if rows are not divided, or if it is not modelled.

    Args:
        kernel: the attention kernel (`recipe.attention.kernel`).
    """
    size = context_parallel_size(draft)
    if size < 2 or parallel.num_gpus < 2:
        return Context()
    why = _not_modelled(draft, model, parallel, kernel)
    if why:
        text = f"context parallelism is not in the figures ({why}): it divides each row among {size} GPUs"
        draft.note("not_modelled", KEY, text, direction="less", touches="activations")
        return Context()
    base = _Base.read(model.base.config)
    _refuse_trainer(draft)
    heads = _choose_heads(draft, size, base.kv_heads, parallel.num_gpus // parallel.num_nodes)
    ring = size // heads
    _explain(draft, heads, ring, base.kv_heads)
    if ring == 1:
        _refuse_ring_options(draft)
        return Context(heads=heads, in_collator=_in_collator(draft))
    _refuse_kernel_of_ring(draft, kernel)
    head_tail, steps = _schedule(draft, base, kernel, pure=heads == 1)
    return Context(
        heads=heads,
        ring=ring,
        rotation="steps" if steps else "allgather",
        head_tail=head_tail,
        in_collator=_in_collator(draft),
    )


def attention_of_ring(attention: Attention, context: Context) -> Attention:
    """The kernel in the figures. For a ring it is FlashAttention-2 (`derive_context` adds a note if the configuration sets
    another one)."""
    return replace(attention, kernel=_OF_RING) if context.ring > 1 else attention


@dataclass(frozen=True, slots=True)
class _Base:
    """The values in the base model's `config.json` that decide."""

    kv_heads: int
    restricted: bool
    """Layers with a sliding window, or chunks."""
    dropout: float

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> _Base:
        inner = config.get("text_config")
        text = {**config, **(inner if isinstance(inner, Mapping) else {})}
        kinds = text.get("layer_types")
        window = text.get("sliding_window") if text.get("use_sliding_window", True) is not False else None
        some = any(kind in kinds for kind in ("sliding_attention", "chunked_attention")) if kinds else bool(window)
        heads = text.get("num_key_value_heads") or text.get("num_attention_heads") or text.get("n_head") or 0
        return cls(int(heads), some, float(text.get("attention_dropout") or 0.0))


def _not_modelled(draft: Draft, model: Model, parallel: Parallel, kernel: str) -> str:
    """The reason in a few words; empty if it is modelled."""
    if draft.release.is_before(SINCE):
        return f"axolotl {draft.release.version} uses ring-flash-attn"
    if parallel.engine not in ("ddp", "fsdp2"):
        return "DeepSpeed's own sequence parallelism" if draft.get("deepspeed") else "with tensor parallelism"
    if draft.get("use_glm_dsa_kernels"):
        return "GLM's sparse attention"
    if model.task != "causal-lm" or draft.get("kd_trainer") or draft.get("process_reward_model"):
        return "with this loss, or with images or audio"
    if kernel not in _EXCHANGING:
        return f"with {kernel}"
    return ""


def _refuse_trainer(draft: Draft) -> None:
    """`configure_trainer`: the model computes the loss, from the number of labels of all ranks. TRL's trainers (1.14
    `model_accepts_loss_kwargs = False`) and other losses do not."""
    rl = draft.get("rl")
    key = "rl" if rl and rl not in ("grpo", "gdpo", "ebft") else "reward_model" if draft.get("reward_model") else ""
    if not key and draft.get("label_smoothing_factor"):
        key = "label_smoothing_factor"
    if key:
        draft.refuse(
            "context parallelism fails when the trainer is created: it needs a loss that the model computes itself",
            key,
            remedy=f"remove {key}, or {KEY}",
        )


def _choose_heads(draft: Draft, size: int, kv_heads: int, per_machine: int) -> int:
    """The number of ranks that exchange heads (`auto_select`): the most that divide the key-value heads and are in one
    machine."""
    block = draft.sub(BLOCK)
    asked, ring, backend = block.get("ulysses_size"), block.get("ring_size"), block.get("backend")
    if asked or ring:
        heads = int(asked or size // int(ring or 1))
    elif backend == "ulysses":
        heads = size
    elif backend == "ring":
        heads = 1
    else:
        heads = max(each for each in _divisors(size) if each <= per_machine and not kv_heads % each)
    if kv_heads % heads:
        fewer = max(each for each in _divisors(size) if not kv_heads % each)
        draft.refuse(
            f"axolotl fails: {heads} GPUs can't share {kv_heads} key-value heads equally (the figures are with {fewer}, "
            f"and a ring of {size // fewer})",
            BLOCK if block else KEY,
            remedy="remove ulysses_size and backend: axolotl then selects them",
        )
        return fewer
    return heads


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def _explain(draft: Draft, heads: int, ring: int, kv_heads: int) -> None:
    ways = [f"{heads} GPUs exchange heads for tokens (Ulysses)"] if heads > 1 else []
    ways += [f"{ring} GPUs pass keys and values in a ring"] if ring > 1 else []
    text = f"rows are divided among {heads * ring} GPUs: {', '.join(ways)}; the model has {kv_heads} key-value heads"
    draft.reason("parallel.context", f"{heads} x {ring}", text, key=KEY if draft.has(KEY) else BLOCK)


def _refuse_ring_options(draft: Draft) -> None:
    """`resolve_settings`, if there is no ring."""
    block = draft.sub(BLOCK)
    balance = block.get("load_balance") not in (None, "auto", "none")
    if balance or block.get("rotate_method") is not None or block.get("ring_impl") not in (None, "auto"):
        draft.refuse(
            "load_balance, rotate_method and ring_impl are for a ring, and these GPUs exchange heads instead",
            BLOCK,
            remedy="remove them, or set `backend: ring`",
        )


def _refuse_kernel_of_ring(draft: Draft, kernel: str) -> None:
    """Without flash-attn's kernels axolotl fails, because torch's own kernels have no backward here. FlashAttention-3 and 4
    are estimated as 2."""
    if kernel not in _FLASH or draft.sub(BLOCK).get("ring_impl") == "torch_native":
        draft.refuse(
            "axolotl fails: a ring trains only with FlashAttention (the figures are with flash_attention_2)",
            "attn_implementation",
            remedy="set `attn_implementation: flash_attention_2`, or use fewer GPUs that can share the key-value heads",
        )
    elif kernel != _OF_RING:
        text = f"a ring with {kernel} is estimated as a ring with {_OF_RING}"
        draft.note("not_modelled", "attn_implementation", text, direction="either", touches="activations")


def _schedule(draft: Draft, base: _Base, kernel: str, *, pure: bool) -> tuple[bool, bool]:
    """Whether ranks have an early and a late part of each row, and whether keys and values are passed on step by step
    (`resolve_settings`)."""
    block = draft.sub(BLOCK)
    balance, rotation = block.get("load_balance") or "auto", block.get("rotate_method")
    packed = bool(draft.get("sample_packing") or draft.get("batch_flattening"))
    plain = not base.restricted and not base.dropout and kernel == _OF_RING
    if balance == "distflash":
        text = "load_balance: distflash is estimated as a ring that passes keys and values; it also passes queries"
        draft.note("not_modelled", BLOCK, text, direction="more", touches="activations")
        return False, True
    if balance == "head_tail" or (balance == "auto" and pure and plain and not packed and rotation is None):
        return True, True
    return False, rotation == "alltoall" and not packed


def _in_collator(draft: Draft) -> bool:
    """True if rows are divided on the host. They are not if accelerate sends them from rank 0 (`dispatches_batches`), or if
    the release does not support it."""
    streams = draft.get("streaming") or draft.get("pretraining_dataset")
    dispatches = streams and draft.sub("accelerator_config").get("dispatch_batches") is not False
    asked = draft.sub(BLOCK).get("shard_in_collator") is not False
    return bool(asked and not dispatches and not draft.release.is_before("0.21"))
