"""Compiles every CUDA kernel for three generations of GPUs, with no GPU, and refuses spills.

    python tests/ahead_of_time/cuda_kernels.py [--verbose]

Exit status: 0 if all is well or there is no nvcc (said in one line), 1 if a file does not compile or a kernel keeps
registers in memory.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
FLAGS = ("-O3", "-std=c++17", "-Xptxas", "-v")
JOBS = 2


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel, in registers and bytes."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spills: int


@dataclass(frozen=True)
class Compilation:
    """One source for one architecture."""

    source: str
    architecture: str
    error: str
    kernels: tuple[Kernel, ...]


def find_nvcc() -> str | None:
    """The compiler: that of CUDA_HOME, or the one in PATH."""
    home = os.environ.get("CUDA_HOME")
    return (shutil.which("nvcc", path=str(Path(home) / "bin")) if home else None) or shutil.which("nvcc")


def kernel_name(symbol: str) -> str:
    """A mangled name's innermost function, which is the component that ends in _kernel."""
    lengths_and_tails = ((int(m[1]), symbol[m.end() :]) for m in re.finditer(r"(?<!\d)(\d+)(?=[a-z_])", symbol))
    names = [tail[:length] for length, tail in lengths_and_tails]
    return next((name for name in names if name.endswith("_kernel")), symbol)


def parse(log: str, architecture: str) -> Iterator[Kernel]:
    """Reads the report of ``ptxas -v``."""

    def number(pattern: str, text: str) -> int:
        return sum(int(n) for n in re.findall(pattern, text))

    for entry in log.split("Compiling entry function '")[1:]:
        yield Kernel(
            name=kernel_name(entry.split("'", 1)[0]),
            architecture=architecture,
            registers=number(r"Used (\d+) registers", entry),
            shared=number(r"(\d+) bytes smem", entry),
            stack=number(r"(\d+) bytes stack frame", entry),
            spills=number(r"(\d+) bytes spill", entry),
        )


def compile_source(nvcc: str, source: Path, architecture: str) -> Compilation:
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(Path(folder) / "kernels.cubin")
        command = [nvcc, *FLAGS, f"-arch={architecture}", "-cubin", str(source), "-o", cubin]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    log = run.stdout + run.stderr
    error = log if run.returncode else ""
    return Compilation(source.name, architecture, error, tuple(parse(log, architecture)))


def print_table(kernels: list[Kernel], verbose: bool) -> None:
    """One row for each kernel and architecture, the worst over its instances; with ``verbose``, for each instance."""
    print(f"{'kernel':<36} {'arch':<7} {'instances':>9} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7}")
    ordered = sorted(kernels, key=lambda k: (k.name, ARCHITECTURES.index(k.architecture)))
    for (name, architecture), group in groupby(ordered, key=lambda k: (k.name, k.architecture)):
        instances = list(group)
        for rows in [[k] for k in instances] if verbose else [instances]:
            registers, shared, stack, spills = (
                max(getattr(k, figure) for k in rows) for figure in ("registers", "shared", "stack", "spills")
            )
            print(f"{name:<36} {architecture:<7} {len(rows):>9} {registers:>9} {shared:>7} {stack:>6} {spills:>7}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile every CUDA kernel ahead of time and refuse spills.")
    parser.add_argument("--verbose", action="store_true", help="a row for every instance of a kernel")
    verbose = parser.parse_args().verbose

    nvcc = find_nvcc()
    if nvcc is None:
        print("CUDA kernels not compiled: nvcc is neither in CUDA_HOME nor in PATH")
        return 0
    sources = sorted(SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(JOBS) as pool:
        jobs = [pool.submit(compile_source, nvcc, s, a) for s in sources for a in ARCHITECTURES]
        compilations = [job.result() for job in jobs]

    kernels = [kernel for c in compilations for kernel in c.kernels]
    print_table(kernels, verbose)
    failed = [c for c in compilations if c.error or not c.kernels]
    for c in failed:
        print(f"{c.source} for {c.architecture} does not compile or has no kernel:\n{c.error}", file=sys.stderr)
    spilling = [k for k in kernels if k.stack or k.spills]
    for k in spilling:
        print(f"{k.name} for {k.architecture}: {k.stack} bytes of stack, {k.spills} of spills", file=sys.stderr)
    print(f"{len(sources)} files, {len(kernels)} kernels: {len(failed)} failed, {len(spilling)} spilling")
    return 1 if failed or spilling or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
