"""conv2d, and the three registered ops that all convolutions stand on."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, Calls, assert_equal, inputs, plain_conv2d, two_orders
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import verification
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import _convolution_library, conv2d
from gankernels.ops._convolution import SCHEMAS, convolution
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


def stock(x, weight, bias, **arguments):
    return F.conv2d(x, weight, bias, **arguments)


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
        for f in (lambda *t: conv2d(*t, **arguments, impl=impl), lambda *t: stock(*t, **arguments))
    )
    assert_equal(got, want)


@kernels
def test_one_picture_without_a_batch(device, impl):
    x, weight, bias = inputs((3, 6, 7), (4, 3, 3, 3), 4, device=device)
    y = conv2d(x, weight, bias, padding="same", impl=impl)
    assert torch.equal(y, conv2d(x[None], weight, bias, padding=1, impl=impl)[0])
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape


# ---- Layout and precision ----


@kernels
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        ((2, 4, 5, 5), (6, 4, 3, 3)),
        ((2, 1, 5, 5), (6, 1, 3, 3)),
        ((2, 4, 5, 5), (6, 4, 1, 1)),
        ((2, 4, 3, 3), (1, 4, 3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_are_pytorchs(device, impl, x_shape, weight_shape, dtype):
    for layout in LAYOUTS:
        for weight_layout in LAYOUTS:
            x, weight, bias = inputs(
                x_shape,
                weight_shape,
                weight_shape[0],
                dtype=dtype,
                layout=layout,
                weight_layout=weight_layout,
                device=device,
            )
            y, want = conv2d(x, weight, bias, padding=1, impl=impl), F.conv2d(x, weight, bias, padding=1)
            same = (a == b for a, b, size in zip(y.stride(), want.stride(), y.shape, strict=True) if size != 1)
            assert all(same), (layout, weight_layout)
            if layout == weight_layout:
                for t, gradient in zip(
                    (x, weight), torch.autograd.grad(y, (x, weight), torch.ones_like(y)), strict=True
                ):
                    assert gradient.is_contiguous(memory_format=LAYOUTS[layout])
                    assert gradient.shape == t.shape


@kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 8])
def test_error_at_most_twice_eager(device, impl, layout, dtype, groups):
    arguments = {"padding": 1, "groups": groups}
    tensors = inputs((4, 16, 9, 8), (16, 16 // groups, 3, 3), 16, dtype=dtype, device=device, layout=layout)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = two_orders(lambda *t: conv2d(*t, **arguments, impl="reference"), wide)
    eager = two_orders(lambda *t: stock(*t, **arguments), tensors)
    ours = two_orders(lambda *t: conv2d(*t, **arguments, impl=impl), tensors)
    assert (why := verification.beyond_twice_eager(ours, exact, [eager])) is None, why


@layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("hardware", [False, True])
def test_the_routes_of_other_processors(layout, dtype, groups, hardware, monkeypatch):
    monkeypatch.setattr(_convolution_library, "_CPU_HARDWARE", {dtype: hardware})
    tensors = inputs((2, 8, 5, 4), (8, 8 // groups, 3, 3), 8, dtype=dtype, layout=layout)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = two_orders(lambda *t: plain_conv2d(*t, padding=1, groups=groups), wide)
    ours = two_orders(lambda *t: conv2d(*t, padding=1, groups=groups, impl="library"), tensors)
    assert (why := verification.another_function(ours, exact, dtype)) is None, why
    assert all(t.is_contiguous(memory_format=LAYOUTS[layout]) for t in ours if t.dim() == 4)


def test_the_rule():
    plan = _convolution_library.plan
    for groups in (1, 8):
        for last in (False, True):
            for device in ("cpu", "cuda"):
                assert plan(device, torch.float32, groups, last, True) == (torch.float32, last)
                assert plan(device, torch.float64, groups, last, True) == (torch.float64, last)
            for dtype in (torch.bfloat16, torch.float16):
                assert plan("cpu", dtype, groups, last, False) == (torch.float32, last)
                assert plan("cpu", dtype, groups, last, True) == (dtype, last or groups == 1)
    assert _convolution_library.has_hardware("cuda", torch.bfloat16)


@kernels
def test_autocast_casts_as_pytorch_does(device, impl):
    x, weight, bias = inputs((2, 4, 6, 6), (4, 2, 3, 3), 4, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = conv2d(x, weight, bias, groups=2, impl=impl)
        assert y.dtype == torch.bfloat16
        # The backward, and its backward, run under autocast too.
        (dx,) = torch.autograd.grad(y.float().pow(2).sum(), x, create_graph=True)
        dw = torch.autograd.grad(dx.pow(2).sum(), weight)[0]
        assert conv2d(x.double(), weight.double(), groups=2, impl=impl).dtype == torch.float64
    assert (dx.dtype, dw.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), groups=2, impl=impl))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    (dx,) = torch.autograd.grad(conv2d(*wide, groups=2).pow(2).sum(), wide[0], create_graph=True)
    exact = torch.autograd.grad(dx.pow(2).sum(), wide[1])[0]
    assert (dw - exact).norm() < 0.05 * exact.norm()


# ---- What is computed, and what is kept ----


def penalty_calls(function, tensors) -> Calls:
    (dx,) = torch.autograd.grad(function(*tensors).pow(2).sum(), tensors[0], create_graph=True)
    with Calls() as calls:
        torch.autograd.grad(dx.pow(2).sum(), tensors)
    return calls


@pytest.mark.parametrize("groups", [2, 8, 32])
def test_the_second_order_is_one_call_an_operand_for_any_groups(groups):
    tensors = inputs((2, 32, 4, 4), (32, 32 // groups, 3, 3), 32, dtype=torch.float32)
    ours = penalty_calls(lambda *t: conv2d(*t, padding=1, groups=groups, impl="library"), tensors)
    # Of dx = input_gradient(dy, w): ddy and dw; then ddy goes back through y: dx, and dw with db.
    assert {name: count for name, count in ours.counts.items() if "convolution" in name} == {
        "convolution": 1,
        "convolution_input_gradient": 1,
        "convolution_weight_gradient": 2,
    }
    theirs = penalty_calls(lambda *t: stock(*t, padding=1, groups=groups), tensors)
    assert theirs.of("convolution") > groups


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_each_op_is_one_call_of_the_library(dtype):
    x, weight, bias = (t.detach() for t in inputs((2, 8, 4, 4), (8, 1, 3, 3), 8, dtype=dtype))
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 8)
    for run in (
        lambda: _convolution_library.convolution(x, weight, bias, *geometry),
        lambda: _convolution_library.convolution_input_gradient(x, weight, x.shape, *geometry),
        lambda: _convolution_library.convolution_weight_gradient(x, x, weight.shape, True, *geometry),
    ):
        with Calls() as calls:
            run()
        assert calls.of("convolution") == 1, calls.counts


@pytest.mark.parametrize("scope", [contextlib.nullcontext, gankernels.no_weight_gradients])
def test_input_gradients_alone_cost_no_weight_gradient(scope):
    """For convolutions, transposed ones and linear layers; the graph that is made has all of the second order."""
    x, w1, bias = inputs((2, 3, 4, 4), (4, 3, 3, 3), 4)
    w2, w3 = inputs((4, 2, 4, 4), (1, 2 * 8 * 8), 1)[:2]

    def score(conv, transpose):
        h = transpose(F.softplus(conv(x, w1, bias, padding=1)), w2, stride=2, padding=1)
        return F.linear(h.flatten(1), w3).pow(2).sum()

    results = []
    for functions in ((conv2d, gankernels.ops.conv_transpose2d), (F.conv2d, F.conv_transpose2d)):
        y = score(*functions)
        with Calls() as calls, scope():
            (dx,) = torch.autograd.grad(y, x, create_graph=True)
        assert calls.of("weight_gradient") == 0
        assert calls.of("mm") == 1
        results.append([dx.detach(), *torch.autograd.grad(dx.pow(2).sum(), (x, w1, bias, w2, w3))])
    assert_equal(*results)


def test_no_weight_gradients_holds_for_backward_and_nests():
    x, weight, bias = inputs((2, 3, 4, 4), (4, 3, 3, 3), 4)
    y = conv2d(x, weight, bias)
    with gankernels.no_weight_gradients():
        with gankernels.no_weight_gradients():
            pass
        y.sum().backward(retain_graph=True)
    assert x.grad is not None
    assert weight.grad is bias.grad is None
    with pytest.raises(ZeroDivisionError), gankernels.no_weight_gradients():
        raise ZeroDivisionError
    y.sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2), (1, 2)], ids=str)
def test_only_what_is_asked_for(wanted):
    tensors = inputs((2, 3, 4, 4), (4, 3, 3, 3), 4)
    for leaves in (tensors, [2 * t for t in tensors]):
        chosen = [leaves[i] for i in wanted]
        y = conv2d(*leaves, padding=1)
        with Calls() as calls:
            got = torch.autograd.grad(y.pow(2).sum(), chosen)
        assert calls.of("input_gradient") == (0 in wanted)
        assert calls.of("weight_gradient") == (1 in wanted)
        assert_equal(got, torch.autograd.grad(plain_conv2d(*leaves, padding=1).pow(2).sum(), chosen))


@pytest.mark.parametrize(("frozen", "kept"), [(0, {"x"}), (1, {"weight"}), (None, {"x", "weight"})])
def test_a_frozen_operand_keeps_nothing_of_the_other(frozen, kept):
    tensors = inputs((2, 3, 4, 4), (4, 3, 3, 3), 4)
    if frozen is not None:
        tensors[frozen].requires_grad_(False)
    names = {tensors[0].data_ptr(): "x", tensors[1].data_ptr(): "weight"}
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        y = conv2d(*tensors)
    assert {names[pointer] for pointer in saved} == kept
    y.pow(2).sum().backward()


# ---- The torch.library contract ----


@kernels
@layouts
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(device, impl, layout, transposed, dtype):
    ops = torch.ops.gankernels_library
    geometry = ([2, 1], [1, 0], [1, 2], transposed, [int(transposed), 0], 2)
    x, weight, bias = inputs((2, 4, 5, 6), (4, 2, 3, 2), 4, dtype=dtype, device=device, layout=layout)
    dy = torch.randn_like(ops.convolution(x, weight, bias, *geometry)).requires_grad_()
    calls = [
        (ops.convolution, (x, weight, bias, *geometry)),
        (ops.convolution, (x, weight, None, *geometry)),
        (ops.convolution_input_gradient, (dy, weight, list(x.shape), *geometry)),
        (ops.convolution_weight_gradient, (dy, x, list(weight.shape), True, *geometry)),
        (ops.convolution_weight_gradient, (dy, x, list(weight.shape), False, *geometry)),
    ]
    utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
    for op, arguments in calls:
        torch.library.opcheck(op.default, arguments, test_utils=utils)
    if dtype == torch.float32 and layout == "channels_last" and not transposed:
        for op, arguments in (calls[0], calls[3]):
            torch.library.opcheck(op.default, arguments, test_utils="test_aot_dispatch_dynamic", atol=1e-3, rtol=1e-3)


def test_the_schemas_are_registered():
    for name, signature in SCHEMAS.items():
        schema = getattr(torch.ops.gankernels_library, name).default._schema
        assert str(schema) == f"gankernels_library::{name}{signature}"
    assert convolution(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)).shape == (1, 1, 2, 2)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile_fullgraph(device, impl, dtype):
    tensors = inputs((2, 4, 6, 6), (4, 2, 3, 3), 4, dtype=dtype, device=device, layout="channels_last")

    def step(x, weight, bias):
        return conv2d(x, weight, bias, stride=2, padding=1, groups=2, impl=impl) * 2

    results = []
    for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        y = function(*tensors)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), tensors)])
    assert_equal(*results, rtol=1e-6)


@kernels
def test_compile_for_any_size(device, impl):
    compiled = torch.compile(
        lambda *t: conv2d(*t, padding="same", impl=impl), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for size in ((2, 3, 5, 6), (3, 3, 8, 7), (4, 3, 4, 4)):
        tensors = inputs(size, (4, 3, 3, 3), 4, device=device)
        want = plain_conv2d(*tensors, padding=1)
        y = compiled(*tensors)
        got = [y.detach(), *torch.autograd.grad(y.pow(2).sum(), tensors)]
        assert_equal(got, [want.detach(), *torch.autograd.grad(want.pow(2).sum(), tensors)])


@kernels
@pytest.mark.parametrize("scope", [contextlib.nullcontext, gankernels.no_weight_gradients])
def test_a_compiled_penalty_is_right(device, impl, scope):
    tensors = inputs((2, 4, 5, 5), (4, 2, 3, 3), 4, device=device)

    def penalty(conv, *tensors):
        with scope():
            (dx,) = torch.autograd.grad(conv(*tensors, padding=1, groups=2).pow(4).sum(), tensors[0], create_graph=True)
        return dx.square().sum()

    exact = torch.autograd.grad(penalty(plain_conv2d, *tensors), tensors)

    def ours(*tensors):
        return penalty(lambda *t, **k: conv2d(*t, **k, impl=impl), *tensors)

    assert_equal(torch.autograd.grad(ours(*tensors), tensors), exact)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
        assert_equal(torch.autograd.grad(compiled(*tensors), tensors), exact)


@kernels
def test_what_would_be_silently_wrong_raises(device, impl):
    x, weight, bias = (t.detach() for t in inputs((2, 3, 4, 4), (4, 3, 3, 3), 4, device=device))
    with pytest.raises(RuntimeError, match=r"conv2d: torch\.func"):
        torch.func.jvp(lambda x: conv2d(x, weight, bias, impl=impl), (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="conv2d: forward-mode"):
        conv2d(x, torch.autograd.forward_ad.make_dual(weight, weight), impl=impl)
    _, tangent = torch.func.jvp(lambda x: conv2d(x, weight, bias, impl="reference"), (x,), (x,))
    torch.testing.assert_close(tangent, conv2d(x, weight, impl=impl))


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
