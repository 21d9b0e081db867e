"""transformers' own attention code on meta, with each kernel name that axolotl accepts: Llama, Gemma 2, gpt-oss,
DeepSeek V3."""

from __future__ import annotations

import pytest
import torch
from support.attention_models import build, kept_by, make_inputs, operators, trace

from axmem_trace.notes import RefusalNote

A100, H100, B200 = (8, 0), (9, 0), (10, 0)
FLASH_2, FLASH_3, FLASH_4 = "flash_attention_2", "flash_attention_3", "flash_attention_4"
TOKENS = 2 * 256
OUT = TOKENS * 4 * 64 * 2  # bytes of a layer's attention output: 4 heads of 64 in bf16
KEYS = TOKENS * 2 * 64 * 2  # of its keys: 2 heads
ROWS = TOKENS * 4 * 4  # of one fp32 number per head and token
PLAIN = {"rows": 2, "tokens": 256}
PADDED = {**PLAIN, "padded": True}
PACKED = {"rows": 1, "tokens": TOKENS, "samples": 4, "mask": False}


def _trace(family, kernel, batch, capability=A100):
    return trace(build(family, kernel), make_inputs(**batch), kernel=kernel, capability=capability)


@pytest.mark.parametrize(
    ("kernel", "batch", "capability", "operator"),
    [
        ("sdpa", PLAIN, A100, "_scaled_dot_product_flash_attention.default"),
        ("sdpa", PLAIN, H100, "_scaled_dot_product_cudnn_attention.default"),
        ("sdpa", PADDED, A100, "_scaled_dot_product_efficient_attention.default"),
        ("sdpa", PADDED, H100, "_scaled_dot_product_cudnn_attention.default"),
        ("sdpa", PACKED, A100, "_scaled_dot_product_efficient_attention.default"),
        ("varlen", PLAIN, A100, "_scaled_dot_product_flash_attention.default"),
        ("varlen", PACKED, A100, "flash_attn_varlen_func_backward"),
        (FLASH_2, PLAIN, A100, "flash_attn_func_backward"),
        (FLASH_2, PADDED, A100, "flash_attn_varlen_func_backward"),
        (FLASH_2, PACKED, A100, "flash_attn_varlen_func_backward"),
        (FLASH_3, PLAIN, H100, "flash_attn_3_func_backward"),
        (FLASH_3, PADDED, H100, "flash_attn_3_varlen_func_backward"),
        (FLASH_3, PACKED, H100, "flash_attn_3_varlen_func_backward"),
        (FLASH_4, PLAIN, B200, "flash_attn_4_func_backward"),
        (FLASH_4, PACKED, B200, "flash_attn_4_varlen_func_backward"),
        ("flex_attention", PLAIN, A100, "flex_attention_backward"),
        ("flex_attention", PADDED, A100, "flex_attention_backward"),
        ("flex_attention", PACKED, A100, "flex_attention_backward"),
        ("xformers", PLAIN, A100, "flash_attn_func_backward"),
        ("xformers", PACKED, H100, "flash_attn_varlen_func_backward"),
        ("sage", PLAIN, A100, "sageattn"),
        ("sage", PACKED, A100, "sageattn"),
    ],
)
def test_the_kernel_that_a_llama_runs(kernel, batch, capability, operator):
    ledger, _ = _trace("llama", kernel, batch, capability)
    assert any(operator in each for each in operators(ledger)), operators(ledger)
    assert not any("bmm" in each.op for each in ledger.allocations if "self_attn" in each.module)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # out, q and k after rotary embedding, v, logsumexp
        ("sdpa", [OUT, OUT, KEYS, KEYS, ROWS]),
        (FLASH_2, [OUT, OUT, KEYS, KEYS, ROWS]),
        ("flex_attention", [OUT, OUT, KEYS, KEYS, ROWS]),
        ("varlen", [OUT, OUT, KEYS, KEYS, ROWS]),
        # key and value repeated to 4 heads in place of the model's own
        ("xformers", [OUT, OUT, OUT, OUT, ROWS]),
        # only the output, which the next projection keeps
        ("sage", [OUT]),
    ],
)
def test_tensors_that_a_llama_layer_keeps_for_attention(kernel, expected):
    ledger, _ = _trace("llama", kernel, PLAIN)
    kept = kept_by(ledger, module="layers.1.self_attn")
    assert [size for size in kept if size > 16] == expected  # RNG states have 8 and 16 bytes


def test_packed_sdpa_keeps_a_mask_in_every_layer():
    ledger, _ = _trace("llama", "sdpa", PACKED)
    # 512 x 512 in bf16, once per layer, in addition to the model's boolean one, freed after forward
    assert kept_by(ledger, op="where").count(512 * 512 * 2) == 2


def test_gemma_applies_soft_caps_in_the_kernel_or_in_torch():
    fused, _ = _trace("gemma2", FLASH_2, PLAIN)
    assert "flash_attn_func_backward" in operators(fused)
    # scores 2*4*256*256 in bf16, kept by tanh, and in fp32 by the softmax
    eager, _ = _trace("gemma2", "eager", PLAIN)
    assert kept_by(eager, op="tanh") == [2 * 4 * 256 * 256 * 2] * 2
    assert kept_by(eager, op="_softmax") == [2 * 4 * 256 * 256 * 4] * 2


@pytest.mark.parametrize("family", ["falcon", "gptj"])
@pytest.mark.parametrize(("batch", "function"), [(PLAIN, "func"), (PADDED, "varlen_func")])
def test_models_that_import_the_flash_wrapper_only_if_its_package_is_installed(family, batch, function):
    """modeling_falcon.py and modeling_gptj.py: `if is_flash_attn_available(): from ... import ...`."""
    ledger, _ = _trace(family, FLASH_2, batch)
    assert f"flash_attn_{function}_backward" in operators(ledger)


def test_packed_sdpa_does_not_change_a_model_that_calls_torch_itself():
    """modeling_falcon.py `FalconAttention.forward` checks whether the name of its kernel is `sdpa`. Its code is not a
    function, so it can't be replaced."""
    model = build("falcon", "varlen", multi_query=False)  # one key for all heads: broadcast, so math path
    ledger, _ = trace(model, make_inputs(**PACKED), kernel="varlen")
    assert any("_scaled_dot_product_flash_attention.default" in each for each in operators(ledger))


def test_gpt_oss_replaces_a_flash_kernel_without_sinks():
    ledger, _ = _trace("gpt_oss", FLASH_2, PLAIN, H100)
    assert "flash_attn_3_func_backward" in operators(ledger)


def test_gpt_oss_sinks():
    fused, _ = _trace("gpt_oss", FLASH_3, PLAIN, H100)
    assert "flash_attn_3_func_backward" in operators(fused)
    # without a kernel for sinks: one more column of scores, 2*4*256*257 in bf16, concatenated and softmaxed
    eager, _ = _trace("gpt_oss", "sdpa", PLAIN)
    assert 2 * 4 * 256 * 257 * 2 in kept_by(eager)


def _refused(context):
    return " ".join(note.text for note in context.recorder.notes if isinstance(note, RefusalNote))


@pytest.mark.parametrize("kernel", ["xformers", "sage"])
def test_padded_batches_on_which_axolotls_code_fails_are_refused(kernel):
    """`_upad_input` of transformers 5 needs `unpad_input_func`; axolotl's two functions pass only five arguments."""
    _, context = _trace("llama", kernel, PADDED)
    assert "without its last argument" in _refused(context)


def test_axolotls_own_llama_attention_for_xformers_is_reported():
    """patch_manager.py `_patch_llama_derived_model`: Llama without packing."""
    assert not hasattr(build("llama", "xformers").model.layers[0].self_attn, "num_heads")
    assert "reads `num_heads`" in _refused(_trace("llama", "xformers", PLAIN)[1])
    assert not _refused(_trace("llama", "xformers", PACKED)[1])
    assert not _refused(_trace("mistral", "xformers", PLAIN)[1])


@pytest.mark.parametrize("kernel", ["xformers", "sage"])
def test_sinks_that_a_kernel_ignores_are_reported(kernel):
    _, context = _trace("gpt_oss", kernel, PLAIN, H100)
    assert "ignores the model's attention sinks" in context.recorder.notes.of("attn_implementation.sinks")[0].text
    assert not _trace("llama", kernel, PLAIN)[1].recorder.notes.of("attn_implementation.sinks")


def test_latent_attention_pads_values_for_flash():
    ledger, _ = _trace("deepseek_v3", FLASH_2, PLAIN)
    # heads of 64 for query and key, 32 for value, padded to 64: 2*256*4*64*2
    assert OUT in kept_by(ledger, op="pad")
    # SDPA's flash kernel refuses unequal heads
    _, context = _trace("deepseek_v3", "sdpa", PLAIN)
    assert "heads differ in size" in context.recorder.notes.of("attention.sdpa.efficient")[0].text


def test_recomputation_runs_the_same_kernel():
    for reentrant in (True, False):
        model = build("llama", "sdpa")
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        ledger, _ = trace(model, make_inputs(**PLAIN), kernel="sdpa")
        recomputed = {each.op for each in ledger.allocations if each.recomputed}
        assert "aten._scaled_dot_product_flash_attention.default" in recomputed
        assert not any("bmm" in each.op for each in ledger.allocations if "self_attn" in each.module)


def test_heads_that_flash_refuses():
    _, context = trace(build("llama", FLASH_2, head_dim=320), make_inputs(**PLAIN), kernel=FLASH_2)
    assert "FlashAttention-2 supports head sizes of at most 256; this model's is 320" in _refused(context)
    _, context = trace(build("llama", "sdpa", head_dim=320), make_inputs(**PLAIN), kernel="sdpa")
    assert "the head size 320 is over 256" in context.recorder.notes.of("attention.sdpa.efficient")[0].text


@pytest.mark.parametrize(
    ("kernel", "key"),
    [("sdpa", "sdpa.flash"), (FLASH_2, "flash_attn"), ("flex_attention", "flex_attention"), ("xformers", "xformers")],
)
def test_the_rule_is_reported(kernel, key):
    _, context = _trace("llama", kernel, PLAIN)
    (note,) = context.recorder.notes.of(f"attention.{key}")
    assert note.kind == "ruled"


def test_everything_is_restored():
    from transformers import masking_utils, modeling_utils

    functions = dict(modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping)
    masks = dict(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping)
    make_block_mask = masking_utils.create_block_mask
    _trace("llama", "varlen", PACKED)
    assert functions == modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping
    assert masks == masking_utils.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    assert masking_utils.create_block_mask is make_block_mask
    assert not torch.overrides._get_current_function_mode_stack()
