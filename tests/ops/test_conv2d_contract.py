"""What conv2d, and the three registered ops of all convolutions, compute, keep and promise torch.library."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, Calls, assert_equal, inputs, plain_conv2d

import gankernels
from gankernels.ops import _convolution_library, conv2d
from gankernels.ops._convolution import SCHEMAS, convolution
from implementations import kernels_of

KERNELS = kernels_of("conv2d")
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


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
    theirs = penalty_calls(lambda *t: F.conv2d(*t, padding=1, groups=groups), tensors)
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
