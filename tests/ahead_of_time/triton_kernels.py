"""Compile every Triton kernel for the GPUs that are supported, with no GPU, and fail on what would not run well there.

    python tests/ahead_of_time/triton_kernels.py

Kernels are found through ``specialisations()`` of gankernels/ops/*/kernels.py. Prints a table of registers; exits 1
where a kernel does not compile, spills or asks for more shared memory than there is, 0 otherwise, also where triton is
not installed (and says so). A specialisation that has ``capabilities`` is compiled for those alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITIES = (80, 90, 100)
# Bytes that one block may have: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
ROOT = Path(__file__).resolve().parents[2]

# ptxas -v: "Used 40 registers, ..." and "... 0 bytes spill stores, 0 bytes spill loads".
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill (?:stores|loads)")


class Job(NamedTuple):
    """The index of a specialisation in its module's list, and the compute capability to compile it for."""

    module: str
    index: int
    capability: int


class Result(NamedTuple):
    kernel: str
    variant: str
    capability: int
    registers: int
    spilled: int  # bytes stored and loaded
    error: str


def modules() -> list[str]:
    """The kernel modules of all ops, by name."""
    return [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(ROOT.glob("gankernels/ops/*/kernels.py"))
    ]


def variant_name(specialisation: Any) -> str:
    """The pointer types, each once, and the constexprs that are not the formula's numbers."""
    types = dict.fromkeys(t.removeprefix("*") for t in specialisation.signature.values() if t.startswith("*"))
    constexprs = {k: v for k, v in specialisation.constexprs.items() if not isinstance(v, float)}
    return " ".join([*types, *(f"{k}={v}" for k, v in constexprs.items())])


def jobs_of(module: str) -> list[Job]:
    """A module's compilations. Asked of a worker: triton is never imported into this process."""
    return [
        Job(module, i, capability)
        for i, specialisation in enumerate(importlib.import_module(module).specialisations())
        for capability in getattr(specialisation, "capabilities", CAPABILITIES)
    ]


def compile_one(job: Job) -> Result:
    """Compile one specialisation as the launcher would on aligned tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    specialisation = list(importlib.import_module(job.module).specialisations())[job.index]
    kernel, signature = specialisation.kernel, specialisation.signature
    pointers = [i for i, type_ in enumerate(signature.values()) if type_.startswith("*")]
    # These, where a kernel has them, are multiples of 16 in networks: that is what lets loads be 16 bytes wide.
    multiples = [i for i, name in enumerate(signature) if name in ("C", "C_IN", "C_OUT", "L", "S")]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=specialisation.constexprs,
        attrs={(i,): [["tt.divisibility", 16]] for i in (*pointers, *multiples)},
    )
    log, error = io.StringIO(), ""
    try:
        with contextlib.redirect_stdout(log):
            target = GPUTarget("cuda", job.capability, 32)
            shared = triton.compile(source, target=target, options=specialisation.options).metadata.shared
        if shared > SHARED[job.capability]:
            error = f"{shared} bytes of shared memory, {SHARED[job.capability]} are there"
    except Exception as e:  # any failure of the compiler is a row of the table
        error = f"{type(e).__name__}: {e}".strip().splitlines()[0]
    registers = _REGISTERS.search(log.getvalue())
    if not error and registers is None:
        error = "ptxas printed no register count"
    return Result(
        kernel.__name__,
        variant_name(specialisation),
        job.capability,
        int(registers.group(1)) if registers else 0,
        sum(int(n) for n in _SPILLS.findall(log.getvalue())),
        error,
    )


def table(results: list[Result]) -> Iterator[str]:
    """One line for each kernel and variant: registers by compute capability, and what is wrong."""
    rows: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        rows.setdefault((result.kernel, result.variant), {})[result.capability] = result
    yield "registers for sm_" + ", sm_".join(map(str, CAPABILITIES))
    kernel_before = ""
    for (kernel, variant), by_capability in rows.items():
        if kernel != kernel_before:
            yield kernel
        kernel_before = kernel
        cells = " ".join(f"{by_capability[c].registers:4d}" if c in by_capability else "   -" for c in CAPABILITIES)
        wrong = "".join(
            f"  sm_{r.capability}: {r.error or f'{r.spilled} bytes spilled'}"
            for r in by_capability.values()
            if r.error or r.spilled
        )
        yield f"  {cells}  {variant}{wrong}"


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # type: ignore[union-attr]
    if importlib.util.find_spec("triton") is None:
        print("ahead of time, Triton: skipped, triton is not installed")
        return 0
    # The interpreter replaces the compiler, and a cached kernel prints no register count.
    os.environ.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_DUMP_PTXAS_LOG": "1"}
        sys.path.insert(0, str(ROOT))
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            jobs = [job for listed in pool.map(jobs_of, modules()) for job in listed]
            results = sorted(pool.map(compile_one, jobs, chunksize=8))
    print("\n".join(table(results)))
    failed = [r for r in results if r.error or r.spilled]
    for r in failed:
        print(f"{r.kernel} {r.variant}, sm_{r.capability}: {r.error or f'{r.spilled} bytes spilled'}")
    print(f"ahead of time, Triton: {len(results)} compilations, {len(failed)} failed or spilled")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
