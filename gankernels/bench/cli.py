"""``gankernels bench``: every op and every step against PyTorch at its best, and ``bench compare`` of two such runs."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from gankernels import dispatch
from gankernels._arguments import ArgumentParser
from gankernels.bench import ceilings as measured
from gankernels.bench.ceilings import Ceilings
from gankernels.bench.declaration import MODES, Benchmark
from gankernels.bench.rows import Row, write_csv, write_json
from gankernels.bench.runner import MEMORY, Progress, find_device, measure, plan
from gankernels.bench.summary import is_correct, is_ours
from gankernels.bench.table import show
from gankernels.errors import InputError

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FILES = {"json": "rows and ceilings", "csv": "rows", "html": "one page with tables and charts"}

_DESCRIPTION = """Times every op and whole training steps, each of our implementations against PyTorch as it comes
(eager), at its best (eager-best) and compiled (compile), checked before they are timed. Exit code 1 where one of ours
is wrong or fails. `gankernels bench compare A B` says what moved between two runs; see its --help."""

_QUICK = """a few shapes of each op (16 bits at the first alone), forward+backward alone (no forward, no double
backward), torch.compile in its default mode (no max-autotune, no reduce-overhead), and a third as long a measurement of
each; under 90 s on 2 cores"""


def main(argv: list[str]) -> int:
    """Run ``gankernels bench ARGV``: 0, 1 where one of our implementations is wrong or fails, 130 when interrupted."""
    if argv and argv[0] == "compare":
        from gankernels.bench import compare

        return compare.main(argv[1:])
    args = _parse(argv)
    device = find_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    groups = plan(select(_benchmarks(args.what), args.op, args.position, args.dtype, args.mode, args.impl), args.quick)
    _check_writable(args)

    rows: list[Row] = []
    limits: Ceilings | None = None
    interrupted = False
    with contextlib.suppress(BrokenPipeError), _progress() as progress:
        try:
            progress(0, len(groups), "what this machine can do at most")
            limits = measured.measure(device, list(dict.fromkeys(group.dtype for group in groups)))
            for found in measure(
                groups, limits, quick=args.quick, repeats=args.repeats, progress=progress, memory=args.memory
            ):
                rows += found
                # Saved as they come: whatever ends this process, what it measured is there.
                _save(args, rows, limits)
        except KeyboardInterrupt:
            interrupted = True
    _print(rows, limits)
    if limits is not None and args.html is not None and rows:
        from gankernels.bench import page

        page.write(args.html, rows, limits.as_dict())
    written = [str(getattr(args, name)) for name in _FILES if getattr(args, name) is not None and rows]
    if written:
        print(f"gankernels: written to {', '.join(written)}", file=sys.stderr)
    if interrupted:
        done = len({tuple(row[name] for name in ("op", "position", "shape", "dtype", "mode")) for row in rows})
        print(f"gankernels: interrupted after {done} of {len(groups)} groups", file=sys.stderr)
        return 130
    return int(any(is_ours(row) and not is_correct(row) for row in rows))


def select(
    benchmarks: Sequence[Benchmark],
    ops: Sequence[str] | None = None,
    position: str | None = None,
    dtypes: Sequence[str] | None = None,
    modes: Sequence[str] | None = None,
    impls: Sequence[str] | None = None,
) -> list[Benchmark]:
    """What is left of ``benchmarks`` when only these are wanted; None wants all.

    Args:
        benchmarks: declarations.
        ops: names.
        position: a part of the position's name, in any case.
        dtypes: "float32", "bfloat16" or "float16", whether the declaration has it or not.
        modes: of those that a declaration has.
        impls: our contenders; what cannot run is a row that says so.

    Raises:
        InputError: nothing is left.
    """
    kept = [benchmark for benchmark in benchmarks if ops is None or benchmark.op in ops]
    unknown = [op for op in ops or () if op not in {benchmark.op for benchmark in benchmarks}]
    if unknown:
        raise InputError(f"--op: got {unknown[0]!r}, expected one of {', '.join(b.op for b in benchmarks)}")
    if position is not None:
        positions = [case.position for benchmark in kept for case in benchmark.cases]
        kept = [replace(b, cases=[c for c in b.cases if position.lower() in c.position.lower()]) for b in kept]
        if not any(b.cases for b in kept):
            raise InputError(f"--position: got {position!r}, expected a part of one of: {'; '.join(positions)}")
    if modes is not None:
        there = [mode for benchmark in kept for mode in benchmark.modes]
        kept = [replace(b, modes=[mode for mode in b.modes if mode in modes]) for b in kept]
        if not any(b.modes for b in kept):
            raise InputError(f"--mode: got {modes[0]!r}, expected one of {', '.join(dict.fromkeys(there))}")
    if dtypes is not None:
        kept = [replace(b, dtypes=[_DTYPES[name] for name in dtypes]) for b in kept]
    if impls is not None:
        kept = [replace(b, impls=list(impls)) for b in kept]
    return [b for b in kept if b.cases and b.modes]


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = ArgumentParser("bench", _DESCRIPTION)
    parser.add_argument("what", nargs="?", choices=("ops", "steps", "all"), default="ops", help="default: ops")
    parser.add_argument("--quick", action="store_true", help=_QUICK)
    parser.add_argument("--op", action="append", metavar="NAME", help="this op; may be given again, as the next three")
    parser.add_argument("--dtype", action="append", choices=tuple(_DTYPES), help="rows in this dtype")
    parser.add_argument("--mode", action="append", choices=MODES, help="rows in this mode")
    parser.add_argument("--impl", action="append", choices=dispatch.IMPLEMENTATIONS, help="of ours, this one")
    parser.add_argument("--position", metavar="TEXT", help='positions that contain TEXT: "BigGAN-128 G"')
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is a GPU")
    parser.add_argument(
        "--repeats", type=_positive, metavar="N", help="turns of each group; default: 2 s worth of them"
    )
    parser.add_argument(
        "--memory",
        choices=MEMORY,
        default=MEMORY[0],
        help="on a CPU: let the allocator keep what is freed, as the trainer does (default), or leave that to the "
        "system, where everybody pays for page faults",
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="torch's threads on the CPU")
    for name, text in _FILES.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {text}")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _benchmarks(what: str) -> list[Benchmark]:
    found: list[Benchmark] = []
    if what in ("ops", "all"):
        from gankernels.bench.declarations import ALL

        found += ALL
    if what in ("steps", "all"):
        from gankernels.bench.steps import STEPS

        found += STEPS
    return found


def _check_writable(args: argparse.Namespace) -> None:
    """Asked before minutes are spent on what is to be written there."""
    paths = {name: getattr(args, name) for name in _FILES if getattr(args, name) is not None}
    for name, path in paths.items():
        if path.is_dir():
            raise InputError(f"--{name}: got {path}, expected a file, not a folder")
        if not path.parent.is_dir():
            raise InputError(f"--{name}: got {path}, expected a folder {path.parent} that exists")
        if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
            raise InputError(f"--{name}: got {path}, expected a file that can be written")
        if list(paths.values()).count(path) > 1:
            raise InputError(f"--{name}: got {path} twice, expected a file of its own for each form")


def _save(args: argparse.Namespace, rows: Sequence[Row], limits: Ceilings) -> None:
    if args.json is not None:
        write_json(args.json, rows, limits.as_dict())
    if args.csv is not None:
        write_csv(args.csv, rows)


def _print(rows: Sequence[Row], limits: Ceilings | None) -> None:
    if rows:
        first = rows[0]
        versions = (f"{name} {first[name]}" for name in ("driver", "torch", "triton", "gankernels", "commit"))
        print(first["device"], *(text for text in versions if not text.endswith(" ")), first["date"], sep=", ")
    if limits is not None:
        print(*(f"{name}: {figure}" for name, figure in limits.summary().items()), sep="; ")
    if rows:
        from gankernels.bench.iteration import iterations  # the presets come with the trainer

        print()
        show(rows, sys.stdout)
        lines = [line for iteration in iterations(rows) if (line := iteration.describe())]
        if lines:
            print("\nTraining iterations by the presets' recipes:", *lines, sep="\n")


@contextlib.contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on stderr where that is a terminal, a line for each group elsewhere."""
    bar: Callable[[int, int, str], None] | None = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
            with Bar(*columns, console=Console(stderr=True), transient=True) as live:
                task = live.add_task("")

                def update(done: int, total: int, what: str) -> None:
                    live.update(task, completed=done, total=total, description=what)

                bar = update
                yield bar
    if bar is None:
        yield lambda done, total, what: print(f"[{done}/{total}] {what}", file=sys.stderr, flush=True)
