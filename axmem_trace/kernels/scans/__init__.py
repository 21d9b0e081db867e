"""State-space and linear-attention kernels: mamba-ssm, causal-conv1d and flash-linear-attention on meta."""

from axmem_trace.kernels.scans.install import install_scans

__all__ = ["install_scans"]
