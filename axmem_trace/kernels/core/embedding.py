"""The gradient of an embedding on a GPU: tokens are sorted, and their rows are summed in fp32, ten at a time."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten
RULES = Rules()

_UNSORTED = 3072
"""Up to this number of tokens, one kernel adds the rows without sorting."""
_ROWS_PER_THREAD = 10
"""`NROWS_PER_THREAD` (EmbeddingBackwardKernel.cu)."""


@RULES.workspace(aten.embedding_dense_backward.default)
def embedding_backward(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> list[int]:
    """Temporary memory while the gradient is computed; see `embedding_workspace`."""
    return embedding_workspace(
        args[1].numel(), args[1].element_size(), result.shape[0], result.shape[1], result.element_size(), bool(args[4])
    )


def embedding_workspace(
    num_tokens: int, index_bytes: int, vocabulary: int, width: int, itemsize: int, by_frequency: bool = False
) -> list[int]:
    """Bytes of the sorted tokens, their original positions, their segments, and the partial sums of every segment.

    No size is read back from the GPU, so the largest possible number of segments is allocated: one for each token, but at
    most the vocabulary. The number of partial sums is that, plus one for ten tokens.

    Source: torch 2.13, aten/src/ATen/native/cuda/Embedding.cu, `embedding_dense_backward_cuda`;
    EmbeddingBackwardKernel.cu, `embedding_backward_cuda_kernel`. The order of its allocations was read from the compiled
    function in the CUDA 13 wheel: offsets, a count, segment lengths, their offsets, a count, offsets of parts, sums.
    """
    if num_tokens <= _UNSORTED and not by_frequency:
        return []
    segments = min(num_tokens, vocabulary)
    parts = num_tokens // _ROWS_PER_THREAD + segments
    counts = [num_tokens * index_bytes] if by_frequency else []
    return [
        *[num_tokens * index_bytes] * 2,
        *counts,
        num_tokens * index_bytes,
        8,
        segments * index_bytes,
        segments * index_bytes,
        8,
        parts * index_bytes,
        parts * width * max(itemsize, 4),
    ]
