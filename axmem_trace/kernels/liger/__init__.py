"""Liger's kernels: autograd functions that keep and allocate the same tensors."""
