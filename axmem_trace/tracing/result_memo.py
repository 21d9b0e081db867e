"""Results of operators on meta, stored by the shapes of the arguments.

Meta runs many operators as Python decompositions (0.2 ms for a product in torch 2.13), and a model calls the same few
operators many times. The result depends only on shapes, strides, dtypes and plain arguments. When a result is stored
already, new storages of the same layout are made; a recorder sees no difference.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from axmem_trace.tracing.originals import call_original

_UNHASHABLE = object()
_SHAPES = frozenset(
    """
    resize_ resize_as_ set_ t_ transpose_ squeeze_ unsqueeze_ swapaxes_ swapdims_ as_strided_ detach_ _resize_output_
    rename_
    """.split()
)
"""In-place operators that change more than the values."""
_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
IN_PLACE = "in place"


class ResultMemo:
    """Layouts of results, by operator and layouts of arguments. Only for operators that `can_remember` accepts."""

    def __init__(self) -> None:
        self._layouts: dict[Any, Any] = {}

    def run(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator's result on meta: from the memo, or from its meta kernel."""
        key = self.key(op, args, kwargs)
        if key is None:
            return call_original(op, args, kwargs)
        result = self.recall(key, args)
        if result is None:
            result = call_original(op, args, kwargs)
            self.remember(key, args, result)
        return result

    def key(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Everything that the result's layout depends on; None if an argument cannot be compared or is not a plain meta
        tensor."""
        parts: list[Any] = [op]
        for argument in args:
            part = _describe(argument)
            if part is _UNHASHABLE:
                return None
            parts.append(part)
        for name, argument in kwargs.items():
            part = _describe(argument)
            if part is _UNHASHABLE:
                return None
            parts.append((name, part))
        return tuple(parts)

    def recall(self, key: Any, args: tuple[Any, ...]) -> Any:
        """A result like the one that is stored under `key`; None if there is none."""
        found = self._layouts.get(key)
        if found is None:
            return None
        if found is IN_PLACE:
            return args[0]
        if type(found) is list:
            return tuple(_make(layout) for layout in found)
        return _make(found)

    def remember(self, key: Any, args: tuple[Any, ...], result: Any) -> None:
        """Stores the layout of a result, if it is one or several new tensors, and each fills its own storage.

        Some operators share storage with an argument although their schema does not say so (`_unsafe_view`).
        """
        if args and result is args[0]:
            self._layouts[key] = IN_PLACE
            return
        several = isinstance(result, tuple)
        tensors = result if several else (result,)
        if not all(_is_plain(each) and _fills_storage(each) for each in tensors):
            return
        given = {each.untyped_storage()._cdata for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        made = {each.untyped_storage()._cdata for each in tensors}
        if len(made) == len(tensors) and made.isdisjoint(given):
            layouts = [(each.shape, each.stride(), each.dtype) for each in tensors]
            self._layouts[key] = layouts if several else layouts[0]


@cache
def can_remember(op: Any) -> bool:
    """Whether an operator's result depends only on layouts: it is functional and returns new tensors, or it works in
    place."""
    schema, name = op._schema, op.overloadpacket.__name__
    if name in _SHAPES or torch.Tag.data_dependent_output in op.tags or torch.Tag.dynamic_output_shape in op.tags:
        return False
    if any(not _is_tensor_type(each.type) for each in schema.returns) or not schema.returns:
        return False
    if schema.is_mutable:
        first = schema.arguments[0]
        others = any(each.alias_info is not None for each in schema.arguments[1:])
        return name.endswith("_") and first.is_write and len(schema.returns) == 1 and not others
    return all(each.alias_info is None for each in (*schema.returns, *schema.arguments))


def _is_tensor_type(kind: Any) -> bool:
    return str(kind) == "Tensor"


def _describe(argument: Any) -> Any:
    kind = type(argument)
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        if not _is_plain(argument):
            return _UNHASHABLE
        return argument.shape, argument.stride(), argument.dtype
    if kind in (int, float, bool):
        return kind, argument  # 1, 1.0 and True are equal, but have different type promotion
    if argument is None or kind in (str, torch.dtype, torch.device, torch.layout, torch.memory_format):
        return argument
    if kind is list or kind is tuple:
        parts = tuple(_describe(each) for each in argument)
        return _UNHASHABLE if _UNHASHABLE in parts else parts
    return _UNHASHABLE


def _is_plain(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.layout is torch.strided


def _fills_storage(tensor: torch.Tensor) -> bool:
    """True if the tensor is like a result of `empty_strided`: it begins at the storage's start and fills the
    storage."""
    if tensor.storage_offset() or tensor.is_conj() or tensor.is_neg():
        return False
    extent = (
        0
        if not tensor.numel()
        else 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    )
    return tensor.untyped_storage().nbytes() == extent * tensor.element_size()


def _make(layout: _Layout) -> torch.Tensor:
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")
