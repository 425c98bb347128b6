"""Triton kernels of the second order of conditional batch normalisation: three passes, as device.py's.

The formulas are those under "Order 2" in csrc/conditional_batch_norm.h. Both first-order factors are rebuilt from x.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from gankernels.ops.conditional_batch_norm.device import (
    _activate_backward,
    _affine,
    _load_row,
    _load_sum,
    _pixels,
    _program,
    _store_sums,
    _z,
)


@triton.jit
def _conditional_batch_norm_backward_backward_sums_kernel(
    ddx_ptr, dy_ptr, x_ptr, gain_ptr, bias_ptr, mean_ptr, var_ptr, sums_ptr,
    C, L, S, rows, chunks, tiles, labels_ptr, classes,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """s0, s1, t0 = sum ddx, t1 = sum ddx (x - mean) and u = sum dz ddx for each row of partial sums: [5, rows, C]."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    mean, _rstd, scale, bias = _affine(
        gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS
    )
    s0 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    s1 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    t0 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    t1 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    u = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x_centered = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(ACC)
        ddx = tl.load(ddx_ptr + offs, mask=mask, other=0.0).to(ACC)
        dz = _activate_backward(_z(x_centered, scale, bias), dy, ACTIVATION, SLOPE)
        s0 += dz
        s1 += dz * x_centered
        t0 += ddx
        t1 += ddx * x_centered
        u += dz * ddx
    _store_sums(sums_ptr, (s0, s1, t0, t1, u), row, rows, offs_c, C, offs_s, S)


@triton.jit
def _conditional_batch_norm_backward_backward_terms_kernel(
    sums_ptr, ddgain_ptr, gain_ptr, var_ptr, dgain_ptr, terms_ptr, N, C, chunks, pixels,
    EPS: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dgain [N, C], and the channel's of_ddx, of_x, of_1, mean_a and mean_ax: [5, C]."""
    ACC: tl.constexpr = var_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    rstd = tl.rsqrt(tl.load(var_ptr + offs_c, mask=offs_c < C, other=1.0) + EPS)
    a = tl.zeros([BLOCK_C], ACC)
    ax = tl.zeros([BLOCK_C], ACC)
    if BATCH_STATISTICS:
        # Averages over the channel's pixels, as ChannelMeans in csrc/conditional_batch_norm.h names them.
        g = tl.zeros([BLOCK_C], ACC)
        gx = tl.zeros([BLOCK_C], ACC)
        ag = tl.zeros([BLOCK_C], ACC)
        p = tl.zeros([BLOCK_C], ACC)
        px = tl.zeros([BLOCK_C], ACC)
        for i in range(0, N, BLOCK_N):
            offs_n = i + tl.arange(0, BLOCK_N)
            mask = (offs_c < C)[:, None] & (offs_n < N)[None, :]
            offs = offs_n.to(tl.int64)[None, :] * C + offs_c[:, None]
            gain = tl.load(gain_ptr + offs, mask=mask, other=0.0).to(ACC)
            ddgain = tl.load(ddgain_ptr + offs, mask=mask, other=0.0).to(ACC)
            s0 = _load_sum(sums_ptr, 0, offs_n, offs_c, N, C, chunks, BLOCK_K)
            s1 = _load_sum(sums_ptr, 1, offs_n, offs_c, N, C, chunks, BLOCK_K)
            g += tl.sum(gain * s0, 1)
            gx += tl.sum(gain * s1, 1)
            a += tl.sum(_load_sum(sums_ptr, 2, offs_n, offs_c, N, C, chunks, BLOCK_K), 1)
            ax += tl.sum(_load_sum(sums_ptr, 3, offs_n, offs_c, N, C, chunks, BLOCK_K), 1)
            ag += tl.sum(gain * _load_sum(sums_ptr, 4, offs_n, offs_c, N, C, chunks, BLOCK_K), 1)
            p += tl.sum(ddgain * s0, 1)
            px += tl.sum(ddgain * s1, 1)
        g, gx, a, ax = g / pixels, rstd * (gx / pixels), a / pixels, rstd * (ax / pixels)
        ag, p, px = ag / pixels, p / pixels, rstd * (px / pixels)
        rstd2 = rstd * rstd
        mask_c = offs_c < C
        tl.store(terms_ptr + offs_c, -rstd2 * gx, mask=mask_c)
        tl.store(terms_ptr + C + offs_c, -rstd2 * (rstd * (ag - a * g - 3.0 * ax * gx) + px), mask=mask_c)
        tl.store(terms_ptr + 2 * C + offs_c, rstd2 * (gx * a + ax * g) - rstd * p, mask=mask_c)
        tl.store(terms_ptr + 3 * C + offs_c, a, mask=mask_c)
        tl.store(terms_ptr + 4 * C + offs_c, ax, mask=mask_c)
    # dgain = rstd (u - mean_a s0 - rstd mean_ax s1)
    for i in range(0, N, BLOCK_N):
        offs_n = i + tl.arange(0, BLOCK_N)
        mask = (offs_c < C)[:, None] & (offs_n < N)[None, :]
        offs = offs_n.to(tl.int64)[None, :] * C + offs_c[:, None]
        dgain = _load_sum(sums_ptr, 4, offs_n, offs_c, N, C, chunks, BLOCK_K)
        if BATCH_STATISTICS:
            dgain -= a[:, None] * _load_sum(sums_ptr, 0, offs_n, offs_c, N, C, chunks, BLOCK_K)
            dgain -= (rstd * ax)[:, None] * _load_sum(sums_ptr, 1, offs_n, offs_c, N, C, chunks, BLOCK_K)
        tl.store(dgain_ptr + offs, (rstd[:, None] * dgain).to(dgain_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _conditional_batch_norm_backward_backward_kernel(
    ddx_ptr, ddgain_ptr, ddbias_ptr, dy_ptr, x_ptr, gain_ptr, bias_ptr, mean_ptr, var_ptr, terms_ptr, ddy_ptr, dx_ptr,
    C, L, S, chunks, tiles, labels_ptr, classes,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, BATCH_STATISTICS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """ddy = act'(z) (scale ddx + of_dz (x - mean) + of_mask)
    dx = of_ddx ddx + of_dz dz + of_x (x - mean) + of_1; where the statistics are constants, of_dz dz alone."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    _row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    mean, rstd, scale, bias = _affine(
        gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS
    )
    mask_c = offs_c < C
    of_dz = rstd * _load_row(ddgain_ptr, labels_ptr, n, classes, offs_c, C).to(ACC)[:, None]
    of_mask = _load_row(ddbias_ptr, labels_ptr, n, classes, offs_c, C).to(ACC)[:, None]
    if BATCH_STATISTICS:
        of_ddx = tl.load(terms_ptr + offs_s, mask=mask_c, other=0.0)[:, None]
        of_x = tl.load(terms_ptr + S + offs_s, mask=mask_c, other=0.0)[:, None]
        of_1 = tl.load(terms_ptr + 2 * S + offs_s, mask=mask_c, other=0.0)[:, None]
        of_mask -= scale * tl.load(terms_ptr + 3 * S + offs_s, mask=mask_c, other=0.0)[:, None]
        of_dz -= rstd * scale * tl.load(terms_ptr + 4 * S + offs_s, mask=mask_c, other=0.0)[:, None]
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x_centered = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC) - mean
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(ACC)
        ddx = tl.load(ddx_ptr + offs, mask=mask, other=0.0).to(ACC)
        z = _z(x_centered, scale, bias)
        ddy = _activate_backward(z, scale * ddx + of_dz * x_centered + of_mask, ACTIVATION, SLOPE)
        dx = of_dz * _activate_backward(z, dy, ACTIVATION, SLOPE)
        if BATCH_STATISTICS:
            dx += of_ddx * ddx + of_x * x_centered + of_1
        tl.store(ddy_ptr + offs, ddy.to(ddy_ptr.dtype.element_ty), mask=mask)
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
