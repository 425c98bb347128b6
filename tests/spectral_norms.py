"""What the tests of spectral_norm share: its kernels, weights of every kind, two orders, and a comparison."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import parametrizations

from gankernels.ops import spectral_norm
from implementations import kernels_of

KERNELS = kernels_of("spectral_norm")
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
needs_cpu = pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")

# shape, dim, layout: linear, convolution, transposed convolution, embedding; one row, one column; odd sizes
WEIGHTS = [
    ((3, 4), 0, "contiguous"),
    ((5, 2, 3, 3), 0, "contiguous"),
    ((5, 4, 3, 3), 0, "channels_last"),
    ((4, 3, 2, 2), 1, "contiguous"),
    ((4, 3, 2, 2), 1, "channels_last"),
    ((1, 7), 0, "contiguous"),
    ((7, 1), 0, "contiguous"),
    ((3, 5), 1, "contiguous"),
    ((4, 5, 3), 2, "contiguous"),
    ((2, 3, 2, 1, 3), 0, "channels_last_3d"),
    ((4, 3, 2, 3), 2, "channels_last"),
    ((1, 1), 0, "contiguous"),
]


class Case:
    """Random weights with their vectors, and fixed random cotangents."""

    def __init__(self, weights=WEIGHTS, *, dtype=torch.float64, device="cpu", out_dtype=None):
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64)

        def laid_out(t: Tensor, layout: str) -> Tensor:
            return t.contiguous(memory_format=getattr(torch, layout if layout != "contiguous" else "contiguous_format"))

        self.dims = [dim for _, dim, _ in weights]
        self.out_dtype = out_dtype
        self.weights = [laid_out(draw(*s).to(device, dtype), layout).requires_grad_() for s, _, layout in weights]
        heights = [shape[dim] for shape, dim, _ in weights]
        widths = [math.prod(shape) // h for (shape, _, _), h in zip(weights, heights, strict=True)]
        self.u, self.v = ([F.normalize(draw(n), dim=0).to(device, dtype) for n in ns] for ns in (heights, widths))
        self.dy = [laid_out(draw(*s).to(device, out_dtype or dtype), layout) for s, _, layout in weights]
        self.a = [draw(*s).to(device, dtype) for s, _, layout in weights]

    def double(self) -> Case:
        exact = Case.__new__(Case)
        exact.dims, exact.out_dtype = self.dims, None
        exact.weights = [w.detach().double().requires_grad_() for w in self.weights]
        exact.u, exact.v, exact.dy, exact.a = ([t.double() for t in ts] for ts in (self.u, self.v, self.dy, self.a))
        return exact

    def vectors(self) -> tuple[list[Tensor], list[Tensor]]:
        return [u.clone() for u in self.u], [v.clone() for v in self.v]

    def run(self, impl: str | None, **keywords) -> list[Tensor]:
        """Results, new u and v, gradients, and the vector-Jacobian product of the gradients."""
        u, v = self.vectors()
        y = spectral_norm(self.weights, u, v, dims=self.dims, out_dtype=self.out_dtype, impl=impl, **keywords)
        dy = [t.clone().requires_grad_() for t in self.dy]
        first = torch.autograd.grad(y, self.weights, dy, create_graph=True)
        second = torch.autograd.grad(first, [*dy, *self.weights], self.a)
        return [*y, *u, *v, *first, *second]

    def torch(self) -> list[Tensor]:
        """The same by PyTorch's parametrization."""
        y, u, v = [], [], []
        for weight, dim, u_, v_ in zip(self.weights, self.dims, *self.vectors(), strict=True):
            norm = parametrizations._SpectralNorm(weight.detach(), dim=dim)
            norm._u, norm._v = u_, v_
            y.append(norm(weight).to(self.out_dtype or weight.dtype))
            u.append(norm._u)
            v.append(norm._v)
        dy = [t.clone().requires_grad_() for t in self.dy]
        first = torch.autograd.grad(y, self.weights, dy, create_graph=True)
        second = torch.autograd.grad(first, [*dy, *self.weights], self.a)
        return [*y, *u, *v, *first, *second]


def assert_equal(actual, expected, rtol: float = 1e-10) -> None:
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=rtol * max(want.abs().amax().item(), 1.0), msg=lambda m, i=i: f"{i}: {m}"
        )
