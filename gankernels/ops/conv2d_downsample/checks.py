"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankernels.ops.conv2d_downsample import reference
from gankernels.ops.conv2d_downsample.op import conv2d_downsample
from gankernels.selfcheck import Check


@dataclass(frozen=True)
class _Input:
    shape: tuple[int, int, int, int]
    outputs: int
    kernel: int
    layout: torch.memory_format
    padding: tuple[int, int, int, int]

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        sizes = "x".join(map(str, self.shape))
        return f"{sizes} {layout} to {self.outputs}, kernel {self.kernel}, padding {self.padding}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        fan_in = self.shape[1] * self.kernel**2
        x = torch.randn(self.shape, generator=generator, dtype=torch.float64)
        weight = torch.randn(
            (self.outputs, self.shape[1], self.kernel, self.kernel), generator=generator, dtype=torch.float64
        )
        return [x, weight * fan_in**-0.5, torch.randn(self.outputs, generator=generator, dtype=torch.float64)]

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
        return conv2d_downsample(x, weight, bias, padding=self.padding, impl=impl)

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.conv2d_downsample(x, weight, bias, padding=self.padding, activation="none", slope=0.0)


def checks() -> Iterator[Check]:
    """Every route and kernel size, in both layouts, at odd sizes, and with sides that differ."""
    last, contiguous = torch.channels_last, torch.contiguous_format
    for given in (
        _Input((8, 24, 9, 9), 40, 3, last, (1, 1, 1, 1)),
        _Input((8, 24, 9, 9), 40, 3, contiguous, (1, 1, 1, 1)),
        _Input((12, 5, 7, 5), 3, 5, last, (2, 2, 2, 2)),
        _Input((12, 5, 7, 5), 3, 3, last, (0, 1, 2, 1)),
        _Input((2, 5, 6, 5), 3, 1, last, (0, 0, 0, 0)),
        _Input((2, 5, 6, 5), 3, 3, contiguous, (3, 3, 3, 3)),
    ):
        yield Check(str(given), given.draw, given.ours, given.stock, layout=given.layout)
