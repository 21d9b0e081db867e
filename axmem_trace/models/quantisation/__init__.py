"""Quantised base weights: which quantizer applies, and how packed weights are stored."""

from axmem_trace.models.experts.packed_experts import quantise_fused_experts
from axmem_trace.models.quantisation.bnb import iterate_bnb_states
from axmem_trace.models.quantisation.choose import choose_quantizer
from axmem_trace.models.quantisation.quantizers import NoQuantizer, Quantizer

__all__ = ["NoQuantizer", "Quantizer", "choose_quantizer", "iterate_bnb_states", "quantise_fused_experts"]
