"""What the declarations of the convolutions with a resampling beside them share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gankernels.bench import networks
from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES

#: Forward, and the two gradients besides: as many multiplications each.
_CONVOLUTIONS = {FORWARD: 1, FORWARD_BACKWARD: 3}
#: Of x, weight and output: read or written forward; backward, x and weight are read again and have gradients, and the
#: output's gradient is read by both.
_PASSES = {FORWARD: (1, 1, 1), FORWARD_BACKWARD: (1 + 2, 1 + 2, 1 + 2)}


def benchmark(
    op: str,
    *,
    output_size: Callable[[int], int],
    stock: Callable[..., Tensor],
    ours: Callable[..., Tensor],
    rearranged: Callable[..., Tensor],
) -> Benchmark:
    """The declaration of ``op``, at every position that it has in the networks.

    Args:
        op: its name.
        output_size: of a side of x, that of the output.
        stock, ours, rearranged: as of :class:`Benchmark`.
    """

    def moved(case: Case, mode: str, itemsize: int) -> float:
        n, c_in, height, width = case.shape
        c_out = case.arguments["out_channels"]
        output = n * c_out * output_size(height) * output_size(width)
        numbers = (math.prod(case.shape), c_out * c_in * case.arguments["kernel_size"] ** 2, output)
        return float(itemsize * sum(passes * n for passes, n in zip(_PASSES[mode], numbers, strict=True)))

    def multiplied(case: Case, mode: str) -> float:
        # Boxed: each pixel of the small side meets K^2 taps. Folded it meets (K+1)^2, by the definition 4 K^2.
        n, c_in, height, width = case.shape
        pixels = n * min(height, output_size(height)) * min(width, output_size(width))
        taps = case.arguments["kernel_size"] ** 2
        return 2.0 * _CONVOLUTIONS[mode] * pixels * c_in * case.arguments["out_channels"] * taps

    return Benchmark(
        op=op,
        cases=networks.convolution_cases(op),
        inputs=_inputs,
        stock=stock,
        ours=ours,
        rearranged=rearranged,
        bytes=moved,
        flops=multiplied,
        dtypes=DTYPES,
        modes=(FORWARD, FORWARD_BACKWARD),
        launches=lambda mode: {FORWARD: 2, FORWARD_BACKWARD: 5}[mode],
    )


def _inputs(case: Case, generator: torch.Generator) -> list[Tensor]:
    """x, weight, which keeps the variance, and bias."""
    c_out, size, c_in = case.arguments["out_channels"], case.arguments["kernel_size"], case.shape[1]
    weight = torch.randn(c_out, c_in, size, size, generator=generator) * (c_in * size**2) ** -0.5
    bias = [0.1 * torch.randn(c_out, generator=generator)] if case.arguments["bias"] else []
    return [torch.randn(case.shape, generator=generator), weight, *bias]
