"""Times of contenders that take turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

Contender = Callable[[int], object]

#: Calls shorter than this find the caches as their own kind left them: an untimed one goes before each sample.
_WARM_S = 10e-3
#: A sample lasts at least this long: below it the clock's own cost and resolution would show.
_SAMPLE_S = 200e-6
_MAX_TURNS = 200
_MAX_CALLS = 1000


@dataclass(frozen=True)
class Times:
    """Of one call, in ms: the median, and the 20th and 80th percentile, over ``turns`` samples.

    ``captured`` is whether the calls were replayed from a CUDA graph (never on a CPU).
    """

    median: float
    p20: float
    p80: float
    turns: int = 1
    captured: bool = False


def interleave(
    contenders: Mapping[str, Contender],
    device: str,
    *,
    repeats: int | None = None,
    sets: int = 1,
    budget_s: float = 1.0,
    uncaptured: Collection[str] = (),
) -> dict[str, Times]:
    """Time every contender, in turns whose order is shuffled anew each time.

    All are called before any is timed, so compilation, autotuning and the first touch of memory are over. One turn is
    one sample of each; a sample is as many calls as make it 0.2 ms long. The order is shuffled and not rotated, since
    in a rotation each contender would always find the caches as the same other one left them. Garbage collection
    waits.

    On CUDA each contender is captured in a graph, with one call for each input set, and the replays are timed by
    events.

    Args:
        contenders: name -> function of the number of the input set, 0 to ``sets - 1``.
        device: ``"cpu"`` or ``"cuda"``.
        repeats: turns; None takes as many as fill ``budget_s``, at least 7 (3 where one turn takes a second).
        sets: how many input sets there are; the calls rotate through them.
        budget_s: seconds that the turns fill when ``repeats`` is None.
        uncaptured: names of contenders that are not to be captured: those that bring graphs of their own.

    Returns:
        name -> :class:`Times`.

    Raises:
        ContenderError: one of them raised before the turns began.
    """
    if not contenders:
        return {}
    with _no_garbage_collection():
        samplers: dict[str, _Sampler] = {}
        for name, function in contenders.items():
            try:
                if device == "cuda":
                    samplers[name] = _CudaSampler(function, sets, capture=name not in uncaptured)
                else:
                    samplers[name] = _CpuSampler(function, sets)
                samplers[name].settle()
            except Exception as error:
                raise ContenderError(name) from error
        round_s = sum(sampler.sample() * sampler.calls * 1e-3 for sampler in samplers.values())
        turns = repeats or min(_MAX_TURNS, max(7 if round_s < 1 else 3, math.ceil(budget_s / round_s)))
        samples: dict[str, list[float]] = {name: [] for name in samplers}
        order, shuffle = list(samplers), random.Random(0).shuffle
        for _ in range(turns):
            shuffle(order)
            for name in order:
                samples[name].append(samplers[name].sample())
    return {name: _times(samples[name], samplers[name].captured) for name in contenders}


class ContenderError(RuntimeError):
    """A contender, named by the message, raised what is the cause of this."""


class _Sampler:
    captured = False
    calls = 1

    def sample(self) -> float:
        """Milliseconds of one call, as the mean of :attr:`calls` calls."""
        raise NotImplementedError

    def settle(self) -> None:
        """Warm up, and find how many calls a sample needs."""
        for _ in range(2):
            first = self.sample()
        self.calls = max(self.calls, min(_MAX_CALLS, math.ceil(_SAMPLE_S * 1e3 / max(first, 1e-6)) * self.calls))


class _CpuSampler(_Sampler):
    def __init__(self, function: Contender, sets: int) -> None:
        self.function, self.sets, self.turn, self.last_s = function, sets, 0, 0.0

    def sample(self) -> float:
        function, sets, turn, calls = self.function, self.sets, self.turn, self.calls
        if self.last_s < _WARM_S:
            function(turn)
        start = time.perf_counter()
        for call in range(turn, turn + calls):
            function(call % sets)
        elapsed = time.perf_counter() - start
        self.turn, self.last_s = (turn + calls) % sets, elapsed / calls
        return self.last_s * 1e3


class _CudaSampler(_Sampler):
    def __init__(self, function: Contender, sets: int, capture: bool) -> None:
        self.sets, self.events, self.replays = sets, [torch.cuda.Event(enable_timing=True) for _ in range(2)], 1

        def each_set() -> None:
            for number in range(sets):
                function(number)

        self.function: Callable[[], object] = each_set
        if capture:
            with contextlib.suppress(RuntimeError):
                self.function, self.captured = capture_graph(each_set).replay, True

    @property
    def calls(self) -> int:
        return self.replays * self.sets

    @calls.setter
    def calls(self, calls: int) -> None:
        self.replays = math.ceil(calls / self.sets)

    def sample(self) -> float:
        start, end = self.events
        start.record()
        for _ in range(self.replays):
            self.function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / self.calls


def capture_graph(function: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A CUDA graph of one call; it keeps the memory that the call allocates.

    Raises:
        RuntimeError: the call does something that cannot be captured, such as waiting for the GPU.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph


def _times(samples: list[float], captured: bool) -> Times:
    if len(samples) == 1:
        return Times(samples[0], samples[0], samples[0], 1, captured)
    p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
    return Times(statistics.median(samples), p20, p80, len(samples), captured)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
