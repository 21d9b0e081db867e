"""Many GPUs: the memory of one rank of a distributed run. The libraries' own wrappers run on meta, in one process.

install       `open_ranks`: one rank, from the process group to the wrapped model
ranks         groups of ranks whose shards have equal sizes, and which groups are recorded
rank_model    how the step differs with one rank's part of the model; `rank_facts`: its memory between steps
ddp/, fsdp/, zero/, tensor   the engines: DDP, FSDP1 and FSDP2, DeepSpeed's ZeRO, tensor parallelism
fake_group/   the process group of all of them, and its streams
context       rows that several ranks share
host, saving  host memory, and the gathers when the whole model is saved
reference     a second model that is wrapped or sharded too
"""
