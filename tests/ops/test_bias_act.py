"""Every kernel of bias_act, through the public function, against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from bias_acts import NAMES, activations, assert_as_reference, both, clamps, inputs, kernels, layouts, needs_cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import bias_act

# ---- Exactness ----


@kernels
@activations
@clamps
def test_gradcheck_and_gradgradcheck(device, impl, activation, clamp):
    if impl == "triton" and device == "cpu" and clamp and activation not in ("lrelu", "linear", "silu"):
        pytest.skip("the clamp of the other activations is the same code, and the interpreter slow")
    x, bias = inputs((3, 2, 5), device=device)

    def function(x, bias):
        return bias_act(x, bias, activation=activation, gain=1.5, clamp=clamp, impl=impl)

    # The interpreter takes a millisecond a program: random directions instead of every element.
    fast = impl == "triton"
    assert gradcheck(function, (x, bias), fast_mode=fast)
    assert gradgradcheck(function, (x, bias), fast_mode=fast)


# dim, and shape: 1, odd, short planes, long planes, one dimension, many.
SHAPES = [
    (1, (1, 1)),
    (0, (7,)),
    (1, (5, 3)),
    (-1, (2, 3, 4)),
    (1, (2, 3, 4, 4)),
    (1, (3, 5, 7, 9)),
    (2, (2, 3, 4, 2, 3)),
]


@kernels
@layouts
@clamps
@pytest.mark.parametrize("activation", ["lrelu", "linear", "silu"])
@pytest.mark.parametrize(("dim", "shape"), SHAPES, ids=str)
def test_any_dimension_writes_every_element(device, impl, layout, clamp, activation, dim, shape, poisoned):
    if layout == "channels_last" and len(shape) != 4:
        return
    x, bias = inputs(shape, device=device, layout=layout, dim=dim)
    for b in (bias, None):
        assert_as_reference(*both(impl, x, b, dim=dim, activation=activation, clamp=clamp, gain=1.5), rtol=1e-10)


# Past a tile of the CPU kernel, a piece of a plane and a block of columns, and with odd ends of each.
LARGE = [(1, (2, 3, 200, 183)), (1, (3, 7, 150, 61)), (1, (5000, 9)), (1, (40, 5001)), (1, (70, 700, 3)), (0, (70001,))]


@needs_cpu
@layouts
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize(("dim", "shape"), LARGE, ids=str)
def test_cpu_past_a_tile(layout, threads, activation, dim, shape, poisoned):
    if layout == "channels_last" and len(shape) != 4:
        return
    torch.set_num_threads(threads)
    x, bias = inputs(shape, layout=layout, dim=dim)
    assert_as_reference(*both("cpu", x, bias, dim=dim, activation=activation), rtol=1e-10)


@needs_cpu
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    order=st.permutations(range(5)),
    dim=st.integers(0, 4),
    activation=st.sampled_from(NAMES),
    clamp=st.sampled_from([None, 0.7]),
)
def test_cpu_any_shape_and_dense_layout(shape, order, dim, activation, clamp):
    dim %= len(shape)
    x, bias = inputs(shape, dim=dim)
    order = [d for d in order if d < len(shape)]
    inverse = [order.index(d) for d in range(len(shape))]
    x = x.detach().permute(order).contiguous().permute(inverse).requires_grad_()
    assert_as_reference(*both("cpu", x, bias, dim=dim, activation=activation, clamp=clamp), rtol=1e-9)


@kernels
@layouts
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
def test_empty(device, impl, layout, shape):
    x, bias = inputs(shape, device=device, layout=layout)
    for activation in ("lrelu", "gelu"):
        y, dx, dbias, *_ = both(impl, x, bias, activation=activation)[0]
        assert y.shape == dx.shape == shape
        assert not dbias.any()


@kernels
@pytest.mark.parametrize("activation", ["lrelu", "linear", "silu"])
def test_holes_and_foreign_gradients(device, impl, activation):
    x, bias = inputs((4, 6, 8, 10), device=device)
    x = x.detach()[:, ::2, :, 1::2].requires_grad_()
    results = []
    for name in (impl, "reference"):
        y = bias_act(x, bias[::2], activation=activation, impl=name)
        # sum() gives an expanded gradient with zero strides; the other lies in another order than x
        first = torch.autograd.grad(y.sum() + (y * y.permute(1, 0, 2, 3).reshape(y.shape)).sum(), (x, bias))
        results.append([y.detach(), *first])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


# ---- Errors, and the module ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, "x: got dtype torch.int64"),
        ({"x": torch.zeros(())}, r"dim: got 1, expected a dimension of x, which has shape \(\)"),
        ({"dim": 2}, r"dim: got 2, expected a dimension of x, which has shape \(2, 3\)"),
        ({"dim": 0}, r"bias: got shape \(3,\), expected \(2,\)"),
        ({"bias": torch.zeros(1, 3)}, r"bias: got shape \(1, 3\), expected \(3,\)"),
        ({"bias": torch.zeros(3, dtype=torch.int32)}, "bias: got dtype torch.int32"),
        ({"activation": "swish"}, "activation: got 'swish', expected one of linear, none, relu"),
        ({"clamp": -1.0}, "clamp: got -1.0"),
        ({"clamp": float("nan")}, "clamp: got nan"),
        ({"impl": "fast"}, "got 'fast', expected one of reference, library, cpu, triton, cuda"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(2, 3), "bias": torch.zeros(3)} | change
    with pytest.raises(InputError, match=message):
        bias_act(**arguments)


def test_a_forced_implementation_that_cannot_run():
    with pytest.raises(ImplementationUnavailable, match="runs on cuda tensors, not cpu"):
        bias_act(torch.zeros(2, 3), impl="cuda")


def test_module():
    layer = gankernels.nn.BiasAct(3, activation="lrelu", gain=1.5, clamp=2.0)
    assert not layer.bias.any()
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 4, 4) * 3
    want = (F.leaky_relu(x + layer.bias[:, None, None], 0.2) * 1.5).clamp(-2, 2)
    torch.testing.assert_close(layer(x), want)
    assert list(layer.state_dict()) == ["bias"]
    torch.testing.assert_close(bias_act(x, activation="none", impl="reference"), x)
