"""Triton kernels of conv_transpose2d: a GEMM that gathers its left operand from a channels_last tensor. kernels.py
launches them.

One kernel is the transposed convolution and, with TRANSPOSED False, the ordinary strided one, which is its input
gradient. Rows are output pixels, columns output channels; a tap is one (kh, kw), and the loop runs over taps and blocks
of input channels. With t = oh + padding, an output pixel of a transposed convolution takes

    y[oh] = sum over kh = t mod stride, ... + stride, ... < KH of x[(t - kh) / stride] w[kh],

so the pixels with the same t mod stride, a *phase*, share their taps, and no zero between pixels of x is multiplied.
The least t // stride of a phase is its origin. Pixels of x outside of the picture count as zero; their addresses are
moved inside, because Triton's asynchronous copies form the address of a masked element too (pytorch #187081).
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from gankernels.ops._activation_device import activate, activate_backward


@triton.jit
def _phase(r, stride, pad, size, k):
    """Origin, pixels and taps along one dimension of the phase r = (o + pad) mod stride, of an output of ``size``."""
    # The smallest t // stride with t = r + stride * (t // stride) >= pad, and the first with t >= pad + size.
    origin = (pad - r + stride - 1) // stride
    return origin, (pad + size - r + stride - 1) // stride - origin, (k - r + stride - 1) // stride


@triton.jit
def _inside(i, size):
    """i moved into [0, size), and whether it was there."""
    return tl.minimum(tl.maximum(i, 0), size - 1), (i >= 0) & (i < size)


@triton.jit
def _operand(
    ptr, offs, mask, gate_ptr, scale_ptr, shift_ptr, offs_nc,
    ACTIVATION: tl.constexpr, SLOPE: tl.constexpr, ACC: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A tile of an operand of tl.dot, with zeros where ``mask`` is False.

    With scale and shift: act(x scale[n,c] + shift[n,c]), which is not zero where x is. With a gate, the y that act
    returned: act'(z) x, for z has the sign of y.
    """
    a = tl.load(ptr + offs, mask=mask, other=0.0)
    # The interpreter computes in the bits of bf16 as if they were integers.
    OPERAND: tl.constexpr = ACC if UPCAST else ptr.dtype.element_ty
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + offs_nc).to(ACC)
        shift = tl.load(shift_ptr + offs_nc).to(ACC)
        a = tl.where(mask, activate(a.to(ACC) * scale + shift, ACTIVATION, SLOPE), 0.0)
    if gate_ptr is not None:
        gate = tl.load(gate_ptr + offs, mask=mask, other=0.0).to(ACC)
        a = activate_backward(gate, a.to(ACC), ACTIVATION, SLOPE)
    return a.to(OPERAND)


@triton.jit
def _conv_transpose2d_gather_kernel(
    x_ptr, gate_ptr, scale_ptr, shift_ptr, weight_ptr, bias_ptr, y_ptr, counts_ptr, moments_ptr,
    N, H, W, C_IN, OH, OW, C_OUT, KH, KW, stride_h, stride_w, pad_h, pad_w, m_blocks,
    TRANSPOSED: tl.constexpr, C_IN_INNERMOST: tl.constexpr,
    X_ACTIVATION: tl.constexpr, X_SLOPE: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    GROUP_M: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """y = act(conv(operand(x), weight) + bias), and the count, mean and M2 of y's channels in each block of rows.

    weight is [C_OUT, KH, KW, C_IN] with C_IN_INNERMOST, else [C_IN, KH, KW, C_OUT]. counts [rows] and moments
    [2, rows, C_OUT] have row = phase * m_blocks + block. With scale no block of rows spans two pictures.
    """
    # Blocks of rows in groups, so that a group's pixels stay in L2 while phases and columns run over them.
    n_blocks = tl.cdiv(C_OUT, BLOCK_N)
    columns = n_blocks * stride_h * stride_w if TRANSPOSED else n_blocks
    pid = tl.program_id(0)
    first_m = pid // (GROUP_M * columns) * GROUP_M
    within, group = pid % (GROUP_M * columns), tl.minimum(m_blocks - first_m, GROUP_M)
    pid_m, column = first_m + within % group, within // group
    pid_n, phase = column % n_blocks, column // n_blocks

    if TRANSPOSED:
        first_kh, first_kw, step_kh, step_kw = phase // stride_w, phase % stride_w, stride_h, stride_w
        origin_h, rows_h, taps_h = _phase(first_kh, stride_h, pad_h, OH, KH)
        origin_w, rows_w, taps_w = _phase(first_kw, stride_w, pad_w, OW, KW)
    else:
        first_kh, first_kw, step_kh, step_kw = 0, 0, 1, 1
        rows_h, rows_w, taps_h, taps_w = OH, OW, KH, KW
    pixels = rows_h * rows_w
    if scale_ptr is not None:
        blocks = m_blocks // N
        n = tl.cast(pid_m // blocks, tl.int64)
        pixel = pid_m % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        row_ok = pixel < pixels
        count = tl.minimum(tl.maximum(pixels - pid_m % blocks * BLOCK_M, 0), BLOCK_M)
    else:
        first = tl.cast(pid_m, tl.int64) * BLOCK_M
        offs_m, rows = first + tl.arange(0, BLOCK_M), tl.cast(pixels, tl.int64) * N
        row_ok = offs_m < rows
        # A phase of an output that is narrower than the stride may have no pixel.
        n = offs_m // tl.maximum(pixels, 1)
        pixel = (offs_m - n * pixels).to(tl.int32)
        n = tl.minimum(n, N - 1)
        count = tl.minimum(tl.maximum(rows - first, 0), BLOCK_M)
    q_h, q_w = pixel // tl.maximum(rows_w, 1), pixel % tl.maximum(rows_w, 1)
    if TRANSPOSED:
        from_h, from_w, step = origin_h + q_h, origin_w + q_w, -1
        oh, ow = first_kh - pad_h + stride_h * from_h, first_kw - pad_w + stride_w * from_w
    else:
        from_h, from_w, step = q_h * stride_h - pad_h, q_w * stride_w - pad_w, 1
        oh, ow = q_h, q_w

    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    # Columns past the last are computed from the first ones and not stored.
    column_n = offs_n % C_OUT
    c_blocks = tl.cdiv(C_IN, BLOCK_K)
    acc = tl.zeros([BLOCK_M, BLOCK_N], ACC)
    for k in range(taps_h * taps_w * c_blocks):
        tap = k // c_blocks
        j_h, j_w = tap // taps_w, tap % taps_w
        i_h, ok_h = _inside(from_h + step * j_h, H)
        i_w, ok_w = _inside(from_w + step * j_w, W)
        offs_k = (k - tap * c_blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        # A remainder, not a minimum, so that the compiler still sees runs of neighbours.
        c, c_ok = offs_k % C_IN, offs_k < C_IN
        a = _operand(
            x_ptr, ((n * H + i_h) * W + i_w)[:, None] * C_IN + c[None, :],
            (row_ok & ok_h & ok_w)[:, None] & c_ok[None, :],
            gate_ptr, scale_ptr, shift_ptr, None if scale_ptr is None else (n * C_IN + c)[None, :],
            X_ACTIVATION, X_SLOPE, ACC, UPCAST,
        )  # fmt: skip
        offs_tap = (first_kh + j_h * step_kh) * KW + first_kw + j_w * step_kw
        if C_IN_INNERMOST:
            offs_b = (column_n * (KH * KW) + offs_tap)[None, :] * C_IN + c[:, None]
        else:
            offs_b = (c * (KH * KW) + offs_tap)[:, None] * C_OUT + column_n[None, :]
        b = tl.load(weight_ptr + offs_b, mask=c_ok[:, None], other=0.0)
        acc = tl.dot(a, b.to(a.dtype), acc, input_precision=PRECISION, out_dtype=ACC)

    if bias_ptr is not None:
        acc += tl.load(bias_ptr + column_n).to(ACC)[None, :]
    y = activate(acc, ACTIVATION, SLOPE).to(y_ptr.dtype.element_ty)
    mask = row_ok[:, None] & (offs_n < C_OUT)[None, :]
    tl.store(y_ptr + ((n * OH + oh) * OW + ow)[:, None] * C_OUT + offs_n[None, :], y, mask=mask)
    if moments_ptr is not None:
        # Of what is stored, rounding included: that is what the next batch norm reads.
        y = y.to(ACC)
        scale = 1.0 / tl.maximum(count, 1).to(ACC)
        mean = tl.sum(tl.where(mask, y, 0.0), 0) * scale
        # Once more about the first result, whose rounding error is not small where |mean| >> std.
        mean += tl.sum(tl.where(mask, y - mean[None, :], 0.0), 0) * scale
        deviation = tl.where(mask, y - mean[None, :], 0.0)
        row, rows_total = phase * m_blocks + pid_m, m_blocks * (columns // n_blocks)
        offs = tl.cast(row, tl.int64) * C_OUT + offs_n
        tl.store(moments_ptr + offs, mean, mask=offs_n < C_OUT)
        offs += tl.cast(rows_total, tl.int64) * C_OUT
        tl.store(moments_ptr + offs, tl.sum(deviation * deviation, 0), mask=offs_n < C_OUT)
        tl.store(counts_ptr + row, count.to(ACC), mask=pid_n == 0)


@triton.jit
def _conv_transpose2d_moments_kernel(
    counts_ptr, moments_ptr, mean_ptr, var_ptr, C, rows, BLOCK_C: tl.constexpr, BLOCK_ROWS: tl.constexpr
):
    """Mean and biased variance [C] of the union of the rows: Chan, Golub and LeVeque 1983, equation 2.1."""
    ACC: tl.constexpr = moments_ptr.dtype.element_ty
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean = tl.zeros([BLOCK_C], ACC)
    total = tl.zeros([BLOCK_ROWS], ACC)
    for i in range(0, rows, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        total += tl.load(counts_ptr + offs_row, mask=offs_row < rows, other=0.0)
    scale = 1.0 / tl.sum(total, 0)
    # The second round takes deviations from the first, as in a tile.
    for _ in tl.static_range(2):
        sums = tl.zeros([BLOCK_ROWS, BLOCK_C], ACC)
        for i in range(0, rows, BLOCK_ROWS):
            offs_row = i + tl.arange(0, BLOCK_ROWS)
            mask = (offs_row < rows)[:, None] & (offs_c < C)[None, :]
            count = tl.load(counts_ptr + offs_row, mask=offs_row < rows, other=0.0)[:, None]
            offs = offs_row.to(tl.int64)[:, None] * C + offs_c[None, :]
            sums += count * (tl.load(moments_ptr + offs, mask=mask, other=0.0) - mean[None, :])
        mean += tl.sum(sums, 0) * scale
    sums = tl.zeros([BLOCK_ROWS, BLOCK_C], ACC)
    for i in range(0, rows, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask = (offs_row < rows)[:, None] & (offs_c < C)[None, :]
        count = tl.load(counts_ptr + offs_row, mask=offs_row < rows, other=0.0)[:, None]
        offs = offs_row.to(tl.int64)[:, None] * C + offs_c[None, :]
        deviation = tl.load(moments_ptr + offs, mask=mask, other=0.0) - mean[None, :]
        m2 = tl.load(moments_ptr + offs + tl.cast(rows, tl.int64) * C, mask=mask, other=0.0)
        sums += m2 + count * deviation * deviation
    tl.store(mean_ptr + offs_c, mean, mask=offs_c < C)
    tl.store(var_ptr + offs_c, tl.sum(sums, 0) * scale, mask=offs_c < C)
