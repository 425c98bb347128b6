"""One group carried out: every provider is checked against the exact results, the correct ones are timed in turns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gankernels.bench import providers
from gankernels.bench.declaration import FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.memory import peak_mib, saved_mib
from gankernels.bench.patience import patience
from gankernels.bench.problem import Problem
from gankernels.bench.providers import PEERS, Provider
from gankernels.bench.timing import ContenderError, Times, interleave

#: How long a provider may take to its first result, which is all of a compilation.
PATIENCE_S = 600.0


class Group(NamedTuple):
    """What competes: one case in one dtype and one mode."""

    benchmark: Benchmark
    case: Case
    dtype: torch.dtype
    mode: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.benchmark.op}, {self.case.position}, {dtype}, {self.mode}"


@dataclass
class Entry:
    """A provider on its way through a group: first checked, then timed, then measured for memory."""

    provider: Provider
    verdict: str = "yes"
    times: Times | None = None
    peak_mib: float | None = None
    saved_mib: float | None = None  # what the forward keeps for the backward, in the mode that has both


def carry_out(
    group: Group, device: str, quick: bool, repeats: int | None, budget_s: float
) -> tuple[list[Entry], float | None]:
    """The best entry of each provider, and the bytes of the group's distinct inputs and outputs.

    The bytes are None where not even the reference ran.
    """
    benchmark, case, dtype, mode = group
    problem: Problem | None = None
    failure = ""
    try:
        problem = Problem(benchmark, case, dtype, mode, device)
    except Exception as error:
        failure = f"error: the reference: {_one_line(error)}"
    modes = providers.compile_modes(device, quick, mode, benchmark.flops(case, mode) > 0)
    has_layout = problem is None or problem.has_layout
    contenders = [
        *providers.peers(benchmark, case, dtype, mode, modes, has_layout),
        *providers.ours(benchmark, case, dtype, mode, device, has_layout),
    ]
    entries = [Entry(provider) for provider in contenders]
    if problem is None:
        # Nobody can be right where there is nothing to be held against.
        for entry in entries:
            entry.verdict = failure
        return _best(entries), None
    _check(problem, entries)
    _time(problem, [e for e in entries if e.verdict == "yes"], repeats, budget_s)
    return _best(entries), problem.input_bytes + problem.output_bytes


def _check(problem: Problem, entries: Sequence[Entry]) -> None:
    """Give each entry its verdict: "yes", "wrong: <why>" or "error: <one line>"."""
    eager: list[list[Tensor]] = []
    stock = {
        e.provider.channels_last: e.provider
        for e in entries
        if e.provider.dtype == problem.dtype and e.provider.name in ("eager", "eager-best")
    }
    for provider in [*stock.values(), *(p for p in map(problem.rearranged, stock.values()) if p is not None)]:
        try:
            eager.append(problem.results(provider))
        except Exception:  # its own row will say so
            continue
    for entry in entries:
        peer = entry.provider.name in PEERS
        try:
            with patience(PATIENCE_S):
                flaw = problem.flaw(entry.provider, None if peer else eager)
        except Exception as error:
            entry.verdict = f"error: {_one_line(error)}"
        else:
            entry.verdict = "yes" if flaw is None else f"wrong: {flaw}"


def _time(problem: Problem, entries: Sequence[Entry], repeats: int | None, budget_s: float) -> None:
    """Times and peak memory of entries that are correct; one that raises now gets its error for a verdict."""
    device, sets = problem.device, 1
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        sets = problem.sets(properties.L2_cache_size, properties.total_memory // 32)
    shared: dict[object, list[tuple[list[Tensor], list[Tensor]]]] = {}
    contenders: dict[str, Callable[[int], object]] = {}
    names = {str(index): entry for index, entry in enumerate(entries)}
    for name, entry in names.items():
        try:
            contenders[name] = _contender(problem, entry.provider, sets, shared)
        except Exception as error:
            entry.verdict = f"error: {_one_line(error)}"
    uncaptured = [name for name in contenders if names[name].provider.graphed]
    while contenders:
        try:
            times = interleave(contenders, device, repeats=repeats, sets=sets, budget_s=budget_s, uncaptured=uncaptured)
        except ContenderError as error:
            name = str(error)
            del contenders[name]
            names[name].verdict = f"error: {_one_line(error.__cause__ or error)}"
            continue
        for name, contender in contenders.items():
            names[name].times = times[name]
            # Graphs that a contender brings hold their memory from call to call.
            if not names[name].provider.graphed:
                names[name].peak_mib = peak_mib(partial(contender, 0), device)
                if problem.mode == FORWARD_BACKWARD:
                    provider = names[name].provider
                    inputs = problem.inputs(provider.dtype, provider.channels_last)
                    names[name].saved_mib = saved_mib(provider.function, inputs)
        return


def _contender(
    problem: Problem,
    provider: Provider,
    sets: int,
    shared: dict[object, list[tuple[list[Tensor], list[Tensor]]]],
) -> Callable[[int], object]:
    """A function of the number of the input set. Providers that want the same tensors get the very same."""
    first = problem.data(provider)
    key = (provider.dtype, provider.channels_last, tuple((c.dtype, c.stride()) for c in first[1]))
    if key not in shared:
        shared[key] = [first, *(problem.data(provider) for _ in range(sets - 1))]
    data, call = shared[key], provider.call
    return lambda number: call(*data[number])


def _best(entries: Sequence[Entry]) -> list[Entry]:
    """Of the entries that share a provider's name, the fastest correct one, or the first; the order is kept."""
    best: dict[str, Entry] = {}
    for entry in entries:
        so_far = best.setdefault(entry.provider.name, entry)
        if entry.times is not None and (so_far.times is None or entry.times.median < so_far.times.median):
            best[entry.provider.name] = entry
    return list(best.values())


def _one_line(error: BaseException) -> str:
    # Of a compiler, what it refused: its command and its warnings come first, and are long.
    refused = re.search(r"^\S+:\d+:\d+: (?:fatal )?(error: .*)$", str(error), re.MULTILINE)
    # Of a file, its name alone: rows are committed, and folders are the machine's own.
    text = re.sub(r"(?<!\S)(?:/[^\s/]+)*/(?=[^\s/])", "", " ".join((refused[1] if refused else str(error)).split()))
    return f"{type(error).__name__}: {text}"[:200]
