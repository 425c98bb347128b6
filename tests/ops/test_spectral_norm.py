"""Every kernel of spectral_norm, through the public function, against the reference, and that against PyTorch."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrizations

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import spectral_norm
from gankernels.ops.spectral_norm import op
from gankernels.verification import beyond_twice_eager
from implementations import kernels_of

KERNELS = kernels_of("spectral_norm")
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
modes = pytest.mark.parametrize(("training", "iterations"), [(True, 1), (True, 3), (False, 1)], ids=str)
needs_cpu = pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")

# shape, dim, layout: linear, convolution, transposed convolution, embedding; one row, one column; odd sizes
WEIGHTS = [
    ((3, 4), 0, "contiguous"),
    ((5, 2, 3, 3), 0, "contiguous"),
    ((5, 4, 3, 3), 0, "channels_last"),
    ((4, 3, 2, 2), 1, "contiguous"),
    ((4, 3, 2, 2), 1, "channels_last"),
    ((1, 7), 0, "contiguous"),
    ((7, 1), 0, "contiguous"),
    ((3, 5), 1, "contiguous"),
    ((4, 5, 3), 2, "contiguous"),
    ((2, 3, 2, 1, 3), 0, "channels_last_3d"),
    ((4, 3, 2, 3), 2, "channels_last"),
    ((1, 1), 0, "contiguous"),
]


class Case:
    """Random weights with their vectors, and fixed random cotangents."""

    def __init__(self, weights=WEIGHTS, *, dtype=torch.float64, device="cpu", out_dtype=None):
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64)

        def laid_out(t: Tensor, layout: str) -> Tensor:
            return t.contiguous(memory_format=getattr(torch, layout if layout != "contiguous" else "contiguous_format"))

        self.dims = [dim for _, dim, _ in weights]
        self.out_dtype = out_dtype
        self.weights = [laid_out(draw(*s).to(device, dtype), layout).requires_grad_() for s, _, layout in weights]
        heights = [shape[dim] for shape, dim, _ in weights]
        widths = [math.prod(shape) // h for (shape, _, _), h in zip(weights, heights, strict=True)]
        self.u, self.v = ([F.normalize(draw(n), dim=0).to(device, dtype) for n in ns] for ns in (heights, widths))
        self.dy = [laid_out(draw(*s).to(device, out_dtype or dtype), layout) for s, _, layout in weights]
        self.a = [draw(*s).to(device, dtype) for s, _, layout in weights]

    def double(self) -> Case:
        exact = Case.__new__(Case)
        exact.dims, exact.out_dtype = self.dims, None
        exact.weights = [w.detach().double().requires_grad_() for w in self.weights]
        exact.u, exact.v, exact.dy, exact.a = ([t.double() for t in ts] for ts in (self.u, self.v, self.dy, self.a))
        return exact

    def vectors(self) -> tuple[list[Tensor], list[Tensor]]:
        return [u.clone() for u in self.u], [v.clone() for v in self.v]

    def run(self, impl: str | None, **keywords) -> list[Tensor]:
        """Results, new u and v, gradients, and the vector-Jacobian product of the gradients."""
        u, v = self.vectors()
        y = spectral_norm(self.weights, u, v, dims=self.dims, out_dtype=self.out_dtype, impl=impl, **keywords)
        dy = [t.clone().requires_grad_() for t in self.dy]
        first = torch.autograd.grad(y, self.weights, dy, create_graph=True)
        second = torch.autograd.grad(first, [*dy, *self.weights], self.a)
        return [*y, *u, *v, *first, *second]

    def torch(self) -> list[Tensor]:
        """The same by PyTorch's parametrization."""
        y, u, v = [], [], []
        for weight, dim, u_, v_ in zip(self.weights, self.dims, *self.vectors(), strict=True):
            norm = parametrizations._SpectralNorm(weight.detach(), dim=dim)
            norm._u, norm._v = u_, v_
            y.append(norm(weight).to(self.out_dtype or weight.dtype))
            u.append(norm._u)
            v.append(norm._v)
        dy = [t.clone().requires_grad_() for t in self.dy]
        first = torch.autograd.grad(y, self.weights, dy, create_graph=True)
        second = torch.autograd.grad(first, [*dy, *self.weights], self.a)
        return [*y, *u, *v, *first, *second]


def assert_equal(actual, expected, rtol: float = 1e-10) -> None:
    for i, (got, want) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=rtol * max(want.abs().amax().item(), 1.0), msg=lambda m, i=i: f"{i}: {m}"
        )


# ---- Exactness ----


def test_reference_is_pytorchs_parametrization():
    case = Case()
    assert_equal(case.run("reference"), case.torch())


@kernels
@modes
def test_two_orders_and_vectors_as_reference(device, impl, training, iterations, poisoned):
    case = Case(device=device)
    keywords = {"training": training, "n_power_iterations": iterations}
    got, want = case.run(impl, **keywords), case.run("reference", **keywords)
    assert_equal(got, want)
    for y, weight, dim in zip(got, case.weights, case.dims, strict=False):
        assert y.stride() == op.empty_like(weight, dim).stride()


@kernels
def test_gradcheck_and_gradgradcheck(device, impl):
    case = Case(WEIGHTS[:5], device=device)

    def function(*weights):
        u, v = case.vectors()
        # In training u and v depend on the weights, and are constants by definition: no finite difference is right.
        return tuple(spectral_norm(weights, u, v, dims=case.dims, training=False, impl=impl))

    fast = impl == "triton"
    assert gradcheck(function, case.weights, fast_mode=fast)
    assert gradgradcheck(function, case.weights, fast_mode=fast)


# Past a band of the CPU's (2^19 numbers), rows past its 64 KiB, and runs that end inside a period.
LARGE = [
    ((2300, 300), 0, "contiguous"),
    ((3, 200_001), 0, "contiguous"),
    ((48, 160, 9, 9), 0, "channels_last"),
    ((301, 67, 5, 6), 1, "contiguous"),
    ((301, 67, 5, 6), 1, "channels_last"),
    ((1100, 1000), 1, "contiguous"),
]


@needs_cpu
@pytest.mark.parametrize("threads", [1, 3])
def test_cpu_past_a_band(threads, poisoned):
    torch.set_num_threads(threads)
    case = Case(LARGE)
    assert_equal(case.run("cpu"), case.run("reference"))


@needs_cpu
def test_cpu_same_bits_for_every_number_of_threads():
    case = Case([*LARGE[:4], *WEIGHTS], dtype=torch.float32)
    torch.set_num_threads(1)
    one = case.run("cpu")
    torch.set_num_threads(3)
    assert all(torch.equal(a, b) for a, b in zip(one, case.run("cpu"), strict=True))


@needs_cpu
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=4),
    dim=st.integers(0, 1),
    layout=st.sampled_from(["contiguous", "channels_last"]),
    training=st.booleans(),
)
def test_cpu_any_shape(shape, dim, layout, training):
    case = Case([(tuple(shape), dim, layout if len(shape) == 4 else "contiguous")])
    assert_equal(case.run("cpu", training=training), case.run("reference", training=training), rtol=1e-8)


@kernels
def test_strided_weights_and_gradients(device, impl):
    base = torch.randn(8, 6, 4, 10, dtype=torch.float64, device=device)
    weights = [base[:, ::2, :, 1::2].requires_grad_(), base.permute(3, 1, 0, 2)[::2].detach().requires_grad_()]
    heights = [w.shape[0] for w in weights]
    u = [torch.randn(h, dtype=torch.float64, device=device) for h in heights]
    v = [torch.randn(w[0].numel(), dtype=torch.float64, device=device) for w in weights]
    results = []
    for name in (impl, "reference"):
        y = spectral_norm(weights, [t.clone() for t in u], [t.clone() for t in v], impl=name)
        # sum() gives an expanded gradient with zero strides
        gradients = torch.autograd.grad(sum(t.sum() + t.square().sum() for t in y), weights)
        results.append([*y, *gradients])
    assert_equal(*results)


@kernels
@pytest.mark.parametrize("scale", [0.0, 1e-8], ids=["zero", "below eps"])
def test_norms_below_eps(device, impl, scale):
    """|W v| and |W^T u| below eps: the quotients and sigma are not those of unit vectors, in both."""
    case = Case(device=device)
    for weight in case.weights:
        weight.detach().mul_(scale)
    for keywords in ({"eps": 1e-3}, {"eps": 1e-3, "n_power_iterations": 2}):
        u, v = case.vectors()
        u_, v_ = case.vectors()
        got = spectral_norm(case.weights, u, v, dims=case.dims, impl=impl, **keywords)
        want = spectral_norm(case.weights, u_, v_, dims=case.dims, impl="reference", **keywords)
        for a, b in zip([*got, *u, *v], [*want, *u_, *v_], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=0, equal_nan=True)


# ---- Precision ----


@kernels
@pytest.mark.parametrize(
    ("dtype", "out_dtype"),
    [
        (torch.float32, None),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, None),
        (torch.float16, None),
    ],
    ids=str,
)
def test_error_at_most_twice_pytorchs(device, impl, dtype, out_dtype):
    if impl == "triton" and device == "cpu" and torch.bfloat16 in (dtype, out_dtype):
        pytest.skip("Triton's interpreter truncates to bf16 where a GPU rounds")
    # Alike shapes, so that the largest errors of both sides are over many numbers.
    shape = ((24, 17, 3, 3), 0, "contiguous")
    case = Case([shape, (shape[0], 0, "channels_last"), (shape[0], 1, "contiguous")], device=device, dtype=dtype)
    case.out_dtype = out_dtype
    case.dy = [t.to(out_dtype or dtype) for t in case.dy]
    exact, ours, theirs = case.double().run("reference"), case.run(impl), case.torch()

    def joined(results: list[Tensor]) -> list[Tensor]:
        # y; u and v; first and second order; each over all weights. u and v are in the weights' dtype.
        parts = [results[:3], results[3:9], results[9:12], results[12:15], results[15:18]]
        return [torch.cat([t.double().flatten() for t in part]) for part in parts]

    assert beyond_twice_eager(joined(ours), joined(exact), [joined(theirs)]) is None


@kernels
def test_other_out_dtypes(device, impl):
    case = Case(WEIGHTS[:3], dtype=torch.bfloat16, device=device)
    for out_dtype in (torch.float32, torch.float64, torch.float16):
        y = spectral_norm(case.weights, *case.vectors(), out_dtype=out_dtype, impl=impl)
        assert {t.dtype for t in y} == {out_dtype}
        gradients = torch.autograd.grad(sum(t.double().square().sum() for t in y), case.weights)
        assert {t.dtype for t in gradients} == {torch.bfloat16}


@kernels
def test_not_finite_stays_where_the_reference_has_it(device, impl):
    for value in (math.nan, math.inf, -math.inf):
        case = Case(WEIGHTS[:5], dtype=torch.float32, device=device)
        for weight in case.weights[::2]:
            weight.detach().view(-1)[1:2].fill_(value) if weight.is_contiguous() else weight.detach()[0, 1].fill_(value)
        results = []
        for name in (impl, "reference"):
            u, v = case.vectors()
            y = spectral_norm(case.weights, u, v, dims=case.dims, impl=name)
            results.append([*y, *u, *v, *torch.autograd.grad(sum(t.sum() for t in y), case.weights)])
        for got, want in zip(*results, strict=True):
            assert torch.equal(got.isfinite(), want.isfinite())


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    """The kernels of a lesser processor, in a process that is told to use them."""
    code = "import test_spectral_norm as t; c = t.Case(); t.assert_equal(c.run('cpu'), c.run('reference'))"
    environment = os.environ | {"GANKERNELS_CPU_ISA": isa, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


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
