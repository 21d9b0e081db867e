"""DeepSpeed's ZeRO on meta. Its order of operations is written again here, because DeepSpeed compiles code when it is
imported.

install     one rank's engine, from the recipe and the model
loading     what DeepSpeed does to a model before the optimizer is made: it casts or shards the parameters
stepping    code that all stages share: the optimizer's step on fp32 copies, and the last micro-batch
norms       the norm of the gradients, and the search for infinite ones

ZeRO-1 and 2
    layout      which part of which parameter a rank owns; no torch
    group       a group of the optimizer: the parameters that a rank owns, and their fp32 copy
    gradients   the buckets in which gradients are reduced, and the part that a rank keeps
    reduction   how a bucket is reduced across the ranks
    stage12     the engine

ZeRO-3
    parts        the part of each parameter that is on this rank, and gathering it
    coordinator, module_hooks, gathering, linear, leaves    when parameters are gathered and released
    sub_groups   the parts in one buffer, divided into the groups that one optimizer step updates
    scattered    gradients: buckets, and the part of this rank
    stage3       the engine
    frozen       a second model that is not trained, sharded like the policy
"""
