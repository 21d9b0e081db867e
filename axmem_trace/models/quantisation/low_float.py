"""FP8 and MXFP4 base models whose weights stay packed, with an adapter and axolotl's kernels plugin.

Source: axolotl 0.19 `integrations/kernels/plugin.py` (ScatterMoE and SonicMoE call `relax_quantized_training_guard`),
`quant_training_guard.py` (models with adapters pass transformers' check); transformers 5.16.1
`quantizers/quantizer_finegrained_fp8.py`, `quantizers/quantizer_mxfp4.py`, `integrations/mxfp4.py`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from axmem_trace.errors import ConfigError
from axmem_trace.models.quantisation.quantizers import Quantizer

WEIGHTS_PER_BYTE = 2
WEIGHTS_PER_SCALE = 32
"""MXFP4 has two e2m1 values in a byte, and one e8m0 scale (a byte) for 32 values: 17 bytes for 32 weights."""


class Fp8Quantizer(Quantizer):
    """transformers' own quantizer: `FP8Linear` with one byte a weight, and one fp32 scale for each block."""

    def __init__(self, own: dict[str, Any]) -> None:
        from transformers.quantizers.auto import AutoHfQuantizer, AutoQuantizationConfig

        self.hf_quantizer = AutoHfQuantizer.from_config(AutoQuantizationConfig.from_dict(own), pre_quantized=True)

    def replace_modules(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        model.hf_quantizer = self.hf_quantizer
        self.hf_quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": 0})
        _refuse_experts(model)

    def finish(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        self.hf_quantizer.postprocess_model(model)


def _refuse_experts(model: Any) -> None:
    """Refuses a model with FP8 experts. transformers looks up their kernels in a separate interface
    (`ALL_FP8_EXPERTS_FUNCTIONS`). axolotl registers its kernels only in the interface of plain experts
    (`libs/scattermoe_lora/experts.py` `register_scattermoe_experts`)."""
    if any(type(module).__name__ == "FP8Experts" for module in model.modules()):
        raise ConfigError(
            problem=f"the experts of {type(model).__name__} are FP8. axolotl registers neither scattermoe nor sonicmoe for "
            "them: the run fails in its first forward (KeyError, transformers `integrations/moe.py` `get_interface`)",
            key="base_model",
            remedy="name an unquantised copy of the base model (`load_in_4bit` and `quantize_moe_experts` pack it)",
        )


class Mxfp4Quantizer(Quantizer):
    """gpt-oss' experts as stored in the checkpoint; everything else in the load dtype."""

    def replace_modules(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        for name, module in list(model.named_modules()):
            if type(module).__name__ == "GptOssExperts":
                model.set_submodule(name, Mxfp4Experts(module))

    def finish(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        model.is_quantized = True
        model.quantization_method = "mxfp4"


class Mxfp4Experts(nn.Module):
    """`Mxfp4GptOssExperts`: blocks and scales as bytes, biases in fp32.

    Its matmuls are Triton functions without a backward (`matmul_ogs` of the Hub's gpt-oss-triton-kernels). They keep no
    tensors, and gradients pass only through the residual connection, not through the experts.
    """

    def __init__(self, plain: Any) -> None:
        super().__init__()
        experts, hidden, twice = plain.gate_up_proj.shape
        self.num_experts, self.hidden_size, self.intermediate_size = experts, hidden, twice // 2
        for name, out, width in (("gate_up_proj", twice, hidden), ("down_proj", hidden, twice // 2)):
            blocks = (experts, out, width // WEIGHTS_PER_SCALE, WEIGHTS_PER_SCALE // WEIGHTS_PER_BYTE)
            device = plain.gate_up_proj.device
            self.register_parameter(name, _bytes(blocks, device))
            self.register_parameter(f"{name}_scales", _bytes(blocks[:-1], device))
            bias = torch.empty(experts, out, dtype=torch.float32, device=device)
            self.register_parameter(f"{name}_bias", nn.Parameter(bias, requires_grad=False))

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Tokens [tokens, hidden], the index of each token's experts and their weights, both [tokens, top_k].

        Returns [tokens, hidden]. The first matmul writes only the activation. The second writes one row for each token and
        expert. The rows of a token are then summed.
        """
        rows = index.numel()
        inner = hidden.new_empty(rows, self.intermediate_size)
        by_choice = hidden.new_empty(rows, self.hidden_size)
        out = torch.empty_like(hidden)
        del inner, by_choice
        return out


def _bytes(shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=torch.uint8, device=device), requires_grad=False)
