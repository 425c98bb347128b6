"""The attention of SAGAN and BigGAN, against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gankernels.bench.memory import peak_mib, saved_mib
from gankernels.models.attention import SelfAttention
from gankernels.ops import _attention
from gankernels.ops._attention import attention


def definition(query, key, value):
    return (query @ key.mT).softmax(2) @ value


def operands(n=2, pixels=9, keys=5, c=2, d=6, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(n, s, w, dtype=dtype).requires_grad_() for s, w in ((pixels, c), (keys, c), (keys, d))]


def orders(function, tensors):
    """The result, its gradients, and the gradients of a function of those."""
    y = function(*tensors)
    dy = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).requires_grad_()
    first = torch.autograd.grad(y, tensors, dy, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), [dy, *tensors])
    return [y, *first, *second]


@pytest.mark.parametrize("sizes", [{}, {"n": 1, "pixels": 1, "keys": 1, "c": 1, "d": 1}, {"c": 7, "d": 3}])
def test_is_its_definition(sizes):
    tensors = operands(**sizes)
    for got, want in zip(orders(attention, tensors), orders(definition, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_gradients():
    tensors = operands(1, 4, 3, 2, 3)
    assert torch.autograd.gradcheck(attention, tensors)
    assert torch.autograd.gradgradcheck(attention, tensors)


def test_third_order():
    tensors = operands(1, 3, 2, 1, 2)

    def second(function):
        first = torch.autograd.grad(function(*tensors).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), tensors, create_graph=True)

    results = [
        torch.autograd.grad(sum(g.square().sum() for g in second(function)), tensors)
        for function in (attention, definition)
    ]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_at_most_twice_eagers(dtype):
    exact = operands(3, 70, 40, 3, 12)
    low = [t.detach().to(dtype).requires_grad_() for t in exact]
    exact = [t.detach().double().requires_grad_() for t in low]
    dy = torch.randn(3, 70, 12, dtype=torch.float64).to(dtype)

    def first(function, tensors):
        y = function(*tensors)
        return [y, *torch.autograd.grad(y, tensors, dy.to(y.dtype))]

    results = zip(first(attention, low), first(definition, low), first(definition, exact), strict=True)
    for got, eager, want in results:
        assert got.dtype == dtype
        error, allowed = ((t.double() - want).abs() for t in (got, eager))
        assert error.max() <= 2 * allowed.max() + torch.finfo(dtype).eps
        assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + torch.finfo(dtype).eps


def test_registration():
    tensors = operands(2, 4, 3, 2, 3)
    ops = torch.ops.gankernels_library
    torch.library.opcheck(ops.attention_forward.default, tuple(tensors))
    y, sums = (t.detach() for t in ops.attention_forward(*tensors))
    dy = torch.randn_like(y).requires_grad_()
    torch.library.opcheck(ops.attention_backward.default, (dy, *tensors, y, sums))


def test_strides_and_no_operands():
    query, key, value = operands()
    transposed = [t.detach().mT.contiguous().mT for t in (query, key, value)]
    torch.testing.assert_close(attention(*transposed), definition(query, key, value))
    assert attention(*(t[:0] for t in (query, key, value))).shape == (0, 9, 6)


def test_compiled():
    tensors = operands(dtype=torch.float32)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    results = [torch.autograd.grad(f(*tensors).sin().sum(), tensors) for f in (compiled, attention)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_memory_is_that_of_the_operands():
    tensors = operands(2, 512, 256, 4, 8, dtype=torch.float32)
    own = sum(t.nbytes for t in tensors) + 2 * 512 * (8 + 1) * 4  # y, and a number for each row
    assert saved_mib(attention, tensors) * 2**20 == own
    matrix = 2 * 512 * 256 * 4

    def step():
        return torch.autograd.grad(attention(*tensors).sum(), tensors)

    step()
    assert peak_mib(step, "cpu") * 2**20 < matrix


def test_is_pytorchs_where_it_cannot_be_ours(monkeypatch):
    tensors = operands(dtype=torch.float32)
    want = definition(*tensors)
    monkeypatch.setattr(_attention, "attention_forward", None)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(attention(*tensors), want)
        _, tangent = torch.func.jvp(lambda q: attention(q, *tensors[1:]), (tensors[0],), (torch.ones_like(tensors[0]),))
    assert tangent.abs().max() > 0
    torch.testing.assert_close(torch.vmap(lambda *t: attention(*(x[None] for x in t))[0])(*tensors), want)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_layer_in_both_layouts(memory_format):
    torch.manual_seed(0)
    layer = SelfAttention(8, lambda convolution: convolution).double()
    layer.gamma.data.fill_(0.5)
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64)
    query, key, value = (conv(x) for conv in (layer.theta, layer.phi, layer.g))
    key, value = (F.max_pool2d(t, 2) for t in (key, value))
    h = definition(*(t.flatten(2).mT for t in (query, key, value))).mT.unflatten(2, (5, 4))
    torch.testing.assert_close(layer(x.to(memory_format=memory_format)), x + 0.5 * layer.o(h))
