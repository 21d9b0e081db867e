"""Data parallelism by PyTorch's `DistributedDataParallel`.

wrap     the class and its reducer on meta
folded   the same around a model whose repeated layers are traced once
"""
