"""Carries declarations out, group by group, and makes rows of what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from gankernels._memory import keep_freed_memory
from gankernels.bench import ceilings as measured
from gankernels.bench.ceilings import Ceilings
from gankernels.bench.contest import Entry, Group, carry_out
from gankernels.bench.declaration import FORWARD_BACKWARD, Benchmark
from gankernels.bench.providers import PEERS, peers_at_their_best
from gankernels.bench.rows import COLUMNS, Row, stamp
from gankernels.errors import InputError

#: ``(groups done, groups in all, what comes next)``
Progress = Callable[[int, int, str], None]

#: What the allocator does with memory that is freed on a CPU, and what a row's mode ends with where it is "system".
MEMORY, SYSTEM_MEMORY = ("kept", "system"), ", system memory"
_BUDGET_S = {True: 0.7, False: 2.0}


def run(
    benchmarks: Sequence[Benchmark],
    *,
    device: str | None = None,
    quick: bool = False,
    repeats: int | None = None,
    progress: Progress | None = None,
    ceilings: Ceilings | None = None,
    memory: str = "kept",
) -> list[Row]:
    """Measure ``benchmarks`` and return their rows; see :mod:`gankernels.bench.rows` for the columns.

    A provider that is wrong or fails is a row that says so. Nothing but a bad argument raises.

    Args:
        benchmarks: declarations, ours (``gankernels.bench.declarations.ALL``) or yours.
        device: "cpu" or "cuda"; None takes CUDA where there is a GPU.
        quick: the cases marked so, forward+backward alone, ``torch.compile`` in its default mode.
        repeats: turns of each group; None takes as many as a second or two hold.
        progress: called before each group and at the end.
        ceilings: what :func:`gankernels.bench.ceilings.measure` returned; None measures it now.
        memory: "kept" has the CPU's allocator keep what is freed, for the rest of the process, so that nobody pays for
            page faults; "system" leaves it as it is, and the rows' mode says so.

    Raises:
        InputError: no such device, or another word for ``memory``.
    """
    device = find_device(device)
    ceilings = ceilings or measured.measure(device, list(dict.fromkeys(d for b in benchmarks for d in b.dtypes)))
    found: list[Row] = []
    for rows in measure(
        plan(benchmarks, quick),
        ceilings,
        quick=quick,
        repeats=repeats,
        progress=progress,
        memory=memory,
    ):
        found += rows
    return found


def find_device(device: str | None) -> str:
    """``device`` if it is there, and the default for None.

    Raises:
        InputError: it is neither "cpu" nor "cuda", or there is no GPU.
    """
    there = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    if device is not None and device not in there:
        raise InputError(f"device: got {device!r}, expected {' or '.join(there)}")
    return device or there[0]


def plan(benchmarks: Sequence[Benchmark], quick: bool = False) -> list[Group]:
    """The groups of ``benchmarks`` in the order in which they are measured.

    ``quick`` keeps the cases that are marked so (the first, where none is), all dtypes of the first of them and the
    first dtype of the others, and of the modes forward+backward, or the first where that is not among them.
    """
    groups = []
    for benchmark in benchmarks:
        cases, modes = benchmark.cases, benchmark.modes
        if quick:
            cases = [case for case in cases if case.quick] or cases[:1]
            modes = [FORWARD_BACKWARD] if FORWARD_BACKWARD in modes else modes[:1]
        groups += [
            Group(benchmark, case, dtype, mode)
            for index, case in enumerate(cases)
            for dtype in benchmark.dtypes[: 1 if quick and index > 0 else None]
            for mode in modes
        ]
    return groups


def measure(
    groups: Sequence[Group],
    ceilings: Ceilings,
    *,
    quick: bool = False,
    repeats: int | None = None,
    progress: Progress | None = None,
    memory: str = "kept",
    budget_s: float | None = None,
) -> Iterator[list[Row]]:
    """The rows of each group, as soon as they are there, on the device of ``ceilings``; arguments as of :func:`run`.

    ``budget_s`` is how many seconds the turns of a group take where ``repeats`` does not say their number.
    """
    if memory not in MEMORY:
        raise InputError(f"memory: got {memory!r}, expected {' or '.join(MEMORY)}")
    device = ceilings.device
    kept = device != "cpu" or (memory == "kept" and keep_freed_memory())
    stamped = stamp(device)
    for index, group in enumerate(groups):
        if progress is not None:
            progress(index, len(groups), str(group))
        with peers_at_their_best():
            entries, working_set = carry_out(group, device, quick, repeats, budget_s or _BUDGET_S[quick])
        rows = _rows(group, entries, working_set, ceilings)
        for row in rows:
            row |= stamped
            row["mode"] += "" if kept else SYSTEM_MEMORY
        yield rows
        if device == "cuda":
            torch.cuda.empty_cache()
    if progress is not None:
        progress(len(groups), len(groups), "done")


def _rows(group: Group, entries: Sequence[Entry], working_set: float | None, ceilings: Ceilings) -> list[Row]:
    benchmark, case, dtype, mode = group
    bytes, flops = benchmark.bytes(case, mode, dtype.itemsize), benchmark.flops(case, mode)
    floor, floor_kind = ceilings.floor(bytes, flops, benchmark.launches(mode), dtype, working_set)
    ms = {e.provider.name: e.times.median for e in entries if e.times is not None}
    peer = min((ms[name] for name in PEERS if name in ms), default=None)
    rows = []
    for entry in entries:
        provider, times = entry.provider, entry.times
        row = dict.fromkeys(COLUMNS, "") | {
            "op": benchmark.op,
            "position": case.position,
            "shape": "x".join(map(str, case.shape)),
            "dtype": str(dtype).removeprefix("torch."),
            "layout": "channels_last" if provider.channels_last else "contiguous",
            "mode": mode,
            "provider": provider.name,
            "impl": provider.impl,
            "floor_kind": floor_kind,
            "correct": entry.verdict,
        }
        if times is not None:
            # On a GPU a time without a graph holds what the host takes.
            if ceilings.device == "cuda" and not times.captured and not provider.graphed:
                row["impl"] += ", not captured"
            row |= {"ms": f"{times.median:.5g}", "ms_p20": f"{times.p20:.5g}", "ms_p80": f"{times.p80:.5g}"}
            row["speedup_vs_eager"] = f"{ms['eager'] / times.median:.2f}" if "eager" in ms else ""
            row["speedup_vs_best_peer"] = f"{peer / times.median:.2f}" if peer else ""
            row["floor_share"] = f"{floor / times.median:.3f}"
            row["peak_mib"] = "" if entry.peak_mib is None else f"{entry.peak_mib:.2f}"
            row["saved_mib"] = "" if entry.saved_mib is None else f"{entry.saved_mib:.4g}"
        rows.append(row)
    return rows
