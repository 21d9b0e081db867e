"""Rules for FSDP from axolotl 0.20.0 on, which has only FSDP2, and for weights that are packed on the CPU.

Source: axolotl 0.20.0 `utils/schemas/validation.py` (`check_fsdp_version`, `STAGED_NF4_CONSTRAINTS`, `check_staged_nf4`,
`check_bnb_blocksize`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from axmem_trace.config.derive.fsdp import shards_qlora
from axmem_trace.config.document.draft import Draft
from axmem_trace.config.refusals.rule import Rule, bits, given
from axmem_trace.config.refusals.since_0_20 import SINCE, parallel, reads_the_base

FSDP1_REFUSED = {"sharding_strategy": "reshard_after_forward", "forward_prefetch": ""}
"""Options of FSDP1 that are refused, and what replaces them (`FSDP1_ONLY_REJECTED_KEYS`)."""


def _fsdp1_version(draft: Draft) -> bool:
    config = draft.sub("fsdp_config")
    versions = (draft.values.get("fsdp_version"), config.get("fsdp_version"), config.get("version"))
    inner = _raw(draft, "fsdp_config").get("version")
    return any(version is not None and str(version) != "2" for version in (*versions, inner))


def _raw(draft: Draft, key: str) -> Mapping[str, Any]:
    """A block as the user wrote it, including keys that the check of keys has dropped."""
    value = draft.raw.get(key)
    return value if isinstance(value, Mapping) else {}


def _fsdp1_option(draft: Draft) -> bool:
    return any(str(name).removeprefix("fsdp_") in FSDP1_REFUSED for name in _raw(draft, "fsdp_config"))


def _is_staged(draft: Draft) -> bool:
    """True if weights are packed on the CPU and then sharded (`check_staged_nf4`)."""
    if draft.get("nf4_backend") == "torchao":
        return True
    config = draft.sub("fsdp_config")
    return bool(
        shards_qlora(draft) and draft.get("load_in_4bit") and config and config.get("cpu_ram_efficient_loading")
    )


def _bnb(draft: Draft, name: str, default: Any) -> Any:
    return draft.sub("bnb_config_kwargs").get(name, default)


def _staged(problem: str, broken: Any, remedy: str, *, key: str = "load_in_4bit", until: str = "") -> Rule:
    return Rule(
        key,
        lambda d: _is_staged(d) and broken(d),
        f"weights that are packed on the CPU (nf4_backend: torchao, or QLoRA under FSDP with cpu_ram_efficient_loading) "
        f"{problem}",
        remedy,
        since=SINCE,
        until=until,
    )


FSDP_RULES = (
    Rule(
        "fsdp",
        lambda d: given(d, "fsdp"),
        "the top-level `fsdp` list was removed together with FSDP1",
        "write `fsdp_config:` and remove `fsdp`",
        since=SINCE,
    ),
    Rule(
        "fsdp_version",
        _fsdp1_version,
        "FSDP1 was removed: fsdp_version can only be 2",
        "set `fsdp_version: 2`, or name the axolotl that you use with --axolotl 0.19.0",
        figures_with={"fsdp_version": 2},
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        _fsdp1_option,
        "sharding_strategy and forward_prefetch are options of FSDP1, which was removed",
        "remove them; reshard_after_forward replaces sharding_strategy",
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        lambda d: d.get("deepspeed") and d.get("fsdp_config"),
        "deepspeed and fsdp_config cannot be used together",
        "keep one of them",
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        lambda d: "falcon" in str(d.get("base_model")).lower() and d.get("fsdp_config"),
        "FSDP is not supported for Falcon models",
        "remove fsdp_config",
        since=SINCE,
    ),
    Rule(
        "fsdp_config",
        lambda d: (
            d.sub("fsdp_config").get("cpu_ram_efficient_loading") and d.get("load_in_4bit") and not shards_qlora(d)
        ),
        "FSDP2 does not support cpu_ram_efficient_loading with load_in_4bit, unless the weights are sharded",
        "set `adapter: qlora` with `qlora_sharded_model_loading: true`, or `cpu_ram_efficient_loading: false`",
        since=SINCE,
    ),
    Rule(
        "rl",
        lambda d: d.get("rl") in ("dpo", "kto", "orpo", "ipo") and d.get("fsdp_config") and bits(d),
        "FSDP2 does not support load_in_8bit or load_in_4bit in preference training",
        "use DeepSpeed",
        since=SINCE,
    ),
    Rule(
        "fp8_enable_fsdp_float8_all_gather",
        lambda d: d.get("fp8_enable_fsdp_float8_all_gather") and not d.get("fsdp_config"),
        "fp8_enable_fsdp_float8_all_gather requires FSDP2 (fsdp_config)",
        "remove it on one GPU",
        since=SINCE,
    ),
)

STAGED_RULES = (
    _staged(
        "need `adapter: qlora` with `load_in_4bit: true`",
        lambda d: not d.get("load_in_4bit") or d.get("adapter") != "qlora" or d.get("load_in_8bit"),
        "set both, or remove nf4_backend",
        key="nf4_backend",
    ),
    _staged(
        "need cpu_ram_efficient_loading and qlora_sharded_model_loading under FSDP",
        lambda d: (
            bool(d.get("fsdp_config"))
            and not (d.sub("fsdp_config").get("cpu_ram_efficient_loading") and shards_qlora(d))
        ),
        "set both",
        key="fsdp_config",
    ),
    _staged(
        "cannot be used with DeepSpeed, tensor or context parallelism",
        lambda d: bool(d.get("deepspeed")) or parallel(d, "tensor", "context"),
        "remove them",
    ),
    _staged("cannot be used with expert parallelism", lambda d: parallel(d, "expert"), "remove it", until="0.20.0"),
    _staged("need dp_replicate_size 1", lambda d: (d.get("dp_replicate_size") or 1) > 1, "remove dp_replicate_size"),
    _staged(
        "can only be nf4",
        lambda d: _bnb(d, "bnb_4bit_quant_type", "nf4") != "nf4",
        "set `bnb_4bit_quant_type: nf4`",
        key="bnb_config_kwargs",
    ),
    _staged(
        "have blocks of 64 and double quantisation with torchao",
        lambda d: (
            d.get("nf4_backend") == "torchao"
            and (_bnb(d, "blocksize", 64) != 64 or not _bnb(d, "bnb_4bit_use_double_quant", True))
        ),
        "remove blocksize and bnb_4bit_use_double_quant",
        key="bnb_config_kwargs",
    ),
    _staged(
        "cannot be used with DoRA or lora_modules_to_save",
        lambda d: bool(d.get("peft_use_dora") or d.get("lora_modules_to_save")),
        "remove them",
    ),
    _staged(
        "cannot be used with an initialisation of LoRA that reads the base weights (pissa, olora, loftq, ...)",
        reads_the_base,
        "remove peft_init_lora_weights",
        key="peft_init_lora_weights",
    ),
    Rule(
        "bnb_config_kwargs",
        lambda d: d.get("load_in_4bit") and d.get("nf4_backend") != "torchao" and _bnb(d, "blocksize", 64) != 64,
        "bitsandbytes always quantises to 4 bit in blocks of 64",
        "remove `bnb_config_kwargs.blocksize`",
        since=SINCE,
    ),
)

FSDP2_RULES = (*FSDP_RULES, *STAGED_RULES)
