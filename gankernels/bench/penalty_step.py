"""A discriminator's step with R1 and R2, against the same step without, on stock layers: the penalty's price alone.

The discriminator is four strided convolutions for 64 px and a linear layer, in plain PyTorch for everyone: only the way
to the gradient differs. The times of two cases compare directly, as all have the same pictures:

- *no penalty*: the loss, forward and backward.
- *R1*: on the real half. *R1 + R2*: on all pictures, as R3GAN takes them. The peers differentiate twice through the
  graph of the loss; ours is :func:`gankernels.penalties.d_step`.
- *R1 + R2 apart*: the penalties in a pass of their own, as most training loops have them; ours is
  :func:`gankernels.gradient_penalty`.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels import gradient_penalty, penalties
from gankernels.bench.declaration import STEP, Benchmark, Case
from gankernels.bench.declarations._convolution import DTYPES
from gankernels.bench.functional_step import Called, full
from gankernels.losses import non_saturating_d

WEIGHT = 5.0
_WIDTHS = (3, 64, 128, 256, 512)  # 64 px -> 4 px
_HALF = (torch.bfloat16, torch.float16)


#: Pictures [N, 3, 64, 64] -> logits [N].
Judge = Callable[[Tensor], Tensor]


def _logits(weights: Sequence[Tensor], dtype: torch.dtype, x: Tensor) -> Tensor:
    """In fp32 (fp64 for fp64); a 16-bit ``dtype`` asks for autocast to it."""
    *convolutions, linear = weights
    with torch.autocast(x.device.type, dtype=dtype) if dtype in _HALF else contextlib.nullcontext():
        for weight in convolutions:
            x = F.leaky_relu(F.conv2d(x, weight, stride=2, padding=1), 0.2)
        return full(F.linear(x.flatten(1), linear).squeeze(1))


def _stock(case: Case, real: Tensor, fake: Tensor, *given: Tensor) -> list[Tensor]:
    weights = [weight.detach().requires_grad_() for weight in given]
    judge = functools.partial(_logits, weights, real.dtype)
    value = _STOCK[case.arguments["kind"]](judge, full(real).detach(), full(fake).detach())
    return [value.detach(), *torch.autograd.grad(value, weights)]


def _no_penalty(judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
    return non_saturating_d(*judge(torch.cat([real, fake])).chunk(2))


def _r1(judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
    x = real.detach().requires_grad_()
    logits = judge(x)
    return non_saturating_d(logits, judge(fake)) + WEIGHT * _half_square(logits, x)


def _r1_r2(judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
    x = torch.cat([real, fake]).detach().requires_grad_()
    logits = judge(x)
    return non_saturating_d(*logits.chunk(2)) + 2 * WEIGHT * _half_square(logits, x)


def _apart(judge: Judge, real: Tensor, fake: Tensor) -> Tensor:
    x = torch.cat([real, fake]).detach().requires_grad_()
    return _no_penalty(judge, real, fake) + 2 * WEIGHT * _half_square(judge(x), x)


def _half_square(logits: Tensor, x: Tensor) -> Tensor:
    """The mean of ``|g|^2 / 2``: Mescheder et al., arXiv 1801.04406, equation 9, without its gamma."""
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean() / 2


def _ours(case: Case, real: Tensor, fake: Tensor, *given: Tensor, impl: str) -> list[Tensor]:
    weights = [weight.detach().requires_grad_() for weight in given]
    discriminator = Called(functools.partial(_logits, weights, real.dtype))
    real, fake = full(real).detach(), full(fake).detach()
    kind = case.arguments["kind"]
    if kind == "apart":
        value = _no_penalty(discriminator, real, fake)
        value = value + 2 * WEIGHT * gradient_penalty(discriminator, torch.cat([real, fake]), kind="r1")
        return [value.detach(), *torch.autograd.grad(value, weights)]
    scalars = penalties.d_step(discriminator, real, fake, loss="non-saturating", penalty=kind, weight=WEIGHT)
    return [scalars.loss + WEIGHT * scalars.penalty, *(weight.grad for weight in weights if weight.grad is not None)]


_STOCK: dict[str | None, Callable[[Judge, Tensor, Tensor], Tensor]] = {
    None: _no_penalty,
    "r1": _r1,
    "r1+r2": _r1_r2,
    "apart": _apart,
}


def _inputs(case: Case, rng: torch.Generator) -> list[Tensor]:
    pairs = itertools.pairwise(_WIDTHS)
    shapes = [(c_out, c_in, 4, 4) for c_in, c_out in pairs] + [(1, 16 * _WIDTHS[-1])]
    pictures = [torch.rand(case.shape, generator=rng) * 2 - 1 for _ in range(2)]
    return pictures + [torch.randn(s, generator=rng) * math.sqrt(2 / math.prod(s[1:])) for s in shapes]


def _place(tensors: Sequence[Tensor], dtype: torch.dtype, memory_format: torch.memory_format) -> list[Tensor]:
    """Pictures in the row's dtype; beside those in 16 bits, which ask for autocast, weights in fp32."""
    full = torch.float32 if dtype in _HALF else dtype
    formats = [memory_format if t.dim() == 4 else torch.preserve_format for t in tensors]
    dtypes = [dtype, dtype, *[full] * (len(tensors) - 2)]
    return [t.to(d, memory_format=f) for t, d, f in zip(tensors, dtypes, formats, strict=True)]


def _judged(outputs: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([output.flatten() for output in outputs])]


def _weights() -> int:
    return sum(16 * c_in * c_out for c_in, c_out in itertools.pairwise(_WIDTHS)) + 16 * _WIDTHS[-1]


def _flops(case: Case, mode: str) -> float:
    """Of the closed form: 3 convolutions a layer for a picture, 4 for one that is penalised."""
    pictures, sides = case.shape[0], (32, 16, 8, 4)
    layers = zip(itertools.pairwise(_WIDTHS), sides, strict=True)
    forward = sum(2 * 16 * c_in * c_out * side**2 for (c_in, c_out), side in layers)
    return float(forward * pictures * {None: 6, "r1": 7, "r1+r2": 8, "apart": 8}[case.arguments["kind"]])


def _case(name: str, kind: Any, quick: bool = False) -> Case:
    return Case(f"strided D, 64 px, {name}", (16, 3, 64, 64), {"kind": kind}, quick)


#: 16 real and 16 generated pictures.
PENALTY_STEP = Benchmark(
    op="penalty_step",
    cases=(
        _case("no penalty", None),
        _case("R1", "r1"),
        _case("R1 + R2", "r1+r2", quick=True),
        _case("R1 + R2 apart", "apart"),
    ),
    inputs=_inputs,
    stock=_stock,
    ours=_ours,
    bytes=lambda case, mode, itemsize: 4 * 2 * _weights() + case.passes(2, itemsize),
    flops=_flops,
    impls=("auto",),
    dtypes=DTYPES,
    modes=(STEP,),
    place=_place,
    judged=_judged,
)
