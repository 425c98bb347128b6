"""The Triton kernel of fold_conv_weight and its launchers, of both directions: one launch each.

They run compiled on CUDA tensors, and on CPU tensors in Triton's interpreter (TRITON_INTERPRET=1, set before triton is
imported). Arguments are trusted; op.py checks them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gankernels.ops import _layout
from gankernels.ops._launch import FUSION, Specialisation, on_device_of

_OPTIONS = {"num_warps": 4} | FUSION
# A side of the tile of channel pairs: a line of 128 bytes in fp32.
_BLOCK = 32


@triton.jit
def _fold_conv_weight_kernel(
    from_ptr, to_ptr, outputs, inputs, from_output, from_input, from_tap, to_output, to_input, to_tap,
    UP: tl.constexpr, FROM_TAPS: tl.constexpr, TO_TAPS: tl.constexpr, ACC: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_I: tl.constexpr,
):  # fmt: skip
    # One row of taps of the result, for a tile of channel pairs.
    y = tl.program_id(0) % TO_TAPS
    tile = tl.program_id(0) // TO_TAPS
    o_blocks = tl.cdiv(outputs, BLOCK_O)
    o = (tile % o_blocks * BLOCK_O + tl.arange(0, BLOCK_O)).to(tl.int64)[:, None]
    i = (tile // o_blocks * BLOCK_I + tl.arange(0, BLOCK_I)).to(tl.int64)[None, :]
    mask = (o < outputs) & (i < inputs)
    from_offs = o * from_output + i * from_input
    to_offs = o * to_output + i * to_input
    LEAST: tl.constexpr = min(FROM_TAPS, TO_TAPS)
    SHIFT: tl.constexpr = 1 if FROM_TAPS > TO_TAPS else 0
    uy = LEAST - y if UP else y + SHIFT
    for x in tl.static_range(TO_TAPS):
        ux = LEAST - x if UP else x + SHIFT
        total = tl.zeros((BLOCK_O, BLOCK_I), dtype=ACC)
        for back_y in tl.static_range(2):
            # A row that does not exist is read from inside and dropped: no address is out of bounds.
            sy = uy - 1 + back_y
            inside = tl.minimum(tl.maximum(sy, 0), FROM_TAPS - 1)
            row = tl.zeros((BLOCK_O, BLOCK_I), dtype=ACC)
            for back_x in tl.static_range(2):
                sx = ux - 1 + back_x
                if sx >= 0 and sx < FROM_TAPS:
                    tap = inside * FROM_TAPS + sx
                    row += tl.load(from_ptr + from_offs + tap * from_tap, mask=mask, other=0.0).to(ACC)
            total += tl.where(inside == sy, row, 0.0)
        value = total if UP else total * 0.25
        tl.store(to_ptr + to_offs + (y * TO_TAPS + x) * to_tap, value, mask=mask)


def fold_conv_weight_forward(weight: Tensor, up: bool, channels_last: bool) -> Tensor:
    """[O, I, K, K] -> up [I, O, K+1, K+1], down [O, I, K+1, K+1], in the layout that is asked for."""
    return _map(weight, up, channels_last, grow=1)


def fold_conv_weight_backward(dfolded: Tensor, up: bool, channels_last: bool) -> Tensor:
    """The transpose: up [I, O, K+1, K+1], down [O, I, K+1, K+1] -> [O, I, K, K], in the layout that is asked for."""
    return _map(dfolded, up, channels_last, grow=-1)


def _map(source: Tensor, up: bool, channels_last: bool, grow: int) -> Tensor:
    source = source.contiguous(memory_format=_layout.memory_format(source))
    swapped = (up and grow < 0, up and grow > 0)
    outputs, inputs = (source.shape[1], source.shape[0]) if swapped[0] else source.shape[:2]
    taps = (source.shape[2], source.shape[2] + grow)
    result = torch.empty(
        (inputs, outputs, taps[1], taps[1]) if swapped[1] else (outputs, inputs, taps[1], taps[1]),
        dtype=source.dtype,
        device=source.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )
    if result.numel() == 0:
        return result
    blocks = _blocks(outputs, inputs)
    grid = (triton.cdiv(outputs, blocks["BLOCK_O"]) * triton.cdiv(inputs, blocks["BLOCK_I"]) * taps[1],)
    with on_device_of(source):
        _fold_conv_weight_kernel[grid](
            source, result, outputs, inputs, *_strides(source, swapped[0]), *_strides(result, swapped[1]),
            **_constexprs(up, taps, source.dtype), **blocks, **_OPTIONS,
        )  # fmt: skip
    return result


def _strides(t: Tensor, swapped: bool) -> tuple[int, int, int]:
    """From one output, input and tap to the next."""
    return (t.stride(1), t.stride(0), t.stride(3)) if swapped else (t.stride(0), t.stride(1), t.stride(3))


def _blocks(outputs: int, inputs: int) -> dict[str, int]:
    return {
        "BLOCK_O": min(triton.next_power_of_2(outputs), _BLOCK),
        "BLOCK_I": min(triton.next_power_of_2(inputs), _BLOCK),
    }


def _constexprs(up: bool, taps: tuple[int, int], dtype: torch.dtype) -> dict[str, Any]:
    return {
        "UP": up,
        "FROM_TAPS": taps[0],
        "TO_TAPS": taps[1],
        "ACC": tl.float64 if dtype == torch.float64 else tl.float32,
    }


def specialisations() -> Iterator[Specialisation]:
    """Both directions, up and down, of a 3x3 weight in every dtype."""
    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}
    kernel = _fold_conv_weight_kernel
    for dtype, type_ in types.items():
        for taps in ((3, 4), (4, 3)):
            for up in (True, False):
                given = _constexprs(up, taps, dtype) | _blocks(_BLOCK, _BLOCK)
                yield Specialisation.of(kernel, given, _OPTIONS, {}, type_)
