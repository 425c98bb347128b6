"""Nearest x2 and a 3x3 convolution: the first convolution of a residual generator's blocks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.bench import networks
from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.ops import upsample_conv2d

#: Forward, and the two gradients besides: as many multiplications each.
_CONVOLUTIONS = {FORWARD: 1, FORWARD_BACKWARD: 3}
#: Of x, weight and output: read or written forward; backward, x and weight are read again and have gradients, and the
#: output's gradient is read by both.
_PASSES = {FORWARD: (1, 1, 1), FORWARD_BACKWARD: (1 + 2, 1 + 2, 1 + 2)}


def inputs(case: Case, generator: torch.Generator) -> list[Tensor]:
    """x, weight, which keeps the variance, and bias."""
    c_out, size, c_in = case.arguments["out_channels"], case.arguments["kernel_size"], case.shape[1]
    weight = torch.randn(c_out, c_in, size, size, generator=generator) * (c_in * size**2) ** -0.5
    bias = [0.1 * torch.randn(c_out, generator=generator)] if case.arguments["bias"] else []
    return [torch.randn(case.shape, generator=generator), weight, *bias]


def _output(case: Case) -> tuple[int, int, int, int]:
    n, _, height, width = case.shape
    return n, case.arguments["out_channels"], 2 * height, 2 * width


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    up = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(up, weight, bias, padding=case.arguments["padding"])


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, impl: str | None = None) -> Tensor:
    return upsample_conv2d(x, weight, bias, padding=case.arguments["padding"], impl=impl)


def moved(case: Case, output: tuple[int, int, int, int], mode: str, itemsize: int) -> float:
    """Bytes that any implementation moves: of x, weight and output."""
    size = case.arguments["kernel_size"]
    numbers = (torch.Size(case.shape).numel(), output[1] * case.shape[1] * size**2, torch.Size(output).numel())
    return float(itemsize * sum(passes * n for passes, n in zip(_PASSES[mode], numbers, strict=True)))


def multiplied(case: Case, taps: float, pixels: int, mode: str) -> float:
    """Operations with so many taps for each output pixel; a multiply-add is two."""
    n, c_in = case.shape[:2]
    return _CONVOLUTIONS[mode] * 2.0 * n * pixels * case.arguments["out_channels"] * c_in * taps


def _bytes(case: Case, mode: str, itemsize: int) -> float:
    return moved(case, _output(case), mode, itemsize)


def _flops(case: Case, mode: str) -> float:
    # Folded: an output pixel sees a quarter of the (K+1)^2 taps. The two steps of the definition take K^2.
    _, _, height, width = _output(case)
    return multiplied(case, (case.arguments["kernel_size"] + 1) ** 2 / 4, height * width, mode)


BENCHMARK = Benchmark(
    op="upsample_conv2d",
    cases=networks.convolution_cases("upsample_conv2d"),
    inputs=inputs,
    stock=_stock,
    ours=_ours,
    bytes=_bytes,
    flops=_flops,
    dtypes=DTYPES,
    modes=(FORWARD, FORWARD_BACKWARD),
    launches=lambda mode: {FORWARD: 2, FORWARD_BACKWARD: 5}[mode],
)
