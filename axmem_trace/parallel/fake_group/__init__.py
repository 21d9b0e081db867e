"""Many ranks in one process on meta: the process group, and what the recorder must know about it.

process_group   PyTorch's `fake` process group, and the device module from which FSDP gets its streams
streams         streams and events without time, which report the stream in use
in_place        storages that change their size in place
"""
