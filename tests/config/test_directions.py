"""A setting that is not modelled has a direction if its source makes it clear, and the verdict depends on the
direction."""

from __future__ import annotations

import pytest

from axmem_trace.config import read_recipe
from axmem_trace.report.verdict import judge

CONFIG = {
    "base_model": "meta-llama/Llama-3.1-8B",
    "datasets": [{"path": "any", "type": "alpaca"}],
    "bf16": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "sequence_len": 512,
    "val_set_size": 0,
}


@pytest.mark.parametrize(
    ("changes", "key", "fits", "does_not_fit"),
    [
        ({"overrides_of_model_kwargs": {"some_option": 1}}, "overrides_of_model_kwargs.some_option", None, None),
        ({"deepspeed": "somewhere/mine.json"}, "deepspeed", None, None),
        ({"attn_implementation": "somebody/new-kernel"}, "attn_implementation", None, None),
        ({"attn_implementation": "fp8"}, "attn_implementation", True, None),
        ({"tiled_mlp": True, "tiled_mlp_use_original_mlp": False}, "tiled_mlp_use_original_mlp", True, None),
        ({"qat": {"weight_dtype": "mxfp4"}}, "qat", None, False),
    ],
)
def test_no_verdict_is_given_if_it_could_be_wrong(changes, key, fits, does_not_fit):
    notes = [
        note for note in read_recipe({**CONFIG, **changes}, hub="never", axolotl="0.21.0").notes if note.key == key
    ]
    assert [note.kind for note in notes if note.kind != "warning"] == ["not_modelled"]
    assert judge(True, notes)[0] is fits
    assert judge(False, notes)[0] is does_not_fit
