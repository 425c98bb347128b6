"""The CPU's own convolution in channels_last, through the ops that it stands behind, and weight gradients in groups."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import inputs, two_orders
from torch.autograd import profiler

from gankernels import _native, verification
from gankernels.ops import _convolution_library, conv2d, conv_transpose2d

if _native.extension is None:
    pytest.skip(f"no native extension: {_native.why_no_cpu}", allow_module_level=True)

_NEVER, _BY_RULE, _ALWAYS = range(3)


@pytest.fixture
def set_own():
    """Sets when the two kernels run, for this test."""
    extension = _native.extension

    def set_both(when: int) -> tuple[int, int]:
        return extension.own_convolutions(when), extension.own_weight_gradients(when)

    before = set_both(_ALWAYS)
    yield set_both
    extension.own_convolutions(before[0])
    extension.own_weight_gradients(before[1])


def _library_calls(function) -> int:
    """How many convolutions and matrix products of PyTorch's ``function()`` makes."""
    with profiler.profile() as profile:
        function()
    names = [event.name for event in profile.function_events]
    return sum(names.count(f"aten::{name}") for name in ("convolution", "convolution_backward", "mm", "addmm"))


dtypes = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(
            d,
            marks=pytest.mark.skipif(
                d != torch.float32 and _convolution_library.has_hardware("cpu", d),
                reason=f"the library multiplies in {d}",
            ),
            id=str(d),
        )
        for d in (torch.float32, torch.bfloat16, torch.float16)
    ],
)

# What a convolution of each kind calls of the library: where a stride would leave zeros, one for each of the two dx.
_CASES = [
    pytest.param(conv2d, F.conv2d, ((3, 48, 9, 8), (48, 16, 3, 3), 48), {"padding": 1, "groups": 3}, 0, id="groups"),
    pytest.param(conv2d, F.conv2d, ((2, 6, 7, 5), (10, 3, 3, 3), 10), {"padding": 1, "groups": 2}, 0, id="odd groups"),
    pytest.param(
        conv2d, F.conv2d, ((2, 40, 6, 5), (40, 8, 3, 3), 40), {"padding": 1, "groups": 5}, 0, id="pairs of groups"
    ),
    pytest.param(conv2d, F.conv2d, ((2, 5, 6, 6), (5, 1, 3, 3), 5), {"padding": 1, "groups": 5}, 0, id="depthwise"),
    pytest.param(conv2d, F.conv2d, ((2, 19, 9, 8), (35, 19, 3, 3), 35), {"padding": 1}, 0, id="dense"),
    pytest.param(conv2d, F.conv2d, ((2, 17, 8, 20), (24, 17, 1, 1), 24), {}, 0, id="1x1"),
    pytest.param(
        conv2d,
        F.conv2d,
        ((2, 8, 6, 5), (12, 4, 2, 3), 12),
        {"padding": (0, 4), "dilation": (3, 2), "groups": 2},
        0,
        id="padding beyond the kernel",
    ),
    pytest.param(
        conv2d, F.conv2d, ((3, 32, 8, 8), (48, 16, 4, 4), 48), {"stride": 2, "padding": 1, "groups": 2}, 2, id="stride"
    ),
    pytest.param(
        conv_transpose2d,
        F.conv_transpose2d,
        ((2, 32, 5, 4), (32, 18, 3, 3), 36),
        {"padding": 1, "groups": 2},
        0,
        id="transposed",
    ),
]


@dtypes
@pytest.mark.parametrize(("ours", "stock", "sizes", "options", "calls"), _CASES)
def test_error_at_most_twice_eager(ours, stock, sizes, options, calls, dtype, set_own, poisoned):
    tensors = inputs(*sizes, dtype=dtype, layout="channels_last")
    exact = two_orders(lambda *t: stock(*t, **options), [t.detach().double().requires_grad_() for t in tensors])
    eager = [
        two_orders(lambda *t: stock(*t, **options), inputs(*sizes, dtype=dtype, layout=name))
        for name in ("contiguous", "channels_last")
    ]
    got = []
    assert _library_calls(lambda: got.extend(two_orders(lambda *t: ours(*t, **options), tensors))) == calls
    assert (why := verification.beyond_twice_eager(got, exact, eager)) is None, why


def test_same_bits_on_every_number_of_threads(set_own):
    x = torch.randn(5, 96, 17, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(96, 16, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()

    def run():
        return two_orders(lambda *t: conv2d(*t, padding=1, groups=6), [x, weight])

    want = run()
    assert want[0].is_contiguous(memory_format=torch.channels_last)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(run(), want, strict=True))


def test_operands_of_any_strides(set_own):
    x, weight = torch.randn(2, 32, 8, 6), torch.randn(32, 16, 3, 3)
    want = F.conv2d(x, weight, padding=1, groups=2)
    wide = torch.randn(2, 8, 12, 70)
    wide[:, :, ::2, ::2][..., :32] = x.permute(0, 2, 3, 1)
    strided = wide[:, :, ::2, ::2][..., :32].permute(0, 3, 1, 2)
    rows = weight.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)  # neither layout
    for a, b in ((strided, weight), (x.contiguous(memory_format=torch.channels_last), rows)):
        got = conv2d(a, b, padding=1, groups=2)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)
        assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_padded_zero_is_not_multiplied(set_own):
    """An infinite weight in a corner reaches the pixels that it meets x at, and NaN goes where x has it alone."""
    x = torch.rand(1, 32, 4, 4).add(1).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(32, 16, 3, 3).contiguous(memory_format=torch.channels_last)
    weight[:16, :, 0, 0] = torch.inf
    y = conv2d(x, weight, padding=1, groups=2)
    assert y[:, :16, 1:, 1:].isposinf().all()
    assert y[:, :16, 0].isfinite().all()
    assert y[:, :16, :, 0].isfinite().all()
    assert y[:, 16:].isfinite().all()
    x[0, 20, 0, 0] = torch.nan
    y = conv2d(x, weight, padding=1, groups=2)
    assert y[:, 16:, :2, :2].isnan().all()
    assert not y[:, :16].isnan().any()
    assert y[:, 16:, 2:].isfinite().all()
    assert y[:, 16:, :, 2:].isfinite().all()


@pytest.mark.parametrize("size", [(0, 32, 4, 4), (2, 0, 4, 4)])
def test_empty(size, set_own):
    x = torch.randn(size).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(32, size[1] // 2, 3, 3).requires_grad_()
    y = conv2d(x, weight, padding=1, groups=2)
    assert y.shape == (size[0], 32, 4, 4)
    assert not y.any()
    dx, dw = torch.autograd.grad(y.sum(), (x, weight))
    assert dx.shape == x.shape
    assert dw.shape == weight.shape
    assert not dw.any()


@pytest.mark.parametrize(
    ("x_size", "weight_size", "own"),
    [
        ((2, 192, 8, 8), (192, 16, 3, 3), (True, True, True)),
        ((2, 64, 8, 8), (64, 32, 3, 3), (True, True, True)),
        ((2, 32, 8, 8), (32, 8, 3, 3), (True, True, False)),
        ((2, 20, 8, 8), (20, 4, 3, 3), (False, False, False)),
        ((2, 16, 8, 8), (16, 1, 3, 3), (False, False, False)),
        ((2, 16, 8, 8), (64, 4, 3, 3), (True, False, False)),
        ((2, 32, 8, 8), (32, 32, 3, 3), (False, False, True)),
        ((2, 32, 8, 8), (96, 32, 1, 1), (True, True, False)),
        ((2, 32, 8, 8), (3, 32, 1, 1), (False, False, False)),
        ((2, 32, 1, 1), (64, 32, 1, 1), (False, False, False)),
    ],
)
def test_rule(x_size, weight_size, own, set_own):
    """y, dx and dw, by channels: 1x1 without padding, others with one that keeps the size."""
    padding = weight_size[-1] // 2
    geometry = ([1, 1], [padding] * 2, [1, 1], False, [0, 0], x_size[1] // weight_size[1])
    x, weight, _ = (t.detach() for t in inputs(x_size, weight_size, 1, dtype=torch.float32, layout="channels_last"))
    library = torch.ops.gankernels_library
    y = library.convolution(x, weight, None, *geometry)
    calls = (
        lambda: library.convolution(x, weight, None, *geometry),
        lambda: library.convolution_input_gradient(y, weight, x_size, *geometry),
        lambda: library.convolution_weight_gradient(y, x, weight_size, False, *geometry),
    )
    set_own(_BY_RULE)
    is_avx2 = _native.extension.cpu_isa() == "avx2"
    assert [_library_calls(call) == 0 for call in calls] == [is_avx2 and takes for takes in own]
    set_own(_NEVER)
    assert all(map(_library_calls, calls))


def test_other_dtypes_and_layouts_are_the_library_s(set_own):
    for dtype, layout in ((torch.float64, "channels_last"), (torch.float32, "contiguous")):
        x, weight, bias = inputs((2, 32, 6, 6), (32, 16, 3, 3), 32, dtype=dtype, layout=layout)
        assert _library_calls(lambda t=(x, weight, bias): conv2d(*t, padding=1, groups=2)) == 1


def test_compiled_penalty_equals_eager(set_own):
    """The kernels behind a whole penalty, by double backward, as torch.compile has it."""
    x, weight, bias = inputs((2, 32, 6, 6), (32, 16, 3, 3), 32, dtype=torch.float32, layout="channels_last")

    def penalty(x, weight, bias):
        (dx,) = torch.autograd.grad(conv2d(x, weight, bias, padding=1, groups=2).square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), (weight, bias))

    with torch._dynamo.config.patch(trace_autograd_ops=True):
        got = torch.compile(penalty, fullgraph=True, backend="aot_eager")(x, weight, bias)
    for a, b in zip(got, penalty(x, weight, bias), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4 * b.abs().max().item())
