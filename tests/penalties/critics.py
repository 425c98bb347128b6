"""Small discriminators and pictures for the tests of penalties."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from unittest import mock

import torch
from torch import Tensor, nn

from gankernels.penalties.run import Run


def conv(c_in: int, c_out: int, size: int = 3, **arguments) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, **arguments)


def critic(*middle: nn.Module, width: int = 8, after: int | None = None) -> nn.Sequential:
    """A discriminator of 3x8x8 pictures with ``middle`` behind its second convolution."""
    head = [nn.LeakyReLU(0.2), conv(after or width, 4), nn.Flatten(), nn.Linear(256, 1)]
    return nn.Sequential(conv(3, width), nn.ReLU(True), conv(width, width), *middle, *head)


def pictures(count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def taken_apart(apart: bool) -> contextlib.AbstractContextManager[object]:
    """Decides, in the place of memory, when the gradients of samples without a penalty are taken."""
    return mock.patch.object(Run, "_others_apart", lambda run, rows, attempts: apart and rows.others() is not None)


class Calls(nn.Module):
    """A function of the pictures as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)
