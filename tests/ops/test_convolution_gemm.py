"""Convolutions as matrix products: the rule, and every derivative on that way against sums over the kernel's taps."""

from __future__ import annotations

import pytest
import torch
from convolutions import LAYOUTS, assert_equal, inputs, plain_conv2d, plain_conv_transpose2d, two_orders

from gankernels import verification
from gankernels.ops import _convolution_gemm as gemm
from gankernels.ops import conv2d, conv_transpose2d


@pytest.fixture
def always(monkeypatch):
    """Every call goes this way that can. Returns what went."""
    calls = []

    def rule(what, *rest):
        goes = what == "weight" or rest[-1]
        calls.extend([what] * goes)
        return goes

    monkeypatch.setattr(gemm, "is_faster", rule)
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"stride": (1, 2), "padding": (2, 0), "dilation": 2}]
)
def test_derivatives(layout, options, always):
    for ours, plain, c_in, size in (
        (conv2d, plain_conv2d, 3, (2, 3, 8, 9)),
        (conv_transpose2d, plain_conv_transpose2d, 4, (2, 4, 5, 4)),
    ):
        shape = (4, 3, 3, 2)
        tensors = inputs(size, shape, 7 - c_in, layout=layout)
        always.clear()
        got = two_orders(lambda *t, f=ours: f(*t, **options, impl="library"), tensors)
        assert set(always) == ({"weight", "small"} if layout == "channels_last" else {"weight"})
        assert_equal(got, two_orders(lambda *t, f=plain: f(*t, **options), tensors))


def test_output_padding_and_what_the_kernel_does_not_reach(always):
    tensors = inputs((2, 4, 5, 4), (4, 3, 3, 3), 3, layout="channels_last")
    options = {"stride": 2, "padding": 1, "output_padding": 1}
    got = two_orders(lambda *t: conv_transpose2d(*t, **options, impl="library"), tensors)
    assert_equal(got, two_orders(lambda *t: plain_conv_transpose2d(*t, **options), tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_error_at_most_twice_eager(dtype, always):
    tensors = inputs((4, 40, 8, 8), (24, 40, 4, 4), 24, dtype=dtype, layout="channels_last")
    geometry = {"stride": 2, "padding": 1}

    def run(function, tensors):
        y = function(*tensors, **geometry)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).bfloat16()
        return [y.detach(), *torch.autograd.grad(y, tensors, torch.empty_like(y).copy_(dy))]

    stock = torch.nn.functional.conv2d
    exact = run(stock, [t.detach().double().requires_grad_() for t in tensors])
    eager = [
        run(
            stock,
            [
                t.detach().contiguous(memory_format=f if t.dim() == 4 else torch.contiguous_format).requires_grad_()
                for t in tensors
            ],
        )
        for f in LAYOUTS.values()
    ]
    assert (why := verification.beyond_twice_eager(run(conv2d, tensors), exact, eager)) is None, why


@pytest.mark.parametrize(
    ("what", "weight_size", "pixels", "stride", "channels_last", "faster"),
    [
        ("weight", (1536, 1536, 4, 4), 256, 2, True, True),
        ("weight", (1536, 768, 4, 4), 1024, 2, False, True),
        ("weight", (512, 512, 4, 4), 1024, 2, True, True),
        ("weight", (512, 512, 4, 4), 1024, 2, False, False),
        ("weight", (768, 384, 4, 4), 4096, 2, True, False),
        ("weight", (256, 256, 4, 4), 64, 2, True, False),
        ("small", (1536, 1536, 4, 4), 256, 2, True, True),
        ("small", (1536, 1536, 4, 4), 1024, 2, True, False),
        ("small", (1536, 1536, 4, 4), 256, 2, False, False),
        ("small", (1536, 1536, 3, 3), 256, 1, True, False),
    ],
)
def test_rule(what, weight_size, pixels, stride, channels_last, faster):
    def rule(device="cpu", groups=1):
        return gemm.is_faster(what, device, groups, weight_size, pixels, (stride, stride), channels_last)

    assert rule() is faster
    assert not rule(device="cuda")
    assert not rule(groups=2)
