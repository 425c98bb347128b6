"""Every kernel of conditional_batch_norm, through the public function, against the reference."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import conditional_batch_norm
from gankernels.ops._registration import families
from gankernels.ops.conditional_batch_norm import op, synchronized
from gankernels.verification import errors
from implementations import crossed, kernels_of

KERNELS = kernels_of("conditional_batch_norm")
ACTIVATIONS = ("none", "relu", "lrelu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
statistics = pytest.mark.parametrize("training", [True, False], ids=["batch", "frozen"])


def inputs(shape: tuple[int, ...], *, dtype=torch.float64, device="cpu", layout="contiguous", mean=0.0):
    n, c = shape[:2]
    x = (torch.randn(shape, dtype=torch.float64) + mean).to(device, dtype)
    x = x.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    gain = (1 + 0.5 * torch.randn(n, c, dtype=torch.float64)).to(device, dtype).requires_grad_()
    bias = torch.randn(n, c, dtype=torch.float64).to(device, dtype).requires_grad_()
    return x, gain, bias


def running(c: int, *, dtype=torch.float64, device="cpu") -> dict[str, Tensor]:
    return {
        "running_mean": torch.randn(c, dtype=torch.float64).to(device, dtype),
        "running_var": (torch.rand(c, dtype=torch.float64) + 0.5).to(device, dtype),
    }


def two_orders(function, x: Tensor, gain: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Output, gradients, and the vector-Jacobian product of the gradients, all with fixed random cotangents."""
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
        return drawn.contiguous(memory_format=torch.channels_last) if t.stride() != t.contiguous().stride() else drawn

    y = function(x, gain, bias)
    dy = like(y).requires_grad_()
    first = torch.autograd.grad(y, (x, gain, bias), dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, x, gain), [like(t) for t in first])
    return dict(zip(["y", "dx", "dgain", "dbias", "ddy", "dx2", "dgain2"], (y, *first, *second), strict=True))


def assert_as_reference(actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    for name, want in expected.items():
        got = actual[name]
        assert got.shape == want.shape, name
        assert got.dtype == want.dtype, name
        scale = want.abs().nan_to_num(0, 0, 0).amax().item() if want.numel() else 0.0
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=rtol * max(scale, 1.0), equal_nan=True, msg=lambda text, n=name: f"{n}: {text}"
        )


# ---- Exactness ----


@crossed(KERNELS, layout=LAYOUTS, activation=ACTIVATIONS, training=(True, False))
def test_gradcheck_and_gradgradcheck(device, impl, layout, activation, training):
    x, gain, bias = inputs((3, 2, 2, 3), device=device, layout=layout)
    keywords = running(2, device=device) | {"training": training, "momentum": 0.0}

    def function(x, gain, bias):
        return conditional_batch_norm(x, gain, bias, activation=activation, impl=impl, **keywords)

    # The interpreter takes a millisecond a program: random directions instead of every element. That every element is
    # right, test_odd_shapes_write_every_element holds against the reference.
    fast = impl == "triton"
    assert gradcheck(function, (x, gain, bias), fast_mode=fast)
    assert gradgradcheck(function, (x, gain, bias), fast_mode=fast)


SHAPES = [(2, 3, 4, 4), (1, 1, 1, 2), (2, 1, 3, 5), (3, 8, 1, 1)]
SHAPES += [(2, 33, 3, 3), (1, 5, 7, 1), (2, 64, 2, 2), (5, 17, 1, 3)]


@crossed(KERNELS, layout=LAYOUTS, training=(True, False), shape=SHAPES)
def test_odd_shapes_write_every_element(device, impl, layout, training, shape, poisoned):
    tensors = inputs(shape, device=device, layout=layout)
    keywords = running(shape[1], device=device) | {"training": training, "momentum": 0.0, "activation": "lrelu"}
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, impl=impl, **keywords), *tensors)
        for impl in (impl, "reference")
    ]
    assert_as_reference(*results, rtol=1e-9)
    assert results[0]["y"].stride() == results[1]["y"].stride()


# Past a tile of the CPU kernel (128 KiB), and with a last tile, vector and row that are not full.
LARGE = [(2, 192, 33, 31), (3, 7, 150, 61), (2, 3, 256, 130), (1, 1, 400, 301), (2, 1001, 5, 5), (70, 12, 4, 4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")
def test_cpu_past_a_tile(layout, shape, threads, poisoned):
    torch.set_num_threads(threads)
    tensors = inputs(shape, layout=layout)
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, activation="relu", impl=impl), *tensors)
        for impl in ("cpu", "reference")
    ]
    assert_as_reference(*results, rtol=1e-9)


@kernels
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 0, 3, 3), (2, 4, 0, 3)], ids=str)
@layouts
def test_empty(device, impl, shape, layout):
    x, gain, bias = inputs(shape, device=device, layout=layout)
    state = running(shape[1], device=device)
    before = state["running_mean"].clone()
    y = conditional_batch_norm(x, gain, bias, impl=impl, **state)
    assert y.shape == shape
    torch.testing.assert_close(state["running_mean"], before)
    for got in torch.autograd.grad(y.sum(), (x, gain, bias)):
        assert not got.any()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)),
    layout=st.sampled_from(sorted(LAYOUTS)),
    activation=st.sampled_from(ACTIVATIONS),
    training=st.booleans(),
)
@pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")
def test_cpu_any_shape(shape, layout, activation, training):
    if training and shape[0] * shape[2] * shape[3] == 1:
        return
    tensors = inputs(shape, layout=layout)
    keywords = running(shape[1]) | {"training": training, "momentum": 0.0, "activation": activation}
    results = [
        two_orders(lambda *t, impl=impl: conditional_batch_norm(*t, impl=impl, **keywords), *tensors)
        for impl in ("cpu", "reference")
    ]
    assert_as_reference(*results, rtol=1e-8)


@kernels
def test_strided_input_and_gradient(device, impl):
    x, gain, bias = inputs((4, 6, 8, 10), device=device)
    x = x.detach()[:, ::2, :, 1::2].requires_grad_()
    gain, bias = gain.detach()[:, ::2].requires_grad_(), bias.detach()[:, ::2].requires_grad_()
    results = []
    for name in (impl, "reference"):
        y = conditional_batch_norm(x, gain, bias, activation="relu", impl=name)
        # sum() gives an expanded gradient with zero strides
        gradients = torch.autograd.grad(y.sum() + y.square().sum(), (x, gain, bias))
        results.append(dict(zip(("y", "dx", "dgain", "dbias"), (y, *gradients), strict=True)))
    assert_as_reference(*results, rtol=1e-9)


# ---- Precision ----


def eager(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """What a user writes with stock PyTorch in the dtype of x."""
    return F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])


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


@pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")
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
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_larger_than_a_cache(device, impl, layout, dtype):
    """Past 16 MiB the CPU kernels store past the caches; 40 channels are no whole number of its steps in bf16."""
    if impl == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter would take minutes")
    tensors = inputs((16 if dtype == torch.float32 else 32, 40, 82, 82), dtype=dtype, device=device, layout=layout)
    y = conditional_batch_norm(*tensors, activation="lrelu", impl=impl)
    dy = torch.randn_like(y)
    got = [y, *torch.autograd.grad(y, tensors, dy)]
    exact = [t.detach().double().requires_grad_() for t in tensors]
    y = conditional_batch_norm(*exact, activation="lrelu", impl="reference")
    want = [y, *torch.autograd.grad(y, exact, dy.double())]
    for ours, theirs in zip(got[:2], want[:2], strict=True):
        # Within rounding of the kink either side is right.
        ours, theirs = (t.double()[y.abs() > 1e-3] for t in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    for ours, theirs in zip(got[2:], want[2:], strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-2, atol=1.0)


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


@pytest.mark.skipif("cpu" not in [p.values[1] for p in KERNELS], reason="the extension is not built")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    """The kernels of a lesser processor, in a process that is told to use them."""
    code = """
import torch, gankernels
from gankernels.ops import conditional_batch_norm as norm
torch.manual_seed(0)
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
    for layout in (torch.contiguous_format, torch.channels_last):
        for shape in ((2, 3, 5, 7), (2, 32, 9, 9)):
            x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
            gain, bias = torch.randn(shape[:2]), torch.randn(shape[:2])
            got, want = (norm(x, gain, bias, activation="relu", impl=impl) for impl in ("cpu", "reference"))
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
# Every half-precision value must come through the conversions unharmed, subnormals and infinities too.
for dtype in (torch.bfloat16, torch.float16):
    x = torch.arange(-32768, 32768, dtype=torch.int32).to(torch.int16).view(dtype).view(2, 1, 128, 256)
    ones, zeros, no = torch.ones(2, 1), torch.zeros(2, 1), torch.zeros(1)
    y = norm(x, ones, zeros, running_mean=no, running_var=torch.ones(1), training=False, eps=0.0, impl="cpu")
    assert torch.equal(y.isnan(), x.isnan()) and torch.equal(y.nan_to_num(7), x.nan_to_num(7)), dtype
print(gankernels.doctor()["cpu"]["kernels_built_for"])
"""
    environment = os.environ | {"GANKERNELS_CPU_ISA": isa}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    available = gankernels.doctor()["cpu"]["kernels_built_for"]
    assert result.stdout.strip() == (isa if available != "baseline" else "baseline")


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


# ---- Statistics ----


@pytest.mark.parametrize("impl", ["reference", *[p.values[1] for p in KERNELS if p.values[0] == "cpu"]])
def test_running_statistics_as_torch(impl):
    ours, theirs = gankernels.nn.ConditionalBatchNorm2d(5, num_classes=3), torch.nn.BatchNorm2d(5, affine=False)
    labels = torch.tensor([0, 1, 2, 1])
    with gankernels.use(impl):
        for _ in range(3):
            x = torch.randn(4, 5, 3, 3) * 2 + 1
            torch.testing.assert_close(ours(x, labels), theirs(x))
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(getattr(ours, name), buffer)
        torch.testing.assert_close(ours.eval()(x, labels), theirs.eval()(x))


def test_cumulative_average():
    ours = gankernels.nn.ConditionalBatchNorm2d(4, num_classes=1, momentum=None)
    theirs = torch.nn.BatchNorm2d(4, momentum=None, affine=False)
    for _ in range(3):
        x = torch.randn(4, 4, 3, 3)
        torch.testing.assert_close(ours(x, torch.zeros(4, dtype=torch.long)), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


def test_a_condition_vector():
    norm = gankernels.nn.ConditionalBatchNorm2d(4, cond_features=6, activation="relu")
    torch.nn.init.normal_(norm.gain.weight)
    x, cond = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    gain, bias = 1 + cond @ norm.gain.weight.T, cond @ norm.bias.weight.T
    want = F.relu(F.batch_norm(x, None, None, training=True) * gain[:, :, None, None] + bias[:, :, None, None])
    torch.testing.assert_close(norm(x, cond), want)


# ---- The torch.library contract ----


def op_calls(namespace: str, device: str, labelled: bool):
    x, gain, bias = (t.detach().float() for t in inputs((2, 3, 4, 5), device=device, layout="channels_last"))
    labels = None
    if labelled:
        gain, bias, labels = *(torch.cat([t, t]) for t in (gain, bias)), torch.tensor([3, 1], device=device)
    mean, var = torch.zeros(3, device=device), torch.ones(3, device=device)
    dy = torch.randn_like(x)
    ops = getattr(torch.ops, namespace)
    rest, tail = (labels, mean, var), (1e-5, "lrelu", 0.2)
    grads = [t.clone().requires_grad_() for t in (x, gain, bias)]
    yield ops.conditional_batch_norm_forward.default, (*grads, labels, None, None, *tail)
    yield ops.conditional_batch_norm_forward.default, (x, gain, bias, labels, mean, var, *tail)
    if not labelled:
        of_samples = (None, torch.randn(2, 3, device=device), torch.rand(2, 3, device=device) + 1, True)
        leaves = (dy.clone().requires_grad_(), *grads)
        yield ops.conditional_batch_norm_forward.default, (*grads, None, None, None, *tail, True)
        yield ops.conditional_batch_norm_backward.default, (*leaves, *of_samples, *tail)
        yield ops.conditional_batch_norm_backward_backward.default, (
            dy, gain, bias, dy, x, gain, bias, *of_samples, *tail,
        )  # fmt: skip
    yield ops.conditional_batch_norm_backward.default, (dy.clone().requires_grad_(), *grads, *rest, True, *tail)
    yield (
        ops.conditional_batch_norm_backward_backward.default,
        (dy, gain, bias, dy, x, gain, bias, *rest, True, *tail),
    )
    saved = (x, gain, bias, *rest)
    terms = torch.randn(5, 3, device=device)
    yield ops.conditional_batch_norm_statistics.default, (x,)
    yield ops.conditional_batch_norm_backward_sums.default, (dy, *saved, *tail)
    yield ops.conditional_batch_norm_backward_apply.default, (dy, *saved, terms[:2], *tail)
    yield ops.conditional_batch_norm_backward_backward_sums.default, (dy, dy, *saved, *tail)
    yield ops.conditional_batch_norm_backward_backward_apply.default, (dy, gain, bias, dy, *saved, terms, *tail)


@kernels
@pytest.mark.parametrize("labelled", [False, True], ids=["rows", "labels"])
def test_opcheck(device, impl, labelled):
    for function, arguments in op_calls(op.NAMESPACES[impl], device, labelled):
        torch.library.opcheck(function, arguments)


def test_native_and_triton_schemas_are_one():
    for name, signature in (op.SCHEMAS | synchronized.PARTS).items():
        for namespace in families():
            schema = str(getattr(getattr(torch.ops, namespace), name).default._schema)
            assert schema == f"{namespace}::{name}{signature}"


@kernels
def test_compile_fullgraph(device, impl):
    tensors = inputs((2, 3, 4, 4), dtype=torch.float32, device=device, layout="channels_last")

    def step(x, gain, bias):
        return conditional_batch_norm(x, gain, bias, activation="relu", impl=impl) * 2

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, step):
        y = function(*tensors)
        results.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@kernels
def test_a_compiled_penalty_is_right(device, impl):
    """Where a bare autograd.Function is silently wrong: the gradient of a gradient inside one compiled graph."""
    x, gain, bias = inputs((2, 3, 3, 3), device=device)

    def penalty(x, gain, bias):
        y = conditional_batch_norm(x, gain, bias, activation="lrelu", impl=impl)
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(x, gain, bias), (x, gain, bias))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = torch.autograd.grad(torch.compile(penalty, backend="aot_eager")(x, gain, bias), (x, gain, bias))
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@kernels
def test_what_would_be_silently_wrong_raises(device, impl):
    x, gain, bias = (t.detach() for t in inputs((2, 3, 4, 4), device=device))

    def function(x):
        return conditional_batch_norm(x, gain, bias, impl=impl)

    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        function(torch.autograd.forward_ad.make_dual(x, x))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        ddx.sum().backward()


@kernels
def test_saves_x_and_nothing_else_with_pixels(device, impl):
    x, gain, bias = inputs((4, 8, 16, 16), dtype=torch.float32, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conditional_batch_norm(x, gain, bias, activation="relu", impl=impl)
    assert sum(t.numel() for t in saved if t.data_ptr() != x.data_ptr()) == 2 * gain.numel() + 2 * 8


# ---- Errors ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3)}, r"x: got shape \(2, 3\), expected \[N, C, H, W\]"),
        ({"x": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "x: got dtype torch.int64"),
        ({"gain": torch.zeros(2, 4)}, r"gain: got shape \(2, 4\), expected \(2, 3\)"),
        ({"bias": torch.zeros(3)}, r"bias: got shape \(3,\), expected \(2, 3\)"),
        ({"bias": torch.zeros(2, 3, dtype=torch.int32)}, "bias: got dtype torch.int32"),
        ({"labels": torch.zeros(2, dtype=torch.int32)}, "labels: got dtype torch.int32, expected torch.int64"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels: got shape \(3,\), expected \(2,\)"),
        ({"labels": torch.tensor([1, 2])}, "labels: got 1 to 2, expected them from 0 to 1"),
        ({"labels": torch.tensor([-1, 0])}, "labels: got -1 to 0, expected them from 0 to 1"),
        ({"labels": torch.tensor([0, 0], device="meta")}, "labels: got a tensor on meta"),
        ({"labels": torch.tensor([0, 0]), "gain": torch.zeros(3)}, r"gain: got shape \(3,\), expected \[classes, 3\]"),
        ({"labels": torch.tensor([0, 0]), "gain": torch.zeros(5, 3)}, r"bias: got shape \(2, 3\), expected \(5, 3\)"),
        ({"activation": "gelu"}, "activation: got 'gelu', expected one of none, relu, lrelu"),
        ({"training": False}, "running_mean, running_var: got None"),
        ({"running_mean": torch.zeros(4)}, r"running_mean: got shape \(4,\), expected \(3,\)"),
        ({"running_var": torch.zeros(3, requires_grad=True)}, "running_var: got a tensor that requires grad"),
        ({"x": torch.zeros(1, 3, 1, 1), "gain": torch.zeros(1, 3)}, "more than one value per channel"),
        ({"impl": "fast"}, "got 'fast', expected one of reference, library, cpu, triton, cuda"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(2, 3, 4, 4), "gain": torch.zeros(2, 3), "bias": torch.zeros(2, 3)} | change
    with pytest.raises(InputError, match=message):
        conditional_batch_norm(**arguments)


def test_a_forced_implementation_that_cannot_run():
    arguments = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3), torch.zeros(2, 3)
    with pytest.raises(ImplementationUnavailable, match="runs on cuda tensors, not cpu"):
        conditional_batch_norm(*arguments, impl="cuda")


def test_module_wants_one_kind_of_condition():
    with pytest.raises(InputError, match="exactly one of them"):
        gankernels.nn.ConditionalBatchNorm2d(4)
    with pytest.raises(InputError, match="exactly one of them"):
        gankernels.nn.ConditionalBatchNorm2d(4, num_classes=3, cond_features=2)
