"""Launchers of the Triton kernels in device*.py: plain tensors in and out, for groups = 1 and dilation = 1.

They run compiled on CUDA tensors, and on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is
imported). They are asynchronous, allocate by shape alone, and add in an order that depends on shapes and the GPU's
generation alone: safe in a CUDA graph, and the same bits every time. Arguments are trusted; op.py checks them.

Pixels are read and written as channels_last; a contiguous tensor is copied on the way in and out. A 16-bit weight is
read as it lies where it is channels_last; see :func:`_forward_weight`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops.conv_transpose2d import device, device_weight, tiles

# Without enable_fp_fusion Triton 3.9 warns that 3.10 will change its default. Nothing here needs it but speed.
_FUSION = {"enable_fp_fusion": True}
# The passes over workspaces: 8 channels fill a 32-byte sector, and 1024 numbers are 8 for each thread.
_MOMENTS = {"BLOCK_C": 8, "BLOCK_ROWS": 64, "num_warps": 4} | _FUSION
_ADD_UP = {"BLOCK_L": 1024, "num_warps": 4} | _FUSION
# Blocks of rows whose pixels are kept in L2 while the phases and columns run over them.
_GROUP_M = 8


class Normalised(NamedTuple):
    """What stands before the convolution: ``act(x * scale[n,c] + shift[n,c])`` with none, relu or lrelu.

    With scale = gain rstd and shift = bias - mean scale that is a conditional batch norm, whose y is not written.
    Zero padding comes after the activation.
    """

    scale: Tensor  # [N, C_in]
    shift: Tensor  # [N, C_in]
    activation: str = "none"
    slope: float = 0.2


def output_size(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int],
                output_padding: Sequence[int]) -> tuple[int, int]:  # fmt: skip
    """(H, W) of y from those of x."""
    h, w = ((n - 1) * s - 2 * p + k + o for n, k, s, p, o in
            zip(size, kernel, stride, padding, output_padding, strict=True))  # fmt: skip
    return h, w


def forward(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.2,
    normalised: Normalised | None = None,
) -> Tensor:
    """``act(conv_transpose2d(x, weight) + bias)`` in x's dtype and layout; ``activation``: any of bias_act's."""
    return _transposed(x, weight, bias, stride, padding, output_padding, activation, slope, normalised, False)[0]


def forward_with_moments(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.2,
    normalised: Normalised | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`forward`, and the mean and biased variance of y's channels, in fp32 (fp64 for fp64).

    They are taken from the tiles before they leave the multiprocessor: y is not read again. NaN where y is empty.
    """
    return _transposed(x, weight, bias, stride, padding, output_padding, activation, slope, normalised, True)


def input_gradient(
    dy: Tensor,  # [N, C_out, OH, OW]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    y: Tensor | None = None,  # [N, C_out, OH, OW]
    activation: str = "none",
    slope: float = 0.2,
) -> Tensor:
    """dx [N, C_in, *size] in dy's layout: ``conv2d(dz, weight)`` with stride and padding.

    dz is dy or, with the saved y, ``act'(z) dy`` formed while it is loaded: relu, or lrelu with a positive slope.
    """
    n, c_out, oh, ow = dy.shape
    layout, dx = _layout.memory_format(dy), _pixels(dy, (n, weight.shape[0], *size))
    if dx.numel() == 0 or dy.numel() == 0:
        return dx.zero_().contiguous(memory_format=layout)
    gate = None if y is None or activation == "none" else _channels_last(y)
    # [C_in, KH, KW, C_out] in memory: C_out, which is summed over, innermost.
    _launch_gather(
        _channels_last(dy), gate, None, _channels_last(weight), True, None, dx, None, weight.shape[2:], stride, padding,
        transposed=False, x_formula=_formula("X_", activation if gate is not None else "none", slope),
        formula=_formula("", "none", slope),
    )  # fmt: skip
    return dx.contiguous(memory_format=layout)


def weight_gradient(
    x: Tensor,  # [N, C_in, H, W]
    dz: Tensor,  # [N, C_out, OH, OW]
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    normalised: Normalised | None = None,
) -> Tensor:
    """dweight [C_in, C_out, KH, KW], channels_last in memory, from the gradient dz of what the convolution gives."""
    (n, c_in, h, w), (c_out, oh, ow), (kh, kw) = x.shape, dz.shape[1:], kernel
    dweight = x.new_empty((c_in, kh, kw, c_out))
    if dweight.numel() == 0 or x.numel() == 0 or dz.numel() == 0:
        return dweight.zero_().permute(0, 3, 1, 2)
    x, dz = _channels_last(x), _channels_last(dz)
    tile = tiles.choose(_table(x), c_in, c_out, n * h * w, kh * kw)
    tile = tile._replace(m=min(tile.m, max(triton.next_power_of_2(c_in), 16)))
    programs = triton.cdiv(c_in, tile.m) * triton.cdiv(c_out, tile.n) * kh * kw
    blocks = triton.cdiv(n * h * w, tile.k) if normalised is None else n * triton.cdiv(h * w, tile.k)
    splits, steps = tiles.splits(programs, blocks)
    sums = dweight if splits == 1 else x.new_empty((splits, *dweight.shape), dtype=_accumulator(x.dtype))
    scale, shift, x_formula = _prologue(normalised)
    with _on_device_of(x):
        device_weight._conv_transpose2d_weight_gradient_kernel[(programs * splits,)](
            x, scale, shift, dz, sums, n, h, w, c_in, oh, ow, c_out, kh, kw, *stride, *padding, steps,
            **x_formula, **_numbers(x), **_blocks(tile),
        )  # fmt: skip
        if splits > 1:
            grid = (triton.cdiv(dweight.numel(), _ADD_UP["BLOCK_L"]),)
            device_weight._conv_transpose2d_add_up_kernel[grid](sums, dweight, dweight.numel(), splits, **_ADD_UP)
    return dweight.permute(0, 3, 1, 2)


def _transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    output_padding: Sequence[int], activation: str, slope: float, normalised: Normalised | None, with_moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    layout, acc = _layout.memory_format(x), _accumulator(x.dtype)
    n, c_out, kernel = x.shape[0], weight.shape[1], weight.shape[2:]
    y = _pixels(x, (n, c_out, *output_size(x.shape[2:], kernel, stride, padding, output_padding)))
    mean, var = (x.new_empty(c_out if with_moments else 0, dtype=acc) for _ in range(2))
    if y.numel() == 0:
        return y.contiguous(memory_format=layout), mean.fill_(torch.nan), var.fill_(torch.nan)
    if x.shape[1] == 0:
        raise ValueError("x: got no channels")
    _launch_gather(
        _channels_last(x), None, normalised, *_forward_weight(weight), bias, y, (mean, var) if with_moments else None,
        kernel, stride, padding, transposed=True, x_formula=_prologue(normalised)[2],
        formula=_formula("", activation, slope),
    )  # fmt: skip
    return y.contiguous(memory_format=layout), mean, var


def _launch_gather(
    x: Tensor, gate: Tensor | None, normalised: Normalised | None, weight: Tensor, c_in_innermost: bool,
    bias: Tensor | None, y: Tensor, moments: tuple[Tensor, Tensor] | None, kernel: Sequence[int],
    stride: Sequence[int], padding: Sequence[int], transposed: bool, x_formula: dict[str, Any], formula: dict[str, Any],
) -> None:  # fmt: skip
    """Writes y [N, C_OUT, OH, OW] and the moments' mean and var. x, gate and y are channels_last."""
    (n, c_in, h, w), (_, c_out, oh, ow) = x.shape, y.shape
    phases = stride[0] * stride[1] if transposed else 1
    # Of the phase that has most; the others have a row or a column less.
    pixels = triton.cdiv(oh, stride[0]) * triton.cdiv(ow, stride[1]) if transposed else oh * ow
    tile = tiles.choose(_table(x), n * pixels, c_out, c_in, phases)
    if normalised is not None:
        # Blocks of one picture each, so that a channel has one scale and shift in a block.
        tile = tile._replace(m=min(tile.m, max(triton.next_power_of_2(pixels), 16)))
        m_blocks = n * triton.cdiv(pixels, tile.m)
    else:
        m_blocks = triton.cdiv(n * pixels, tile.m)
    counts = sums = None
    if moments is not None:
        counts = moments[0].new_empty(phases * m_blocks)
        sums = moments[0].new_empty((2, phases * m_blocks, c_out))
    scale, shift, _ = _prologue(normalised)
    with _on_device_of(x):
        device._conv_transpose2d_gather_kernel[(m_blocks * phases * triton.cdiv(c_out, tile.n),)](
            x, gate, scale, shift, weight, None if bias is None else bias.contiguous(), y, counts, sums,
            n, h, w, c_in, oh, ow, c_out, *kernel, *stride, *padding, m_blocks,
            TRANSPOSED=transposed, C_IN_INNERMOST=c_in_innermost, GROUP_M=_GROUP_M,
            **x_formula, **formula, **_numbers(x), **_blocks(tile),
        )  # fmt: skip
        if moments is not None:
            device._conv_transpose2d_moments_kernel[(triton.cdiv(c_out, _MOMENTS["BLOCK_C"]),)](
                counts, sums, *moments, c_out, phases * m_blocks, **_MOMENTS
            )


def _pixels(like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(*shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last)


def _forward_weight(weight: Tensor) -> tuple[Tensor, bool]:
    """The weight as forward reads it, and whether C_in is innermost in it.

    16-bit tensor cores take either order from shared memory, so a channels_last weight [C_in, KH, KW, C_out] is read as
    it is; the 32-bit ones of sm_90 need what is summed over innermost, and get a permuted copy: 8 bytes a weight.
    """
    if weight.dtype == torch.float32:
        return weight.permute(1, 2, 3, 0).contiguous(), True
    return _channels_last(weight), False


def _prologue(normalised: Normalised | None) -> tuple[Tensor | None, Tensor | None, dict[str, Any]]:
    if normalised is None:
        return None, None, _formula("X_", "none", 0.0)
    scale, shift, activation, slope = normalised
    return scale.contiguous(), shift.contiguous(), _formula("X_", activation, slope)


def _formula(prefix: str, activation: str, slope: float) -> dict[str, Any]:
    # A slope that is not used must not make another specialisation.
    return {f"{prefix}ACTIVATION": activation, f"{prefix}SLOPE": float(slope) if activation == "lrelu" else 0.0}


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _precision(dtype: torch.dtype) -> str:
    """``"tf32"`` as the user allows it for cuDNN's convolutions: ``torch.backends.cudnn.conv.fp32_precision``."""
    if dtype == torch.float32:
        return "tf32" if torch.backends.cudnn.conv.fp32_precision == "tf32" else "ieee"
    return "fp64" if dtype == torch.float64 else "16"


def _numbers(x: Tensor) -> dict[str, Any]:
    return _arithmetic(x.dtype, _precision(x.dtype), _interprets())


def _arithmetic(dtype: torch.dtype, precision: str, interprets: bool) -> dict[str, Any]:
    return {
        "ACC": triton.language.float64 if dtype == torch.float64 else triton.language.float32,
        "PRECISION": "ieee" if precision in ("ieee", "fp64") else "tf32",
        "UPCAST": interprets,
    }


def _interprets() -> bool:
    return bool(triton.knobs.runtime.interpret)


def _table(x: Tensor) -> tuple[tiles.Tile, ...]:
    capability = 10 * torch.cuda.get_device_capability(x.device)[0] if x.is_cuda else 80
    return tiles.table(capability, _precision(x.dtype))


def _blocks(tile: tiles.Tile) -> dict[str, Any]:
    return {
        "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    } | _FUSION  # fmt: skip


def _on_device_of(x: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be x's."""
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()
