"""The door of this package: everything that is not a rule of the registry, opened around the trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from axmem_trace.kernels.attention import sdpa, sdpa_scratch  # noqa: F401  (they register their rules)
from axmem_trace.kernels.attention.flex import flex_without_compiler
from axmem_trace.kernels.attention.transformers_flash import flash_without_package
from axmem_trace.kernels.attention.transformers_names import registered_names
from axmem_trace.tracing.context import KernelContext


@contextmanager
def install_attention(context: KernelContext) -> Iterator[None]:
    """While open, every attention kernel that axolotl can name runs on meta as it would on the card of `context`.

    All that it changes in transformers is put back when it closes.
    """
    with ExitStack() as stack:
        for opened in (flash_without_package, flex_without_compiler, registered_names):
            stack.enter_context(opened(context))
        yield
