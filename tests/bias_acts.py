"""What the tests of bias_act share: its kernels, inputs, two orders of derivatives and a comparison."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gankernels.ops import bias_act
from implementations import kernels_of

KERNELS = kernels_of("bias_act")
NAMES = ("lrelu", "relu", "linear", "tanh", "sigmoid", "silu", "softplus", "gelu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HAS_CPU = "cpu" in [p.values[1] for p in KERNELS]

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
activations = pytest.mark.parametrize("activation", NAMES)
clamps = pytest.mark.parametrize("clamp", [None, 0.7])
needs_cpu = pytest.mark.skipif(not HAS_CPU, reason="the extension is not built")


def inputs(shape, *, dtype=torch.float64, device="cpu", layout="contiguous", dim=1, scale=2.0):
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(shape[dim], dtype=torch.float64).to(device, dtype)
    return x.requires_grad_(), bias.requires_grad_()


def two_orders(function, x: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """y, dx, dbias; then ddy, and the second order's dx and dbias (zeros where there are none).

    The cotangents are random numbers of ``dtype``, x's own by default.
    """
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype or t.dtype)
        return torch.empty_like(t).copy_(drawn)

    wanted = (x,) if bias is None else (x, bias)
    y = function(x, bias)
    dy = like(y.detach()).requires_grad_()
    first = torch.autograd.grad(y, wanted, dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, *wanted), [like(t.detach()) for t in first], allow_unused=True)
    second = [torch.zeros_like(t) if g is None else g for g, t in zip(second, (dy, *wanted), strict=True)]
    return [t.detach() for t in (y, *first, *second)]


def assert_as_reference(got: list[Tensor], want: list[Tensor], rtol: float) -> None:
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride()), index
        scale = w.abs().nan_to_num(0, 0, 0).amax().item() if w.numel() else 0.0
        torch.testing.assert_close(g, w, rtol=rtol, atol=rtol * max(scale, 1.0), equal_nan=True)


def both(impl: str, x: Tensor, bias: Tensor | None, **keywords) -> tuple[list[Tensor], list[Tensor]]:
    got, want = (two_orders(lambda *t, i=i: bias_act(*t, impl=i, **keywords), x, bias) for i in (impl, "reference"))
    return got, want
