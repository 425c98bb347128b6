"""Penalties under torch.func, forward-mode AD, torch.compile and in CUDA graphs."""

from __future__ import annotations

import copy
import subprocess
import sys

import double_backprop as double
import pytest
import torch
from critics import critic, pictures
from torch import Tensor, nn

import gankernels
from gankernels.penalties import d_step


def _penalty(discriminator, x):
    return gankernels.gradient_penalty(discriminator, x)


def _step(discriminator, x):
    return d_step(discriminator, x, x.detach()).penalty


@pytest.mark.parametrize("function", [_penalty, _step])
def test_transforms_are_refused(function):
    discriminator, x = critic(), pictures(2, torch.float32)
    name = {_penalty: "gradient_penalty", _step: "d_step"}[function]
    calls = {
        "grad": lambda: torch.func.grad(lambda x: function(discriminator, x))(x),
        "vmap": lambda: torch.func.vmap(lambda x: function(discriminator, x))(x.unsqueeze(0)),
        "jvp": lambda: torch.func.jvp(lambda x: function(discriminator, x), (x,), (x,)),
    }
    for call in calls.values():
        with pytest.raises(RuntimeError, match=rf"^{name}: torch\.func"):
            call()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=f"^{name}: forward-mode"):
        function(discriminator, torch.autograd.forward_ad.make_dual(x, x))


@pytest.mark.gpu
@pytest.mark.parametrize("penalty", ["r1+r2", "wgan-gp"])
@pytest.mark.parametrize("tail", ["in the class", "batch norm"])
def test_cuda_graph(penalty, tail):
    """Every replay of a captured step gives the gradients of an eager one on the pictures of that moment."""
    discriminator = critic(*([nn.BatchNorm2d(8)] if tail == "batch norm" else [])).double().cuda()
    twin = copy.deepcopy(discriminator)
    batches = [tuple(pictures(4, seed=seed).cuda() for seed in (first, first + 1)) for first in (0, 2, 4)]
    real, fake = (x.clone() for x in batches[0])

    def step(module: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        points = (real + fake) / 2 if penalty == "wgan-gp" else None
        return torch.stack(d_step(module, real, fake, penalty=penalty, points=points))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose their algorithms, and .grad gets its memory
        step(discriminator, real, fake)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        discriminator.zero_grad(set_to_none=False)
        scalars = step(discriminator, real, fake)
    for batch in batches[1:]:
        for static, given in zip((real, fake), batch, strict=True):
            static.copy_(given)
        graph.replay()
        twin.zero_grad()
        torch.testing.assert_close(scalars, step(twin, *batch))
        assert double.relative_error(double.accumulated(discriminator), double.accumulated(twin)) <= 1e-10


_COMPILED = """
import torch, gankernels
from torch import Tensor, nn

class Cube(torch.autograd.Function):  # a bare Function, twice differentiable
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g

class D(nn.Module):
    def __init__(self, bare):
        super().__init__()
        self.bare, self.w = bare, nn.Parameter(torch.tensor([1.0, 2.0]))
    def forward(self, x):
        z = x * self.w
        return (Cube.apply(z) if self.bare else torch.tanh(z)).sum(1)

def double(d, x):
    x = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(d(x).sum(), x, create_graph=True)
    return g.square().sum(1).mean() / 2

x = torch.tensor([[1.0, 0.5], [0.3, 2.0]])
def gradients(step, d):
    d.w.grad = None
    step(d, x).backward()
    return d.w.grad
bare, smooth = D(True), D(False)
torch._dynamo.config.trace_autograd_ops = True
theirs = torch.compile(double, backend="aot_eager")
trapped = True
try:
    trapped = not torch.allclose(gradients(theirs, bare), gradients(double, bare))
except Exception:
    pass
print("trapped", trapped)
ours = torch.compile(lambda d, x: gankernels.gradient_penalty(d, x) * 1.0, backend="aot_eager")
for d in (bare, smooth, torch.compile(smooth, backend="aot_eager")):
    plain = getattr(d, "_orig_mod", d)
    d.w.grad = None
    ours(d, x).backward()
    got = plain.w.grad.clone()
    print("ours", torch.allclose(got, gradients(double, plain)))
"""


def test_compiled_steps():
    """Double backprop through a bare autograd.Function is wrong in a compiled step; ours is right there."""
    run = subprocess.run([sys.executable, "-c", _COMPILED], capture_output=True, text=True, timeout=200, check=False)
    assert run.stdout.split("\n")[:4] == ["trapped True", "ours True", "ours True", "ours True"], run.stderr[-3000:]
