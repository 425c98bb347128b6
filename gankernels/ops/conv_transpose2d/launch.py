"""What the launchers of kernels.py share: layouts, the formulas' constants, and the launch of the gathering GEMM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gankernels.ops._launch import FUSION, on_device_of
from gankernels.ops._layout import strides_4d
from gankernels.ops.conv_transpose2d import device, tiles

# The pass over the moments' workspace: 8 channels fill a 32-byte sector, and 64 rows give a thread 4 of them.
MOMENTS = {"BLOCK_C": 8, "BLOCK_ROWS": 64, "num_warps": 4} | FUSION
# Blocks of rows whose pixels are kept in L2 while the phases and columns run over them.
GROUP_M = 8


class Normalised(NamedTuple):
    """What stands before the convolution: ``act(x * scale[n,c] + shift[n,c])`` with none, relu or lrelu.

    With scale = gain rstd and shift = bias - mean scale it is a conditional batch norm, whose y is not written then.
    Zero padding comes after the activation.
    """

    scale: Tensor  # [N, C_in]
    shift: Tensor  # [N, C_in]
    activation: str = "none"
    slope: float = 0.2


class Operand(NamedTuple):
    """The gathered operand of the GEMM, channels_last: x, act(x scale + shift), or act'(gate) x."""

    x: Tensor  # [N, C, H, W]
    gate: Tensor | None  # [N, C, H, W]
    scale: Tensor | None  # [N, C]
    shift: Tensor | None  # [N, C]
    formula: dict[str, Any]

    @property
    def transformed(self) -> bool:
        return self.gate is not None or self.scale is not None


def operand(
    x: Tensor,  # [N, C, H, W]
    normalised: Normalised | None = None,
    gate: Tensor | None = None,  # [N, C, H, W]
    activation: str = "none",
    slope: float = 0.0,
) -> Operand:
    """``activation`` and ``slope`` are the gate's; without one they do nothing."""
    if normalised is not None:
        scale, shift, activation, slope = normalised
        return Operand(channels_last(x), None, scale.contiguous(), shift.contiguous(), formula("X_", activation, slope))
    if gate is None or activation == "none":
        return Operand(channels_last(x), None, None, None, formula("X_", "none", 0.0))
    return Operand(channels_last(x), channels_last(gate), None, None, formula("X_", activation, slope))


def gather(
    a: Operand,
    weight: Tensor,  # [C_OUT, KH, KW, C] in memory with c_in_innermost, else [C, KH, KW, C_OUT]
    c_in_innermost: bool,
    bias: Tensor | None,  # [C_OUT]
    y: Tensor,  # [N, C_OUT, OH, OW], channels_last
    moments: tuple[Tensor, Tensor] | None,  # [C_OUT]
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    transposed: bool,
    epilogue: dict[str, Any],
) -> None:
    """Writes y, and the moments' mean and biased variance of y's channels. y is not empty."""
    (n, c_in, h, w), (_, c_out, oh, ow) = a.x.shape, y.shape
    phases = stride[0] * stride[1] if transposed else 1
    # Of the phase that has most; the others have a row or a column less.
    pixels = triton.cdiv(oh, stride[0]) * triton.cdiv(ow, stride[1]) if transposed else oh * ow
    tile = tiles.choose(table(a.x, a.transformed), n * pixels, c_out, c_in, phases)
    m_blocks = triton.cdiv(n * pixels, tile.m)
    if a.scale is not None:
        # Blocks of one picture each, so that a channel has one scale and shift in a block.
        tile = tile._replace(m=min(tile.m, max(triton.next_power_of_2(pixels), tiles.LEAST)))
        m_blocks = n * triton.cdiv(pixels, tile.m)
    counts = sums = None
    if moments is not None:
        counts = moments[0].new_empty(phases * m_blocks)
        sums = moments[0].new_empty((2, phases * m_blocks, c_out))
    with on_device_of(y):
        device._conv_transpose2d_gather_kernel[(m_blocks * phases * triton.cdiv(c_out, tile.n),)](
            a.x, a.gate, a.scale, a.shift, weight, None if bias is None else bias.contiguous(), y, counts, sums,
            n, h, w, c_in, oh, ow, c_out, *kernel, *stride, *padding, m_blocks,
            TRANSPOSED=transposed, C_IN_INNERMOST=c_in_innermost, GROUP_M=GROUP_M,
            **a.formula, **epilogue, **numbers(y), **blocks(tile),
        )  # fmt: skip
        if moments is not None:
            device._conv_transpose2d_moments_kernel[(triton.cdiv(c_out, MOMENTS["BLOCK_C"]),)](
                counts, sums, *moments, c_out, phases * m_blocks, **MOMENTS
            )


def channels_last(t: Tensor) -> Tensor:
    """t, or a copy of it, whose memory is [N, H, W, C]."""
    return t.contiguous(memory_format=torch.channels_last)


def empty(like: Tensor, size: Sequence[int]) -> Tensor:
    """[N, C, H, W], channels_last, with like's dtype and device."""
    return like.new_empty_strided(size, strides_4d(size, True))


def laid_out(t: Tensor, is_channels_last: bool) -> Tensor:
    """t [N, C, H, W], which is channels_last, or a contiguous copy."""
    return t if is_channels_last else t.new_empty_strided(t.shape, strides_4d(t.shape, False)).copy_(t)


def formula(prefix: str, activation: str, slope: float) -> dict[str, Any]:
    """The kernels' constants of an activation."""
    # A slope that is not used must not make another specialisation.
    return {f"{prefix}ACTIVATION": activation, f"{prefix}SLOPE": float(slope) if activation == "lrelu" else 0.0}


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums of ``dtype`` are taken in."""
    return torch.promote_types(dtype, torch.float32)


def precision(dtype: torch.dtype) -> str:
    """A key of tiles.py. fp32 is ``"tf32"`` as cuDNN's convolutions are: by torch.backends.cudnn.conv.fp32_precision,
    which torch.backends.cudnn.allow_tf32 sets."""
    if dtype == torch.float32:
        conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        return "tf32" if conv.fp32_precision == "tf32" else "ieee"
    return "fp64" if dtype == torch.float64 else "16"


def arithmetic(precision: str) -> dict[str, Any]:
    """The kernels' constants of a precision, compiled."""
    return {
        "ACC": triton.language.float64 if precision == "fp64" else triton.language.float32,
        "PRECISION": "tf32" if precision in ("tf32", "16") else "ieee",
        "UPCAST": False,
    }


def numbers(t: Tensor) -> dict[str, Any]:
    """The kernels' constants of t's dtype here."""
    # The interpreter computes in the bits of bf16 as if they were integers.
    return arithmetic(precision(t.dtype)) | {"UPCAST": bool(triton.knobs.runtime.interpret)}


def table(t: Tensor, transformed: bool) -> tuple[tiles.Tile, ...]:
    """The tiles for t's dtype on its device."""
    major, minor = torch.cuda.get_device_capability(t.device) if t.is_cuda else (8, 0)
    return tiles.table(10 * major + minor, precision(t.dtype), transformed)


def blocks(tile: tiles.Tile) -> dict[str, Any]:
    """The kernels' constants and the compiler's options of a tile."""
    sizes = {"BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k}
    return sizes | {"num_warps": tile.num_warps, "num_stages": tile.num_stages} | FUSION
