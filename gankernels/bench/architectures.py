"""Published networks as data: their layers with weights or statistics, in the order in which a picture passes them.

Sources: DCGAN, arXiv 1511.06434, figure 1, with the 4x4 kernels of its PyTorch versions; SNGAN, 1802.05957, appendix
B.4; BigGAN, 1809.11096, appendix B; R3GAN, 2501.05441, with the widths and groups of its published FFHQ settings;
StyleGAN2, 1912.04958, configuration F, residual discriminator.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layer:
    """One layer of a published network.

    Attributes:
        position: within its network: ``"block 3, conv 1"``.
        kind: ``conv``, ``conv_transpose``, ``linear``, ``embedding``, ``batch_norm``, ``conditional_batch_norm``,
            ``attention`` (the product of its maps, and its gain) or ``basis`` (a learned 4x4 picture a channel).
        c_in: channels in; of an embedding the classes, of a conditional batch norm the length of its condition.
        c_out: channels out.
        size: pixels of a side of the input, before any resampling.
        resample: ``up`` (nearest x2 in front), ``down`` (2x2 mean behind), ``fir up`` or ``fir down`` (a low-pass
            filter and x2 or /2, in front of a convolution that is strided where it is not 1x1).
        bias: whether it adds one; the bias of a biased activation behind it counts as its own.
        spectral_norm: whether its weights are spectrally normed.
        activation: that follows at once; empty where a norm or a sum comes first.
        gain: that the activation's value is multiplied by.
    """

    position: str
    kind: str
    c_in: int
    c_out: int
    size: int = 1
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    groups: int = 1
    resample: str = ""
    bias: bool = True
    spectral_norm: bool = False
    activation: str = ""
    gain: float = 1.0

    @property
    def weights(self) -> list[tuple[int, ...]]:
        """Shapes of its weights, biases left out."""
        window = (self.kernel, self.kernel)
        shapes: dict[str, list[tuple[int, ...]]] = {
            "conv": [(self.c_out, self.c_in // self.groups, *window)],
            "conv_transpose": [(self.c_in, self.c_out // self.groups, *window)],
            "linear": [(self.c_out, self.c_in)],
            "embedding": [(self.c_in, self.c_out)],
            "batch_norm": [(self.c_out,)] * 2,
            "conditional_batch_norm": [(self.c_out, self.c_in)] * 2,
            "attention": [()],
            "basis": [(self.c_out, 4, 4)],
        }
        return shapes[self.kind]

    @property
    def parameters(self) -> int:
        """Numbers that it learns."""
        biased = self.bias and self.kind in ("conv", "conv_transpose", "linear")
        return sum(map(math.prod, self.weights)) + (self.c_out if biased else 0)

    @property
    def convolved(self) -> int:
        """Pixels of a side of what the convolution itself reads: a 1x1 one runs on the small side of its resampling."""
        if self.kernel == 1:
            return self.size // 2 if "down" in self.resample else self.size
        return self.size + 1 if self.resample == "fir down" else self.size

    @property
    def size_out(self) -> int:
        """Pixels of a side of the output."""
        if self.resample:
            return self.size * 2 if "up" in self.resample else self.size // 2
        if self.kind == "conv_transpose":
            return (self.size - 1) * self.stride - 2 * self.padding + self.kernel
        return (self.size + 2 * self.padding - self.kernel) // self.stride + 1


Network = tuple[Layer, ...]


def dcgan_g(ch: int = 128, dim_z: int = 100) -> Network:
    """DCGAN's generator for 64 px; ``ch`` is the width at 32 px."""

    def layers() -> Iterator[Layer]:
        yield Layer("conv 1", "conv_transpose", dim_z, 8 * ch, 1, 4, bias=False)
        yield Layer("norm 1", "batch_norm", 8 * ch, 8 * ch, 4, activation="relu")
        for i, (c_in, c_out) in enumerate(itertools.pairwise((8 * ch, 4 * ch, 2 * ch, ch))):
            yield Layer(f"conv {i + 2}", "conv_transpose", c_in, c_out, 4 << i, 4, 2, 1, bias=False)
            yield Layer(f"norm {i + 2}", "batch_norm", c_out, c_out, 8 << i, activation="relu")
        yield Layer("conv 5", "conv_transpose", ch, 3, 32, 4, 2, 1, bias=False, activation="tanh")

    return tuple(layers())


def dcgan_d(ch: int = 128) -> Network:
    """DCGAN's discriminator for 64 px; ``ch`` is the width at 32 px."""

    def layers() -> Iterator[Layer]:
        yield Layer("conv 1", "conv", 3, ch, 64, 4, 2, 1, bias=False, activation="lrelu")
        for i, (c_in, c_out) in enumerate(itertools.pairwise((ch, 2 * ch, 4 * ch, 8 * ch))):
            yield Layer(f"conv {i + 2}", "conv", c_in, c_out, 32 >> i, 4, 2, 1, bias=False)
            yield Layer(f"norm {i + 2}", "batch_norm", c_out, c_out, 16 >> i, activation="lrelu")
        yield Layer("conv 5", "conv", 8 * ch, 1, 4, 4, bias=False)

    return tuple(layers())


def residual_g(
    widths: Sequence[int],
    *,
    num_classes: int,
    dim_z: int,
    shared: int | None = None,
    hierarchical: bool = False,
    attention: int | None = None,
    spectral_norm: bool = False,
) -> Network:
    """The residual generator of SNGAN and BigGAN: each block doubles the resolution, from 4 px.

    Args:
        widths: at 4 px and behind each block.
        num_classes: of the tables of gains and biases, one a norm; or of the one shared embedding.
        dim_z: of the latent.
        shared: length of the shared embedding of the class, from which linear maps make gains and biases.
        hierarchical: the latent goes in chunks to the first linear layer and, beside the embedding, to each block.
        attention: the resolution at which it stands.
        spectral_norm: on all weights but the shared embedding.
    """
    sn = spectral_norm
    blocks = len(widths) - 1
    chunk = dim_z // (blocks + 1) if hierarchical else dim_z
    condition = num_classes if shared is None else shared + (chunk if hierarchical else 0)

    def norm(position: str, c: int, size: int) -> Layer:
        mapped = sn and shared is not None
        return Layer(
            position, "conditional_batch_norm", condition, c, size, spectral_norm=mapped, activation="relu", bias=False
        )

    def layers() -> Iterator[Layer]:
        if shared is not None:
            yield Layer("embedding", "embedding", num_classes, shared)
        yield Layer("linear", "linear", chunk, 16 * widths[0], spectral_norm=sn)
        for i, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
            size, block = 4 << i, f"block {i + 1}"
            yield norm(f"{block}, norm 1", c_in, size)
            yield Layer(f"{block}, conv 1", "conv", c_in, c_out, size, 3, 1, 1, resample="up", spectral_norm=sn)
            yield norm(f"{block}, norm 2", c_out, 2 * size)
            yield Layer(f"{block}, conv 2", "conv", c_out, c_out, 2 * size, 3, 1, 1, spectral_norm=sn)
            yield Layer(f"{block}, skip", "conv", c_in, c_out, size, resample="up", spectral_norm=sn)
            if 2 * size == attention:
                yield from _attention(c_out, attention, spectral_norm=sn)
        size = 4 << blocks
        yield Layer("norm", "batch_norm", widths[-1], widths[-1], size, activation="relu")
        yield Layer("conv", "conv", widths[-1], 3, size, 3, 1, 1, spectral_norm=sn, activation="tanh")

    return tuple(layers())


def residual_d(
    widths: Sequence[int], *, resolution: int, downsamples: int, num_classes: int, attention: int | None = None
) -> Network:
    """The residual discriminator of SNGAN and BigGAN, spectrally normed throughout, with the class projected.

    Args:
        widths: behind each block.
        resolution: of the picture.
        downsamples: the first so many blocks halve the resolution.
        num_classes: of the projection's embedding.
        attention: the resolution at which it stands.
    """

    def layers() -> Iterator[Layer]:
        for i, (c_in, c_out) in enumerate(itertools.pairwise((3, *widths))):
            size, block = resolution >> min(i, downsamples), f"block {i + 1}"
            down = "down" if i < downsamples else ""
            yield Layer(f"{block}, conv 1", "conv", c_in, c_out, size, 3, 1, 1, spectral_norm=True, activation="relu")
            yield Layer(f"{block}, conv 2", "conv", c_out, c_out, size, 3, 1, 1, resample=down, spectral_norm=True)
            if down or c_in != c_out:
                yield Layer(f"{block}, skip", "conv", c_in, c_out, size, resample=down, spectral_norm=True)
            if down and size // 2 == attention:
                yield from _attention(c_out, attention, spectral_norm=True)
        yield Layer("linear", "linear", widths[-1], 1, spectral_norm=True)
        yield Layer("embedding", "embedding", num_classes, widths[-1], spectral_norm=True)

    return tuple(layers())


def biggan_128_g(ch: int, *, shared: int | None = 128, hierarchical: bool = True, dim_z: int = 120) -> Network:
    """BigGAN's generator for 128 px and 1000 classes; ``ch`` is the width at 128 px."""
    return residual_g(
        tuple(ch * width for width in (16, 16, 8, 4, 2, 1)),
        num_classes=1000,
        dim_z=dim_z,
        shared=shared,
        hierarchical=hierarchical,
        attention=64,
        spectral_norm=True,
    )


def biggan_128_d(ch: int) -> Network:
    """BigGAN's discriminator for 128 px and 1000 classes; ``ch`` is the width at 64 px."""
    widths = tuple(ch * width for width in (1, 2, 4, 8, 16, 16))
    return residual_d(widths, resolution=128, downsamples=5, num_classes=1000, attention=64)


def r3gan_g(widths: Sequence[int], groups: Sequence[int], dim_z: int = 64) -> Network:
    """R3GAN's generator: a learned 4x4 picture, then two inverted bottlenecks with grouped 3x3 a resolution.

    Args:
        widths: at 4, 8, 16, ... px.
        groups: of the 3x3 convolutions there.
        dim_z: of the latent.
    """

    def layers() -> Iterator[Layer]:
        yield Layer("basis", "basis", 1, widths[0], 4)
        yield Layer("linear", "linear", dim_z, widths[0], bias=False)
        for i, (width, group) in enumerate(zip(widths, groups, strict=True)):
            if i > 0 and widths[i - 1] != width:
                yield Layer(f"transition {i}", "conv", widths[i - 1], width, 2 << i, resample="fir up", bias=False)
            yield from _bottlenecks(f"stage {i + 1}", width, group, 4 << i)
        yield Layer("conv", "conv", widths[-1], 3, 2 << len(widths), bias=False)

    return tuple(layers())


def r3gan_d(widths: Sequence[int], groups: Sequence[int]) -> Network:
    """R3GAN's discriminator, the mirror of :func:`r3gan_g`: ``widths`` and ``groups`` from the picture down to 4 px."""

    def layers() -> Iterator[Layer]:
        resolution = 2 << len(widths)
        yield Layer("conv", "conv", 3, widths[0], resolution, bias=False)
        for i, (width, group) in enumerate(zip(widths, groups, strict=True)):
            if i > 0 and widths[i - 1] != width:
                size = resolution >> (i - 1)
                yield Layer(f"transition {i}", "conv", widths[i - 1], width, size, resample="fir down", bias=False)
            yield from _bottlenecks(f"stage {i + 1}", width, group, resolution >> i)
        yield Layer("basis", "conv", widths[-1], widths[-1], 4, 4, groups=widths[-1], bias=False)
        yield Layer("linear", "linear", widths[-1], 1, bias=False)

    return tuple(layers())


def stylegan2_d(resolution: int, base: int = 32768, most: int = 512) -> Network:
    """StyleGAN2's residual discriminator: ``min(base / size, most)`` channels at ``size`` px."""

    def channels(size: int) -> int:
        return min(base // size, most)

    def layers() -> Iterator[Layer]:
        act: dict[str, Any] = {"activation": "lrelu", "gain": math.sqrt(2)}
        yield Layer("conv", "conv", 3, channels(resolution), resolution, **act)
        size = resolution
        while size > 4:
            c_in, c_out, block = channels(size), channels(size // 2), f"block {size}"
            yield Layer(f"{block}, conv 1", "conv", c_in, c_in, size, 3, 1, 1, **act)
            yield Layer(f"{block}, conv 2", "conv", c_in, c_out, size, 3, 2, resample="fir down", **act)
            yield Layer(f"{block}, skip", "conv", c_in, c_out, size, resample="fir down", bias=False)
            size //= 2
        c = channels(4)  # one more channel holds the standard deviation over the batch
        yield Layer("block 4, conv", "conv", c + 1, c, 4, 3, 1, 1, **act)
        yield Layer("block 4, linear 1", "linear", 16 * c, c, **act)
        yield Layer("block 4, linear 2", "linear", c, 1)

    return tuple(layers())


def _attention(c: int, size: int, *, spectral_norm: bool) -> Iterator[Layer]:
    """Zhang et al., arXiv 1805.08318, with the keys and values at half the resolution, as BigGAN has it."""
    for name, c_in, c_out in (("theta", c, c // 8), ("phi", c, c // 8), ("g", c, c // 2), ("o", c // 2, c)):
        yield Layer(f"attention, {name}", "conv", c_in, c_out, size, bias=False, spectral_norm=spectral_norm)
    yield Layer("attention", "attention", c, c, size)


def _bottlenecks(stage: str, width: int, groups: int, size: int) -> Iterator[Layer]:
    inside = 2 * width
    for block in (1, 2):
        name = f"{stage}, block {block}"
        yield Layer(f"{name}, conv 1", "conv", width, inside, size, activation="lrelu")
        yield Layer(f"{name}, conv 2", "conv", inside, inside, size, 3, 1, 1, groups, activation="lrelu")
        yield Layer(f"{name}, conv 3", "conv", inside, width, size, bias=False)
