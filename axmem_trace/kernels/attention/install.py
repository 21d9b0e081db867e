"""Installs every attention kernel of axolotl, so that on meta it has the same memory as on the context's card."""

from __future__ import annotations

from axmem_trace.kernels.attention.flex import install_flex
from axmem_trace.kernels.attention.transformers_flash import install_flash
from axmem_trace.kernels.attention.transformers_names import install_names
from axmem_trace.kernels.site import Site


def install_attention(site: Site) -> None:
    """While the site is open, transformers behaves as if the kernels' packages were installed, and knows axolotl's own
    names."""
    for install in (install_flash, install_flex, install_names):
        install(site)
