"""Triton kernels of conditional batch normalisation: order 0, and what all orders share. kernels.py launches them.

Every order is a pass that sums over the pixels of each (n, c), a small step on [N, C], and a pass that is affine in
the pixels. The formulas are those of csrc/conditional_batch_norm.h; docs/ops/conditional_batch_norm.md derives them.

A program of a pixel pass owns one sample, BLOCK_C channels and a run of ``tiles`` tiles of BLOCK_L pixels, its chunk.
It keeps one accumulator a lane and reduces across lanes once, at its end. Partial sums go to a workspace
[quantity, row, C] with row = n * chunks + chunk, and are added up in a fixed order.

mean, var and what follows from them alone have S entries, which are the channels, or with PER_SAMPLE the planes (n, c);
partial sums then go to [quantity, chunk, S], so that the small steps see one sample with S channels.

EPS and SLOPE are constexpr because Triton would pass a Python float as fp32, which fp64 tensors would notice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def _program(C, chunks, tiles, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr):
    """This program's row of partial sums, its sample, its channels, their statistics, and its first pixel."""
    pid = tl.program_id(0)
    c_blocks = tl.cdiv(C, BLOCK_C)
    row = (pid // c_blocks).to(tl.int64)
    n, chunk = row // chunks, row % chunks
    offs_c = pid % c_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    start = pid // c_blocks % chunks * (tiles * BLOCK_L)
    if PER_SAMPLE:
        return chunk, n, offs_c, n * C + offs_c, start
    else:
        return row, n, offs_c, offs_c, start


@triton.jit
def _pixels(n, offs_c, start, C, L, CHANNELS_LAST: tl.constexpr, BLOCK_L: tl.constexpr):
    """Offsets [BLOCK_C, BLOCK_L] of a tile, 64-bit, and its mask."""
    offs_l = start + tl.arange(0, BLOCK_L)
    mask = (offs_c < C)[:, None] & (offs_l < L)[None, :]
    if CHANNELS_LAST:
        offs = (n * L + offs_l)[None, :] * C + offs_c[:, None]
    else:
        offs = (n * C + offs_c)[:, None] * L + offs_l[None, :]
    return offs, mask


@triton.jit
def _load_row(table_ptr, labels_ptr, n, classes, offs_c, C):
    """The row [BLOCK_C] of gain, bias or a cotangent that sample n has; NaN where its label is out of range."""
    row = n
    mask = offs_c < C
    if labels_ptr is not None:
        # Widened to the channels: Triton's interpreter takes no scalar in a mask.
        row = tl.load(labels_ptr + n) + 0 * offs_c
        mask = mask & (row >= 0) & (row < classes)
    return tl.load(table_ptr + row * C + offs_c, mask=mask, other=float("nan"))


@triton.jit
def _affine(gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS: tl.constexpr):
    """mean, rstd, scale and bias of a program's channels, each [BLOCK_C, 1] in the accumulation type."""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    mask = offs_c < C
    mean = tl.load(mean_ptr + offs_s, mask=mask, other=0.0)
    rstd = tl.rsqrt(tl.load(var_ptr + offs_s, mask=mask, other=1.0) + EPS)
    scale = _load_row(gain_ptr, labels_ptr, n, classes, offs_c, C).to(ACC) * rstd
    bias = _load_row(bias_ptr, labels_ptr, n, classes, offs_c, C).to(ACC)
    return mean[:, None], rstd[:, None], scale[:, None], bias[:, None]


@triton.jit
def _z(x_centered, scale, bias):
    # An explicit fma: the same rounding, and so the same sign, in every kernel, whatever the compiler may contract.
    return tl.fma(x_centered, tl.broadcast_to(scale, x_centered.shape), tl.broadcast_to(bias, x_centered.shape))


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "lrelu":
        z = tl.where(z > 0, z, z * SLOPE)
    return z


@triton.jit
def _activate_backward(z, g, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "lrelu":
        g = tl.where(z > 0, g, g * SLOPE)
    return g


@triton.jit
def _store_sums(sums_ptr, quantities, row, rows, offs_c, C, offs_s, S):
    for q in tl.static_range(len(quantities)):
        tl.store(sums_ptr + (q * rows + row) * S + offs_s, tl.sum(quantities[q], 1), mask=offs_c < C)


@triton.jit
def _load_sum(sums_ptr, quantity, offs_n, offs_c, N, C, chunks, BLOCK_K: tl.constexpr):
    """A quantity's sums over the pixels of each (c, n): [BLOCK_C, BLOCK_N], with zeros past N and C."""
    mask = (offs_c < C)[:, None] & (offs_n < N)[None, :]
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    # Reduced after the loop: triton 3.6 fails to compile a reduction in a loop whose result has several uses.
    lanes = tl.zeros([offs_c.shape[0], offs_n.shape[0], BLOCK_K], ACC)
    for k in range(0, chunks, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        rows = (quantity * N + offs_n).to(tl.int64)[:, None] * chunks + offs_k[None, :]
        lanes += tl.load(
            sums_ptr + rows[None, :, :] * C + offs_c[:, None, None],
            mask=mask[:, :, None] & (offs_k < chunks)[None, None, :],
            other=0.0,
        )
    return tl.sum(lanes, 2)


@triton.jit
def _union(count, mean, m2):
    """Count, mean and M2 of the union of the sets along axis 1; count [1, K], mean and m2 [BLOCK_C, K] -> [*, 1]."""
    total = tl.sum(count, 1)[:, None]
    union_mean = tl.sum(count * mean, 1)[:, None] / total
    # Once more about the first result, whose rounding error is not small beside the deviations where |mean| >> std.
    union_mean += tl.sum(count * (mean - union_mean), 1)[:, None] / total
    deviation = mean - union_mean
    return total, union_mean, tl.sum(m2 + count * deviation * deviation, 1)[:, None]


@triton.jit
def _first(x_ptr, offs_s, C, L, S, CHANNELS_LAST: tl.constexpr):
    """The first value of which each statistic is made [BLOCK_C, 1]. Statistics are taken of x less this: where
    |mean| >> std, what remains has the size of std, and so have its rounding errors."""
    n = offs_s.to(tl.int64) // C
    stride = 1 if CHANNELS_LAST else L
    return tl.load(x_ptr + n * C * L + (offs_s - n * C) * stride, mask=offs_s < S, other=0.0)[:, None]


@triton.jit
def _conditional_batch_norm_statistics_kernel(
    x_ptr, sums_ptr, C, L, S, rows, chunks, tiles,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """The mean, less the channel's first value, and the sum of squared deviations of each row: [2, rows, C]."""
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    first = _first(x_ptr, offs_s, C, L, S, CHANNELS_LAST).to(ACC)
    count = tl.zeros([1, BLOCK_L], ACC)
    mean = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    m2 = tl.zeros([BLOCK_C, BLOCK_L], ACC)
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC) - first
        # Welford 1962, in every lane by itself.
        count += (start + i * BLOCK_L + tl.arange(0, BLOCK_L) < L).to(ACC)[None, :]
        delta = tl.where(mask, x - mean, 0.0)
        mean += delta * (1.0 / tl.maximum(count, 1.0))
        m2 += tl.where(mask, delta * (x - mean), 0.0)
    count, mean, m2 = _union(count, mean, m2)
    _store_sums(sums_ptr, (mean, m2), row, rows, offs_c, C, offs_s, S)


@triton.jit
def _conditional_batch_norm_finish_statistics_kernel(
    x_ptr, sums_ptr, mean_ptr, var_ptr, C, L, S, rows, chunks, chunk_pixels,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """mean [S] and biased var [S] of all rows: Chan, Golub and LeVeque 1979, equation 2.1."""
    OUT: tl.constexpr = mean_ptr.dtype.element_ty
    ACC: tl.constexpr = sums_ptr.dtype.element_ty
    offs_s = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    count = tl.zeros([1, BLOCK_ROWS], ACC)
    mean = tl.zeros([BLOCK_C, BLOCK_ROWS], ACC)
    m2 = tl.zeros([BLOCK_C, BLOCK_ROWS], ACC)
    for i in range(0, rows, BLOCK_ROWS):
        offs_row = i + tl.arange(0, BLOCK_ROWS)
        mask = (offs_s < S)[:, None] & (offs_row < rows)[None, :]
        offs = offs_row.to(tl.int64)[None, :] * S + offs_s[:, None]
        offs_m2 = (offs_row + rows).to(tl.int64)[None, :] * S + offs_s[:, None]
        size = tl.minimum(L - offs_row % chunks * chunk_pixels, chunk_pixels)
        size = tl.where(offs_row < rows, size, 0).to(ACC)[None, :]
        delta = tl.load(sums_ptr + offs, mask=mask, other=0.0) - mean
        share = size / tl.maximum(count + size, 1.0)
        mean += delta * share
        m2 += tl.load(sums_ptr + offs_m2, mask=mask, other=0.0) + delta * delta * count * share
        count += size
    count, mean, m2 = _union(count, mean, m2)
    mean = mean.to(OUT) + _first(x_ptr, offs_s, C, L, S, CHANNELS_LAST).to(OUT)
    tl.store(mean_ptr + offs_s[:, None], mean, mask=(offs_s < S)[:, None])
    tl.store(var_ptr + offs_s[:, None], (m2 / count).to(OUT), mask=(offs_s < S)[:, None])


@triton.jit
def _conditional_batch_norm_forward_kernel(
    x_ptr, gain_ptr, bias_ptr, mean_ptr, var_ptr, y_ptr, C, L, S, chunks, tiles, labels_ptr, classes,
    EPS: tl.constexpr, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, PER_SAMPLE: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """y = act((x - mean) * scale + bias)"""
    ACC: tl.constexpr = mean_ptr.dtype.element_ty
    _row, n, offs_c, offs_s, start = _program(C, chunks, tiles, PER_SAMPLE, BLOCK_C, BLOCK_L)
    mean, _rstd, scale, bias = _affine(
        gain_ptr, bias_ptr, labels_ptr, mean_ptr, var_ptr, n, classes, offs_c, offs_s, C, EPS
    )
    for i in range(tiles):
        offs, mask = _pixels(n, offs_c, start + i * BLOCK_L, C, L, CHANNELS_LAST, BLOCK_L)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(ACC)
        y = _activate(_z(x - mean, scale, bias), ACTIVATION, SLOPE)
        tl.store(y_ptr + offs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _conditional_batch_norm_class_sums_kernel(
    sums_ptr, labels_ptr, of_classes_ptr, N, classes, C, chunks,
    BLOCK_C: tl.constexpr, BLOCK_CLASSES: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over the samples of each class, by their number: [quantities, N * chunks, C] -> [quantities, classes, C].

    Zero for a class without one. A program looks at all samples for each block of classes."""
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_class = tl.program_id(1) * BLOCK_CLASSES + tl.arange(0, BLOCK_CLASSES)
    quantity = tl.program_id(2)
    total = tl.zeros([BLOCK_C, BLOCK_CLASSES], sums_ptr.dtype.element_ty)
    for i in range(0, N, BLOCK_N):
        offs_n = i + tl.arange(0, BLOCK_N)
        label = tl.load(labels_ptr + offs_n, mask=offs_n < N, other=-1)
        of_sample = _load_sum(sums_ptr, quantity, offs_n, offs_c, N, C, chunks, BLOCK_K)
        own = (offs_class[:, None] == label[None, :])[None, :, :]
        # A choice, not a product with zero: a sample that is not finite must not spread.
        total += tl.sum(tl.where(own, of_sample[:, None, :], 0.0), 2)
    offs = (quantity * classes + offs_class).to(tl.int64)[None, :] * C + offs_c[:, None]
    tl.store(of_classes_ptr + offs, total, mask=(offs_c < C)[:, None] & (offs_class < classes)[None, :])
