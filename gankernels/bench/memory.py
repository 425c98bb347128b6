"""How much memory one call takes beyond its inputs, and what it keeps for its backward."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def peak_mib(call: Callable[[], object], device: str) -> float:
    """The most memory, in MiB, that ``call`` has allocated at one time beyond what was there before it.

    On CUDA this is the peak of torch's allocator. On the CPU the profiler's memory events are added up: they come from
    torch's allocator too, and so count what C++ kernels and compiled code take, but not what a library (oneDNN) takes
    for itself. To be called on a call that has run before, and whose time is not taken.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        results = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        with _silent_stderr(), torch.autograd.profiler.profile(profile_memory=True) as profiler:
            results = call()
        events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
        allocated = peak = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            allocated += event.nbytes()
            peak = max(peak, allocated)
    del results
    return peak / 2**20


def saved_mib(function: Callable[..., object], inputs: Sequence[Tensor]) -> float:
    """MiB of memory that ``function(*inputs)`` keeps for its backward, an input that is kept included.

    Tensors that share memory count once.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        # Held on to, so that no other tensor gets its address.
        kept[storage.data_ptr()] = storage
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        results = function(*inputs)
    del results
    return sum(storage.nbytes() for storage in kept.values()) / 2**20


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Nothing reaches the process's stderr: torch 2.13's profiler writes two lines there each time it runs."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
