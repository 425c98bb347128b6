"""Every kernel of spectral_norm, through the public function, against the reference, and that against PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
from forked import on_lesser_processor
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_norms import WEIGHTS, Case, assert_equal, kernels, needs_cpu
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gankernels.ops import spectral_norm
from gankernels.ops.spectral_norm import op
from gankernels.verification import beyond_twice_eager

modes = pytest.mark.parametrize(("training", "iterations"), [(True, 1), (True, 3), (False, 1)], ids=str)


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
    on_lesser_processor(isa, _equal_to_reference)


def _equal_to_reference() -> None:
    case = Case()
    assert_equal(case.run("cpu"), case.run("reference"))
