"""Launchers of the Triton kernels in device.py: plain tensors in and out, one launch an order and one for dbias.

They run compiled on CUDA tensors, and on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is
imported). They are asynchronous, allocate by shape alone, and add in an order that depends on shapes alone: safe in a
CUDA graph, and the same bits every time. Arguments are trusted; op.py checks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops._activation import PIECEWISE_LINEAR
from gankernels.ops._launch import FUSION, Specialisation, on_device_of
from gankernels.ops.bias_act import device

# Bytes of one tensor's tile, by order of differentiation: four 16-byte loads a thread, two in the second order, which
# holds up to five tensors.
_TILE_BYTES = (8192, 8192, 4096)
_OPTIONS = {"num_warps": 4} | FUSION
# Channels of a tile where they are innermost: 64 fill whole 128-byte lines in 16 bits, 32 waste fewer lanes between.
_CHANNELS = (64, 32)
# Memory is split until there are this many programs, about 8 for each multiprocessor of a large GPU. A constant, not
# asked of the device, so that sums are added in the same order everywhere.
_PROGRAMS = 1024
# The tile of the sums: 8 channels fill a 32-byte sector of the workspace, and 64 rows give a thread 4 of them.
_SMALL = {"BLOCK_C": 8, "BLOCK_ROWS": 64}


class _Plan(NamedTuple):
    """How memory is cut into programs, from shape, dtype and layout alone."""

    c: int
    l: int  # noqa: E741  (the kernels' L)
    rows: int  # of partial sums: n * chunks
    chunks: int  # runs of tiles that share an n
    tiles: int  # of BLOCK_L numbers in a run
    grid: tuple[int]
    tile: dict[str, Any]  # the kernels' constexprs


def _plan(outer: int, c: int, inner: int, dtype: torch.dtype, order: int) -> _Plan:
    channels_last = inner == 1 and c > 1
    n, length = (1, outer) if channels_last else (outer, inner)
    elements = _TILE_BYTES[order] // dtype.itemsize
    if channels_last:
        widest, narrow = _CHANNELS
        block_c = min(triton.next_power_of_2(c), widest if c % widest == 0 else narrow, elements)
        block_l = min(triton.next_power_of_2(length), elements // block_c)
    else:
        block_l = min(triton.next_power_of_2(length), elements)
        block_c = min(triton.next_power_of_2(c), elements // block_l)
    c_blocks, l_blocks = triton.cdiv(c, block_c), triton.cdiv(length, block_l)
    tiles = triton.cdiv(l_blocks, min(l_blocks, triton.cdiv(_PROGRAMS, n * c_blocks)))
    chunks = triton.cdiv(l_blocks, tiles)
    tile = {"CHANNELS_LAST": channels_last, "BLOCK_C": block_c, "BLOCK_L": block_l} | _OPTIONS
    return _Plan(c, length, n * chunks, chunks, tiles, (n * chunks * c_blocks,), tile)


def _plan_of(x: Tensor, dim: int, per_channel: bool, order: int) -> _Plan:
    """x is dense. Where nothing depends on the channel, all of memory is one."""
    if not per_channel or x.shape[dim] == 1:
        return _plan(1, 1, x.numel(), x.dtype, order)
    c, inner = x.shape[dim], x.stride(dim)
    return _plan(x.numel() // (c * inner), c, inner, x.dtype, order)


def bias_act_forward(
    x: Tensor,  # [..., C, ...]
    bias: Tensor | None,  # [C]
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
    dim: int,
) -> Tensor:
    """``y = clamp(act(x + bias) * gain, -clamp, clamp)`` in x's dtype and layout."""
    x = _layout.dense(x)
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    plan = _plan_of(x, dim, bias is not None, 0)
    with on_device_of(x):
        device._bias_act_forward_kernel[plan.grid](
            x, _contiguous(bias), y, plan.c, plan.l, plan.chunks, plan.tiles,
            **_formula(activation, slope, gain, clamp, x.dtype), **plan.tile,
        )  # fmt: skip
    return y


def bias_act_backward(
    dy: Tensor,  # [..., C, ...]
    x: Tensor | None,  # [..., C, ...]
    bias: Tensor | None,  # [C]
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
    dim: int,
    with_dbias: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients dx, in x's dtype and layout, and dbias, in fp32 (fp64 for fp64), empty unless ``with_dbias``.

    x may be None where the derivative is a constant; dx then has the layout of dy.
    """
    like = _layout.dense(dy if x is None else x)
    dy = _layout.alike(dy, like)
    dx, dbias = torch.empty_like(like), _dbias(like, dim, with_dbias)
    if like.numel() == 0:
        return dx, dbias.zero_()
    plan = _plan_of(like, dim, bias is not None or with_dbias, 1)
    sums = dbias.new_empty(plan.rows, plan.c) if with_dbias else None
    with on_device_of(like):
        device._bias_act_backward_kernel[plan.grid](
            dy, _needed(like, activation, clamp), _contiguous(bias), dx, sums, plan.c, plan.l, plan.chunks, plan.tiles,
            **_formula(activation, slope, gain, clamp, like.dtype), **plan.tile,
        )  # fmt: skip
        _add_up(sums, dbias, plan)
    return dx, dbias


def bias_act_backward_backward(
    ddx: Tensor,  # [..., C, ...]
    ddbias: Tensor | None,  # [C]
    dy: Tensor | None,  # [..., C, ...]
    x: Tensor | None,  # [..., C, ...]
    bias: Tensor | None,  # [C]
    activation: str,
    slope: float,
    gain: float,
    clamp: float | None,
    dim: int,
    with_dbias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The vector-Jacobian product of the backward: cotangents of dx and dbias in, those of dy, x and bias out.

    Where the activation is piecewise linear the last two are zero, and empty; dy is not used. x as for the backward.
    """
    like = _layout.dense(ddx if x is None else x)
    smooth = activation not in PIECEWISE_LINEAR
    ddx, dy = _layout.alike(ddx, like), _layout.alike(dy, like) if smooth and dy is not None else None
    ddy, dx = torch.empty_like(like), torch.empty_like(like) if smooth else like.new_empty(0)
    dbias = _dbias(like, dim, with_dbias)
    if like.numel() == 0:
        return ddy, dx, dbias.zero_()
    plan = _plan_of(like, dim, bias is not None or ddbias is not None or with_dbias, 2)
    sums = dbias.new_empty(plan.rows, plan.c) if with_dbias else None
    with on_device_of(like):
        device._bias_act_backward_backward_kernel[plan.grid](
            ddx, _contiguous(ddbias), dy, _needed(like, activation, clamp), _contiguous(bias), ddy,
            dx if smooth else None, sums, plan.c, plan.l, plan.chunks, plan.tiles,
            **_formula(activation, slope, gain, clamp, like.dtype), **plan.tile,
        )  # fmt: skip
        _add_up(sums, dbias, plan)
    return ddy, dx, dbias


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _needed(x: Tensor, activation: str, clamp: float | None) -> Tensor | None:
    return None if activation == "none" and clamp is None else x


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _dbias(like: Tensor, dim: int, with_dbias: bool) -> Tensor:
    return like.new_empty(like.shape[dim] if with_dbias else 0, dtype=_accumulator(like.dtype))


def _add_up(sums: Tensor | None, dbias: Tensor, plan: _Plan) -> None:
    if sums is not None:
        grid = (triton.cdiv(plan.c, _SMALL["BLOCK_C"]),)
        device._bias_act_dbias_kernel[grid](sums, dbias, plan.c, plan.rows, **_SMALL, **_OPTIONS)


def _formula(activation: str, slope: float, gain: float, clamp: float | None, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "ACTIVATION": activation,
        # A slope that is not used must not make another specialisation.
        "SLOPE": float(slope) if activation == "lrelu" else 0.0,
        "GAIN": float(gain),
        "CLAMP": None if clamp is None else float(clamp),
        "ACC": triton.language.float64 if dtype == torch.float64 else triton.language.float32,
    }


def specialisations() -> Iterator[Specialisation]:
    """Every kernel in every dtype and layout with lrelu, and with gelu, which needs most registers, clamped."""
    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    kernels = (
        device._bias_act_forward_kernel,
        device._bias_act_backward_kernel,
        device._bias_act_backward_backward_kernel,
    )
    for dtype, type_ in types.items():
        accumulator = "fp64" if type_ == "fp64" else "fp32"
        for order, kernel in enumerate(kernels):
            # fp16 differs from bf16 in its conversions alone.
            for inner in (1,) if type_ == "fp16" else (1, 1024):
                for activation, clamp in (("lrelu", None), ("gelu", 256.0)):
                    plan = _plan(65536 // inner, 192, inner, dtype, order)
                    given = _formula(activation, 0.2, 2**0.5, clamp, dtype) | plan.tile
                    if activation in PIECEWISE_LINEAR:
                        given |= {"dx_ptr": None, "dy_ptr": None, "sums_ptr": None} if order == 2 else {}
                    yield _specialisation(kernel, given, type_, accumulator)
        if type_ in ("fp32", "fp64"):
            yield _specialisation(device._bias_act_dbias_kernel, _SMALL, type_, accumulator)


def _specialisation(kernel: Any, given: dict[str, Any], type_: str, accumulator: str) -> Specialisation:
    small = ("bias_ptr", "ddbias_ptr", "dbias_ptr", "sums_ptr")
    signature = {
        name: "constexpr"
        if name in given
        else f"*{accumulator if name in small else type_}"
        if name.endswith("_ptr")
        else "i32"
        for name in kernel.arg_names
    }
    return Specialisation(kernel, signature, {name: given[name] for name in signature if name in given}, _OPTIONS)
