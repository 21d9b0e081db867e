"""A real `axolotl train` of a tiny model on the CPU, in this process, on a simulated card.

There is no CUDA device, so the allocator's counters are simulated. Each training step and each batch of an evaluation
raises the peak to a given size. axolotl's own logging resets it, as `gpu_memory_usage_all` does.

    python -m support.axolotl_run FOLDER '{"logging_steps": 1, ...}' '{"steps": [100, 80, 90], ...}'
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

MIB = 1 << 20
AFTER_STEP = 10
"""MiB that are allocated between steps."""


class SimulatedCard:
    """Peaks of one card, in MiB."""

    def __init__(self, memory_mib: int) -> None:
        self.memory_mib, self.level, self.peak, self.reserved = memory_mib, 0, 0, 0

    def rise(self, mib: int) -> None:
        self.peak, self.reserved, self.level = max(self.peak, mib), max(self.reserved, mib + 5), AFTER_STEP

    def read(self) -> Any:
        from axmem_trace.integrations.peaks import Peaks

        return Peaks(self.peak * MIB, self.peak * MIB, self.reserved * MIB)

    def log_and_reset(self, *args: Any) -> tuple[float, float, float]:
        """As axolotl 0.21.0 `utils/bench.py` `gpu_memory_usage_all`."""
        figures = (self.peak / 1024, self.peak / 1024, self.reserved / 1024)
        self.peak = self.level
        return figures


def write_model(folder: Path) -> None:
    """Writes a random Llama with a byte tokenizer, and some text. It downloads nothing."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    marks = ["<s>", "</s>", "<unk>", "<pad>"]
    vocabulary = {token: number for number, token in enumerate([*marks, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder / "tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=3,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "tiny")
    lines = [json.dumps({"text": "hello world " * (5 + number % 7)}) for number in range(40)]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")


def make_config(folder: Path, **changes: Any) -> Path:
    import yaml

    config = {
        "base_model": "./tiny",
        "datasets": [{"path": "data.jsonl", "ds_type": "json", "type": "completion"}],
        "val_set_size": 0.2,
        "sequence_len": 64,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "eval_steps": 2,
        "learning_rate": 0.001,
        "optimizer": "adamw_torch",
        "output_dir": "./out",
        "logging_steps": 1,
        "bf16": False,
        "fp16": False,
        "attn_implementation": "eager",
        "save_strategy": "no",
        "dataset_prepared_path": "./prepared",
        "plugins": ["axmem_trace.MemoryPlugin"],
        **changes,
    }
    path = folder / "run.yml"
    path.write_text(yaml.safe_dump(config))
    return path


def train(folder: Path, changes: dict[str, Any], card: dict[str, Any]) -> None:
    """Args:
    changes: keys of the configuration. Those under `command_line` are passed as `axolotl train` passes its options.
    card: `memory_mib`, `steps` and `evaluation` (MiB that each reaches), `fails_at` (a step that runs out of memory),
        `no_process` (the estimate can't be started).
    """
    os.chdir(folder)
    command_line = changes.pop("command_line", {})
    write_model(folder)
    config = make_config(folder, **changes)
    simulated, steps = SimulatedCard(card.get("memory_mib", 0)), iter(card["steps"])
    from axolotl.cli import train as command
    from axolotl.core.trainers import base
    from transformers import Trainer

    from axmem_trace.integrations import axolotl_plugin

    training_step, prediction_step = Trainer.training_step, Trainer.prediction_step

    def step(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step + 1 == card.get("fails_at"):
            raise MemoryError("simulated: CUDA out of memory")
        simulated.rise(next(steps))
        return training_step(trainer, *args, **kwargs)

    def predict(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        simulated.rise(card["evaluation"])
        return prediction_step(trainer, *args, **kwargs)

    def device() -> tuple[str, int]:
        return ("Simulated", simulated.memory_mib * MIB) if simulated.memory_mib else ("", 0)

    broken = {"side_effect": OSError("no process")} if card.get("no_process") else {"wraps": axolotl_plugin.Prediction}
    with (
        mock.patch.object(axolotl_plugin, "Prediction", **broken),
        mock.patch.object(Trainer, "training_step", step),
        mock.patch.object(Trainer, "prediction_step", predict),
        mock.patch.object(base, "get_gpu_memory_usage", simulated.log_and_reset),
        mock.patch.object(axolotl_plugin, "read_cuda_peaks", simulated.read),
        mock.patch.object(axolotl_plugin, "_device", device),
        mock.patch.object(sys, "argv", ["axolotl"]),
    ):
        command.do_cli(config=str(config), **command_line)


if __name__ == "__main__":
    train(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
