"""conv_transpose2d where generators have it: DCGAN's 4x4 and StyleGAN's 3x3, both of stride 2."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES, Work, launches
from gankernels.bench.networks import BATCHES, convolution_cases
from gankernels.ops import conv_transpose2d

_work = partial(Work, transposed=True)


def _stylegan2(resolution: int, c_in: int, c_out: int) -> Case:
    """The upsampling convolution of a block: without bias and activation, which follow behind its filter."""
    batch = BATCHES["StyleGAN2-256"]
    n = batch.cuda if torch.cuda.is_available() else batch.cpu
    arguments = {
        "out_channels": c_out,
        "kernel_size": 3,
        "stride": 2,
        "padding": 0,
        "groups": 1,
        "bias": False,
        "activation": "",
    }
    size = resolution // 2
    return Case(f"StyleGAN2-256 G block {resolution}, conv 1", (n, c_in, size, size), arguments)


def _arguments(case: Case) -> dict[str, Any]:
    return {name: case.arguments[name] for name in ("stride", "padding", "groups")}


def _stock(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    y = F.conv_transpose2d(x, weight, bias, **_arguments(case))
    return torch.tanh(y) if case.arguments["activation"] == "tanh" else y


def _ours(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, impl: str) -> Tensor:
    activation = case.arguments["activation"] or "none"
    return conv_transpose2d(x, weight, bias, **_arguments(case), activation=activation, impl=impl)


BENCHMARK = Benchmark(
    op="conv_transpose2d",
    cases=[
        *convolution_cases("conv_transpose2d"),
        _stylegan2(16, 512, 512),
        _stylegan2(64, 512, 512),
        _stylegan2(128, 512, 256),
    ],
    inputs=lambda case, generator: _work(case).inputs(generator),
    stock=_stock,
    ours=_ours,
    bytes=lambda case, mode, itemsize: _work(case).bytes(mode, itemsize),
    flops=lambda case, mode: _work(case).flops(mode),
    dtypes=DTYPES,
    modes=(FORWARD, FORWARD_BACKWARD),
    reference="reference",
    launches=launches,
)
