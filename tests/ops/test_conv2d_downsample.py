"""conv2d_downsample on all its routes against stock PyTorch in fp64: a convolution, then a 2x2 mean."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from resampled_convolutions import (
    LAYOUTS,
    as_exact,
    borders,
    by_hand_down,
    in_layout,
    operands,
    stock_down,
    with_gradients,
)
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import selfcheck, verification
from gankernels.errors import InputError
from gankernels.ops import _resampled_convolution, conv2d_downsample
from gankernels.ops.conv2d_downsample.op import route

layouts = pytest.mark.parametrize("layout", LAYOUTS)


@pytest.fixture(autouse=True, scope="module")
def folded_at_any_size():
    """The pictures here are small, and what is tested is the fold."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_resampled_convolution, "FEW_PIXELS", 0)
        yield


def ours(*tensors, padding=(1, 1, 1, 1), activation="none"):
    return conv2d_downsample(*tensors, padding=padding, activation=activation, impl="library")


# ---- Exactness ----


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 2), (1, 3)]),
    padding=st.one_of(st.integers(0, 5).map(lambda p: (p, p, p, p)), st.tuples(*[st.integers(0, 3)] * 4)),
    layout=st.sampled_from(list(LAYOUTS)),
    activation=st.sampled_from(["none", "lrelu", "silu"]),
    biased=st.booleans(),
)
def test_any_size_kernel_and_padding(size, kernel, padding, layout, activation, biased):
    left, right, top, bottom = padding
    # Of the convolution's output, whose mean needs two pixels.
    height = size[0] + top + bottom - kernel[0] + 1
    width = size[1] + left + right - kernel[1] + 1
    assume(min(height, width) >= 2)
    tensors = operands(2, 3, 4, size, kernel, layout=layout)[: 3 if biased else 2]

    def call(function):
        given = {"padding": padding, "activation": activation}
        return with_gradients(lambda x, w, b=None: function(x, w, b, **given), tensors)

    for got, want in zip(call(ours), call(stock_down), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@layouts
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 6)], ids=str)
def test_each_border_of_outputs_and_gradients(layout, kernel, size, poisoned):
    tensors = operands(2, 3, 4, size, (kernel, kernel), layout=layout)
    tensors[0].data.abs_().add_(1)  # so that a row of zeros too many, or too few, cannot cancel
    padding = ((kernel - 1) // 2,) * 4
    if min(size) < 2:
        pytest.skip("smaller than the kernel and the mean")
    got, want = (with_gradients(lambda *t, f=f: f(*t, padding=padding), tensors)[:2] for f in (ours, stock_down))
    for name, mine, exact in zip(("y", "dx"), got, want, strict=True):
        for edge, part in borders(mine).items():
            torch.testing.assert_close(part, borders(exact)[edge], rtol=1e-12, atol=1e-12, msg=f"{name}, {edge}")


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("activation", ["none", "lrelu", "silu"])
def test_gradcheck_and_gradgradcheck(kernel, activation):
    tensors = operands(1, 2, 2, (4, 3), kernel)
    padding = (kernel[0] // 2,) * 4
    assert gradcheck(lambda *t: ours(*t, padding=padding, activation=activation), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: ours(*t, padding=padding, activation=activation), tensors, fast_mode=True)


def test_third_order():
    results = []
    for function in (ours, stock_down):
        torch.manual_seed(0)
        x, weight, _ = operands(1, 2, 3, (4, 4))
        (dx,) = torch.autograd.grad(function(x, weight, None).pow(4).sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(ddx.square().sum(), (x, weight)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@layouts
def test_layout_is_kept_and_strides_do_not_matter(layout):
    x, weight, bias = operands(2, 6, 4, (6, 8), layout=layout)
    for activation in ("none", "lrelu"):
        y = ours(x, weight, bias, activation=activation)
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.is_contiguous(memory_format=LAYOUTS[layout])
        assert dweight.is_contiguous(memory_format=LAYOUTS[layout])
        # One of the two suffices, as in PyTorch.
        mixed = ours(x, weight.detach().contiguous(), bias, activation=activation)
        assert mixed.is_contiguous(memory_format=LAYOUTS[layout])
    asymmetric = ours(x, weight, bias, padding=(0, 2, 1, 0))
    assert asymmetric.is_contiguous(memory_format=LAYOUTS[layout])
    holes = x.detach()[:, ::2, 1:, ::2]
    torch.testing.assert_close(ours(holes, weight[:, ::2], bias), stock_down(holes, weight[:, ::2], bias))


def test_empty_batch():
    x, weight, bias = operands(0, 3, 4, (6, 6), dtype=torch.float32)
    y = ours(x, weight, bias)
    assert y.shape == stock_down(x, weight, bias).shape
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), (weight, bias)))


# ---- Precision ----


@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_error_at_most_twice_eager(layout, dtype, activation):
    tensors = operands(4, 40, 24, (8, 8), dtype=dtype, layout=layout)
    exact = with_gradients(lambda *t: stock_down(*t, activation=activation), as_exact(tensors))
    got = with_gradients(lambda *t: ours(*t, activation=activation), tensors)
    # In fp32, stock PyTorch's fold by hand is eager too: oneDNN's convolutions err more forward, where they add up one
    # long chain, than in their input gradients, and the fold changes which of y and dx is the one or the other.
    peers = [stock_down, by_hand_down] if dtype == torch.float32 else [stock_down]
    eager = [
        with_gradients(lambda *t, f=f: f(*t, activation=activation), in_layout(tensors, other))
        for f in peers
        for other in LAYOUTS
    ]
    assert (why := verification.beyond_twice_eager(got, exact, eager)) is None, why


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checks_of_tune(dtype):
    for check in selfcheck.checks_of("conv2d_downsample"):
        assert (why := selfcheck.verify(check, "library", torch.device("cpu"), dtype)) is None, why


def test_autocast():
    tensors = operands(2, 8, 8, (6, 6), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(lambda *t: ours(*t, activation="lrelu"), tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, *[torch.float32] * 3]
    want = with_gradients(lambda *t: stock_down(*t, activation="lrelu"), tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05 * b.abs().amax().item())


# ---- What it is made of ----


@pytest.mark.parametrize(
    ("kernel", "padding", "name", "reason"),
    [
        ((3, 3), (1, 1, 1, 1), "folded", "one convolution of stride 2"),
        ((3, 3), (5, 5, 0, 3), "folded", "one convolution of stride 2"),
        ((1, 1), (1, 1, 1, 1), "folded", "one convolution of stride 2"),
        ((1, 1), (0, 0, 0, 0), "small side", "commutes"),
        ((4, 4), (1, 1, 1, 1), "plain", "for odd ones"),
        ((1, 3), (1, 1, 0, 0), "plain", "for square ones"),
        ((17, 17), (8, 8, 8, 8), "plain", "at most 15x15"),
    ],
)
def test_route(kernel, padding, name, reason):
    chosen = route(kernel, padding, 65, "cpu")
    assert chosen.name == name
    assert reason in chosen.reason


def test_few_pixels_take_the_two_steps_on_a_cpu(monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "FEW_PIXELS", 64)
    chosen = route((3, 3), (1, 1, 1, 1), 64, "cpu")
    assert chosen.name == "plain"
    assert "64 pixels on the small side" in chosen.reason
    assert route((3, 3), (1, 1, 1, 1), 64, "cuda").name == "folded"
    assert route((1, 1), (0, 0, 0, 0), 64, "cpu").name == "small side"


def test_no_weight_gradients():
    x, weight, bias = operands(2, 3, 4, (4, 4))
    y = ours(x, weight, bias)
    with gankernels.no_weight_gradients():
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight), allow_unused=True, retain_graph=True)
    assert dweight is None
    torch.testing.assert_close(dx, torch.autograd.grad(stock_down(x, weight, bias).sum(), x)[0])


@pytest.mark.parametrize("activation", ["none", "lrelu"])
def test_compile_fullgraph(activation):
    tensors = operands(2, 3, 4, (5, 4), dtype=torch.float32, layout="channels_last")
    compiled = torch.compile(lambda *t: ours(*t, activation=activation), fullgraph=True, backend="aot_eager")
    want = with_gradients(lambda *t: ours(*t, activation=activation), tensors)
    for got, expected in zip(with_gradients(compiled, tensors), want, strict=True):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


def test_a_compiled_penalty_is_right():
    x, weight, bias = operands(2, 2, 3, (4, 4))

    def penalty(function, x, weight):
        y = function(x, weight, bias, activation="lrelu")
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(stock_down, x, weight), (x, weight))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(lambda *t: penalty(ours, *t), backend="aot_eager")
        got = torch.autograd.grad(compiled(x, weight), (x, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def test_what_would_be_silently_wrong_raises():
    x, weight, _ = (t.detach() for t in operands(1, 2, 2, (4, 4)))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(lambda x: ours(x, weight), (x,), (x,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 4, 4)}, r"x: got shape \(3, 4, 4\), expected \[N, C, H, W\]"),
        ({"x": torch.zeros(1, 3, 0, 4)}, "expected enough pixels"),
        ({"x": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, "x: got dtype torch.int32"),
        ({"weight": torch.zeros(2, 4, 3, 3)}, r"weight: got shape \(2, 4, 3, 3\), expected \(O, 3, KH, KW\)"),
        ({"weight": torch.zeros(2, 3, 3, 3).double()}, "weight: got dtype torch.float64, expected torch.float32"),
        ({"weight": torch.zeros(2, 3, 15, 15)}, "expected enough pixels"),
        ({"bias": torch.zeros(3)}, r"bias: got shape \(3,\), expected \(2,\)"),
        ({"padding": -1}, "padding: got -1"),
        ({"padding": (1, 1, 1)}, r"padding: got \(1, 1, 1\)"),
        ({"activation": "swish"}, "activation: got 'swish'"),
        ({"impl": "fast"}, "got 'fast'"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": torch.zeros(1, 3, 4, 4), "weight": torch.zeros(2, 3, 3, 3), "bias": torch.zeros(2)} | change
    with pytest.raises(InputError, match=message):
        conv2d_downsample(arguments.pop("x"), arguments.pop("weight"), **arguments)
