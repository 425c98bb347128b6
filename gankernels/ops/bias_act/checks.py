"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gankernels.ops._activation import ACTIVATIONS
from gankernels.ops.bias_act import reference
from gankernels.ops.bias_act.op import bias_act
from gankernels.selfcheck import Check

_SLOPE, _GAIN = 0.2, 2**0.5


@dataclass(frozen=True)
class _Input:
    shape: tuple[int, ...]
    layout: torch.memory_format
    activation: str
    dim: int = 1

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{'x'.join(map(str, self.shape))} {layout}, {self.activation}, dim {self.dim}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        shapes = (self.shape, (self.shape[self.dim],))
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def ours(self, x: Tensor, bias: Tensor, impl: str) -> Tensor:
        return bias_act(x, bias, activation=self.activation, slope=_SLOPE, gain=_GAIN, dim=self.dim, impl=impl)

    def stock(self, x: Tensor, bias: Tensor) -> Tensor:
        return reference.bias_act(x, bias, activation=self.activation, slope=_SLOPE, gain=_GAIN, dim=self.dim)

    def before_activation(self, x: Tensor, bias: Tensor) -> Tensor:
        return reference.bias_act(x, bias, activation="none", slope=0.0, gain=1.0, dim=self.dim)


def checks() -> Iterator[Check]:
    """Every activation at an odd shape, and the leaky ReLU in other dimensions and layouts, and at some size."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    for given in (
        *(_Input((3, 5, 7, 3), contiguous, activation) for activation in ACTIVATIONS),
        _Input((2, 17, 3, 3), last, "lrelu"),
        _Input((5, 33), contiguous, "lrelu"),
        _Input((1, 3, 65), contiguous, "relu", dim=2),
        _Input((16, 40, 9, 9), last, "lrelu"),
        _Input((16, 40, 9, 9), contiguous, "lrelu"),
    ):
        kinked = given.activation in ("relu", "lrelu")
        kink = given.before_activation if kinked else None
        yield Check(str(given), given.draw, given.ours, given.stock, layout=given.layout, kink=kink)
