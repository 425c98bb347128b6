"""The layouts, dtypes and routes of conv2d."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from convolutions import LAYOUTS, inputs, plain_conv2d, two_orders

from gankernels import verification
from gankernels.ops import _convolution_library, conv2d
from implementations import kernels_of

KERNELS = kernels_of("conv2d")
kernels = pytest.mark.parametrize(("device", "impl"), KERNELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


@kernels
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [
        ((2, 4, 5, 5), (6, 4, 3, 3)),
        ((2, 1, 5, 5), (6, 1, 3, 3)),
        ((2, 4, 5, 5), (6, 4, 1, 1)),
        ((2, 4, 3, 3), (1, 4, 3, 3)),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_are_pytorchs(device, impl, x_shape, weight_shape, dtype):
    for layout in LAYOUTS:
        for weight_layout in LAYOUTS:
            x, weight, bias = inputs(
                x_shape,
                weight_shape,
                weight_shape[0],
                dtype=dtype,
                layout=layout,
                weight_layout=weight_layout,
                device=device,
            )
            y, want = conv2d(x, weight, bias, padding=1, impl=impl), F.conv2d(x, weight, bias, padding=1)
            same = (a == b for a, b, size in zip(y.stride(), want.stride(), y.shape, strict=True) if size != 1)
            assert all(same), (layout, weight_layout)
            if layout == weight_layout:
                for t, gradient in zip(
                    (x, weight), torch.autograd.grad(y, (x, weight), torch.ones_like(y)), strict=True
                ):
                    assert gradient.is_contiguous(memory_format=LAYOUTS[layout])
                    assert gradient.shape == t.shape


@kernels
@layouts
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 8])
def test_error_at_most_twice_eager(device, impl, layout, dtype, groups):
    arguments = {"padding": 1, "groups": groups}
    tensors = inputs((4, 16, 9, 8), (16, 16 // groups, 3, 3), 16, dtype=dtype, device=device, layout=layout)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = two_orders(lambda *t: conv2d(*t, **arguments, impl="reference"), wide)
    eager = two_orders(lambda *t: F.conv2d(*t, **arguments), tensors)
    ours = two_orders(lambda *t: conv2d(*t, **arguments, impl=impl), tensors)
    assert (why := verification.beyond_twice_eager(ours, exact, [eager])) is None, why


@layouts
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("hardware", [False, True])
def test_the_routes_of_other_processors(layout, dtype, groups, hardware, monkeypatch):
    monkeypatch.setattr(_convolution_library, "_CPU_HARDWARE", {dtype: hardware})
    tensors = inputs((2, 8, 5, 4), (8, 8 // groups, 3, 3), 8, dtype=dtype, layout=layout)
    wide = [t.detach().double().requires_grad_() for t in tensors]
    exact = two_orders(lambda *t: plain_conv2d(*t, padding=1, groups=groups), wide)
    ours = two_orders(lambda *t: conv2d(*t, padding=1, groups=groups, impl="library"), tensors)
    assert (why := verification.another_function(ours, exact, dtype)) is None, why
    assert all(t.is_contiguous(memory_format=LAYOUTS[layout]) for t in ours if t.dim() == 4)


def test_the_rule():
    plan = _convolution_library.plan
    for groups in (1, 8):
        for last in (False, True):
            for device in ("cpu", "cuda"):
                assert plan(device, torch.float32, groups, last, True) == (torch.float32, last)
                assert plan(device, torch.float64, groups, last, True) == (torch.float64, last)
            for dtype in (torch.bfloat16, torch.float16):
                assert plan("cpu", dtype, groups, last, False) == (torch.float32, last)
                assert plan("cpu", dtype, groups, last, True) == (dtype, last or groups == 1)
    assert _convolution_library.has_hardware("cuda", torch.bfloat16)


@kernels
def test_autocast_casts_as_pytorch_does(device, impl):
    x, weight, bias = inputs((2, 4, 6, 6), (4, 2, 3, 3), 4, dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = conv2d(x, weight, bias, groups=2, impl=impl)
        assert y.dtype == torch.bfloat16
        # The backward, and its backward, run under autocast too.
        (dx,) = torch.autograd.grad(y.float().pow(2).sum(), x, create_graph=True)
        dw = torch.autograd.grad(dx.pow(2).sum(), weight)[0]
        assert conv2d(x.double(), weight.double(), groups=2, impl=impl).dtype == torch.float64
    assert (dx.dtype, dw.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(y, conv2d(x.bfloat16(), weight.bfloat16(), bias.bfloat16(), groups=2, impl=impl))
    wide = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    (dx,) = torch.autograd.grad(conv2d(*wide, groups=2).pow(2).sum(), wide[0], create_graph=True)
    exact = torch.autograd.grad(dx.pow(2).sum(), wide[1])[0]
    assert (dw - exact).norm() < 0.05 * exact.norm()
