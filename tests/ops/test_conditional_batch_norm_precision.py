"""Rounding, NaN and infinity, instruction sets and the order of sums in every kernel of conditional_batch_norm."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from batch_norms import (
    KERNELS,
    LAYOUTS,
    activations,
    eager,
    inputs,
    kernels,
    layouts,
    needs_cpu,
    running,
    statistics,
    two_orders,
)
from forked import on_lesser_processor

from gankernels.ops import conditional_batch_norm
from gankernels.verification import errors
from implementations import crossed


@crossed(KERNELS, layout=LAYOUTS, dtype=(torch.float32, torch.bfloat16, torch.float16), mean=(0.0, 3.0))
def test_error_at_most_twice_eager(device, impl, layout, dtype, mean):
    # Enough sums that the largest error of either side is no accident.
    shape = (8, 24, 9, 9)
    tensors = inputs(shape, dtype=dtype, device=device, layout=layout, mean=mean)
    exact = [t.detach().double().requires_grad_() for t in tensors]
    want = two_orders(lambda *t: conditional_batch_norm(*t, activation="relu", impl="reference"), *exact)
    ours = two_orders(lambda *t: conditional_batch_norm(*t, activation="relu", impl=impl), *tensors)
    theirs = two_orders(eager, *tensors)
    for name in want:
        error = (ours[name].double() - want[name]).abs()
        allowed = (theirs[name].double() - want[name]).abs()
        assert error.amax() <= 2 * allowed.amax(), name
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt(), name


@needs_cpu
@layouts
def test_error_where_a_channel_has_few_pixels(layout):
    """Chance has a large part in the largest of 1536 channels' errors: it takes many draws to see the kernel's.

    With rstd and the middle steps in fp32 one of these draws broke the rule, and on the whole the kernel was no better
    than eager.
    """
    ratios = []
    for seed in range(40):
        torch.manual_seed(seed)
        x, gain, bias = inputs((1, 1536, 4, 4), dtype=torch.float32)
        dy = torch.randn_like(x)

        def penalised(function, dtype=torch.float32, layout="contiguous", given=(x, gain, bias, dy)):
            formats = (LAYOUTS[layout], torch.contiguous_format, torch.contiguous_format, LAYOUTS[layout])
            *leaves, dy = (
                t.detach().to(dtype).clone(memory_format=f).requires_grad_()
                for t, f in zip(given, formats, strict=True)
            )
            (dx,) = torch.autograd.grad(function(*leaves), leaves[0], dy, create_graph=True)
            return [dx, *torch.autograd.grad(dx.square().sum(), leaves[:2])]

        def ours(*t, impl="cpu"):
            return conditional_batch_norm(*t, activation="relu", impl=impl)

        want = penalised(lambda *t: ours(*t, impl="reference"), torch.float64)
        got = [errors(t, w) for t, w in zip(penalised(ours, layout=layout), want, strict=True)]
        theirs = [[errors(t, w) for t, w in zip(penalised(eager, layout=name), want, strict=True)] for name in LAYOUTS]
        allowed = torch.tensor(theirs).amax(0)  # the worse layout's, of each result
        ratios.append(torch.tensor(got) / allowed)
    largest, rms = torch.stack(ratios).unbind(2)
    assert (largest <= 2).all()
    assert (rms.median(0).values <= 0.95).all()


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_larger_than_a_cache(device, impl, dtype):
    """Past 16 MiB the CPU kernels store past the caches; 40 channels are no whole number of its steps in bf16."""
    if impl == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter would take minutes")
    tensors = inputs((16 if dtype == torch.float32 else 32, 40, 82, 82), dtype=dtype, device=device)
    dy = torch.randn_like(tensors[0])
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y = conditional_batch_norm(*exact, activation="lrelu", impl="reference")
    want = [y.detach(), *torch.autograd.grad(y, exact, dy.double())]
    # Within rounding of the kink either side is right.
    counts = want[0].abs() > 1e-3
    for layout, memory_format in LAYOUTS.items():
        x, gain, bias = (t.detach() for t in tensors)
        leaves = [t.requires_grad_() for t in (x.contiguous(memory_format=memory_format), gain, bias)]
        y = conditional_batch_norm(*leaves, activation="lrelu", impl=impl)
        got = [y.detach(), *torch.autograd.grad(y, leaves, dy.contiguous(memory_format=memory_format))]
        for place, (ours, theirs) in enumerate(zip(got, want, strict=True)):
            ours, rtol, atol = ours.double(), 1e-2, 1.0
            if place < 2:
                ours, theirs, rtol, atol = ours[counts], theirs[counts], 2 * torch.finfo(dtype).eps, 1e-5
            torch.testing.assert_close(
                ours, theirs, rtol=rtol, atol=atol, msg=lambda text, name=layout: f"{name}: {text}"
            )


@kernels
@layouts
def test_a_mean_far_from_zero(device, impl, layout):
    """mean / std = 1e4: E[x^2] - E[x]^2 in fp32 would have no correct digit."""
    x, gain, bias = inputs((4, 8, 9, 9), dtype=torch.float32, device=device, layout=layout, mean=1e4)
    got = conditional_batch_norm(x, gain, bias, impl=impl)
    want = conditional_batch_norm(x.double(), gain.double(), bias.double(), impl="reference")
    theirs = F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None]
    assert (got - want).abs().amax() <= 2 * (theirs - want).abs().amax()


@kernels
def test_gain_and_bias_of_another_dtype(device, impl):
    x, gain, bias = inputs((3, 8, 4, 4), dtype=torch.bfloat16, device=device)
    gain, bias = (t.detach().float().requires_grad_() for t in (gain, bias))
    y = conditional_batch_norm(x, gain, bias, impl=impl)
    gradients = torch.autograd.grad(y.float().square().sum(), (x, gain, bias))
    assert [t.dtype for t in (y, *gradients)] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]


@kernels
@layouts
@statistics
@activations
def test_nan_and_infinity_stay_where_the_reference_has_them(device, impl, layout, training, activation):
    x, gain, bias = inputs((2, 5, 4, 4), dtype=torch.float32, device=device, layout=layout)
    with torch.no_grad():
        x[0, 1, 2, 3], x[1, 2, 0, 0], x[0, 3, 1, 1] = float("nan"), float("inf"), -float("inf")
        gain[1, 4] = float("inf")
    keywords = running(5, dtype=torch.float32, device=device) | {"training": training, "momentum": 0.0}
    results = []
    for name in (impl, "reference"):
        y = conditional_batch_norm(x, gain, bias, activation=activation, impl=name, **keywords)
        results.append([y, *torch.autograd.grad(y.sum(), (x, gain, bias))])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got.isfinite(), want.isfinite())


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    on_lesser_processor(isa, _equal_to_reference)


def _equal_to_reference() -> None:
    norm = conditional_batch_norm
    dtypes = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
    shapes = ((2, 3, 5, 7), (2, 32, 9, 9))
    for (dtype, tolerance), layout, shape in itertools.product(dtypes.items(), LAYOUTS.values(), shapes):
        x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
        gain, bias = torch.randn(shape[:2]), torch.randn(shape[:2])
        got, want = (norm(x, gain, bias, activation="relu", impl=impl) for impl in ("cpu", "reference"))
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    # Every half-precision value must come through the conversions unharmed, subnormals and infinities too.
    for dtype in (torch.bfloat16, torch.float16):
        x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(2, 1, 128, 256)
        ones, zeros, no = torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(1)
        y = norm(x, ones, zeros, running_mean=no, running_var=torch.ones(1), training=False, eps=0.0, impl="cpu")
        assert torch.equal(y.isnan(), x.isnan()), dtype
        assert torch.equal(y.nan_to_num(7), x.nan_to_num(7)), dtype


@kernels
def test_same_bits_every_time(device, impl):
    if impl == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter runs one program after the other")
    tensors = inputs((6, 24, 9, 9), dtype=torch.float32, device=device, layout="channels_last")
    runs = []
    for threads in (1, 3, 1):
        torch.set_num_threads(threads)
        runs.append(two_orders(lambda *t: conditional_batch_norm(*t, activation="relu", impl=impl), *tensors))
    for name, first in runs[0].items():
        assert torch.equal(first, runs[1][name]), name
        assert torch.equal(first, runs[2][name]), name
