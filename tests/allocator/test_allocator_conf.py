"""`PYTORCH_ALLOC_CONF`: as PyTorch reads it, checked with PyTorch's own parser if torch is installed."""

import subprocess
import sys

import pytest
from support.tiny_models import write_tiny_model

from axmem_trace.allocator import describe_settings, parse_alloc_conf
from axmem_trace.config import read_recipe
from axmem_trace.errors import ConfigError

MIB = 1 << 20
ACCEPTED = (
    "", "expandable_segments:True", "expandable_segments:False,", " expandable_segments : True , max_split_size_mb:30",
    "max_split_size_mb:20", "max_split_size_mb:-1", "max_split_size_mb:50x",
    "large_segment_size_mb:11,max_split_size_mb:12", "max_split_size_mb:12,large_segment_size_mb:11",
    "max_non_split_rounding_mb:20",
    "garbage_collection_threshold:0.8",
    "roundup_power2_divisions:16", "roundup_power2_divisions:1", "roundup_power2_divisions:[256:1,512:2,>:4]",
    "roundup_power2_divisions:[256:0,>:4]", "roundup_power2_divisions:[>:4]", "roundup_power2_divisions:[]",
    "roundup_power2_divisions:[256:1,]", "pinned_use_background_threads:True",
)  # fmt: skip
REFUSED = (
    "expandable_segments:true", "expandable_segments:", "foo", ",", "max_split_size_mb:19", "max_split_size_mb:abc",
    "max_split_size_mb 30", "max_split_size_mb:20,large_segment_size_mb:512", "large_segment_size_mb:10",
    "max_non_split_rounding_mb:1", "garbage_collection_threshold:0", "garbage_collection_threshold:1.0",
    "roundup_power2_divisions:3", "roundup_power2_divisions:0", "roundup_power2_divisions:[256:0,512:3,>:4]",
    "roundup_power2_divisions:[100:1]", "roundup_power2_divisions:[256:1", "roundup_power2_divisions:[256:1,512]",
    "expandable_segments:True max_split_size_mb:30",
)  # fmt: skip
ASK_TORCH = """
import sys
try:
    import torch
    torch._C._accelerator_setAllocatorSettings
except (ImportError, AttributeError):
    raise SystemExit(3)
torch._C._accelerator_setAllocatorSettings("")
for text in sys.stdin.read().split("\\n"):
    try:
        # a fresh state for sizes that are kept from one call to the next
        torch._C._accelerator_setAllocatorSettings("large_segment_size_mb:20")
        torch._C._accelerator_setAllocatorSettings(text)
        print("yes")
    except Exception:
        print("no")
"""


@pytest.mark.parametrize("text", ACCEPTED)
def test_accepted(text):
    assert parse_alloc_conf(text).settings == text


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text):
    with pytest.raises(ConfigError, match="PYTORCH_ALLOC_CONF"):
        parse_alloc_conf(text)


def test_torch_accepts_and_refuses_the_same():
    done = subprocess.run(
        [sys.executable, "-c", ASK_TORCH],
        input="\n".join(ACCEPTED + REFUSED),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if done.returncode == 3:
        pytest.skip("no torch with this parser here")
    answers = done.stdout.split()
    found = dict(zip(ACCEPTED + REFUSED, answers, strict=True))
    assert found == dict.fromkeys(ACCEPTED, "yes") | dict.fromkeys(REFUSED, "no")


def test_defaults_are_pytorchs():
    settings = parse_alloc_conf("")
    assert not settings.expandable_segments  # axolotl switches it on, PyTorch does not
    assert (settings.max_split_size_bytes, settings.roundup_power2_divisions, settings.backend) == (0, 0, "native")
    assert settings.large_segment_bytes == settings.max_non_split_rounding_bytes == 20 * MIB


def test_values():
    settings = parse_alloc_conf(
        "max_split_size_mb:128,garbage_collection_threshold:0.6,per_process_memory_fraction:0.5,"
        "large_segment_size_mb:32,max_non_split_rounding_mb:40,expandable_segments:True"
    )
    assert settings.max_split_size_bytes == 128 * MIB
    assert settings.garbage_collection_threshold == 0.6
    assert settings.per_process_memory_fraction == 0.5
    assert settings.large_segment_bytes == 32 * MIB
    assert settings.max_non_split_rounding_bytes == 40 * MIB
    assert settings.expandable_segments


def test_a_negative_split_size_wraps_to_no_limit():
    assert parse_alloc_conf("max_split_size_mb:-1").max_split_size_bytes == 0


def test_the_list_form_also_sets_classes_below_the_first_and_above_the_last():
    # boundaries in MiB; classes are 1, 2, 4, ... 32768. 256:1 fills 1..128 too; > fills from 1024 on
    found = parse_alloc_conf("roundup_power2_divisions:[256:1,512:2,>:4]").roundup_power2_divisions
    assert found == {1 << index: 1 if index <= 8 else 2 if index == 9 else 4 for index in range(16)}


def test_the_list_form_switches_missing_classes_off():
    found = parse_alloc_conf("roundup_power2_divisions:[4:2,16:8]").roundup_power2_divisions
    assert found == {1: 2, 2: 2, 4: 2, 8: 0, 16: 8} | {1 << index: 0 for index in range(5, 16)}


def test_an_unknown_option_names_the_known_ones():
    with pytest.raises(ConfigError, match="no option 'max_split_mb'") as caught:
        parse_alloc_conf("max_split_mb:64")
    assert "max_split_size_mb" in caught.value.accepted
    assert "expandable_segments" in caught.value.accepted


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync"])
def test_backends(backend):
    notes = describe_settings(parse_alloc_conf(f"backend:{backend}"))
    # the driver's own pool may reserve more or less than shown: there is no verdict in both cases
    found = [(note.kind, note.direction) for note in notes]
    assert found == ([] if backend == "native" else [("not_modelled", "either")])


def test_an_unknown_backend_is_refused():
    with pytest.raises(ConfigError, match="backend:mine") as caught:
        parse_alloc_conf("backend:mine")
    assert caught.value.accepted == "native or cudaMallocAsync"


def test_a_garbage_threshold_without_a_memory_limit_is_reported():
    (note,) = describe_settings(parse_alloc_conf("garbage_collection_threshold:0.8"))
    assert note.kind == "ignored"
    assert describe_settings(parse_alloc_conf("garbage_collection_threshold:0.8,per_process_memory_fraction:0.5")) == ()


@pytest.mark.parametrize(
    ("cuda", "every", "expandable"),
    [
        (None, None, True),
        (None, "max_split_size_mb:64", False),
        ("expandable_segments:True", "", True),
        ("expandable_segments:False", "expandable_segments:True", False),
        ("", "expandable_segments:True", False),
        (None, "", False),
        ("roundup_power2_divisions:4", "expandable_segments:True", False),
    ],
)
def test_one_variable_of_the_environment_counts(cuda, every, expandable, monkeypatch, tmp_path):
    # as in PyTorch itself (scripts/real_allocator.py): the first of the two that is set, even if it is empty
    for name, value in (("PYTORCH_CUDA_ALLOC_CONF", cuda), ("PYTORCH_ALLOC_CONF", every)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    config = {
        "base_model": str(write_tiny_model("llama", tmp_path)),
        "micro_batch_size": 1,
        "learning_rate": 1e-4,
        "datasets": [{"path": "x", "type": "alpaca"}],
    }
    assert read_recipe(config, hub="never").allocator.expandable_segments is expandable


def test_unset_options_follow_the_size_of_large_segments():
    """As in PyTorch itself (`scripts/real_allocator.py`): with a larger segment size, an oversize block may also exceed
    the request by this size."""
    assert parse_alloc_conf("large_segment_size_mb:32").max_non_split_rounding_bytes == 32 * MIB
    both = parse_alloc_conf("large_segment_size_mb:32,max_non_split_rounding_mb:40")
    assert both.max_non_split_rounding_bytes == 40 * MIB
    assert parse_alloc_conf("max_split_size_mb:40").max_non_split_rounding_bytes == 20 * MIB


def test_numbers_are_read_as_in_cpp():
    assert parse_alloc_conf("per_process_memory_fraction:0x1p-1").per_process_memory_fraction == 0.5
    for refused in ("max_split_size_mb:18446744073709551616", "roundup_power2_divisions:[256:1,,512:2]"):
        with pytest.raises(ConfigError, match="refuses"):
            parse_alloc_conf(refused)
