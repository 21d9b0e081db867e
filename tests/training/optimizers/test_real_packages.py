"""Rebuilt optimizers compared with the libraries' own, run on a CPU.

`optimizer_packages.json` holds what the packages' steps allocated (versions are in it). A rebuilt step must keep
exactly the same bytes and have exactly the same peak. Where a CPU and a GPU differ, the tests calculate the difference.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from functools import cache
from typing import Any

import pytest
import torch
from support.optimizer_packages import CASES, DTYPES, FILE, run_case
from support.optimizer_steps import Steps, make_llama, on_meta

from axmem_trace.training.optimizers import TracedOptimizer

RECORDED: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
COMPILED = {"adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8", "sinkgd"}
"""On a GPU `torch.compile` fuses their update, so only the states that the real run keeps can be compared."""
TABLES = {
    # q_proj, o_proj, embedding and head have two 8-bit states each; a table has 256 fp32 entries
    "adamw_torch_8bit": 4 * 2 * 1024,
    # 16 entries
    "adamw_torch_4bit": 4 * 2 * 64,
    # embedding and head: SinkGD has no state for the others
    "sinkgd": 2 * 2 * 1024,
    # in bitsandbytes all tensors share one signed and one unsigned table
    "adamw_bnb_8bit": 2 * 1024,
    "ademamix_8bit": 2 * 1024,
    "galore_adamw_8bit": 2 * 1024,
    "q_galore_adamw8bit": 2 * 1024,
    "lion_8bit": 1024,
    "rmsprop_bnb_8bit": 1024,
}
"""Bytes of lookup tables. `torch.tensor(list)` makes them, and on a CPU no dispatch mode sees that call."""
ON_HOST = "grokadamw"
EXACT = [name for name in CASES if name not in COMPILED and name != ON_HOST]


@cache
def rebuilt(name: str, dtype: str) -> tuple[TracedOptimizer, Steps]:
    return on_meta(make_llama(getattr(torch, dtype), "meta"), optimizer=name.split()[0], **CASES[name].keys)


def recorded(name: str, dtype: str) -> Steps:
    entry = RECORDED[name][dtype]
    return Steps(kept=tuple(entry["kept"]), peaks=tuple(entry["peaks"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT)
def test_a_rebuilt_step_allocates_the_same_as_the_real_one(name, dtype):
    tables = TABLES.get(name, 0)
    real = recorded(name, dtype)
    assert rebuilt(name, dtype)[1] == Steps(
        kept=(real.kept[0] + tables, real.kept[1] + tables), peaks=(real.peaks[0] + tables, real.peaks[1])
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", sorted(COMPILED))
def test_compiled_updates_keep_the_same_as_the_real_ones(name, dtype):
    kept = {each + TABLES.get(name, 0) for each in recorded(name, dtype).kept}
    assert set(rebuilt(name, dtype)[1].kept) == kept


@pytest.mark.parametrize("dtype", DTYPES)
def test_grokadamw_copies_three_states_of_one_tensor_to_the_gpu(dtype):
    # On a CPU `.to(p.device)` copies nothing. On a GPU copies of the three states of the largest tensor (2048 x 64) are
    # added.
    optimizer, steps = rebuilt(ON_HOST, dtype)
    copies = 3 * 2048 * 64 * (2 if dtype == "bfloat16" else 4)
    assert steps.kept == (0, 0)
    assert steps.peaks == (recorded(ON_HOST, dtype).peaks[1] + copies,) * 2
    assert optimizer.host_bytes == recorded(ON_HOST, dtype).kept[1]


# bitsandbytes compiles its CPU code, which takes minutes, so its record is updated by hand.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.package != "bitsandbytes"])
def test_the_record_equals_a_run_of_the_installed_package(name):
    case = CASES[name]
    if importlib.util.find_spec(case.module.partition(".")[0]) is None:
        pytest.skip(f"{case.package} is not installed")
    version = importlib.metadata.version(case.package)
    assert recorded(name, "bfloat16") == run_case(name, "bfloat16"), f"{case.package} {version}"
