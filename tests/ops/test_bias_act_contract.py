"""What bias_act saves, and what it promises torch.library, torch.compile and autograd."""

from __future__ import annotations

import pytest
import torch
from bias_acts import assert_as_reference, inputs, kernels, two_orders
from contracts import assert_one_schema, assert_raises_where_torch_would_be_silently_wrong
from torch import Tensor

from gankernels.ops import bias_act
from gankernels.ops.bias_act import op

# ---- What is saved ----


@kernels
@pytest.mark.parametrize(
    ("keywords", "saved"),
    [
        ({"activation": "linear"}, ""),
        ({"activation": "linear", "clamp": 1.0}, "x"),
        ({"activation": "relu"}, "y"),
        ({"activation": "lrelu"}, "y"),
        ({"activation": "lrelu", "slope": -0.1}, "x"),
        ({"activation": "lrelu", "gain": -1.0}, "x"),
        ({"activation": "lrelu", "clamp": 1.0}, "x"),
        ({"activation": "tanh"}, "x"),
    ],
    ids=str,
)
def test_saves_one_tensor_at_most(device, impl, keywords, saved):
    x, bias = inputs((4, 8, 6, 6), dtype=torch.float32, device=device)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = bias_act(x, bias, impl=impl, **keywords)
    named = {x.data_ptr(): "x", y.data_ptr(): "y"}
    assert "".join(named.get(t.data_ptr(), "?") for t in kept if t.numel() == x.numel()) == saved
    assert_as_reference(
        two_orders(lambda *t: bias_act(*t, impl=impl, **keywords), x, bias),
        two_orders(lambda *t: bias_act(*t, impl="reference", **keywords), x, bias),
        rtol=1e-4,
    )


@kernels
def test_a_changed_output_is_noticed(device, impl):
    x, bias = inputs((2, 3, 4), device=device)
    y = bias_act(x, bias, impl=impl)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    y = bias_act(x, bias, activation="linear", impl=impl)
    y.mul_(2)  # nothing of it is needed
    y.sum().backward()


@kernels
def test_a_frozen_bias_and_a_penalty_on_dbias_alone(device, impl):
    x, bias = inputs((2, 3, 4), device=device)
    y = bias_act(x, bias.detach(), impl=impl)
    y.sum().backward()
    for activation in ("linear", "lrelu", "silu"):
        results = []
        for name in (impl, "reference"):
            y = bias_act(x, bias, activation=activation, impl=name)
            (dbias,) = torch.autograd.grad(y.square().sum(), bias, create_graph=True)
            results.append(torch.autograd.grad(dbias.square().sum(), (x, bias)))
        for got, want in zip(*results, strict=True):
            torch.testing.assert_close(got, want)


# ---- The torch.library contract ----


@kernels
@pytest.mark.parametrize(("activation", "clamp"), [("lrelu", None), ("none", None), ("gelu", 0.7)])
def test_opcheck(device, impl, activation, clamp):
    x, bias = (t.detach().float() for t in inputs((2, 3, 4, 5), device=device, layout="channels_last"))
    dy, smooth = torch.randn_like(x), activation == "gelu"
    ops = getattr(torch.ops, op.NAMESPACES[impl])
    tail = (activation, 0.2, 1.5, clamp, 1)
    grads = [t.clone().requires_grad_() for t in (x, bias)]
    torch.library.opcheck(ops.bias_act_forward.default, (*grads, *tail))
    torch.library.opcheck(ops.bias_act_forward.default, (grads[0], None, *tail))
    saved = grads if activation != "none" else (None, None)
    torch.library.opcheck(ops.bias_act_backward.default, (dy.clone().requires_grad_(), *saved, *tail, True))
    torch.library.opcheck(
        ops.bias_act_backward_backward.default,
        (dy, bias, dy if smooth else None, *(x, bias if smooth else None), *tail, smooth),
    )


def test_native_and_triton_schemas_are_one():
    assert_one_schema(op.SCHEMAS)


@kernels
@pytest.mark.parametrize("activation", ["lrelu", "linear", "gelu"])
def test_compile_fullgraph(device, impl, activation):
    tensors = inputs((2, 3, 4, 4), dtype=torch.float32, device=device, layout="channels_last")

    def step(x, bias):
        return bias_act(x, bias, activation=activation, gain=1.5, impl=impl) * 2

    results = []
    for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
        y = function(*tensors)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@kernels
@pytest.mark.parametrize("activation", ["lrelu", "linear", "gelu"])
def test_a_compiled_penalty_is_right(device, impl, activation):
    """Where a bare autograd.Function is silently wrong: the gradient of a gradient inside one compiled graph."""
    x, bias = inputs((2, 3, 3, 3), device=device)

    def penalty(x, bias):
        y = bias_act(x, bias, activation=activation, impl=impl)
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(x, bias), (x, bias))
    exact = bias_act(x, bias, activation=activation, impl="reference")
    (dx,) = torch.autograd.grad(exact.pow(4).sum(), x, create_graph=True)
    exact = torch.autograd.grad(dx.square().sum(), (x, bias))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = torch.autograd.grad(torch.compile(penalty, backend="aot_eager")(x, bias), (x, bias))
    for compiled, ours, reference in zip(got, want, exact, strict=True):
        torch.testing.assert_close(ours, reference)
        torch.testing.assert_close(compiled, reference)


@kernels
@pytest.mark.parametrize("activation", ["lrelu", "silu"])
def test_what_would_be_silently_wrong_raises(device, impl, activation):
    x, bias = (t.detach() for t in inputs((2, 3, 4, 4), device=device))
    assert_raises_where_torch_would_be_silently_wrong(lambda x: bias_act(x, bias, activation=activation, impl=impl), x)
