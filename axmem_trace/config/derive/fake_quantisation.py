"""`qat`: the combinations of types that torchao's fake quantisation supports. Source: axolotl 0.19 `utils/quantization.py`
`get_quantization_config`, `_make_qat_config`; `utils/schemas/quantization.py`; torchao 0.17
`quantization/qat/fake_quantize_config.py` `_infer_fake_quantize_configs`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft
from axmem_trace.recipe.recipe import FakeQuantisation

_FLOAT8 = ("float8_e4m3fn", "fp8", "float8")
DEFAULT_GROUP_SIZE = 32


def derive_fake_quantisation(draft: Draft) -> FakeQuantisation | None:
    """`FakeQuantisation` from the `qat` block.

    Raises:
        ConfigError: a combination that axolotl or torchao refuses after the model is loaded.
    """
    block = draft.values.get("qat")
    if not isinstance(block, dict):
        return None
    weight, activation = _name(block.get("weight_dtype", "int8")), _name(block.get("activation_dtype"))
    if weight in ("nvfp4", "mxfp4", "ternary"):
        _note_others(draft, weight)
        return None
    pairs = {"int4": ("", "int8", "float8"), "float8": ("float8",)}
    if activation not in pairs.get(weight, ()):
        raise draft.error(
            f"axolotl refuses this: no fake quantisation of {weight} weights with "
            f"{activation or 'unquantised'} activations (Invalid activation/weight dtype combination, or not supported "
            "by torchao QAT)",
            "qat.weight_dtype" if "weight_dtype" in block else "qat",
            accepted="int4 weights with no, int8 or fp8 activations; fp8 weights with fp8 activations",
            remedy="set weight_dtype and activation_dtype to such a pair",
        )
    embeddings = bool(block.get("quantize_embedding"))
    if embeddings and weight == "float8":
        raise draft.error(
            "axolotl refuses this: embeddings have no activations, and fp8 weights need fp8 activations",
            "qat.quantize_embedding",
            remedy="set `quantize_embedding: false`",
        )
    group_size = block.get("group_size", DEFAULT_GROUP_SIZE)
    size = 128 if group_size is None else int(group_size)
    return FakeQuantisation(weight=weight, activation=activation, group_size=size, embeddings=embeddings)  # type: ignore[arg-type]


def _name(value: object) -> str:
    return "float8" if value in _FLOAT8 else str(value or "")


def _note_others(draft: Draft, weight: str) -> None:
    if weight == "nvfp4":
        text = (
            "torchao 0.17 has no fake quantisation for axolotl's NVFP4 configuration (NVFP4WeightOnlyConfig): the run "
            "fails after the model is loaded. The figures are without fake quantisation"
        )
        draft.refuse(text, "qat", remedy="use another weight_dtype, such as int4")
        return
    text = f"fake quantisation to {weight} is not in the figures: its copies of weights and inputs need more memory"
    draft.note("not_modelled", "qat", text, direction="more")
