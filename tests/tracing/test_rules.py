"""Tables of rules, and when a recorder uses them."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.kernel_recording import gpu_recording, site_of

from axmem_trace.kernels.experts.routing import Routing
from axmem_trace.kernels.install import INSTALLERS, gpu_rules
from axmem_trace.tracing.context import KernelContext
from axmem_trace.tracing.cuda_mode import CudaMode
from axmem_trace.tracing.recorder import Recorder
from axmem_trace.tracing.recording_mode import RecordingMode
from axmem_trace.tracing.rules import Rules

aten = torch.ops.aten


def one_byte(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    return 1


def two_bytes(context: KernelContext, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    return 2


def workspaces(recorder: Recorder) -> list[int]:
    return [each.nbytes for each in recorder.make_ledger().allocations if each.nbytes < 4]


def table(rule: Any) -> Rules:
    rules = Rules()
    rules.workspace(aten.sin.default)(rule)
    return rules


def test_a_rule_that_is_added_late_is_used():
    recording = RecordingMode()
    recorder = recording.recorder
    x = torch.empty(4, device="meta")
    with recording:
        x.sin()
        recording.add_rules(table(one_byte))
        x.sin()
    assert workspaces(recorder) == [1]


def test_a_decision_that_is_added_late_is_used():
    """Loading and training share a recorder. Once, the routers of a model whose initialisation calls `topk` were never
    decided."""
    recording = RecordingMode()
    recorder = recording.recorder
    scores = torch.empty(6, 4, device="meta")
    with recording:
        before = torch.topk(scores, 2).indices
        Routing([4]).attach(recording)
        after = torch.topk(scores, 2).indices
    assert recorder.known(before) is None
    assert recorder.known(after) is not None


def test_a_function_rule_that_is_added_late_is_used():
    recording = RecordingMode()
    late = Rules()
    late.function(F.silu)(lambda context, function, args, kwargs: "asked")
    with recording, CudaMode(recording).opened():
        x = torch.empty(4, device="meta")
        assert isinstance(F.silu(x), torch.Tensor)
        recording.add_rules(late)
        assert F.silu(x) == "asked"


def test_two_different_rules_for_one_operator_are_refused():
    with pytest.raises(AssertionError, match=r"two rules for aten\.sin\.default: one_byte and two_bytes"):
        Rules(table(one_byte), table(two_bytes))
    recording = RecordingMode(rules=table(one_byte))
    recording.add_rules(table(one_byte))
    with pytest.raises(AssertionError, match="two rules"):
        recording.add_rules(table(two_bytes))


def test_a_recording_has_its_own_table():
    rules = table(one_byte)
    RecordingMode(rules=rules).add_rules(gpu_rules())
    assert not rules.functions


def test_a_real_run_must_have_no_rules():
    with pytest.raises(AssertionError, match="a real run"):
        RecordingMode(KernelContext(recorder=Recorder("cpu")), gpu_rules())


def test_recorder_and_context_have_no_reference_to_the_mode():
    """References have one direction: the mode has the context, and the context has the recorder."""
    recording = RecordingMode(rules=gpu_rules())
    with recording:
        torch.empty(4, 4, device="meta") @ torch.empty(4, 4, device="meta")
    below = [*vars(recording.recorder).values(), *vars(recording.context).values()]
    assert recording.context.recorder is recording.recorder
    assert not any(each is recording or each is recording.context for each in below)


def test_operators_inside_a_rule_are_recorded_if_the_table_says_so():
    def add_twice(context: KernelContext, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0] + 1 + 1

    for recorded, count in ((False, 1), (True, 2)):
        rules = Rules()
        rules.dispatch(aten.sin.default, recorded=recorded)(add_twice)
        recording = RecordingMode(rules=rules)
        x = torch.empty(4, device="meta")
        with recording:
            x.sin()
        assert len(recording.recorder.make_ledger().allocations) == count


def test_filters_of_loggers_are_removed_again():
    pytest.importorskip("bitsandbytes")
    from axmem_trace.kernels.bitsandbytes.rules import _LOGGERS, install_quiet_bitsandbytes

    def filters() -> list[int]:
        return [len(logging.getLogger(name).filters) for name in _LOGGERS]

    before = filters()
    with site_of(gpu_recording()) as site:
        install_quiet_bitsandbytes(site)
        assert filters() == [count + 1 for count in before]
    assert filters() == before


def test_every_installer_takes_a_site_and_returns_nothing():
    for install in INSTALLERS:
        assert install.__annotations__ == {"site": "Site", "return": "None"}, install
