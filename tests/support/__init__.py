"""Helpers that tests share: tiny models, probes of single kernels, the CPU oracle, and runs made by hand."""
