"""Recipe to model: the real transformers, bitsandbytes and peft objects on the meta device, loaded as axolotl loads."""

from axmem_trace.models.build import build_model
from axmem_trace.models.built import BuiltModel, StateTensor

__all__ = ["BuiltModel", "StateTensor", "build_model"]
