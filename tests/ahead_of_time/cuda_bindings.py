"""Compiles the CUDA half of every binding, with no GPU and against a torch that may have no CUDA either.

Each by itself, and in the groups of CMakeLists.txt that are one compilation when pip builds.

    python tests/ahead_of_time/cuda_bindings.py

Exit status: 0 if all is well or headers or the compiler are missing (said in one line), 1 if a binding or a
group does not compile. Nothing is linked.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[2]
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
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        yield "no Python headers"
    if not any(Path(folder, "c10", "cuda", "CUDAStream.h").exists() for folder in cpp_extension.include_paths()):
        yield "torch came without its c10/cuda headers"


def groups() -> list[list[Path]]:
    """The files of each group, in its order."""
    found = re.findall(r"set\(UNITY_GROUP_\w+ ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    return [[ROOT / name for name in names.split()] for names in found]


def with_cuda(sources: list[Path]) -> bool:
    return any("GANKERNELS_WITH_CUDA" in source.read_text() for source in sources)


def compile_together(sources: list[Path]) -> str:
    """The compiler's errors, empty if there are none."""
    folders = [*cpp_extension.include_paths(), str(cuda_headers()), sysconfig.get_path("include")]
    command = ["g++", *FLAGS, *(f"-isystem{folder}" for folder in folders), "-x", "c++", "-"]
    text = "".join(f'#include "{source}"\n' for source in sources)
    run = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    return run.stdout + run.stderr if run.returncode else ""


def main() -> int:
    if reasons := list(missing()):
        print(f"CUDA bindings not compiled: {'; '.join(reasons)}")
        return 0
    bindings = [[path] for path in sorted((ROOT / "csrc" / "torch").glob("*.cpp")) if with_cuda([path])]
    together = [group for group in groups() if with_cuda(group)]
    with ThreadPoolExecutor(JOBS) as pool:
        errors = [error for error in pool.map(compile_together, [*together, *bindings]) if error]
    print("\n".join(errors), end="", file=sys.stderr)
    print(f"{len(bindings)} CUDA bindings and {len(together)} groups of them: {len(errors)} failed")
    return 1 if errors or not bindings or not together else 0


if __name__ == "__main__":
    sys.exit(main())
