"""What the declarations of the convolutions share. Their cases have the arguments of ``networks.convolution_cases``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, Case
from gankernels.ops._convolution_arguments import output_size
from gankernels.ops._convolution_library import has_hardware

#: Stock PyTorch takes minutes for a convolution in bf16 on a processor that has to emulate it: no row there.
DTYPES = (
    (torch.float32, torch.bfloat16)
    if torch.cuda.is_available() or has_hardware("cpu", torch.bfloat16)
    else (torch.float32,)
)

#: Convolutions: that of y; also those of dx and dw; in a penalty those of y and dx, and of dx's gradients ddy and dw.
_CONVOLUTIONS = {FORWARD: 1, FORWARD_BACKWARD: 3, DOUBLE_BACKWARD: 4}

#: Reads and writes of x, of the weight and of y, and of what is like them. Forward: x and weight read, y written.
#: Backward: dy, weight and x read, dx and dw written. A penalty: forward; dy and weight read, dx written; dx read and
#: ddx written; ddx, weight and dy read, ddy and dw written.
_TRAFFIC = {FORWARD: (1, 1, 1), FORWARD_BACKWARD: (3, 3, 2), DOUBLE_BACKWARD: (5, 4, 4)}


def launches(mode: str) -> int:
    """One for each convolution."""
    return _CONVOLUTIONS[mode]


class Work:
    """The sizes of a case's tensors, and what follows from them."""

    def __init__(self, case: Case, transposed: bool) -> None:
        given = case.arguments
        groups, kernel = given["groups"], given["kernel_size"]
        channels = (case.shape[1], given["out_channels"])
        first, second = channels if transposed else reversed(channels)
        self.x = case.shape
        self.weight = (first, second // groups, kernel, kernel)
        geometry = ([given["stride"]] * 2, [given["padding"]] * 2, [1, 1], transposed, [0, 0], groups)
        self.y = tuple(output_size(self.x, self.weight, *geometry))
        # Every pixel of the smaller picture meets the whole kernel of its group.
        pixels = self.x if transposed else self.y
        self.products = pixels[0] * pixels[2] * pixels[3] * math.prod(self.weight)
        self.bias = (channels[1],) if given["bias"] else None

    def inputs(self, generator: torch.Generator) -> list[Tensor]:
        """x, a weight that keeps x's variance, and a bias where the layer has one."""
        weight = torch.randn(self.weight, generator=generator) * (math.prod(self.y) / self.products) ** 0.5
        bias = [] if self.bias is None else [0.1 * torch.randn(self.bias, generator=generator)]
        return [torch.randn(self.x, generator=generator), weight, *bias]

    def bytes(self, mode: str, itemsize: int) -> float:
        """What any implementation must move."""
        sizes = (self.x, self.weight, self.y)
        return itemsize * sum(count * math.prod(size) for count, size in zip(_TRAFFIC[mode], sizes, strict=True))

    def flops(self, mode: str) -> float:
        """Two for each product that any implementation must form; padding counts as pixels."""
        return 2 * _CONVOLUTIONS[mode] * self.products
