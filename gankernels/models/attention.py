"""Self-attention over the pixels of a feature map.

Zhang et al., "Self-Attention Generative Adversarial Networks", arXiv 1805.08318, section 3, with the widths and the
pooled keys and values of its authors' code, which BigGAN keeps (1809.11096, appendix B).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.nn import Conv2d
from gankernels.ops._attention import attention


class SelfAttention(nn.Module):
    """``x + gamma * o(attention(x))``, from [N, C, H, W] to the same shape; the identity at first.

    Args:
        channels: C, at least 8.
        layer: is called on each of the four 1x1 convolutions, and may initialise and norm it.

    Raises:
        InputError: fewer than 8 channels.
    """

    def __init__(self, channels: int, layer: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        if channels < 8:
            raise InputError(f"attention: got it on {channels} channels, expected at least 8")
        self.theta = layer(Conv2d(channels, channels // 8, 1, bias=False))
        self.phi = layer(Conv2d(channels, channels // 8, 1, bias=False))
        self.g = layer(Conv2d(channels, channels // 2, 1, bias=False))
        self.o = layer(Conv2d(channels // 2, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = _pixels(self.theta(x))  # [N, H W, C / 8]
        key = _pixels(F.max_pool2d(self.phi(x), 2))  # [N, H W / 4, C / 8]
        value = _pixels(F.max_pool2d(self.g(x), 2))  # [N, H W / 4, C / 2]
        # o_j = sum_i softmax_i(theta_j . phi_i) g_i: equations 1 and 2, without the 1 / sqrt(d) of transformers.
        h = self._attend(query, key, value).mT.unflatten(2, x.shape[2:])  # [N, C / 2, H, W]
        return x + self.gamma * self.o(h)  # equation 3

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value)


def _pixels(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H W, C]; of a tensor in channels_last a view."""
    return x.flatten(2).mT
