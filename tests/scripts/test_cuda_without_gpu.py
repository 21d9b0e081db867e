"""`scripts/cuda_without_gpu.py`: the parts that can be tested without a CUDA wheel of PyTorch."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from support.scripts import SCRIPTS, load_script

SCRIPT = load_script("cuda_without_gpu")
needs_compiler = pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("nm")), reason="needs gcc and nm")


def test_a_failed_build_is_reported(tmp_path, capsys, monkeypatch):
    def run(*command):
        raise subprocess.CalledProcessError(1, command, stderr="cuda.h: no such file")

    monkeypatch.setattr(SCRIPT, "_run", run)
    assert SCRIPT.main([str(tmp_path), str(tmp_path), "true"]) == 2
    assert "cuda.h" in capsys.readouterr().err


@needs_compiler
def test_functions_that_a_library_calls(tmp_path):
    """A library calls two functions of a runtime. One of them is unknown to us."""
    packages = tmp_path / "torch" / "lib"
    packages.mkdir(parents=True)
    names = ("cudaMalloc", "cudaGraphDebugDotPrint")
    (tmp_path / "runtime.c").write_text("".join(f"void {name}(void) {{}}\n" for name in names))
    (tmp_path / "caller.c").write_text(
        "".join(f"void {name}(void);\n" for name in names)
        + f"void call(void) {{ {' '.join(f'{name}();' for name in names)} }}\n"
    )
    (tmp_path / "versions").write_text("libcudart.so.13 { global: cuda*; };\n")
    runtime = tmp_path / "libcudart.so.13"
    shared = ("gcc", "-shared", "-fPIC")
    subprocess.run(
        [
            *shared,
            str(tmp_path / "runtime.c"),
            f"-Wl,--version-script={tmp_path / 'versions'}",
            f"-Wl,-soname,{runtime.name}",
            "-o",
            str(runtime),
        ],
        check=True,
    )
    subprocess.run(
        [*shared, str(tmp_path / "caller.c"), str(runtime), "-o", str(packages / "libcaller.so")], check=True
    )
    assert SCRIPT.list_wanted(tmp_path)["cudart"] == set(names)


@needs_compiler
def test_functions_of_closed_libraries_return_handles_and_sizes(tmp_path):
    """Handles are different from each other, and sizes are 0."""
    source = SCRIPTS / "fake_cuda" / "libraries.c"
    program = tmp_path / "program.c"
    program.write_text(
        f'#define LIB_cublas\n#define LIB_cudnn\n#include "{source}"\n'
        "int main(void) { void *one, *two; long size = 7, found; cublasCreate_v2(&one); cudnnCreate(&two);\n"
        "  cudnnBackendGetAttribute(0, 402, 3, 1, &found, &size);\n"
        "  return one == two || size != 0 || found != 1; }\n"
    )
    subprocess.run(["gcc", "-w", str(program), "-o", str(tmp_path / "program")], check=True)
    assert subprocess.run([str(tmp_path / "program")], check=False).returncode == 0
