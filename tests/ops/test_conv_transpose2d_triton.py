"""The Triton transposed convolution against PyTorch's in fp64, in the interpreter where there is no GPU.

Triton decides when it is imported whether it interprets, so TRITON_INTERPRET=1 has to be set outside of pytest. A
program costs the interpreter some milliseconds: shapes are tiny, and tiles are made small to have several.
"""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import gankernels
from gankernels import verification
from gankernels.errors import ImplementationUnavailable
from gankernels.ops import conv_transpose2d
from implementations import triton_interprets

INTERPRETS = triton_interprets()

from gankernels.ops.conv_transpose2d import fused, kernels, launch, normalised, tiles  # noqa: E402  (import triton)

DEVICE = "cpu" if INTERPRETS else "cuda"
COMPILED = pytest.mark.skipif(INTERPRETS or not torch.cuda.is_available(), reason="needs a CUDA device, compiled")
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def drawn(*shape: int, dtype: torch.dtype = torch.float64, channels_last: bool = True) -> torch.Tensor:
    t = torch.randn(shape, dtype=dtype, device=DEVICE)
    return t.contiguous(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t


@pytest.fixture
def small_tiles(monkeypatch):
    """Several blocks of rows, columns and depth, and several splits, at sizes that the interpreter can bear."""
    monkeypatch.setattr(tiles, "LEAST", 4)
    monkeypatch.setitem(tiles._TILES, (0, "fp64"), (tiles.Tile(8, 4, 4, 4, 2),))
    monkeypatch.setattr(launch, "MOMENTS", launch.MOMENTS | {"BLOCK_C": 2, "BLOCK_ROWS": 4})
    monkeypatch.setattr(tiles, "_SPLIT_UNTIL", 40)
    monkeypatch.setattr(launch, "GROUP_M", 2)


@st.composite
def geometries(draw):
    """x's and the weight's shapes, stride, padding and output_padding of a transposed convolution with an output."""
    pair = st.tuples
    stride = draw(pair(st.integers(1, 4), st.integers(1, 3)))
    kernel = draw(pair(st.integers(1, 5), st.integers(1, 4)))
    padding = draw(pair(st.integers(0, 2), st.integers(0, 2)))
    output_padding = tuple(draw(st.integers(0, s - 1)) for s in stride)
    size = draw(pair(st.integers(1, 4), st.integers(1, 4)))
    # An output of a pixel at least.
    padding = tuple(
        min(p, ((n - 1) * s + k + o - 1) // 2)
        for p, n, s, k, o in zip(padding, size, stride, kernel, output_padding, strict=True)
    )
    n, c_in, c_out = draw(st.integers(1, 2)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    return (n, c_in, *size), (c_in, c_out, *kernel), stride, padding, output_padding


@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(geometries())
def test_the_three_kernels_at_any_geometry(geometry):
    x_size, weight_size, *arguments = geometry
    x, weight, bias = drawn(*x_size).requires_grad_(), drawn(*weight_size).requires_grad_(), drawn(weight_size[1])
    want = F.conv_transpose2d(x, weight, bias, *arguments)
    torch.testing.assert_close(kernels.conv_transpose2d_forward(x, weight, bias, *arguments), want, **EXACT)
    dy = drawn(*want.shape)
    dx, dweight = torch.autograd.grad(want, (x, weight), dy)
    got = kernels.conv_transpose2d_input_gradient(dy, None, weight, x_size, *arguments)
    torch.testing.assert_close(got, dx, **EXACT)
    got = kernels.conv_transpose2d_weight_gradient(dy, x, weight_size, *arguments)
    torch.testing.assert_close(got, dweight, **EXACT)


@pytest.mark.parametrize(
    ("x_size", "weight_size", "stride", "padding", "output_padding"),
    [
        ((1, 5, 3, 3), (5, 5, 4, 4), (2, 2), (1, 1), (0, 0)),  # DCGAN, BigGAN's folded up-sampling
        ((1, 5, 4, 3), (5, 3, 3, 3), (2, 2), (0, 0), (0, 0)),  # StyleGAN
        ((2, 4, 1, 1), (4, 5, 3, 3), (1, 1), (0, 0), (0, 0)),  # DCGAN's first layer
        ((1, 3, 3, 2), (3, 2, 2, 1), (3, 4), (0, 0), (2, 3)),  # phases without a tap
    ],
    ids=["4x4s2", "3x3s2", "3x3s1", "2x1s34"],
)
def test_edges_and_inside_over_several_tiles(
    x_size, weight_size, stride, padding, output_padding, small_tiles, poisoned
):
    x, weight, bias = drawn(*x_size).requires_grad_(), drawn(*weight_size).requires_grad_(), drawn(weight_size[1])
    geometry = (stride, padding, output_padding)
    want = F.conv_transpose2d(x, weight, bias, *geometry)
    y, mean, var = kernels.conv_transpose2d_forward_with_moments(x, weight, bias, *geometry)
    dy = drawn(*want.shape)
    dx, dweight = torch.autograd.grad(want, (x, weight), dy)
    got_dx = kernels.conv_transpose2d_input_gradient(dy, None, weight, x_size, *geometry)
    for name, got, exact in (("y", y, want.detach()), ("dx", got_dx, dx)):
        for edge in (np.s_[..., 0, :], np.s_[..., -1, :], np.s_[..., 0], np.s_[..., -1]):
            torch.testing.assert_close(got[edge], exact[edge], **EXACT, msg=lambda m, n=name: f"{n} at an edge: {m}")
        torch.testing.assert_close(got, exact, **EXACT)
    got = kernels.conv_transpose2d_weight_gradient(dy, x, weight_size, *geometry)
    torch.testing.assert_close(got, dweight, **EXACT)
    exact_var, exact_mean = torch.var_mean(want, (0, 2, 3), correction=0)
    torch.testing.assert_close((mean, var), (exact_mean, exact_var), **EXACT)


def test_moments_of_fp32_with_a_large_mean(poisoned):
    x, weight = drawn(2, 3, 3, 3, dtype=torch.float32), drawn(3, 4, 4, 4, dtype=torch.float32)
    bias = torch.full((4,), 3e4, device=DEVICE)
    y, mean, var = kernels.conv_transpose2d_forward_with_moments(x, weight, bias, (2, 2), (1, 1), (0, 0))
    exact_var, exact_mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    # The means of the tiles are rounded to fp32, and the variance is made of their differences.
    eps = torch.finfo(torch.float32).eps
    torch.testing.assert_close(mean.double(), exact_mean, rtol=2 * eps, atol=0)
    rtol = eps * (exact_mean / exact_var.sqrt()).max().item()
    torch.testing.assert_close(var.double(), exact_var, rtol=rtol, atol=0)


@pytest.mark.parametrize("activation", ["relu", "lrelu"])
def test_behind_a_batch_norm(activation, small_tiles, poisoned):
    geometry = ((2, 2), (1, 1), (1, 0))
    x, weight, bias = drawn(2, 5, 2, 3), drawn(5, 5, 4, 2), drawn(5)
    # A shift far from zero: zeros belong around the activated x, not around x.
    normalised = launch.Normalised(drawn(2, 5), drawn(2, 5) + 2, activation, 0.3)
    u = x * normalised.scale[:, :, None, None] + normalised.shift[:, :, None, None]
    h = F.relu(u) if activation == "relu" else F.leaky_relu(u, 0.3)
    leaf = weight.clone().requires_grad_()
    want = F.conv_transpose2d(h, leaf, bias, *geometry)
    y, mean, var = kernels.conv_transpose2d_forward_with_moments(x, weight, bias, *geometry, "relu", 0.0, normalised)
    torch.testing.assert_close(y, want.relu().detach(), **EXACT)
    exact_var, exact_mean = torch.var_mean(want.relu().detach(), (0, 2, 3), correction=0)
    torch.testing.assert_close((mean, var), (exact_mean, exact_var), **EXACT)
    dz = drawn(*want.shape)
    (dweight,) = torch.autograd.grad(want, leaf, dz)
    got = kernels.conv_transpose2d_weight_gradient(dz, x, weight.shape, *geometry, normalised)
    torch.testing.assert_close(got, dweight, **EXACT)


@pytest.mark.parametrize("batch_statistics", [True, False], ids=["training", "frozen"])
def test_the_block_of_batch_norm_and_convolution(batch_statistics, poisoned):
    """Outputs and two orders of gradients against stock PyTorch; then a second batch norm fed with y's moments."""
    shapes = ((2, 2, 2, 2), (2, 2), (2, 2), (2, 2, 3, 3), (2,))
    tensors = [drawn(*shape).requires_grad_() for shape in shapes]
    frozen = None if batch_statistics else (drawn(2), drawn(2).square())
    geometry, eps = ((2, 2), (1, 1), (1, 0)), 1e-5

    def ours(x, gain, shift, weight, bias):
        statistics = frozen or (None, None)
        formula = (*statistics, batch_statistics, eps, "lrelu", 0.2)
        return normalised.conditional_batch_norm_conv_transpose2d(
            x, gain, shift, *formula, weight, bias, *geometry, "relu"
        )

    def stock(x, gain, shift, weight, bias):
        mean, var = frozen or torch.var_mean(x, (0, 2, 3), correction=0)[::-1]
        mean, var = mean[:, None, None], var[:, None, None]
        h = (x - mean) * (var + eps).rsqrt() * gain[:, :, None, None] + shift[:, :, None, None]
        return F.conv_transpose2d(F.leaky_relu(h, 0.2), weight, bias, *geometry).relu()

    dy = drawn(2, 2, 4, 3)
    results = []
    for function in (lambda *t: ours(*t).y, stock):
        y = function(*tensors)
        first = torch.autograd.grad(y, tensors, dy, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), tensors)
        results.append([y, *first, *second])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)

    block = ours(*tensors)
    exact_var, exact_mean = torch.var_mean(results[1][0], (0, 2, 3), correction=0)
    torch.testing.assert_close((block.y_mean, block.y_var), (exact_mean, exact_var), **EXACT)
    given = torch.ops.gankernels_triton.conditional_batch_norm_conv_transpose2d
    leaves = [t.detach() for t in tensors[1:]]
    arguments = (block.y.detach(), *leaves[:2], block.y_mean, block.y_var, True, eps, "relu", 0.0)
    again = given(*arguments, *leaves[2:], *geometry, "none", 0.0)
    taken = given(*arguments[:3], None, None, *arguments[5:], *leaves[2:], *geometry, "none", 0.0)
    torch.testing.assert_close(again, taken, **EXACT)
    torch.library.opcheck(
        given, (*arguments, *leaves[2:], *(list(pair) for pair in geometry), "none", 0.0),
        test_utils=("test_schema", "test_faketensor"),
    )  # fmt: skip


@pytest.mark.parametrize("activation", ["relu", "lrelu", "tanh", "sigmoid", "silu", "softplus", "gelu"])
def test_epilogues(activation):
    x, weight, bias = drawn(1, 3, 2, 2), drawn(3, 4, 3, 3), drawn(4)
    z = F.conv_transpose2d(x, weight, bias, 2)
    want = {"lrelu": lambda t: F.leaky_relu(t, 0.1)}.get(activation, getattr(F, activation, None))(z)
    got = kernels.conv_transpose2d_forward(x, weight, bias, (2, 2), (0, 0), (0, 0), activation, 0.1)
    torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_rounding_is_at_most_twice_eagers(dtype, poisoned):
    x, weight, bias = drawn(1, 18, 3, 3, dtype=dtype), drawn(18, 17, 3, 3, dtype=dtype), drawn(17, dtype=dtype)

    def derivatives(function, *tensors):
        x, weight, bias = (t.detach().requires_grad_() for t in tensors)
        y = function(x, weight, bias)
        return [y.detach(), *torch.autograd.grad(y, (x, weight, bias), dy.to(y.dtype))]

    def stock(x, weight, bias):
        return F.leaky_relu(F.conv_transpose2d(x, weight, bias, 2), 0.2)

    def ours(x, weight, bias):
        geometry = ((2, 2), (0, 0), (0, 0))
        return fused.conv_transpose2d(x, weight, bias, *geometry, "lrelu", 0.2, weight_gradient="triton")

    dy = drawn(1, 17, 7, 7, dtype=dtype)
    exact = derivatives(stock, x.double(), weight.double(), bias.double())
    # No derivative is compared where rounding may have moved z over the kink.
    dy = torch.where(exact[0].abs() > 32 * torch.finfo(dtype).eps, dy, 0)
    exact = derivatives(stock, x.double(), weight.double(), bias.double())
    eager = [derivatives(stock, *(t.contiguous() for t in (x, weight, bias))), derivatives(stock, x, weight, bias)]
    got = derivatives(ours, x, weight, bias)
    assert verification.another_function(got, exact, dtype) is None
    # The interpreter cuts bf16 off where a GPU rounds.
    if not INTERPRETS or dtype != torch.bfloat16:
        assert verification.beyond_twice_eager(got, exact, eager) is None


@pytest.mark.parametrize("strides", ["channels_last", "contiguous", "holes"])
def test_layouts(strides, poisoned):
    x, weight = drawn(2, 3, 3, 5), drawn(3, 4, 3, 3)
    x = {"channels_last": x, "contiguous": x.contiguous(), "holes": x[..., ::2]}[strides]
    weight = weight if strides == "channels_last" else weight.contiguous()
    want = F.conv_transpose2d(x, weight, None, 2, 1)
    y = conv_transpose2d(x, weight, stride=2, padding=1, impl="triton")
    torch.testing.assert_close(y, want, **EXACT)
    assert y.stride() == fused._forward_fake(x, weight, None, (2, 2), (1, 1), (0, 0)).stride()
    assert y.is_contiguous(memory_format=torch.channels_last) == (strides != "contiguous")


@pytest.mark.parametrize(("n", "c_out"), [(0, 3), (2, 0)], ids=["no picture", "no channel out"])
def test_empty(n, c_out, poisoned):
    x, weight = drawn(n, 2, 2, 2).requires_grad_(), drawn(2, c_out, 4, 4).requires_grad_()
    y = fused.conv_transpose2d(x, weight, None, (2, 2), (1, 1), (0, 0), "relu", 0.0, weight_gradient="triton")
    assert y.shape == (n, c_out, 4, 4)
    dx, dweight = torch.autograd.grad(y.sum(), (x, weight))
    assert torch.equal(dx, torch.zeros_like(x))
    assert torch.equal(dweight, torch.zeros_like(weight))


@pytest.mark.parametrize(
    ("activation", "slope", "by", "with_bias"),
    [("lrelu", 0.2, "library", True), ("none", 0.0, "triton", False)],
    ids=["lrelu", "none, Triton's weight gradient"],
)
def test_gradcheck_and_gradgradcheck(activation, slope, by, with_bias):
    tensors = [drawn(1, 2, 2, 1), drawn(2, 1, 2, 2), *([drawn(1)] if with_bias else [])]

    def function(x, weight, bias=None):
        return fused.conv_transpose2d(x, weight, bias, (2, 1), (1, 0), (1, 0), activation, slope, by)

    tensors = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@pytest.mark.parametrize(("activation", "slope"), [("lrelu", 0.2), ("lrelu", -0.5), ("silu", 0.0)])
def test_penalty_through_dx_alone(activation, slope):
    """With lrelu that pass forms act'(z) dy while it loads dy; of a negative slope, or of silu, y does not tell z."""
    x, weight, bias = (drawn(*shape).requires_grad_() for shape in ((2, 3, 2, 2), (3, 4, 4, 4), (4,)))
    results = []
    for impl in ("triton", "reference"):
        y = conv_transpose2d(x, weight, bias, stride=2, padding=1, activation=activation, slope=slope, impl=impl)
        with gankernels.no_weight_gradients():
            (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append([dx, *torch.autograd.grad(dx.square().sum(), (x, weight, bias))])
    torch.testing.assert_close(*results, **EXACT)


def test_opcheck_and_compiled_penalty():
    x, weight, bias = (drawn(*shape).requires_grad_() for shape in ((1, 2, 2, 2), (2, 3, 3, 3), (3,)))
    ops, geometry = torch.ops.gankernels_triton, ([2, 2], [1, 1], [0, 1])
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    y = ops.conv_transpose2d_forward(x, weight, bias, *geometry, "relu", 0.0, "library").detach()
    torch.library.opcheck(
        ops.conv_transpose2d_forward, (x, weight, bias, *geometry, "relu", 0.0, "library"), test_utils=tests
    )
    torch.library.opcheck(
        ops.conv_transpose2d_input_gradient,
        (torch.randn_like(y), y, weight, x.shape, *geometry, "relu", 0.0, "library"),
        test_utils=tests,
    )
    torch.library.opcheck(
        ops.conv_transpose2d_weight_gradient, (y, x, weight.shape, *geometry, "triton"), test_utils=tests
    )

    def penalty(x, weight, bias, impl="triton"):
        y = conv_transpose2d(x, weight, bias, stride=2, padding=1, activation="lrelu", impl=impl)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (weight, bias))

    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = torch.compile(penalty, fullgraph=True, backend="aot_eager")(x, weight, bias)
    torch.testing.assert_close(got, penalty(x, weight, bias, "reference"), **EXACT)


@pytest.mark.parametrize("argument", [{"groups": 2}, {"dilation": 2}], ids=str)
def test_what_has_no_kernel_is_refused_or_left_to_the_library(argument, caplog):
    x, weight = drawn(1, 2, 2, 2), drawn(2, 2, 3, 3)
    with pytest.raises(ImplementationUnavailable, match=f"the Triton kernels have {next(iter(argument))} 1"):
        conv_transpose2d(x, weight, **argument, impl="triton")
    gankernels.dispatch.forget()
    with gankernels.use("triton"), caplog.at_level(logging.WARNING, "gankernels"):
        y = conv_transpose2d(x, weight, **argument)
    assert "runs on library" in caplog.text
    torch.testing.assert_close(y, F.conv_transpose2d(x, weight, **argument), **EXACT)


def test_the_same_bits_again():
    x, dy = drawn(2, 3, 3, 3, dtype=torch.float32), drawn(2, 4, 6, 6, dtype=torch.float32)
    runs = [kernels.conv_transpose2d_weight_gradient(dy, x, (3, 4, 4, 4), (2, 2), (1, 1), (0, 0)) for _ in range(2)]
    assert torch.equal(*runs)


def test_tiles():
    for capability in (75, 80, 86, 89, 90, 100, 103, 120):
        for precision in ("16", "tf32", "ieee", "fp64"):
            for transformed in (False, True):
                found = tiles.table(capability, precision, transformed)
                for rows, columns, depth in ((1, 1, 1), (64, 3, 1024), (10**6, 1024, 1024), (16384, 96, 192)):
                    tile = tiles.choose(found, rows, columns, depth, 4)
                    assert tile.k >= 16
                    assert 16 <= tile.n <= max(16, 2 * columns)
    # What runs on 99 KB of shared memory: sm_86, sm_89 and sm_120 have no more.
    assert tiles.table(120, "16", False) == tiles.table(89, "16", False) == tiles.table(80, "16", False)
    # A large problem gets the widest tile, a small one that fills no GPU the least.
    wide = tiles.table(90, "16", False)
    assert tiles.choose(wide, 65536, 512, 512, 4) == wide[0]
    assert tiles.choose(wide, 64, 32, 512, 1) == wide[-1]
    for programs, blocks in ((1, 1), (64, 1000), (16, 7), (2000, 50)):
        splits, steps = tiles.splits(programs, blocks)
        assert splits * steps >= blocks > (splits - 1) * steps


@pytest.mark.gpu
@COMPILED
def test_cuda_graph():
    x, weight = drawn(2, 32, 8, 8, dtype=torch.bfloat16), drawn(32, 16, 4, 4, dtype=torch.bfloat16)
    geometry = ((2, 2), (1, 1), (0, 0))

    def both():
        y, mean, var = kernels.conv_transpose2d_forward_with_moments(x, weight, None, *geometry, "relu")
        dx = kernels.conv_transpose2d_input_gradient(y, y, weight, x.shape, *geometry, "relu")
        return [y, mean, var, dx, kernels.conv_transpose2d_weight_gradient(y, x, weight.shape, *geometry)]

    want = both()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = both()
    graph.replay()
    for captured, plain in zip(got, want, strict=True):
        assert torch.equal(captured, plain)
