"""SNGAN with projection, for 32 pixels.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks", arXiv 1802.05957 (the residual networks
for CIFAR-10 of appendix B.4); Miyato and Koyama, "cGANs with Projection Discriminator", arXiv 1802.05637 (conditional
batch norm in the generator, the class projected onto the discriminator's features).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gankernels.errors import InputError
from gankernels.models.interface import GeneratorModule
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d

_Layer = TypeVar("_Layer", nn.Conv2d, nn.Linear, nn.Embedding)


def sngan_32(
    *,
    num_classes: int = 10,
    channels: int = 3,
    g_ch: int = 256,
    d_ch: int = 128,
    g_widths: Sequence[float] = (1, 1, 1, 1),
    d_widths: Sequence[float] = (1, 1, 1, 1),
    dim_z: int = 128,
) -> tuple[Generator, Discriminator]:
    """Generator and discriminator for 32x32 pictures; the defaults are the paper's for CIFAR-10.

    Args:
        num_classes: the number of labels.
        channels: of the pictures.
        g_ch, d_ch: the unit of width of each network.
        g_widths: the generator's width at 4, 8, 16 and 32 px, in units of ``g_ch``.
        d_widths: the width behind each of the discriminator's four blocks (16, 8, 8, 8 px), in units of ``d_ch``.
        dim_z: length of the latent vector.

    Raises:
        InputError: a width or a size below 1, or not four widths.
    """
    for name, value in {"num_classes": num_classes, "channels": channels, "dim_z": dim_z}.items():
        if value < 1:
            raise InputError(f"{name}: got {value}, expected at least 1")
    generator = Generator(_widths("g", g_ch, g_widths), num_classes, channels, dim_z)
    discriminator = Discriminator(_widths("d", d_ch, d_widths), num_classes, channels)
    return (
        generator.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        discriminator.to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    )


class Generator(GeneratorModule):
    """``z [N, dim_z], y int64 [N] -> pictures [N, channels, 32, 32]`` in [-1, 1], channels_last."""

    resolution = 32

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int, dim_z: int) -> None:
        super().__init__()
        self.dim_z, self.channels, self.num_classes = dim_z, channels, num_classes
        self.linear = _linear(dim_z, 4 * 4 * widths[0])
        self.blocks = nn.ModuleList(UpBlock(c_in, c_out, num_classes) for c_in, c_out in itertools.pairwise(widths))
        self.norm = BatchNorm2d(widths[-1], activation="relu")
        self.conv = _conv(widths[-1], channels, 3)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.linear(z).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # [N, C, 4, 4], channels_last without a copy
        for block in self.blocks:
            h = block(h, y)
        return torch.tanh(self.conv(self.norm(h)))


class UpBlock(nn.Module):
    """Residual block that doubles the resolution: [N, c_in, H, W] -> [N, c_out, 2H, 2W]."""

    def __init__(self, c_in: int, c_out: int, num_classes: int) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(c_in, num_classes, activation="relu")
        self.conv1 = _conv(c_in, c_out, 3, gain=math.sqrt(2))
        self.norm2 = ConditionalBatchNorm2d(c_out, num_classes, activation="relu")
        self.conv2 = _conv(c_out, c_out, 3, gain=math.sqrt(2))
        self.skip = _conv(c_in, c_out, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv1(_upsample(self.norm1(x, y)))
        h = self.conv2(self.norm2(h, y))
        return h + _upsample(self.skip(x))  # a 1x1 convolution commutes with up-sampling: a quarter of the work


class Discriminator(nn.Module):
    """``x [N, channels, 32, 32], y int64 [N] -> logits [N]``: 32 -> 16 -> 8 px, then two blocks at 8 px."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            DownBlock(c_in, c_out, activate_input=i > 0, pool=i < 2)
            for i, (c_in, c_out) in enumerate(zip([channels, *widths[:-1]], widths, strict=True))
        )
        self.linear = spectral_norm(_linear(widths[-1], 1))
        self.embedding = spectral_norm(_xavier(nn.Embedding(num_classes, widths[-1])))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x
        for block in self.blocks:
            h = block(h)
        phi = F.relu(h).sum((2, 3))  # [N, C]
        # f(x, y) = y^T V phi(x) + psi(phi(x)): 1802.05637, section 3 and figure 1d.
        return (self.embedding(y) * phi).sum(1) + self.linear(phi).squeeze(1)


class DownBlock(nn.Module):
    """Residual block [N, c_in, H, W] -> [N, c_out, H, W], or half the resolution with ``pool``.

    The block that sees the picture itself has no activation in front (``activate_input=False``).
    """

    def __init__(self, c_in: int, c_out: int, *, activate_input: bool, pool: bool) -> None:
        super().__init__()
        self.activate_input, self.pool = activate_input, pool
        c_hidden = c_in if activate_input else c_out
        self.conv1 = spectral_norm(_conv(c_in, c_hidden, 3, gain=math.sqrt(2)))
        self.conv2 = spectral_norm(_conv(c_hidden, c_out, 3, gain=math.sqrt(2)))
        # A block that changes neither width nor resolution keeps its input as the skip.
        self.skip = spectral_norm(_conv(c_in, c_out, 1)) if pool or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(x) if self.activate_input else x)
        h = self.conv2(F.relu(h))
        if self.pool:  # pooled before its 1x1 convolution, the skip costs a quarter and is the same
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + self.skip(x)


def _upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


# Glorot's uniform initialisation, sqrt(2) wider inside residual branches, zero biases: as in the authors' own code.


def _conv(c_in: int, c_out: int, size: int, gain: float = 1.0) -> nn.Conv2d:
    return _xavier(nn.Conv2d(c_in, c_out, size, padding=size // 2), gain)


def _linear(features_in: int, features_out: int) -> nn.Linear:
    return _xavier(nn.Linear(features_in, features_out))


def _xavier(layer: _Layer, gain: float = 1.0) -> _Layer:
    nn.init.xavier_uniform_(layer.weight, gain)
    if not isinstance(layer, nn.Embedding) and layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _widths(prefix: str, ch: int, multipliers: Sequence[float]) -> list[int]:
    widths = [round(ch * multiplier) for multiplier in multipliers]
    if len(widths) != 4:
        raise InputError(f"{prefix}_widths: got {len(widths)} numbers, expected 4")
    if min(widths) < 1:
        raise InputError(f"{prefix}_ch, {prefix}_widths: got widths {widths}, expected each to be at least 1")
    return widths
