"""The discriminators of :mod:`gankernels.bench.penalty_step`, as functions of their state."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from gankernels import models
from gankernels.bench.functional_step import full, take_apart, take_spectral_norms
from gankernels.bench.stock import to_stock

_HALF = (torch.bfloat16, torch.float16)

#: Pictures [N, 3, R, R], labels [N] -> logits [N].
Judge = Callable[[Tensor, Tensor], Tensor]


class Network(NamedTuple):
    """A discriminator for pictures of ``resolution`` px, without the numbers in it."""

    resolution: int
    num_classes: int  # 0: it takes no labels
    make: Callable[[], nn.Module]  # on stock layers, or on ours with a stock twin, with new numbers

    def state(self, rng: torch.Generator) -> list[Tensor]:
        """New parameters, then new buffers."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=rng)))
            module = self.make()
            for parameter in module.parameters():
                # A branch that is zero at first would hide the gradients of all that stand before it. A small one shows
                # them, and no ReLU that rounding turns over decides the result.
                if parameter.dim() > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=0.1 * parameter[0].numel() ** -0.5)
        return [t.detach().contiguous() for t in (*module.parameters(), *module.buffers())]

    def parts(self, *, stock: bool = True) -> Parts:
        """What is done with the state, by stock layers or by ours. Not to be called from what torch.compile traces."""
        return _parts(self, stock)


class Parts(NamedTuple):
    """A discriminator on the meta device, free of its spectral norms: each is taken once a step."""

    module: nn.Module
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    norms: Mapping[str, nn.Module]

    def judge(self, state: Sequence[Tensor], dtype: torch.dtype) -> tuple[Judge, list[Tensor]]:
        """The discriminator with the numbers of ``state``, and those of them that are its parameters, as leaves.

        Logits are in fp32 (fp64 for fp64); a 16-bit ``dtype`` asks for autocast to it.
        """
        count = len(self.parameters)
        weights = [t.detach().requires_grad_() for t in state[:count]]
        given = dict(zip(self.parameters, weights, strict=True))
        given |= {name: t.detach().clone() for name, t in zip(self.buffers, state[count:], strict=True)}
        take_spectral_norms(given, self.norms)

        def judge(x: Tensor, y: Tensor) -> Tensor:
            with torch.autocast(x.device.type, dtype=dtype) if dtype in _HALF else contextlib.nullcontext():
                return full(functional_call(self.module, given, (x, y), strict=True))

        return judge, weights


@functools.cache
def _parts(network: Network, stock: bool) -> Parts:
    with torch.device("meta"):
        module = to_stock(network.make()) if stock else network.make()
    return Parts(module, *take_apart(module))


def preset(name: str, **settings: Any) -> Network:
    """The discriminator of a preset, its layers written with stock ones."""
    resolution, classes = models.settings(name)["resolution"], models.settings(name)["num_classes"]
    return Network(resolution, classes, functools.partial(_discriminator_of, name, tuple(settings.items())))


def _discriminator_of(name: str, settings: tuple[tuple[str, Any], ...]) -> nn.Module:
    return models.build(name, **dict(settings))[1]


def strided() -> Network:
    """Four strided convolutions and a linear layer, for 64 px."""
    return Network(64, 0, Strided)


class Strided(nn.Module):
    """``x [N, 3, 64, 64] -> logits [N]``."""

    def __init__(self, widths: Sequence[int] = (3, 64, 128, 256, 512)) -> None:
        super().__init__()
        pairs = itertools.pairwise(widths)
        self.convs = nn.ModuleList(nn.Conv2d(c_in, c_out, 4, 2, 1, bias=False) for c_in, c_out in pairs)
        self.linear = nn.Linear(16 * widths[-1], 1, bias=False)
        for layer in (*self.convs, self.linear):
            nn.init.normal_(layer.weight, std=math.sqrt(2 / layer.weight[0].numel()))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return self.linear(x.flatten(1)).squeeze(1)


def stylegan2(resolution: int, *, base: int, most: int) -> Network:
    """StyleGAN2's residual discriminator with ``min(base / size, most)`` channels at ``size`` px."""
    return Network(resolution, 0, functools.partial(StyleGAN2, resolution, base, most))


class StyleGAN2(nn.Module):
    """``x [N, 3, R, R] -> logits [N]``: Karras et al., arXiv 1912.04958, figure 7, without the standard deviation.

    Weights are scaled when used (equalised learning rate: 1710.10196, section 4.1), pictures halved behind a [1, 3, 3,
    1] filter, and all activations leaky ReLUs times sqrt(2). As in a plain loop: one op after the other.
    """

    def __init__(self, resolution: int, base: int, most: int) -> None:
        super().__init__()

        def channels(size: int) -> int:
            return min(base // size, most)

        sizes = [resolution >> i for i in range(int(math.log2(resolution)) - 1)]  # ..., 8, 4
        self.first = _Scaled(3, channels(resolution), 1)
        self.blocks = nn.ModuleList(_Block(channels(s), channels(t)) for s, t in itertools.pairwise(sizes))
        c = channels(4)
        self.conv, self.linear, self.last = _Scaled(c, c, 3), _Scaled(c, c, 4), _Scaled(c, 1, 1)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = _activate(self.first(x))
        for block in self.blocks:
            h = block(h)
        h = _activate(self.conv(h, padding=1))
        return self.last(_activate(self.linear(h))).flatten()  # at 4 px a 4x4 kernel is a linear layer


class _Block(nn.Module):
    filter: Tensor

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.skip = _Scaled(c_in, c_in, 3), _Scaled(c_in, c_out, 3), _Scaled(c_in, c_out, 1)
        self.skip.bias = None
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filter", (taps[:, None] * taps / 64).repeat(c_in, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.skip(F.conv2d(x, self.filter, stride=2, padding=1, groups=x.shape[1]))
        h = F.conv2d(_activate(self.conv1(x, padding=1)), self.filter, padding=2, groups=x.shape[1])
        return (_activate(self.conv2(h, stride=2)) + skip) / math.sqrt(2)


class _Scaled(nn.Module):
    """A convolution whose normal weights are scaled to deviation ``1 / sqrt(fan_in)`` when used."""

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, size, size))
        self.bias: Tensor | None = nn.Parameter(torch.zeros(c_out))

    def forward(self, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
        scale = 1 / math.sqrt(self.weight[0].numel())
        return F.conv2d(x, self.weight * scale, self.bias, stride, padding)


def _activate(z: Tensor) -> Tensor:
    return F.leaky_relu(z, 0.2) * math.sqrt(2)
