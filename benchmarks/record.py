"""Makes the committed figures of this machine: benchmarks/results/<device>/{ops,steps}.csv and their likes.

    python benchmarks/record.py [ops|steps|system-memory ...] [--op NAME] [--mode MODE] [--position TEXT] [--list]

Each file is made anew. With --op, --mode or --position, the groups that they name are measured alone: their rows take
the place of those that they had, and all others stay. ``--list`` says what would be measured.

``system-memory`` is the ops with memory that the system gives anew at every call, as a plain PyTorch program has it on
a CPU; see docs/benchmarking.md. Run it on an idle machine, then ``make tables``.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from gankernels.bench import ceilings as measured
from gankernels.bench.contest import Group
from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, MODES, STEP, Benchmark, Case
from gankernels.bench.declarations import ALL
from gankernels.bench.rows import Row, read_csv, slug, stamp, write_csv
from gankernels.bench.runner import measure, plan
from gankernels.bench.steps import STEPS
from gankernels.bench.summary import groups as grouped
from gankernels.bench.summary import is_correct, is_ours
from gankernels.errors import InputError

RESULTS = Path(__file__).resolve().parent / "results"
FILES = {"ops": "ops.csv", "steps": "steps.csv", "system-memory": "ops-system-memory.csv"}

#: The most positions of an op in each mode, so that all ops together take about half an hour on two cores; fewer
#: where a convolution makes each of them dear.
_MOST = {FORWARD_BACKWARD: 12, DOUBLE_BACKWARD: 3, FORWARD: 2, STEP: 8}
_MOST_WITH_PRODUCTS = {FORWARD_BACKWARD: 3, DOUBLE_BACKWARD: 2, FORWARD: 2, STEP: 8}
#: Seconds of measurement, shared by the providers of a group.
_BUDGET_S = 1.0
#: Where each position is a question of its own: all of them.
_WHOLE = ("penalty_step",)


def folder() -> Path:
    """The folder of this machine's figures."""
    return RESULTS / slug(stamp(_device())["device"])


def chosen(
    name: str, ops: Sequence[str] | None = None, modes: Sequence[str] | None = None, position: str | None = None
) -> list[Group]:
    """The groups of one of :data:`FILES`: forward+backward widely, the other modes at a few positions.

    Where an op has more positions than :data:`_MOST`, the smallest, the largest and those of ``--quick`` are among
    those that stay, but for the ops of :data:`_WHOLE`; forward and double backward have 16 bits at the first of them
    alone. A ``position``, a part of the name, is measured whatever the number.
    """
    found: list[Group] = []
    for benchmark in STEPS if name == "steps" else ALL:
        if ops is None or benchmark.op in ops:
            for mode in benchmark.modes:
                if (modes is None or mode in modes) and (name != "system-memory" or mode == FORWARD_BACKWARD):
                    found += _of_mode(replace(benchmark, modes=[mode]), mode, position, quick=name == "system-memory")
    return found


def _of_mode(benchmark: Benchmark, mode: str, position: str | None, quick: bool) -> list[Group]:
    if position is not None:
        return plan([replace(benchmark, cases=[c for c in benchmark.cases if position.lower() in c.position.lower()])])
    if quick:
        return plan([benchmark], quick=True)
    most = _MOST_WITH_PRODUCTS if benchmark.flops(benchmark.cases[0], mode) else _MOST
    cases = list(benchmark.cases) if benchmark.op in _WHOLE else spread(benchmark.cases, most[mode])
    first, others = replace(benchmark, cases=cases[:1]), replace(benchmark, cases=cases[1:])
    if mode != FORWARD_BACKWARD:
        others = replace(others, dtypes=benchmark.dtypes[:1])
    return plan([first, others])


def spread(cases: Sequence[Case], most: int) -> list[Case]:
    """At most ``most`` of ``cases``, in their order: the quick ones, the smallest and the largest, then the first."""
    by_size = sorted(cases, key=lambda case: math.prod(case.shape))
    wanted = [*by_size[:1], *(case for case in cases if case.quick), *by_size[-1:], *cases]
    kept: list[Case] = []
    for case in wanted:
        if case not in kept and len(kept) < most:
            kept.append(case)
    return [case for case in cases if case in kept]


def merged(rows: Iterable[Row], found: Iterable[Row]) -> list[Row]:
    """``rows``, with the groups of ``found`` in place of the same ones, or behind the last of their op."""
    groups = {group.key: list(group.rows) for group in grouped(rows)}
    fresh = {group.key: list(group.rows) for group in grouped(found)}
    order = list(groups)
    for key in fresh:
        if key not in groups:
            last = max((i for i, other in enumerate(order) if other.op == key.op), default=len(order) - 1)
            order.insert(last + 1, key)
    return [row for key in order for row in {**groups, **fresh}[key]]


def record(path: Path, groups: Sequence[Group], *, memory: str, keep: bool, budget_s: float = _BUDGET_S) -> int:
    """Measure ``groups`` into ``path``, saved as they come; 1 where one of our implementations is wrong or fails.

    ``keep`` leaves the other rows that are there as they are.
    """
    rows = read_csv(path) if keep and path.exists() else []
    code = 0
    limits = measured.measure(_device(), list(dict.fromkeys(group.dtype for group in groups)))
    for found in measure(groups, limits, progress=_tell, memory=memory, budget_s=budget_s):
        rows = merged(rows, found)
        write_csv(path, rows)
        code |= any(is_ours(row) and not is_correct(row) for row in found)
    return int(code)


def _child(path: Path, arguments: argparse.Namespace, name: str) -> None:
    groups = chosen(name, arguments.op, arguments.mode, arguments.position)
    memory = "system" if name == "system-memory" else "kept"
    sys.exit(record(path, groups, memory=memory, keep=_is_part(arguments)))


def _is_part(arguments: argparse.Namespace) -> bool:
    return bool(arguments.op or arguments.mode or arguments.position)


def _tell(done: int, total: int, what: str) -> None:
    print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    """Record; returns the exit code.

    Raises:
        InputError: nothing is declared by these names.
    """
    parser = argparse.ArgumentParser(description="Makes the committed figures of this machine.")
    parser.add_argument("files", nargs="*", help=f"some of {', '.join(FILES)}; default: all")
    parser.add_argument("--op", action="append", metavar="NAME", help="this op alone; may be given again")
    parser.add_argument("--mode", action="append", choices=MODES, help="this mode alone; may be given again")
    parser.add_argument("--position", metavar="TEXT", help="positions that contain TEXT alone")
    parser.add_argument("--list", action="store_true", help="say what would be measured")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.files if name not in FILES]:
        raise InputError(f"files: got {unknown[0]!r}, expected some of {', '.join(FILES)}")
    names = [name for name in arguments.files or FILES if not (name == "system-memory" and _device() == "cuda")]
    groups = {name: chosen(name, arguments.op, arguments.mode, arguments.position) for name in names}
    for op in arguments.op or ():
        if all(op != group.benchmark.op for found in groups.values() for group in found):
            ops = ", ".join(benchmark.op for benchmark in (*ALL, *STEPS))
            raise InputError(f"--op: got {op!r}, expected one of {ops}, and a mode and a position that it has")
    if not any(groups.values()):
        raise InputError("--mode, --position: got ones that no op has, expected what --list names")
    codes = []
    for name, found in groups.items():
        if arguments.list:
            print("\n".join(f"{name}: {group}" for group in found))
        elif found:
            folder().mkdir(parents=True, exist_ok=True)
            # A process each: what one tells the allocator holds for as long as it lives.
            child = get_context("spawn").Process(target=_child, args=(folder() / FILES[name], arguments, name))
            child.start()
            child.join()
            codes.append(child.exitcode or 0)
    return max(map(abs, codes), default=0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        print(f"record: error: {error}", file=sys.stderr)
        sys.exit(2)
