"""The published networks once more, in plain PyTorch and in the papers' own order of operations.

Nothing here is gankernels'. Their parameters and buffers have the presets' names, so that a state dict fits both.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def plain(layer):
    return layer


def up(x):
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ClassBatchNorm(nn.Module):
    """Batch norm, the gain and bias of each sample's class or condition, ReLU."""

    def __init__(self, channels, *, num_classes=None, condition=None, wrap=plain):
        super().__init__()
        self.mapped = condition is not None
        for name in ("gain", "bias"):
            table = wrap(nn.Linear(condition, channels, bias=False)) if self.mapped else None
            setattr(self, name, table or nn.Embedding(num_classes, channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x, condition):
        if self.training:
            self.num_batches_tracked += 1
        x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training, momentum=0.1)
        gain = self.gain(condition) + (1 if self.mapped else 0)
        return F.relu(x * gain[:, :, None, None] + self.bias(condition)[:, :, None, None])


class PlainBatchNorm(nn.BatchNorm2d):
    """Batch norm, ReLU (or leaky ReLU)."""

    def __init__(self, channels, slope=0.0):
        super().__init__(channels)
        self.slope = slope

    def forward(self, x):
        return F.leaky_relu(super().forward(x), self.slope)


class Attention(nn.Module):
    def __init__(self, channels, wrap):
        super().__init__()
        self.theta = wrap(nn.Conv2d(channels, channels // 8, 1, bias=False))
        self.phi = wrap(nn.Conv2d(channels, channels // 8, 1, bias=False))
        self.g = wrap(nn.Conv2d(channels, channels // 2, 1, bias=False))
        self.o = wrap(nn.Conv2d(channels // 2, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        theta = self.theta(x).flatten(2)
        phi = F.max_pool2d(self.phi(x), 2).flatten(2)
        g = F.max_pool2d(self.g(x), 2).flatten(2)
        beta = torch.softmax(torch.einsum("ncq,nck->nqk", theta, phi), dim=2)
        return x + self.gamma * self.o(torch.einsum("nck,nqk->ncq", g, beta).view(x.shape[0], -1, *x.shape[2:]))


class UpBlock(nn.Module):
    def __init__(self, c_in, c_out, norm, wrap):
        super().__init__()
        self.norm1 = norm(c_in)
        self.conv1 = wrap(nn.Conv2d(c_in, c_out, 3, padding=1))
        self.norm2 = norm(c_out)
        self.conv2 = wrap(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = wrap(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x, *condition):
        h = self.conv1(up(self.norm1(x, *condition)))
        return self.conv2(self.norm2(h, *condition)) + self.skip(up(x))


class ResidualGenerator(nn.Module):
    def __init__(self, widths, *, num_classes, dim_z, shared=None, hierarchical=False, attention=0, wrap=plain):
        super().__init__()
        self.chunk = dim_z // len(widths) if hierarchical else dim_z
        condition = None if shared is None else shared + (self.chunk if hierarchical else 0)

        def norm(channels):
            if num_classes == 0:
                return PlainBatchNorm(channels)
            return ClassBatchNorm(channels, num_classes=num_classes, condition=condition, wrap=wrap)

        self.num_classes, self.hierarchical, self.attend_at = num_classes, hierarchical, attention
        if shared is not None:
            self.embedding = nn.Embedding(num_classes, shared)
        self.linear = wrap(nn.Linear(self.chunk, 16 * widths[0]))
        self.blocks = nn.ModuleList(UpBlock(a, b, norm, wrap) for a, b in itertools.pairwise(widths))
        if attention:
            self.attention = Attention(widths[(attention // 4).bit_length() - 1], wrap)
        self.norm = PlainBatchNorm(widths[-1])
        self.conv = wrap(nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, z, y):
        z = list(z.split(self.chunk, 1))
        h = self.linear(z.pop(0)).view(len(y), 4, 4, -1).permute(0, 3, 1, 2)
        for block in self.blocks:
            condition = (y,) if self.num_classes else ()
            if hasattr(self, "embedding"):
                condition = (torch.cat([self.embedding(y), *([z.pop(0)] if self.hierarchical else [])], 1),)
            h = block(h, *condition)
            if h.shape[2] == self.attend_at:
                h = self.attention(h)
        return torch.tanh(self.conv(self.norm(h)))


class DownBlock(nn.Module):
    def __init__(self, c_in, c_hidden, c_out, *, first, down, wrap):
        super().__init__()
        self.first, self.down = first, down
        self.conv1 = wrap(nn.Conv2d(c_in, c_hidden, 3, padding=1))
        self.conv2 = wrap(nn.Conv2d(c_hidden, c_out, 3, padding=1))
        if down or c_in != c_out:
            self.skip = wrap(nn.Conv2d(c_in, c_out, 1))

    def forward(self, x):
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        skip = self.skip(x) if hasattr(self, "skip") else x
        return F.avg_pool2d(h, 2) + F.avg_pool2d(skip, 2) if self.down else h + skip


class ResidualDiscriminator(nn.Module):
    def __init__(self, widths, *, downs, num_classes, wide=True, mean=False, attention_on=None, wrap=plain):
        super().__init__()
        self.mean, self.attention_on = mean, attention_on
        pairs = list(itertools.pairwise([3, *widths]))
        self.blocks = nn.ModuleList(
            DownBlock(a, b if wide or i == 0 else a, b, first=i == 0, down=i < downs, wrap=wrap)
            for i, (a, b) in enumerate(pairs)
        )
        if attention_on is not None:
            self.attention = Attention(widths[attention_on], wrap)
        self.linear = wrap(nn.Linear(widths[-1], 1))
        if num_classes:
            self.embedding = wrap(nn.Embedding(num_classes, widths[-1]))

    def forward(self, x, y):
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == self.attention_on:
                x = self.attention(x)
        phi = F.relu(x).flatten(2)
        phi = phi.mean(2) if self.mean else phi.sum(2)
        logits = self.linear(phi)[:, 0]
        return logits + torch.einsum("nc,nc->n", self.embedding(y), phi) if hasattr(self, "embedding") else logits


class DeepUpBlock(nn.Module):
    def __init__(self, c_in, c_out, condition, *, upsample):
        super().__init__()
        self.c_out, self.upsample, inside = c_out, upsample, c_in // 4
        sizes = [(c_in, inside, 1), (inside, inside, 3), (inside, inside, 3), (inside, c_out, 1)]
        for i, (a, b, size) in enumerate(sizes, 1):
            setattr(self, f"norm{i}", ClassBatchNorm(a, condition=condition, wrap=spectral_norm))
            setattr(self, f"conv{i}", spectral_norm(nn.Conv2d(a, b, size, padding=size // 2)))

    def forward(self, x, condition):
        h = self.norm2(self.conv1(self.norm1(x, condition)), condition)
        skip = x[:, : self.c_out]
        if self.upsample:
            h, skip = up(h), up(skip)
        h = self.conv3(self.norm3(self.conv2(h), condition))
        return self.conv4(self.norm4(h, condition)) + skip


class DeepGenerator(nn.Module):
    def __init__(self, widths, *, num_classes, dim_z, shared, depth, attention):
        super().__init__()
        self.attend_at = attention
        self.embedding = nn.Embedding(num_classes, shared)
        self.linear = spectral_norm(nn.Linear(shared + dim_z, 16 * widths[0]))
        self.stages = nn.ModuleList()
        for a, b in itertools.pairwise(widths):
            blocks = [DeepUpBlock(a, a, shared + dim_z, upsample=False) for _ in range(depth - 1)]
            self.stages.append(nn.ModuleList([*blocks, DeepUpBlock(a, b, shared + dim_z, upsample=True)]))
        self.attention = Attention(widths[(attention // 4).bit_length() - 1], spectral_norm)
        self.norm = PlainBatchNorm(widths[-1])
        self.conv = spectral_norm(nn.Conv2d(widths[-1], 3, 3, padding=1))

    def forward(self, z, y):
        condition = torch.cat([self.embedding(y), z], 1)
        h = self.linear(condition).view(len(y), 4, 4, -1).permute(0, 3, 1, 2)
        for stage in self.stages:
            for block in stage:
                h = block(h, condition)
            if h.shape[2] == self.attend_at:
                h = self.attention(h)
        return torch.tanh(self.conv(self.norm(h)))


class DeepDownBlock(nn.Module):
    def __init__(self, c_in, c_out, *, down):
        super().__init__()
        self.down, inside = down, c_out // 4
        sizes = [(c_in, inside, 1), (inside, inside, 3), (inside, inside, 3), (inside, c_out, 1)]
        for i, (a, b, size) in enumerate(sizes, 1):
            setattr(self, f"conv{i}", spectral_norm(nn.Conv2d(a, b, size, padding=size // 2)))
        if c_in != c_out:
            self.more = spectral_norm(nn.Conv2d(c_in, c_out - c_in, 1))

    def forward(self, x):
        h = x
        for conv in (self.conv1, self.conv2, self.conv3):
            h = conv(F.relu(h))
        h = F.relu(h)
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return self.conv4(h) + (torch.cat([x, self.more(x)], 1) if hasattr(self, "more") else x)


class DeepDiscriminator(nn.Module):
    def __init__(self, widths, *, num_classes, depth, attention):
        super().__init__()
        self.attend_at = attention
        self.conv = spectral_norm(nn.Conv2d(3, widths[0], 3, padding=1))
        self.stages = nn.ModuleList(
            nn.Sequential(DeepDownBlock(a, b, down=True), *(DeepDownBlock(b, b, down=False) for _ in range(depth - 1)))
            for a, b in itertools.pairwise(widths)
        )
        self.attention = Attention(widths[1], spectral_norm)
        self.linear = spectral_norm(nn.Linear(widths[-1], 1))
        self.embedding = spectral_norm(nn.Embedding(num_classes, widths[-1]))

    def forward(self, x, y):
        h = self.conv(x)
        for stage in self.stages:
            h = stage(h)
            if h.shape[2] == self.attend_at:
                h = self.attention(h)
        phi = F.relu(h).sum((2, 3))
        return self.linear(phi)[:, 0] + (self.embedding(y) * phi).sum(1)


class ConvolutionalGenerator(nn.Module):
    """DCGAN's."""

    def __init__(self, widths, *, num_classes, dim_z):
        super().__init__()
        self.num_classes = num_classes
        self.project = nn.ConvTranspose2d(dim_z, widths[0], 4, bias=False)
        self.norms = nn.ModuleList(
            ClassBatchNorm(width, num_classes=num_classes) if num_classes else PlainBatchNorm(width) for width in widths
        )
        self.convs = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, 2, 1, bias=False) for a, b in itertools.pairwise([*widths, 3])
        )

    def forward(self, z, y):
        h = self.project(z.view(*z.shape, 1, 1))
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(norm(h, y) if self.num_classes else norm(h))
        return torch.tanh(h)


class ConvolutionalDiscriminator(nn.Module):
    """DCGAN's."""

    def __init__(self, widths, *, num_classes):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1, bias=False) for a, b in itertools.pairwise([3, *widths]))
        self.norms = nn.ModuleList(PlainBatchNorm(width, slope=0.2) for width in widths[1:])
        self.judge = nn.Conv2d(widths[-1], 1, 4, bias=False)
        if num_classes:
            self.embedding = nn.Embedding(num_classes, widths[-1])

    def forward(self, x, y):
        h = F.leaky_relu(self.convs[0](x), 0.2)
        for i, norm in enumerate(self.norms):
            h = norm(self.convs[i + 1](h))
        logits = self.judge(h).view(-1)
        return logits + (self.embedding(y) * h.sum((2, 3))).sum(1) if hasattr(self, "embedding") else logits


class Bias(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.leaky_relu(x + self.bias[:, None, None], 0.2)


class Bottleneck(nn.Module):
    """R3GAN's block."""

    def __init__(self, width):
        super().__init__()
        inside = 2 * width
        self.conv1 = nn.Conv2d(width, inside, 1, bias=False)
        self.act1 = Bias(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, padding=1, groups=inside // 16, bias=False)
        self.act2 = Bias(inside)
        self.conv3 = nn.Conv2d(inside, width, 1, bias=False)

    def forward(self, x):
        return x + self.conv3(self.act2(self.conv2(self.act1(self.conv1(x)))))


class BottleneckGenerator(nn.Module):
    """R3GAN's."""

    def __init__(self, widths, *, num_classes, dim_z):
        super().__init__()
        if num_classes:
            self.embedding = nn.Embedding(num_classes, dim_z)
        self.basis = nn.Parameter(torch.zeros(widths[0], 4, 4))
        self.linear = nn.Linear(dim_z * (2 if num_classes else 1), widths[0], bias=False)
        self.stages = nn.ModuleList(nn.Sequential(Bottleneck(width), Bottleneck(width)) for width in widths)
        self.widen = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity() for a, b in itertools.pairwise(widths)
        )
        self.conv = nn.Conv2d(widths[-1], 3, 1, bias=False)

    def forward(self, z, y):
        if hasattr(self, "embedding"):
            z = torch.cat([z, self.embedding(y)], 1)
        h = self.stages[0](torch.einsum("nc,chw->nchw", self.linear(z), self.basis))
        for widen, stage in zip(self.widen, self.stages[1:], strict=True):
            h = stage(widen(F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)))
        return self.conv(h)


class BottleneckDiscriminator(nn.Module):
    """R3GAN's."""

    def __init__(self, widths, *, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, widths[0], 1, bias=False)
        self.stages = nn.ModuleList(nn.Sequential(Bottleneck(width), Bottleneck(width)) for width in widths)
        self.widen = nn.ModuleList(
            nn.Conv2d(a, b, 1, bias=False) if a != b else nn.Identity() for a, b in itertools.pairwise(widths)
        )
        self.basis = nn.Conv2d(widths[-1], widths[-1], 4, groups=widths[-1], bias=False)
        self.linear = nn.Linear(widths[-1], widths[-1] if num_classes else 1, bias=False)
        if num_classes:
            self.embedding = nn.Embedding(num_classes, widths[-1])

    def forward(self, x, y):
        h = self.stages[0](self.conv(x))
        for widen, stage in zip(self.widen, self.stages[1:], strict=True):
            h = stage(F.interpolate(widen(h), scale_factor=0.5, mode="bilinear", align_corners=False))
        features = self.linear(self.basis(h)[:, :, 0, 0])
        return (features * self.embedding(y)).sum(1) if hasattr(self, "embedding") else features[:, 0]
