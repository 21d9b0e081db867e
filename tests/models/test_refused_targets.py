"""peft's refusals are reported completely: the named module, and the accepted types."""

from __future__ import annotations

import pytest
from support.whole_runs import make_recipe

from axmem_trace.errors import ConfigError
from axmem_trace.models import build_model


@pytest.mark.parametrize(("family", "target"), [("llama", "self_attn"), ("qwen3_moe", "experts"), ("phi3", "norm")])
def test_a_module_that_peft_does_not_support(family, target, tmp_path):
    recipe = make_recipe(tmp_path, family, adapter="lora", lora_r=2, lora_alpha=2, lora_target_modules=[target])
    with pytest.raises(ConfigError) as caught:
        build_model(recipe)
    (detail,) = caught.value.details
    assert detail.startswith("ValueError: Target module ")  # its whole repr follows, on many lines
    assert "is not supported. Currently, only the following modules are supported: `torch.nn.Linear`" in detail
    assert len(detail) < 450
    assert "q_proj" in caught.value.accepted or "qkv_proj" in caught.value.accepted
