"""Quantised base weights: the choice of the quantizer, and the layouts of packed weights."""

from axmem_trace.models.experts.packed_experts import quantise_fused_experts
from axmem_trace.models.quantisation.bnb import iterate_bnb_states
from axmem_trace.models.quantisation.choose import choose_quantizer
from axmem_trace.models.quantisation.quantizers import NoQuantizer, Quantizer

__all__ = ["NoQuantizer", "Quantizer", "choose_quantizer", "iterate_bnb_states", "quantise_fused_experts"]
