"""Cards by name and by size."""

from __future__ import annotations

import pytest

from axmem_trace.catalogue.gpus import CARDS, CONTEXT_BYTES_BY_GENERATION, _fold, find_gpu, supports_bf16
from axmem_trace.config.derive.hardware import derive_gpu
from axmem_trace.errors import ConfigError
from axmem_trace.units import GIB


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx-4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("a100 40gb", "A100-40GB"),
        ("A100", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("h100 nvl", "H100 NVL"),
        ("v100-32gb", "V100-32GB"),
        ("Tesla T4", "T4"),
        ("rtx a6000", "RTX A6000"),
        ("RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell"),
        ("b200", "B200"),
        ("rtx 3060 12GB", "RTX 3060"),
    ],
)
def test_names(text, name):
    assert find_gpu(text).name == name


def test_no_two_cards_share_a_name():
    owners: dict[str, set[str]] = {}
    for card in CARDS:
        for name in (card.name, *card.other_names):
            owners.setdefault(_fold(name), set()).add(card.name)
    assert {name: cards for name, cards in owners.items() if len(cards) > 1} == {}


def test_every_card_is_plausible():
    for card in CARDS:
        gpu = find_gpu(card.name)
        assert gpu.name == card.name
        assert gpu.compute_capability in CONTEXT_BYTES_BY_GENERATION
        assert 0.2 * GIB <= gpu.context_bytes <= 0.7 * GIB
        assert 7 * GIB < gpu.memory_bytes < 300 * GIB


def test_usable_memory_is_less_than_the_box_says():
    assert 79 * GIB < find_gpu("A100-80GB").memory_bytes < 80 * GIB
    assert 23 * GIB < find_gpu("RTX 4090").memory_bytes < 24 * GIB


@pytest.mark.parametrize(("text", "nbytes"), [("24GiB", 24 << 30), ("80GB", 80 * 10**9), (" 8 GiB ", 8 << 30)])
def test_sizes(text, nbytes):
    assert find_gpu(text).memory_bytes == nbytes


def test_bf16_starts_with_ampere():
    assert not supports_bf16(find_gpu("V100"))
    assert not supports_bf16(find_gpu("T4"))
    assert supports_bf16(find_gpu("A100"))
    assert supports_bf16(find_gpu("24GiB"))


@pytest.mark.parametrize("text", ["", "A1000000", "80", "5 TiB", "-3GB", "1e9GB", "nan", "9" * 500 + "GiB", "24GG"])
def test_unknown(text):
    with pytest.raises(ConfigError):
        find_gpu(text)


def test_a_misspelt_name_gets_the_nearest():
    with pytest.raises(ConfigError, match="RTX 5090"):
        find_gpu("RTX 50900")


@pytest.mark.parametrize("text", ["MI300X", "AMD MI250", "Radeon RX 7900", "Gaudi2", "TPU v5e", "Apple M3 Max"])
def test_no_cuda(text):
    with pytest.raises(ConfigError, match="no CUDA GPU"):
        find_gpu(text)


def test_without_a_card_the_context_is_that_of_a_card_known_by_size_alone():
    unnamed, sized = derive_gpu("", 0), derive_gpu("24GiB", 0)
    assert unnamed.memory_bytes == 0
    assert unnamed.context_bytes == sized.context_bytes == 430 * 2**20
    assert supports_bf16(unnamed)
