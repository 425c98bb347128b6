"""Every kernel of bias_act, through the public function, against the reference."""

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
from gankernels import verification
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops import bias_act
from gankernels.ops._registration import families
from gankernels.ops.bias_act import op
from implementations import kernels_of

KERNELS = kernels_of("bias_act")
NAMES = ("lrelu", "relu", "linear", "tanh", "sigmoid", "silu", "softplus", "gelu")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
HAS_CPU = "cpu" in [p.values[1] for p in KERNELS]

kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)
activations = pytest.mark.parametrize("activation", NAMES)
clamps = pytest.mark.parametrize("clamp", [None, 0.7])
needs_cpu = pytest.mark.skipif(not HAS_CPU, reason="the extension is not built")


def inputs(shape, *, dtype=torch.float64, device="cpu", layout="contiguous", dim=1, scale=2.0):
    x = (torch.randn(shape, dtype=torch.float64) * scale).to(device, dtype)
    if len(shape) == 4:
        x = x.contiguous(memory_format=LAYOUTS[layout])
    bias = torch.randn(shape[dim], dtype=torch.float64).to(device, dtype)
    return x.requires_grad_(), bias.requires_grad_()


def two_orders(function, x: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> list[Tensor]:
    """y, dx, dbias; then ddy, and the second order's dx and dbias (zeros where there are none).

    The cotangents are random numbers of ``dtype``, x's own by default.
    """
    generator = torch.Generator().manual_seed(1)

    def like(t: Tensor) -> Tensor:
        drawn = torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype or t.dtype)
        return torch.empty_like(t).copy_(drawn)

    wanted = (x,) if bias is None else (x, bias)
    y = function(x, bias)
    dy = like(y.detach()).requires_grad_()
    first = torch.autograd.grad(y, wanted, dy, create_graph=True)
    second = torch.autograd.grad(first, (dy, *wanted), [like(t.detach()) for t in first], allow_unused=True)
    second = [torch.zeros_like(t) if g is None else g for g, t in zip(second, (dy, *wanted), strict=True)]
    return [t.detach() for t in (y, *first, *second)]


def assert_as_reference(got: list[Tensor], want: list[Tensor], rtol: float) -> None:
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride()), index
        scale = w.abs().nan_to_num(0, 0, 0).amax().item() if w.numel() else 0.0
        torch.testing.assert_close(g, w, rtol=rtol, atol=rtol * max(scale, 1.0), equal_nan=True)


def both(impl: str, x: Tensor, bias: Tensor | None, **keywords) -> tuple[list[Tensor], list[Tensor]]:
    got, want = (two_orders(lambda *t, i=i: bias_act(*t, impl=i, **keywords), x, bias) for i in (impl, "reference"))
    return got, want


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


# ---- Precision ----


# What is piecewise linear rounds alike at every scale.
SCALES = [(name, scale) for name in NAMES for scale in ((2.0,) if name in NAMES[:3] else (0.1, 2.0, 8.0))]


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("activation", "scale"), SCALES)
def test_error_at_most_twice_eager(device, impl, activation, dtype, scale):
    if impl == "triton" and device == "cpu" and dtype == torch.bfloat16:
        pytest.skip("Triton's interpreter truncates where it should round to bf16")
    # Enough numbers, and sums, that the largest error of either side is no accident.
    shape = (4, 96, 8, 8) if impl == "triton" else (6, 384, 13, 13)
    x, bias = inputs(shape, dtype=dtype, device=device, scale=scale)
    if activation in ("relu", "lrelu"):
        # Where rounding decides the sign of x + bias, neither side's gradient is an error.
        with torch.no_grad():
            z = x.double() + bias.double()[:, None, None]
            x[z.abs() < 0.1 * scale] += scale

    def eager(x, bias):
        z = x + bias[:, None, None]
        return {"lrelu": lambda z: F.leaky_relu(z, 0.2), "linear": lambda z: z}.get(
            activation, getattr(F, activation, None)
        )(z) * 1.5

    exact = two_orders(
        lambda *t: bias_act(*t, activation=activation, gain=1.5, impl="reference"),
        x.detach().double().requires_grad_(),
        bias.detach().double().requires_grad_(),
        dtype,
    )
    ours = two_orders(lambda *t: bias_act(*t, activation=activation, gain=1.5, impl=impl), x, bias)
    theirs = two_orders(eager, x, bias)
    assert (why := verification.beyond_twice_eager(ours, exact, [theirs])) is None, why


@needs_cpu
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "silu", "softplus", "gelu"])
def test_cpu_every_float_of_a_range(activation):
    """All orders at 2^16 numbers of every size and sign, one by one: within a few units of the last place of 1."""
    bits = torch.arange(2**16, dtype=torch.int64) * 65536 - 2**31
    x = bits.to(torch.int32).view(torch.float32)
    x = x[x.isfinite() & (x.abs() < 1e4)].clone().requires_grad_()
    got = two_orders(lambda x, _: bias_act(x, activation=activation, dim=0, impl="cpu"), x, None)
    wide = x.detach().double().requires_grad_()
    want = two_orders(lambda x, _: bias_act(x, activation=activation, dim=0, impl="reference"), wide, None, x.dtype)
    for g, w in zip(got, want, strict=True):
        error = (g.double() - w).abs() / (1 + w.abs())
        assert error.amax() <= 1e-6, (activation, x[error.argmax()], error.amax())


@kernels
@layouts
@activations
@clamps
def test_nan_infinity_and_kinks_as_the_reference(device, impl, layout, activation, clamp):
    # Exact zeros, clamps reached and passed, the ends of the range, and signed zeros.
    specials = [
        0.0,
        -0.0,
        0.7,
        -0.7,
        1.0,
        3.5,
        -3.5,
        1e4,
        -1e4,
        20.0,
        20.5,
        torch.nan,
        torch.inf,
        -torch.inf,
        1e-30,
        -95.0,
    ]
    x = torch.tensor(specials, device=device).repeat(4).reshape(2, 2, 4, 4).contiguous(memory_format=LAYOUTS[layout])
    bias = torch.zeros(2, device=device)
    got, want = both(impl, x.requires_grad_(), bias.requires_grad_(), activation=activation, clamp=clamp)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.isnan(), w.isnan())
        assert torch.equal(g.isinf(), w.isinf())
        torch.testing.assert_close(g, w, rtol=1e-5, atol=1e-5, equal_nan=True)


@kernels
def test_bias_of_another_dtype(device, impl):
    x, bias = inputs((3, 8, 4, 4), dtype=torch.bfloat16, device=device)
    bias = bias.detach().float().requires_grad_()
    got, want = both(impl, x, bias, activation="silu")
    for g, w in zip(got, want, strict=True):
        assert g.dtype == w.dtype
        torch.testing.assert_close(g, w, rtol=2e-2, atol=2e-2)


@kernels
@layouts
@pytest.mark.parametrize("shape", [(6, 24, 9, 9), (2, 1, 70, 70)], ids=str)
def test_same_bits_every_time(device, impl, layout, shape):
    if impl == "triton" and device == "cpu":
        pytest.skip("Triton's interpreter runs one program after the other")
    x, bias = inputs(shape, dtype=torch.float32, device=device, layout=layout)
    runs = []
    for threads in (1, 3, 1):
        torch.set_num_threads(threads)
        runs.append(two_orders(lambda *t: bias_act(*t, activation="silu", impl=impl), x, bias))
    for first, second, third in zip(*runs, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


@needs_cpu
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_every_instruction_set(isa):
    """The kernels of a lesser processor, in a process that is told to use them."""
    code = """
import torch
from gankernels.ops import bias_act
torch.manual_seed(0)
for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)):
    for activation in ("lrelu", "tanh", "softplus", "gelu"):
        for shape in ((2, 3, 5, 7), (2, 32, 9, 9)):
            x, bias = torch.randn(shape).to(dtype), torch.randn(shape[1])
            got, want = (bias_act(x, bias, activation=activation, impl=impl) for impl in ("cpu", "reference"))
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
"""
    environment = os.environ | {"GANKERNELS_CPU_ISA": isa}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


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
    for name, signature in op.SCHEMAS.items():
        for namespace in families():
            schema = str(getattr(getattr(torch.ops, namespace), name).default._schema)
            assert schema == f"{namespace}::{name}{signature}"


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

    def function(x):
        return bias_act(x, bias, activation=activation, impl=impl)

    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        function(torch.autograd.forward_ad.make_dual(x, x))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        ddx.sum().backward()


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
