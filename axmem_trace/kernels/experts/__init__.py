"""Mixture of experts: where tokens are routed to, and the kernels that compute the experts."""

from axmem_trace.kernels.experts.install import install_experts

__all__ = ["install_experts"]
