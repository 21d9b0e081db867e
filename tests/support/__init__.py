"""Helpers that tests share: tiny models, probes of single kernels, the CPU oracle, runs made by hand."""
