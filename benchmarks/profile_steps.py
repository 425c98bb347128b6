"""Where the time of whole training steps goes: benchmarks/results/<device>/profile.csv, a row for each part.

    python benchmarks/profile_steps.py [--position TEXT]

With --position, the networks whose name contains TEXT are profiled alone, and the rows of the others stay. For a CPU;
run it on an idle machine, then ``make tables``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from gankernels._memory import keep_freed_memory
from gankernels.bench import ceilings, functional_step
from gankernels.bench.declaration import Case
from gankernels.bench.functional_step import Step
from gankernels.bench.profile import Part, profile
from gankernels.bench.rows import Row, read_csv, slug, stamp, write_csv
from gankernels.bench.steps import CASES
from gankernels.errors import InputError

RESULTS = Path(__file__).resolve().parent / "results"
#: The largest networks, and those whose targets are the furthest.
NETWORKS = ("biggan-128", "r3gan-32, ch 96")
COLUMNS = (
    *("step", "network", "batch", "dtype", "part", "calls", "ms", "gflop", "mib", "floor_ms"),
    *("device", "driver", "torch", "gankernels", "commit", "date"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Profile; returns the exit code.

    Raises:
        InputError: no network has such a name.
    """
    parser = argparse.ArgumentParser(description="Writes where the time of whole training steps goes.")
    parser.add_argument("--position", metavar="TEXT", default="", help="networks whose name contains TEXT alone")
    arguments = parser.parse_args(argv)
    wanted = [
        (step, case)
        for step, cases in CASES.items()
        for case in cases
        if case.position in NETWORKS and arguments.position in case.position
    ]
    if not wanted:
        raise InputError(f"--position: got {arguments.position!r}, expected a part of one of {', '.join(NETWORKS)}")
    keep_freed_memory()
    limits = ceilings.measure("cpu", [torch.float32])
    path = RESULTS / slug(stamp("cpu")["device"]) / "profile.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = read_csv(path, COLUMNS) if arguments.position and path.exists() else []
    for step, case in wanted:
        print(f"{step.op}, {case.position}", file=sys.stderr, flush=True)
        found = list(_rows(step, case, limits))
        rows = [row for row in rows if (row["step"], row["network"]) != (step.op, case.position)] + found
        write_csv(path, rows, COLUMNS)
    return 0


def _rows(step: Step, case: Case, limits: ceilings.Ceilings) -> Iterator[Row]:
    arguments = case.arguments
    tensors = functional_step.new_inputs(
        arguments["preset"], arguments["settings"], case.shape, torch.Generator().manual_seed(0)
    )
    tensors = functional_step.place(tensors, torch.float32, torch.channels_last)

    def call() -> object:
        return functional_step.run(step, arguments["ours"].value, tensors, loss=arguments["loss"], engine=True)

    stamped = {name: text for name, text in stamp("cpu").items() if name in COLUMNS}
    for part in profile(call, limits):
        yield {
            "step": step.op,
            "network": case.position,
            "batch": str(case.shape[0]),
            "dtype": "float32",
            **_figures(part),
            **stamped,
        }


def _figures(part: Part) -> Row:
    return {
        "part": part.name,
        "calls": str(part.calls),
        "ms": f"{part.ms:.5g}",
        "gflop": f"{part.flops / 1e9:.5g}",
        "mib": f"{part.bytes / 2**20:.5g}",
        "floor_ms": f"{part.floor_ms:.5g}",
    }


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"profile_steps: error: {error}", file=sys.stderr)
        sys.exit(2)
