"""What this machine can do at most, measured in the same run as what is held against it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from gankernels.bench.timing import capture_graph

#: Bytes that the copies move, read and write together: from what a core's cache holds to far past the last level's, and
#: closer together where a last level ends.
_COPY_BYTES = {
    "cpu": (2**17, 2**20, 2**22, 2**23, 2**24, 2**25, 3 * 2**24, 2**26, 2**27, 2**28),
    "cuda": (2**20, 2**22, 2**24, 2**26, 2**28, 2**30, 2**31),
}
_GEMM_SIZE = {"cpu": 512, "cuda": 8192}
_SECONDS = 0.25
_LAUNCHES = 200


@dataclass(frozen=True)
class Ceilings:
    """Measured ceilings of one device.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        copy: (bytes moved, bytes per second) of a copy, read and write counted, by growing size. On CUDA the copies
            rotate through buffers that exceed twice the L2 cache, as the benchmarks' inputs do.
        gemm: dtype name -> FLOP/s of a large matrix product; fp32 in TF32 where cuDNN may use it.
        launch: seconds that the smallest kernel takes: on CUDA within a CUDA graph.
        launch_outside: the same when the host launches it; on a CPU the same number.
    """

    device: str
    copy: Sequence[tuple[float, float]]
    gemm: dict[str, float]
    launch: float
    launch_outside: float

    def bandwidth(self, working_set: float) -> float:
        """Bytes per second at which memory of this size in all can be read and written.

        Interpolated between the sizes that were measured. A smaller size is never slower than a larger one: where a
        small copy was, the cost of the launch is what was seen, and that is a ceiling of its own.
        """
        fastest, envelope = 0.0, []
        for size, rate in reversed(self.copy):
            fastest = max(fastest, rate)
            envelope.append((size, fastest))
        envelope.reverse()
        if working_set <= envelope[0][0]:
            return envelope[0][1]
        for (small, fast), (large, slow) in itertools.pairwise(envelope):
            if working_set <= large:
                part = math.log(working_set / small) / math.log(large / small)
                return fast + part * (slow - fast)
        return envelope[-1][1]

    def floor(
        self, bytes: float, flops: float, launches: int, dtype: torch.dtype, working_set: float | None = None
    ) -> tuple[float, str]:
        """The least time that the work can take here, and which ceiling says so.

        Args:
            bytes: read and written.
            flops: a multiply-add counts as two.
            launches: kernels that have to be launched.
            dtype: in which the FLOPs may be done, or in fp32.
            working_set: bytes of the distinct tensors among those read and written, which decides the level of the
                caches that counts; None takes ``bytes``.

        Returns:
            Milliseconds, and for example ``"memory 34.7 GB/s"``, ``"compute 151 GFLOP/s"`` or ``"launch 4.10 us"``.
        """
        bandwidth = self.bandwidth(bytes if working_set is None else min(working_set, bytes))
        rate = max(self.gemm[name] for name in (_name(dtype), "float32") if name in self.gemm)
        terms = [
            (bytes / bandwidth, f"memory {bandwidth / 1e9:.3g} GB/s"),
            (flops / rate, f"compute {_engineering(rate)}FLOP/s"),
            (launches * self.launch, f"launch {self.launch * 1e6:.3g} us"),
        ]
        seconds, kind = max(terms)
        return seconds * 1e3, kind

    def as_dict(self) -> dict[str, Any]:
        """Every number, as JSON holds it."""
        return asdict(self)

    def summary(self) -> dict[str, str]:
        """What a reader wants to see of it: name -> figure with its unit."""
        largest, rate = self.copy[-1]
        figures = {f"copy, {largest / 2**20:.0f} MiB": f"{rate / 1e9:.3g} GB/s"}
        if self.device == "cpu":
            figures["copy, in cache"] = f"{self.bandwidth(0) / 1e9:.3g} GB/s"
        figures |= {f"matrix product, {name}": f"{_engineering(rate)}FLOP/s" for name, rate in self.gemm.items()}
        figures["launch"] = f"{self.launch * 1e6:.3g} us"
        if self.device == "cuda":
            figures["launch outside a CUDA graph"] = f"{self.launch_outside * 1e6:.3g} us"
        return figures


def measure(device: str, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)) -> Ceilings:
    """Measure the ceilings of ``device`` ("cpu" or "cuda"): the best of many tries each, a few seconds in all."""
    tiny = torch.zeros(1, device=device)
    outside = _least_seconds(lambda _: tiny.neg_(), _LAUNCHES, "cpu")
    inside = _least_seconds(lambda _: tiny.neg_(), _LAUNCHES, device) if device == "cuda" else outside
    return Ceilings(
        device,
        copy=[(float(size), size / _copy_seconds(size, device)) for size in _COPY_BYTES[device]],
        gemm={_name(dtype): _gemm_rate(dtype, device) for dtype in dict.fromkeys((torch.float32, *dtypes))},
        launch=inside,
        launch_outside=outside,
    )


def _copy_seconds(size: int, device: str) -> float:
    count = 1
    if device == "cuda":
        count = math.ceil(2 * torch.cuda.get_device_properties(0).L2_cache_size / size)
    pairs = [[torch.zeros(size // 8, device=device) for _ in range(2)] for _ in range(count)]
    return _least_seconds(lambda number: pairs[number][0].copy_(pairs[number][1]), count, device)


def _gemm_rate(dtype: torch.dtype, device: str) -> float:
    size = _GEMM_SIZE[device]
    a, b, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
    tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        if device == "cuda" and torch.backends.cudnn.allow_tf32:
            torch.backends.cuda.matmul.allow_tf32 = True
        return 2 * size**3 / _least_seconds(lambda _: torch.mm(a, b, out=out), 1, device)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


def _least_seconds(function: Callable[[int], object], count: int, device: str) -> float:
    """Seconds of one call, the least of many tries; a try is ``count`` calls, on CUDA from one graph."""

    def calls() -> None:
        for number in range(count):
            function(number)

    attempt = partial(_graph_seconds, capture_graph(calls)) if device == "cuda" else partial(_host_seconds, calls)
    end, tries = time.perf_counter() + _SECONDS, [attempt() for _ in range(3)]
    while time.perf_counter() < end:
        tries.append(attempt())
    return min(tries) / count


def _host_seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _graph_seconds(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3


def _engineering(rate: float) -> str:
    return f"{rate / 1e12:.3g} T" if rate >= 1e12 else f"{rate / 1e9:.3g} G"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
