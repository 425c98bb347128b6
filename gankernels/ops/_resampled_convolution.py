"""What the convolutions with a resampling beside them share: their arguments, and the route that a call takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from gankernels.errors import InputError
from gankernels.ops._activation import ACTIVATIONS
from gankernels.ops._convolution_arguments import DTYPES, under_autocast
from gankernels.ops._layout import prefers_channels_last
from gankernels.ops.bias_act.op import bias_act
from gankernels.ops.fold_conv_weight.op import LARGEST_KERNEL

#: Rows and columns of zeros: left, right, top, bottom, as in ``torch.nn.functional.pad``.
Padding = tuple[int, int, int, int]

#: Pixels of the small side, over the batch, up to which the two steps are faster than the fold on a CPU: the fold and
#: its transpose cost by the weight, what they save by the pixels; the number of channels hardly matters.
FEW_PIXELS = 64

#: Channels of the small side from which a box filter on the large side costs less than the products that it saves.
BOX_CHANNELS = 64


class Route(NamedTuple):
    """How a call is computed, and why.

    ``"folded"`` is one convolution of stride 2 with the folded weight, ``"boxed"`` one with the weight itself and a 2x2
    box filter on the large side, ``"small side"`` the convolution where there are fewer pixels, and ``"plain"`` the two
    steps of the definition.
    """

    name: str
    reason: str


class Call(NamedTuple):
    """Checked arguments. Under autocast, in its dtype."""

    x: Tensor  # [N, I, H, W]
    weight: Tensor  # [O, I, KH, KW]
    bias: Tensor | None  # [O]
    padding: Padding
    activation: str
    slope: float

    @property
    def channels_last(self) -> bool:
        """The output's layout."""
        return prefers_channels_last(self.x) or prefers_channels_last(self.weight)

    def convolution_bias(self) -> Tensor | None:
        """What the library adds: it does so while it writes. With an activation behind it, the bias comes with that."""
        return self.bias if self.activation == "none" else None

    def activated(self, y: Tensor) -> Tensor:
        """What is left to do behind the convolution: nothing, or one pass."""
        if self.activation == "none":
            return y
        return bias_act(y, self.bias, activation=self.activation, slope=self.slope)


def checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: int | Sequence[int],
    activation: str,
    slope: float,
) -> Call:
    """The call, its padding as (left, right, top, bottom).

    Raises:
        InputError: a shape, dtype, device, number or name is not what the ops' docstrings say.
    """
    activation = "none" if activation == "linear" else activation
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: got {activation!r}, expected one of linear, {', '.join(ACTIVATIONS)}")
    if x.dim() != 4:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected [N, C, H, W]")
    if weight.dim() != 4 or weight.shape[1] != x.shape[1] or 0 in weight.shape:
        raise InputError(
            f"weight: got shape {tuple(weight.shape)}, expected (O, {x.shape[1]}, KH, KW) for x of {tuple(x.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"bias: got shape {tuple(bias.shape)}, expected ({weight.shape[0]},)")
    tensors = {"x": x, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, t in tensors.items():
        if t.device != x.device:
            raise InputError(f"{name}: got a tensor on {t.device}, expected {x.device}, where x is")
    x, weight, bias = under_autocast(x, weight, bias)
    if x.dtype not in DTYPES:
        raise InputError(f"x: got dtype {x.dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if weight.dtype != x.dtype:
        raise InputError(f"weight: got dtype {weight.dtype}, expected {x.dtype}, as x")
    if bias is not None and bias.dtype != x.dtype:
        raise InputError(f"bias: got dtype {bias.dtype}, expected {x.dtype}, as x")
    return Call(x, weight, bias, padding_of(padding), activation, slope)


def padding_of(padding: int | Sequence[int]) -> Padding:
    """(left, right, top, bottom) of a number, a pair (height, width) as torch's convolutions take, or those four.

    Raises:
        InputError: it is none of them, or negative.
    """
    given = (padding,) if isinstance(padding, int) else tuple(padding)
    if len(given) not in (1, 2, 4) or not all(isinstance(p, int) and p >= 0 for p in given):
        raise InputError(
            f"padding: got {padding!r}, expected a number, (height, width) or (left, right, top, bottom), none negative"
        )
    if len(given) == 4:
        left, right, top, bottom = given
        return left, right, top, bottom
    return given[-1], given[-1], given[0], given[0]


def route_of(
    kernel_size: tuple[int, int],
    padding: Padding,
    pixels: int,
    device: str,
    *,
    channels: int,
    channels_last: bool,
    small_side: str,
    boxed: str,
    folded: str,
    transposed: bool = False,
) -> Route:
    """Which way a call goes, and why.

    Args:
        kernel_size: (KH, KW).
        padding: (left, right, top, bottom).
        pixels: of the small side, over the batch.
        device: the device type.
        channels: of the small side.
        channels_last: the output's layout.
        small_side, boxed, folded: the op's reasons for these routes.
        transposed: whether the op's convolutions of stride 2 are transposed ones.
    """
    if tuple(kernel_size) == (1, 1) and not any(padding):
        return Route("small side", small_side)
    not_foldable = _not_foldable(kernel_size)
    if not_foldable is not None:
        return Route("plain", not_foldable)
    # A transposed convolution crops K - 1 - p with the fold, one less with the weight itself, and never less than none.
    cropped = kernel_size[0] - 1 - max(padding) if transposed else 1
    if cropped < 0:
        return Route("plain", f"padding {max(padding)} makes rows of zeros that a transposed convolution cannot")
    # Measured on a CPU alone, whose contiguous box filter is slow.
    if device == "cpu" and channels_last and cropped > 0 and channels >= BOX_CHANNELS and pixels > 0:
        return Route("boxed", boxed)
    few = _too_few_pixels(pixels, device)
    return Route("folded", folded) if few is None else Route("plain", few)


def _not_foldable(kernel_size: tuple[int, int]) -> str | None:
    """Why no weight of this kernel can be folded, or None."""
    height, width = kernel_size
    if height != width:
        return f"the kernel is {height}x{width}, and the fold is for square ones"
    if height % 2 == 0:
        return f"the kernel is {height}x{width}, and the fold is for odd ones"
    most = LARGEST_KERNEL
    return f"the kernel is {height}x{width}, and the fold is for at most {most}x{most}" if height > most else None


def _too_few_pixels(pixels: int, device: str) -> str | None:
    """Why so many pixels on the small side do not pay for the fold, or None. On a GPU they always do: not measured."""
    if device != "cpu" or pixels > FEW_PIXELS:
        return None
    return f"{pixels} pixels on the small side, of which at most {FEW_PIXELS} do not pay for the fold"


def refuse_empty(x: Tensor, what: str, size: tuple[int, int]) -> None:
    """Raise where an output would have no pixels, as PyTorch does."""
    if min(size) < 1:
        raise InputError(f"x: got shape {tuple(x.shape)}, expected enough pixels for {what}, not {size[0]}x{size[1]}")
