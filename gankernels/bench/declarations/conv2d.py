"""conv2d where discriminators have it, dense and grouped: what counts is the second order, a penalty's."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES, Work, launches
from gankernels.bench.networks import convolution_cases
from gankernels.ops import conv2d

#: The discriminator of R3GAN mirrors its generator; a shape that both have is named by the latter.
_POSITIONS = (
    "DCGAN-64 D conv 3",
    "SNGAN-32 D block 2, conv 1",
    "BigGAN-128 D block 5, conv 1",
    "StyleGAN2-256 D block 32, conv 2",
    "R3GAN-64 G stage 1, block 2, conv 2",
    "R3GAN-64 G stage 2, block 2, conv 2",
    "R3GAN-64 G stage 3, block 2, conv 2",
    "R3GAN-64 G stage 4, block 2, conv 2",
)

_work = partial(Work, transposed=False)


def _arguments(case: Case) -> dict[str, Any]:
    return {name: case.arguments[name] for name in ("stride", "padding", "groups")}


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, **_arguments(case))


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str) -> Tensor:
    return conv2d(x, weight, bias, **_arguments(case), impl=impl)


BENCHMARK = Benchmark(
    op="conv2d",
    cases=[case for case in convolution_cases("conv2d") if case.position in _POSITIONS],
    inputs=lambda case, generator: _work(case).inputs(generator),
    stock=_stock,
    ours=_ours,
    bytes=lambda case, mode, itemsize: _work(case).bytes(mode, itemsize),
    flops=lambda case, mode: _work(case).flops(mode),
    dtypes=DTYPES,
    modes=(FORWARD_BACKWARD, DOUBLE_BACKWARD),
    reference="reference",
    launches=launches,
)
