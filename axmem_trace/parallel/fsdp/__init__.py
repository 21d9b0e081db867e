"""Fully sharded data parallelism, with PyTorch's own classes.

fsdp1, fsdp2       the two engines: `FullyShardedDataParallel` and `fully_shard`
units              which modules are gathered and freed together
separate_adapters  adapters that become separate units
other_shards       the parameters that the optimizer has on another rank of FSDP1
offload, staged    FSDP2's shards in host memory, and packed weights that rank 0 sends from its host memory
"""
