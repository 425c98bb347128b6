"""What conditional_batch_norm promises torch.library, torch.compile and autograd."""

from __future__ import annotations

import pytest
import torch
from batch_norms import inputs, kernels
from contracts import assert_one_schema, assert_raises_where_torch_would_be_silently_wrong

from gankernels.ops import conditional_batch_norm
from gankernels.ops.conditional_batch_norm import op, synchronized


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
    assert_one_schema(op.SCHEMAS | synchronized.PARTS)


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
    assert_raises_where_torch_would_be_silently_wrong(lambda x: conditional_batch_norm(x, gain, bias, impl=impl), x)


@kernels
def test_saves_x_and_nothing_else_with_pixels(device, impl):
    x, gain, bias = inputs((4, 8, 16, 16), dtype=torch.float32, device=device)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        conditional_batch_norm(x, gain, bias, activation="relu", impl=impl)
    assert sum(t.numel() for t in saved if t.data_ptr() != x.data_ptr()) == 2 * gain.numel() + 2 * 8
