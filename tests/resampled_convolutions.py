"""What the tests of upsample_conv2d and conv2d_downsample share: stock PyTorch's two steps, and what is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gankernels.ops import conv2d_downsample, upsample_conv2d
from gankernels.ops._resampled_convolution import Route
from gankernels.ops.conv2d_downsample.op import route as route_down
from gankernels.ops.upsample_conv2d.op import route as route_up

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "lrelu": lambda y: F.leaky_relu(y, 0.2),
    "silu": F.silu,
}


def stock_up(x: Tensor, weight: Tensor, bias: Tensor | None, padding=(1, 1, 1, 1), activation="none") -> Tensor:
    """Nearest x2, zeros, convolution, activation, as a user writes them."""
    up = F.pad(F.interpolate(x, scale_factor=2.0, mode="nearest"), padding)
    return ACTIVATIONS[activation](F.conv2d(up, weight, bias))


def stock_down(x: Tensor, weight: Tensor, bias: Tensor | None, padding=(1, 1, 1, 1), activation="none") -> Tensor:
    """Zeros, convolution, 2x2 mean, activation, as a user writes them."""
    return ACTIVATIONS[activation](F.avg_pool2d(F.conv2d(F.pad(x, padding), weight, bias), 2))


def by_hand_up(x: Tensor, weight: Tensor, bias: Tensor, activation="none") -> Tensor:
    """The fold of a 3x3 weight with padding 1 as a user would write it in stock PyTorch."""
    folded = _shifted_sum(weight).flip(2, 3).transpose(0, 1).contiguous()
    return ACTIVATIONS[activation](F.conv_transpose2d(x, folded, bias, stride=2, padding=1))


def by_hand_down(x: Tensor, weight: Tensor, bias: Tensor, activation="none") -> Tensor:
    """As :func:`by_hand_up`."""
    return ACTIVATIONS[activation](F.conv2d(x, _shifted_sum(weight) / 4, bias, stride=2, padding=1))


def _shifted_sum(weight: Tensor) -> Tensor:
    w = F.pad(weight, (1, 1, 1, 1))
    return w[..., :-1, :-1] + w[..., :-1, 1:] + w[..., 1:, :-1] + w[..., 1:, 1:]


@dataclass(frozen=True)
class Op:
    """One of the two, and what it is held against."""

    name: str
    function: Callable[..., Tensor]
    stock: Callable[..., Tensor]
    by_hand: Callable[..., Tensor]
    route: Callable[..., Route]

    def __str__(self) -> str:
        return self.name

    def ours(self, *tensors: Tensor | None, padding=(1, 1, 1, 1), activation="none") -> Tensor:
        return self.function(*tensors, padding=padding, activation=activation, impl="library")

    def has_output(self, size: tuple[int, int], kernel: tuple[int, int], padding: tuple[int, int, int, int]) -> bool:
        """Whether the convolution has pixels, and as many as a mean needs."""
        left, right, top, bottom = padding
        scale, least = (2, 1) if self.name == "upsample_conv2d" else (1, 2)
        height = scale * size[0] + top + bottom - kernel[0] + 1
        width = scale * size[1] + left + right - kernel[1] + 1
        return min(height, width) >= least


UP = Op("upsample_conv2d", upsample_conv2d, stock_up, by_hand_up, route_up)
DOWN = Op("conv2d_downsample", conv2d_downsample, stock_down, by_hand_down, route_down)


def operands(
    n: int,
    c_in: int,
    c_out: int,
    size: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    *,
    dtype: torch.dtype = torch.float64,
    layout: str = "contiguous",
) -> list[Tensor]:
    """x, weight and bias, which ask for gradients; weight is in x's layout, and keeps the variance."""
    shapes = [(n, c_in, *size), (c_out, c_in, *kernel), (c_out,)]
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    drawn[1] /= (c_in * kernel[0] * kernel[1]) ** 0.5
    return in_layout([t.to(dtype) for t in drawn], layout)


def in_layout(tensors: Sequence[Tensor], layout: str) -> list[Tensor]:
    """Copies that ask for gradients, those with four dimensions in ``layout``."""
    formats = [LAYOUTS[layout] if t.dim() == 4 else torch.contiguous_format for t in tensors]
    return [t.detach().clone(memory_format=f).requires_grad_() for t, f in zip(tensors, formats, strict=True)]


def with_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """y, and its gradients in all ``tensors`` for a drawn cotangent that is the same in every dtype and layout."""
    y = function(*tensors)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
    dy = torch.empty_like(y).copy_(dy)
    return [y.detach(), *torch.autograd.grad(y, tensors, dy)]


def borders(y: Tensor) -> dict[str, Tensor]:
    """The rows and columns at the edges of y [N, C, H, W], and what is between them."""
    return {
        "top": y[:, :, :1],
        "bottom": y[:, :, -1:],
        "left": y[:, :, :, :1],
        "right": y[:, :, :, -1:],
        "inside": y[:, :, 1:-1, 1:-1],
    }


def as_exact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The same numbers in fp64."""
    return [t.detach().double().requires_grad_() for t in tensors]
