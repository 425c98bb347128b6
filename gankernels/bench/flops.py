"""The floating-point operations of a function, as torch counts them; nothing is computed for it on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def count_flops(function: Callable[[], object]) -> float:
    """What ``function()`` takes in convolutions and matrix products; a multiply-add counts as two."""
    with _FlopCounter() as counter:
        function()
    return float(counter.total)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *geometry: Any, out_val: Any = None
) -> int:
    """Each gradient takes what y does. torch's own formula counts a weight gradient as if there were no groups."""
    *_, transposed, _, _, mask = geometry
    small = x if transposed else dy
    return 2 * weight.numel() * small.shape[0] * small.shape[2:].numel() * sum(mask[:2])


_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward,
}


class _FlopCounter(TorchDispatchMode):
    """Adds up torch's formulas. Torch's own counter follows modules, and so refuses ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in _FORMULAS:
            self.total += _FORMULAS[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out
