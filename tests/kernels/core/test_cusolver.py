"""Decompositions: what cuSOLVER asks for, and what PyTorch allocates around it."""

from __future__ import annotations

import pytest
import torch
from support.core_probe import FP32, leaf, record, sizes

from axmem_trace.kernels.core import cusolver

ASKED = {
    # by `scripts/cusolver_sizes.py`, cuSOLVER 12.0.4, bytes in fp32: gesvdj, gesvd, orgqr, geqrf, potrf
    (1024, 4096): (44_311_552, 67_400_704, 1_639_424, 18_874_496, 65_664),
    (4096, 1024): (27_534_336, 67_400_704, 3_212_288, 6_291_584, 4_224),
    (4096, 4096): (135_549_440, 205_849_600, 6_358_016, 18_874_496, 65_664),
    (11008, 4096): (267_420_672, 754_020_352, 9_896_960, 18_874_496, 65_664),
    (4096, 11008): (447_775_744, 754_020_352, 6_358_016, 47_186_048, 473_472),
}


@pytest.mark.parametrize("shape", ASKED)
def test_what_the_library_asks_for_is_counted(shape: tuple[int, int]) -> None:
    """Never less; more by rounding, and for `gesvd`, a bound, by up to an eighth."""
    rows, columns = shape
    gesvdj, gesvd, orgqr, geqrf, potrf = ASKED[shape]
    counted = {
        4 * cusolver.gesvdj_elements(rows, columns): gesvdj,
        4 * cusolver.orgqr_elements(rows, min(rows, columns)): orgqr,
        cusolver.geqrf_bytes(columns, 4): geqrf,
        cusolver.potrf_bytes(columns, 4): potrf,
    }
    assert all(0 <= ours - asked <= 512 for ours, asked in counted.items())
    assert gesvd <= 4 * cusolver.gesvd_elements(rows, columns) <= 1.14 * gesvd


def test_a_square_by_hand() -> None:
    # 2 * 64 * 64 = 8192; 64 * 64 / 256 = 16; 65 * 64 = 4160; 64 / 32 = 2; 1024; 128: the library asks for 13,408
    assert cusolver.gesvdj_elements(64, 64) == 8192 + 16 + 4160 + 2 + 1024 + 128


def test_singular_values() -> None:
    matrix = leaf(1024, 4096, dtype=FP32, trains=False)
    found = record(lambda: torch.linalg.svd(matrix, full_matrices=False)[1])
    # a status word, the column-major copy of 1024 * 4096 * 4 bytes, and what gesvdj asks for, in this order
    assert sizes(found, op=cusolver.SVD)[-3:] == [4, 16_777_216, 44_312_064]


def test_orthogonal_and_triangular_matrix() -> None:
    """PyTorch's CUDA build: factors of 4 * 1024 bytes, status, workspace; a tall matrix is copied where only R is wanted."""
    wide, tall = (leaf(*shape, dtype=FP32, trains=False) for shape in ((1024, 4096), (4096, 1024)))
    op = "aten.linalg_qr.default"
    found = record(lambda: torch.linalg.qr(wide)[0])
    assert sizes(found, op=op)[-3:] == [4096, 4, 18_874_880]
    found = record(lambda: torch.linalg.qr(tall)[0])
    assert sizes(found, op=op)[-3:] == [4096, 4, 6_291_968]
    found = record(lambda: torch.linalg.qr(tall, mode="r")[1])
    assert sizes(found, op=op)[-4:] == [4096, 16_777_216, 4, 6_291_968]


def test_cholesky() -> None:
    square = leaf(4096, 4096, dtype=FP32, trains=False)
    found = record(lambda: torch.linalg.cholesky_ex(square)[0])
    # 4096 * 4096 / 1024 words of fp32, and 256 bytes
    assert sizes(found, op="aten.linalg_cholesky_ex.default")[-1:] == [65_536 + 256]
