"""R3GAN: Huang et al., "The GAN is dead; long live the GAN! A Modern Baseline GAN", arXiv 2501.05441.

Section 4.2 and figure 4: residual networks without norms, of inverted bottlenecks with grouped 3x3 convolutions and
biased leaky ReLUs, bilinear resampling, and an initialisation in the manner of FixUp. Trained with the relativistic
pairing loss and zero-centred penalties on real and fake pictures (equations 3 to 5).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.models.initialisation import normal
from gankernels.models.interface import GeneratorModule
from gankernels.nn import BiasAct, Conv2d

_BOTH: dict[str, Any] = {"channels": 3, "dim_z": 64, "g_ch": 768, "d_ch": 768, "blocks": 2, "group_width": 16}

#: Widths are multiples of ch: the generator's at 4 px, 8 px, ...; the discriminator's from the picture down to 4 px.
PRESETS: dict[str, dict[str, Any]] = {
    # CIFAR-10, with classes.
    "r3gan-32": {
        "resolution": 32,
        "num_classes": 10,
        "g_widths": (1, 1, 1, 1),
        "d_widths": (1, 1, 1, 1),
        **_BOTH,
    },
    # FFHQ.
    "r3gan-64": {
        "resolution": 64,
        "num_classes": 0,
        "g_widths": (1, 1, 1, 1, 0.5),
        "d_widths": (0.5, 1, 1, 1, 1),
        **_BOTH,
    },
    "r3gan-256": {
        "resolution": 256,
        "num_classes": 0,
        "g_widths": (1, 1, 1, 1, 0.5, 0.25, 0.125),
        "d_widths": (0.125, 0.25, 0.5, 1, 1, 1, 1),
        **_BOTH,
    },
}

_EXPANSION = 2  # of a bottleneck's inside to its ends
_SLOPE = 0.2
_RELU_GAIN = math.sqrt(2 / (1 + _SLOPE**2))  # keeps the variance through a leaky ReLU: He et al., 1502.01852


def build(
    *,
    resolution: int,
    num_classes: int,
    channels: int,
    dim_z: int,
    g_widths: Sequence[int],
    d_widths: Sequence[int],
    blocks: int,
    group_width: int,
) -> tuple[Generator, Discriminator]:
    """The networks of a row of :data:`PRESETS`.

    Args:
        resolution, num_classes, channels, dim_z: as of the pictures and the latent.
        g_widths, d_widths: channels.
        blocks: residual blocks at each resolution.
        group_width: channels of a group in the 3x3 convolutions.

    Raises:
        InputError: twice a width is not a multiple of ``group_width``.
    """
    for width in (*g_widths, *d_widths):
        if width * _EXPANSION % group_width:
            raise InputError(f"ch: got a width of {width}, expected multiples of {group_width / _EXPANSION:g}")
    generator = Generator(g_widths, num_classes, channels, dim_z, blocks, group_width)
    return generator, Discriminator(d_widths, num_classes, channels, blocks, group_width)


class Generator(GeneratorModule):
    """``z [N, dim_z], y int64 [N] -> pictures [N, channels, R, R]``, channels_last, R = 2 * 2^widths.

    In eval mode pictures are cut to [-1, 1]. In training they are as the network makes them: it has no tanh.
    """

    def __init__(
        self, widths: Sequence[int], num_classes: int, channels: int, dim_z: int, blocks: int, group_width: int
    ) -> None:
        super().__init__()
        self.dim_z, self.channels, self.num_classes = dim_z, channels, num_classes
        self.resolution = 2 << len(widths)
        self.embedding = normal(nn.Embedding(num_classes, dim_z), std=1.0) if num_classes else None
        # The picture at 4 px is a learned basis [C, 4, 4], weighed by a linear map of the latent.
        self.basis = nn.Parameter(torch.randn(widths[0], 4, 4))
        self.linear = _he(nn.Linear(2 * dim_z if num_classes else dim_z, widths[0], bias=False))
        depth = blocks * len(widths)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, group_width, depth) for _ in range(blocks))) for width in widths
        )
        self.widen = nn.ModuleList(_transition(c_in, c_out) for c_in, c_out in itertools.pairwise(widths))
        self.conv = _he(Conv2d(widths[-1], channels, 1, bias=False))

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat([z, self.embedding(y)], dim=1)
        weights = self.linear(z)  # [N, C]
        h = weights[:, :, None, None] * self.basis.to(weights.dtype)  # [N, C, 4, 4]; all that follows has its dtype
        h = self.stages[0](h.contiguous(memory_format=torch.channels_last))
        for widen, stage in zip(self.widen, self.stages[1:], strict=True):
            h = stage(F.interpolate(widen(h), scale_factor=2.0, mode="bilinear"))
        pictures = self.conv(h)
        return pictures if self.training else pictures.clamp(-1, 1)


class Discriminator(nn.Module):
    """``x [N, channels, R, R], y int64 [N] -> logits [N]``: the generator's mirror."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int, blocks: int, group_width: int) -> None:
        super().__init__()
        self.conv = _he(Conv2d(channels, widths[0], 1, bias=False))
        depth = blocks * len(widths)
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width, group_width, depth) for _ in range(blocks))) for width in widths
        )
        self.widen = nn.ModuleList(_transition(c_in, c_out) for c_in, c_out in itertools.pairwise(widths))
        self.basis = _he(Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False))  # 4 px -> 1 px
        features = widths[-1] if num_classes else 1
        self.linear = _he(nn.Linear(widths[-1], features, bias=False))
        # Of deviation 1 / sqrt(features), so that the logits start with the variance of the features.
        self.embedding = normal(nn.Embedding(num_classes, features), std=features**-0.5) if num_classes else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = self.stages[0](self.conv(x))
        for widen, stage in zip(self.widen, self.stages[1:], strict=True):
            h = stage(widen(F.avg_pool2d(h, 2)))  # bilinear at half the size is the mean of 2x2
        features = self.linear(self.basis(h).flatten(1))  # [N, F]
        return features.squeeze(1) if self.embedding is None else (features * self.embedding(y)).sum(1)


class Block(nn.Module):
    """``x + conv3(act(conv2(act(conv1(x)))))``: 1x1 to twice the width, grouped 3x3, 1x1 back; zero branch at first.

    Args:
        width: channels at both ends.
        group_width: channels of a group of the 3x3 convolution.
        depth: residual blocks in the network.
    """

    def __init__(self, width: int, group_width: int, depth: int) -> None:
        super().__init__()
        inside = _EXPANSION * width
        # FixUp (Zhang et al., arXiv 1901.09321): L blocks of m layers are scaled by L^(-1 / (2 m - 2)), the last by 0.
        gain = _RELU_GAIN * depth ** (-1 / (2 * 3 - 2))
        self.conv1 = _he(Conv2d(width, inside, 1, bias=False), gain)
        self.act1 = BiasAct(inside, slope=_SLOPE)
        self.conv2 = _he(Conv2d(inside, inside, 3, padding=1, groups=inside // group_width, bias=False), gain)
        self.act2 = BiasAct(inside, slope=_SLOPE)
        self.conv3 = _he(Conv2d(inside, width, 1, bias=False), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv3(self.act2(self.conv2(self.act1(self.conv1(x)))))


def _transition(c_in: int, c_out: int) -> nn.Module:
    """The change of width beside a resampling; a 1x1 convolution commutes with it, and stands on the small side."""
    return nn.Identity() if c_in == c_out else _he(Conv2d(c_in, c_out, 1, bias=False))


def _he(layer: nn.Module, gain: float = 1.0) -> nn.Module:
    """Normal weights of deviation ``gain / sqrt(fan_in)``. He et al., arXiv 1502.01852, equation 10."""
    return normal(layer, std=gain / math.sqrt(layer.weight[0].numel()))  # type: ignore[index]
