"""The floating-point operations of a function, as torch counts them; nothing is computed for it on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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


def convolution_flops(op: str, args: Sequence[Any], out: Any) -> float:
    """Of a call of one of the three convolution ops of ``gankernels_library``; the same picture sizes, the same FLOPs.

    Every pixel that stands on the weight's own side, of y in a convolution and of x in a transposed one, meets the
    whole kernel once.
    """
    x, y, weight_shape = {
        "convolution": lambda: (args[0], out, args[1].shape),
        "convolution_input_gradient": lambda: (out, args[0], args[1].shape),
        "convolution_weight_gradient": lambda: (args[1], args[0], args[2]),
    }[op]()
    *_, transposed, _, _ = args
    batch, _, *pixels = (x if transposed else y).shape
    return 2.0 * batch * math.prod(pixels) * math.prod(weight_shape)
