"""Many GPUs: what one rank of a distributed run holds. The libraries' own wrappers run on meta, in one process.

process_group   PyTorch's `fake` process group, and the device module that FSDP asks for streams
streams         streams and events that keep no time, and say which one is in use
"""
