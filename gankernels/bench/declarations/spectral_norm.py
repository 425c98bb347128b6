"""The benchmark of spectral_norm: all weights of a network in one call, against PyTorch's parametrization of each."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm

from gankernels.bench import networks
from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.ops import spectral_norm


def _inputs(case: Case, generator: torch.Generator) -> list[Tensor]:
    shapes = case.arguments["weights"]
    weights = [torch.randn(shape, generator=generator) * 0.02 for shape in shapes]
    u = [F.normalize(torch.randn(shape[0], generator=generator), dim=0) for shape in shapes]
    v = [F.normalize(torch.randn(math.prod(shape[1:]), generator=generator), dim=0) for shape in shapes]
    return [*weights, *u, *v]


def _split(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], list[Tensor], list[Tensor]]:
    """The weights, and vectors that may be written to: every call begins at the same ones."""
    count = len(tensors) // 3
    vectors = [t.detach().clone() for t in tensors[count:]]
    return tensors[:count], vectors[:count], vectors[count:]


@functools.cache
def _parametrizations(count: int) -> list[_SpectralNorm]:
    return [_SpectralNorm(torch.ones(1, 1)) for _ in range(count)]


def _stock(case: Case, *tensors: Tensor) -> list[Tensor]:
    weights, u, v = _split(tensors)
    norms = _parametrizations(len(weights))
    for norm, u_, v_ in zip(norms, u, v, strict=True):
        norm._u, norm._v = u_, v_
    return [norm(weight) for norm, weight in zip(norms, weights, strict=True)]


def _ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
    weights, u, v = _split(tensors)
    return spectral_norm(weights, u, v, impl=impl)


def _case(*names: str, quick: bool = False) -> Case:
    shapes = [shape for name in names for shape in networks.spectral_norm_weights(name)]
    position = f"{' and '.join(names)}, {len(shapes)} weights"
    return Case(position, (sum(map(math.prod, shapes)),), {"weights": shapes}, quick)


BENCHMARK = Benchmark(
    op="spectral_norm",
    cases=[
        _case("BigGAN-128 G", "BigGAN-128 D"),
        _case("SNGAN-32 D", quick=True),
    ],
    inputs=_inputs,
    stock=_stock,
    ours=_ours,
    # Forward: the iteration reads W once, the scaling reads it and writes y. Backward: the product reads dy and W, the
    # result reads dy and writes dW.
    bytes=lambda case, mode, itemsize: case.passes({FORWARD: 3, FORWARD_BACKWARD: 7}[mode], itemsize),
    flops=lambda case, mode: case.passes({FORWARD: 5, FORWARD_BACKWARD: 11}[mode], 1),
    dtypes=(torch.float32,),
    modes=(FORWARD, FORWARD_BACKWARD),
    reference="reference",
    launches=lambda mode: {FORWARD: 3, FORWARD_BACKWARD: 5}[mode],
)
