"""What the tests of the convolutions share: definitions by plain sums, two orders of derivatives, counting of calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pair(value: int | Sequence[int]) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, stride=1, padding=0, dilation=1, groups=1) -> Tensor:
    """The sum over taps, from slices of the padded x. No convolution of PyTorch's."""
    (sh, sw), (ph, pw), (dh, dw) = pair(stride), pair(padding), pair(dilation)
    c_out, _, kh, kw = weight.shape
    padded = F.pad(x, (pw, pw, ph, ph)).unflatten(1, (groups, -1))
    oh = (padded.shape[-2] - dh * (kh - 1) - 1) // sh + 1
    ow = (padded.shape[-1] - dw * (kw - 1) - 1) // sw + 1
    taps = weight.unflatten(0, (groups, c_out // groups))
    y = bias[:, None, None].expand(x.shape[0], -1, oh, ow).unflatten(1, (groups, -1))
    for k in range(kh):
        for m in range(kw):
            seen = padded[..., dh * k : dh * k + sh * (oh - 1) + 1 : sh, dw * m : dw * m + sw * (ow - 1) + 1 : sw]
            y = y + torch.einsum("ngchw,goc->ngohw", seen, taps[..., k, m])
    return y.flatten(1, 2)


def plain_conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor, *, stride=1, padding=0, output_padding=0, dilation=1, groups=1
) -> Tensor:
    """Every pixel of x adds the kernel, times itself, to the output around it; the margins are cut off."""
    (sh, sw), (ph, pw), (dh, dw), (eh, ew) = pair(stride), pair(padding), pair(dilation), pair(output_padding)
    n, _, h, w = x.shape
    c_in, c_out, kh, kw = weight.shape[0], weight.shape[1] * groups, *weight.shape[2:]
    height, width = sh * (h - 1) + dh * (kh - 1) + 1 + eh, sw * (w - 1) + dw * (kw - 1) + 1 + ew
    grouped, taps = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, c_in // groups))
    y = x.new_zeros(n, groups, c_out // groups, height, width)
    for k in range(kh):
        for m in range(kw):
            add = torch.einsum("ngchw,gco->ngohw", grouped, taps[..., k, m])
            spread = x.new_zeros(y.shape)
            spread[..., dh * k : dh * k + sh * (h - 1) + 1 : sh, dw * m : dw * m + sw * (w - 1) + 1 : sw] = add
            y = y + spread
    return y.flatten(1, 2)[..., ph : height - ph, pw : width - pw] + bias[:, None, None]


def inputs(
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    c_out: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    layout: str = "contiguous",
    weight_layout: str | None = None,
) -> list[Tensor]:
    """x, weight and bias with numbers that ``dtype`` holds, asking for gradients."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(s, generator=generator, dtype=torch.float64) for s in (x_shape, weight_shape, (c_out,))]
    placed = [t.to(device, dtype) for t in drawn]
    for index, name in enumerate((layout, weight_layout or layout)):
        if placed[index].dim() == 4:
            placed[index] = placed[index].contiguous(memory_format=LAYOUTS[name])
    return [t.requires_grad_() for t in placed]


def two_orders(function: Callable[..., Tensor], tensors: Sequence[Tensor], keep: Tensor | None = None) -> list[Tensor]:
    """The output, its gradients, and the gradients of these in the cotangent and the inputs.

    Args:
        keep: of the output's shape: where the cotangents enter; None for everywhere.
    """
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64)
        # The same numbers for every dtype.
        return torch.empty_like(t).copy_(drawn.bfloat16())

    y = function(*tensors)
    dy = like(y.detach())
    dy = (dy if keep is None else dy * keep).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    ddy, *second = torch.autograd.grad(
        first, [dy, *tensors], [like(t.detach()) for t in first], allow_unused=True, materialize_grads=True
    )
    ddy = ddy if keep is None else ddy * keep
    return [t.detach() for t in (y, *first, ddy, *second)]


def edges(t: Tensor) -> Iterator[Tensor]:
    """The first and last rows and columns, one by one, and what lies between."""
    if t.dim() < 3 or t.numel() == 0:
        yield t
        return
    yield from (t[..., :1, :], t[..., -1:, :], t[..., :1], t[..., -1:], t[..., 1:-1, 1:-1])


def assert_equal(got: Sequence[Tensor], want: Sequence[Tensor], rtol: float = 1e-10) -> None:
    """Edges and interiors agree to ``rtol`` of the largest number in each."""
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert (g.shape, g.dtype) == (w.shape, w.dtype), index
        for part, exact in zip(edges(g), edges(w), strict=True):
            scale = exact.abs().amax().item() if exact.numel() else 0.0
            torch.testing.assert_close(
                part, exact, rtol=0, atol=rtol * max(scale, 1.0), msg=lambda m, i=index: f"{i}: {m}"
            )


class Calls(TorchDispatchMode):
    """Counts the ops that are called in its block, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func._schema.name.removeprefix("gankernels_library::")] += 1
        return func(*args, **(kwargs or {}))

    def of(self, part: str) -> int:
        """Calls of ops that have ``part`` in their name."""
        return sum(count for name, count in self.counts.items() if part in name)
