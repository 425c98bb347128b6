"""Every implementation of conv_transpose2d, through the public function. test_conv2d_contract.py has its ops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, Calls, assert_equal, inputs, plain_conv_transpose2d, two_orders
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import verification
from gankernels.errors import InputError
from gankernels.ops import bias_act, conv_transpose2d
from implementations import kernels_of

# Triton's, which have no groups, are in test_conv_transpose2d_triton.py, at sizes that its interpreter can bear.
KERNELS = [kernel for kernel in kernels_of("conv_transpose2d") if kernel.values[1] != "triton"]
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)

# x, weight, arguments: what networks have, then what they do not.
GEOMETRIES = {
    "4x4 stride 2": ((2, 3, 3, 4), (3, 2, 4, 4), {"stride": 2, "padding": 1}),
    "3x3 stride 2": ((2, 3, 3, 2), (3, 2, 3, 3), {"stride": 2}),
    "from one pixel": ((3, 5, 1, 1), (5, 2, 4, 4), {}),
    "3x3": ((2, 3, 5, 4), (3, 4, 3, 3), {"padding": 1}),
    "an even size from 3x3": ((2, 3, 3, 4), (3, 2, 3, 3), {"stride": 2, "padding": 1, "output_padding": 1}),
    "1x1 stride 3": ((2, 3, 3, 2), (3, 4, 1, 1), {"stride": 3, "output_padding": (2, 0)}),
    "grouped": ((2, 6, 3, 3), (6, 2, 4, 4), {"stride": 2, "padding": 1, "groups": 3}),
    "depthwise": ((2, 4, 3, 4), (4, 1, 3, 3), {"stride": 2, "groups": 4}),
    "all at once": (
        (2, 4, 4, 3),
        (4, 3, 2, 3),
        {"stride": (3, 2), "padding": (1, 3), "output_padding": (1, 2), "dilation": (2, 3), "groups": 2},
    ),
}
geometries = pytest.mark.parametrize("geometry", GEOMETRIES)


def given_geometry(geometry, **keywords):
    x_shape, weight_shape, arguments = GEOMETRIES[geometry]
    return inputs(x_shape, weight_shape, weight_shape[1] * arguments.get("groups", 1), **keywords), arguments


def activated(convolution, activation, slope=0.2):
    """``convolution`` with an activation behind it, in stock PyTorch."""
    act = {"relu": F.relu, "lrelu": lambda z: F.leaky_relu(z, slope), "tanh": torch.tanh, "silu": F.silu}[activation]
    return lambda *tensors, **arguments: act(convolution(*tensors, **arguments))


# ---- Exactness ----


@kernels
@geometries
def test_gradcheck_and_gradgradcheck(device, impl, geometry):
    tensors, arguments = given_geometry(geometry, device=device)

    def function(*tensors):
        return conv_transpose2d(*tensors, **arguments, impl=impl)

    assert gradcheck(function, tensors, fast_mode=True)
    assert gradgradcheck(function, tensors, fast_mode=True)


@kernels
@geometries
@layouts
@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_two_orders_are_the_plain_sums(device, impl, geometry, layout, weight_layout, poisoned):
    tensors, arguments = given_geometry(geometry, device=device, layout=layout, weight_layout=weight_layout)
    want = two_orders(lambda *t: plain_conv_transpose2d(*t, **arguments), tensors)
    assert_equal(two_orders(lambda *t: conv_transpose2d(*t, **arguments, impl="reference"), tensors), want)
    assert_equal(two_orders(lambda *t: conv_transpose2d(*t, **arguments, impl=impl), tensors), want)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    groups=st.integers(1, 4),
    c_in=st.integers(1, 3),
    c_out=st.integers(1, 3),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    layout=st.sampled_from(list(LAYOUTS)),
)
def test_any_geometry(n, groups, c_in, c_out, size, kernel, stride, padding, more, dilation, layout):
    zipped = list(zip(size, kernel, stride, padding, more, dilation, strict=True))
    assume(all(e < max(s, d) for _, _, s, _, e, d in zipped))
    assume(all((h - 1) * s + d * (k - 1) + 1 + e > 2 * p for h, k, s, p, e, d in zipped))
    tensors = inputs((n, groups * c_in, *size), (groups * c_in, c_out, *kernel), groups * c_out, layout=layout)
    arguments = {"stride": stride, "padding": padding, "output_padding": more, "dilation": dilation, "groups": groups}
    want = two_orders(lambda *t: plain_conv_transpose2d(*t, **arguments), tensors)
    assert_equal(two_orders(lambda *t: conv_transpose2d(*t, **arguments, impl="library"), tensors), want)


@kernels
@pytest.mark.parametrize("activation", ["relu", "lrelu", "tanh", "silu"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_activations(device, impl, activation, with_bias, poisoned):
    tensors, arguments = given_geometry("4x4 stride 2", device=device, layout="channels_last")
    plain = activated(plain_conv_transpose2d, activation, slope=0.1)
    none = torch.zeros_like(tensors[2])

    def run(function, *given, **keywords):
        return function(*given, *(() if with_bias else (none,)), **arguments, **keywords)

    chosen = tensors if with_bias else tensors[:2]
    want = two_orders(lambda *t: run(plain, *t), chosen)
    keywords = {"activation": activation, "slope": 0.1}
    for name in (impl, "reference"):
        got = two_orders(lambda *t, n=name: conv_transpose2d(*t, **arguments, **keywords, impl=n), chosen)
        assert_equal(got, want)


@pytest.mark.parametrize("groups", [1, 2])
def test_third_order(groups):
    tensors = inputs((2, 4, 3, 3), (4, 4 // groups, 4, 4), 4)

    def third(function):
        penalty = function(*tensors).pow(3).sum()
        for _ in range(2):
            gradients = torch.autograd.grad(penalty, tensors, create_graph=True)
            penalty = sum(t.pow(2).sum() for t in gradients)
        return torch.autograd.grad(penalty, tensors)

    arguments = {"stride": 2, "padding": 1, "output_padding": 1, "groups": groups}
    want = third(lambda *t: plain_conv_transpose2d(*t, **arguments))
    assert_equal(third(lambda *t: conv_transpose2d(*t, **arguments, impl="library")), want)


def test_a_third_order_behind_an_activation_is_refused():
    tensors, arguments = given_geometry("4x4 stride 2")
    y = conv_transpose2d(*tensors, **arguments, activation="silu")
    if dispatched_to_the_reference(y):
        pytest.skip("bias_act has no kernel here")
    (dx,) = torch.autograd.grad(y.pow(2).sum(), tensors[0], create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        ddx.sum().backward()


def dispatched_to_the_reference(y) -> bool:
    return "bias_act" not in type(y.grad_fn).__name__


@kernels
@layouts
@pytest.mark.parametrize("x_shape", [(0, 6, 3, 3), (2, 0, 3, 3)], ids=str)
@pytest.mark.parametrize("activation", ["none", "relu"])
def test_empty(device, impl, layout, x_shape, activation):
    if x_shape[1] == 0:
        with pytest.raises(InputError, match="weight: got shape"):
            conv_transpose2d(torch.zeros(x_shape), torch.zeros(0, 4, 4, 4), impl=impl)
        return
    tensors = inputs(x_shape, (x_shape[1], 4, 4, 4), 4, device=device, layout=layout, dtype=torch.float32)
    arguments = {"stride": 2, "padding": 1, "activation": activation}
    y, dx, dw, *_ = two_orders(lambda *t: conv_transpose2d(*t, **arguments, impl=impl), tensors)
    assert y.shape == (0, 4, 6, 6)
    assert dx.shape == x_shape
    assert not dw.any()


@kernels
@pytest.mark.parametrize("activation", ["none", "lrelu"])
def test_one_picture_without_a_batch(device, impl, activation):
    x, weight, bias = inputs((3, 4, 5), (3, 4, 4, 4), 4, device=device)
    for name in (impl, "reference"):
        y = conv_transpose2d(x, weight, bias, stride=2, activation=activation, impl=name)
        batch = conv_transpose2d(x[None], weight, bias, stride=2, activation=activation, impl=name)
        torch.testing.assert_close(y, batch[0])
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


# ---- Layout and precision ----


@kernels
@pytest.mark.parametrize("activation", ["none", "lrelu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_are_pytorchs(device, impl, activation, dtype):
    if (impl, device, dtype) == ("triton", "cpu", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates where it should round to bf16")
    for layout in LAYOUTS:
        for weight_layout in LAYOUTS:
            (x, weight, bias), arguments = given_geometry(
                "4x4 stride 2", dtype=dtype, layout=layout, weight_layout=weight_layout, device=device
            )
            y = conv_transpose2d(x, weight, bias, **arguments, activation=activation, impl=impl)
            assert y.dtype == dtype
            assert y.stride() == F.conv_transpose2d(x, weight, bias, **arguments).stride(), (layout, weight_layout)


@kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["none", "lrelu"])
@pytest.mark.parametrize("groups", [1, 8])
def test_error_at_most_twice_eager(device, impl, layout, dtype, activation, groups):
    if (impl, device, dtype) == ("triton", "cpu", torch.bfloat16):
        pytest.skip("Triton's interpreter truncates where it should round to bf16")
    arguments = {"stride": 2, "padding": 1, "groups": groups}
    tensors = inputs((4, 16, 5, 4), (16, 16 // groups, 4, 4), 16, dtype=dtype, device=device, layout=layout)
    eager = F.conv_transpose2d if activation == "none" else activated(F.conv_transpose2d, activation)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    with torch.no_grad():
        # Near a kink rounding decides the side, and neither side's gradient is an error.
        z = plain_conv_transpose2d(*wide, **arguments)
        keep = z.abs() > 64 * torch.finfo(dtype).eps if activation == "lrelu" else torch.ones_like(z)
        keep = keep.to(dtype)
    exact = two_orders(
        lambda *t: conv_transpose2d(*t, **arguments, activation=activation, impl="reference"), wide, keep
    )
    theirs = two_orders(lambda *t: eager(*t, **arguments), tensors, keep)
    ours = two_orders(lambda *t: conv_transpose2d(*t, **arguments, activation=activation, impl=impl), tensors, keep)
    assert (why := verification.beyond_twice_eager(ours, exact, [theirs])) is None, why


def test_autocast_casts_as_pytorch_does():
    (x, weight, bias), arguments = given_geometry("4x4 stride 2", dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv_transpose2d(x, weight, bias, **arguments, activation="relu")
    want = conv_transpose2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), **arguments, activation="relu")
    assert torch.equal(y, want)
    assert torch.autograd.grad(y.float().sum(), weight)[0].dtype == torch.float32


# ---- What is computed ----


def test_the_second_order_is_one_call_an_operand_for_any_groups():
    tensors = inputs((2, 16, 4, 4), (16, 2, 4, 4), 16, dtype=torch.float32)

    def calls_of(function):
        y = function(*tensors, stride=2, padding=1, groups=8)
        (dx,) = torch.autograd.grad(y.pow(2).sum(), tensors[0], create_graph=True)
        with Calls() as calls:
            torch.autograd.grad(dx.pow(2).sum(), tensors)
        return calls.of("convolution")

    assert calls_of(lambda *t, **k: conv_transpose2d(*t, **k, impl="library")) == 4
    assert calls_of(F.conv_transpose2d) > 8


def test_no_weight_gradients():
    tensors, arguments = given_geometry("grouped")
    y = conv_transpose2d(*tensors, **arguments, impl="library")
    with gankernels.no_weight_gradients(), Calls() as calls:
        y.sum().backward()
    assert tensors[0].grad is not None
    assert tensors[1].grad is tensors[2].grad is None
    assert calls.of("weight_gradient") == 0


# ---- The torch.library contract ----


@kernels
@pytest.mark.parametrize("activation", ["none", "lrelu"])
def test_compile_fullgraph(device, impl, activation):
    tensors, arguments = given_geometry("4x4 stride 2", dtype=torch.float32, device=device, layout="channels_last")

    def step(*tensors):
        return conv_transpose2d(*tensors, **arguments, activation=activation, impl=impl) * 2

    results = []
    for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        y = function(*tensors)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    assert_equal(*results, rtol=1e-5)


@kernels
def test_a_compiled_penalty_is_right(device, impl):
    tensors, arguments = given_geometry("4x4 stride 2", device=device)

    def penalty(function, *tensors):
        (dx,) = torch.autograd.grad(function(*tensors, **arguments).pow(4).sum(), tensors[0], create_graph=True)
        return dx.square().sum()

    def ours(*tensors):
        return penalty(lambda *t, **k: conv_transpose2d(*t, **k, activation="silu", impl=impl), *tensors)

    exact = torch.autograd.grad(penalty(activated(plain_conv_transpose2d, "silu"), *tensors), tensors)
    assert_equal(torch.autograd.grad(ours(*tensors), tensors), exact)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        assert_equal(torch.autograd.grad(compiled(*tensors), tensors), exact)


@kernels
def test_what_would_be_silently_wrong_raises(device, impl):
    (x, weight, bias), _ = given_geometry("3x3", device=device)
    with pytest.raises(RuntimeError, match=r"conv_transpose2d: torch\.func"):
        torch.func.grad(lambda x: conv_transpose2d(x, weight, bias, impl=impl).sum())(x.detach())
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="conv_transpose2d: forward-mode"):
        conv_transpose2d(x, weight, torch.autograd.forward_ad.make_dual(bias.detach(), bias.detach()), impl=impl)


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 4, 5, 5, dtype=torch.complex64)}, "x: got dtype torch.complex64"),
        (
            {"x": torch.zeros(2, 5, 5, 5)},
            r"x: got 5 channels, expected 4, for weight has shape \(4, 3, 3, 3\)",
        ),
        (
            {"x": torch.zeros(2, 4, 1, 1), "padding": 2},
            "x: got 1x1 pixels, expected enough for an .*it has -1x-1",
        ),
        ({"weight": torch.zeros(4, 3, 0, 3)}, r"weight: got shape \(4, 3, 0, 3\), expected 4 dimensions"),
        ({"groups": 3}, "weight: got shape .*, expected a first size that 3 groups divide"),
        ({"bias": torch.zeros(3)}, r"bias: got shape \(3,\), expected \(6,\)"),
        (
            {"output_padding": 2, "stride": 2},
            "output_padding: got 2, expected less than the stride 2 or",
        ),
        ({"output_padding": -1}, "output_padding: got -1, expected an integer of at least 0"),
        ({"padding": "same"}, "padding: got 'same', expected an integer of at least 0"),
        ({"activation": "swish"}, "activation: got 'swish', expected one of linear, none, relu"),
        ({"impl": "fast"}, "got 'fast', expected one of reference, library"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(2, 4, 5, 5), "weight": torch.zeros(4, 3, 3, 3), "bias": torch.zeros(6), "groups": 2}
    with pytest.raises(InputError, match=message) as error:
        conv_transpose2d(**(arguments | change))
    assert "\n" not in str(error.value)


def test_linear_is_none_and_forced_families_leave_bias_act_alone():
    tensors, arguments = given_geometry("4x4 stride 2")
    plain = conv_transpose2d(*tensors, **arguments)
    assert torch.equal(conv_transpose2d(*tensors, **arguments, activation="linear"), plain)
    with gankernels.use("library"):
        got = conv_transpose2d(*tensors, **arguments, activation="relu")
    torch.testing.assert_close(got, bias_act(plain, activation="relu"))
