"""Liger's kernels: what its autograd functions keep and allocate."""
