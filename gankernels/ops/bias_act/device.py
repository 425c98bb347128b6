"""Triton kernels of bias_act. kernels.py launches them; the formulas are those of csrc/bias_act.h.

Memory holds [N, C, L] numbers, or [L, C] where channels are innermost (CHANNELS_LAST, N = 1). A program owns one n,
BLOCK_C channels and a run of ``tiles`` tiles of BLOCK_L numbers. Sums for dbias go to a workspace [rows, C] with
row = n * chunks + chunk, and are added up in a fixed order.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from gankernels.ops._activation_device import activate, activate_backward, activate_backward_backward


@triton.jit
def _program(C, chunks, tiles, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr):
    """This program's row of partial sums, its n, its channels and its first number."""
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    row = (pid // c_blocks).to(tl.int64)
    offs_c = pid % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    return row, row // chunks, offs_c, row % chunks * (tiles * BLOCK_L)


@triton.jit
def _offsets(n, offs_c, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_L] of a tile, 64-bit, and its mask."""
    offs_l = start + tl.arange(0, BLOCK_L)
    mask = (offs_c < C)[:, None] & (offs_l < L)[None, :]
    offs = offs_l[None, :] * C + offs_c[:, None] if CHANNELS_LAST else (n * C + offs_c)[:, None] * L + offs_l[None, :]
    return offs, mask


@triton.jit
def _per_channel(ptr, offs_c, C, ACC: tl.constexpr):
    """[BLOCK_C, 1]; None stands for zeros."""
    if ptr is None:
        return tl.zeros([offs_c.shape[0], 1], ACC)
    return tl.load(ptr + offs_c, mask=offs_c < C, other=0.0).to(ACC)[:, None]


@triton.jit
def _load(ptr, offs, mask, ACC: tl.constexpr):
    if ptr is None:
        return tl.zeros(offs.shape, ACC)
    return tl.load(ptr + offs, mask=mask, other=0.0).to(ACC)


@triton.jit
def _within(z, g, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr):
    """g where |gain act(z)| <= clamp, else 0."""
    if CLAMP is not None:
        y = activate(z, ACTIVATION, SLOPE) * GAIN
        g = tl.where((y >= -CLAMP) & (y <= CLAMP), g, 0.0)
    return g


@triton.jit
def _bias_act_forward_kernel(
    x_ptr, bias_ptr, y_ptr, C, L, chunks, tiles,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """y = clamp(gain act(x + bias))"""
    _row, n, offs_c, start = _program(C, chunks, tiles, BLOCK_C, BLOCK_L)
    bias = _per_channel(bias_ptr, offs_c, C, ACC)
    for i in range(tiles):
        offs, mask = _offsets(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        y = activate(_load(x_ptr, offs, mask, ACC) + bias, ACTIVATION, SLOPE) * GAIN
        if CLAMP is not None:
            y = tl.where(y > CLAMP, CLAMP, tl.where(y < -CLAMP, -CLAMP, y))
        tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _bias_act_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, sums_ptr, C, L, chunks, tiles,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """dz = gain act'(z) dy, which is dx, and its sums [rows, C]."""
    row, n, offs_c, start = _program(C, chunks, tiles, BLOCK_C, BLOCK_L)
    bias = _per_channel(bias_ptr, offs_c, C, ACC)
    sums = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    for i in range(tiles):
        offs, mask = _offsets(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        z = _load(x_ptr, offs, mask, ACC) + bias
        dy = _load(dy_ptr, offs, mask, ACC)
        dz = activate_backward(z, _within(z, dy, ACTIVATION, SLOPE, GAIN, CLAMP) * GAIN, ACTIVATION, SLOPE)
        sums += dz
        tl.store(dx_ptr + offs, dz.to(dx_ptr.dtype.element_ty), mask=mask)
    if sums_ptr is not None:
        tl.store(sums_ptr + row * C + offs_c, tl.sum(sums, 1), mask=offs_c < C)


@triton.jit
def _bias_act_backward_backward_kernel(
    ddx_ptr, ddbias_ptr, dy_ptr, x_ptr, bias_ptr, ddy_ptr, dx_ptr, sums_ptr, C, L, chunks, tiles,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, GAIN: tl.constexpr, CLAMP: tl.constexpr, ACC: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """With a = ddx + ddbias: ddy = gain act'(z) a, and of a smooth activation dx = gain act''(z) dy a with its sums."""
    row, n, offs_c, start = _program(C, chunks, tiles, BLOCK_C, BLOCK_L)
    bias = _per_channel(bias_ptr, offs_c, C, ACC)
    ddbias = _per_channel(ddbias_ptr, offs_c, C, ACC)
    sums = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    for i in range(tiles):
        offs, mask = _offsets(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        z = _load(x_ptr, offs, mask, ACC) + bias
        # Past the end of a channel ddbias would enter the sums.
        a = tl.where(mask, _load(ddx_ptr, offs, mask, ACC) + ddbias, 0.0)
        ddy = _within(z, activate_backward(z, a, ACTIVATION, SLOPE) * GAIN, ACTIVATION, SLOPE, GAIN, CLAMP)
        tl.store(ddy_ptr + offs, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
        if dx_ptr is not None:
            dy = _within(z, _load(dy_ptr, offs, mask, ACC), ACTIVATION, SLOPE, GAIN, CLAMP)
            dz = activate_backward_backward(z, dy * GAIN * a, ACTIVATION)
            sums += dz
            tl.store(dx_ptr + offs, dz.to(dx_ptr.dtype.element_ty), mask=mask)
    if sums_ptr is not None:
        tl.store(sums_ptr + row * C + offs_c, tl.sum(sums, 1), mask=offs_c < C)


@triton.jit
def _bias_act_dbias_kernel(sums_ptr, dbias_ptr, C, rows, BLOCK_C: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """dbias [C] from the sums [rows, C]."""
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    lanes = tl.zeros([BLOCK_C, BLOCK_ROWS], sums_ptr.dtype.element_ty)
    for i in range(0, rows, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask = (offs_c < C)[:, None] & (offs_row < rows)[None, :]
        lanes += tl.load(sums_ptr + offs_row.to(tl.int64)[None, :] * C + offs_c[:, None], mask=mask, other=0.0)
    tl.store(dbias_ptr + offs_c, tl.sum(lanes, 1), mask=offs_c < C)
