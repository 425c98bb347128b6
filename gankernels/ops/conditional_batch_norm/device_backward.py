"""Triton kernels of the first order of conditional batch normalisation: three passes, as device.py describes them.

The formulas are those under "Order 1" in csrc/conditional_batch_norm.h.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from gankernels.ops.conditional_batch_norm.device import (
    _activate_backward,
    _affine,
    _load_sum,
    _pixels,
    _program,
    _store_sums,
    _z,
)


@triton.jit
def _conditional_batch_norm_backward_sums_kernel(
    dy_ptr, x_ptr, gain_ptr, bias_ptr, mean_ptr, var_ptr, sums_ptr, C, L, S, rows, chunks, tiles, labels_ptr, classes,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """s0 = sum dz and s1 = sum dz (x - mean), with dz = act'(z) dy, for each row of partial sums: [2, rows, C]."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    mean, _rstd, scale, bias = _affine(
        gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS
    )
    s0 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    s1 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x_centered = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(ACC)
        dz = _activate_backward(_z(x_centered, scale, bias), dy, ACTIVATION, SLOPE)
        s0 += dz
        s1 += dz * x_centered
    _store_sums(sums_ptr, (s0, s1), row, rows, offs_c, C, offs_s, S)


@triton.jit
def _conditional_batch_norm_backward_terms_kernel(
    sums_ptr, gain_ptr, var_ptr, dgain_ptr, dbias_ptr, terms_ptr, N, C, chunks, pixels,
    EPS: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dgain = rstd s1 and dbias = s0, [N, C]; of_x = -rstd^3 mean(gain s1) and of_1 = -rstd mean(gain s0), [2, C]."""
    ACC: tl.constexpr = var_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rstd = tl.rsqrt(tl.load(var_ptr + offs_c, mask=offs_c < C, other=1.0) + EPS)
    mean_g = tl.zeros([BLOCK_C], ACC)
    mean_gx = tl.zeros([BLOCK_C], ACC)
    for i in range(0, N, BLOCK_N):
        offs_n = i + tl.arange(0, BLOCK_N)
        mask = (offs_c < C)[:, None] & (offs_n < N)[None, :]
        offs = offs_n.to(tl.int64)[None, :] * C + offs_c[:, None]
        s0 = _load_sum(sums_ptr, 0, offs_n, offs_c, N, C, chunks, BLOCK_K)
        s1 = _load_sum(sums_ptr, 1, offs_n, offs_c, N, C, chunks, BLOCK_K)
        tl.store(dbias_ptr + offs, s0.to(dbias_ptr.dtype.element_ty), mask=mask)
        tl.store(dgain_ptr + offs, (s1 * rstd[:, None]).to(dgain_ptr.dtype.element_ty), mask=mask)
        if BATCH_STATISTICS:
            gain = tl.load(gain_ptr + offs, mask=mask, other=0.0).to(ACC)
            mean_g += tl.sum(gain * s0, 1)
            mean_gx += tl.sum(gain * s1, 1)
    if BATCH_STATISTICS:
        tl.store(terms_ptr + offs_c, -rstd * rstd * rstd * (mean_gx / pixels), mask=offs_c < C)
        tl.store(terms_ptr + C + offs_c, -rstd * (mean_g / pixels), mask=offs_c < C)


@triton.jit
def _conditional_batch_norm_backward_kernel(
    dy_ptr, x_ptr, gain_ptr, bias_ptr, mean_ptr, var_ptr, terms_ptr, dx_ptr,
    C, L, S, chunks, tiles, labels_ptr, classes,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """dx = scale dz + of_x (x - mean) + of_1; where the statistics are constants, scale dz alone."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    _row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    mean, _rstd, scale, bias = _affine(
        gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS
    )
    if BATCH_STATISTICS:
        of_x = tl.load(terms_ptr + offs_s, mask=offs_c < C, other=0.0)[:, None]
        of_1 = tl.load(terms_ptr + S + offs_s, mask=offs_c < C, other=0.0)[:, None]
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x_centered = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(ACC)
        dx = scale * _activate_backward(_z(x_centered, scale, bias), dy, ACTIVATION, SLOPE)
        if BATCH_STATISTICS:
            dx += of_x * x_centered + of_1
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
