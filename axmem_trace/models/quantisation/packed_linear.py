"""GPTQ and AWQ linear layers: gptqmodel's tensors, and a forward that unpacks them like gptqmodel's torch kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

WORD_BITS = 32
DECODER_LAYER_LISTS = ("transformer.h", "model.decoder.layers", "gpt_neox.layers", "model.layers")
"""Names in which GPTQ searches for decoder layers (optimum `gptq/constants.py` `BLOCK_PATTERNS`)."""


@dataclass(frozen=True, slots=True)
class PackedFormat:
    """`bits` per weight; one scale for `group_size` input features (-1: for all of them)."""

    method: Literal["gptq", "awq"]
    bits: int = 4
    group_size: int = 128
    kernel: Literal["torch", "triton"] = "torch"
    parameter_dtype: torch.dtype | None = None
    """GPTQ's words are frozen parameters of this dtype, which FSDP can divide. None: they are buffers of int32."""

    def groups(self, in_features: int) -> int:
        """Rows of `scales` and `qzeros`."""
        return 1 if self.group_size <= 0 else math.ceil(in_features / self.group_size)


class PackedLinear(nn.Module):
    """A linear layer whose weights are `bits`-wide integers in int32 words.

    Shapes, for `in` and `out` features and `groups` along the input (gptqmodel `nn_modules/qlinear/__init__.py`,
    `PackableQuantLinear` for GPTQ and `AWQuantLinear` for AWQ, `register_buffers`):

    - GPTQ: `qweight` int32 (in * bits / 32, out), `g_idx` int32 (in);
    - AWQ: `qweight` int32 (in, out * bits / 32), no `g_idx`;
    - both: `qzeros` int32 (groups, out * bits / 32), `scales` fp16 (groups, out), `bias` fp16 (out).

    With `parameter_dtype`, `qweight` and `qzeros` are parameters: the same bytes as elements of that dtype, so twice as
    many columns for a dtype of 16 bits. `forward` sees them as int32 (fms-acceleration-peft 0.4.4 `autogptq_utils.py`
    `build_patch_to_view_tensor_to_parameter_for_fsdp_gptq`).
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool, packed: PackedFormat) -> None:
        super().__init__()
        self.in_features, self.out_features, self.packed = in_features, out_features, packed
        groups = packed.groups(in_features)
        words_in, words_out = (math.ceil(size * packed.bits / WORD_BITS) for size in (in_features, out_features))
        shape = (words_in, out_features) if packed.method == "gptq" else (in_features, words_out)
        self._register_words("qweight", torch.zeros(shape, dtype=torch.int32))
        self._register_words("qzeros", torch.zeros((groups, words_out), dtype=torch.int32))
        self.register_buffer("scales", torch.zeros((groups, out_features), dtype=torch.float16))
        if packed.method == "gptq":
            self.register_buffer("g_idx", torch.zeros(in_features, dtype=torch.int32))
        self.register_buffer("bias", torch.zeros(out_features, dtype=torch.float16) if bias else None)
        self.packed_elements = {"qweight": in_features * out_features}

    def _register_words(self, name: str, words: torch.Tensor) -> None:
        dtype = self.packed.parameter_dtype
        if dtype is None:
            self.register_buffer(name, words)
        else:
            self.register_parameter(name, nn.Parameter(words.view(dtype), requires_grad=False))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Unpack, then multiply: autograd keeps the unpacked weight for the input's gradient.

        Source: gptqmodel `nn_modules/qlinear/torch.py` `TorchQuantLinear._forward`, `dequantize_weight`. With
        `kernel="triton"`: `TritonMatmul`.
        """
        if self.packed.kernel == "triton":
            out = TritonMatmul.apply(hidden, self.qweight.view(torch.int32), (self.in_features, self.out_features))
        else:
            out = torch.matmul(hidden, self._unpack().to(hidden.dtype))
        return out if self.bias is None else out + self.bias

    def _unpack(self) -> torch.Tensor:
        """The fp16 weight (in, out). Temporary tensors are one-byte integers and the scale of each weight's group."""
        narrow = torch.int8 if self.packed.bits <= 4 else torch.int16
        weight = torch.empty((self.in_features, self.out_features), dtype=narrow, device=self.qweight.device)
        zeros = torch.empty((self.scales.shape[0], self.out_features), dtype=narrow, device=self.qweight.device)
        rows = self.scales.shape[0]
        repeats = self.in_features // rows
        scales, zeros = self.scales.repeat_interleave(repeats, 0), zeros.repeat_interleave(repeats, 0)
        return scales * (weight - zeros)

    def extra_repr(self) -> str:
        """Shape and format, in the style of `nn.Linear`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.packed}"


class TritonMatmul(torch.autograd.Function):
    """Unpacks into one fp16 weight, keeps only the packed weight for backward, and unpacks it again there.

    Source: AutoGPTQ 0.7 `nn_modules/triton_utils/dequant.py` `quant_matmul_248`, `QuantLinearFunction`, which
    fms-acceleration-peft 0.4 contains too.
    """

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")
    def forward(ctx: Any, hidden: torch.Tensor, qweight: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(qweight)
        ctx.shape = shape
        return hidden @ torch.empty(shape, dtype=torch.float16, device=qweight.device)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:  # noqa: D102
        (qweight,) = ctx.saved_tensors
        weight = torch.empty(ctx.shape, dtype=torch.float16, device=qweight.device)
        return grad_output @ weight.t(), None, None


def replace_with_packed_linear(model: Any, packed: PackedFormat, skip_modules: list[str]) -> None:
    """Replace `nn.Linear` (and GPT-2's `Conv1D`) by `PackedLinear`.

    GPTQ packs layers inside the decoder layers whose class is exactly `nn.Linear`, not a subclass (optimum 2.3
    `gptq/quantizer.py` `convert_model`, `gptq/utils.py` `get_layers`). AWQ packs all linear layers except the output head
    and tied weights (transformers `quantizer_awq.py`). Neither packs `skip_modules`.
    """
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    skip = list(skip_modules)
    if packed.method == "awq":
        skip += get_keys_to_not_convert(model)
    prefix = _decoder_layers(model) + "." if packed.method == "gptq" else ""
    for name, module in list(model.named_modules()):
        is_linear = type(module) is nn.Linear if packed.method == "gptq" else isinstance(module, nn.Linear)
        if not (is_linear or isinstance(module, Conv1D)) or not name.startswith(prefix):
            continue
        if not should_convert_module(name, skip):
            continue
        if isinstance(module, Conv1D):
            in_features, out_features = module.weight.shape
        else:
            in_features, out_features = module.in_features, module.out_features
        model.set_submodule(name, PackedLinear(in_features, out_features, module.bias is not None, packed))


def _decoder_layers(model: nn.Module) -> str:
    names = {name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    for candidate in DECODER_LAYER_LISTS:
        if candidate in names:
            return candidate
    return min((name for name in names if name.endswith("layers")), key=len, default="")
