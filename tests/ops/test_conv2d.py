"""conv2d through the public function, against plain sums over taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, assert_equal, inputs, plain_conv2d, two_orders
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import conv2d
from implementations import kernels_of

KERNELS = kernels_of("conv2d")
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)

# x, weight, arguments: what networks have, then what they do not.
GEOMETRIES = {
    "3x3": ((2, 3, 5, 6), (4, 3, 3, 3), {"padding": 1}),
    "4x4 stride 2": ((2, 3, 6, 8), (2, 3, 4, 4), {"stride": 2, "padding": 1}),
    "3x3 stride 2, a row left over": ((2, 3, 6, 5), (2, 3, 3, 3), {"stride": 2}),
    "1x1": ((3, 5, 4, 3), (2, 5, 1, 1), {}),
    "grouped": ((2, 6, 5, 4), (9, 2, 3, 3), {"padding": 1, "groups": 3}),
    "depthwise": ((2, 4, 5, 5), (8, 1, 3, 3), {"padding": 2, "groups": 4}),
    "all at once": ((2, 4, 9, 8), (4, 2, 2, 3), {"stride": (2, 3), "padding": (0, 4), "dilation": (3, 2), "groups": 2}),
    "one pixel": ((1, 1, 1, 1), (1, 1, 3, 3), {"padding": 1}),
    "the whole picture": ((2, 4, 4, 4), (3, 4, 4, 4), {}),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


# ---- Exactness ----


@kernels
@geometries
def test_gradcheck_and_gradgradcheck(device, impl, geometry):
    x_shape, weight_shape, arguments = GEOMETRIES[geometry]
    tensors = inputs(x_shape, weight_shape, weight_shape[0], device=device)

    def function(*tensors):
        return conv2d(*tensors, **arguments, impl=impl)

    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@kernels
@geometries
@layouts
@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_two_orders_are_the_plain_sums(device, impl, geometry, layout, weight_layout, poisoned):
    x_shape, weight_shape, arguments = GEOMETRIES[geometry]
    tensors = inputs(x_shape, weight_shape, weight_shape[0], device=device, layout=layout, weight_layout=weight_layout)
    want = two_orders(lambda *t: plain_conv2d(*t, **arguments), tensors)
    assert_equal(two_orders(lambda *t: conv2d(*t, **arguments, impl="reference"), tensors), want)
    assert_equal(two_orders(lambda *t: conv2d(*t, **arguments, impl=impl), tensors), want)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 4),
    c_in=st.integers(1, 3),
    c_out=st.integers(1, 3),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_any_geometry(n, groups, c_in, c_out, size, kernel, stride, padding, dilation, layout):
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    assume(all(s + 2 * p >= r for s, p, r in zip(size, padding, reach, strict=True)))
    tensors = inputs((n, groups * c_in, *size), (groups * c_out, c_in, *kernel), groups * c_out, layout=layout)
    arguments = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    want = two_orders(lambda *t: plain_conv2d(*t, **arguments), tensors)
    assert_equal(two_orders(lambda *t: conv2d(*t, **arguments, impl="library"), tensors), want)


@kernels
@pytest.mark.parametrize("groups", [1, 4])
def test_third_order(device, impl, groups):
    tensors = inputs((2, 4, 5, 5), (4, 4 // groups, 3, 3), 4, device=device)

    def third(function):
        penalty = function(*tensors).pow(3).sum()
        for _ in range(2):
            gradients = torch.autograd.grad(penalty, tensors, create_graph=True)
            penalty = sum(t.pow(2).sum() for t in gradients)
        return torch.autograd.grad(penalty, tensors)

    want = third(lambda *t: plain_conv2d(*t, padding=1, groups=groups))
    assert_equal(third(lambda *t: conv2d(*t, padding=1, groups=groups, impl=impl)), want)


@kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("x_shape", [(0, 6, 5, 5), (2, 0, 5, 5)], ids=str)
def test_empty(device, impl, layout, dtype, x_shape):
    channels = x_shape[1]
    tensors = inputs(x_shape, (4, channels, 3, 3), 4, device=device, layout=layout, dtype=dtype)
    y, dx, dw, *_ = two_orders(lambda *t: conv2d(*t, padding=1, impl=impl), tensors)
    assert y.shape == (x_shape[0], 4, 5, 5)
    assert dx.shape == x_shape
    assert not dw.any()
    bias = tensors[2].detach()
    assert torch.equal(y, bias[:, None, None].expand_as(y))


@kernels
def test_holes_and_foreign_gradients(device, impl):
    x, weight, bias = inputs((2, 8, 7, 9), (6, 8, 3, 3), 6, device=device)
    x, weight = x.detach()[:, ::2, :, 1::2].requires_grad_(), weight.detach()[:, 1::2].requires_grad_()
    results = []
    for function in (lambda *t: conv2d(*t, padding=1, impl=impl), lambda *t: plain_conv2d(*t, padding=1)):
        y = function(x, weight, bias)
        # sum() gives a gradient with zero strides; the other lies in another order than y
        loss = y.sum() + (y * y.transpose(2, 3).reshape(y.shape)).sum()
        results.append([y.detach(), *torch.autograd.grad(loss, (x, weight, bias))])
    assert_equal(*results)


@kernels
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)], ids=str)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_by_name(device, impl, kernel, padding):
    tensors = inputs((2, 3, 6, 7), (4, 3, *kernel), 4, device=device)
    arguments = {"padding": padding, "dilation": (2, 1)}
    got, want = (
        two_orders(f, tensors)
        for f in (lambda *t: conv2d(*t, **arguments, impl=impl), lambda *t: F.conv2d(*t, **arguments))
    )
    assert_equal(got, want)


@kernels
def test_one_picture_without_a_batch(device, impl):
    x, weight, bias = inputs((3, 6, 7), (4, 3, 3, 3), 4, device=device)
    y = conv2d(x, weight, bias, padding="same", impl=impl)
    assert torch.equal(y, conv2d(x[None], weight, bias, padding=1, impl=impl)[0])
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 5, 5, dtype=torch.int64)}, "x: got dtype torch.int64, expected one of torch.float32"),
        ({"x": torch.zeros(2, 4)}, r"x: got shape \(2, 4\), expected \[N, C, H, W\] or \[C, H, W\]"),
        ({"x": torch.zeros(2, 4, 0, 5)}, r"x: got shape \(2, 4, 0, 5\), expected a height and a width of at least 1"),
        (
            {"x": torch.zeros(2, 5, 5, 5)},
            r"x: got 5 channels, expected 4, for weight has shape \(6, 2, 3, 3\) and groups",
        ),
        ({"x": torch.zeros(2, 4, 2, 5)}, "x: got 2x5 pixels, expected enough for an output: with a kernel of 3x3"),
        ({"weight": torch.zeros(6, 2, 3)}, r"weight: got shape \(6, 2, 3\), expected 4 dimensions"),
        ({"weight": torch.zeros(5, 2, 3, 3)}, "weight: got shape .*, expected a first size that 2 groups divide"),
        (
            {"weight": torch.zeros(6, 2, 3, 3).double()},
            "weight: got dtype torch.float64, expected torch.float32, which x",
        ),
        ({"weight": torch.zeros(6, 2, 3, 3, device="meta")}, "weight: got a tensor on meta, expected cpu"),
        ({"bias": torch.zeros(5)}, r"bias: got shape \(5,\), expected \(6,\)"),
        ({"bias": torch.zeros(6).half()}, "bias: got dtype torch.float16, expected torch.float32"),
        ({"groups": 0}, "groups: got 0, expected an integer of at least 1"),
        ({"stride": 0}, "stride: got 0, expected an integer of at least 1, or a pair of them"),
        ({"stride": (1, 2, 3)}, r"stride: got \(1, 2, 3\), expected an integer"),
        ({"dilation": 1.5}, "dilation: got 1.5, expected an integer"),
        ({"padding": -1}, "padding: got -1, expected an integer of at least 0"),
        ({"padding": "full"}, "padding: got 'full', expected a number, a pair, 'same' or 'valid'"),
        ({"padding": "same", "stride": 2}, r"padding: got 'same' with stride \(2, 2\), expected stride 1"),
        ({"impl": "fast"}, "got 'fast', expected one of reference, library"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(2, 4, 5, 5), "weight": torch.zeros(6, 2, 3, 3), "bias": torch.zeros(6), "groups": 2}
    with pytest.raises(InputError, match=message) as error:
        conv2d(**(arguments | change))
    assert "\n" not in str(error.value)


def test_an_implementation_that_it_does_not_have():
    with pytest.raises(ImplementationUnavailable, match="conv2d has no cpu implementation"):
        conv2d(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), impl="cpu")
    with gankernels.use("cpu"):
        assert conv2d(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == 1
