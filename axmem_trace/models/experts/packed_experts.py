"""`quantize_moe_experts`: fused 3-D expert weights are quantised while they are loaded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from axmem_trace.models.quantisation.bnb import unchanged_code_tables
from axmem_trace.notes import Note, Notes
from axmem_trace.recipe.recipe import Recipe


class Int8Rows(nn.Module):
    """Parametrisation of an expert weight that is stored as int8 with one fp32 scale per row. Reading it gives fp16.

    Source: axolotl `monkeypatch/moe_quant.py` `Bnb8bitParametrization`; bitsandbytes `functional.py`
    `int8_vectorwise_quant` (row statistics are fp32, one per row of the flattened matrix), `int8_vectorwise_dequant`.
    """

    row_stats: torch.Tensor

    def __init__(self, row_stats: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("row_stats", row_stats)

    @torch.no_grad()
    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        """`packed` times its row's scale / 127, in the shape of `packed`."""
        rows = packed.reshape(-1, packed.shape[-1])
        return (rows * self.row_stats.view(-1, 1) * (1.0 / 127.0)).reshape(packed.shape)


def quantise_fused_experts(model: nn.Module, recipe: Recipe, notes: Notes) -> bool:
    """Quantise every 3-D parameter with `expert` in its name. Returns True if there was one.

    4-bit uses bitsandbytes' own `replace_parameter_4bit` (uint8 storage, blocks of 64); 8-bit has one scale per row.
    Source: axolotl `monkeypatch/moe_quant.py` `patch_moe_quantization_on_load`.
    """
    import bitsandbytes as bnb

    quantisation = recipe.quantisation
    if not quantisation.quantise_moe_experts or quantisation.method not in ("bnb_4bit", "bnb_8bit"):
        return False
    count = 0
    for module_name, module in list(model.named_modules()):
        if isinstance(module, (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim < 3 or "expert" not in f"{module_name}.{name}".lower():
                continue
            if quantisation.method == "bnb_4bit":
                _pack_4bit(module, name, recipe)
            else:
                _pack_8bit(module, name, parameter, stays_unpacked=quantisation.int8_experts_stay_unpacked)
            count += 1
    if count == 0:
        text = "the model has no fused 3-D expert weights: this key quantises nothing"
        notes.append(Note(kind="warning", key="quantize_moe_experts", text=text))
    return count > 0


def _pack_4bit(module: nn.Module, name: str, recipe: Recipe) -> None:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    with unchanged_code_tables():
        replace_parameter_4bit(
            module,
            name,
            compress_statistics=recipe.quantisation.double_quant_experts,
            quant_type=recipe.quantisation.quant_type,
        )


def _pack_8bit(module: nn.Module, name: str, parameter: torch.Tensor, *, stays_unpacked: bool) -> None:
    """One unpacked copy for each forward of the experts, even if the weight is read several times.

    bitsandbytes' hooks do what axolotl's of the same names do (`monkeypatch/moe_quant.py`).
    """
    from bitsandbytes.nn.parametrize import _disable_parametrization_cache, _enable_parametrization_cache

    rows = parameter.numel() // parameter.shape[-1]
    packed = torch.empty(parameter.shape, dtype=torch.int8, device=parameter.device)
    stats = torch.empty(rows, dtype=torch.float32, device=parameter.device)
    setattr(module, name, nn.Parameter(packed, requires_grad=False))
    parametrize.register_parametrization(module, name, Int8Rows(stats), unsafe=True)
    if not getattr(module, "_int8_rows_cached", False):
        module.register_forward_pre_hook(_enable_parametrization_cache)
        module.register_forward_hook(_disable_parametrization_cache, always_call=not stays_unpacked)
        module._int8_rows_cached = True  # type: ignore[assignment]
