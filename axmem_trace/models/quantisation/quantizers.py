"""Quantizers, which change a skeleton: transformers' own for most methods, this package's packed layouts for others."""

from __future__ import annotations

from typing import Any

import torch

from axmem_trace.models.quantisation.bnb import pack_bnb_weights
from axmem_trace.models.quantisation.packed_linear import PackedFormat, replace_with_packed_linear


class Quantizer:
    """The base class: weights are loaded in `dtype`, and nothing is quantised."""

    def load_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of parameters that are not quantised (transformers `HfQuantizer.update_dtype`)."""
        return dtype

    def replace_modules(self, model: Any, dtype: torch.dtype) -> None:
        """Replace layers of the skeleton, before weights are tied."""

    def finish(self, model: Any, dtype: torch.dtype) -> None:
        """Set the packed weights of the replaced layers, and the model's flags that peft and the trainer read."""


class NoQuantizer(Quantizer):
    """Plain weights."""


class TransformersQuantizer(Quantizer):
    """A quantizer of transformers, called as in `from_pretrained`.

    Source: transformers `quantizers/base.py` `preprocess_model`, `postprocess_model`.
    """

    def __init__(self, hf_quantizer: Any) -> None:
        self.hf_quantizer = hf_quantizer

    def replace_modules(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        model.hf_quantizer = self.hf_quantizer
        self.hf_quantizer.preprocess_model(model=model, dtype=dtype, device_map={"": 0})

    def finish(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        pack_bnb_weights(model, dtype)
        self.hf_quantizer.postprocess_model(model)


class PackedQuantizer(Quantizer):
    """GPTQ and AWQ checkpoints: integers packed into int32 words, as in gptqmodel."""

    def __init__(self, method: str, packed: PackedFormat, skip_modules: list[str]) -> None:
        self.method = method
        self.packed = packed
        self.skip_modules = skip_modules

    def load_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """AWQ on CUDA turns bfloat16 into float16 (transformers `quantizer_awq.py` `update_dtype`)."""
        return torch.float16 if self.method == "awq" and dtype == torch.bfloat16 else dtype

    def replace_modules(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        replace_with_packed_linear(model, self.packed, self.skip_modules)

    def finish(self, model: Any, dtype: torch.dtype) -> None:  # noqa: D102
        model.is_quantized = True
        model.quantization_method = self.method
