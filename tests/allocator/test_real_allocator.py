"""Compares the simulation with PyTorch's own allocator, in histories that `scripts/real_allocator.py` recorded.

`real_allocator.json` has the results of `c10::cuda::CUDACachingAllocator` of torch 2.13 (its CUDA wheel's
libc10_cuda.so) with a driver that only supports memory: for each state the allocated and reserved bytes, the returned
address, failures, retries and segments. Addresses must be equal too: they show that the same free block was used and
split.
"""

import json
from pathlib import Path

import pytest
from support.scripts import load_script

from axmem_trace.allocator import parse_alloc_conf
from axmem_trace.errors import ConfigError

RECORDED = json.loads((Path(__file__).parent / "real_allocator.json").read_text(encoding="utf-8"))
ACCEPTED = [case for case in RECORDED if case["accepted"]]
REFUSED = [case["settings"] for case in RECORDED if not case["accepted"]]


@pytest.fixture(scope="module")
def script():
    return load_script("real_allocator")


def test_the_recording_contains_the_cases_that_it_is_for():
    # two long histories for each setting; out-of-memory errors, and retries that helped or did not help
    long = [case for case in ACCEPTED if case["moves"] >= 1500]
    assert len(long) >= 38
    last = [case["states"][-1] for case in long if case["capacity_mib"] < 10_000]
    assert sum(retries > 0 for *_, retries, _ in last) > 20
    assert any(state[3] for case in long for state in case["states"])
    assert len(REFUSED) > 25


@pytest.mark.parametrize("number", range(len(ACCEPTED)))
def test_every_move_equals_pytorchs(script, number):
    case = ACCEPTED[number]
    moves = script.make_moves(case["seed"], case["moves"])
    states = script.simulate(case["settings"], case["capacity_mib"] << 20, moves)
    shown = states[:: case["moves"] // script.NUM_STATES]
    assert [list(state) for state in shown] == case["states"]
    assert script.digest(states) == case["digest"]


@pytest.mark.parametrize("text", REFUSED)
def test_settings_that_pytorch_refuses_are_refused(text):
    with pytest.raises(ConfigError, match="PYTORCH_ALLOC_CONF"):
        parse_alloc_conf(text)


def test_a_difference_would_be_seen(script):
    states = script.simulate("", 1 << 40, script.make_moves(0, 50))
    other = [*states[:30], states[30]._replace(reserved=1), *states[31:]]
    assert script.find_difference(states, states) == script.find_difference(None, None) == ""
    assert script.find_difference(states, other).startswith("move 30: PyTorch State(")
    assert script.find_difference(None, states) == "PyTorch refuses the settings"
    assert script.digest(states) != script.digest(other)
