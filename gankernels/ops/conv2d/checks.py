"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gankernels.ops.conv2d import reference
from gankernels.ops.conv2d.op import conv2d
from gankernels.selfcheck import Check


@dataclass(frozen=True)
class _Input:
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    layout: torch.memory_format
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        arguments = "".join(f", {name} {value}" for name, value in self.arguments.items())
        return f"{'x'.join(map(str, self.x))} * {'x'.join(map(str, self.weight))} {layout}{arguments}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        shapes = (self.x, self.weight, (self.weight[0],))
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
        return conv2d(x, weight, bias, **self.arguments, impl=impl)

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.conv2d(x, weight, bias, **self.arguments)


def checks() -> Iterator[Check]:
    """Odd shapes, with stride, padding, dilation and groups, in both layouts."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    for given in (
        _Input((2, 5, 9, 7), (6, 5, 3, 3), last, {"padding": 1}),
        _Input((2, 5, 9, 7), (6, 5, 3, 3), contiguous, {"padding": 1}),
        _Input((2, 8, 9, 8), (6, 8, 4, 4), last, {"stride": 2, "padding": 1}),
        _Input((3, 16, 8, 8), (16, 2, 3, 3), contiguous, {"padding": 1, "groups": 8}),
        _Input((3, 16, 8, 8), (16, 2, 3, 3), last, {"padding": 1, "groups": 8}),
        _Input((2, 6, 9, 8), (12, 1, 3, 3), contiguous, {"padding": 2, "dilation": 2, "groups": 6}),
        _Input((2, 24, 5, 5), (17, 24, 1, 1), last),
    ):
        yield Check(str(given), given.draw, given.ours, given.stock, layout=given.layout)
