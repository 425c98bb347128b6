"""What the tests of conditional_batch_norm share: its kernels, inputs, two orders of derivatives and a comparison."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from implementations import kernels_of

KERNELS = kernels_of("conditional_batch_norm")
ACTIVATIONS = ("none", "relu", "lrelu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
statistics = pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])
needs_cpu = pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")


def inputs(shape: tuple[int, ...], *, dtype=torch.float64, device="cpu", layout="contiguous", mean=0.0):
    n, c = shape[:2]
    x = (torch.randn(shape, dtype=torch.float64) + mean).to(device, dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    gain = (1 + 0.5 * torch.randn(n, c, dtype=torch.float64)).to(device, dtype).requires_grad_()
    bias = torch.randn(n, c, dtype=torch.float64).to(device, dtype).requires_grad_()
    return x, gain, bias


def running(c: int, *, dtype=torch.float64, device="cpu") -> dict[str, Tensor]:
    return {
        "running_mean": torch.randn(c, dtype=torch.float64).to(device, dtype),
        "running_var": (torch.rand(c, dtype=torch.float64) + 0.5).to(device, dtype),
    }


def two_orders(function, x: Tensor, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Output, gradients, and the vector-Jacobian product of the gradients, all with fixed random cotangents."""
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        return drawn.contiguous(memory_format=torch.channels_last) if t.stride() != t.contiguous().stride() else drawn

    y = function(x, gain, bias)
    dy = like(y).requires_grad_()
    first = torch.autograd.grad(y, (x, gain, bias), dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, x, gain), [like(t) for t in first])
    return dict(zip(["y", "dx", "dgain", "dbias", "ddy", "dx2", "dgain2"], (y, *first, *second), strict=True))


def assert_as_reference(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        scale = want.abs().nan_to_num(0, 0, 0).amax().item() if want.numel() else 0.0
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=rtol * max(scale, 1.0), equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


def eager(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """What a user writes with stock PyTorch in the dtype of x."""
    return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])
