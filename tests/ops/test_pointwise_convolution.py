"""Dense 1x1 convolutions in channels_last on the CPU: both sides of the rules for each map, and its numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from convolutions import assert_equal, inputs, plain_conv2d, two_orders
from torch.autograd import profiler

from gankernels import _native, verification
from gankernels.ops import _convolution_gemm as gemm
from gankernels.ops import conv2d, conv_transpose2d

if _native.extension is None:
    pytest.skip(f"no native extension: {_native.why_no_cpu}", allow_module_level=True)

avx2 = pytest.mark.skipif(_native.extension.cpu_isa() != "avx2", reason="the rules were measured on AVX2 alone")

_LIBRARY = ("convolution", "convolution_backward", "mm", "addmm")


def _library_calls(function) -> Counter[str]:
    """The convolutions and matrix products of PyTorch's that ``function()`` makes, by name."""
    with profiler.profile() as profile:
        function()
    names = [event.name.removeprefix("aten::") for event in profile.function_events]
    return Counter(name for name in names if name in _LIBRARY)


# What y, dx and dw call of the library: y and dx by the inputs that they have, dw by the narrower picture.
@avx2
@pytest.mark.parametrize(
    ("x_size", "weight_size", "y", "dx", "dw"),
    [
        pytest.param((2, 64, 5, 4), (64, 64, 1, 1), None, None, None, id="all ours"),
        pytest.param((2, 48, 5, 4), (64, 48, 1, 1), None, None, "convolution_backward", id="narrow x"),
        pytest.param((2, 64, 5, 4), (63, 64, 1, 1), None, None, "convolution_backward", id="narrow y"),
        pytest.param((2, 256, 3, 3), (64, 256, 1, 1), None, None, None, id="256 inputs"),
        pytest.param((2, 257, 3, 3), (64, 257, 1, 1), "addmm", None, None, id="257 inputs"),
        pytest.param((1, 64, 3, 2), (272, 64, 1, 1), None, "mm", None, id="272 outputs"),
        pytest.param((3, 272, 1, 1), (64, 272, 1, 1), "convolution", *["convolution_backward"] * 2, id="one pixel"),
    ],
)
def test_rule(x_size, weight_size, y, dx, dw):
    x, weight, bias = inputs(x_size, weight_size, weight_size[0], dtype=torch.float32, layout="channels_last")
    made = []
    assert _library_calls(lambda: made.append(conv2d(x, weight, bias))) == Counter([y] * (y is not None))
    dy = torch.ones_like(made[0])
    for of, call in ((x, dx), (weight, dw)):
        calls = _library_calls(lambda of=of: torch.autograd.grad(made[0], of, dy, retain_graph=True))
        assert calls == Counter([call] * (call is not None))


def test_rule_of_the_plan():
    def rule(inputs, outputs, stride=1, channels_last=True):
        sizes = (4, outputs, 16, 16), (4, inputs, 16 * stride, 16 * stride)
        return gemm.is_faster("small", (outputs, inputs, 1, 1), *sizes, (stride, stride), (0, 0), channels_last)

    assert rule(257, 64)
    assert not rule(256, 64)
    assert not rule(257, 64, stride=2)
    assert not rule(257, 64, channels_last=False)


@pytest.mark.parametrize(
    ("ours", "stock", "sizes"),
    [
        (conv2d, F.conv2d, ((3, 66, 9, 10), (70, 66, 1, 1), 70)),
        (conv2d, F.conv2d, ((3, 40, 9, 10), (70, 40, 1, 1), 70)),
        (conv2d, F.conv2d, ((2, 272, 3, 2), (300, 272, 1, 1), 300)),
        (conv2d, F.conv2d, ((1, 64, 1, 1), (272, 64, 1, 1), 272)),
        (conv2d, F.conv2d, ((1, 64, 1, 2), (64, 64, 1, 1), 64)),
        (conv_transpose2d, F.conv_transpose2d, ((2, 272, 3, 2), (272, 70, 1, 1), 70)),
    ],
    ids=("ours", "narrow", "many inputs", "one pixel", "two pixels", "transposed"),
)
def test_error_at_most_twice_eager(ours, stock, sizes, poisoned):
    tensors = inputs(*sizes, dtype=torch.float32, layout="channels_last")
    exact = two_orders(stock, [t.detach().double().requires_grad_() for t in tensors])
    eager = [
        two_orders(stock, inputs(*sizes, dtype=torch.float32, layout=name)) for name in ("contiguous", "channels_last")
    ]
    assert (why := verification.beyond_twice_eager(two_orders(ours, tensors), exact, eager)) is None, why


@pytest.mark.parametrize("channels", [64, 272])
def test_operands_of_any_strides(channels, poisoned):
    sizes = (2, channels, 4, 3), (64, channels, 1, 1), 64
    placed = inputs(*sizes, layout="channels_last")
    wide = torch.zeros(2, 8, 6, channels + 5, dtype=torch.float64)
    wide[:, ::2, ::2, :channels] = placed[0].detach().permute(0, 2, 3, 1)
    strided = wide[:, ::2, ::2, :channels].permute(0, 3, 1, 2).requires_grad_()
    assert_equal(two_orders(conv2d, [strided, *placed[1:]]), two_orders(plain_conv2d, placed))


def test_a_picture_that_output_padding_makes_larger():
    x, weight = torch.randn(2, 272, 5, 4, dtype=torch.float64), torch.randn(272, 8, 1, 1, dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    geometry = {"dilation": (2, 2), "output_padding": (1, 1)}
    exact = F.conv_transpose2d(x, weight, **geometry)
    arguments = [1, 1], [0, 0], geometry["dilation"], True, geometry["output_padding"], 1
    y = torch.ops.gankernels_library.convolution(x, weight, None, *arguments)
    torch.testing.assert_close(y, exact)


def test_no_pixels(poisoned):
    x, weight, bias = inputs((0, 272, 4, 4), (64, 272, 1, 1), 64, dtype=torch.float32, layout="channels_last")
    y = conv2d(x, weight, bias)
    dx, dw = torch.autograd.grad(y, (x, weight), torch.ones_like(y))
    assert (y.shape, dx.shape) == ((0, 64, 4, 4), x.shape)
    assert dw.shape == weight.shape
    assert not dw.any()


@avx2
def test_weight_gradient_has_the_same_bits_on_any_number_of_threads(poisoned):
    """More pixels than a block, more channels than are packed at a time, tiles that the parts do not share evenly."""
    dy, x = (torch.randn(2, c, 17, 16).contiguous(memory_format=torch.channels_last) for c in (400, 92))

    def gradient():
        geometry = ([1, 1], [0, 0], [1, 1], False, [0, 0], 1)
        return torch.ops.gankernels_library.convolution_weight_gradient(dy, x, (400, 92, 1, 1), False, *geometry)[0]

    dw = gradient()
    exact = torch.einsum("nohw,nihw->oi", dy.double(), x.double())
    torch.testing.assert_close(dw[..., 0, 0].double(), exact, rtol=0, atol=2e-6 * exact.abs().max().item())
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(gradient(), dw)
