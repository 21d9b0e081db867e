"""The true values of small tensors on meta, if they follow from the inputs.

Libraries read values of tensors: is the padding mask all ones, where do packed samples begin, which tokens are images?
Meta tensors have no values. But this package makes the inputs, so it keeps a real copy of their storages on the CPU.
Each operator whose tensor arguments are all known runs on these copies too. Model activations are never known.

Two cases need more: a dispatch mode does not see `torch.tensor` with a meta device, and the size of `tensor[mask]`
depends on the mask.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_any_only, tree_leaves, tree_map_only

from axmem_trace.tracing.originals import call_original, called_by_libraries
from axmem_trace.tracing.patching import replaced

aten = torch.ops.aten

MAX_ELEMENTS = 1 << 20
"""Largest tensor whose value is kept: a [512, 2048] mask, a million tokens, the gates of 8192 tokens to 128 experts."""
_NEVER_KNOWN = frozenset(
    """
    empty empty_like empty_strided new_empty new_empty_strided rand randn rand_like randn_like randint randperm
    bernoulli multinomial normal native_dropout uniform random bernoulli_ normal_ uniform_
    """.split()
)
DATA_DEPENDENT = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.nonzero.default,
        aten.masked_select.default,
        aten._unique2.default,
        aten.unique_dim.default,
        aten.unique_consecutive.default,
        aten.bincount.default,
        aten.repeat_interleave.Tensor,
        aten.equal.default,
        aten.is_nonzero.default,
        aten.histc.default,
    }
)
"""Operators whose result's shape depends on values."""
INDEXES = frozenset({aten.index.Tensor})
"""Operators whose second argument is a list of indices."""
_BYTES_OF_INDEX = 8


class KnownValues:
    """Real copies of storages, by the storage's identity."""

    def __init__(self) -> None:
        self._copies: dict[int, torch.Tensor] = {}
        self._keepers: dict[int, weakref.ref[Any]] = {}
        self.num_true: dict[tuple[int, ...], int] = {}
        """How many elements of a mask are true, by the mask's shape. This is for masks that depend on pixels: their
        values are not followed."""

    def learn(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """`tensor` (on meta, dense from its storage's start) holds `value`."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        copy = torch.empty(storage.nbytes(), dtype=torch.uint8)
        self._copies[key] = copy
        self._keepers[key] = weakref.ref(storage, lambda _: self._forget(key))
        _view(copy, tensor).copy_(value)

    def value_of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The tensor's value as a real CPU tensor, which shares memory with the known copy of its storage; None:
        unknown. A tensor that is not on meta is its own value.
        """
        if not tensor.is_meta:
            return tensor
        copy = self._copies.get(tensor.untyped_storage()._cdata)
        return None if copy is None else _view(copy, tensor)

    def knows(self, tensor: torch.Tensor) -> bool:
        """True if the value of this tensor on meta is known."""
        return tensor.untyped_storage()._cdata in self._copies

    def run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result on real values, or None if an argument is unknown or too large to compute.

        In-place operators change the copies, as they change the tensors.
        """
        if op.overloadpacket.__name__ in _NEVER_KNOWN or not self._affordable(args, kwargs):
            return None
        values = tree_map_only(torch.Tensor, self.value_of, (args, kwargs))
        real_args, real_kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), values)
        if op is aten.histc.default and not real_args[0].dtype.is_floating_point:  # the CPU has no integer one
            return op(real_args[0].double(), *real_args[1:], **real_kwargs).to(real_args[0].dtype)
        return call_original(op, real_args, real_kwargs)

    def may_follow(self, args: tuple[Any, ...]) -> bool:
        """A cheap first check: True if the first tensor among the arguments is known, or if there is no tensor."""
        for argument in args:
            if isinstance(argument, torch.Tensor):
                return not argument.is_meta or argument.untyped_storage()._cdata in self._copies
            if isinstance(argument, list | tuple) and argument and isinstance(argument[0], torch.Tensor):
                return self.may_follow(tuple(argument))
        return True

    def settle(self, result: Any) -> None:
        """If the result is a mask that was not followed, but all of its elements are known to be true, its value is
        known from now on."""
        if not isinstance(result, torch.Tensor) or result.dtype is not torch.bool or not result.is_meta:
            return
        if self.num_true.get(tuple(result.shape)) == result.numel() and self.value_of(result) is None:
            self.learn(result, torch.ones(result.shape, dtype=torch.bool))

    def forget(self, tensor: torch.Tensor) -> None:
        """Forgets the value of the tensor's storage."""
        self._forget(tensor.untyped_storage()._cdata)

    def _forget(self, key: int) -> None:
        self._copies.pop(key, None)
        self._keepers.pop(key, None)

    def _affordable(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        def unknown(tensor: torch.Tensor) -> bool:
            return tensor.numel() > MAX_ELEMENTS or (
                tensor.is_meta and tensor.untyped_storage()._cdata not in self._copies
            )

        return not tree_any_only(torch.Tensor, unknown, (args, kwargs))


def worth_knowing(result: Any) -> bool:
    """True if the values of an operator's result can be followed: the result is small, and of a supported kind."""
    tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    return bool(tensors) and all(tensor.numel() <= MAX_ELEMENTS for tensor in tensors)


def _view(copy: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    typed = copy[: copy.numel() // tensor.element_size() * tensor.element_size()].view(tensor.dtype)
    return typed.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


@contextmanager
def literals_known(values: KnownValues) -> Iterator[None]:
    """While open, the values of small tensors that `torch.tensor` makes on meta are known.

    Models put sizes into tensors in this way, to calculate with them on the GPU (the merge size of a patch grid).
    torch's `internal_new_from_data` (csrc/utils/tensor_new.cpp) makes meta tensors without the copy that a GPU run
    makes.
    """
    original = torch.tensor

    @called_by_libraries
    def tensor(data: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        made = call_original(original, (data, *args), kwargs)
        if made.is_meta and worth_knowing(made):
            real = tree_map_only(torch.Tensor, values.value_of, data)
            if not any(each is None for each in tree_leaves(real)):
                with _disable_current_modes():
                    values.learn(made, original(real, device="cpu", dtype=made.dtype))
        return made

    with replaced(torch, "tensor", tensor):
        yield


def picked_indices(values: KnownValues, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], int] | None:
    """The arguments, in which boolean masks with known values are replaced by integer indices; and the bytes of these
    indices.

    `tensor[mask]` is `tensor[mask.nonzero().unbind(1)]` (torch aten/src/ATen/native/IndexingUtils.h, `expandTensors`):
    one int64 [picked, dimensions] tensor, alive while the operator runs. Only the number of picked elements is needed;
    it is computed also for a mask that is a view, expanded over the hidden size.
    """
    source, indices = args[0], args[1]
    if not source.is_meta or not any(_is_mask(index) for index in indices):
        return None
    numbered: list[torch.Tensor | None] = []
    nbytes = 0
    for index in indices:
        if not _is_mask(index):
            numbered.append(index)
            continue
        value = values.value_of(index)
        picked = values.num_true.get(tuple(index.shape)) if value is None else int(torch.count_nonzero(value))
        if picked is None:
            return None
        nbytes += picked * index.ndim * _BYTES_OF_INDEX
        numbered += [torch.empty(picked, dtype=torch.int64, device="meta") for _ in range(index.ndim)]
    return (source, numbered, *args[2:]), nbytes


def _is_mask(index: Any) -> bool:
    return isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
