"""Corrects errors of one release of transformers that the releases pinned by axolotl do not have."""

from __future__ import annotations

import dataclasses
import sys

from axmem_trace.kernels.site import Site
from axmem_trace.notes import Note


def repair_llama4(site: Site) -> None:
    """Add the missing `image_outputs` to the output of Llama 4's language model.

    transformers 5.24 `modeling_llama4.py`: `Llama4ForConditionalGeneration.forward` reads `image_outputs` from the output
    of its language model. That output, a `MoeCausalLMOutputWithPast`, does not have it, so every step fails after the loss.
    """
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
        text = (
            "the installed transformers fails in Llama 4's forward because `image_outputs` is missing; the figures are "
        )
        text += "those of the releases that axolotl pins, which do not have this error"
        site.note(Note(kind="warning", key="base_model", text=text))
