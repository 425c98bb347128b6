"""The activations and their first two derivatives for Triton kernels: those of csrc/activation.h.

z is in the accumulation type. ACTIVATION and SLOPE are constexpr: Triton would pass a Python float as fp32, which fp64
tensors would notice.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _tanh(z):
    # (1 - e) / (1 + e), and 1 - 2 e / (1 + e) where that is close to 1. libdevice's would not run in the interpreter.
    e = tl.exp(-2.0 * tl.abs(z))
    part = tl.where(e < 0.25, 2.0 * e, 1.0 - e) / (1.0 + e)
    size = tl.where(e < 0.25, 1.0 - part, part)
    return tl.where(z < 0, -size, size)


@triton.jit
def _logistic(z):
    """sigmoid(z) and its derivative, by way of the smaller of sigmoid(z) and sigmoid(-z): 1 - sigmoid(z) has no correct
    digit where z is large."""
    e = tl.exp(-tl.abs(z))
    smaller = e / (1.0 + e)
    larger = 1.0 - smaller
    return tl.where(z > 0, larger, smaller), smaller * larger


@triton.jit
def _softplus(z):
    # log1p(e) = log(u) e / (u - 1) with u = 1 + e, whose rounding errors cancel (Kahan).
    e = tl.exp(-tl.abs(z))
    u = 1.0 + e
    log1p = tl.where(u == 1.0, e, tl.log(u) * (e / tl.where(u == 1.0, 1.0, u - 1.0)))
    return tl.where(z > 20.0, z, log1p + tl.where(z > 0, z, 0.0))


@triton.jit
def _normal_cdf(z):
    return 0.5 * (1.0 + tl.erf(z * 0.70710678118654752440))


@triton.jit
def _normal_pdf(z):
    return 0.39894228040143267794 * tl.exp(-0.5 * z * z)


@triton.jit
def activate(z, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """``act(z)``."""
    if ACTIVATION == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACTIVATION == "lrelu":
        z = tl.where(z > 0, z, z * SLOPE)
    elif ACTIVATION == "tanh":
        z = _tanh(z)
    elif ACTIVATION == "sigmoid":
        z = _sigmoid(z)
    elif ACTIVATION == "silu":
        z = z * _sigmoid(z)
    elif ACTIVATION == "softplus":
        z = _softplus(z)
    elif ACTIVATION == "gelu":
        z = z * _normal_cdf(z)
    return z


@triton.jit
def activate_backward(z, g, ACTIVATION: tl.constexpr, SLOPE: tl.constexpr):
    """``act'(z) g``."""
    if ACTIVATION == "relu":
        g = tl.where(z <= 0, 0.0, g)
    elif ACTIVATION == "lrelu":
        g = tl.where(z > 0, g, g * SLOPE)
    elif ACTIVATION == "tanh":
        # tanh(z) = 2 sigmoid(2 z) - 1
        _value, slope = _logistic(2.0 * z)
        g = g * (4.0 * slope)
    elif ACTIVATION == "sigmoid":
        _value, slope = _logistic(z)
        g = g * slope
    elif ACTIVATION == "silu":
        value, slope = _logistic(z)
        g = g * (value + z * slope)
    elif ACTIVATION == "softplus":
        g = tl.where(z > 20.0, g, g * _sigmoid(z))
    elif ACTIVATION == "gelu":
        g = g * (_normal_cdf(z) + z * _normal_pdf(z))
    return g


@triton.jit
def activate_backward_backward(z, g, ACTIVATION: tl.constexpr):
    """``act''(z) g``, of a smooth activation."""
    if ACTIVATION == "tanh":
        _value, slope = _logistic(2.0 * z)
        g = g * (-8.0 * slope * _tanh(z))
    elif ACTIVATION == "sigmoid":
        value, slope = _logistic(z)
        g = g * (slope * (1.0 - 2.0 * value))
    elif ACTIVATION == "silu":
        value, slope = _logistic(z)
        g = g * (slope * (2.0 + z * (1.0 - 2.0 * value)))
    elif ACTIVATION == "softplus":
        _value, slope = _logistic(z)
        g = tl.where(z >= 20.0, 0.0, g * slope)
    elif ACTIVATION == "gelu":
        g = g * (_normal_pdf(z) * (2.0 - z * z))
    return g
