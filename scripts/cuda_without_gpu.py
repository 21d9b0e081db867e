"""Runs a program with PyTorch's CUDA build on a machine without a GPU: everything runs except the kernels.

    python scripts/cuda_without_gpu.py SITE_PACKAGES CUDA_INCLUDE COMMAND...
    python scripts/cuda_without_gpu.py VENV/lib/python3.11/site-packages /usr/local/cuda/include \\
        VENV/bin/python scripts/measure_on_gpu.py --recipes -o tests/measured/without_gpu

SITE_PACKAGES contains a CUDA wheel of PyTorch (2.11 or later, CUDA 13) and its NVIDIA libraries; CUDA_INCLUDE contains
the headers of the CUDA toolkit. CUDA's runtime, cuBLAS, cuBLASLt, cuDNN and the driver are replaced by the code in
`fake_cuda/`: memory is host memory, and the launch of a kernel succeeds and does nothing. So PyTorch itself allocates
the same kept and temporary tensors as on an H100, in the same blocks of its caching allocator. Three things are not
real: values (nothing may depend on them), time, and the memory that the closed libraries allocate themselves. Needs
gcc, g++ and nm.

With FAKE_RANKS=N, `measure_on_gpu.py` runs rank 0 of N with PyTorch's `fake` process group: collectives do nothing, and
NCCL needs no memory.

FAKE_CUDA_BYTES, FAKE_CUDA_NAME, FAKE_CUDA_MAJOR, FAKE_CUDA_MINOR, FAKE_CUDA_SMS and FAKE_CUDA_SHARED (bytes of shared
memory that a block may request) make it another card. FAKE_CUDA_BYTE=1 means that no mask contains a zero and that no
row is packed; `measure_on_gpu.py` sets it from the configuration, if it is not set.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

FAKE_CUDA = Path(__file__).resolve().parent / "fake_cuda"
NAME = "no GPU: PyTorch's CUDA build with an H100's properties"
LIBRARIES = {
    "cudart": "libcudart.so.13",
    "cublas": "libcublas.so.13",
    "cublasLt": "libcublasLt.so.13",
    "cudnn": "libcudnn.so.9",
    "cuda": "libcuda.so.1",
}
"""The replaced libraries, and the name by which programs load each of them."""
CALLERS = ("torch/lib/lib*.so", "bitsandbytes/libbitsandbytes_cuda13*.so")


def build(place: Path, packages: Path, cuda_include: Path) -> str:
    """Makes the libraries in `place`; returns those to preload."""
    wanted = list_wanted(packages)
    for library, file in LIBRARIES.items():
        source = FAKE_CUDA / ("runtime.cpp" if library == "cudart" else "libraries.c")
        # missing functions of the runtime must not be called; functions of the other libraries succeed
        body = "abort(); return 0;" if library == "cudart" else "return 0;"
        stubs = place / f"{library}.c"
        lines = [f"__attribute__((weak)) int {name}(void) {{ {body} }}" for name in sorted(wanted[library])]
        stubs.write_text("\n".join(["#include <stdlib.h>", *lines, ""]), encoding="utf-8")
        versions = place / f"{library}.versions"
        versions.write_text(f"{file} {{ global: cu*; __cuda*; local: *; }};\n", encoding="utf-8")
        made = [str(place / f"{library}.stubs.o"), str(place / f"{library}.o")]
        options = ("-w", "-c", "-fPIC", "-O1", f"-DLIB_{library}", f"-I{cuda_include}")
        _run("gcc", *options, str(stubs), "-o", made[0])
        _run("g++" if source.suffix == ".cpp" else "gcc", *options, str(source), "-o", made[1])
        _run(
            "g++", "-shared", *made, f"-Wl,--version-script={versions}", f"-Wl,-soname,{file}", "-o", str(place / file)
        )
    management = place / "libnvidia-ml.so.1"
    _run(
        "gcc",
        "-w",
        "-shared",
        "-fPIC",
        str(FAKE_CUDA / "management.c"),
        f"-Wl,-soname,{management.name}",
        "-o",
        str(management),
    )
    return ":".join(str(place / file) for library, file in LIBRARIES.items() if library != "cuda")


def list_wanted(packages: Path) -> dict[str, set[str]]:
    """The functions of each library that PyTorch and bitsandbytes call."""
    wanted: dict[str, set[str]] = {library: set() for library in LIBRARIES}
    for path in (path for pattern in CALLERS for path in packages.glob(pattern)):
        for name, library in re.findall(r" U (\w+)@lib(\w+)\.so", _run("nm", "-D", "--undefined-only", str(path))):
            if library in wanted:
                wanted[library].add(name)
        if path.name == "libcaffe2_nvrtc.so":  # the driver's functions have no versions
            wanted["cuda"] |= set(
                re.findall(r" U (cu[A-Z]\w+)$", _run("nm", "-D", "--undefined-only", str(path)), re.M)
            )
    return wanted


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site_packages", type=Path)
    parser.add_argument("cuda_include", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        try:
            preloaded = build(Path(place), parsed.site_packages, parsed.cuda_include)
        except (OSError, subprocess.CalledProcessError) as error:
            print(getattr(error, "stderr", "") or error, file=sys.stderr)
            return 2
        environment = {"FAKE_CUDA_NAME": NAME, **os.environ, "LD_PRELOAD": preloaded, "LD_LIBRARY_PATH": place}
        return subprocess.run(parsed.command, check=False, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
