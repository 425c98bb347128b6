"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gankernels.ops._activation import ACTIVATIONS
from gankernels.ops.conditional_batch_norm.reference import conditional_batch_norm
from gankernels.ops.conv_transpose2d import reference
from gankernels.ops.conv_transpose2d.normalised import conditional_batch_norm_conv_transpose2d
from gankernels.ops.conv_transpose2d.op import conv_transpose2d
from gankernels.selfcheck import Check


@dataclass(frozen=True)
class _Input:
    x: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    layout: torch.memory_format
    activation: str = "none"
    arguments: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        arguments = "".join(f", {name} {value}" for name, value in self.arguments.items())
        shapes = f"{'x'.join(map(str, self.x))} * {'x'.join(map(str, self.weight))}"
        return f"{shapes} {layout}, {self.activation}{arguments}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        shapes = (self.x, self.weight, (self.weight[1] * self.arguments.get("groups", 1),))
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def ours(self, x: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
        # What Triton has no kernel for runs on the library where dispatch has chosen Triton.
        if impl == "triton" and self.arguments.keys() & {"groups", "dilation"}:
            impl = "library"
        return conv_transpose2d(x, weight, bias, activation=self.activation, **self.arguments, impl=impl)

    def stock(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.conv_transpose2d(x, weight, bias, activation=self.activation, **self.arguments)

    def before_activation(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return reference.conv_transpose2d(x, weight, bias, **self.arguments)


@dataclass(frozen=True)
class _Block:
    """A batch norm with ReLU in front, whose statistics are x's: on Triton, one op."""

    x: tuple[int, int, int, int]
    outputs: int
    layout: torch.memory_format

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"batch norm, {'x'.join(map(str, self.x))} * {self.outputs} {layout}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        n, c, *_ = self.x
        shapes = (self.x, (n, c), (n, c), (c, self.outputs, 4, 4), (self.outputs,))
        return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

    def ours(self, x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, impl: str) -> Tensor:
        if impl != "triton":
            h, _, _ = conditional_batch_norm(x, gain, shift, activation="relu")
            return conv_transpose2d(h, weight, bias, stride=2, padding=1, impl=impl)
        geometry = ((2, 2), (1, 1), (0, 0))
        given = (x, gain, shift, None, None, True, 1e-5, "relu", 0.0, weight, bias)
        return conditional_batch_norm_conv_transpose2d(*given, *geometry).y

    def stock(self, x: Tensor, gain: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return self.ours(x, gain, shift, weight, bias, impl="reference")

    def check(self) -> Check:
        return Check(str(self), self.draw, self.ours, self.stock, layout=self.layout)


def checks() -> Iterator[Check]:
    """The networks' 4x4 and 3x3 stride 2 at odd sizes, groups and dilation, in both layouts, and every activation.

    Triton's also with a batch norm in front, which is the same kernel loading x in another way.
    """
    contiguous, last = torch.contiguous_format, torch.channels_last
    four, three = {"stride": 2, "padding": 1}, {"stride": 2}
    for given in (
        *(_Input((2, 5, 3, 4), (5, 6, 4, 4), last, activation, four) for activation in ACTIVATIONS),
        _Input((2, 5, 3, 4), (5, 6, 4, 4), contiguous, "none", four),
        _Input((2, 17, 5, 3), (17, 9, 3, 3), last, "lrelu", three),
        _Input((2, 17, 5, 3), (17, 9, 3, 3), contiguous, "lrelu", three),
        _Input((3, 10, 1, 1), (10, 7, 4, 4), last, "relu"),
        _Input((2, 8, 5, 4), (8, 3, 3, 3), last, "none", {"stride": 3, "padding": 1, "output_padding": 2, "groups": 4}),
        _Input((2, 4, 5, 4), (4, 6, 3, 2), contiguous, "none", {"dilation": 2, "padding": 1}),
    ):
        kink = given.before_activation if given.activation in ("relu", "lrelu") else None
        yield Check(str(given), given.draw, given.ours, given.stock, layout=given.layout, kink=kink)
    yield _Block((2, 5, 3, 4), 6, last).check()
    yield _Block((2, 17, 2, 1), 5, contiguous).check()
