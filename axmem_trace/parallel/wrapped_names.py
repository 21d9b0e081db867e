"""Names of modules and parameters in a wrapped model, without the parts that wrappers add."""

CHECKPOINT_PREFIX, FSDP1_PREFIX = "_checkpoint_wrapped_module", "_fsdp_wrapped_module"
WRAPPERS = (CHECKPOINT_PREFIX, FSDP1_PREFIX)
"""Names that wrappers put into the path of the wrapped module (`checkpoint_wrapper.py` in
torch/distributed/algorithms/_checkpoint; torch/distributed/fsdp/_common_utils.py)."""


def plain_name(name: str) -> str:
    """A dotted name without the parts that wrappers add.

    >>> plain_name("model.layers.0._fsdp_wrapped_module.mlp")
    'model.layers.0.mlp'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def module_of(name: str) -> str:
    """The dotted name of a parameter's module, without the parts that wrappers add.

    >>> module_of("model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj'
    """
    return plain_name(name).rpartition(".")[0]
