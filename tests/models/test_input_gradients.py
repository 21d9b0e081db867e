"""The memory of axolotl's gradient for the embedding's output."""

from __future__ import annotations

from pathlib import Path

from support.tiny_models import write_tiny_model
from support.whole_runs import make_config

import axmem_trace


def test_the_first_layer_keeps_tensors_for_its_inputs_gradient(tmp_path: Path):
    """LoRA only on q, 64 tokens of 256 features. With this gradient, these are kept: the embedding's output in bf16, 64
    * 256 * 2 = 32,768, which autograd keeps for its gradient; the first norm's input in fp32, 64 * 256 * 4 = 65,536;
    and a root for each token, 64 * 4 = 256 in a block of 512."""
    model = write_tiny_model("llama", tmp_path, hidden_size=256, intermediate_size=512)
    keys = make_config(
        tmp_path,
        base_model=model,
        sequence_len=64,
        bf16=True,
        adapter="lora",
        lora_r=8,
        lora_alpha=16,
        lora_target_modules=["q_proj"],
    )
    kept = []
    for wanted in ("true", "false"):
        assumptions = ["upcast_before=false", "autocast=false", "adapter_dtype=base", f"input_gradients={wanted}"]
        report = axmem_trace.estimate(keys, assumptions=assumptions, hub="never")
        kept.append(report.phases["step_1"].phases["forward"].end_bytes)
    assert kept[0] - kept[1] == 32_768 + 65_536 + 512
