"""Saved tensors that are kept in host memory: TRL's `OffloadActivations`, and axolotl's offload of checkpointed inputs.

Source: trl 1.9 `models/activation_offloading.py`; axolotl 0.19 `core/trainers/mixins/activation_checkpointing.py`,
`monkeypatch/checkpoint_activation_offload.py` (`CheckpointHiddenStatesOffload`) and
`monkeypatch/activation_offload_checkpoint.py` (`_StreamOffloadManager`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from axmem_trace.tracing.recorder import Recorder

MIN_BYTES = 1024
"""`min_offload_size`: smaller tensors stay on the card."""
MAX_STASH = 5
"""`max_fwd_stash_size`: the number of latest tensors that stay on the card while they are copied to the host."""
MAX_INPUT_STASH = 2
"""The same number in axolotl's offload of checkpointed inputs."""


@dataclass(frozen=True, slots=True)
class _Away:
    """Replaces in autograd's graph a tensor that is in host memory."""

    number: int


class ActivationOffload:
    """Moves every saved tensor of at least `MIN_BYTES` to the host in forward, and copies it back in backward.

    The hooks are open during the whole training step, so tensors that a recomputation saves are offloaded too.

    Args:
        streams: whether copies run in parallel to the computation. Then the latest `MAX_STASH` tensors stay alive
            longer, and a tensor that was copied back is alive until the next node of backward has run.
        kept_on_gpu: storages (by `_cdata`) that are not offloaded. TRL excludes the model's weights. axolotl's variant
            for adapters does not, so transposed weights that a product saves are offloaded too.
    """

    def __init__(self, recorder: Recorder, *, streams: bool, kept_on_gpu: frozenset[int] = frozenset()) -> None:
        self.recorder, self.streams, self.kept_on_gpu = recorder, streams, kept_on_gpu
        self._next = 0
        self._host: dict[int, torch.Tensor] = {}
        self._stash: dict[int, torch.Tensor] = {}
        self._stashed_keys: dict[tuple[int, int, torch.dtype], int] = {}
        self._returned: dict[int, torch.Tensor] = {}
        self._finished: set[int] = set()
        self._node: Any = None

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """The context for forward and backward of one micro-batch. TRL first empties the allocator's cache if
        bitsandbytes is imported, and peft imports it."""
        self._clear()
        self.recorder.empty_cache()
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._clear()

    def _clear(self) -> None:
        for storages in (self._host, self._stash, self._stashed_keys, self._returned, self._finished):
            storages.clear()
        self._node = None

    def _pack(self, tensor: torch.Tensor) -> Any:
        if not tensor.is_meta or isinstance(tensor, nn.Parameter | nn.Buffer):
            return tensor
        if self.streams and (not tensor.is_contiguous() or tensor.storage_offset()):
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # axolotl's patch, before any other condition
        self._next += 1
        key = (tensor.untyped_storage()._cdata, int(tensor.storage_offset()), tensor.dtype)
        too_small = tensor.element_size() * tensor.nelement() < MIN_BYTES
        if key in self._stashed_keys or too_small or key[0] in self.kept_on_gpu:
            return tensor
        if self.streams:
            self._drop_stashed(self._next - MAX_STASH)
        elif not tensor.is_contiguous() or tensor.storage_offset():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        self._host[self._next] = self.recorder.copy_to_host(tensor)
        if self.streams:
            self._stash[self._next] = tensor
            self._stashed_keys[key] = self._next
        return _Away(self._next)

    def _drop_stashed(self, up_to: int) -> None:
        for number in [number for number in self._stash if number <= up_to]:
            del self._stash[number]
        self._stashed_keys = {key: number for key, number in self._stashed_keys.items() if number in self._stash}

    def _unpack(self, saved: Any) -> torch.Tensor:
        if not isinstance(saved, _Away):
            tensor: torch.Tensor = saved
            return tensor
        host = self._host.pop(saved.number)
        if not self.streams:
            return host.clone()
        node = torch._C._current_autograd_node()
        earlier = list(self._returned) if node is not self._node else []
        self._node = node
        if saved.number in self._stash:
            tensor = self._stash[saved.number]
        else:
            tensor = self._returned[saved.number] = host.clone()
        self._register_release(node, saved.number, tensor, earlier)
        return tensor

    def _register_release(self, node: Any, number: int, tensor: torch.Tensor, earlier: list[int]) -> None:
        """After the node has run, drops the rest of forward's stash, and the tensors that were copied back for earlier
        nodes.

        If something else refers to a tensor, it stays alive although it is dropped here (TRL's `record_stream`).
        """
        storage = tensor.untyped_storage()._cdata
        uses = torch._C._storage_Use_Count(storage)
        del tensor

        def release(outputs: Any, inputs: Any) -> None:
            if number in self._returned and torch._C._storage_Use_Count(storage) > uses:
                del self._returned[number]
            self._drop_stashed(self._next)
            for each in earlier:
                self._returned.pop(each, None)

        node.register_hook(release)


class CheckpointInputOffload:
    """`activation_offloading: hidden_states`: only the input of each checkpointed layer is copied to the host.

    Args:
        prefetch: True for reentrant checkpointing: axolotl's manager copies the next layer's input back in advance.
    """

    def __init__(self, recorder: Recorder, *, prefetch: bool) -> None:
        self.recorder, self.prefetch = recorder, prefetch
        self._marked: dict[int, int] = {}
        self._next = 0
        self._host: dict[int, torch.Tensor] = {}
        self._stash: dict[int, torch.Tensor] = {}
        self._ahead: dict[int, torch.Tensor] = {}

    @contextmanager
    def training_step(self) -> Iterator[None]:
        """Forward and backward of one micro-batch."""
        self._clear()
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._clear()

    def mark(self, hidden_states: Any) -> None:
        """Marks this tensor: it is offloaded when it is saved the next time."""
        if isinstance(hidden_states, torch.Tensor):
            self._marked[id(hidden_states)] = self._marked.get(id(hidden_states), 0) + 1

    def _clear(self) -> None:
        for storages in (self._marked, self._host, self._stash, self._ahead):
            storages.clear()

    def _pack(self, tensor: torch.Tensor) -> Any:
        marks = self._marked.pop(id(tensor), 0)
        if marks > 1:
            self._marked[id(tensor)] = marks - 1
        if not marks or not tensor.is_meta or tensor.element_size() * tensor.nelement() < MIN_BYTES:
            return tensor
        self._next += 1
        self._host[self._next] = self.recorder.copy_to_host(tensor)
        self._stash[self._next] = tensor
        for number in [number for number in self._stash if number <= self._next - MAX_INPUT_STASH]:
            del self._stash[number]
        return _Away(self._next)

    def _unpack(self, saved: Any) -> torch.Tensor:
        if not isinstance(saved, _Away):
            tensor: torch.Tensor = saved
            return tensor
        host = self._host.pop(saved.number)
        if self.prefetch:
            self._stash.clear()  # every copy has finished
            found = self._ahead.pop(saved.number, None)
            if saved.number - 1 in self._host:
                self._ahead[saved.number - 1] = self._host[saved.number - 1].clone()
        else:
            found = self._stash.pop(saved.number, None)
        return host.clone() if found is None else found
