"""`overrides_of_model_kwargs`: further arguments of `from_pretrained`; axolotl's own are set later and override them.

Source: axolotl 0.19 `loaders/model.py` `__init__` (the overrides first), `_set_device_map_config` (dtype, device map),
`_set_attention_config` (only with `attn_implementation`).
"""

from __future__ import annotations

from typing import Any

from axmem_trace.config.document.draft import Draft

KEY = "overrides_of_model_kwargs"
_OVERWRITTEN = {"dtype": "the load dtype", "torch_dtype": "the load dtype", "device_map": "the device map"}
_WITHOUT_MEMORY = frozenset(
    """
    use_cache revision token use_auth_token cache_dir local_files_only use_safetensors low_cpu_mem_usage
    force_download resume_download proxies subfolder variant weights_only attn_implementation
    """.split()
)


def attention_override(draft: Draft) -> Any:
    """The kernel with which the model is loaded if `attn_implementation` is not given. axolotl's own rules do not see it:
    packing and casts are as if no kernel was set."""
    return draft.sub(KEY).get("attn_implementation") if draft.get("attn_implementation") is None else None


def note_model_kwargs(draft: Draft) -> None:
    """Reports which overrides have no effect, and which are not in the figures."""
    for name, value in draft.sub(KEY).items():
        place = f"{KEY}.{name}"
        line = draft.line(place) or draft.line(KEY)
        if name in _OVERWRITTEN and not (name == "device_map" and draft.get("fsdp_config")):
            text = f"`{name}` under `{KEY}` has no effect: axolotl sets {_OVERWRITTEN[name]} itself, and later"
            draft.note("ignored", place, text, line=line)
        elif name == "attn_implementation" and draft.get("attn_implementation") is not None:
            text = f"`{name}` under `{KEY}` has no effect together with `attn_implementation`"
            draft.note("ignored", place, text, line=line)
        elif name not in _WITHOUT_MEMORY:
            text = f"`{name}: {value}` under `{KEY}` is passed to from_pretrained, and is not in the figures"
            draft.note("not_modelled", place, text, line=line, direction="either")
