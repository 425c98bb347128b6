"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops.conditional_batch_norm import reference
from gankernels.ops.conditional_batch_norm.op import conditional_batch_norm
from gankernels.selfcheck import Check

_SLOPE = 0.2


@dataclass(frozen=True)
class _Input:
    shape: tuple[int, int, int, int]
    layout: torch.memory_format
    activation: str
    training: bool
    mean: float = 0.0
    classes: int | None = None  # with labels
    per_sample: bool = False

    def __str__(self) -> str:
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        statistics = "sample" if self.per_sample else "batch" if self.training else "frozen"
        tables = f", {self.classes} classes" if self.classes else ""
        return f"{'x'.join(map(str, self.shape))} {layout}, {self.activation}, {statistics} statistics{tables}"

    def draw(self, generator: torch.Generator) -> Sequence[Tensor]:
        n, c = self.classes or self.shape[0], self.shape[1]
        x, gain, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in (self.shape, (n, c), (n, c)))
        return x + self.mean, 1 + gain / 2, bias

    def running(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics [C]: used where they are frozen, and updated, which nobody looks at, where they are not."""
        c, dtype = x.shape[1], torch.promote_types(x.dtype, torch.float32)
        mean = torch.linspace(-1, 1, c, device=x.device, dtype=dtype)
        return mean, torch.linspace(0.5, 2, c, device=x.device, dtype=dtype)

    def labels(self, x: Tensor) -> Tensor | None:
        """Several samples of one class, and none of others."""
        return torch.arange(len(x), device=x.device).square() % self.classes if self.classes else None

    def ours(self, x: Tensor, gain: Tensor, bias: Tensor, impl: str) -> Tensor:
        running_mean, running_var = self.running(x)
        return conditional_batch_norm(
            x,
            gain,
            bias,
            labels=self.labels(x),
            running_mean=running_mean,
            running_var=running_var,
            training=self.training,
            activation=self.activation,
            slope=_SLOPE,
            per_sample=self.per_sample,
            impl=impl,
        )

    def stock(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        y = F.instance_norm(x) if self.per_sample else F.batch_norm(x, *self.running(x), training=self.training)
        labels = self.labels(x)
        if labels is not None:
            gain, bias = F.embedding(labels, gain), F.embedding(labels, bias)
        return reference.activate(y * gain[:, :, None, None] + bias[:, :, None, None], self.activation, _SLOPE)

    def before_activation(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        given = () if self.training else self.running(x)
        return reference.conditional_batch_norm(
            x, gain, bias, *given, labels=self.labels(x), per_sample=self.per_sample
        )[0]


def checks() -> Iterator[Check]:
    """Odd shapes, where indexing goes wrong, and one of some size in each layout, where rounding shows."""
    contiguous, last = torch.contiguous_format, torch.channels_last
    for given in (
        _Input((2, 3, 5, 7), contiguous, "relu", training=True),
        _Input((3, 33, 4, 4), last, "lrelu", training=True),
        _Input((2, 17, 1, 9), last, "none", training=False),
        _Input((5, 1, 3, 11), contiguous, "lrelu", training=False),
        _Input((5, 9, 3, 5), last, "relu", training=True, classes=7),
        _Input((3, 9, 5, 3), last, "lrelu", training=True, per_sample=True),
        _Input((16, 40, 9, 9), contiguous, "relu", training=True, mean=3.0),
        _Input((16, 40, 9, 9), last, "relu", training=True),
    ):
        yield Check(
            str(given),
            given.draw,
            given.ours,
            given.stock,
            many=given.shape[1] == 40,
            layout=given.layout,
            kink=given.before_activation if given.activation != "none" else None,
        )
