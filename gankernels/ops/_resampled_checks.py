"""What the self-checks of the convolutions with a resampling beside them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankernels.selfcheck import Check


@dataclass(frozen=True)
class Input:
    """One input: x [N, C, H, W], a square kernel, and (left, right, top, bottom) of padding."""

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

    def check(self, op: Callable[..., Tensor], definition: Callable[..., Tensor]) -> Check:
        """``op`` of this input, held against its definition."""

        def ours(x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
            return op(x, weight, bias, padding=self.padding, impl=impl)

        def stock(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return definition(x, weight, bias, padding=self.padding, activation="none", slope=0.0)

        return Check(str(self), self.draw, ours, stock, layout=self.layout)
