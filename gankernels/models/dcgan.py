"""DCGAN: Radford et al., "Unsupervised Representation Learning with Deep Convolutional GANs", arXiv 1511.06434.

Figure 1 and section 3, with 4x4 kernels, which halve and double sizes exactly, as most implementations have it. With
``num_classes`` the generator's norms become conditional and the discriminator projects the class, as SNGAN does; the
paper has no classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.models.initialisation import normal
from gankernels.models.interface import GeneratorModule
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, Conv2d, ConvTranspose2d
from gankernels.nn.norm_conv_transpose2d import norm_conv_transpose2d

_BOTH: dict[str, Any] = {"num_classes": 0, "channels": 3, "dim_z": 100, "g_ch": 128, "d_ch": 128}

#: Widths are multiples of ch: the generator's at 4 px, 8 px, ...; the discriminator's behind each convolution but the
#: last. The paper's are those of 64 px.
PRESETS: dict[str, dict[str, Any]] = {
    "dcgan-32": {"resolution": 32, "g_widths": (4, 2, 1), "d_widths": (1, 2, 4), **_BOTH},
    "dcgan-64": {"resolution": 64, "g_widths": (8, 4, 2, 1), "d_widths": (1, 2, 4, 8), **_BOTH},
    "dcgan-128": {"resolution": 128, "g_widths": (8, 4, 2, 1, 0.5), "d_widths": (0.5, 1, 2, 4, 8), **_BOTH},
}


def build(
    *,
    resolution: int,
    num_classes: int,
    channels: int,
    dim_z: int,
    g_widths: Sequence[int],
    d_widths: Sequence[int],
) -> tuple[Generator, Discriminator]:
    """The networks of a row of :data:`PRESETS`."""
    return Generator(g_widths, num_classes, channels, dim_z), Discriminator(d_widths, num_classes, channels)


class Generator(GeneratorModule):
    """``z [N, dim_z], y int64 [N] -> pictures [N, channels, R, R]`` in [-1, 1], channels_last, R = 4 * 2^widths."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int, dim_z: int) -> None:
        super().__init__()
        self.dim_z, self.channels, self.num_classes = dim_z, channels, num_classes
        self.resolution = 4 << len(widths)
        self.project = _start(ConvTranspose2d(dim_z, widths[0], 4, bias=False))  # 1 px -> 4 px
        self.norms = nn.ModuleList(_norm(width, num_classes) for width in widths)
        self.convs = nn.ModuleList(
            _start(ConvTranspose2d(c_in, c_out, 4, stride=2, padding=1, bias=False))
            for c_in, c_out in itertools.pairwise([*widths, channels])
        )

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        condition = (y,) if self.num_classes else ()
        h = self.project(z[:, :, None, None])
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = norm_conv_transpose2d(norm, conv, h, *condition)
        return torch.tanh(h)


class Discriminator(nn.Module):
    """``x [N, channels, R, R], y int64 [N] -> logits [N]``. Its batch norms make a logit depend on the whole batch."""

    def __init__(self, widths: Sequence[int], num_classes: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            _start(Conv2d(c_in, c_out, 4, stride=2, padding=1, bias=False))
            for c_in, c_out in itertools.pairwise([channels, *widths])
        )
        self.norms = nn.ModuleList(_start(BatchNorm2d(width, activation="lrelu")) for width in widths[1:])
        self.judge = _start(Conv2d(widths[-1], 1, 4, bias=False))  # 4 px -> 1 px
        self.embedding = _start(nn.Embedding(num_classes, widths[-1])) if num_classes else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        first, *convs = self.convs
        h = F.leaky_relu(first(x), 0.2)  # no norm here, nor behind the last convolution: section 3
        for conv, norm in zip(convs, self.norms, strict=True):
            h = norm(conv(h))
        logits = self.judge(h).flatten()
        return logits if self.embedding is None else logits + (self.embedding(y) * h.sum((2, 3))).sum(1)


def _norm(channels: int, num_classes: int) -> nn.Module:
    if num_classes:
        return ConditionalBatchNorm2d(channels, num_classes, activation="relu")
    return _start(BatchNorm2d(channels, activation="relu"))


def _start(layer: nn.Module) -> nn.Module:
    """Normal weights of deviation 0.02 (section 4), around one in a norm."""
    return normal(layer, std=0.02, mean=1.0 if isinstance(layer, BatchNorm2d) else 0.0)
