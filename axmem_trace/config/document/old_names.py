"""Old names and old values, accepted or refused as in axolotl 0.19. Source: axolotl `utils/schemas/{deprecated,
config,validation,training}.py` and `integrations/liger/args.py`, 0.19.0."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft

TOP_LEVEL_ALIASES = {
    "model_config": "overrides_of_model_config",
    "model_kwargs": "overrides_of_model_kwargs",
    "model_type": "type_of_model",
    "model_revision": "revision_of_model",
}
"""Alias -> name: the pydantic aliases of `RemappedParameters`. Both names are accepted; if both are given, pydantic uses the
alias."""

ATTENTION_FLAGS = {
    "xformers_attention": "xformers",
    "sage_attention": "sage",
    "flex_attention": "flex_attention",
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "eager_attention": "eager",
}
"""Old booleans in order of priority (`LEGACY_ATTN_FLAG_TO_IMPL`)."""

GONE_KEYS = {
    "gptq_groupsize": "the checkpoint's own quantization_config has this value",
    "gptq_model_v1": "the checkpoint's own quantization_config has this value",
    "gptq_disable_exllama": "it is read but no longer a field, so validation drops it",
    "load_4bit": "use load_in_4bit",
    "lora_out_dir": "use output_dir",
    "lora_exclude_modules": "it is read but not a field, so validation drops it",
    "landmark_attention": "landmark attention was removed",
    "xpos_rope": "xPos was removed",
    "s2_attention": "shifted-sparse attention was removed",
    "push_to_hub_model_id": "use hub_model_id",
    "log_sweep_min_lr": "the sweep scheduler was removed",
    "log_sweep_max_lr": "the sweep scheduler was removed",
    "flash_attn_fuse_qkv": "the fused projection was removed",
    "flash_attn_cross_entropy_loss": "it is read for Mistral but no longer a field, so validation drops it",
    "rl_adapter_ref_model": "it is read but not a field, so validation drops it: an adapter never loads a reference",
    "debug": "use AXOLOTL_LOG_LEVEL in the environment",
}
"""Keys of the last three years that are no longer fields -> what to do."""

REFUSED_KEYS = {
    "max_packed_sequence_len": (
        "it was removed (the figures are without packing)",
        "use `sample_packing: true` with `sequence_len`",
    ),
    "rope_scaling": ("it is no longer a key at the top level", "put it under `overrides_of_model_config`"),
    "s2_attention": ("shifted-sparse attention was removed", "remove it"),
    "flash_attn_rms_norm": (
        "it was removed (the figures are without it)",
        "use `liger_rms_norm: true` with the Liger plugin",
    ),
}
"""Removed keys that axolotl refuses when they are on."""
REFUSED_WHEN_GIVEN = {
    "dpo_use_logits_to_keep": "TRL removed it",
    "dpo_generate_during_eval": "TRL removed it",
    "dpo_norm_loss": "TRL changed it",
    "rpo_alpha": "TRL removed it",
}
UNSLOTH_KEYS = (
    "unsloth_cross_entropy_loss",
    "unsloth_lora_mlp",
    "unsloth_lora_qkv",
    "unsloth_lora_o",
    "unsloth_rms_norm",
    "unsloth_rope",
)


def rename_aliases(draft: Draft) -> None:
    """Renames `model_type` to `type_of_model`, and so on. It must run before any other code reads the keys."""
    for alias, name in TOP_LEVEL_ALIASES.items():
        if alias not in draft.values:
            continue
        value = draft.values.pop(alias)
        if draft.is_overridden(name) and not draft.is_overridden(alias):
            continue
        if name in draft.values:
            draft.note("ignored", name, f"`{name}` is given twice: axolotl uses the value of `{alias}`, its other name")
        draft.values[name] = value
        draft.rename(alias, name)


def understand_old_values(draft: Draft) -> None:
    """Replaces old values, which older releases of axolotl accepted and validation now refuses, by their new form."""
    if draft.values.get("gradient_checkpointing") == "unsloth":
        problem = "axolotl refuses this: it renamed `unsloth` to `offload` (the figures are with `offload`)"
        draft.refuse(problem, "gradient_checkpointing", remedy="write `gradient_checkpointing: offload`")
        draft.values["gradient_checkpointing"] = "offload"
    wrapped = draft.values.get("fsdp")
    if not isinstance(wrapped, str) or not wrapped.split():
        return
    draft.values["fsdp"] = wrapped.split()
    if "fsdp" in draft.keys:  # else the list is refused as well
        listed = f"fsdp: [{', '.join(wrapped.split())}]"
        problem = f"axolotl refuses this: it takes a list (the figures are with `{listed}`)"
        draft.refuse(problem, "fsdp", remedy=f"write `{listed}`, or better `fsdp_version: 2` with an `fsdp_config`")


def refuse_removed(draft: Draft) -> None:
    """Reports keys and values that axolotl 0.19 refuses because they were removed; the figures are without them."""
    for key, (text, remedy) in REFUSED_KEYS.items():
        if draft.get(key):
            draft.refuse(f"axolotl refuses this: {text}", key, remedy=remedy)
    for key, text in REFUSED_WHEN_GIVEN.items():
        if draft.has(key):
            draft.refuse(f"axolotl refuses this: {text}", key, remedy="remove the key")
    for key in UNSLOTH_KEYS:
        if draft.dropped.get(key):
            remedy = "use lora_mlp_kernel, lora_qkv_kernel, lora_o_kernel instead"
            draft.refuse("axolotl refuses this: it removed its Unsloth integration", key, remedy=remedy)
    if draft.get("save_safetensors") is False:
        problem = "axolotl refuses this: transformers 5 always saves safetensors"
        draft.refuse(problem, "save_safetensors", remedy="remove the key")


def understand_old_names(draft: Draft) -> None:
    """Old keys that axolotl 0.19 still maps to new ones; the new one is set and the old one is removed."""
    _attention_flags(draft)
    if draft.get("noisy_embedding_alpha"):  # axolotl does not move a zero, which means no noise (`check_neftune`)
        _move(draft, "noisy_embedding_alpha", "neftune_noise_alpha", conflict=bool(draft.get("neftune_noise_alpha")))
    _move(draft, "evaluation_strategy", "eval_strategy")
    _move(draft, "liger_swiglu", "liger_glu_activation", conflict=True)
    _move(draft, "sequence_parallel_degree", "context_parallel_size")
    _move(draft, "dpo_beta", "rl_beta")
    _gc_steps(draft)
    _fsdp_version(draft)
    mode = draft.get("gradient_checkpointing")
    if mode in ("offload", "offload_disk"):
        offload = "disk" if mode == "offload_disk" else True
        draft.values["gradient_checkpointing"], draft.values["activation_offloading"] = True, offload
        draft.rename("gradient_checkpointing", "activation_offloading")
        text = f"`gradient_checkpointing: {mode}` is the old form"
        draft.reason("checkpointing.offload", offload, text, key="gradient_checkpointing")


def _attention_flags(draft: Draft) -> None:
    """`normalize_attn_implementation` of axolotl's config.py."""
    given = [flag for flag in ATTENTION_FLAGS if draft.get(flag)]
    kernel = draft.get("attn_implementation")
    if draft.get("gemma4_hybrid_attn_impl"):
        if kernel and kernel != "flash_attention_2":
            text = "axolotl refuses this: gemma4_hybrid_attn_impl needs attn_implementation: flash_attention_2"
            draft.fail(draft.error(text, "attn_implementation", remedy="set it, or remove gemma4_hybrid_attn_impl"))
        if not kernel and not given:
            draft.values["attn_implementation"] = "flash_attention_2"
            draft.rename("gemma4_hybrid_attn_impl", "attn_implementation")
    if kernel and given:
        problem = f"axolotl refuses this: attn_implementation cannot be combined with the old {', '.join(given)}"
        remedy = "keep only attn_implementation"
        if {ATTENTION_FLAGS[flag] for flag in given} == {kernel}:
            draft.refuse(problem, "attn_implementation", remedy=remedy)
        else:
            draft.fail(draft.error(problem, "attn_implementation", remedy=remedy))
    elif given:
        flag = given[0]
        draft.values["attn_implementation"] = ATTENTION_FLAGS[flag]
        draft.rename(flag, "attn_implementation")
        text = f"`{flag}: true`, the old name of `attn_implementation: {ATTENTION_FLAGS[flag]}`"
        draft.reason("attention.kernel", ATTENTION_FLAGS[flag], text, key=flag)
    for flag in ATTENTION_FLAGS:
        draft.values.pop(flag, None)


def _move(draft: Draft, old: str, new: str, *, conflict: bool = False) -> None:
    if not draft.has(old):
        return
    if draft.has(new):
        if conflict:
            problem = f"axolotl refuses this: `{old}` is the old name of `{new}`, and both are given"
            draft.refuse(f"{problem} (the figures are with `{new}`)", old, remedy=f"remove `{old}`")
        return
    draft.values[new] = draft.values.pop(old)
    draft.rename(old, new)


def _gc_steps(draft: Draft) -> None:
    """`migrate_gc_steps`: the old key sets both new ones, unless one of them is given."""
    steps = draft.get("gc_steps")
    if steps is None or draft.has("torch_empty_cache_steps") or draft.has("gc_collect_steps"):
        return
    draft.values["gc_collect_steps"] = steps
    if steps > 0:
        draft.values["torch_empty_cache_steps"] = steps
        draft.rename("gc_steps", "torch_empty_cache_steps")


def _fsdp_version(draft: Draft) -> None:
    """`check_fsdp_version_in_fsdp_config`: if no key gives the version, it is the release's default."""
    config = draft.sub("fsdp_config")
    if config and not draft.values.get("fsdp_version"):
        draft.values["fsdp_version"] = config.get("fsdp_version") or draft.release.behaviour.default_fsdp_version
