"""Fully sharded data parallelism, by PyTorch's own classes.

fsdp1, fsdp2       the two engines: `FullyShardedDataParallel` and `fully_shard`
units              which modules are gathered and freed together
separate_adapters  adapters that become units of their own
offload, staged    FSDP2's shards in host memory, and packed weights that arrive from the host of rank 0
"""
