"""Many GPUs: the memory of one rank of a distributed run. The libraries' own wrappers run on meta, in one process.

install       `open_ranks`: one rank, from the process group to the wrapped model
ranks         which ranks hold parts of other sizes, and which of them are recorded
rank_model    one rank's part of the model; `rank_facts`: what it holds between steps
ddp/, fsdp/, zero/, tensor   the engines: DDP, FSDP1 and FSDP2, DeepSpeed's ZeRO, tensor parallelism
fake_group/   the process group of all of them, and its streams
host, saving  host memory, and what saving the whole model gathers
reference     a second model among the ranks
"""
