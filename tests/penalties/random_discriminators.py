"""Random discriminators of the class that the closed form covers, drawn by hypothesis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import gankernels

CLASSES = 3


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Equalised(nn.Module):
    """Equalised learning rate: the weight is scaled at run time."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / math.sqrt(weight[0].numel())


class Blur(nn.Module):
    """A fixed FIR filter for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        f = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=x.dtype)
        f = (f[:, None] * f / 64).expand(x.shape[1], 1, 4, 4)
        return F.conv2d(F.pad(x, (2, 1, 2, 1)), f, groups=x.shape[1])


class Gain(nn.Module):
    """A parameter that multiplies or divides, and one that is added."""

    def __init__(self, channels: int, divide: bool) -> None:
        super().__init__()
        self.gain = nn.Parameter(1 + torch.rand(channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(1))
        self.divide = divide

    def forward(self, x: Tensor) -> Tensor:
        return (x / self.gain if self.divide else self.gain * x) - self.shift


class Residual(nn.Module):
    """The sum, or the concatenation, of a body and a skip."""

    def __init__(self, body: nn.Module, skip: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.skip, self.how = body, skip, how
        self.alpha = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        h, x = self.body(x), self.skip(x)
        match self.how:
            case "cat":
                return torch.cat([h, x], 1)
            case "scaled":
                return (x + self.alpha * h) / math.sqrt(2)
            case "maximum":
                return torch.maximum(h, x)
            case _:
                return x + h


class SameMask(nn.Module):
    """Dropout that drops the same in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return F.dropout(x, 0.3)


class Head(nn.Module):
    """Features to logits [N]: linear, and the projection of the label."""

    def __init__(self, features: int, how: str) -> None:
        super().__init__()
        self.linear, self.how = nn.Linear(features, 1), how
        self.embedding = nn.Embedding(CLASSES, features)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        match self.how:
            case "projection":
                return (self.embedding(y) * h).sum(1) + self.linear(h).squeeze(1)
            case "einsum":
                return torch.einsum("nc,nc->n", h, self.embedding(y)) + self.linear(h)[:, 0]
            case "bmm":
                return torch.bmm(h.unsqueeze(1), self.embedding(y).unsqueeze(2)).flatten() + self.linear(h).view(-1)
            case _:
                return self.linear(h).flatten()


class Discriminator(nn.Module):
    """Layers, then features by a kind of pooling, then a head."""

    def __init__(self, layers: nn.Sequential, pool: str, head: str, size: tuple[int, int, int]) -> None:
        super().__init__()
        self.layers, self.pool = layers, pool
        self.head = Head(size[0] * size[1] * size[2] if pool == "flatten" else size[0], head)

    def features(self, x: Tensor) -> Tensor:
        h = self.layers(x)
        match self.pool:
            case "flatten":
                return h.permute(0, 2, 3, 1).reshape(len(h), -1)
            case "sum":
                return F.relu(h).sum((2, 3))
            case "max":
                return h.flatten(2).amax(2)
            case _:
                return F.adaptive_avg_pool2d(h, 1).flatten(1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.features(x), y)


def _activation(draw: st.DrawFn, channels: int) -> nn.Module:
    in_place = draw(st.booleans())
    match draw(st.integers(0, 8)):
        case 0:
            return nn.ReLU(in_place)
        case 1 | 2:
            return nn.LeakyReLU(0.2, in_place)
        case 3:
            return nn.Hardtanh(-0.5, 0.4, in_place)
        case 4:
            return Apply(torch.abs)
        case 5:
            return nn.PReLU(draw(st.sampled_from([1, channels])))
        case 6:
            return Apply(lambda x: x.clamp(min=-0.3))
        case 7:
            return gankernels.nn.BiasAct(channels, activation=draw(st.sampled_from(["relu", "lrelu", "linear"])))
        case _:
            return Apply(lambda x: torch.where(x > 0, x, 0.1 * x))


def _normalise(draw: st.DrawFn, layer: nn.Module) -> nn.Module:
    match draw(st.integers(0, 5)):
        case 0:
            return parametrizations.spectral_norm(layer)
        case 1:
            return gankernels.nn.spectral_norm(layer)
        case 2:
            parametrize.register_parametrization(layer, "weight", Equalised())
    return layer


def _convolution(draw: st.DrawFn, c_in: int) -> nn.Module:
    groups = draw(st.sampled_from([g for g in (1, 2) if c_in % g == 0]))
    c_out, kernel, bias = groups * draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.booleans())
    if draw(st.integers(0, 4)) == 0:
        stride = draw(st.integers(1, 2))
        layer: nn.Module = nn.ConvTranspose2d(
            c_in, c_out, kernel, stride, padding=kernel // 2, output_padding=stride - 1, groups=groups, bias=bias
        )
    else:
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate"]))
        layer = nn.Conv2d(
            c_in,
            c_out,
            kernel,
            draw(st.integers(1, 2)),
            padding=draw(st.integers(0, 2)),
            dilation=draw(st.integers(1, 2)),
            groups=groups,
            bias=bias,
            padding_mode=mode,
        )
    return _normalise(draw, layer)


def _resampling(draw: st.DrawFn) -> nn.Module:
    match draw(st.integers(0, 8)):
        case 0:
            return nn.MaxPool2d(2, padding=1)
        case 1:
            return nn.AvgPool2d(2, 1)
        case 2:
            return nn.AdaptiveAvgPool2d(3)
        case 3:
            return nn.AdaptiveMaxPool2d((2, 3))
        case 4:
            return nn.Upsample(scale_factor=2, mode="nearest")
        case 5:
            return nn.Upsample(size=(5, 4), mode="bilinear", align_corners=False)
        case 6:
            return Blur()
        case 7:
            return nn.PixelUnshuffle(1)
        case _:
            return Apply(lambda x: F.pad(x, (1, 0, 2, 1), value=0.5))


def _layer(draw: st.DrawFn, channels: int) -> nn.Module:
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2 | 3:
            return _convolution(draw, channels)
        case 4:
            return _resampling(draw)
        case 5:
            return Gain(channels, draw(st.booleans()))
        case 6:
            return SameMask()
        case 7 | 8:
            body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), _activation(draw, channels))
            skip = nn.Identity() if draw(st.booleans()) else nn.Conv2d(channels, channels, 1, bias=False)
            return Residual(body, skip, draw(st.sampled_from(["sum", "cat", "scaled", "maximum"])))
        case _:
            return Apply(lambda x: 1.5 - x.transpose(2, 3))


@st.composite
def discriminators(draw: st.DrawFn) -> tuple[Discriminator, Tensor]:
    """A discriminator in fp64 with random parameters, and the shape of its pictures [C, H, W]."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape = (draw(st.integers(1, 3)), draw(st.integers(4, 7)), draw(st.integers(4, 7)))
    layers = nn.Sequential(nn.Conv2d(shape[0], draw(st.integers(2, 4)), 3, padding=1))
    x = layers(torch.randn(1, *shape))
    for _ in range(draw(st.integers(1, 4))):
        for make in (_layer, _activation):
            layer = make(draw, x.shape[1])
            try:
                with torch.no_grad():
                    after = layer(x.detach().clone())
            except RuntimeError:
                continue  # a kernel larger than what is left of the picture
            if 0 < after.numel() < 2000:
                layers.append(layer)
                x = after
    pool = draw(st.sampled_from(["flatten", "sum", "max", "mean"]))
    head = draw(st.sampled_from(["linear", "projection", "einsum", "bmm"]))
    return Discriminator(layers, pool, head, tuple(x.shape[1:])).double(), shape
