"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankernels.ops.fold_conv_weight import reference
from gankernels.ops.fold_conv_weight.op import fold_conv_weight
from gankernels.selfcheck import Check


@dataclass(frozen=True)
class _Input:
    shape: tuple[int, ...]
    layout: torch.memory_format
    resample: str

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{'x'.join(map(str, self.shape))} {layout}, {self.resample}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        return [torch.randn(self.shape, generator=generator, dtype=torch.float64)]

    def ours(self, weight: Tensor, impl: str) -> Tensor:
        return fold_conv_weight(weight, self.resample, impl=impl)

    def stock(self, weight: Tensor) -> Tensor:
        return reference.fold_conv_weight(weight, self.resample)


def checks() -> Iterator[Check]:
    """Every kernel size, up and down, in both layouts, past a tile and with odd ends."""
    for layout in (torch.channels_last, torch.contiguous_format):
        for resample in ("up", "down"):
            for shape, many in (((3, 2, 1, 1), False), ((70, 37, 3, 3), True), ((5, 33, 5, 5), True)):
                given = _Input(shape, layout, resample)
                yield Check(str(given), given.draw, given.ours, given.stock, many=many, layout=layout)
