"""Launchers of the Triton kernels in device*.py: plain tensors in and out, for groups = 1 and dilation = 1.

They run compiled on CUDA tensors, and on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is
imported). They are asynchronous, allocate by shape alone, and add in an order that depends on shapes and the GPU's
generation alone: safe in a CUDA graph, and the same bits every time. Arguments are trusted; the callers check them.

Pixels are read and written as channels_last. A result is channels_last where one of its two operands is, and otherwise
copied to contiguous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from gankernels.ops._convolution_arguments import output_size
from gankernels.ops._launch import FUSION, Specialisation, on_device_of
from gankernels.ops._layout import prefers_channels_last
from gankernels.ops.conv_transpose2d import device, device_weight, launch, tiles
from gankernels.ops.conv_transpose2d.launch import Normalised

# The sum of the weight gradient's splits: 8 numbers for each thread.
_ADD_UP = {"BLOCK_L": 1024, "num_warps": 4} | FUSION


def conv_transpose2d_forward(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.0,
    normalised: Normalised | None = None,
) -> Tensor:
    """``act(conv_transpose2d(x, weight) + bias)`` in x's dtype; ``activation``: any of bias_act's.

    With ``normalised`` x is scaled, shifted and activated first, while it is loaded.
    """
    return _forward(x, weight, bias, stride, padding, output_padding, activation, slope, normalised, False)[0]


def conv_transpose2d_forward_with_moments(
    x: Tensor,  # [N, C_in, H, W]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    bias: Tensor | None,  # [C_out]
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.0,
    normalised: Normalised | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, and the mean and biased variance [C_out] of y, in fp32 (fp64 for fp64), NaN where y is empty.

    They are taken from the tiles before they are stored: the batch norm that follows need not read y for them.
    """
    return _forward(x, weight, bias, stride, padding, output_padding, activation, slope, normalised, True)


def conv_transpose2d_input_gradient(
    dy: Tensor,  # [N, C_out, OH, OW]
    y: Tensor | None,  # [N, C_out, OH, OW]
    weight: Tensor,  # [C_in, C_out, KH, KW]
    x_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    activation: str = "none",
    slope: float = 0.0,
) -> Tensor:
    """dx [N, C_in, H, W], the strided convolution of dz with the weight.

    dz is dy or, with the saved y, ``act'(z) dy`` formed while dy is loaded: relu, or lrelu with a positive slope.
    """
    dx = launch.empty(dy, x_size)
    if dx.numel() == 0 or dy.numel() == 0:
        dx.zero_()
    else:
        # [C_in, KH, KW, C_out] in memory: C_out, which is summed over, is innermost.
        launch.gather(
            launch.operand(dy, gate=y, activation=activation, slope=slope), launch.channels_last(weight), True,
            None, dx, None, weight.shape[2:], stride, padding, False, launch.formula("", "none", 0.0),
        )  # fmt: skip
    return launch.laid_out(dx, prefers_channels_last(dy) or prefers_channels_last(weight))


def conv_transpose2d_weight_gradient(
    dz: Tensor,  # [N, C_out, OH, OW]
    x: Tensor,  # [N, C_in, H, W]
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    normalised: Normalised | None = None,
) -> Tensor:
    """dweight [C_in, C_out, KH, KW] from the gradient dz of what the convolution gives. ``normalised`` is of x."""
    is_channels_last = prefers_channels_last(dz) or prefers_channels_last(x)
    c_in, c_out, kh, kw = weight_size
    dweight = launch.empty(x, weight_size)
    if dweight.numel() == 0 or x.numel() == 0 or dz.numel() == 0:
        return launch.laid_out(dweight.zero_(), is_channels_last)
    (n, _, h, w), (oh, ow), a, dz = x.shape, dz.shape[2:], launch.operand(x, normalised), launch.channels_last(dz)
    tile = tiles.choose(launch.table(x, a.transformed), c_in, c_out, n * h * w, kh * kw)
    tile = tile._replace(m=min(tile.m, max(triton.next_power_of_2(c_in), tiles.LEAST)))
    programs = triton.cdiv(c_in, tile.m) * triton.cdiv(c_out, tile.n) * kh * kw
    # No block spans two pictures where they have different scales.
    blocks = triton.cdiv(n * h * w, tile.k) if normalised is None else n * triton.cdiv(h * w, tile.k)
    splits, steps = tiles.splits(programs, blocks)
    sums = dweight
    if splits > 1:
        sums = x.new_empty((splits, dweight.numel()), dtype=launch.accumulator(x.dtype))
    with on_device_of(x):
        device_weight._conv_transpose2d_weight_gradient_kernel[(programs * splits,)](
            a.x, a.scale, a.shift, dz, sums, n, h, w, c_in, oh, ow, c_out, kh, kw, *stride, *padding, steps,
            **a.formula, **launch.numbers(x), **launch.blocks(tile),
        )  # fmt: skip
        if splits > 1:
            grid = (triton.cdiv(dweight.numel(), _ADD_UP["BLOCK_L"]),)
            device_weight._conv_transpose2d_add_up_kernel[grid](sums, dweight, dweight.numel(), splits, **_ADD_UP)
    return launch.laid_out(dweight, is_channels_last)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    output_padding: Sequence[int], activation: str, slope: float, normalised: Normalised | None, with_moments: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y = launch.empty(x, output_size(x.shape, weight.shape, stride, padding, (1, 1), True, output_padding, 1))
    mean, var = (
        x.new_empty(weight.shape[1] if with_moments else 0, dtype=launch.accumulator(x.dtype)) for _ in range(2)
    )
    if y.numel() == 0:
        mean.fill_(torch.nan), var.fill_(torch.nan)
    else:
        launch.gather(
            launch.operand(x, normalised), *_forward_weight(weight), bias, y, (mean, var) if with_moments else None,
            weight.shape[2:], stride, padding, True, launch.formula("", activation, slope),
        )  # fmt: skip
    return launch.laid_out(y, prefers_channels_last(x) or prefers_channels_last(weight)), mean, var


def _forward_weight(weight: Tensor) -> tuple[Tensor, bool]:
    """The weight as forward reads it, and whether C_in is innermost in it.

    16-bit tensor cores take either order from shared memory, so a channels_last weight [C_in, KH, KW, C_out] is read as
    it is; the 32-bit ones of sm_90 need what is summed over innermost, and get a permuted copy: 8 bytes a weight.
    """
    if weight.dtype == torch.float32:
        return weight.permute(1, 2, 3, 0).contiguous(), True
    return launch.channels_last(weight), False


def specialisations() -> Iterator[Specialisation]:
    """Every tile of the table, on the GPUs that it is for: forward as it is, forward behind a batch norm and with
    moments, the input gradient with and without a gate, and the weight gradient."""
    lrelu, none = launch.formula("", "lrelu", 0.2), launch.formula("", "none", 0.0)
    x_lrelu, x_none = launch.formula("X_", "lrelu", 0.2), launch.formula("X_", "none", 0.0)
    for capability, precision, tile, transformed in tiles.every():
        for type_ in {"16": ("bf16", "fp16"), "fp64": ("fp64",)}.get(precision, ("fp32",)):
            if type_ == "fp16" and tile.num_stages != 3:
                continue  # it differs from bf16 in its instructions' names alone
            forward = {"TRANSPOSED": True, "C_IN_INNERMOST": type_ == "fp32", "gate_ptr": None} | lrelu
            backward = {"TRANSPOSED": False, "C_IN_INNERMOST": True, "bias_ptr": None} | none
            plain, norm = x_none | {"scale_ptr": None, "shift_ptr": None}, x_lrelu
            no_moments = {"counts_ptr": None, "moments_ptr": None}
            gathers = [forward | norm, backward | plain | no_moments | x_lrelu] if transformed else [
                forward | plain | no_moments, backward | plain | no_moments | {"gate_ptr": None},
            ]  # fmt: skip
            constants = launch.arithmetic(precision) | launch.blocks(tile) | {"GROUP_M": launch.GROUP_M}
            for given in gathers:
                yield _specialisation(device._conv_transpose2d_gather_kernel, given | constants, type_, capability)
            kernel = device_weight._conv_transpose2d_weight_gradient_kernel
            yield _specialisation(kernel, (norm if transformed else plain) | constants, type_, capability)
    for type_ in ("fp32", "fp64"):
        yield _specialisation(device._conv_transpose2d_moments_kernel, launch.MOMENTS, type_, None)
    for type_ in ("bf16", "fp16", "fp32", "fp64"):
        yield _specialisation(device_weight._conv_transpose2d_add_up_kernel, _ADD_UP, type_, None)


_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


def _specialisation(kernel: Any, given: dict[str, Any], type_: str, capability: int | None) -> Specialisation:
    accumulator = "fp64" if type_ == "fp64" else "fp32"
    pixels = ("x_ptr", "gate_ptr", "weight_ptr", "y_ptr", "dz_ptr", "dweight_ptr")
    options = {name: value for name, value in given.items() if name in _OPTIONS}
    found = Specialisation.of(kernel, given, options, dict.fromkeys(pixels, type_), accumulator)
    return found._replace(capabilities=(capability,)) if capability else found
