"""Make every attention kernel that axolotl can name run on meta as on the context's card."""

from __future__ import annotations

from axmem_trace.kernels.attention.flex import install_flex
from axmem_trace.kernels.attention.transformers_flash import install_flash
from axmem_trace.kernels.attention.transformers_names import install_names
from axmem_trace.kernels.site import Site


def install_attention(site: Site) -> None:
    """While open, transformers finds the kernels' packages installed and axolotl's own names registered."""
    for install in (install_flash, install_flex, install_names):
        install(site)
