"""What axolotl does without a key, where its releases differ. Each field names file and line in both releases.

Paths are below `axolotl/` of the wheel. Read from the wheels of 0.19.0, 0.20.0 and 0.21.0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from axmem_trace.recipe.objective import LossHelpers


@dataclass(frozen=True, kw_only=True, slots=True)
class Behaviour:
    """One release. Nothing here depends on the configuration: the functions of `config/derive` read these fields."""

    reentrant_checkpointing: bool
    """`gradient_checkpointing: true` alone is reentrant. 0.19.0 and 0.20.0 `utils/config/__init__.py:401` set
    `use_reentrant: True` where no kwargs are given. 0.21.0 `:470` keeps the other kwargs, and sets False unless the user
    has set it; only under ZeRO-3 it sets True."""
    upcasts_embeddings_always: bool
    """Embeddings and head become fp32 at loading, although they are cast back afterwards: 0.19.0 `loaders/model.py:435`.
    0.20.0 `:608` and 0.21.0 `:616` do not cast them if the cast back would follow. They also exclude axolotl's names for
    them from peft's k-bit preparation (`:189`, `loaders/patch_manager.py:483`)."""
    embeddings_by_model_type_in_kbit: bool
    """The names that k-bit preparation leaves out are those of the model type: 0.20.0 `loaders/patch_manager.py:473`;
    0.19.0 `:467` always takes `embed_tokens` and `lm_head`."""
    neox_head: str
    """The name of GPT-NeoX' head in `get_linear_embedding_layers`: `embed_out` in 0.19.0 `loaders/utils.py:309`, which no
    module of transformers 5 has; `lm_head` from 0.20.0 (`:319`)."""
    packed_evaluation_uses_train_batch: bool
    """A packed evaluation row is as long as a training row. 0.19.0 `core/trainers/base.py:164`,
    0.20.0 `:181`; 0.21.0 `:377` takes `eval_batch_size` times `sequence_len`."""
    evaluates_at_start_always: bool
    """The Trainer evaluates before step 1 whatever the strategy, `no` included. 0.19.0 `core/builders/base.py:530`,
    0.20.0 `:562`. 0.21.0 `:585` obeys `eval_on_start`, and never evaluates with `eval_strategy: no`."""
    liger_head_gradient_is_added: bool
    """Liger's fused linear loss computes each chunk's gradient of the head in the head's dtype, casts it to fp32, and adds
    it to a sum: `ops/fused_linear_cross_entropy.py` of liger-kernel 0.8.1, which 0.19.0 and 0.20.0 pin. 0.8.4 (0.21.0)
    adds the product to the sum in one operator, and keeps the logits of one chunk alive instead of two."""
    lora_kernels_keep_gradient_dtype: bool
    """The fused LoRA kernels return the gradients of A and B in the parameters' dtype: 0.20.0 `kernels/lora.py:30`. In
    0.19.0 they leave the kernel in the dtype of the step."""
    experts_obey_double_quant: bool
    """`quantize_moe_experts` obeys `bnb_config_kwargs.bnb_4bit_use_double_quant`: 0.21.0 `monkeypatch/moe_quant.py:135`.
    0.20.0 (`:134`) and older read a top-level key that the schema drops, so experts are always quantised twice."""
    int8_experts_stay_unpacked: bool
    """The hook that drops unpacked 8-bit experts does not run if a recomputation stops early (`use_reentrant: false`), and
    from then on none are dropped: 0.19.0 `monkeypatch/moe_quant.py:67`. 0.20.0 and 0.21.0 (`:95`) pass `always_call`."""
    ties_lora_of_tied_embeddings: bool
    """With `peft_ensure_weight_tying`, the head's A and B are views of the embedding's: 0.21.0 `utils/lora_tying.py`,
    called in `loaders/adapter.py:496`."""
    selective_empty_saves_nothing: bool
    """`selective_checkpointing.save: []` saves nothing: 0.20.0 `monkeypatch/selective_checkpointing.py:109`.
    0.19.0 (`:188`) treats the empty list as the default, attention."""
    selective_sees_varlen: bool
    """`attention` in `selective_checkpointing.save` matches packed SDPA (`torch_attn::_varlen_attn`): 0.21.0
    `monkeypatch/selective_checkpointing.py:81`."""
    loss_helpers: LossHelpers
    """The Triton kernels for log-probabilities and entropy: axolotl's own, patched into TRL, in 0.19.0
    `monkeypatch/trainer/utils.py` and 0.20.0 (`loaders/patch_manager.py:1274`); 0.21.0 has none and TRL 1.14.1 has its
    own (`trl/kernels/logprob_entropy.py`)."""
    dpo_empties_cache: bool
    """After each micro-batch of DPO, `torch.cuda.empty_cache()`: 0.19.0 and 0.20.0 `core/trainers/dpo/trainer.py:101`."""
    colocated_share: float
    """The share of the card that a colocated vLLM engine takes if no key sets it. In 0.19.0 and 0.20.0 it is 0.9, the
    default of axolotl's `vllm.gpu_memory_utilization` (`utils/schemas/vllm.py:26`). 0.21.0 has no default, so TRL's holds:
    0.3 (`grpo_config.py`, `vllm_gpu_memory_utilization`)."""
    default_fsdp_version: int
    """The version of FSDP if `fsdp_config` has no `fsdp_version`: 0.19.0 `utils/schemas/validation.py:1231`; 0.20.0
    `:1516`, 0.21.0 `:1550`."""
    stages_nf4: bool
    """QLoRA under FSDP with `cpu_ram_efficient_loading` is packed by rank 0 and sent in parts: 0.20.0 and 0.21.0
    `loaders/nf4.py`; 0.19.0 refuses it under FSDP2 (`utils/schemas/validation.py:1266`)."""
    deepspeed: Literal["0.18.9", "0.19.8"]
    """The newest DeepSpeed that the extra `deepspeed` allows: below 0.19 in 0.19.0, below 0.20 in 0.20.0 and 0.21.0."""
    always_listed_plugins: frozenset[str]
    """Plugins that are active without being listed: `BUILTIN_PLUGINS`, 0.20.0 and 0.21.0 `integrations/base.py`."""
    missing_plugin_stops: bool
    """A listed plugin that cannot be imported ends the run: 0.21.0 `integrations/base.py:464`. Older releases only warn."""
    plugins_may_have_a_colon: bool
    """`module:Class` names a plugin, as `module.Class` does: 0.21.0 `integrations/base.py:56`."""
    whole_layers_on_host: bool
    """`gpu_memory_limit` never splits a decoder layer: 0.21.0 `loaders/model.py:953` (`no_split_module_classes`)."""


_0_19_0 = Behaviour(
    reentrant_checkpointing=True,
    upcasts_embeddings_always=True,
    embeddings_by_model_type_in_kbit=False,
    neox_head="embed_out",
    packed_evaluation_uses_train_batch=True,
    evaluates_at_start_always=True,
    liger_head_gradient_is_added=True,
    lora_kernels_keep_gradient_dtype=False,
    experts_obey_double_quant=False,
    int8_experts_stay_unpacked=True,
    ties_lora_of_tied_embeddings=False,
    selective_empty_saves_nothing=False,
    selective_sees_varlen=False,
    loss_helpers="axolotl",
    dpo_empties_cache=True,
    colocated_share=0.9,
    default_fsdp_version=1,
    stages_nf4=False,
    deepspeed="0.18.9",
    always_listed_plugins=frozenset(),
    missing_plugin_stops=False,
    plugins_may_have_a_colon=False,
    whole_layers_on_host=False,
)
_0_20_0 = replace(
    _0_19_0,
    upcasts_embeddings_always=False,
    embeddings_by_model_type_in_kbit=True,
    neox_head="lm_head",
    lora_kernels_keep_gradient_dtype=True,
    int8_experts_stay_unpacked=False,
    selective_empty_saves_nothing=True,
    default_fsdp_version=2,
    stages_nf4=True,
    deepspeed="0.19.8",
    always_listed_plugins=frozenset({"context_parallel"}),
)
_0_21_0 = replace(
    _0_20_0,
    reentrant_checkpointing=False,
    packed_evaluation_uses_train_batch=False,
    evaluates_at_start_always=False,
    liger_head_gradient_is_added=False,
    experts_obey_double_quant=True,
    ties_lora_of_tied_embeddings=True,
    selective_sees_varlen=True,
    loss_helpers="trl",
    dpo_empties_cache=False,
    colocated_share=0.3,
    always_listed_plugins=frozenset({"context_parallel", "expert_parallel"}),
    missing_plugin_stops=True,
    plugins_may_have_a_colon=True,
    whole_layers_on_host=True,
)

BEHAVIOURS = {"0.19.0": _0_19_0, "0.20.0": _0_20_0, "0.21.0": _0_21_0}
"""By release."""
