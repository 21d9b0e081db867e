"""`torch.tensor` with a meta device: the only factory that dispatch modes do not see, so its value would be lost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from axmem_trace.tracing.known_values import KnownValues, worth_knowing
from axmem_trace.tracing.originals import call_original, stands_in
from axmem_trace.tracing.patching import replaced


@contextmanager
def literals_known(values: KnownValues) -> Iterator[None]:
    """While open, the values of small tensors that `torch.tensor` makes on meta are known.

    Models make sizes in this way to calculate with them on the GPU (the merge size of a patch grid). torch
    `csrc/utils/tensor_new.cpp` `internal_new_from_data` makes meta tensors without a copy, which a GPU would make.
    """
    original = torch.tensor

    @stands_in
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
