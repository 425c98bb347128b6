"""Statistics of each sample: conditional instance normalisation, in both layouts, against the reference."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from gankernels.errors import InputError
from gankernels.ops import conditional_batch_norm
from implementations import crossed, kernels_of

KERNELS = kernels_of("conditional_batch_norm")
ON_CPU = [p for p in KERNELS if p.values[1] == "cpu"]
# Triton's interpreter takes a millisecond a program: it has the tests with few of them, here and in
# test_conditional_batch_norm_triton.py.
COMPILED = [p for p in KERNELS if p.values != ("cpu", "triton")]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
on_cpu = pytest.mark.skipif(not ON_CPU, reason="the extension is not built")


def inputs(shape: tuple[int, ...], *, dtype=torch.float64, device="cpu", layout="channels_last", mean=0.0):
    """x, whose samples lie ever farther from zero, gain and bias."""
    n, c = shape[:2]
    x = torch.randn(shape, dtype=torch.float64) + mean * torch.arange(n).view(n, 1, 1, 1)
    gain, bias = (torch.randn(n, c, dtype=torch.float64) for _ in range(2))
    x = x.to(device, dtype).contiguous(memory_format=LAYOUTS[layout])
    return tuple(t.to(device, dtype).requires_grad_() for t in (x, gain, bias))


def two_orders(function, *tensors: Tensor) -> dict[str, Tensor]:
    """Output, gradients, and the vector-Jacobian product of the gradients, all with fixed random cotangents."""
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        return torch.empty_like(t).copy_(torch.randn(t.shape, generator=generator, dtype=torch.float64))

    y = function(*tensors)
    dy = like(y).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, *tensors[:2]), [like(t) for t in first])
    return dict(zip(["y", "dx", "dgain", "dbias", "ddy", "dx2", "dgain2"], (y, *first, *second), strict=True))


def run(impl: str, tensors: tuple[Tensor, ...], **keywords) -> dict[str, Tensor]:
    keywords = {"activation": "lrelu"} | keywords
    return two_orders(lambda *t: conditional_batch_norm(*t, per_sample=True, impl=impl, **keywords), *tensors)


def assert_as_reference(impl: str, tensors: tuple[Tensor, ...], **keywords) -> None:
    got = run(impl, tensors, **keywords)
    for name, want in run("reference", tensors, **keywords).items():
        assert got[name].stride() == want.stride() or name not in ("y", "dx"), name
        torch.testing.assert_close(got[name], want, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@crossed(COMPILED, layout=LAYOUTS, activation=("none", "lrelu"), shape=((3, 2, 2, 3), (1, 2, 2, 3)))
def test_gradcheck_and_gradgradcheck(device, impl, layout, activation, shape):
    tensors = inputs(shape, device=device, layout=layout)

    def function(*tensors):
        return conditional_batch_norm(*tensors, activation=activation, per_sample=True, impl=impl)

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize(("device", "impl"), [p for p in KERNELS if p not in COMPILED])
def test_gradgradcheck_interpreted(device, impl):
    def function(*tensors):
        return conditional_batch_norm(*tensors, activation="lrelu", per_sample=True, impl=impl)

    assert gradgradcheck(function, inputs((2, 2, 1, 3), device=device), fast_mode=True)


@pytest.mark.parametrize(("device", "impl"), COMPILED)
@layouts
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 1, 3, 5), (3, 33, 1, 2), (5, 17, 1, 3)], ids=str)
def test_odd_shapes_write_every_element(device, impl, layout, shape, poisoned):
    assert_as_reference(impl, inputs(shape, device=device, layout=layout, mean=100.0))


@on_cpu
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", [(2, 192, 33, 31), (4, 7, 150, 61), (70, 12, 4, 4)], ids=str)
def test_cpu_past_a_tile(shape, threads, poisoned):
    """Fewer samples than threads, and more; several tiles a sample, and one."""
    torch.set_num_threads(threads)
    assert_as_reference("cpu", inputs(shape))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 9), st.integers(2, 9)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    activation=st.sampled_from(("none", "relu", "lrelu")),
)
@on_cpu
def test_cpu_any_shape(shape, layout, activation):
    assert_as_reference("cpu", inputs(shape, layout=layout), activation=activation)


@kernels
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
@layouts
def test_empty(device, impl, shape, layout):
    x, gain, bias = inputs(shape, device=device, layout=layout)
    mean, var = torch.zeros(shape[1], device=device), torch.ones(shape[1], device=device)
    y = conditional_batch_norm(x, gain, bias, running_mean=mean, running_var=var, per_sample=True, impl=impl)
    assert y.shape == shape
    assert not mean.any()
    for got in torch.autograd.grad(y.sum(), (x, gain, bias)):
        assert not got.any()


@crossed(COMPILED, layout=LAYOUTS, dtype=(torch.float32, torch.bfloat16, torch.float16), mean=(0.0, 3.0))
def test_error_at_most_twice_eager(device, impl, layout, dtype, mean):
    tensors = inputs((6, 24, 9, 9), dtype=dtype, device=device, layout=layout, mean=mean)

    def eager(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return F.leaky_relu(F.instance_norm(x) * gain[:, :, None, None] + bias[:, :, None, None], 0.2)

    want = run("reference", tuple(t.detach().double().requires_grad_() for t in tensors))
    ours, theirs = run(impl, tensors), two_orders(eager, *tensors)
    for name in want:
        error = (ours[name].double() - want[name]).abs()
        allowed = (theirs[name].double() - want[name]).abs()
        assert error.amax() <= 2 * allowed.amax(), name
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt(), name


@kernels
def test_nan_stays_in_its_plane(device, impl):
    x, gain, bias = inputs((3, 5, 2, 3), dtype=torch.float32, device=device)
    with torch.no_grad():
        x[1, 2, 0, 1], x[2, 4, 1, 0] = float("nan"), float("inf")
    results = run(impl, (x, gain, bias))
    for name in ("y", "dx", "ddy", "dx2"):
        spoiled = ~results[name].isfinite().all((2, 3))
        assert spoiled.nonzero().tolist() == [[1, 2], [2, 4]], name


@on_cpu
def test_same_bits_for_every_number_of_threads():
    tensors = inputs((5, 24, 40, 40), dtype=torch.float32)
    runs = []
    for threads in (1, 3, 6):
        torch.set_num_threads(threads)
        runs.append(run("cpu", tensors))
    for name, first in runs[0].items():
        assert all(torch.equal(first, other[name]) for other in runs[1:]), name


@kernels
def test_class_tables(device, impl):
    """Dumoulin et al., equation 5: conditional instance normalisation by class."""
    x, gain, bias = inputs((4, 3, 2, 3), device=device)
    labels = torch.tensor([2, 0, 2, 3], device=device)
    expanded = conditional_batch_norm(x, gain[labels], bias[labels], per_sample=True, impl="reference")
    y = conditional_batch_norm(x, gain, bias, labels=labels, per_sample=True, impl=impl)
    torch.testing.assert_close(y, expanded)
    results = [torch.autograd.grad(t.square().sum(), (x, gain, bias)) for t in (y, expanded)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@kernels
@layouts
def test_running_statistics_as_torchs(device, impl, layout):
    x, gain, bias = inputs((3, 4, 5, 3), dtype=torch.float32, device=device, layout=layout, mean=2.0)
    running = [(torch.zeros(4, device=device), torch.ones(4, device=device)) for _ in range(2)]
    with torch.no_grad():
        names = dict(zip(("running_mean", "running_var"), running[0], strict=True))
        conditional_batch_norm(x, gain, bias, momentum=0.3, per_sample=True, impl=impl, **names)
        F.instance_norm(x, *running[1], momentum=0.3)
    for got, want in zip(*running, strict=True):
        torch.testing.assert_close(got, want)


@kernels
def test_compile_fullgraph_and_a_compiled_penalty(device, impl):
    x, gain, bias = inputs((2, 3, 3, 3), device=device)

    def penalty(x, gain, bias):
        y = conditional_batch_norm(x, gain, bias, activation="lrelu", per_sample=True, impl=impl)
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(x, gain, bias), (x, gain, bias))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(penalty, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(x, gain, bias), (x, gain, bias))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@kernels
@layouts
def test_saves_x_and_nothing_else_with_pixels(device, impl, layout):
    x, gain, bias = inputs((4, 8, 16, 16), dtype=torch.float32, device=device, layout=layout)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conditional_batch_norm(x, gain, bias, per_sample=True, impl=impl)
    assert sum(t.numel() for t in saved if t.data_ptr() != x.data_ptr()) == 4 * gain.numel()


def test_bad_input():
    x, gain, bias = inputs((2, 3, 1, 1))
    with pytest.raises(InputError, match="more than one pixel when training with per_sample"):
        conditional_batch_norm(x, gain, bias, per_sample=True)
