"""From a recipe to a model: real objects of transformers, bitsandbytes and peft on the meta device, in axolotl's order.

build           calls all the others, in axolotl's order; `built`: the result
skeleton/       the empty model: its configuration, class and attention
quantisation/   packed base weights; `experts/`: other layouts of experts
vocabulary, untrained_tokens    rows for added tokens
dtypes, freezing, adapters/     casts; trained and frozen parameters; LoRA and its variants
checkpointing, selective_checkpointing, device_map    settings of the model for the run
reference, reward_models        second models
repeated_layers, layer_numbers, layer_folding    equal layers, and the model with fewer of them
walk, warn      the list of all tensors; warnings about the built model
"""

from axmem_trace.models.build import build_model
from axmem_trace.models.built import BuiltModel, StateTensor

__all__ = ["BuiltModel", "StateTensor", "build_model"]
