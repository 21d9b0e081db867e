"""Records the verdict of axolotl's own validator on each case of `axolotl_cases.json`. Needs an installed axolotl, but
no GPU.

    python tests/config/record_axolotl_verdicts.py

Runs `prepare_plugins`, `validate_config` and `normalize_config` of the installed axolotl as `axolotl train` does on an
H100 (one GPU), with the base model's configuration from this project's catalogue, and writes
`axolotl_verdicts/VERSION.json`. The tests compare with this record, not with our reading of the source.

axolotl 0.20 and newer need Python 3.12. The validator needs only some of axolotl's own requirements: an environment
with torch, transformers, peft, trl, datasets, liger-kernel and their imports is enough.
"""

from __future__ import annotations

import collections
import json
import logging
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CAPABILITIES = {"bf16": True, "fp8": True, "tf32": True, "n_gpu": 1, "compute_capability": "sm_90"}
TORCH_VERSION = "2.13.0"
"""A version in the range of all recorded releases."""
KEPT = tuple(
    """
    torch_dtype fp16 bf16 attn_implementation optimizer gradient_checkpointing activation_offloading
    gradient_checkpointing_kwargs gradient_accumulation_steps micro_batch_size sample_packing eval_sample_packing
    eval_batch_size eval_steps eval_strategy val_set_size batch_flattening pad_to_sequence_len lora_mlp_kernel
    lora_qkv_kernel lora_o_kernel lora_embedding_kernel adapter type_of_model neftune_noise_alpha
    torch_empty_cache_steps liger_glu_activation cut_cross_entropy fsdp_version eval_on_start
    """.split()
)
"""Fields of axolotl's normalised configuration that are compared."""


def verdict(text: str) -> dict[str, Any]:
    """`accepted`, the error of the first step that failed, and the compared fields."""
    import axolotl.utils.config as axolotl_config
    import yaml
    from axolotl.integrations.base import PluginManager
    from axolotl.utils.dict import DictDefault

    PluginManager.get_instance().plugins = collections.OrderedDict()  # as in a new process
    try:
        cfg = DictDefault(yaml.safe_load(text))
        axolotl_config.prepare_plugins(cfg)
        cfg = axolotl_config.validate_config(
            cfg, capabilities=dict(CAPABILITIES), env_capabilities={"torch_version": TORCH_VERSION}
        )
        axolotl_config.normalize_config(cfg)
    except Exception as error:
        return {"accepted": False, "error": _first_reason(error)}
    fields = {key: cfg.get(key) for key in KEPT if cfg.get(key) is not None}
    return {"accepted": True, "fields": json.loads(json.dumps(fields, default=str))}


def _first_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(lines[1:3]) if "validation error" in lines[0] else lines[0]
    return f"{type(error).__name__}: {text.split(' [type=')[0]}"[:200]


def prepare() -> None:
    """Replaces the GPU and the Hub, as axolotl reads them, by an H100 and the catalogue."""
    import axolotl.utils.config as axolotl_config
    from axolotl.loaders.utils import check_model_config
    from transformers import AutoConfig

    from axmem_trace.catalogue import find_base_model

    def load_model_config(cfg: Any) -> Any:
        config = dict(find_base_model(cfg.base_model, hub="never").config)
        made = AutoConfig.for_model(config.pop("model_type"), **config)
        for key, value in (cfg.overrides_of_model_config or {}).items():
            setattr(made, key, value)
        check_model_config(cfg, made)
        return made

    def choose_device(cfg: Any) -> None:
        cfg.device, cfg.device_map = "cuda:0", cfg.device_map or "auto"

    logging.disable(logging.CRITICAL)
    axolotl_config.load_model_config = load_model_config
    axolotl_config.choose_device = choose_device
    axolotl_config.is_torch_bf16_gpu_available = lambda: True
    axolotl_config.log_gpu_memory_usage = lambda *_: None


def main() -> None:
    import axolotl

    prepare()
    record = json.loads((HERE / "axolotl_cases.json").read_text(encoding="utf-8"))
    verdicts = {name: verdict(make_config(record, case)) for name, case in record["cases"].items()}
    write(axolotl.__version__, verdicts)


def make_config(record: dict[str, Any], case: dict[str, Any]) -> str:
    """The common lines, without those that the case drops, and the case's own lines."""
    kept = [line for line in record["common"] if not line.startswith(tuple(case.get("drop", ())) or "\0")]
    return "\n".join(kept + case["lines"]) + "\n"


def write(version: str, verdicts: dict[str, Any]) -> None:
    """Writes one case on each line."""
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(verdict)}" for name, verdict in sorted(verdicts.items()))
    (HERE / "axolotl_verdicts" / f"{version}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
