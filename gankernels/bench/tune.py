"""``gankernels tune``: holds every kernel against the reference on this machine, times the right ones, and stores both.

What it writes, dispatch reads: see :mod:`gankernels.verdicts`.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gankernels import dispatch, selfcheck, verdicts
from gankernels._arguments import ArgumentParser
from gankernels._memory import keep_freed_memory
from gankernels.bench import declarations
from gankernels.bench.declaration import FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.problem import Problem
from gankernels.bench.providers import Provider, in_mode
from gankernels.bench.runner import find_device
from gankernels.bench.timing import ContenderError, interleave
from gankernels.errors import InputError
from gankernels.verdicts import Verdict

#: dtype name -> size class -> verdict
Found = dict[str, dict[str, Verdict]]

_BUDGET_S = {True: 0.5, False: 2.0}


def main(argv: list[str]) -> int:
    """Run ``gankernels tune ARGV`` and return its exit code: 1 if any implementation is wrong."""
    parser = ArgumentParser("tune", "Verify every kernel on this machine, pick the fastest, and remember both.")
    parser.add_argument(
        "--device", help="cpu or cuda (default: cuda if there is a GPU); CUDA_VISIBLE_DEVICES picks one"
    )
    parser.add_argument("--op", action="append", metavar="NAME", help="only this op; may be repeated")
    parser.add_argument("--quick", action="store_true", help="verify and time one shape of each size class")
    parser.add_argument("--all", action="store_true", help="verify Triton's interpreter too, if TRITON_INTERPRET=1")
    parser.add_argument("--dry-run", action="store_true", help="verify and time, and write nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args(argv)
    device = torch.device(find_device(args.device))
    name = verdicts.device_name(device)
    shown = sys.stderr.isatty()

    def progress(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    found: dict[str, Found] = {}
    for op, verdict in tune(
        args.op, device=device.type, quick=args.quick, everything=args.all, write=not args.dry_run, progress=progress
    ):
        progress("")
        if not args.json:
            print(_text(op, verdict, header=not found), flush=True)
        found[op] = verdict
    if args.json:
        written = None if args.dry_run else str(verdicts.path())
        print(json.dumps({"device": name, "path": written, "verdicts": _as_json(found)}, indent=1))
    else:
        print(f"{name}: " + ("nothing written" if args.dry_run else f"written to {verdicts.path()}"))
    return int(any(v.wrong for verdict in found.values() for sizes in verdict.values() for v in sizes.values()))


def tune(
    ops: Sequence[str] | None = None,
    *,
    device: str | None = None,
    quick: bool = False,
    everything: bool = False,
    write: bool = True,
    benchmarks: Sequence[Benchmark] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[tuple[str, Found]]:
    """Verify and time the implementations of ``ops``, and write the verdicts on each op as soon as they are there.

    Args:
        ops: names; None takes all.
        device: "cpu" or "cuda"; None takes CUDA where there is a GPU.
        quick: verify at the shapes that are timed, one of each size class, and not at every declared one.
        everything: verify the Triton interpreter on CPU tensors too. It is never timed.
        write: whether the cache is written.
        benchmarks: declarations, by default all of ``gankernels.bench.declarations``. An op without one is verified by
            its checks, and dispatch's default stays chosen.
        progress: called with what comes next.

    Yields:
        The op's name, and dtype name -> size class -> :class:`~gankernels.verdicts.Verdict`.

    Raises:
        InputError: no such op or device, or the cache cannot be written.
    """
    there = torch.device(find_device(device))
    for op in ops or ():
        if op not in dispatch.ops():
            raise InputError(f"op: got {op!r}, expected one of {', '.join(dispatch.ops())}")
    if write:
        verdicts.ensure_writable()
    if there.type == "cpu":
        keep_freed_memory()
    declared = {b.op: b for b in (declarations.ALL if benchmarks is None else benchmarks)}
    for op in ops or dispatch.ops():
        found = _Op(op, declared.get(op), there, quick, everything, progress).verdicts()
        if write:
            verdicts.write(there, {op: found})
            dispatch.forget()
        yield op, found


class _Op:
    """One op on its way through tune: by its checks, at its benchmark's shapes, then on the clock."""

    def __init__(
        self,
        op: str,
        benchmark: Benchmark | None,
        device: torch.device,
        quick: bool,
        everything: bool,
        progress: Callable[[str], None],
    ) -> None:
        self.op, self.benchmark, self.device, self.quick, self.progress = op, benchmark, device, quick, progress
        preferred = dispatch.PREFERENCE.get(device.type, ("reference",))
        self.timed = [impl for impl in preferred if dispatch.unavailable(op, impl, device.type) is None]
        candidates = dispatch.IMPLEMENTATIONS if everything else self.timed
        self.verified = [
            impl for impl in candidates if impl != "reference" and dispatch.unavailable(op, impl, device.type) is None
        ]
        # dtype -> implementation -> why. Who is wrong at one size is trusted at no other.
        self.wrong: dict[torch.dtype, dict[str, str]] = {}

    def verdicts(self) -> Found:
        with _poisoned_memory():
            self._check()
            times: dict[tuple[torch.dtype, str], dict[str, float]] = {}
            if self.benchmark is not None:
                self._verify_cases(self.benchmark)
        if self.benchmark is not None:
            for size, case in _case_of_each_size(self.benchmark).items():
                for dtype in self.benchmark.dtypes:
                    times[dtype, size] = self._time(self.benchmark, case, dtype)
        found: Found = {}
        for dtype, wrong in self.wrong.items():
            for size in verdicts.SIZE_CLASSES:
                ms = {impl: t for impl, t in times.get((dtype, size), {}).items() if impl not in wrong}
                chosen = min(ms, key=ms.__getitem__, default=None)
                found.setdefault(verdicts.dtype_name(dtype), {})[size] = Verdict(chosen, ms, dict(wrong))
        return found

    def _right(self, dtype: torch.dtype) -> list[str]:
        return [impl for impl in self.verified if impl not in self.wrong.setdefault(dtype, {})]

    def _check(self) -> None:
        for check in selfcheck.checks_of(self.op):
            self.progress(f"{self.op}: {check.name}")
            for dtype in check.dtypes:
                for impl in self._right(dtype):
                    why = selfcheck.verify(check, impl, self.device, dtype)
                    if why is not None:
                        self.wrong[dtype][impl] = why

    def _verify_cases(self, benchmark: Benchmark) -> None:
        cases = list(_case_of_each_size(benchmark).values()) if self.quick else benchmark.cases
        for case in cases:
            for dtype in benchmark.dtypes:
                names = self._right(dtype)
                if not names:
                    continue
                self.progress(f"{self.op}: {case.position}, {verdicts.dtype_name(dtype)}")
                # A shape that does not fit into memory says nothing about a kernel.
                with contextlib.suppress(torch.OutOfMemoryError):
                    problem = Problem(benchmark, case, dtype, _mode(benchmark), self.device.type)
                    eager = _eager(problem)
                    for impl in names:
                        why = _flaw(problem, _provider(problem, impl), eager)
                        if why is not None:
                            self.wrong[dtype][impl] = f"{case.position}: {why}"

    def _time(self, benchmark: Benchmark, case: Case, dtype: torch.dtype) -> dict[str, float]:
        """Implementation -> ms, of the right ones; empty where there is no memory for the shape."""
        wrong = self.wrong.setdefault(dtype, {})
        names = [impl for impl in self.timed if impl not in wrong]
        self.progress(f"{self.op}: {case.position}, {verdicts.dtype_name(dtype)}: timing {', '.join(names)}")
        contenders: dict[str, Callable[[int], object]] = {}
        try:
            problem = Problem(benchmark, case, dtype, _mode(benchmark), self.device.type)
            sets = 1
            if self.device.type == "cuda":
                properties = torch.cuda.get_device_properties(self.device)
                sets = problem.sets(properties.L2_cache_size, properties.total_memory // 32)
            for impl in names:
                provider = _provider(problem, impl)
                contenders[impl] = _contender(provider, [problem.data(provider) for _ in range(sets)])
        except torch.OutOfMemoryError:
            return {}
        # What the host takes is most of a small tensor's time, and a CUDA graph would hide it.
        small = verdicts.size_class(math.prod(case.shape)) == "small"
        uncaptured = tuple(contenders) if small else ()
        while contenders:
            try:
                times = interleave(
                    contenders, self.device.type, sets=sets, budget_s=_BUDGET_S[self.quick], uncaptured=uncaptured
                )
            except ContenderError as error:
                del contenders[str(error)]
                if not isinstance(error.__cause__, torch.OutOfMemoryError):
                    wrong[str(error)] = f"{case.position}: {_one_line(error.__cause__ or error)}"
            else:
                return {impl: round(t.median, 5) for impl, t in times.items()}
        return {}


def _case_of_each_size(benchmark: Benchmark) -> dict[str, Case]:
    """Size class -> its first case that is marked quick, or its first one."""
    found: dict[str, Case] = {}
    for case in sorted(benchmark.cases, key=lambda case: not case.quick):
        found.setdefault(verdicts.size_class(math.prod(case.shape)), case)
    return {size: found[size] for size in verdicts.SIZE_CLASSES if size in found}


def _mode(benchmark: Benchmark) -> str:
    return FORWARD_BACKWARD if FORWARD_BACKWARD in benchmark.modes else benchmark.modes[0]


def _provider(problem: Problem, impl: str | None, channels_last: bool = True) -> Provider:
    """Our implementation ``impl``, or stock PyTorch for None."""
    benchmark, case = problem.benchmark, problem.case
    function = partial(benchmark.stock, case) if impl is None else partial(benchmark.ours, case, impl=impl)
    name = "eager" if impl is None else f"gankernels-{impl}"
    return Provider(name, impl or "", problem.dtype, channels_last, function, in_mode(function, problem.mode))


def _eager(problem: Problem) -> list[list[Tensor]]:
    """What stock PyTorch makes of it in each layout, where it can run at all."""
    runs = []
    for channels_last in (False, True):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            runs.append(problem.results(_provider(problem, None, channels_last)))
    return runs


def _flaw(problem: Problem, provider: Provider, eager: Sequence[Sequence[Tensor]]) -> str | None:
    try:
        return problem.flaw(provider, eager)
    except torch.OutOfMemoryError:
        return None
    except Exception as error:  # Whatever it raises is the finding.
        return _one_line(error)


def _contender(provider: Provider, data: Sequence[tuple[list[Tensor], list[Tensor]]]) -> Callable[[int], object]:
    return lambda number: provider.call(*data[number])


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Every allocation of torch's is filled with NaN, so that an element that a kernel does not write is seen."""
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was[0], warn_only=was[1])


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _as_json(found: dict[str, Found]) -> dict[str, Any]:
    return {
        op: {dtype: {size: v._asdict() for size, v in sizes.items()} for dtype, sizes in dtypes.items()}
        for op, dtypes in found.items()
    }


def _text(op: str, found: Found, header: bool) -> str:
    row = "{:<24} {:<9} {:<7} {:<10} {}".format
    lines = [row("op", "dtype", "size", "chosen", "ms")] if header else []
    for dtype, sizes in found.items():
        for size, verdict in sizes.items():
            ms = "  ".join(f"{impl} {t:.4g}" for impl, t in sorted(verdict.ms.items(), key=lambda pair: pair[1]))
            if ms:
                lines.append(row(op, dtype, size, verdict.chosen, ms))
        if not any(verdict.ms for verdict in sizes.values()):
            lines.append(row(op, dtype, "all", "default", "verified, not timed"))
        wrong = next(iter(sizes.values())).wrong
        lines += [f"  WRONG: {impl} in {dtype}: {why}" for impl, why in wrong.items()]
    return "\n".join(lines)
