"""Triton kernels of spectral normalisation, for one weight each. kernels.py launches them.

The weight's matrix is taken as it lies in memory (layout.py). With q an element of the vector across the runs and i one
of the other vector, the number W(q, i) stands at ``q // inner * columns + i * inner + q % inner``. Of the two vectors,
both in torch's order, the latter is permuted where a weight is in channels_last.

Sums are partial results of programs, added up in a fixed order. EPS is constexpr because Triton would pass a Python
float as fp32, which fp64 tensors would notice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def _divide(x, y):
    # fp32's own division is approximate.
    return tl.div_rn(x, y) if x.dtype == tl.float32 else x / y


@triton.jit
def _root(x):
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def _place(i, channels, positions, PERMUTED: tl.constexpr):
    """Where torch's order has the element i of memory's."""
    return i % channels * positions + i // channels if PERMUTED else i


@triton.jit
def _at_least(norm, EPS: tl.constexpr):
    return tl.where(norm < EPS, EPS, norm)  # NaN stays NaN


@triton.jit
def _spectral_norm_across_kernel(
    w_ptr, x_ptr, out_ptr, across, width, columns, inner, channels, positions,
    PERMUTED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """out[q] = sum_i W(q, i) x[i]. Bytes: the weight once."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    base = (q // inner).to(tl.int64) * columns + q % inner
    sums = tl.zeros([BLOCK_Q, BLOCK_I], ACC)
    for begin in range(0, width, BLOCK_I):
        i = begin + tl.arange(0, BLOCK_I)
        mask = (q < across)[:, None] & (i < width)[None, :]
        x = tl.load(x_ptr + _place(i, channels, positions, PERMUTED), mask=i < width, other=0.0).to(ACC)
        w = tl.load(w_ptr + base[:, None] + i.to(tl.int64)[None, :] * inner, mask=mask, other=0.0).to(ACC)
        sums += w * x[None, :]
    tl.store(out_ptr + q, tl.sum(sums, 1), mask=q < across)


@triton.jit
def _spectral_norm_along_kernel(
    w_ptr, x_ptr, partial_ptr, across, width, columns, inner, steps,
    BLOCK_Q: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    """partial[split, i] = sum_q W(q, i) x[q] over a split's q, i in memory's order. Bytes: the weight once."""
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    i = tl.program_id(0) * BLOCK_I + tl.arange(0, BLOCK_I)
    first = tl.program_id(1) * steps * BLOCK_Q
    sums = tl.zeros([BLOCK_Q, BLOCK_I], ACC)
    for step in range(steps):
        q = first + step * BLOCK_Q + tl.arange(0, BLOCK_Q)
        mask = (q < across)[:, None] & (i < width)[None, :]
        base = (q // inner).to(tl.int64) * columns + q % inner
        x = tl.load(x_ptr + q, mask=q < across, other=0.0).to(ACC)
        w = tl.load(w_ptr + base[:, None] + i.to(tl.int64)[None, :] * inner, mask=mask, other=0.0).to(ACC)
        sums += w * x[:, None]
    tl.store(partial_ptr + tl.program_id(1).to(tl.int64) * width + i, tl.sum(sums, 0), mask=i < width)


@triton.jit
def _spectral_norm_normalise_kernel(
    partial_ptr, out_ptr, sigma_ptr, size, splits, channels, positions,
    EPS: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program: x = sum over splits, out = x / max(|x|, EPS) in torch's order, sigma = |x|^2 / max(|x|, EPS)."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    squares = tl.zeros([BLOCK], ACC)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = tl.zeros([BLOCK], ACC)
        for split in range(splits):
            x += tl.load(partial_ptr + split * size + i, mask=i < size, other=0.0)
        squares += x * x
    norm = _root(tl.sum(squares, 0))
    divisor = _at_least(norm, EPS).to(ACC)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x = tl.zeros([BLOCK], ACC)
        for split in range(splits):
            x += tl.load(partial_ptr + split * size + i, mask=i < size, other=0.0)
        tl.store(out_ptr + _place(i, channels, positions, PERMUTED), _divide(x, divisor), mask=i < size)
    tl.store(sigma_ptr, norm * _divide(norm, divisor))


@triton.jit
def _spectral_norm_dot_kernel(x_ptr, other_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """out = sum x other. One program."""
    ACC: tl.constexpr = out_ptr.dtype.element_ty
    sums = tl.zeros([BLOCK], ACC)
    for begin in range(0, size, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        x, y = tl.load(x_ptr + i, mask=i < size, other=0.0), tl.load(other_ptr + i, mask=i < size, other=0.0)
        sums += x.to(ACC) * y.to(ACC)
    tl.store(out_ptr, tl.sum(sums, 0))


@triton.jit
def _spectral_norm_scale_kernel(w_ptr, sigma_ptr, y_ptr, size, BLOCK: tl.constexpr):
    """y = W / sigma. Bytes: W in, y out."""
    ACC: tl.constexpr = sigma_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    w = tl.load(w_ptr + n, mask=n < size, other=0.0).to(ACC)
    y = _divide(w, tl.zeros([BLOCK], ACC) + tl.load(sigma_ptr))
    tl.store(y_ptr + n, y.to(y_ptr.dtype.element_ty), mask=n < size)


@triton.jit
def _rank_one(n, mask, along_ptr, across_ptr, columns, inner, channels, positions, PERMUTED: tl.constexpr):
    """u v^T of the numbers n."""
    r, c = n // columns, n % columns
    along = tl.load(along_ptr + _place(c // inner, channels, positions, PERMUTED), mask=mask, other=0.0)
    return along * tl.load(across_ptr + r * inner + c % inner, mask=mask, other=0.0)


@triton.jit
def _spectral_norm_products_kernel(
    a_ptr, dy_ptr, w_ptr, along_ptr, across_ptr, partial_ptr, size, steps, columns, inner, channels, positions,
    SECOND: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """<dy, W> and, for the second order, <a, u v^T> and <a, dy>, of a program's numbers. Bytes: dy, W (and a) once."""
    ACC: tl.constexpr = partial_ptr.dtype.element_ty
    pid, programs = tl.program_id(0), tl.num_programs(0)
    dy_w = tl.zeros([BLOCK], ACC)
    a_uv = tl.zeros([BLOCK], ACC)
    a_dy = tl.zeros([BLOCK], ACC)
    for step in range(steps):
        n = (pid.to(tl.int64) * steps + step) * BLOCK + tl.arange(0, BLOCK)
        mask = n < size
        dy = tl.load(dy_ptr + n, mask=mask, other=0.0).to(ACC)
        dy_w += dy * tl.load(w_ptr + n, mask=mask, other=0.0).to(ACC)
        if SECOND:
            a = tl.load(a_ptr + n, mask=mask, other=0.0).to(ACC)
            a_uv += a * _rank_one(n, mask, along_ptr, across_ptr, columns, inner, channels, positions, PERMUTED)
            a_dy += a * dy
    tl.store(partial_ptr + pid, tl.sum(dy_w, 0))
    if SECOND:
        tl.store(partial_ptr + programs + pid, tl.sum(a_uv, 0))
        tl.store(partial_ptr + 2 * programs + pid, tl.sum(a_dy, 0))


@triton.jit
def _total(partial_ptr, programs, BLOCK: tl.constexpr):
    sums = tl.zeros([BLOCK], partial_ptr.dtype.element_ty)
    for begin in range(0, programs, BLOCK):
        i = begin + tl.arange(0, BLOCK)
        sums += tl.load(partial_ptr + i, mask=i < programs, other=0.0)
    return tl.sum(sums, 0)


@triton.jit
def _spectral_norm_terms_kernel(partial_ptr, sigma_ptr, terms_ptr, programs, SECOND: tl.constexpr, BLOCK: tl.constexpr):
    """of_uv and of_dy, which is of_w, too: csrc/spectral_norm.h. One program."""
    sigma = tl.load(sigma_ptr)
    c = _divide(_total(partial_ptr, programs, BLOCK), sigma)
    if SECOND:
        a_uv = _total(partial_ptr + programs, programs, BLOCK)
        a_dy = _total(partial_ptr + 2 * programs, programs, BLOCK)
        tl.store(terms_ptr, _divide(2 * a_uv * c - a_dy, sigma))
        tl.store(terms_ptr + 1, _divide(a_uv, sigma))
    else:
        tl.store(terms_ptr, c)


@triton.jit
def _spectral_norm_backward_kernel(
    a_ptr, dy_ptr, w_ptr, along_ptr, across_ptr, sigma_ptr, terms_ptr, ddy_ptr, dw_ptr,
    size, columns, inner, channels, positions,
    SECOND: tl.constexpr, PERMUTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dW = (dy - of_uv u v^T) / sigma; second order: ddy = (a - of_w W) / sigma, dW = (of_uv u v^T - of_dy dy) / sigma.

    Bytes: dy in and dW out; for the second order also a and W in, and ddy out.
    """
    ACC: tl.constexpr = sigma_ptr.dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < size
    sigma = tl.zeros([BLOCK], ACC) + tl.load(sigma_ptr)
    dy = tl.load(dy_ptr + n, mask=mask, other=0.0).to(ACC)
    uv = tl.load(terms_ptr) * _rank_one(n, mask, along_ptr, across_ptr, columns, inner, channels, positions, PERMUTED)
    if SECOND:
        share = tl.load(terms_ptr + 1)
        a = tl.load(a_ptr + n, mask=mask, other=0.0).to(ACC)
        w = tl.load(w_ptr + n, mask=mask, other=0.0).to(ACC)
        tl.store(ddy_ptr + n, _divide(a - share * w, sigma).to(ddy_ptr.dtype.element_ty), mask=mask)
        dw = _divide(uv - share * dy, sigma)
    else:
        dw = _divide(dy - uv, sigma)
    tl.store(dw_ptr + n, dw.to(dw_ptr.dtype.element_ty), mask=mask)
