"""The benchmark of spectral_norm: all weights of a network in one call, against what PyTorch computes for each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.bench import networks
from gankernels.bench.declaration import FORWARD, FORWARD_BACKWARD, Benchmark, Case
from gankernels.ops import spectral_norm

_EPS = 1e-12


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


def stock_spectral_norm(weight: Tensor, u: Tensor, v: Tensor, eps: float = _EPS) -> Tensor:
    """What PyTorch's parametrization computes, u and v left as they are. Miyato et al., 1802.05957, algorithm 1."""
    w = weight.flatten(1)
    with torch.no_grad():
        u = F.normalize(torch.mv(w, v), dim=0, eps=eps)
        v = F.normalize(torch.mv(w.t(), u), dim=0, eps=eps)
    return weight / torch.vdot(u, torch.mv(w, v))


def _stock(case: Case, *tensors: Tensor) -> list[Tensor]:
    return [stock_spectral_norm(weight, u, v) for weight, u, v in zip(*_split(tensors), strict=True)]


def _ours(case: Case, *tensors: Tensor, impl: str) -> list[Tensor]:
    weights, u, v = _split(tensors)
    return spectral_norm(weights, u, v, eps=_EPS, impl=impl)


def _judged(results: Sequence[Tensor]) -> list[Tensor]:
    """All weights in one vector, all gradients in another.

    The error of one weight is that of one number, its sigma: whose is smaller is chance.
    """
    matrices = [t.flatten() for t in results if t.dim() > 1]
    count = sum(t.dim() == 1 for t in results) // 2 or len(matrices)  # gradients of u and v come with those of weights
    return [torch.cat(group) for group in (matrices[:count], matrices[count:]) if group]


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
    judged=_judged,
)
