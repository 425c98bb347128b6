"""The benchmark of spectral_norm: all weights of a network in one call, against PyTorch's parametrization of each."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.parametrizations import _SpectralNorm

from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.ops import spectral_norm

Shape = tuple[int, ...]


def biggan_128(ch: int = 96, classes: int = 1000, z_chunk: int = 20, shared: int = 128) -> tuple[Shape, ...]:
    """The spectral-normed weights of BigGAN at 128 px, hierarchical z: 41 of G, 23 of D. Brock et al., 1809.11096."""
    shapes: list[Shape] = [(16 * ch * 16, z_chunk)]
    for c_in, c_out in ((16, 16), (16, 8), (8, 4), (4, 2), (2, 1)):
        i, o, condition = c_in * ch, c_out * ch, shared + z_chunk
        shapes += [(o, i, 3, 3), (o, o, 3, 3), (o, i, 1, 1), *[(i, condition)] * 2, *[(o, condition)] * 2]
    shapes += [*_attention(2 * ch), (3, ch, 3, 3)]
    widths = [3, ch, 2 * ch, 4 * ch, 8 * ch, 16 * ch, 16 * ch]
    for i, o in itertools.pairwise(widths):
        shapes += [(o, i, 3, 3), (o, o, 3, 3), *([(o, i, 1, 1)] if i != o else [])]
    return (*shapes, *_attention(ch), (1, 16 * ch), (classes, 16 * ch))


def _attention(c: int) -> list[Shape]:
    return [(c // 8, c, 1, 1), (c // 8, c, 1, 1), (c // 2, c, 1, 1), (c, c // 2, 1, 1)]


def sngan_32_d(ch: int = 128, classes: int = 10) -> tuple[Shape, ...]:
    """The weights of SNGAN's discriminator for 32 px. Miyato and Koyama, 1802.05637."""
    return (
        (ch, 3, 3, 3),
        (ch, ch, 3, 3),
        (ch, 3, 1, 1),
        *[(ch, ch, 3, 3)] * 6,
        (ch, ch, 1, 1),
        (1, ch),
        (classes, ch),
    )


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


def _case(position: str, shapes: tuple[Shape, ...], quick: bool = False) -> Case:
    return Case(position, (sum(map(math.prod, shapes)),), {"weights": shapes}, quick)


BENCHMARK = Benchmark(
    op="spectral_norm",
    cases=[
        _case("BigGAN-128 G and D, 64 weights", biggan_128()),
        _case("SNGAN-32 D, 12 weights", sngan_32_d(), quick=True),
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
