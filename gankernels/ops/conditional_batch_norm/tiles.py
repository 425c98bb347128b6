"""How the launchers of kernels.py and parts.py cut a problem into programs, and the constants that they all pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gankernels.ops._launch import FUSION

# Bytes of one tensor's tile, by order of differentiation: two 16-byte loads a thread, or one in the second order, which
# holds three tensors and five accumulators. More spills registers.
TILE_BYTES = (4096, 4096, 2048)
OPTIONS = {"num_warps": 4} | FUSION
# Channels of a channels_last tile: 64 fill whole 128-byte lines in 16 bits, 32 waste fewer lanes on the widths between.
CHANNELS = (64, 32)
# Pixels are split until there are this many programs, about 8 for each multiprocessor of a large GPU. A constant, not
# asked of the device, so that sums are added in the same order everywhere.
PROGRAMS = 1024
# Tiles of the steps on [N, C]: 8 channels fill a 32-byte sector of the workspace, and 64 rows give a thread 4 of them.
SMALL = {"BLOCK_C": 8, "BLOCK_ROWS": 64}
# Classes of a program that sums over their samples: it holds BLOCK_C x BLOCK_CLASSES x BLOCK_ROWS numbers.
CLASSES = 8


class Plan(NamedTuple):
    """How a problem is cut into programs, from its shape, dtype and layout alone."""

    n: int
    c: int
    l: int  # noqa: E741  (the kernels' L: pixels of a picture, H * W)
    per_sample: bool
    chunks: int  # runs of pixels of a picture
    tiles: int  # tiles of BLOCK_L pixels in a run
    grid: tuple[int]  # of the pixel passes
    tile: dict[str, Any]  # their constexprs
    small_grid: tuple[int]  # of the steps on [N, C]
    small_tile: dict[str, Any]

    @property
    def s(self) -> int:
        """The kernels' S: statistics, of channels or of planes."""
        return self.n * self.c if self.per_sample else self.c

    @property
    def samples(self) -> int:
        """Samples that share a statistic."""
        return 1 if self.per_sample else self.n

    @property
    def rows(self) -> int:
        return self.samples * self.chunks


def plan_for(
    n: int, c: int, pixels: int, dtype: torch.dtype, channels_last: bool, order: int, per_sample: bool = False
) -> Plan:
    elements = TILE_BYTES[order] // dtype.itemsize
    if channels_last:
        widest, narrow = CHANNELS
        block_c = min(triton.next_power_of_2(c), widest if c % widest == 0 else narrow, elements)
        block_l = min(triton.next_power_of_2(pixels), elements // block_c)
    else:
        block_l = min(triton.next_power_of_2(pixels), elements)
        block_c = min(triton.next_power_of_2(c), elements // block_l)
    c_blocks, l_blocks = triton.cdiv(c, block_c), triton.cdiv(pixels, block_l)
    tiles = triton.cdiv(l_blocks, min(l_blocks, triton.cdiv(PROGRAMS, n * c_blocks)))
    chunks = triton.cdiv(l_blocks, tiles)
    block_k = min(triton.next_power_of_2(chunks), SMALL["BLOCK_ROWS"])
    return Plan(
        n, c, pixels, per_sample, chunks, tiles,
        (n * chunks * c_blocks,),
        {"CHANNELS_LAST": channels_last, "PER_SAMPLE": per_sample, "BLOCK_C": block_c, "BLOCK_L": block_l} | OPTIONS,
        (triton.cdiv(n * c if per_sample else c, SMALL["BLOCK_C"]),),
        {"BLOCK_C": SMALL["BLOCK_C"], "BLOCK_N": SMALL["BLOCK_ROWS"] // block_k, "BLOCK_K": block_k} | OPTIONS,
    )  # fmt: skip


def accumulator(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def plan_of(x: Tensor, layout: torch.memory_format, order: int, per_sample: bool = False) -> Plan:
    n, c, h, w = x.shape
    if per_sample and layout == torch.contiguous_format:  # samples with statistics of their own are one of N C channels
        n, c, per_sample = 1, n * c, False
    return plan_for(n, c, h * w, x.dtype, layout == torch.channels_last, order, per_sample)


def formula(eps: float, activation: str, slope: float, labels: Tensor | None, gain: Tensor) -> dict[str, Any]:
    """What every kernel that computes z takes by name."""
    return {
        "labels_ptr": None if labels is None else labels.contiguous(),
        "classes": 0 if labels is None else len(gain),
        "EPS": float(eps),
        "ACTIVATION": activation,
        # A slope that is not used must not make another specialisation.
        "SLOPE": float(slope) if activation == "lrelu" else 0.0,
    }
