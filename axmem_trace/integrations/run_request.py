"""The configuration that really runs, as arguments for this package's command line.

axolotl calls a plugin's `register` with the file's content and the command line's overrides merged into it, before it
validates anything (axolotl 0.21.0 `cli/config.py` `load_cfg`): that is what a user would have to write to get this run.
The estimate reads the file again, so that its notes have line numbers, and gets what differs as `--set`.
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
"""axolotl writes the file's path there."""
SAME_CARD_SHARE = 0.02
"""A card of the table is used if its memory is within this share of what the driver reports."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One run: the file, what the command line changed in it, and the machine.

    Attributes:
        config: the YAML file.
        changes: top-level keys whose values differ from the file.
        card: a name or a size for `--gpu`; empty: no CUDA card here.
        num_gpus: of each machine.
    """

    config: Path
    changes: Mapping[str, Any] = field(default_factory=dict)
    card: str = ""
    num_gpus: int = 1
    num_nodes: int = 1
    trust_remote_code: bool = False

    def arguments(self) -> Iterator[str]:
        """For `python -m axmem_trace`."""
        yield str(self.config)
        for key, value in self.changes.items():
            yield from ("--set", f"{key}={as_yaml(value)}")
        if self.card:
            yield from ("--gpu", self.card)
        yield from ("--gpus", str(self.num_gpus), "--nodes", str(self.num_nodes))
        if self.trust_remote_code:
            yield "--trust-remote-code"


def find_changes(config: Mapping[str, Any], not_keys: Collection[str]) -> dict[str, Any]:
    """What differs between a configuration and its own file; an absent key is null.

    Args:
        config: as `register` got it.
        not_keys: options of axolotl's command line that are no keys; left out unless the file has them.

    Raises:
        OSError: the file can't be read.
        yaml.YAMLError: it is no YAML.
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
    """What `--gpu` takes for a card: its name if the table has it with this memory, else its memory.

    >>> name_card("NVIDIA A100-SXM4-80GB", 84_987_740_160), name_card("NVIDIA Rare", 10 << 30)
    ('NVIDIA A100-SXM4-80GB', '10240MiB')
    """
    try:
        known = find_gpu(name).memory_bytes
    except ConfigError:
        known = 0
    return name if abs(known - memory_bytes) <= SAME_CARD_SHARE * memory_bytes else whole_mib(memory_bytes)


def as_yaml(value: Any) -> str:
    """On one line, as `--set` reads it."""
    plain = json.loads(json.dumps(value, default=str))
    return yaml.safe_dump([plain], default_flow_style=True, width=10**9, allow_unicode=True).strip()[1:-1]
