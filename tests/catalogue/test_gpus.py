"""Cards by name, MIG slices, and sizes."""

from __future__ import annotations

from collections import Counter

import pytest

from axmem_trace.catalogue.cards import CARDS
from axmem_trace.catalogue.gpus import (
    CONTEXT_BYTES_BY_GENERATION,
    _fold,
    find_gpu,
    list_cards,
    split_count,
)
from axmem_trace.config.derive.hardware import derive_gpu
from axmem_trace.errors import ConfigError
from axmem_trace.units import GIB


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx-4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("a100 40gb", "A100-40GB"),
        ("h100 nvl", "H100 NVL"),
        ("v100-32gb", "V100-32GB"),
        ("V100 32GB", "V100-32GB"),
        ("T4 16GB", "T4"),
        ("L4 24 GB", "L4"),
        ("RTX 4080 mobile", "RTX 4080 Laptop"),
        ("rtx a6000", "RTX A6000"),
        ("RTX PRO 6000", "RTX PRO 6000 Blackwell"),
        ("b200", "B200"),
        ("rtx 3060 12GB", "RTX 3060 12GB"),
        ("DGX Spark", "GB10"),
    ],
)
def test_names(text, name):
    assert find_gpu(text).name == name


@pytest.mark.parametrize(
    ("printed", "name"),
    [
        ("Tesla P100-PCIE-16GB", "P100-16GB"),
        ("Tesla P100-PCIE-12GB", "P100-12GB"),
        ("Tesla P40", "P40"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla V100S-PCIE-32GB", "V100-32GB"),
        ("Tesla T4", "T4"),
        ("NVIDIA A2", "A2"),
        ("NVIDIA A10G", "A10G"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA A100-SXM-64GB", "A100-64GB"),
        ("NVIDIA A800 40GB Active", "A800-40GB"),
        ("NVIDIA L20", "L20"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H20-3e", "H20-141GB"),
        ("NVIDIA GH200 120GB", "GH200-96GB"),
        ("NVIDIA GH200 144G HBM3e", "GH200-144GB"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB10", "GB10"),
        ("NVIDIA TITAN RTX", "TITAN RTX"),
        ("NVIDIA GeForce GTX 1650", "GTX 1650"),
        ("NVIDIA GeForce GTX 1650 with Max-Q Design", "GTX 1650"),
        ("NVIDIA GeForce GTX 1660 SUPER", "GTX 1660"),
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "RTX 4060 Laptop"),
        ("NVIDIA GeForce RTX 5090 Laptop GPU", "RTX 5090 Laptop"),
        ("NVIDIA RTX A2000 12GB", "RTX A2000 12GB"),
        ("NVIDIA RTX A2000", "RTX A2000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX 5000 Ada Generation Laptop GPU", "RTX 5000 Ada Laptop"),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "RTX PRO 6000 Blackwell"),
        ("Quadro RTX 6000", "Quadro RTX 6000"),
    ],
)
def test_a_name_from_nvidia_smi_is_one_card(printed, name):
    gpu = find_gpu(printed)
    assert gpu.name == name
    assert not any("several cards" in remark for remark in gpu.remarks)


@pytest.mark.parametrize(
    ("text", "taken", "other"),
    [
        ("A100", "A100-80GB (79.15 GiB)", "A100-40GB (39.39 GiB)"),
        ("V100", "V100-16GB (15.77 GiB)", "V100-32GB (31.73 GiB)"),
        ("H100", "H100-80GB (79.10 GiB)", "H100 NVL (93.00 GiB)"),
        ("NVIDIA GeForce RTX 3060", "RTX 3060 12GB (11.76 GiB)", "RTX 3060 8GB (7.78 GiB)"),
        ("RTX 4060 Ti", "RTX 4060 Ti 16GB (15.60 GiB)", "RTX 4060 Ti 8GB (7.63 GiB)"),
        ("RTX 6000", "RTX 6000 Ada (47.50 GiB)", "Quadro RTX 6000 (23.65 GiB)"),
        ("A100 1g.10gb", "A100-80GB MIG 1g.10gb (9.50 GiB)", "A100-40GB MIG 1g.10gb (9.62 GiB)"),
    ],
)
def test_an_ambiguous_name_reports_which_card_is_used(text, taken, other):
    gpu = find_gpu(text)
    assert gpu.name == taken.partition(" (")[0]
    (remark, *_) = gpu.remarks
    assert f"{taken} is used" in remark
    assert other in remark.partition("is used")[2]


def test_an_exact_name_is_never_ambiguous():
    assert {name: number for name, number in Counter(_fold(card.name) for card in CARDS).items() if number > 1} == {}
    for card in CARDS:
        gpu = find_gpu(card.name)
        assert (gpu.name, gpu.memory_bytes) == (card.name, round(card.gib * GIB))
        assert not any("several cards" in remark for remark in gpu.remarks)


def test_every_card_and_slice_is_plausible_and_found_by_its_name():
    for card in list_cards():
        gpu = find_gpu(card.name)
        assert (gpu.name, gpu.memory_bytes) == (card.name, round(card.gib * GIB))
        assert gpu.compute_capability in CONTEXT_BYTES_BY_GENERATION
        assert 0.2 * GIB <= gpu.context_bytes <= 0.7 * GIB
        assert 2 * GIB < gpu.memory_bytes < 300 * GIB
        # less than advertised: 1 % less for large cards, up to 12 % less if ECC or the system uses a part
        # ... and MIG slices may lose a little more (1g.6gb of an A30)
        assert 0.85 < card.gib / card.nominal_gb < 1


@pytest.mark.parametrize(
    ("text", "name", "gib"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "A100-40GB MIG 3g.20gb", 19.50),
        ("A100-SXM4-40GB MIG 1g.5gb+me", "A100-40GB MIG 1g.5gb", 4.75),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "H100-80GB MIG 1g.10gb", 9.50),
        ("H100 1g.10gb", "H100-80GB MIG 1g.10gb", 9.50),
        ("MIG 1g.5gb", "A100-40GB MIG 1g.5gb", 4.75),
        # an eighth of 139.81 GiB, and a quarter of 23.50, less 8.5 %
        ("H200 MIG 1g.18gb", "H200 MIG 1g.18gb", 15.99),
        ("A30 1g.6gb", "A30 MIG 1g.6gb", 5.38),
        # 2/8 of 267 GiB less 8.5 %; a share of 270 GB is 67.5, which NVIDIA writes as 67
        ("B300 1g.67gb", "B300 MIG 1g.67gb", 61.08),
    ],
)
def test_mig_slices(text, name, gib):
    gpu = find_gpu(text)
    assert gpu.name == name
    assert gpu.memory_bytes == round(gib * GIB)


@pytest.mark.parametrize("text", ["A100 5g.5gb", "RTX 4090 1g.10gb", "A100-40GB 1g.40gb", "MIG 1g.999gb"])
def test_a_profile_that_the_card_does_not_have(text):
    with pytest.raises(ConfigError, match="has no MIG profile"):
        find_gpu(text)


def test_slices_of_an_unknown_card():
    with pytest.raises(ConfigError, match="no GPU named 'A1000000' is known"):
        find_gpu("A1000000 1g.10gb")


def test_usable_memory_is_less_than_the_advertised_memory():
    assert 79 * GIB < find_gpu("A100-80GB").memory_bytes < 80 * GIB
    assert 23 * GIB < find_gpu("RTX 4090").memory_bytes < 24 * GIB


def test_old_cards_and_shared_memory_have_a_remark():
    assert "no kernels for it" in " ".join(find_gpu("V100-32GB").remarks)
    assert "no kernels for it" in " ".join(find_gpu("P100").remarks)
    assert find_gpu("T4").remarks == ()
    assert "no memory of its own" in " ".join(find_gpu("GB10").remarks)


@pytest.mark.parametrize(("text", "nbytes"), [("24GiB", 24 << 30), ("80GB", 80 * 10**9), (" 8 GiB ", 8 << 30)])
def test_sizes(text, nbytes):
    assert find_gpu(text).memory_bytes == nbytes


@pytest.mark.parametrize("text", ["", "A1000000", "5 TiB", "-3GB", "1e9GB", "nan", "9" * 500 + "GiB", "24GG", "0x4090"])
def test_unknown(text):
    with pytest.raises(ConfigError):
        find_gpu(text)


def test_a_misspelt_name_lists_the_nearest_names():
    with pytest.raises(ConfigError, match="RTX 5090"):
        find_gpu("RTX 50900")


def test_a_number_without_a_unit_suggests_a_unit():
    with pytest.raises(ConfigError) as caught:
        find_gpu("24")
    # 24 x 1000^3 / 1024^3 = 22.35
    assert "'24' has no unit" in str(caught.value)
    assert "24GiB" in caught.value.accepted
    assert "22.35 GiB" in caught.value.accepted
    assert "RTX 4090" in caught.value.remedy
    with pytest.raises(ConfigError, match="between 512MiB and 2TiB"):
        find_gpu("80000000")


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("4 x A100-40GB", 4, "A100-40GB"),
        ("4x A100-40GB", 4, "A100-40GB"),
        ("2xA100", 2, "A100"),
        ("8*H100", 8, "H100"),
        ("8 \u00d7 H100", 8, "H100"),
        ("2x4090", 2, "4090"),
        ("2 x 24GiB", 2, "24GiB"),
        ("4090", 0, "4090"),
        ("24GiB", 0, "24GiB"),
        ("XE 4", 0, "XE 4"),
    ],
)
def test_a_number_of_cards(text, count, name):
    assert split_count(text) == (count, name)


@pytest.mark.parametrize("text", ["0 x A100", "00xH100"])
def test_no_card_at_all_is_an_error(text):
    with pytest.raises(ConfigError, match="at least 1 is needed"):
        split_count(text)


@pytest.mark.parametrize(
    ("text", "maker"),
    [
        ("MI300X", "AMD"),
        ("AMD Instinct MI300X", "AMD"),
        ("AMD MI250", "AMD"),
        ("Radeon RX 7900", "AMD"),
        ("Radeon Pro W7900", "AMD"),
        ("7900 XTX", "AMD"),
        ("9070 XT", "AMD"),
        ("Strix Halo", "AMD"),
        ("Gaudi2", "Intel"),
        ("Intel Arc B580", "Intel"),
        ("Intel Data Center GPU Max 1550", "Intel"),
        ("TPU v5e", "Google"),
        ("v5litepod-8", "Google"),
        ("Apple M3 Max", "Apple"),
        ("M4", "Apple"),
        ("AWS Trainium2", "Amazon"),
        ("Ascend 910B", "Huawei"),
    ],
)
def test_cards_of_other_manufacturers_are_refused_with_a_reason(text, maker):
    with pytest.raises(ConfigError, match=f"not a CUDA GPU; it is made by {maker}: .*(allocator|memory)"):
        find_gpu(text)


@pytest.mark.parametrize("text", ["inf", "info"])
def test_a_word_that_only_begins_like_another_manufacturer_is_unknown(text):
    with pytest.raises(ConfigError, match="no GPU named"):
        find_gpu(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a100-80", "A100-80GB"),
        ("A100 40G", "A100-40GB"),
        ("RTX 3080 12", "RTX 3080 12GB"),
        ("RTX PRO 6000 Blackwell Max-Q", "RTX PRO 6000 Blackwell"),
    ],
)
def test_a_size_after_a_name_needs_no_unit(text, name):
    assert find_gpu(text).name == name


def test_without_a_card_the_context_is_that_of_a_card_named_by_its_size():
    unnamed, sized = derive_gpu("", 0), derive_gpu("24GiB", 0)
    assert unnamed.memory_bytes == 0
    assert unnamed.context_bytes == sized.context_bytes == 430 * 2**20
    assert unnamed.compute_capability >= (8, 0)
