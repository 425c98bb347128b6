"""Nearest x2 and a 3x3 convolution: the first convolution of a residual generator's blocks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from gankernels.bench.declaration import Case
from gankernels.bench.declarations._resampled import benchmark
from gankernels.ops import fold_conv_weight, upsample_conv2d


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    up = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv2d(up, weight, bias, padding=case.arguments["padding"])


def _rearranged(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    folded = fold_conv_weight(weight, "up", impl="reference")
    return F.conv_transpose2d(x, folded, bias, stride=2, padding=case.arguments["padding"])


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, impl: str | None = None) -> Tensor:
    return upsample_conv2d(x, weight, bias, padding=case.arguments["padding"], impl=impl)


BENCHMARK = benchmark(
    "upsample_conv2d", output_size=lambda size: 2 * size, stock=_stock, ours=_ours, rearranged=_rearranged
)
