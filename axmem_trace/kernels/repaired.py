"""What one release of transformers gets wrong, put right as the releases that axolotl pins have it."""

from __future__ import annotations

import dataclasses
import sys

from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note


def repair_llama4(site: Site) -> None:
    """transformers 5.24 `modeling_llama4.py`, `Llama4ForConditionalGeneration.forward` reads `image_outputs` of what its
    language model returns, a `MoeCausalLMOutputWithPast`, which has none: every step stops after the loss."""
    modeling = sys.modules.get("transformers.models.llama4.modeling_llama4")
    output = getattr(modeling, "MoeCausalLMOutputWithPast", None)
    wanted = getattr(modeling, "Llama4CausalLMOutputWithPast", None)
    if output is None or wanted is None:
        return
    has, wants = ({field.name for field in dataclasses.fields(each)} for each in (output, wanted))
    if "image_outputs" not in wants or "image_outputs" in has or hasattr(output, "image_outputs"):
        return
    site.add_attribute(output, "image_outputs", None)
    if type(site.base).__name__ == "Llama4ForConditionalGeneration":
        text = "the installed transformers stops in Llama 4's forward for want of `image_outputs`; the figures are those of "
        text += "the releases that axolotl pins, which have no such fault"
        site.note(Note(kind="warning", key="base_model", text=text))
