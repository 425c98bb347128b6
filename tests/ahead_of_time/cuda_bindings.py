"""Compiles the CUDA half of every binding, with no GPU and against a torch that may have no CUDA either.

    python tests/ahead_of_time/cuda_bindings.py

Exit status: 0 if all is well or the CUDA headers or the compiler are missing (said in one line), 1 if a binding does
not compile. Nothing is linked.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "torch"
# C10_CUDA_NO_CMAKE_CONFIGURE_FILE: a torch for the CPU lacks the header that torch for CUDA generates.
FLAGS = (
    "-fsyntax-only",
    "-std=c++20",
    "-Wall",
    "-fopenmp",
    "-DGANKERNELS_WITH_CUDA",
    "-DC10_CUDA_NO_CMAKE_CONFIGURE_FILE",
)
JOBS = 2


def cuda_headers() -> Path | None:
    """The toolkit's: of CUDA_HOME, of the nvcc in PATH, or of the usual place."""
    nvcc = shutil.which("nvcc")
    homes = (os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda")
    folders = (Path(home, "include") for home in homes if home)
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").exists()), None)


def missing() -> Iterator[str]:
    if cuda_headers() is None:
        yield "no CUDA toolkit's headers in CUDA_HOME, beside nvcc or in /usr/local/cuda"
    if shutil.which("g++") is None:
        yield "no g++"
    if not any(Path(folder, "c10", "cuda", "CUDAStream.h").exists() for folder in cpp_extension.include_paths()):
        yield "torch came without its c10/cuda headers"


def compile_binding(source: Path) -> str:
    """The compiler's errors, empty if there are none."""
    folders = [*cpp_extension.include_paths(), str(cuda_headers())]
    command = ["g++", *FLAGS, *(f"-isystem{folder}" for folder in folders), str(source)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr if run.returncode else ""


def main() -> int:
    if reasons := list(missing()):
        print(f"CUDA bindings not compiled: {'; '.join(reasons)}")
        return 0
    sources = sorted(path for path in SOURCES.glob("*.cpp") if "GANKERNELS_WITH_CUDA" in path.read_text())
    with ThreadPoolExecutor(JOBS) as pool:
        errors = [error for error in pool.map(compile_binding, sources) if error]
    print("\n".join(errors), end="", file=sys.stderr)
    print(f"{len(sources)} CUDA bindings: {len(errors)} failed")
    return 1 if errors or not sources else 0


if __name__ == "__main__":
    sys.exit(main())
