"""The autograd formulas of the convolution ops, which stand in C++ and, for where there is no extension, in Python."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from convolutions import Calls, assert_equal, inputs, plain_conv2d, two_orders

import gankernels
from gankernels import _native
from gankernels.ops import _convolution, _convolution_library, conv2d
from gankernels.ops._registration import define, register_formulas

GEOMETRY = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}


@pytest.fixture(scope="module")
def python_ops() -> SimpleNamespace:
    """The three ops once more, as they are registered without an extension."""
    namespace = "gankernels_library"
    library = SimpleNamespace(
        **{f"python_{name}": getattr(_convolution_library, name) for name in _convolution.SCHEMAS}
    )
    define(namespace, {f"python_{name}": schema for name, schema in _convolution.SCHEMAS.items()}, lambda: library)
    registered = getattr(torch.ops, namespace)
    ops = SimpleNamespace(**{name: getattr(registered, f"python_{name}") for name in _convolution.SCHEMAS})
    formulas = _convolution._formulas(ops)
    register_formulas("convolution", namespace, {f"python_{name}": formula for name, formula in formulas.items()})
    return ops


@pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.why_no_cpu}")
def test_the_formulas_are_the_native_ones():
    assert "gankernels::convolution" in conv2d(*inputs((1, 2, 4, 4), (3, 2, 3, 3), 3), impl="library").grad_fn.name()


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
def test_those_in_python(python_ops, groups, with_bias):
    x, weight, bias = inputs((2, 4, 7, 6), (6, 4 // groups, 3, 2), 6)

    def ours(x, weight, bias):
        geometry = (*(list(pair) for pair in GEOMETRY.values()), False, [0, 0], groups)
        y = python_ops.convolution(x, weight, bias if with_bias else None, *geometry)
        return y if with_bias else y + 0 * bias[:, None, None]

    def plain(x, weight, bias):
        return plain_conv2d(x, weight, bias if with_bias else 0 * bias, **GEOMETRY, groups=groups)

    assert_equal(two_orders(ours, (x, weight, bias)), two_orders(plain, (x, weight, bias)))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_only_what_is_asked_for(python_ops, native, with_bias):
    x, weight, bias = inputs((2, 4, 5, 5), (4, 4, 3, 3), 4)
    ops = torch.ops.gankernels_library if native else python_ops
    y = ops.convolution(x, weight, bias if with_bias else None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    prefix = "" if native else "python_"

    def called(outputs, wanted, *cotangent):
        with Calls() as calls:
            got = torch.autograd.grad(outputs, wanted, *cotangent, create_graph=True)
        counts = {name: count for name, count in calls.counts.items() if name.startswith(f"{prefix}convolution")}
        return got, {name.removeprefix(f"{prefix}convolution").lstrip("_"): count for name, count in counts.items()}

    dy = torch.randn_like(y).requires_grad_()
    (dx,), calls = called(y, x, dy)
    assert calls == {"input_gradient": 1}
    (dw,), calls = called(y, weight, dy)
    assert calls == {"weight_gradient": 1}
    if with_bias:
        (_, db), calls = called(y, (weight, bias), dy)
        assert calls == {"weight_gradient": 1}
        assert called(db.sum(), dy)[1] == {}
        assert called(y, bias, dy)[1] == {}
    assert called(dx.square().sum(), dy)[1] == {"": 1}
    assert called(dx.square().sum(), weight)[1] == {"weight_gradient": 1}
    assert called(dw.square().sum(), dy)[1] == {"": 1}
    assert called(dw.square().sum(), x)[1] == {"input_gradient": 1}
    with gankernels.no_weight_gradients():
        grads = torch.autograd.grad(y, (x, weight), dy, allow_unused=True, retain_graph=True)
        assert grads[0] is not None
        assert grads[1] is None


@pytest.mark.parametrize("native", [True, False])
def test_a_third_order(python_ops, native):
    ops = torch.ops.gankernels_library if native else python_ops
    x, weight, bias = inputs((1, 2, 4, 3), (2, 2, 2, 2), 2)

    def third(function):
        (dx,) = torch.autograd.grad(function(x, weight, bias).pow(3).sum(), x, create_graph=True)
        (dw,) = torch.autograd.grad(dx.pow(3).sum(), weight, create_graph=True)
        return torch.autograd.grad(dw.pow(2).sum(), (x, weight, bias))

    ours = third(lambda *t: ops.convolution(*t, [1, 1], [0, 0], [1, 1], False, [0, 0], 1))
    assert_equal(ours, third(plain_conv2d))
