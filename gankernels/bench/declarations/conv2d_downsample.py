"""A 3x3 convolution and a 2x2 mean: the second convolution of a residual discriminator's blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.bench.declaration import Case
from gankernels.bench.declarations._resampled import benchmark
from gankernels.ops import conv2d_downsample, fold_conv_weight


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, weight, bias, padding=case.arguments["padding"]), 2)


def _rearranged(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    folded = fold_conv_weight(weight, "down", impl="reference")
    return F.conv2d(x, folded, bias, stride=2, padding=case.arguments["padding"])


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, impl: str | None = None) -> Tensor:
    return conv2d_downsample(x, weight, bias, padding=case.arguments["padding"], impl=impl)


BENCHMARK = benchmark(
    "conv2d_downsample", output_size=lambda size: size // 2, stock=_stock, ours=_ours, rearranged=_rearranged
)
