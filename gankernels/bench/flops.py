"""The floating-point operations of a function, as torch counts them; nothing is computed for it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(function: Callable[[], object]) -> float:
    """What ``function()`` takes in convolutions and matrix products; a multiply-add counts as two."""
    with _FlopCounter() as counter:
        function()
    return float(counter.total)


class _FlopCounter(TorchDispatchMode):
    """Adds up torch's formulas. Torch's own counter follows modules, and so refuses ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.total += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out
