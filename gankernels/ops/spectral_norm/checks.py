"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops.spectral_norm import reference
from gankernels.ops.spectral_norm.op import spectral_norm
from gankernels.selfcheck import Check

#: A linear layer, convolutions and a transposed one, odd and even, one row and one column; then one of some size.
_WEIGHTS = (((1, 7), 0), ((5, 1), 0), ((6, 3, 3, 3), 0), ((4, 9, 4, 4), 1), ((33, 17, 1, 1), 0), ((64, 48, 3, 3), 0))


@dataclass(frozen=True)
class _Input:
    layout: torch.memory_format
    training: bool

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{len(_WEIGHTS)} {layout} weights, {'training' if self.training else 'eval'}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        weights = [normal(*shape) for shape, _ in _WEIGHTS]
        heights = [shape[dim] for shape, dim in _WEIGHTS]
        u = [F.normalize(normal(h), dim=0) for h in heights]
        v = [F.normalize(normal(math.prod(s) // h), dim=0) for (s, _), h in zip(_WEIGHTS, heights, strict=True)]
        return [*weights, *u, *v]

    def ours(self, *tensors: Tensor, impl: str) -> list[Tensor]:
        weights, u, v = _split(tensors)
        return spectral_norm(weights, u, v, dims=[dim for _, dim in _WEIGHTS], training=self.training, impl=impl)

    def stock(self, *tensors: Tensor) -> list[Tensor]:
        results = []
        for weight, u, v, (_, dim) in zip(*_split(tensors), _WEIGHTS, strict=True):
            w = reference.matrix(weight, dim)
            if self.training:
                with torch.no_grad():
                    u = F.normalize(torch.mv(w, v), dim=0, eps=1e-12)
                    v = F.normalize(torch.mv(w.t(), u), dim=0, eps=1e-12)
            results.append(weight / torch.vdot(u, torch.mv(w, v)))
        return results


def _split(tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The weights, and copies of u and v, which training writes to."""
    count = len(_WEIGHTS)
    vectors = [t.detach().clone() for t in tensors[count:]]
    return list(tensors[:count]), vectors[:count], vectors[count:]


def checks() -> Iterator[Check]:
    """All weights in one call, in both layouts, iterating and not."""
    for layout in (torch.contiguous_format, torch.channels_last):
        for training in (True, False):
            given = _Input(layout, training)
            yield Check(str(given), given.draw, given.ours, given.stock, layout=layout)
