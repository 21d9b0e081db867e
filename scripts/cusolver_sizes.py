"""Compares the workspace that cuSOLVER requests with the workspace that is counted. Needs no GPU.

    python scripts/cusolver_sizes.py SITE_PACKAGES/nvidia/cu13/lib/libcusolver.so.12 [ROWSxCOLUMNS]...

A handle of cuSOLVER can't be created without a driver. The functions `..._bufferSize` only check whether parts of the
handle exist. Their results are the same for every number that fills the handle; this is checked for two numbers.

exit codes: 0 no result is above the counted workspace; 1 some are
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from axmem_trace.kernels.core import cusolver  # noqa: E402

_WORDS = 1 << 16
_FP32 = 0
"""`CUDA_R_32F`"""
_SOME = ctypes.c_void_p(0x1000)
"""An address that nothing reads."""


class Library:
    """cuSOLVER with a handle that is filled with a number."""

    def __init__(self, path: str, number: int) -> None:
        self._library = ctypes.CDLL(path)
        self._words = (ctypes.c_int * _WORDS)(*[number] * _WORDS)
        self._handle = ctypes.cast(self._words, ctypes.c_void_p)
        self._rotations, self._parameters = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cusolverDnCreateGesvdjInfo", ctypes.byref(self._rotations))
        self._call("cusolverDnCreateParams", ctypes.byref(self._parameters))

    def ask(self, rows: int, columns: int) -> dict[str, int]:
        """Bytes in fp32, by function, of a matrix [rows, columns]."""
        small = min(rows, columns)
        found = {"gesvdj": ctypes.c_int(), "gesvd": ctypes.c_int(), "orgqr": ctypes.c_int()}
        lda, tall = ctypes.c_int(rows), max(rows, columns)
        vectors = (1, 1, rows, columns, _SOME, lda, _SOME, _SOME, lda, _SOME, ctypes.c_int(columns))
        self._ask("cusolverDnSgesvdj_bufferSize", *vectors, ctypes.byref(found["gesvdj"]), self._rotations)
        self._ask("cusolverDnSgesvd_bufferSize", tall, small, ctypes.byref(found["gesvd"]))
        self._ask("cusolverDnSorgqr_bufferSize", rows, small, small, _SOME, rows, _SOME, ctypes.byref(found["orgqr"]))
        host, triangle, cholesky = (ctypes.c_size_t() for _ in range(3))
        m, n, parameters = ctypes.c_int64(rows), ctypes.c_int64(columns), self._parameters
        of_triangle = (m, n, _FP32, _SOME, m, _FP32, _SOME, _FP32)
        self._ask("cusolverDnXgeqrf_bufferSize", parameters, *of_triangle, ctypes.byref(triangle), ctypes.byref(host))
        of_square = (0, n, _FP32, _SOME, n, _FP32)
        self._ask("cusolverDnXpotrf_bufferSize", parameters, *of_square, ctypes.byref(cholesky), ctypes.byref(host))
        sizes = {name: 4 * elements.value for name, elements in found.items()}
        return {**sizes, "geqrf": triangle.value, "potrf": cholesky.value}

    def _ask(self, name: str, *arguments: Any) -> None:
        self._call(name, self._handle, *arguments)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")


def count(rows: int, columns: int) -> dict[str, int]:
    """The same by `axmem_trace`."""
    return {
        "gesvdj": 4 * cusolver.gesvdj_elements(rows, columns),
        "gesvd": 4 * cusolver.gesvd_elements(rows, columns),
        "orgqr": 4 * cusolver.orgqr_elements(rows, min(rows, columns)),
        "geqrf": cusolver.geqrf_bytes(columns, 4),
        "potrf": cusolver.potrf_bytes(columns, 4),
    }


def some_sizes(number: int) -> Iterator[tuple[int, int]]:
    """Sizes of 8 to 16,384, the same in each run; of larger ones `gesvd` asks for more than a 32-bit number says."""
    draw = random.Random(0)
    for _ in range(number):
        rows, columns = (round(2 ** draw.uniform(3, 14)) for _ in range(2))
        yield rows, draw.choice((columns, rows))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("sizes", nargs="*", metavar="ROWSxCOLUMNS", help="without: 1,000 sizes are compared")
    parsed = parser.parse_args(arguments)
    named = [tuple(map(int, each.split("x"))) for each in parsed.sizes]
    libraries = [Library(parsed.library, number) for number in (5, 1000)]
    missing: dict[str, int] = {}
    surplus: dict[str, float] = {}
    for rows, columns in named or some_sizes(1000):
        asked, again = (library.ask(rows, columns) for library in libraries)
        assert asked == again, "the answers depend on the handle"
        counted = count(rows, columns)
        for name, nbytes in asked.items():
            if named:
                print(f"{rows} x {columns} {name}: asked {nbytes}, counted {counted[name]}")
            missing[name] = max(missing.get(name, 0), nbytes - counted[name])
            surplus[name] = max(surplus.get(name, 0.0), (counted[name] - 8192) / nbytes - 1 if nbytes else 0.0)
    for name, nbytes in missing.items():
        print(f"{name}: at most {nbytes} bytes too low, and 8 KiB and {surplus[name]:.2%} too high")
    return int(any(missing.values()))


if __name__ == "__main__":
    sys.exit(main())
