"""Kernels for which meta differs from a GPU: one rule for each, and what is installed around a trace."""
