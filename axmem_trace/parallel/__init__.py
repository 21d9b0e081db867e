"""Many GPUs: the memory of one rank of a distributed run. The libraries' own wrappers run on meta, in one process.

process_group   PyTorch's `fake` process group, and the device module from which FSDP gets its streams
streams         streams and events without time, which report the stream in use
"""
