"""Triton kernels of conv_transpose2d's weight gradient: a GEMM over pixels, split so that it fills the GPU."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from gankernels.ops.conv_transpose2d.device import _inside, _operand


@triton.jit
def _conv_transpose2d_weight_gradient_kernel(
    x_ptr, scale_ptr, shift_ptr, dz_ptr, sums_ptr,
    N, H, W, C_IN, OH, OW, C_OUT, KH, KW, stride_h, stride_w, pad_h, pad_w, steps,
    X_ACTIVATION: tl.constexpr, X_SLOPE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[ci, kh, kw, co] = sum over n, ih, iw of operand(x)[n, ih, iw, ci] dz[n, ih s - p + kh, iw s - p + kw, co].

    A program owns a tap, a block of ci and co, and ``steps`` blocks of x's pixels: sums [splits, C_IN, KH, KW, C_OUT].
    """
    m_blocks, n_blocks, taps = tl.cdiv(C_IN, BLOCK_M), tl.cdiv(C_OUT, BLOCK_N), KH * KW
    pid = tl.program_id(0)
    pid_n, pid_m = pid % n_blocks, pid // n_blocks % m_blocks
    tap, split = pid // (n_blocks * m_blocks) % taps, pid // (n_blocks * m_blocks * taps)
    kh, kw = tap // KW, tap % KW
    offs_m, offs_n = pid_m * BLOCK_M + tl.arange(0, BLOCK_M), pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Rows and columns past the last are computed from the first ones and not stored.
    row_m, column_n = offs_m % C_IN, offs_n % C_OUT
    pixels = tl.cast(H * W, tl.int64) * N
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for i in range(steps):
        block = tl.cast(split, tl.int64) * steps + i
        if scale_ptr is not None:
            # No block of pixels spans two pictures, so a channel has one scale and shift.
            blocks = tl.cdiv(H * W, BLOCK_K)
            n, pixel = block // blocks, (block % blocks).to(tl.int32) * BLOCK_K + tl.arange(0, BLOCK_K)
            ok = pixel < tl.where(n < N, H * W, 0)
            n, pixel = tl.minimum(n, N - 1), tl.minimum(pixel, H * W - 1)
            offs_nc = (n * C_IN + row_m)[None, :]
        else:
            offs_p = block * BLOCK_K + tl.arange(0, BLOCK_K)
            ok = offs_p < pixels
            offs_p = tl.minimum(offs_p, pixels - 1)
            n = offs_p // (H * W)
            pixel = (offs_p - n * (H * W)).to(tl.int32)
            offs_nc = None
        oh, ok_h = _inside(pixel // W * stride_h - pad_h + kh, OH)
        ow, ok_w = _inside(pixel % W * stride_w - pad_w + kw, OW)
        # Both factors are zero outside of dz: 0 * inf would be NaN.
        ok = (ok & ok_h & ok_w)[:, None]
        a = _operand(
            x_ptr, (n * (H * W) + pixel)[:, None] * C_IN + row_m[None, :], ok,
            None, scale_ptr, shift_ptr, offs_nc, X_ACTIVATION, X_SLOPE, ACC, UPCAST,
        )  # fmt: skip
        b = _operand(
            dz_ptr, ((n * OH + oh) * OW + ow)[:, None] * C_OUT + column_n[None, :], ok,
            None, None, None, None, "none", 0.0, ACC, UPCAST,
        )  # fmt: skip
        acc = tl.dot(tl.trans(a), b.to(a.dtype), acc, input_precision=PRECISION, out_dtype=ACC)
    mask = (offs_m < C_IN)[:, None] & (offs_n < C_OUT)[None, :]
    offs = ((tl.cast(split, tl.int64) * C_IN + offs_m)[:, None] * taps + tap) * C_OUT + offs_n[None, :]
    tl.store(sums_ptr + offs, acc.to(sums_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _conv_transpose2d_add_up_kernel(sums_ptr, dweight_ptr, L, splits, BLOCK_L: tl.constexpr):
    """dweight [L] from the sums [splits, L], in the order of the splits."""
    offs = tl.cast(tl.program_id(0), tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    mask = offs < L
    acc = tl.zeros([BLOCK_L], sums_ptr.dtype.element_ty)
    for split in range(splits):
        acc += tl.load(sums_ptr + tl.cast(split, tl.int64) * L + offs, mask=mask, other=0.0)
    tl.store(dweight_ptr + offs, acc.to(dweight_ptr.dtype.element_ty), mask=mask)
