"""BigGAN-deep: Brock et al., arXiv 1809.11096, appendix B, figure 16 and table 7.

Twice as many blocks as BigGAN, each a bottleneck of a quarter of its width, with identity skips: the generator drops
channels where it becomes narrower, the discriminator adds some where it becomes wider. The latent joins the class
embedding as a whole.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.models.attention import SelfAttention
from gankernels.models.initialisation import orthogonal
from gankernels.models.interface import GeneratorModule, require_classes
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, Conv2d, UpsampleConv2d, spectral_norm

#: Widths are multiples of ch: the generator's at 4 px and behind each stage, the discriminator's behind its first
#: convolution and behind each stage.
PRESETS: dict[str, dict[str, Any]] = {
    "biggan-deep-128": {
        "resolution": 128,
        "num_classes": 1000,
        "channels": 3,
        "dim_z": 128,
        "g_ch": 128,
        "g_widths": (16, 16, 8, 4, 2, 1),
        "d_ch": 128,
        "d_widths": (1, 2, 4, 8, 16, 16),
        "depth": 2,
        "shared_dim": 128,
        "attention": 64,
    },
}

_RATIO = 4  # of a block's width to that of its 3x3 convolutions


def build(
    *,
    resolution: int,
    num_classes: int,
    channels: int,
    dim_z: int,
    g_widths: Sequence[int],
    d_widths: Sequence[int],
    depth: int,
    shared_dim: int,
    attention: int,
) -> tuple[Generator, Discriminator]:
    """The networks of a row of :data:`PRESETS`.

    Args:
        resolution, num_classes, channels, dim_z: as of the pictures and the latent.
        g_widths, d_widths: channels.
        depth: blocks a stage.
        shared_dim: length of the class embedding.
        attention: the resolution at which self-attention stands in both networks; 0 for none.

    Raises:
        InputError: a setting out of its range.
    """
    require_classes(num_classes)
    narrowest = min(*g_widths, *d_widths[1:])
    if narrowest < _RATIO:
        raise InputError(f"ch: got a width of {narrowest}, expected at least {_RATIO}, the ratio of a bottleneck")
    # A skip can only drop channels in the generator, and only add some in the discriminator.
    if list(g_widths) != sorted(g_widths, reverse=True):
        raise InputError(f"g_widths: got widths {[*g_widths]}, expected none above the one before")
    if list(d_widths) != sorted(d_widths):
        raise InputError(f"d_widths: got widths {[*d_widths]}, expected none below the one before")
    resolutions = [8 << i for i in range(len(g_widths) - 1)]
    if attention and attention not in resolutions:
        raise InputError(f"attention: got {attention}, expected 0 for none, or one of {resolutions}")
    generator = Generator(g_widths, num_classes, channels, dim_z, depth, shared_dim, attention)
    discriminator = Discriminator(d_widths, resolution, num_classes, channels, depth, attention)
    return generator, discriminator


class Generator(GeneratorModule):
    """``z [N, dim_z], y int64 [N] -> pictures [N, channels, R, R]`` in [-1, 1], channels_last, R = 4 * 2^stages."""

    def __init__(
        self,
        widths: Sequence[int],
        num_classes: int,
        channels: int,
        dim_z: int,
        depth: int,
        shared_dim: int,
        attention: int,
    ) -> None:
        super().__init__()
        self.dim_z, self.channels, self.num_classes = dim_z, channels, num_classes
        self.resolution = 4 << (len(widths) - 1)
        condition = shared_dim + dim_z
        self.embedding = orthogonal(nn.Embedding(num_classes, shared_dim))
        self.linear = _layer(nn.Linear(condition, 4 * 4 * widths[0]))
        self.stages = nn.ModuleList()
        self.attend_behind: int | None = None
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
            stage = [UpBlock(c_in, c_in, condition, upsample=False) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList([*stage, UpBlock(c_in, c_out, condition, upsample=True)]))
            if 8 << i == attention:
                self.attend_behind, self.attention = i, SelfAttention(c_out, _layer)
        self.norm = BatchNorm2d(widths[-1], activation="relu")
        self.conv = _layer(Conv2d(widths[-1], channels, 3, padding=1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        condition = torch.cat([self.embedding(y), z], dim=1)  # [N, shared_dim + dim_z]
        h = self.linear(condition).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # [N, C, 4, 4], channels_last
        for i, stage in enumerate(self.stages):
            for block in stage:  # type: ignore[attr-defined]
                h = block(h, condition)
            if i == self.attend_behind:
                h = self.attention(h)
        return torch.tanh(self.conv(self.norm(h)))


class UpBlock(nn.Module):
    """Bottleneck [N, c_in, H, W] -> [N, c_out, H, W], or twice the resolution with ``upsample``. Figure 16b."""

    def __init__(self, c_in: int, c_out: int, condition: int, *, upsample: bool) -> None:
        super().__init__()
        self.c_out, self.upsample = c_out, upsample
        inside = c_in // _RATIO
        self.norm1 = _norm(c_in, condition)
        self.conv1 = _layer(Conv2d(c_in, inside, 1))
        self.norm2 = _norm(inside, condition)
        self.conv2 = _layer((UpsampleConv2d if upsample else Conv2d)(inside, inside, 3, padding=1))
        self.norm3 = _norm(inside, condition)
        self.conv3 = _layer(Conv2d(inside, inside, 3, padding=1))
        self.norm4 = _norm(inside, condition)
        self.conv4 = _layer(Conv2d(inside, c_out, 1))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x, condition))
        h = self.conv2(self.norm2(h, condition))
        h = self.conv3(self.norm3(h, condition))
        h = self.conv4(self.norm4(h, condition))
        skip = x[:, : self.c_out]  # the first channels; the others are dropped
        return (F.interpolate(skip, scale_factor=2.0, mode="nearest") if self.upsample else skip) + h


class Discriminator(nn.Module):
    """``x [N, channels, R, R], y int64 [N] -> logits [N]``: each stage halves the resolution in its first block."""

    def __init__(
        self,
        widths: Sequence[int],
        resolution: int,
        num_classes: int,
        channels: int,
        depth: int,
        attention: int,
    ) -> None:
        super().__init__()
        self.conv = _layer(Conv2d(channels, widths[0], 3, padding=1))
        self.stages = nn.ModuleList()
        self.attend_behind: int | None = None
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
            stage = [DownBlock(c_out, c_out, downsample=False) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(DownBlock(c_in, c_out, downsample=True), *stage))
            if resolution >> (i + 1) == attention:
                self.attend_behind, self.attention = i, SelfAttention(c_out, _layer)
        self.linear = _layer(nn.Linear(widths[-1], 1))
        self.embedding = _layer(nn.Embedding(num_classes, widths[-1]))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv(x)
        for i, stage in enumerate(self.stages):
            h = stage(h)
            if i == self.attend_behind:
                h = self.attention(h)
        phi = F.relu(h).sum((2, 3))  # [N, C]
        return self.linear(phi).squeeze(1) + (self.embedding(y) * phi).sum(1)


class DownBlock(nn.Module):
    """Bottleneck [N, c_in, H, W] -> [N, c_out, H, W], or half the resolution with ``downsample``. Figure 16c."""

    def __init__(self, c_in: int, c_out: int, *, downsample: bool) -> None:
        super().__init__()
        self.downsample = downsample
        inside = c_out // _RATIO
        self.conv1 = _layer(Conv2d(c_in, inside, 1))
        self.conv2 = _layer(Conv2d(inside, inside, 3, padding=1))
        self.conv3 = _layer(Conv2d(inside, inside, 3, padding=1))
        self.conv4 = _layer(Conv2d(inside, c_out, 1))
        self.more = _layer(Conv2d(c_in, c_out - c_in, 1)) if c_in < c_out else None  # the channels that the skip lacks

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.relu(x))
        h = self.conv2(F.relu(h))
        h = F.relu(self.conv3(F.relu(h)))
        if self.downsample:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        skip = x if self.more is None else torch.cat([x, self.more(x)], dim=1)
        return skip + self.conv4(h)


def _norm(channels: int, condition: int) -> ConditionalBatchNorm2d:
    norm = ConditionalBatchNorm2d(channels, cond_features=condition, activation="relu")
    norm.gain, norm.bias = _layer(norm.gain), _layer(norm.bias)
    return norm


def _layer(layer: nn.Module) -> nn.Module:
    return spectral_norm(orthogonal(layer))
