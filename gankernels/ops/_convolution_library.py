"""What runs the ops of :mod:`gankernels.ops._convolution`: one call of PyTorch's library each, and how it is made."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gankernels.ops import _convolution_gemm as gemm
from gankernels.ops._convolution_arguments import output_size
from gankernels.ops._layout import prefers_channels_last, strides_4d

_aten = torch.ops.aten
_LOW = (torch.bfloat16, torch.float16)


class Call(NamedTuple):
    """How the library is called: its operands' dtype and layout."""

    dtype: torch.dtype
    channels_last: bool


def plan(device: str, dtype: torch.dtype, groups: int, channels_last: bool, has_hardware: bool) -> Call:
    """The rule, from measurements in ``docs/ops/conv2d.md``.

    Args:
        device: the device type.
        dtype: of the operands.
        groups: of the convolution.
        channels_last: whether the result is to be so.
        has_hardware: whether the device multiplies in ``dtype``.
    """
    if dtype not in _LOW:
        return Call(dtype, channels_last)
    if not has_hardware:
        return Call(torch.float32, channels_last)
    return Call(dtype, channels_last or groups == 1)


def has_hardware(device: str, dtype: torch.dtype) -> bool:
    """Whether a device type multiplies in ``dtype``. A CPU that does not makes oneDNN emulate it, many times slower."""
    if device != "cpu":
        return True
    return _CPU_HARDWARE.get(dtype, True)


def _cpu_multiplies(query: str) -> bool:
    """torch's own question to oneDNN; a build without it has no 16-bit convolutions to be had."""
    asked = getattr(torch.ops.mkldnn, query, None)
    return asked is not None and bool(asked())


_CPU_HARDWARE = {
    torch.bfloat16: _cpu_multiplies("_is_mkldnn_bf16_supported"),
    torch.float16: _cpu_multiplies("_is_mkldnn_fp16_supported"),
}


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """y = conv(x, weight) + bias."""
    run = _Run(x, weight, groups=geometry[-1])
    if run.empty:
        zeros = run.zeros(output_size(x.shape, weight.shape, *geometry))
        return zeros if bias is None else zeros.add_(bias[:, None, None])
    operands = run.operand(x), run.operand(weight), run.vector(bias)
    size = output_size(x.shape, weight.shape, *geometry)
    with run.exact:
        y = run.product(*operands, size, geometry, to_big=geometry[3])
        if y is None:
            y = _aten.convolution(*operands, *geometry)
    return run.result(y)


def convolution_input_gradient(dy: Tensor, weight: Tensor, x_size: Sequence[int], *geometry: Any) -> Tensor:
    """dx with <dx, x> = <dy, conv(x, weight)>."""
    run = _Run(dy, weight, groups=geometry[-1])
    if run.empty:
        return run.zeros(x_size)
    operands, mask = (run.operand(dy), run.operand(weight)), [True, False, False]
    with run.exact:
        dx = run.product(*operands, None, x_size, geometry, to_big=not geometry[3])
        if dx is None:
            dx, _, _ = _aten.convolution_backward(
                operands[0], run.unread(x_size, operands[0]), operands[1], None, *geometry, mask
            )
    return run.result(dx)


def convolution_weight_gradient(
    dy: Tensor, x: Tensor, weight_size: Sequence[int], with_bias: bool, *geometry: Any
) -> tuple[Tensor, Tensor]:
    """dw with <dw, weight> = <dy, conv(x, weight)>, and db, dy's sum over all but its channels (empty without bias)."""
    run = _Run(dy, x, groups=geometry[-1])
    if run.empty:
        return run.zeros(weight_size), dy.sum((0, 2, 3)) if with_bias else dy.new_empty(0)
    operands, mask = (run.operand(dy), run.operand(x)), [False, True, with_bias]
    small, big = reversed(operands) if geometry[3] else operands
    with run.exact:
        if run.by_product("weight", weight_size, small.shape, big.shape, geometry):
            dw = gemm.weight_gradient(small, big, weight_size[2:], *geometry[:3], channels_last=run.channels_last)
            db = operands[0].sum((0, 2, 3)) if with_bias else dy.new_empty(0)
        else:
            bias_size = [dy.shape[1]] if with_bias else None
            _, dw, db = _aten.convolution_backward(
                *operands, run.unread(weight_size, *operands), bias_size, *geometry, mask
            )
    return run.result(dw), db.to(dy.dtype) if with_bias else dy.new_empty(0)


class _Run:
    """One call: its operands as the plan wants them, and its result as the fakes promise it."""

    def __init__(self, a: Tensor, b: Tensor, groups: int) -> None:
        device = a.device.type
        self.empty = 0 in (a.numel(), b.numel())
        self._like, self._dtype = a, a.dtype
        self._channels_last = prefers_channels_last(a) or prefers_channels_last(b)
        self._call = plan(device, a.dtype, groups, self._channels_last, has_hardware(device, a.dtype))
        # Autocast would round the operands again.
        on = torch.is_autocast_enabled(device)
        self.exact: Any = torch.autocast(device, enabled=False) if on else contextlib.nullcontext()

    def by_product(
        self,
        what: str,
        weight_size: Sequence[int],
        small_size: Sequence[int],
        big_size: Sequence[int],
        geometry: Sequence[Any],
    ) -> bool:
        """Whether :mod:`gankernels.ops._convolution_gemm` is the way."""
        if self._like.device.type != "cpu" or geometry[-1] != 1:
            return False
        stride, padding, *_ = geometry
        return gemm.is_faster(what, weight_size, small_size, big_size, stride, padding, self.channels_last)

    def product(
        self,
        picture: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        size: Sequence[int],
        geometry: Sequence[Any],
        *,
        to_big: bool,
    ) -> Tensor | None:
        """The other picture, [*size], as a matrix product; None where that is not the way."""
        if to_big:
            if not self.by_product("big", weight.shape, picture.shape, size, geometry):
                return None
            return gemm.big(picture, weight, bias, size, *geometry[:3], channels_last=self.channels_last)
        if not self.by_product("small", weight.shape, size, picture.shape, geometry):
            return None
        return gemm.small(picture, weight, bias, size, *geometry[:3], channels_last=self.channels_last)

    @property
    def channels_last(self) -> bool:
        """The operands' layout."""
        return self._call.channels_last

    def operand(self, t: Tensor) -> Tensor:
        return _laid_out(t, *self._call)

    def vector(self, t: Tensor | None) -> Tensor | None:
        return None if t is None else t.to(self._call.dtype)

    def unread(self, size: Sequence[int], *operands: Tensor) -> Tensor:
        """Stands for the operand whose size alone the library asks for: memory of another one where that suffices."""
        strides = strides_4d(size, self._call.channels_last)
        for t in operands:
            if t.numel() >= math.prod(size):
                return t.as_strided(size, strides)
        return self._like.new_empty_strided(size, strides, dtype=self._call.dtype)

    def zeros(self, size: Sequence[int]) -> Tensor:
        """A result of an empty operand, for which the library's own are not all as they should be."""
        return self._like.new_empty_strided(size, strides_4d(size, self._channels_last)).zero_()

    def result(self, t: Tensor) -> Tensor:
        return _laid_out(t, self._dtype, self._channels_last)


def _laid_out(t: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """t in a dtype and with the strides of a layout; a copy only where its memory differs."""
    strides = strides_4d(t.shape, channels_last)
    if t.dtype != dtype or any(a != b for a, b, size in zip(t.stride(), strides, t.shape, strict=True) if size != 1):
        return t.new_empty_strided(t.shape, strides, dtype=dtype).copy_(t)
    # The strides of a dimension of one element vote on the layout too.
    return t if t.stride() == strides else t.as_strided(t.shape, strides)


#: As what csrc/torch/convolution.cpp calls them.
planned_convolution = convolution
planned_convolution_input_gradient = convolution_input_gradient
planned_convolution_weight_gradient = convolution_weight_gradient
