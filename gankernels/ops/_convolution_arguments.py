"""What the public convolutions accept, and the errors for what they do not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gankernels.errors import InputError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

#: A number for both dimensions, or one for each.
Pair = int | Sequence[int]


def pair(name: str, value: Pair, minimum: int) -> list[int]:
    """``[height, width]`` of an argument that may be one number.

    Raises:
        InputError: not an integer or a pair of them, or below ``minimum``.
    """
    given = value if isinstance(value, tuple | list) else (value,)
    numbers = [n for n in given if isinstance(n, int) and n >= minimum]
    if len(numbers) != len(given) or len(numbers) not in (1, 2):
        raise InputError(f"{name}: got {value!r}, expected an integer of at least {minimum}, or a pair of them")
    return numbers if len(numbers) == 2 else numbers * 2


def under_autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands in autocast's dtype where it is on, but for fp64 ones: PyTorch's rule for its own convolutions."""
    if not torch.is_autocast_enabled(x.device.type):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(x.device.type)

    def cast(t: Tensor) -> Tensor:
        return t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t

    return cast(x), cast(weight), None if bias is None else cast(bias)


def check_tensors(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, transposed: bool) -> None:
    """Raise InputError unless the three fit each other."""
    if x.dtype not in DTYPES:
        raise InputError(f"x: got dtype {x.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if x.dim() not in (3, 4):
        raise InputError(f"x: got shape {tuple(x.shape)}, expected [N, C, H, W] or [C, H, W]")
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected a height and a width of at least 1")
    if weight.dim() != 4 or 0 in weight.shape[2:]:
        raise InputError(f"weight: got shape {tuple(weight.shape)}, expected 4 dimensions, the last two the kernel")
    if not isinstance(groups, int) or groups < 1:
        raise InputError(f"groups: got {groups!r}, expected an integer of at least 1")
    channels, of_weight = x.shape[-3], weight.shape[0] if transposed else weight.shape[1] * groups
    if weight.shape[0] == 0 or weight.shape[0] % groups:
        raise InputError(f"weight: got shape {tuple(weight.shape)}, expected a first size that {groups} groups divide")
    if channels != of_weight:
        raise InputError(
            f"x: got {channels} channels, expected {of_weight}, for weight has shape {tuple(weight.shape)}"
            f" and groups is {groups}"
        )
    c_out = weight.shape[1] * groups if transposed else weight.shape[0]
    if bias is not None and tuple(bias.shape) != (c_out,):
        raise InputError(f"bias: got shape {tuple(bias.shape)}, expected ({c_out},)")
    for name, t in (("weight", weight), ("bias", bias)):
        if t is not None and t.device != x.device:
            raise InputError(f"{name}: got a tensor on {t.device}, expected {x.device}, where x is")
        if t is not None and t.dtype != x.dtype:
            raise InputError(f"{name}: got dtype {t.dtype}, expected {x.dtype}, which x has")


def output_size(
    x_size: Sequence[int],
    weight_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> list[int]:
    """The shape [N, C_out, OH, OW] of a convolution's output; not positive where the kernel does not fit."""
    size = [x_size[0], weight_size[1] * groups if transposed else weight_size[0]]
    for d in (0, 1):
        reach = dilation[d] * (weight_size[2 + d] - 1) + 1
        if transposed:
            size.append((x_size[2 + d] - 1) * stride[d] - 2 * padding[d] + reach + output_padding[d])
        else:
            size.append((x_size[2 + d] + 2 * padding[d] - reach) // stride[d] + 1)
    return size


def check_output(size: Sequence[int], x: Tensor, weight: Tensor) -> None:
    """Raise InputError where the kernel leaves nothing of x [N, C, H, W]."""
    if size[2] < 1 or size[3] < 1:
        raise InputError(
            f"x: got {x.shape[2]}x{x.shape[3]} pixels, expected enough for an output: with a kernel of"
            f" {weight.shape[2]}x{weight.shape[3]} and this padding and dilation it has {size[2]}x{size[3]}"
        )
