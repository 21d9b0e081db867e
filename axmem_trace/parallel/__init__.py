"""Many GPUs: the memory of one rank of a distributed run. The libraries' own wrappers run on meta, in one process.

install         `open_ranks`: one rank, from the process group to the wrapped model
ranks           which ranks hold parts of other sizes, and which of them are recorded
process_group   PyTorch's `fake` process group, and the device module from which FSDP gets its streams
streams         streams and events without time, which report the stream in use
in_place        storages that change their size in place
ddp, fsdp1, fsdp2    the engines; `ddp_folded`: DDP where repeated layers are traced once
units, separate_adapters    what FSDP gathers together
offload, host, staged       shards and weights in host memory
reference       a second model among the ranks
rank_model, rank_facts      one rank's part of the model, and the facts about it
zero/           DeepSpeed's ZeRO
"""
