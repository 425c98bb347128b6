"""Convolutions as matrix products: the rule, and every derivative on that way against sums over the kernel's taps."""

from __future__ import annotations

import pytest
import torch
from convolutions import LAYOUTS, assert_equal, inputs, plain_conv2d, plain_conv_transpose2d, two_orders

from gankernels import _native, verification
from gankernels.ops import _convolution_gemm as gemm
from gankernels.ops import conv2d, conv_transpose2d


@pytest.fixture
def planned():
    """No call is too small for the plan, and no weight gradient the other kernel's."""
    if _native.extension is None:
        yield
        return
    few, own = _native.extension.few_products(-1), _native.extension.own_weight_gradients(0)
    yield
    _native.extension.few_products(few)
    _native.extension.own_weight_gradients(own)


@pytest.fixture
def always(monkeypatch, planned):
    """Every call goes this way that can. Returns what went."""
    calls = []

    def rule(what, weight_size, small_size, big_size, stride, padding, channels_last):
        goes = what == "weight" or channels_last or gemm.is_single(weight_size, small_size, big_size, padding)
        calls.extend([what] * goes)
        return goes

    monkeypatch.setattr(gemm, "is_faster", rule)
    return calls


@pytest.mark.parametrize("layout", LAYOUTS)
def test_planned_calls_of_the_library(layout, planned):
    for ours, plain, size in (
        (conv2d, plain_conv2d, (2, 3, 8, 9)),
        (conv_transpose2d, plain_conv_transpose2d, (2, 4, 5, 4)),
    ):
        tensors = inputs(size, (4, 3, 3, 2), 7 - size[1], layout=layout)
        got = two_orders(lambda *t, f=ours: f(*t, stride=2, padding=1, impl="library"), tensors)
        assert_equal(got, two_orders(lambda *t, f=plain: f(*t, stride=2, padding=1), tensors))


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
        assert set(always) == ({"weight", "small", "big"} if layout == "channels_last" else {"weight"})
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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pointwise(layout, always):
    for ours, plain, size, shape in (
        (conv2d, plain_conv2d, (2, 3, 5, 4), (6, 3, 1, 1)),
        (conv_transpose2d, plain_conv_transpose2d, (2, 3, 5, 4), (3, 6, 1, 1)),
    ):
        tensors = inputs(size, shape, 6, layout=layout)
        always.clear()
        got = two_orders(lambda *t, f=ours: f(*t, impl="library"), tensors)
        assert ("big" in always) == (layout == "channels_last")
        assert_equal(got, two_orders(lambda *t, f=plain: f(*t), tensors))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single(layout, planned, monkeypatch):
    """A picture of one pixel, by the rule itself: the first layer of a generator, the last of a discriminator."""
    rule, answers = gemm.is_faster, []
    monkeypatch.setattr(gemm, "is_faster", lambda *sizes: answers.append(rule(*sizes)) or answers[-1])
    for ours, plain, size, shape in (
        (conv2d, plain_conv2d, (5, 3, 4, 2), (6, 3, 4, 2)),
        (conv_transpose2d, plain_conv_transpose2d, (5, 3, 1, 1), (3, 6, 4, 2)),
    ):
        tensors = inputs(size, shape, 6, layout=layout)
        got = two_orders(lambda *t, f=ours: f(*t, stride=3, impl="library"), tensors)
        assert_equal(got, two_orders(lambda *t, f=plain: f(*t, stride=3), tensors))
    assert answers == [True] * len(answers) != []


@pytest.mark.parametrize("block_bytes", [1, 4000, 30000])
def test_weight_gradient_in_blocks(block_bytes, always, monkeypatch):
    """Of single rows, of some of a sample's, of some samples: sizes that the blocks do not divide."""
    monkeypatch.setattr(gemm, "_BLOCK_BYTES", block_bytes)
    options = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
    for layout in LAYOUTS:
        tensors = inputs((5, 4, 11, 9), (4, 4, 3, 2), 4, layout=layout)
        got = two_orders(lambda *t: conv2d(*t, **options, impl="library"), tensors)
        assert "weight" in always
        assert_equal(got, two_orders(lambda *t: plain_conv2d(*t, **options), tensors))


@pytest.mark.parametrize(
    ("what", "weight_size", "pixels", "stride", "channels_last", "faster"),
    [
        ("weight", (1536, 1536, 4, 4), 256, 2, True, True),
        ("weight", (1536, 768, 4, 4), 1024, 2, False, True),
        ("weight", (512, 512, 4, 4), 1024, 2, True, True),
        ("weight", (512, 512, 4, 4), 1024, 2, False, False),
        ("weight", (192, 192, 4, 4), 4096, 2, True, False),
        ("small", (1536, 1536, 4, 4), 256, 2, True, True),
        ("small", (1536, 1536, 4, 4), 1024, 2, True, False),
        ("small", (1536, 1536, 4, 4), 256, 2, False, False),
        ("small", (1536, 1536, 3, 3), 512, 1, True, True),
        ("small", (1536, 1536, 3, 3), 1024, 1, True, False),
        ("small", (768, 768, 3, 3), 128, 1, True, False),
        ("big", (64, 3, 1, 1), 256, 1, True, True),
        ("big", (64, 64, 1, 1), 256, 1, False, False),
        ("big", (64, 64, 1, 1), 256, 2, True, False),
        ("big", (64, 64, 3, 3), 256, 1, True, False),
        ("big", (1536, 1536, 3, 3), 256, 1, True, True),
        ("big", (1536, 1536, 4, 4), 256, 2, True, True),
        ("big", (1536, 1536, 3, 3), 256, 1, False, False),
        ("big", (768, 768, 3, 3), 512, 2, True, True),
        ("big", (768, 768, 3, 3), 1024, 2, True, False),
        ("big", (512, 512, 3, 3), 256, 2, True, False),
        ("big", (1024, 1024, 3, 3), 128, 1, True, False),
    ],
)
def test_rule(what, weight_size, pixels, stride, channels_last, faster):
    side = 2 if weight_size[2] * stride == 1 else 9
    sizes = (pixels // 4, weight_size[0], 2, 2), (pixels // 4, weight_size[1], side, side)
    assert gemm.is_faster(what, weight_size, *sizes, (stride, stride), (0, 0), channels_last) is faster


@pytest.mark.parametrize("slow", [True, False])
def test_rule_where_the_weight_gradient_is_slow(slow, monkeypatch):
    monkeypatch.setattr(gemm, "_HAS_SLOW_WEIGHT_GRADIENT", slow)

    def rule(*weight_size, pixels=4096, width=64, padding=1, channels_last=True):
        sizes = (1, weight_size[0], pixels, 1), (1, weight_size[1], pixels, width)
        return gemm.is_faster("weight", weight_size, *sizes, (1, 1), (padding, padding), channels_last)

    assert rule(256, 256, 3, 3) is slow
    assert rule(192, 96, 1, 1, width=1, padding=0) is slow
    assert not rule(192, 96, 1, 1, padding=1)
    assert rule(192, 96, 4, 4, width=128) is slow
    assert not rule(256, 3, 3, 3)
    assert not rule(256, 256, 3, 3, pixels=16)
    assert not rule(256, 256, 3, 3, channels_last=False)


def test_for_dense_convolutions_of_a_cpu_alone(always):
    tensors = inputs((2, 4, 5, 5), (4, 2, 3, 3), 4, layout="channels_last")
    two_orders(lambda *t: conv2d(*t, groups=2, impl="library"), tensors)
    assert not always
