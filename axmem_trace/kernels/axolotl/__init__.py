"""Kernels and patches that are axolotl's own."""
