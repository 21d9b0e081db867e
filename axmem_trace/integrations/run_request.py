"""The configuration that axolotl runs, as arguments for this package's command line.

axolotl calls a plugin's `register` with the content of the file, into which the overrides of the command line are
merged, and before any validation (axolotl 0.21.0 `cli/config.py` `load_cfg`). A file with this content gives the same
run. The estimate reads the original file again, so that its notes have line numbers, and gets the differences as
`--set`.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from axmem_trace.catalogue.gpus import find_gpu
from axmem_trace.errors import ConfigError
from axmem_trace.units import whole_mib

CONFIG_PATH_KEY = "axolotl_config_path"
"""The key in which axolotl stores the file's path."""
SAME_CARD_SHARE = 0.02
"""A card of the table is used if its memory differs from the driver's figure by at most this share."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One run: the file, the changes of the command line, and the machine.

    Attributes:
        config: the YAML file.
        changes: top-level keys whose values differ from the file.
        card: a name or a size for `--gpu`; empty: there is no CUDA card.
        num_gpus: the number of GPUs of each machine.
    """

    config: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    num_gpus: int = 1
    num_nodes: int = 1
    trust_remote_code: bool = False

    def arguments(self) -> Iterator[str]:
        """The arguments for `python -m axmem_trace`."""
        yield str(self.config)
        for key, value in self.changes.items():
            yield from ("--set", f"{key}={as_yaml(value)}")
        if self.card:
            yield from ("--gpu", self.card)
        yield from ("--gpus", str(self.num_gpus), "--nodes", str(self.num_nodes))
        if self.trust_remote_code:
            yield "--trust-remote-code"


def find_changes(config: Mapping[str, Any], not_keys: Collection[str]) -> dict[str, Any]:
    """The differences between a configuration and its own file; an absent key is null.

    Args:
        config: the configuration that `register` got.
        not_keys: options of axolotl's command line that are not keys. They are left out unless the file has them.

    Raises:
        OSError: the file can't be read.
        yaml.YAMLError: the file is not YAML.
    """
    written = yaml.safe_load(Path(config[CONFIG_PATH_KEY]).read_text(encoding="utf-8")) or {}
    ignored = {CONFIG_PATH_KEY, *not_keys} - written.keys()
    names = dict.fromkeys((*config, *written))
    return {
        str(name): config.get(name)
        for name in names
        if name not in ignored and (name not in written or config.get(name) != written[name])
    }


def name_card(name: str, memory_bytes: int) -> str:
    """The value of `--gpu` for a card: its name if the table has it with this memory, else its memory.

    >>> name_card("NVIDIA A100-SXM4-80GB", 84_987_740_160), name_card("NVIDIA Rare", 10 << 30)
    ('NVIDIA A100-SXM4-80GB', '10240MiB')
    """
    try:
        known = find_gpu(name).memory_bytes
    except ConfigError:
        known = 0
    return name if abs(known - memory_bytes) <= SAME_CARD_SHARE * memory_bytes else whole_mib(memory_bytes)


def as_yaml(value: Any) -> str:
    """The value on one line, in the form for `--set`."""
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump([plain], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]
