"""The residual generator and discriminator of which WGAN-GP, SNGAN, SAGAN and BigGAN are members.

Gulrajani et al., arXiv 1704.00028, appendix F; Miyato et al., 1802.05957, appendix B.4; Miyato and Koyama, 1802.05637,
figures 1d and 14; Zhang et al., 1805.08318; Brock et al., 1809.11096, appendix B. The file of each system says which
choices it makes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.models.attention import SelfAttention
from gankernels.models.interface import GeneratorModule
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, Conv2d, ResBlockDown, ResBlockUp

#: ``layer(module, gain)`` gives a new layer its initial weights, and its spectral norm where the system has one.
#: ``gain`` is sqrt(2) on the 3x3 convolutions of the blocks, which stand beside a ReLU, and 1 elsewhere.
LayerSetup = Callable[[nn.Module, float], nn.Module]


class Generator(GeneratorModule):
    """``z [N, dim_z], y int64 [N] -> pictures [N, channels, R, R]`` in [-1, 1], channels_last, R = 4 * 2^blocks.

    Args:
        widths: channels at 4 px, and behind each block.
        num_classes: the number of labels; 0 for plain batch norm.
        channels: of the pictures.
        dim_z: length of the latent.
        layer: sets up each layer with weights.
        shared_dim: length of one embedding of the class, from which every batch norm takes its gains and biases by
            linear maps (BigGAN). None: each norm has a table with a row a class.
        hierarchical_z: the latent is cut into equal chunks, one for the first layer and one for each block, which
            joins the class embedding there (BigGAN).
        attention: the resolution at which self-attention stands, of the output of a block; 0 for none.

    Raises:
        InputError: ``dim_z`` cannot be cut into the chunks, there is nothing for a chunk to join, or ``attention``
            is not a resolution of the network.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        num_classes: int,
        channels: int,
        dim_z: int,
        layer: LayerSetup,
        shared_dim: int | None = None,
        hierarchical_z: bool = False,
        attention: int = 0,
    ) -> None:
        super().__init__()
        self.dim_z, self.channels, self.num_classes = dim_z, channels, num_classes
        self.resolution = 4 << (len(widths) - 1)
        chunks = len(widths) if hierarchical_z else 1
        if dim_z % chunks:
            raise InputError(
                f"dim_z: got {dim_z}, expected a multiple of {chunks}: a chunk for the first layer and for each block"
            )
        if hierarchical_z and shared_dim is None:
            raise InputError("hierarchical_z: got True with shared_embedding=False, expected a shared embedding")
        resolutions = [8 << i for i in range(len(widths) - 1)]
        if attention and attention not in resolutions:
            raise InputError(f"attention: got {attention}, expected 0 for none, or one of {resolutions}")
        self.chunk = dim_z // chunks
        cond_features = None if shared_dim is None else shared_dim + (self.chunk if hierarchical_z else 0)

        self.embedding = None if shared_dim is None else layer(nn.Embedding(num_classes, shared_dim), 1.0)
        self.linear = layer(nn.Linear(self.chunk, 4 * 4 * widths[0]), 1.0)
        self.blocks = nn.ModuleList(
            ResBlockUp(
                c_in,
                c_out,
                norm=functools.partial(_norm, num_classes=num_classes, cond_features=cond_features, layer=layer),
                wrap=functools.partial(_in_block, layer),
            )
            for c_in, c_out in itertools.pairwise(widths)
        )
        self.attend_behind = resolutions.index(attention) if attention else None
        self.attention = None if self.attend_behind is None else _attention(widths[self.attend_behind + 1], layer)
        self.norm = BatchNorm2d(widths[-1], activation="relu")
        self.conv = layer(Conv2d(widths[-1], channels, 3, padding=1), 1.0)

    def forward(self, z: Tensor, y: Tensor | None = None) -> Tensor:
        z, conditions = self._conditions(z, y)
        h = self.linear(z).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)  # [N, C, 4, 4], channels_last without a copy
        for i, (block, condition) in enumerate(zip(self.blocks, conditions, strict=True)):
            h = block(h, *condition)
            if self.attention is not None and i == self.attend_behind:
                h = self.attention(h)
        return torch.tanh(self.conv(self.norm(h)))

    def _conditions(self, z: Tensor, y: Tensor | None) -> tuple[Tensor, list[tuple[Tensor | None, ...]]]:
        """The first layer's part of the latent, and what the norms of each block are given."""
        blocks = len(self.blocks)
        if self.num_classes == 0:
            return z, [()] * blocks
        if self.embedding is None:
            return z, [(y,)] * blocks
        embedded = self.embedding(y)  # [N, shared_dim]
        if self.chunk == self.dim_z:
            return z, [(embedded,)] * blocks
        first, *chunks = z.split(self.chunk, dim=1)
        return first, [(torch.cat([embedded, chunk], dim=1),) for chunk in chunks]  # 1809.11096, figure 15


class Discriminator(nn.Module):
    """``x [N, channels, R, R], y int64 [N] -> logits [N]``, with the class projected onto the pooled features.

    Args:
        widths: channels behind each block.
        resolution: R.
        downsamples: the first so many blocks halve the resolution.
        num_classes: the number of labels; 0 for no projection.
        channels: of the pictures.
        layer: sets up each layer with weights.
        wide: a block changes its width in its first convolution, not in its second.
        pool: the sum or the mean over pixels at the end.
        attention: the resolution at which self-attention stands, where a block has halved it; 0 for none.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        resolution: int,
        downsamples: int,
        num_classes: int,
        channels: int,
        layer: LayerSetup,
        wide: bool = True,
        pool: Literal["sum", "mean"] = "sum",
        attention: int = 0,
    ) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = nn.ModuleList(
            ResBlockDown(
                c_in,
                c_out,
                wrap=functools.partial(_in_block, layer),
                c_hidden=c_out if wide or i == 0 else c_in,
                activate_input=i > 0,  # the first block sees the picture itself
                downsample=i < downsamples,
            )
            for i, (c_in, c_out) in enumerate(itertools.pairwise([channels, *widths]))
        )
        halved = [resolution >> (i + 1) for i in range(downsamples)]
        self.attend_behind = halved.index(attention) if attention in halved else None
        self.attention = None if self.attend_behind is None else _attention(widths[self.attend_behind], layer)
        self.linear = layer(nn.Linear(widths[-1], 1), 1.0)
        self.embedding = layer(nn.Embedding(num_classes, widths[-1]), 1.0) if num_classes else None

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = x
        for i, block in enumerate(self.blocks):
            h = block(h)
            if self.attention is not None and i == self.attend_behind:
                h = self.attention(h)
        phi = F.relu(h).sum((2, 3)) if self.pool == "sum" else F.relu(h).mean((2, 3))  # [N, C]
        logits = self.linear(phi).squeeze(1)
        # f(x, y) = y^T V phi(x) + psi(phi(x)): 1802.05637, section 3 and figure 1d.
        return logits if self.embedding is None else logits + (self.embedding(y) * phi).sum(1)


def build(
    *,
    resolution: int,
    num_classes: int,
    channels: int,
    dim_z: int,
    g_widths: Sequence[int],
    d_widths: Sequence[int],
    d_downsamples: int,
    d_wide: bool,
    g_layer: LayerSetup,
    d_layer: LayerSetup,
    d_pool: Literal["sum", "mean"] = "sum",
    shared_embedding: bool = False,
    shared_dim: int = 128,
    hierarchical_z: bool = False,
    attention: int = 0,
) -> tuple[Generator, Discriminator]:
    """A generator and its discriminator; the keywords are those of the two classes, with ``g_`` and ``d_`` in front."""
    generator = Generator(
        g_widths,
        num_classes=num_classes,
        channels=channels,
        dim_z=dim_z,
        layer=g_layer,
        shared_dim=shared_dim if shared_embedding else None,
        hierarchical_z=hierarchical_z,
        attention=attention,
    )
    discriminator = Discriminator(
        d_widths,
        resolution=resolution,
        downsamples=d_downsamples,
        num_classes=num_classes,
        channels=channels,
        layer=d_layer,
        wide=d_wide,
        pool=d_pool,
        attention=attention,
    )
    return generator, discriminator


def _norm(channels: int, *, num_classes: int, cond_features: int | None, layer: LayerSetup) -> nn.Module:
    """The batch norm with its ReLU in front of a convolution of the generator."""
    if num_classes == 0:
        return BatchNorm2d(channels, activation="relu")
    if cond_features is None:
        return ConditionalBatchNorm2d(channels, num_classes, activation="relu")
    norm = ConditionalBatchNorm2d(channels, cond_features=cond_features, activation="relu")
    norm.gain, norm.bias = layer(norm.gain, 1.0), layer(norm.bias, 1.0)
    return norm


def _in_block(layer: LayerSetup, conv: nn.Module) -> nn.Module:
    return layer(conv, 1.0 if conv.kernel_size == (1, 1) else math.sqrt(2))


def _attention(channels: int, layer: LayerSetup) -> SelfAttention:
    return SelfAttention(channels, lambda conv: layer(conv, 1.0))
