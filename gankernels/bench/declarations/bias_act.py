"""bias_act behind the convolutions of discriminators: bias, leaky ReLU, and StyleGAN2's gain and clamp."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.ops import bias_act

#: Forward: x read, y written. Backward: dy and x (or y) read, dx written. The backward of that: the cotangent of dx and
#: x (or y) read, ddy written; the penalty reads dx and writes that cotangent.
_PASSES = {FORWARD: 2, FORWARD_BACKWARD: 2 + 3, DOUBLE_BACKWARD: 2 + 3 + 2 + 3}

_STYLEGAN2: dict[str, Any] = {"gain": 2**0.5, "clamp": 256.0}
_PLAIN: dict[str, Any] = {"gain": 1.0, "clamp": None}


def _inputs(case: Case, generator: torch.Generator) -> list[Tensor]:
    return [torch.randn(case.shape, generator=generator), 0.1 * torch.randn(case.shape[1], generator=generator)]


def _stock(case: Case, x: Tensor, bias: Tensor) -> Tensor:
    y = F.leaky_relu(x + bias[:, None, None], 0.2)
    if case.arguments["gain"] != 1:
        y = y * case.arguments["gain"]
    clamp = case.arguments["clamp"]
    return y if clamp is None else y.clamp(-clamp, clamp)


def _ours(case: Case, x: Tensor, bias: Tensor, impl: str) -> Tensor:
    return bias_act(x, bias, activation="lrelu", slope=0.2, **case.arguments, impl=impl)


def _bytes(case: Case, mode: str, itemsize: int) -> float:
    return case.passes(_PASSES[mode], itemsize)


BENCHMARK = Benchmark(
    op="bias_act",
    cases=[
        Case("StyleGAN2-256 D 256 px", (4, 128, 256, 256), _STYLEGAN2),
        Case("StyleGAN2-256 D 64 px", (8, 512, 64, 64), _STYLEGAN2),
        Case("StyleGAN2-256 D 16 px", (16, 512, 16, 16), _STYLEGAN2),
        Case("StyleGAN2-256 D 4 px", (16, 512, 4, 4), _STYLEGAN2),
        Case("StyleGAN2-256 D 4 px, one sample", (1, 512, 4, 4), _STYLEGAN2),
        Case("DCGAN-64 D layer 1", (64, 64, 32, 32), _PLAIN, quick=True),
        Case("DCGAN-64 D layer 3", (64, 256, 8, 8), _PLAIN),
        Case("R3GAN-32 D 32 px", (64, 384, 32, 32), _PLAIN),
        Case("R3GAN-32 D 8 px", (64, 768, 8, 8), _PLAIN),
    ],
    inputs=_inputs,
    stock=_stock,
    ours=_ours,
    bytes=_bytes,
    modes=(FORWARD, FORWARD_BACKWARD, DOUBLE_BACKWARD),
    reference="reference",
    kink=lambda case, x, bias: (x + bias[:, None, None]).abs(),
    launches=lambda mode: {FORWARD: 1, FORWARD_BACKWARD: 3, DOUBLE_BACKWARD: 4}[mode],
)
