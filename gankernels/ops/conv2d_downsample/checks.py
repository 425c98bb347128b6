"""The inputs on which an implementation is checked on the machine that it is to run on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gankernels.ops._resampled_checks import Input
from gankernels.ops.conv2d_downsample import reference
from gankernels.ops.conv2d_downsample.op import conv2d_downsample
from gankernels.selfcheck import Check


def checks() -> Iterator[Check]:
    """Every route and kernel size, in both layouts, at odd sizes, and with sides that differ."""
    last, contiguous = torch.channels_last, torch.contiguous_format
    for given in (
        Input((8, 24, 9, 9), 40, 3, last, (1, 1, 1, 1)),
        Input((8, 24, 9, 9), 40, 3, contiguous, (1, 1, 1, 1)),
        Input((12, 5, 7, 5), 3, 5, last, (2, 2, 2, 2)),
        Input((12, 5, 7, 5), 3, 3, last, (0, 1, 2, 1)),
        Input((2, 5, 6, 5), 3, 1, last, (0, 0, 0, 0)),
        Input((2, 5, 6, 5), 3, 3, contiguous, (3, 3, 3, 3)),
    ):
        yield given.check(conv2d_downsample, reference.conv2d_downsample)
