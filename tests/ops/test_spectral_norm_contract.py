"""What spectral_norm promises torch.library, torch.compile, autograd, and who gives it what it cannot take."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from spectral_norms import WEIGHTS, Case, assert_equal, kernels
from torch import nn

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import spectral_norm

# ---- What torch asks of an op ----


@kernels
def test_opcheck(device, impl):
    family = getattr(torch.ops, gankernels.ops._registration.NAMESPACES[impl])
    case = Case(WEIGHTS[:4], dtype=torch.float32, device=device)
    sigma = torch.rand(4, device=device) + 0.5
    u, v = case.vectors()
    weights, dy = case.weights, [t.requires_grad_() for t in case.dy]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    checks = {"test_utils": tests}
    torch.library.opcheck(family.spectral_norm_forward, (weights, u, v, case.dims, 1, 1e-12, torch.float32), **checks)
    torch.library.opcheck(family.spectral_norm_backward, (dy, weights, u, v, sigma, case.dims), **checks)
    second = (case.a, dy, weights, u, v, sigma, case.dims)
    torch.library.opcheck(family.spectral_norm_backward_backward, second, test_utils=tests[:3])


@kernels
def test_compiles_whole_with_updates(device, impl):
    case = Case(WEIGHTS[:4], device=device)

    def loss(weights, u, v):
        y = spectral_norm(weights, u, v, dims=case.dims, impl=impl)
        return sum(t.square().sum() for t in y)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        u, v = case.vectors()
        value = function(case.weights, u, v)
        results.append([value.detach(), *torch.autograd.grad(value, case.weights), *u, *v])
    assert_equal(*results)


@kernels
def test_compiled_second_order_is_the_eager_one(device, impl):
    case = Case(WEIGHTS[:4], device=device)
    x = torch.randn(6, 4, dtype=torch.float64, device=device, requires_grad=True)

    def penalty(weight, x, u, v):
        (w,) = spectral_norm([weight], [u], [v], training=False, impl=impl)
        (gradient,) = torch.autograd.grad(F.linear(x, w).tanh().sum() + w.pow(3).sum(), x, create_graph=True)
        (of_weight,) = torch.autograd.grad(w.pow(3).sum(), weight, create_graph=True)
        return gradient.square().sum() + of_weight.square().sum()

    arguments = (case.weights[0], x, case.u[0], case.v[0])
    eager = torch.autograd.grad(penalty(*arguments), case.weights[0])
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
        assert_equal(torch.autograd.grad(compiled(*arguments), case.weights[0]), eager)


@kernels
def test_only_what_is_asked_for_is_differentiated(device, impl):
    case = Case(WEIGHTS[:4], device=device)
    case.weights[2].requires_grad_(False)
    y = spectral_norm(case.weights, *case.vectors(), dims=case.dims, impl=impl)
    assert [t.requires_grad for t in y] == [True, True, False, True]
    gradients = torch.autograd.grad(
        y[1].square().sum() + y[3].sum(), [case.weights[i] for i in (0, 1, 3)], allow_unused=True
    )
    reference_y = spectral_norm(case.weights, *case.vectors(), dims=case.dims, impl="reference")
    want = torch.autograd.grad(reference_y[1].square().sum() + reference_y[3].sum(), [case.weights[i] for i in (1, 3)])
    assert gradients[0] is None
    assert_equal(gradients[1:], want)


@kernels
def test_a_later_forward_leaves_an_earlier_graph_alone(device, impl):
    """D(real) - D(fake): u and v move on between the forward and its backward."""
    case = Case(WEIGHTS[:4], device=device)
    results = []
    for name in (impl, "reference"):
        u, v = case.vectors()
        first = spectral_norm(case.weights, u, v, dims=case.dims, impl=name)
        second = spectral_norm(case.weights, u, v, dims=case.dims, impl=name)
        value = sum((a * b.square()).sum() for a, b in zip(first, second, strict=True))
        results.append(torch.autograd.grad(value, case.weights))
    assert_equal(*results)


@kernels
def test_refusals(device, impl):
    case = Case(WEIGHTS[:1], device=device)
    (y,) = spectral_norm(case.weights, *case.vectors(), impl=impl)
    dy = torch.ones_like(y).requires_grad_()
    (first,) = torch.autograd.grad(y, case.weights, dy, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), case.weights, create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        torch.autograd.grad(second.sum(), case.weights)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda w: spectral_norm([w], *case.vectors(), impl=impl)[0].sum())(case.weights[0].detach())


# ---- Bad input ----


def test_nothing_to_do():
    assert spectral_norm([], [], []) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": [torch.randn(3)]}, r"weights\[0\]: got shape \(3,\)"),
        ({"weights": [torch.randn(0, 3)]}, r"weights\[0\]: got shape \(0, 3\)"),
        ({"weights": [torch.randn(3, 4, dtype=torch.complex64)]}, r"weights\[0\]: got dtype torch.complex64"),
        ({"weights": [torch.eye(3).to_sparse()]}, r"weights\[0\]: got layout torch.sparse_coo"),
        ({"weights": [torch.randn(3, 4)] * 2}, "u: got 1, expected 2"),
        ({"u": [torch.randn(4)]}, r"u\[0\]: got shape \(4,\), expected \(3,\)"),
        ({"v": [torch.ones(4, dtype=torch.int64)]}, r"v\[0\]: got dtype torch.int64"),
        ({"v": [torch.randn(4, requires_grad=True)]}, r"v\[0\]: got a tensor that requires grad"),
        ({"dims": [2]}, r"dims\[0\]: got 2"),
        ({"dims": []}, "dims: got 0, expected 1"),
        ({"n_power_iterations": 0}, "n_power_iterations: got 0"),
        ({"out_dtype": torch.int32}, "out_dtype: got torch.int32"),
        ({"impl": "fast"}, "'fast'"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {"weights": [torch.randn(3, 4)], "u": [torch.randn(3)], "v": [torch.randn(4)]} | change
    with pytest.raises(InputError, match=message) as error:
        spectral_norm(**arguments)
    assert "\n" not in str(error.value)


def test_mixed_dtypes_are_refused():
    with pytest.raises(InputError, match=r"weights\[1\]: got torch.float64 on cpu, expected torch.float32 on cpu"):
        spectral_norm(
            [torch.randn(2, 2), torch.randn(2, 2).double()], [torch.randn(2)] * 2, [torch.randn(2)] * 2, impl=None
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_implementation_that_cannot_run_says_why():
    with pytest.raises(ImplementationUnavailable, match="runs on cuda tensors"):
        spectral_norm([nn.Linear(2, 2).weight], [torch.randn(2)], [torch.randn(2)], impl="cuda")
