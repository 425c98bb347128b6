"""The autograd formulas that the native ops have in C++: what torch.autograd promises of every node."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from gankernels import _native
from gankernels.ops import bias_act, spectral_norm

pytestmark = pytest.mark.skipif(_native.extension is None, reason=f"no native extension: {_native.why_no_cpu}")

ACTIVATIONS = ("lrelu", "linear", "gelu")


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in ((2, 3, 4), (3,))
    )


class Calls(TorchDispatchMode):
    """The registered ops of ours that run below autograd, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[object, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "gankernels":
            self.seen.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def test_the_formulas_are_the_native_ones():
    x, bias = inputs()
    assert "gankernels::bias_act" in bias_act(x, bias, impl="cpu").grad_fn.name()


def test_a_penalty_does_not_differentiate_the_forward_again():
    x, bias = inputs()
    y = bias_act(x, bias, activation="lrelu", impl="cpu")
    cotangent = torch.ones_like(y, requires_grad=True)
    with Calls() as calls:
        (dx,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
        gradients = torch.autograd.grad(dx.square().sum(), (x, bias, cotangent), materialize_grads=True)
    assert [name for name, _ in calls.seen] == ["bias_act_backward", "bias_act_backward_backward"]
    assert not gradients[0].any()
    assert not gradients[1].any()
    assert gradients[2].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_what_is_asked_for(activation):
    x, bias = inputs()
    y = bias_act(x, bias, activation=activation, impl="cpu")
    with Calls() as calls:
        (dx,) = torch.autograd.grad(y.sum(), x, retain_graph=True, create_graph=True)
        torch.autograd.grad(y.sum(), (x, bias), retain_graph=True)
    assert [args[-1] for _, args in calls.seen] == [False, True]
    cotangent = torch.ones_like(y, requires_grad=True)
    (dx,) = torch.autograd.grad(y, x, cotangent, create_graph=True)
    with Calls() as calls:
        torch.autograd.grad(dx.square().sum(), (cotangent, x), allow_unused=True, retain_graph=True)
        if activation == "gelu":
            torch.autograd.grad(dx.square().sum(), bias)
    # No cotangent for dbias is made up, and bias has one computed where it is asked for.
    second = [(args[1], args[-1]) for name, args in calls.seen if name == "bias_act_backward_backward"]
    assert second == ([(None, False), (None, True)] if activation == "gelu" else [(None, False)])


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_graph_is_used_again_where_it_is_retained(activation):
    x, bias = inputs()
    y = bias_act(x, bias, activation=activation, clamp=1.0, impl="cpu").square().sum()
    once = torch.autograd.grad(y, (x, bias), retain_graph=True)
    again = torch.autograd.grad(y, (x, bias))
    for a, b in zip(once, again, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, bias))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_checkpoint(activation, use_reentrant):
    def function(x, bias):
        return bias_act(x, bias, activation=activation, impl="cpu").exp()

    results = []
    for run in (function, lambda *t: checkpoint(function, *t, use_reentrant=use_reentrant)):
        x, bias = inputs()
        run(x, bias).square().sum().backward()
        results.append((x.grad, bias.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_hooks_and_frozen_inputs():
    x, bias = inputs()
    seen: list[Tensor] = []
    y = bias_act(x, bias, impl="cpu")
    y.register_hook(seen.append)
    y.grad_fn.register_prehook(lambda gradients: seen.append(gradients[0]))
    y.sum().backward()
    assert len(seen) == 2
    assert not bias_act(x.detach(), bias.detach(), impl="cpu").requires_grad
    with torch.no_grad():
        assert not bias_act(x, bias, impl="cpu").requires_grad
    y = bias_act(x.detach(), bias, impl="cpu")
    (dbias,) = torch.autograd.grad(y.sum(), bias)
    assert dbias.shape == bias.shape


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_third_order_is_refused(activation):
    x, bias = inputs()
    y = bias_act(x, bias, activation=activation, impl="cpu")
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="bias_act: third-order gradients are not implemented; pass impl='ref"):
        torch.autograd.grad(ddx.sum(), x)


def test_spectral_norm_differentiates_what_is_asked_for():
    """Of three weights one is frozen and one is not used: the call has the third alone, and so has the next order."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(3, 2, generator=generator, dtype=torch.float64).requires_grad_(i != 1) for i in range(3)]
    u, v = ([torch.ones(size, dtype=torch.float64) for _ in weights] for size in (3, 2))
    y = spectral_norm(weights, u, v, impl="cpu")
    assert "gankernels::spectral_norm" in y[0].grad_fn.name()
    assert not y[1].requires_grad
    with Calls() as calls:
        penalty = _norm_of_gradient(y[1] * y[2], weights[2])
        (dweight,) = torch.autograd.grad(penalty, weights[2], create_graph=True)
    assert [name.removeprefix("spectral_norm_") for name, _ in calls.seen] == [
        "backward", "backward_backward", "backward",
    ]  # fmt: skip
    assert all(len(tensors) == 1 for _, args in calls.seen for tensors in args[:4])
    with pytest.raises(RuntimeError, match="third-order"):
        torch.autograd.grad(dweight.sum(), weights[2])


def _norm_of_gradient(y: Tensor, x: Tensor) -> Tensor:
    return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0].square().sum()
