"""The floating-point operations of a function, as torch counts them; nothing is computed for it on the meta device."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import gankernels.ops._attention  # noqa: F401  it and gankernels.ops register the ops that are named below


def count_flops(function: Callable[[], object]) -> float:
    """What ``function()`` takes in convolutions and matrix products; a multiply-add counts as two."""
    with _FlopCounter() as counter:
        function()
    return float(counter.total)


def flops_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int | None:
    """What a call of an op overload took; None where the op has no products."""
    formula = _FORMULAS.get(op.overloadpacket)
    return None if formula is None else formula(*args, **kwargs, out_val=out)


def _of_convolution(x: Tensor, y: Tensor, weight_size: Sequence[int], transposed: bool) -> int:
    """For each pixel that has a place of the kernel, the whole weight; so for y, for dx and for dw."""
    batch, _, *pixels = (x if transposed else y).shape
    return 2 * batch * math.prod(pixels) * math.prod(weight_size)


def _convolution(x: Tensor, weight: Tensor, bias: Any, *geometry: Any, out_val: Tensor) -> int:
    *_, transposed, _, _ = geometry
    return _of_convolution(x, out_val, weight.shape, transposed)


def _input_gradient(dy: Tensor, weight: Tensor, x_size: Any, *geometry: Any, out_val: Tensor) -> int:
    *_, transposed, _, _ = geometry
    return _of_convolution(out_val, dy, weight.shape, transposed)


def _weight_gradient(
    dy: Tensor, x: Tensor, weight_size: Sequence[int], with_bias: bool, *geometry: Any, out_val: Any
) -> int:
    *_, transposed, _, _ = geometry
    return _of_convolution(x, dy, weight_size, transposed)


def _convolution_backward(
    dy: Tensor, x: Tensor, weight: Tensor, bias_sizes: Any, *geometry: Any, out_val: Any = None
) -> int:
    """torch's own formula counts a weight gradient as if there were no groups."""
    *_, transposed, _, _, mask = geometry
    return _of_convolution(x, dy, weight.shape, transposed) * sum(mask[:2])


def _attention(query: Tensor, key: Tensor, value: Tensor, *, out_val: Any) -> int:
    """query key^T, and the product of its softmax with value."""
    return 2 * query.numel() * key.shape[1] + 2 * query.shape[1] * value.numel()


def _attention_backward(dy: Tensor, query: Tensor, key: Tensor, value: Tensor, *rest: Any, out_val: Any) -> int:
    """The scores once more, and a product for each of dscores, dquery, dkey and dvalue."""
    return 3 * 2 * query.numel() * key.shape[1] + 2 * 2 * query.shape[1] * value.numel()


_library = torch.ops.gankernels_library
_FORMULAS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.convolution_backward: _convolution_backward,
    _library.convolution: _convolution,
    _library.convolution_input_gradient: _input_gradient,
    _library.convolution_weight_gradient: _weight_gradient,
    _library.attention_forward: _attention,
    _library.attention_backward: _attention_backward,
}


class _FlopCounter(TorchDispatchMode):
    """Adds up the formulas. Torch's own counter follows modules, and so refuses ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += flops_of(func, args, kwargs or {}, out) or 0
        return out
