"""Rounding, NaN and infinity, instruction sets and the order of sums in every kernel of bias_act."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from bias_acts import LAYOUTS, NAMES, activations, both, clamps, inputs, kernels, layouts, needs_cpu, two_orders

from gankernels import verification
from gankernels.ops import bias_act

# What is piecewise linear rounds alike at every scale.
SCALES = [(name, scale) for name in NAMES for scale in ((2.0,) if name in NAMES[:3] else (0.1, 2.0, 8.0))]


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("activation", "scale"), SCALES)
def test_error_at_most_twice_eager(device, impl, activation, dtype, scale):
    if impl == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates where it should round to bf16")
    # Enough numbers, and sums, that the largest error of either side is no accident.
    shape = (4, 96, 8, 8) if impl == "triton" else (6, 384, 13, 13)
    x, bias = inputs(shape, dtype=dtype, device=device, scale=scale)
    if activation in ("relu", "lrelu"):
        # Where rounding decides the sign of x + bias, neither side's gradient is an error.
        with torch.no_grad():
            z = x.double() + bias.double()[:, None, None]
            x[z.abs() < 0.1 * scale] += scale

    def eager(x, bias):
        z = x + bias[:, None, None]
        return {"lrelu": lambda z: F.leaky_relu(z, 0.2), "linear": lambda z: z}.get(
            activation, getattr(F, activation, None)
        )(z) * 1.5

    exact = two_orders(
        lambda *t: bias_act(*t, activation=activation, gain=1.5, impl="reference"),
        x.detach().double().requires_grad_(),
        bias.detach().double().requires_grad_(),
        dtype,
    )
    ours = two_orders(lambda *t: bias_act(*t, activation=activation, gain=1.5, impl=impl), x, bias)
    theirs = two_orders(eager, x, bias)
    assert (why := verification.beyond_twice_eager(ours, exact, [theirs])) is None, why


@needs_cpu
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "softplus", "gelu"])
def test_cpu_every_float_of_a_range(activation):
    """All orders at 2^16 numbers of every size and sign, one by one: within a few units of the last place of 1."""
    bits = torch.arange(2**16, dtype=torch.int64) * 65536 - 2**31
    x = bits.to(torch.int32).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 1e4)].clone().requires_grad_()
    got = two_orders(lambda x, _: bias_act(x, activation=activation, dim=0, impl="cpu"), x, None)
    wide = x.detach().double().requires_grad_()
    want = two_orders(lambda x, _: bias_act(x, activation=activation, dim=0, impl="reference"), wide, None, x.dtype)
    for g, w in zip(got, want, strict=True):
        error = (g.double() - w).abs() / (1 + w.abs())
        assert error.amax() <= 1e-6, (activation, x[error.argmax()], error.amax())


@kernels
@layouts
@activations
@clamps
def test_nan_infinity_and_kinks_as_the_reference(device, impl, layout, activation, clamp):
    # Exact zeros, clamps reached and passed, the ends of the range, and signed zeros.
    specials = [
        0.0,
        -0.0,
        0.7,
        -0.7,
        1.0,
        3.5,
        -3.5,
        1e4,
        -1e4,
        20.0,
        20.5,
        torch.nan,
        torch.inf,
        -torch.inf,
        1e-30,
        -95.0,
    ]
    x = torch.tensor(specials, device=device).repeat(4).reshape(2, 2, 4, 4).contiguous(memory_format=LAYOUTS[layout])
    bias = torch.zeros(2, device=device)
    got, want = both(impl, x.requires_grad_(), bias.requires_grad_(), activation=activation, clamp=clamp)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.isnan(), w.isnan())
        assert torch.equal(g.isinf(), w.isinf())
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5, equal_nan=True)


@kernels
def test_bias_of_another_dtype(device, impl):
    x, bias = inputs((3, 8, 4, 4), dtype=torch.bfloat16, device=device)
    bias = bias.detach().float().requires_grad_()
    got, want = both(impl, x, bias, activation="silu")
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(g, w, rtol=2e-2, atol=2e-2)


@kernels
@layouts
@pytest.mark.parametrize("shape", [(6, 24, 9, 9), (2, 1, 70, 70)], ids=str)
def test_same_bits_every_time(device, impl, layout, shape):
    if impl == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter runs one program after the other")
    x, bias = inputs(shape, dtype=torch.float32, device=device, layout=layout)
    runs = []
    for threads in (1, 3, 1):
        torch.set_num_threads(threads)
        runs.append(two_orders(lambda *t: bias_act(*t, activation="silu", impl=impl), x, bias))
    for first, second, third in zip(*runs, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    """The kernels of a lesser processor, in a process that is told to use them."""
    code = """
import torch
from gankernels.ops import bias_act
torch.manual_seed(0)
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
    for activation in ("lrelu", "tanh", "softplus", "gelu"):
        for shape in ((2, 3, 5, 7), (2, 32, 9, 9)):
            x, bias = torch.randn(shape).to(dtype), torch.randn(shape[1])
            got, want = (bias_act(x, bias, activation=activation, impl=impl) for impl in ("cpu", "reference"))
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
"""
    environment = os.environ | {"GANKERNELS_CPU_ISA": isa}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
