"""The block that transformers allocates and frees before it reads the weights. The weights then use PyTorch's cached
memory."""

from __future__ import annotations

from axmem_trace.recipe.recipe import Recipe
from axmem_trace.tracing.recorder import Recorder

WARM_UP_RESERVE_BYTES = 1_288_490_188
"""1.2 * 1024^3: `caching_allocator_warmup` leaves at least so many bytes of the card free."""


def warm_up(recorder: Recorder, recipe: Recipe, nbytes: int) -> None:
    """Allocates and frees one block as large as this GPU's part of the model.

    axolotl switches it off if it quantises experts while loading (`monkeypatch/moe_quant.py`). transformers has it from
    4.50 on (5.20.1 `modeling_utils.py` `caching_allocator_warmup`).

    Args:
        nbytes: the bytes of the parameters (or of this rank's shards) and of the buffers.
    """
    if recipe.quantisation.quantise_moe_experts or recipe.older.loading == "before_4_50":
        return
    nbytes = recipe.gpu.at_most(nbytes, WARM_UP_RESERVE_BYTES)
    recorder.workspace(nbytes // 2 * 2, "transformers.caching_allocator_warmup")
