"""`lora_model_dir`: a saved adapter, whose own configuration is used (axolotl `loaders/adapter.py` `load_lora`, peft
`peft_model.py` `PeftModel.from_pretrained`)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axmem_trace.catalogue.config_file import ADAPTER_FILE
from axmem_trace.config.document.draft import Draft
from axmem_trace.files import expanded, is_file

WEIGHTS_FILE = "adapter_model.safetensors"
MAX_JSON_BYTES = 1 << 20
MAX_HEADER_BYTES = 100 << 20
"""The largest header that the safetensors format allows."""


@dataclass(frozen=True, slots=True)
class SavedAdapter:
    """The content of `lora_model_dir`. Without the key, or if the directory is not here, `config` is empty."""

    config: Mapping[str, Any] = field(default_factory=dict)
    tensor_bytes: tuple[int, ...] = ()
    """The size of each tensor in the file of weights, if it is a readable safetensors file."""

    @property
    def governs(self) -> bool:
        """True if the configuration was found: then axolotl's own lora_* keys have no effect."""
        return bool(self.config)

    def setting(self, draft: Draft, name: str, key: str) -> Any:
        """The value of peft's field `name`: that of the saved adapter, or else that of axolotl's `key`."""
        return self.config.get(name) if self.governs else draft.get(key)


def read_saved_adapter(draft: Draft) -> SavedAdapter:
    """The adapter of `lora_model_dir`, if it is a directory on this machine.

    Raises:
        ConfigError: it is no LoRA, or its configuration can't be read.
    """
    name = draft.get("lora_model_dir")
    if not name:
        return SavedAdapter()
    for place in _places(draft, str(name)):
        file = place / ADAPTER_FILE
        if is_file(file):
            config = _read_config(draft, file)
            draft.reason("adapter.rank", config.get("r"), f"{file} decides the adapter", key="lora_model_dir")
            return SavedAdapter(config, _tensor_bytes(place / WEIGHTS_FILE))
    text = (
        f"`lora_model_dir: {name}` is not here. In the run its {ADAPTER_FILE} decides rank and targets; the figures use the "
        "lora_* keys of the configuration"
    )
    draft.note("assumed", "lora_model_dir", text)
    return SavedAdapter()


def _places(draft: Draft, name: str) -> Iterator[Path]:
    yield expanded(name)
    if draft.directory:
        yield draft.directory / name


def _read_config(draft: Draft, file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise ValueError("it is too large")
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it does not contain a mapping")
    except (OSError, ValueError, RecursionError) as error:
        raise draft.error(f"{file} can't be read as an adapter's configuration: {error}", "lora_model_dir") from None
    kind = content.get("peft_type", "LORA")
    if kind != "LORA":
        raise draft.error(
            f"{file} is an adapter of type {kind}: axolotl would load it, but it is not modelled",
            "lora_model_dir",
            accepted="a LoRA adapter",
            remedy="remove lora_model_dir to estimate a LoRA with your own lora_* keys",
        )
    return content


def _tensor_bytes(file: Path) -> tuple[int, ...]:
    """The sizes in the header of a safetensors file: 8 bytes with its length, then JSON with each tensor's offsets."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= MAX_HEADER_BYTES:
                return ()
            header = json.loads(stream.read(length))
        offsets = [row["data_offsets"] for name, row in header.items() if name != "__metadata__"]
        return tuple(int(end) - int(start) for start, end in offsets)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()
