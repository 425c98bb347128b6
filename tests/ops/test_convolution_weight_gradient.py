"""The CPU's own weight gradient of dense convolutions in channels_last, through the ops that it stands behind."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import inputs, two_orders
from resampled_convolutions import stock_down, stock_up

from gankernels import _native, verification
from gankernels.ops import _convolution_library, conv2d, conv2d_downsample, conv_transpose2d, upsample_conv2d

if _native.extension is None:
    pytest.skip(f"no native extension: {_native.why_no_cpu}", allow_module_level=True)

_NEVER, _BY_RULE, _ALWAYS = range(3)
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def set_own():
    """Sets when the kernel runs, for this test; a call that it does not take goes by the plan, whatever its size."""
    extension = _native.extension
    few, before = extension.few_products(-1), extension.own_weight_gradients(_ALWAYS)
    yield extension.own_weight_gradients
    extension.few_products(few)
    extension.own_weight_gradients(before)


@pytest.fixture
def planned(set_own, monkeypatch):
    """The dtypes of the weight gradients that went by the plan, and not to the kernel."""
    calls = []
    plan = _convolution_library.planned_convolution_weight_gradient

    def record(dy, *arguments):
        calls.append(dy.dtype)
        return plan(dy, *arguments)

    monkeypatch.setattr(_convolution_library, "planned_convolution_weight_gradient", record)
    return calls


def _takes(dtype: torch.dtype) -> bool:
    """Whether the kernel takes a dtype: not where the CPU multiplies in 16 bits."""
    return dtype == torch.float32 or not _convolution_library.has_hardware("cpu", dtype)


dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(d, marks=pytest.mark.skipif(not _takes(d), reason=f"the library multiplies in {d}"), id=str(d))
        for d in _DTYPES
    ],
)


def _twice_eager(ours, stock, sizes, dtype):
    """y, its gradients, and theirs, in ``dtype`` against fp64; eager in either layout."""
    tensors = inputs(*sizes, dtype=dtype, layout="channels_last")
    exact = two_orders(stock, [t.detach().double().requires_grad_() for t in tensors])
    eager = [two_orders(stock, inputs(*sizes, dtype=dtype, layout=name)) for name in ("contiguous", "channels_last")]
    assert (why := verification.beyond_twice_eager(two_orders(ours, tensors), exact, eager)) is None, why


@dtypes
@pytest.mark.parametrize(
    ("ours", "stock", "sizes", "options"),
    [
        (conv2d, F.conv2d, ((2, 19, 9, 8), (13, 19, 3, 3), 13), {"padding": 1}),
        (conv2d, F.conv2d, ((3, 40, 8, 8), (24, 40, 4, 4), 24), {"stride": 2, "padding": 1}),
        (conv2d, F.conv2d, ((2, 5, 13, 9), (6, 5, 2, 3), 6), {"stride": (3, 1), "padding": (2, 4), "dilation": (1, 3)}),
        (conv2d, F.conv2d, ((2, 17, 8, 20), (8, 17, 1, 1), 8), {}),
        (conv2d, F.conv2d, ((1, 16, 1, 1), (6, 16, 3, 3), 6), {"padding": 2}),
        (conv_transpose2d, F.conv_transpose2d, ((2, 24, 5, 4), (24, 18, 4, 4), 18), {"stride": 2, "padding": 1}),
        (conv_transpose2d, F.conv_transpose2d, ((2, 6, 5, 4), (6, 16, 3, 3), 16), {"stride": 2, "output_padding": 1}),
        (upsample_conv2d, stock_up, ((2, 12, 6, 5), (16, 12, 3, 3), 16), {}),
        (conv2d_downsample, stock_down, ((2, 16, 10, 8), (12, 16, 3, 3), 12), {}),
    ],
    ids=(
        "3x3",
        "4x4 stride 2",
        "strides, padding and dilation",
        "1x1",
        "one pixel",
        "transposed",
        "output padding",
        "behind nearest x2",
        "before a mean",
    ),
)
def test_error_at_most_twice_eager(ours, stock, sizes, options, dtype, planned, poisoned):
    _twice_eager(lambda *t: ours(*t, **options), lambda *t: stock(*t, **options), sizes, dtype)
    assert not planned


def test_blocks_of_pixels_and_of_channels(planned, poisoned):
    """More than a block of either, on every number of threads to the same bits."""
    dy, x = torch.randn(5, 400, 17, 9), torch.randn(5, 37, 17, 9)
    weight_size = (400, 37, 3, 3)

    def gradient(dy, x):
        geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return torch.ops.gankernels_library.convolution_weight_gradient(dy, x, weight_size, True, *geometry)

    operands = [t.contiguous(memory_format=torch.channels_last) for t in (dy, x)]
    dw, db = gradient(*operands)
    assert not planned
    assert dw.is_contiguous(memory_format=torch.channels_last)
    exact = torch.nn.grad.conv2d_weight(x.double(), weight_size, dy.double(), padding=1)
    torch.testing.assert_close(dw.double(), exact, rtol=0, atol=2e-6 * exact.abs().max().item())
    torch.testing.assert_close(db.double(), dy.double().sum((0, 2, 3)), rtol=1e-5, atol=1e-4)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(gradient(*operands)[0], dw)


def test_operands_of_any_strides(planned):
    x, dy = torch.randn(2, 20, 8, 6), torch.randn(2, 9, 8, 6)
    want = torch.nn.grad.conv2d_weight(x, (9, 20, 3, 3), dy, padding=1)
    wide = torch.randn(2, 8, 12, 40)
    wide[:, :, ::2, ::2] = x.permute(0, 2, 3, 1)
    weight = torch.zeros(9, 20, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    for strided in (x, wide[:, :, ::2, ::2].permute(0, 3, 1, 2)):
        (got,) = torch.autograd.grad(conv2d(strided, weight, padding=1), weight, dy.expand(2, 9, 8, 6))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_a_padded_zero_is_not_multiplied(planned):
    """An infinite dy in a corner reaches the taps that lie on x, and no other."""
    x = torch.rand(1, 16, 4, 4).add(1).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(6, 16, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    dy = torch.ones(1, 6, 4, 4).contiguous(memory_format=torch.channels_last)
    dy[..., 0, 0] = torch.inf
    (dw,) = torch.autograd.grad(conv2d(x, weight, padding=1), weight, dy)
    assert not planned
    assert dw[..., 1:, 1:].isposinf().all()
    assert dw[..., 0, :].isfinite().all()
    assert dw[..., :, 0].isfinite().all()


def test_the_rest_goes_by_the_plan(planned):
    def run(layout="channels_last", dtype=torch.float32, groups=1, size=(2, 16, 6, 6)):
        tensors = inputs(size, (8, 16 // groups, 3, 3), 8, dtype=dtype, layout=layout)
        y = conv2d(*tensors, padding=1, groups=groups)
        torch.autograd.grad(y, tensors, torch.ones_like(y))

    run()
    assert not planned
    run(dtype=torch.float64)
    assert planned == [torch.float64]
    run(layout="contiguous")
    run(size=(0, 16, 6, 6))
    assert planned == [torch.float64, torch.float32, torch.float32]
    run(groups=2)  # ATen's at once
    assert len(planned) == 3


@pytest.mark.parametrize(
    ("x_size", "weight_size", "options", "own"),
    [
        ((2, 96, 16, 16), (96, 96, 3, 3), {"padding": 1}, True),
        ((2, 64, 8, 8), (3, 64, 3, 3), {"padding": 1}, True),
        ((2, 64, 8, 8), (32, 64, 4, 4), {"stride": 2, "padding": 1}, True),
        ((2, 64, 8, 8), (32, 64, 1, 1), {"stride": 2}, True),
        ((2, 64, 8, 8), (32, 64, 1, 1), {}, False),
        ((2, 64, 8, 8), (64, 64, 1, 1), {}, True),
        ((1, 512, 33, 31), (512, 512, 1, 1), {}, True),
        ((1, 512, 32, 32), (512, 512, 1, 1), {}, False),
        ((1, 496, 32, 32), (512, 496, 1, 1), {}, True),
        ((2, 64, 4, 4), (32, 64, 4, 4), {}, False),
        ((2, 3, 8, 8), (64, 3, 3, 3), {"padding": 1}, False),
        ((2, 20, 8, 8), (64, 20, 3, 3), {"padding": 1}, False),
    ],
)
def test_rule(x_size, weight_size, options, own, set_own, planned):
    set_own(_BY_RULE)
    tensors = inputs(x_size, weight_size, weight_size[0], dtype=torch.float32, layout="channels_last")
    y = conv2d(*tensors, **options)
    torch.autograd.grad(y, tensors[1], torch.ones_like(y))
    assert (not planned) is (own and _native.extension.cpu_isa() == "avx2")
    set_own(_NEVER)
    planned.clear()
    torch.autograd.grad(conv2d(*tensors, **options), tensors[1], torch.ones_like(y))
    assert planned
