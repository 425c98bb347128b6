"""A 3x3 convolution and a 2x2 mean: the second convolution of a residual discriminator's blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.bench import networks
from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.bench.declarations.upsample_conv2d import inputs, moved, multiplied
from gankernels.ops import conv2d_downsample


def _output(case: Case) -> tuple[int, int, int, int]:
    n, _, height, width = case.shape
    return n, case.arguments["out_channels"], height // 2, width // 2


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=case.arguments["padding"]), 2)


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, impl: str | None = None) -> Tensor:
    return conv2d_downsample(x, weight, bias, padding=case.arguments["padding"], impl=impl)


def _bytes(case: Case, mode: str, itemsize: int) -> float:
    return moved(case, _output(case), mode, itemsize)


def _flops(case: Case, mode: str) -> float:
    # Folded: (K+1)^2 taps for each pixel of the mean. The two steps of the definition take 4 K^2.
    _, _, height, width = _output(case)
    return multiplied(case, (case.arguments["kernel_size"] + 1) ** 2, height * width, mode)


BENCHMARK = Benchmark(
    op="conv2d_downsample",
    cases=networks.convolution_cases("conv2d_downsample"),
    inputs=inputs,
    stock=_stock,
    ours=_ours,
    bytes=_bytes,
    flops=_flops,
    dtypes=DTYPES,
    modes=(FORWARD, FORWARD_BACKWARD),
    launches=lambda mode: {FORWARD: 2, FORWARD_BACKWARD: 5}[mode],
)
