"""Code in runs of other trainers: loss paths of transformers 4, the in-place cross-entropy, kept outputs and caches."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from axmem_trace import estimate
from axmem_trace.kernels.older.losses import without_last

ROWS, TOKENS, VOCABULARY, HIDDEN, LAYERS = 2, 128, 16384, 64, 2
"""Several rows, because the shifted logits of one row would be contiguous and not copied. A large vocabulary, because
with a small one the peak would be in cuBLAS's workspace."""
LOGITS = ROWS * TOKENS * VOCABULARY
SHIFTED = ROWS * (TOKENS - 1) * VOCABULARY
SLACK = 16 * 1024
"""The size of scalars, labels, and one fp32 number for each row of logits."""
LLAMA = {
    "base_model": "NousResearch/Llama-2-7b-hf",
    "overrides_of_model_config": {
        "hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
        "num_key_value_heads": 4, "vocab_size": VOCABULARY, "head_dim": 16,
    },
}  # fmt: skip
BIGCODE = {
    "base_model": "bigcode/gpt_bigcode-santacoder",
    "overrides_of_model_config": {
        "n_embd": HIDDEN,
        "n_inner": 128,
        "n_layer": LAYERS,
        "n_head": 4,
        "vocab_size": VOCABULARY,
        "n_positions": 256,
    },
}


QLORA = {
    **LLAMA,
    "adapter": "qlora",
    "load_in_4bit": True,
    "lora_r": 8,
    "lora_target_modules": ["q_proj"],
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
MODELS = {"llama": LLAMA, "bigcode": BIGCODE, "qlora": QLORA}


@cache
def run(model: str = "llama", **assumptions):
    config = {
        **MODELS[model],
        "sequence_len": TOKENS,
        "pad_to_sequence_len": True,
        "micro_batch_size": ROWS,
        "gradient_accumulation_steps": 1,
        "bf16": True,
        "val_set_size": 0,
        "gradient_checkpointing": True,
        "sdp_attention": True,
        "datasets": [{"path": "any", "type": "alpaca"}],
    }
    given = {"autocast": False, "upcast_before": False, "attention_mask": False, **assumptions}
    return estimate(config, assumptions=given, hub="never").phases["step_1"].phases


def forward_peak(**assumptions) -> int:
    return run(**assumptions)["forward"].allocated_bytes


def test_upcast_in_the_model_frees_the_half_precision_logits():
    """4.46 and later: bf16 logits 2, fp32 copy 4, shifted copy 4, log-softmax 4. Before, the fp32 logits replaced the
    bf16 logits: 2 bytes less for each logit."""
    difference = forward_peak(loss_path="shifted_copy") - forward_peak(loss_path="upcast_shifted_copy")
    assert difference == pytest.approx(2 * LOGITS, abs=SLACK)


def test_without_an_upcast_all_copies_have_half_the_size():
    """bf16 logits, shifted copy, log-softmax: 2 bytes each, instead of 4 each."""
    difference = forward_peak(loss_path="upcast_shifted_copy") - forward_peak(loss_path="half_shifted_copy")
    assert difference == pytest.approx(2 * LOGITS + 4 * SHIFTED, abs=SLACK)


def test_cross_entropy_in_place_has_no_log_softmax():
    """4 bytes for each shifted logit."""
    torch_peak = forward_peak(loss_path="shifted_copy")
    in_place = forward_peak(loss_path="shifted_copy", cross_entropy="in_place")
    assert torch_peak - in_place == pytest.approx(4 * SHIFTED, abs=SLACK)


def test_a_gradient_in_place_is_not_a_new_tensor():
    """Backward with torch: log-softmax, gradient of the loss and gradient of the log-softmax, 4 bytes each. In place:
    the shifted logits, which become the gradient, and its padded copy."""
    with_torch = run(loss_path="upcast_shifted_copy")["backward"].allocated_bytes
    in_place = run(loss_path="upcast_shifted_copy", cross_entropy="in_place")["backward"].allocated_bytes
    assert with_torch - in_place == pytest.approx(12 * SHIFTED - 4 * SHIFTED - 4 * LOGITS, abs=SLACK)


def test_kept_outputs_are_alive_after_backward():
    """The bf16 logits: 2 bytes each."""
    held, dropped = (run(holds_outputs=value)["backward"].end_bytes for value in (True, False))
    assert held - dropped == pytest.approx(2 * LOGITS, abs=SLACK)


def test_bigcode_kept_its_cache_under_checkpointing():
    """A view of `c_attn`'s output keeps the whole output: hidden + 2 * 16 (one head of keys and values) in bf16, in
    each layer."""
    kept, dropped = (
        forward_peak(model="bigcode", loss_path="half_shifted_copy", use_cache=value) for value in (True, False)
    )
    assert kept - dropped == pytest.approx(LAYERS * ROWS * TOKENS * (HIDDEN + 2 * 16) * 2, abs=LAYERS * 512)


def test_old_bitsandbytes_kept_the_inputs_of_4_bit_layers():
    """In each layer, the inputs of q, k and v, of o, of gate and up (hidden each), and of down (128), in bf16. They are
    kept with and without checkpointing, and also after backward, as long as the outputs keep the graph alive."""
    given = {"lora_kernels": False, "kbit_preparation": False, "holds_outputs": True, "adapter_dtype": "base"}
    kept, dropped = (run(model="qlora", bnb_keeps_inputs=value, **given) for value in (True, False))
    expected = LAYERS * ROWS * TOKENS * (3 * HIDDEN + 128) * 2
    for phase in ("forward", "backward"):
        assert kept[phase].end_bytes - dropped[phase].end_bytes == pytest.approx(expected, rel=0.01)


def test_during_a_loss_in_the_forward_the_hidden_states_are_alive():
    """With a frozen head, only a variable of the forward keeps the head's input (bf16, 32 KiB here). In both versions
    it is alive when the loss is computed, so the only difference is 2 bytes for each logit."""
    given = {"lora_kernels": False, "kbit_preparation": False, "adapter_dtype": "base", "model": "qlora"}
    after, before = (forward_peak(loss_path=path, **given) for path in ("shifted_copy", "upcast_shifted_copy"))
    assert ROWS * TOKENS * HIDDEN * 2 == 32 * 1024 > SLACK
    assert after - before == pytest.approx(2 * LOGITS, abs=SLACK)


@pytest.mark.parametrize(("whole_slices", "copies"), [(False, [(2, 3, 7)]), (True, [(2, 2, 7), (2, 3, 7)])])
def test_a_whole_slice_copies_the_gradient_once_more(whole_slices: bool, copies: list[tuple[int, ...]]):
    """torch 2.4.1, `logits[..., :-1, :].contiguous()` of [2, 3, 7]: its dispatcher shows `slice_backward` to [2, 2, 7] and
    then to [2, 3, 7]; torch 2.14.1's shows only the second."""
    found: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.slice_backward.default:
                found.append(tuple(result.shape))
            return result

    logits = torch.randn(2, 3, 7, requires_grad=True)
    total = without_last(logits, whole_slices).sum()
    with Watch():
        total.backward()
    assert found == copies
    assert logits.grad is not None
    assert logits.grad.sum() == 2 * 2 * 7
