"""Where the time of a step goes, part by part, and the least that each part could take on this machine.

Every op that reaches the dispatcher below autograd is timed by itself, and held against the FLOPs and the bytes that it
cannot do without. What lies between the ops (Python, autograd's engine) is a part of its own.

    from gankernels.bench import ceilings, profile

    for part in profile.profile(step, ceilings.measure("cpu")):  # step: a function without arguments
        print(part.name, part.calls, part.ms, part.floor_ms)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gankernels.bench.ceilings import Ceilings
from gankernels.bench.flops import flops_of
from gankernels.errors import InputError
from gankernels.ops._registration import NAMESPACES

#: What no op takes.
BETWEEN = "between the ops"

_OTHERS, _PRODUCTS = "PyTorch's other ops", "matrix products"
_CONVOLUTIONS = {
    "convolution": "forward",
    "convolution_input_gradient": "input gradient",
    "convolution_weight_gradient": "weight gradient",
}


@dataclass
class Part:
    """The ops of one kind in one call of the function, together.

    Attributes:
        name: of a registered op, or of a kind of them: "convolution, forward", "grouped convolution, weight gradient",
            "matrix products", "PyTorch's other ops", :data:`BETWEEN`.
        calls: their number.
        ms: what they took.
        flops: of products and sums of products; a multiply-add counts as two.
        bytes: of their operands and results, each once a call; views are free.
        floor_ms: the sum over the calls of the larger of FLOPs and bytes over this machine's rates.
    """

    name: str
    calls: int = 0
    ms: float = 0.0
    flops: float = 0.0
    bytes: float = 0.0
    floor_ms: float = 0.0


def profile(function: Callable[[], object], ceilings: Ceilings, *, repeats: int = 3) -> list[Part]:
    """The parts of ``function()``, the longest first; their ms add up to those of the whole call.

    The figures are medians over ``repeats`` calls, after one that warms up. What the bookkeeping takes does not count,
    but for some microseconds an op in :data:`BETWEEN`, which the dispatcher takes to come here.

    Args:
        function: a step, on a CPU.
        ceilings: of this machine, from :func:`gankernels.bench.ceilings.measure`.
        repeats: calls that count, at least 1.

    Raises:
        InputError: ``ceilings`` are of a GPU, whose kernels run behind the host's back, or ``repeats`` is below 1.
    """
    if ceilings.device != "cpu":
        raise InputError(f"ceilings: got those of {ceilings.device!r}, expected 'cpu'")
    if repeats < 1:
        raise InputError(f"repeats: got {repeats}, expected at least 1")
    function()
    runs = [_run(function, ceilings) for _ in range(repeats)]
    parts = runs[0]
    for name, part in parts.items():
        part.ms = median(run[name].ms for run in runs)
    return sorted(parts.values(), key=lambda part: -part.ms)


def _run(function: Callable[[], object], ceilings: Ceilings) -> dict[str, Part]:
    with _Clock(ceilings) as clock:
        start = time.perf_counter()
        function()
        whole = (time.perf_counter() - start) * 1e3
    between = whole - clock.bookkeeping_ms - sum(part.ms for part in clock.parts.values())
    return clock.parts | {BETWEEN: Part(BETWEEN, 0, between)}


class _Clock(TorchDispatchMode):
    """Adds up the parts of what runs below it."""

    def __init__(self, ceilings: Ceilings) -> None:
        super().__init__()
        self.ceilings = ceilings
        self.parts: dict[str, Part] = {}
        self.bookkeeping_ms = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        start = time.perf_counter()
        out = func(*args, **kwargs)
        end = time.perf_counter()
        flops = flops_of(func, args, kwargs, out)
        name = _name(func, args, flops is not None)
        # A view has neither bytes nor a kernel, and detach is none in its schema.
        view = func.is_view or func is torch.ops.aten.detach.default
        bytes = 0 if view else _bytes([*args, *kwargs.values(), out])
        floor, _ = self.ceilings.floor(bytes, flops or 0, 0 if view else 1, _dtype(out))
        part = self.parts.setdefault(name, Part(name))
        part.calls += 1
        part.ms += (end - start) * 1e3
        part.flops += flops or 0
        part.bytes += bytes
        part.floor_ms += floor
        self.bookkeeping_ms += (time.perf_counter() - end) * 1e3
        return out


def _name(op: Any, args: Sequence[Any], has_products: bool) -> str:
    """The name of the part that a call belongs to."""
    name = op.overloadpacket.__name__
    if op.namespace == NAMESPACES["library"] and name in _CONVOLUTIONS:
        return f"{'grouped ' if args[-1] > 1 else ''}convolution, {_CONVOLUTIONS[name]}"
    if op.namespace in NAMESPACES.values():
        return name
    return _PRODUCTS if has_products else _OTHERS


def _dtype(out: Any) -> torch.dtype:
    return next((t.dtype for t in tree_leaves(out) if isinstance(t, Tensor)), torch.float32)


def _bytes(tree: Sequence[Any]) -> int:
    """Of the distinct tensors among the leaves: what is read and written at least."""
    tensors = {(t.data_ptr(), t.shape): t for t in tree_leaves(tree) if isinstance(t, Tensor)}
    return sum(t.numel() * t.itemsize for t in tensors.values())
