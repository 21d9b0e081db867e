"""`selective_checkpointing: {offload: true}`: outputs that are saved, and not recomputed, are in pinned host memory.

Source: axolotl 0.19 `monkeypatch/selective_checkpointing_offload.py` (`SacOffloadEngine`, `_OffloadCachingMode`,
`_OffloadCachedMode`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import SAC_IGNORED_OPS, CheckpointPolicy

from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.recorder import Recorder

MIN_BYTES = 1 << 20
"""`min_offload_bytes`: smaller outputs stay on the card."""
MAX_STASH = 2
"""`max_fwd_stash_size`: the number of latest outputs that stay on the card while they are copied to the host."""
MAX_POOLED = 128
"""`max_cpu_buffer_pool_size`: the number of host buffers that are kept for reuse."""

_Key = tuple[torch.Size, tuple[int, ...], torch.dtype]


@dataclass(eq=False, slots=True)
class _Away:
    """An output in host memory, and its copy on the card after it has been fetched."""

    region: int
    host: torch.Tensor
    back: torch.Tensor | None = None


class SelectiveOffload:
    """The engine. A region is one call of a checkpointed layer; their numbers continue from step to step."""

    def __init__(self, recorder: Recorder, policy: Callable[..., Any]) -> None:
        self.recorder, self.policy = recorder, policy
        self._regions = 0
        self._packed = 0
        self._stash: dict[int, torch.Tensor] = {}
        self._away: dict[int, list[_Away]] = defaultdict(list)
        self._pool: dict[_Key, list[torch.Tensor]] = defaultdict(list)

    def make_contexts(self) -> tuple[Any, Any]:
        """`context_fn` of `torch.utils.checkpoint`: the modes of forward and of recomputation."""
        saved: dict[Any, list[Any]] = defaultdict(list)
        modes = _Forward(self, self._regions, saved), _Recomputation(self, self._regions, saved)
        self._regions += 1
        return modes

    def pack(self, leaf: Any, region: int) -> Any:
        """An output's placeholder; the output itself if it is small."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        leaf = leaf.detach()
        if isinstance(leaf, nn.Parameter) or leaf.element_size() * leaf.nelement() < MIN_BYTES:
            return leaf
        self._packed += 1
        for number in [number for number in self._stash if number <= self._packed - MAX_STASH]:
            del self._stash[number]
        pooled = self._pool[_key(leaf)]
        away = _Away(region, pooled.pop() if pooled else self.recorder.copy_to_host(leaf))
        self._stash[self._packed] = leaf
        self._away[region].append(away)
        return away

    def fetch(self, region: int) -> None:
        """Copies all outputs of a region back to the card."""
        for away in self._away.get(region, ()):
            if away.back is None:
                away.back = away.host.clone()

    def unpack(self, leaf: Any) -> Any:
        """Returns the output; its host buffer goes back to the pool."""
        if not isinstance(leaf, _Away):
            return leaf
        if leaf.back is None:
            leaf.back = leaf.host.clone()
        back, leaf.back = leaf.back, None
        if sum(map(len, self._pool.values())) < MAX_POOLED:
            self._pool[_key(leaf.host)].append(leaf.host)
        self._away[leaf.region].remove(leaf)
        return back


def _key(tensor: torch.Tensor) -> _Key:
    return tensor.size(), tensor.stride(), tensor.dtype


class _Mode(TorchDispatchMode):
    def __init__(self, offload: SelectiveOffload, region: int, saved: dict[Any, list[Any]]) -> None:
        super().__init__()
        self.offload, self.region, self.saved = offload, region, saved

    def _saves(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return bool(self.offload.policy(None, func, *args, **kwargs) == CheckpointPolicy.MUST_SAVE)


class _Forward(_Mode):
    @called_by_libraries
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = call_original(func, args, kwargs or {})
        if func not in SAC_IGNORED_OPS and self._saves(func, args, kwargs or {}):
            self.saved[func].append(tree_map(lambda leaf: self.offload.pack(leaf, self.region), out))
        return out


class _Recomputation(_Mode):
    def __enter__(self) -> Any:
        self.offload.fetch(self.region)
        self.offload.fetch(self.region - 1)  # one layer in advance
        return super().__enter__()

    @called_by_libraries
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in SAC_IGNORED_OPS and self._saves(func, args, kwargs or {}):
            return tree_map(self.offload.unpack, self.saved[func].pop(0))
        return call_original(func, args, kwargs or {})
