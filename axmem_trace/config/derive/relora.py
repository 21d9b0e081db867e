"""ReLoRA: when it restarts, and which runs fail at the restart. Source: axolotl 0.19 `monkeypatch/relora.py`."""

from __future__ import annotations

from axmem_trace.config.document.draft import Draft

_WITHOUT_ADAM = tuple(
    """
    sgd adagrad rmsprop rmsprop_bnb rmsprop_bnb_8bit rmsprop_bnb_32bit lion_8bit lion_32bit paged_lion_8bit
    paged_lion_32bit adafactor lomo adalomo galore_adafactor galore_adafactor_layerwise schedule_free_sgd
    schedule_free_radam ademamix ademamix_8bit paged_ademamix_32bit paged_ademamix_8bit
    """.split()
)
"""transformers' optimizers; axolotl's own leave `args.optim` at its default, an Adam."""


def restart_steps(draft: Draft) -> int:
    """After how many steps the adapter is merged for the first time; 0: never."""
    steps = draft.get("jagged_restart_steps") or 0
    if not (draft.get("relora") and steps):
        return 0
    max_steps = draft.get("max_steps") or 0
    if 0 < max_steps <= steps:
        text = f"ReLoRA restarts after {steps} steps, and the run ends after {max_steps}: it never merges"
        draft.note("warning", "jagged_restart_steps", text)
        return 0
    name = str(draft.get("optimizer"))
    if name in _WITHOUT_ADAM and "adam" not in name:
        text = (
            f"axolotl fails at ReLoRA's first restart: {name} is not supported, only optimizers with adam in their name"
        )
        draft.refuse(text, "optimizer", remedy="use `optimizer: adamw_torch_fused`, for example")
    if draft.get("adapter") == "qlora":
        text = (
            "ReLoRA over 4-bit weights fails after its first restart: bitsandbytes leaves the merged weights in fp32, and "
            "the next forward fails. The figures include the restart, with those weights"
        )
        draft.refuse(text, "relora", remedy="use `adapter: lora`")
    if draft.get("relora_cpu_offload") and not (draft.get("load_in_4bit") or draft.get("load_in_8bit")):
        text = "`relora_cpu_offload` acts on quantised base weights only: here the merges run on the GPU"
        draft.note("warning", "relora_cpu_offload", text)
    return int(steps)
