"""upsample_conv2d and conv2d_downsample on all their routes against the two steps in stock PyTorch, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from resampled_convolutions import DOWN, LAYOUTS, UP, as_exact, borders, in_layout, operands, with_gradients
from torch.autograd import gradcheck, gradgradcheck

import gankernels
from gankernels import _native, selfcheck, verification
from gankernels.errors import InputError
from gankernels.ops import _resampled_convolution

layouts = pytest.mark.parametrize("layout", LAYOUTS)
both = pytest.mark.parametrize("op", [UP, DOWN], ids=str)


@pytest.fixture(autouse=True, scope="module")
def folded_at_any_size():
    """The tensors here are small, and what is tested is the fold, and in channels_last the box filter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_resampled_convolution, "FEW_PIXELS", 0)
        patch.setattr(_resampled_convolution, "BOX_CHANNELS", 0)
        yield


# ---- Exactness ----


@both
@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (2, 2), (1, 3)]),
    padding=st.one_of(st.integers(0, 5).map(lambda p: (p, p, p, p)), st.tuples(*[st.integers(0, 3)] * 4)),
    layout=st.sampled_from(list(LAYOUTS)),
    activation=st.sampled_from(["none", "lrelu", "silu"]),
    biased=st.booleans(),
)
def test_any_size_kernel_and_padding(op, size, kernel, padding, layout, activation, biased):
    assume(op.has_output(size, kernel, padding))
    tensors = operands(2, 3, 4, size, kernel, layout=layout)[: 3 if biased else 2]

    def call(function):
        given = {"padding": padding, "activation": activation}
        return with_gradients(lambda x, w, b=None: function(x, w, b, **given), tensors)

    for got, want in zip(call(op.ours), call(op.stock), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@both
@layouts
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("size", [(4, 4), (7, 5), (1, 6)], ids=str)
def test_each_border_of_outputs_and_gradients(op, layout, kernel, size, poisoned):
    tensors = operands(2, 3, 4, size, (kernel, kernel), layout=layout)
    tensors[0].data.abs_().add_(1)  # so that a row of zeros too many, or too few, cannot cancel
    padding = ((kernel - 1) // 2,) * 4
    if not op.has_output(size, (kernel, kernel), padding):
        pytest.skip("smaller than the kernel and the mean")
    got, want = (with_gradients(lambda *t, f=f: f(*t, padding=padding), tensors)[:2] for f in (op.ours, op.stock))
    for name, mine, exact in zip(("y", "dx"), got, want, strict=True):
        for edge, part in borders(mine).items():
            torch.testing.assert_close(part, borders(exact)[edge], rtol=1e-12, atol=1e-12, msg=f"{name}, {edge}")


@both
@layouts
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("activation", ["none", "lrelu", "silu"])
def test_gradcheck_and_gradgradcheck(op, layout, kernel, activation):
    tensors = operands(1, 2, 2, (4, 3), kernel, layout=layout)
    padding = (kernel[0] // 2,) * 4
    assert gradcheck(lambda *t: op.ours(*t, padding=padding, activation=activation), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: op.ours(*t, padding=padding, activation=activation), tensors, fast_mode=True)


@both
@layouts
def test_third_order(op, layout):
    results = []
    for function in (op.ours, op.stock):
        torch.manual_seed(0)
        x, weight, _ = operands(1, 2, 3, (4, 4), layout=layout)
        (dx,) = torch.autograd.grad(function(x, weight, None).pow(4).sum(), x, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), weight, create_graph=True)
        results.append(torch.autograd.grad(ddx.square().sum(), (x, weight)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@both
@layouts
def test_layout_is_kept_and_strides_do_not_matter(op, layout):
    x, weight, bias = operands(2, 6, 4, (6, 8), layout=layout)
    for activation in ("none", "lrelu"):
        y = op.ours(x, weight, bias, activation=activation)
        assert y.is_contiguous(memory_format=LAYOUTS[layout])
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
        assert dx.is_contiguous(memory_format=LAYOUTS[layout])
        # without the kernels, the layout of weights' gradients is autograd's
        assert dweight.is_contiguous(memory_format=LAYOUTS[layout]) or _native.extension is None
        # One of the two suffices, as in PyTorch.
        mixed = op.ours(x, weight.detach().contiguous(), bias, activation=activation)
        assert mixed.is_contiguous(memory_format=LAYOUTS[layout])
    asymmetric = op.ours(x, weight, bias, padding=(0, 2, 1, 0))
    assert asymmetric.is_contiguous(memory_format=LAYOUTS[layout])
    holes = x.detach()[:, ::2, 1:, ::2]
    torch.testing.assert_close(op.ours(holes, weight[:, ::2], bias), op.stock(holes, weight[:, ::2], bias))


@both
def test_empty_batch(op):
    x, weight, bias = operands(0, 3, 4, (6, 6), dtype=torch.float32)
    y = op.ours(x, weight, bias)
    assert y.shape == op.stock(x, weight, bias).shape
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), (weight, bias)))


# ---- Precision ----


@both
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["none", "silu"])
def test_error_at_most_twice_eager(op, layout, dtype, activation):
    tensors = operands(4, 40, 24, (8, 8), dtype=dtype, layout=layout)
    exact = with_gradients(lambda *t: op.stock(*t, activation=activation), as_exact(tensors))
    got = with_gradients(lambda *t: op.ours(*t, activation=activation), tensors)
    # In fp32, stock PyTorch's fold by hand is eager too: oneDNN's convolutions err more forward, where they add up one
    # long chain, than in their input gradients, and the fold changes which of y and dx is the one or the other.
    peers = [op.stock, op.by_hand] if dtype == torch.float32 else [op.stock]
    eager = [
        with_gradients(lambda *t, f=f: f(*t, activation=activation), in_layout(tensors, other))
        for f in peers
        for other in LAYOUTS
    ]
    assert (why := verification.beyond_twice_eager(got, exact, eager)) is None, why


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_checks_of_tune(op, dtype):
    for check in selfcheck.checks_of(op.name):
        assert (why := selfcheck.verify(check, "library", torch.device("cpu"), dtype)) is None, why


@both
def test_autocast(op):
    tensors = operands(2, 8, 8, (6, 6), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = with_gradients(lambda *t: op.ours(*t, activation="lrelu"), tensors)
    assert [t.dtype for t in got] == [torch.bfloat16, *[torch.float32] * 3]
    want = with_gradients(lambda *t: op.stock(*t, activation="lrelu"), tensors)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05 * b.abs().amax().item())


# ---- What it is made of ----


@pytest.mark.parametrize(
    ("op", "kernel", "padding", "name", "reason"),
    [
        (UP, (3, 3), (1, 1, 1, 1), "folded", "one transposed convolution"),
        (UP, (5, 5), (4, 0, 1, 2), "folded", "one transposed convolution"),
        (UP, (1, 1), (1, 1, 1, 1), "plain", "padding 1 makes rows of zeros"),
        (UP, (3, 3), (1, 1, 3, 1), "plain", "padding 3 makes rows of zeros"),
        (DOWN, (3, 3), (1, 1, 1, 1), "folded", "one convolution of stride 2"),
        (DOWN, (3, 3), (5, 5, 0, 3), "folded", "one convolution of stride 2"),
        (DOWN, (1, 1), (1, 1, 1, 1), "folded", "one convolution of stride 2"),
        *((op, (1, 1), (0, 0, 0, 0), "small side", "commutes") for op in (UP, DOWN)),
        *((op, (4, 4), (1, 1, 1, 1), "plain", "for odd ones") for op in (UP, DOWN)),
        *((op, (1, 3), (1, 1, 0, 0), "plain", "for square ones") for op in (UP, DOWN)),
        *((op, (17, 17), (8, 8, 8, 8), "plain", "at most 15x15") for op in (UP, DOWN)),
    ],
    ids=str,
)
def test_route(op, kernel, padding, name, reason):
    chosen = op.route(kernel, padding, 65, "cpu", channels=64, channels_last=False)
    assert chosen.name == name
    assert reason in chosen.reason
    assert op.route(kernel, padding, 65, "cuda", channels=64, channels_last=True) == chosen


@pytest.mark.parametrize(
    ("op", "kernel", "padding", "name"),
    [
        (UP, (3, 3), (1, 1, 1, 1), "boxed"),
        (UP, (5, 5), (0, 3, 2, 1), "boxed"),
        (UP, (5, 5), (4, 0, 1, 2), "folded"),
        (DOWN, (3, 3), (1, 1, 1, 1), "boxed"),
        (DOWN, (3, 3), (5, 5, 0, 3), "boxed"),
        (DOWN, (1, 1), (1, 1, 1, 1), "boxed"),
        *((op, (1, 1), (0, 0, 0, 0), "small side") for op in (UP, DOWN)),
        *((op, (4, 4), (1, 1, 1, 1), "plain") for op in (UP, DOWN)),
    ],
    ids=str,
)
def test_route_in_channels_last_on_a_cpu(op, kernel, padding, name):
    for pixels in (1, 65):
        chosen = op.route(kernel, padding, pixels, "cpu", channels=64, channels_last=True)
        assert chosen.name == name
    assert name != "boxed" or "2x2" in chosen.reason


@both
def test_few_channels_are_folded(op, monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "BOX_CHANNELS", 64)
    for channels, name in ((63, "folded"), (64, "boxed")):
        assert op.route((3, 3), (1, 1, 1, 1), 65, "cpu", channels=channels, channels_last=True).name == name
    tensors = operands(2, 3, 4, (5, 4), layout="channels_last")
    for got, want in zip(with_gradients(op.ours, tensors), with_gradients(op.stock, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


@both
def test_few_pixels_take_the_two_steps_on_a_cpu(op, monkeypatch):
    monkeypatch.setattr(_resampled_convolution, "FEW_PIXELS", 64)
    chosen = op.route((3, 3), (1, 1, 1, 1), 64, "cpu", channels=64, channels_last=False)
    assert chosen.name == "plain"
    assert "64 pixels on the small side" in chosen.reason
    assert op.route((3, 3), (1, 1, 1, 1), 64, "cuda", channels=64, channels_last=False).name == "folded"
    assert op.route((1, 1), (0, 0, 0, 0), 64, "cpu", channels=64, channels_last=False).name == "small side"


@both
def test_no_weight_gradients(op):
    x, weight, bias = operands(2, 3, 4, (4, 4))
    y = op.ours(x, weight, bias)
    with gankernels.no_weight_gradients():
        dx, dweight = torch.autograd.grad(y.sum(), (x, weight), allow_unused=True, retain_graph=True)
    assert dweight is None
    torch.testing.assert_close(dx, torch.autograd.grad(op.stock(x, weight, bias).sum(), x)[0])


@both
@pytest.mark.parametrize("activation", ["none", "lrelu"])
def test_compile_fullgraph(op, activation):
    tensors = operands(2, 3, 4, (5, 4), dtype=torch.float32, layout="channels_last")
    compiled = torch.compile(lambda *t: op.ours(*t, activation=activation), fullgraph=True, backend="aot_eager")
    want = with_gradients(lambda *t: op.ours(*t, activation=activation), tensors)
    for got, expected in zip(with_gradients(compiled, tensors), want, strict=True):
        torch.testing.assert_close(got, expected)
        assert got.stride() == expected.stride()


@both
@layouts
def test_a_compiled_penalty_is_right(op, layout):
    x, weight, bias = operands(2, 2, 3, (4, 4), layout=layout)

    def penalty(function, x, weight):
        y = function(x, weight, bias, activation="lrelu")
        (dx,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        return dx.square().sum()

    want = torch.autograd.grad(penalty(op.stock, x, weight), (x, weight))
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(lambda *t: penalty(op.ours, *t), backend="aot_eager")
        got = torch.autograd.grad(compiled(x, weight), (x, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@both
def test_what_would_be_silently_wrong_raises(op):
    x, weight, _ = (t.detach() for t in operands(1, 2, 2, (4, 4)))
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(lambda x: op.ours(x, weight), (x,), (x,))


@both
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
def test_bad_input(op, change, message):
    arguments = {"x": torch.zeros(1, 3, 4, 4), "weight": torch.zeros(2, 3, 3, 3), "bias": torch.zeros(2)} | change
    with pytest.raises(InputError, match=message):
        op.function(arguments.pop("x"), arguments.pop("weight"), **arguments)
