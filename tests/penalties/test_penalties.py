"""Penalties in low precision, and in the loops that users have."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import weakref

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from critics import conv, critic, pictures
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

import gankernels
from gankernels import InputError
from gankernels.penalties import d_step
from gankernels.penalties.recorder import record
from gankernels.verification import errors


class Patches(nn.Module):
    """A logit for each patch, at two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = conv(3, 4, stride=2), conv(4, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.leaky_relu(self.body(x), 0.2)
        return self.head(h), self.head(F.avg_pool2d(h, 2))


def test_logits_of_patches_and_heads():
    discriminator = Patches().double()
    twin = copy.deepcopy(discriminator)
    real, fake = pictures(3), pictures(2, seed=1)
    exact = double.penalty(twin, real)
    value = gankernels.gradient_penalty(discriminator, real, method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12

    heads = zip(twin(real), twin(fake), strict=True)
    loss = sum(double.LOSSES["hinge"](*head) for head in heads)
    want = double.gradient(loss + 7 * double.penalty(twin, real), twin)
    d_step(discriminator, real, fake, weight=7.0)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12
    with pytest.raises(InputError, match=r"one number for each sample"):
        d_step(discriminator, real, fake, method="fused")


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_bf16_autocast(activation):
    """At most twice the error of eager double backprop under the same autocast."""
    torch.manual_seed(2)
    act = {"relu": nn.ReLU, "silu": nn.SiLU}[activation]
    discriminator = nn.Sequential(
        conv(3, 16), act(), conv(16, 32, 4, stride=2), act(), conv(32, 32), act(), nn.Flatten(), nn.LazyLinear(1)
    )
    real, fake = pictures(16, torch.float32), pictures(16, torch.float32, seed=1)
    discriminator(real)
    exact = copy.deepcopy(discriminator).double()
    value, total = double.step(exact, real.double(), fake.double(), loss="non-saturating", penalty="r1", weight=50.0)
    want = double.gradient(value + 50 * total, exact)
    with torch.autocast("cpu", torch.bfloat16):
        value, total = double.step(discriminator, real, fake, loss="non-saturating", penalty="r1", weight=50.0)
    eager = double.gradient(value + 50 * total, discriminator)
    with torch.autocast("cpu", torch.bfloat16):
        scalars = d_step(discriminator, real, fake, loss="non-saturating", penalty="r1", weight=50.0)
    assert {scalar.dtype for scalar in scalars} == {torch.float32}
    for error, bound in zip(errors(double.accumulated(discriminator), want), errors(eager, want), strict=True):
        assert error <= 2 * bound


def test_fp16_gradients_survive_where_double_backprop_loses_them():
    """Small logits: the inner gradient, unscaled, is below the range of fp16."""
    torch.manual_seed(0)
    discriminator = nn.Sequential(
        conv(3, 8), nn.LeakyReLU(0.2), conv(8, 8), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(512, 1)
    )
    with torch.no_grad():
        discriminator[-1].weight.mul_(1e-4)
    exact = copy.deepcopy(discriminator).double()
    x = pictures(4, torch.float32)
    want = double.gradient(double.penalty(exact, x.double()), exact)
    with torch.autocast("cpu", torch.float16):
        eager = double.gradient(double.penalty(discriminator, x), discriminator)
        value = gankernels.gradient_penalty(discriminator, x)
    got = double.gradient(value, discriminator)
    assert double.relative_error(got, want) < 0.01 < double.relative_error(eager, want)


def test_gradient_scaler():
    """Under autocast to fp16 the gradients carry the scaler's scale, and the step divides by it."""
    discriminator = critic()
    exact = copy.deepcopy(discriminator).double()
    real, fake = pictures(4, torch.float32), pictures(4, torch.float32, seed=1)
    value, total = double.step(exact, real.double(), fake.double(), loss="hinge", penalty="r1", weight=10.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(discriminator.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten() for p in discriminator.parameters()])
    with torch.autocast("cpu", torch.float16):
        d_step(discriminator, real, fake, scaler=scaler)
    scaler.step(optimizer)
    scaler.update()
    moved = before - torch.cat([p.detach().flatten() for p in discriminator.parameters()])
    assert double.relative_error(moved, double.gradient(value + 10 * total, exact)) < 0.01


class Shared(nn.Module):
    """One convolution, used twice, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.frozen = conv(3, 4), conv(4, 4), conv(4, 4).requires_grad_(False)
        self.head = nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = F.relu(self.twice(F.relu(self.twice(h))))
        return self.head(F.leaky_relu(self.frozen(h), 0.2).flatten(1))


def test_shared_and_frozen_parameters_and_accumulation():
    discriminator = Shared().double()
    twin = copy.deepcopy(discriminator)
    want = torch.zeros(())
    for seed in (0, 2):
        real, fake = pictures(3, seed=seed), pictures(2, seed=seed + 1)
        value, total = double.step(twin, real, fake, loss="hinge", penalty="r2", weight=10.0)
        want = want + double.gradient(value + 10 * total, twin)
        d_step(discriminator, real, fake, penalty="r2", method="fused")
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12
    assert discriminator.frozen.weight.grad is None
    discriminator.requires_grad_(False)
    value = gankernels.gradient_penalty(discriminator, real)
    torch.testing.assert_close(value, double.penalty(twin, real).detach())
    assert not value.requires_grad


def test_pictures_of_inference_mode_and_views():
    """What a generator made in inference mode, expanded, and channels_last."""
    discriminator = critic().double()
    with torch.inference_mode():
        fake = pictures(3)
    for x in (fake, pictures(1).expand(3, -1, -1, -1), pictures(3).to(memory_format=torch.channels_last)):
        value = gankernels.gradient_penalty(discriminator, x, x, kind="r2")
        exact = double.penalty(discriminator, x.clone())
        assert (
            double.relative_error(double.gradient(value, discriminator), double.gradient(exact, discriminator)) <= 1e-12
        )
        assert not x.requires_grad


def test_gradients_do_not_share_memory_with_each_other():
    discriminator = critic()
    d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1))
    assert len({p.grad.data_ptr() for p in discriminator.parameters()}) == len(list(discriminator.parameters()))


class _Convolutions(TorchDispatchMode):
    """Counts forward convolutions, and gradients of convolutions by what they ask for."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.dgrad = self.wgrad = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten.convolution.default:
            self.forward += 1
        if op is torch.ops.aten.convolution_backward.default:
            self.dgrad += args[-1][0]
            self.wgrad += args[-1][1]
        return op(*args, **(kwargs or {}))


def test_four_convolutions_a_layer():
    """Forward, input gradient, tangent, weight gradient: of 3 layers, for loss and both penalties."""
    discriminator = critic()
    with _Convolutions() as count:
        d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1), penalty="r1+r2")
    assert (count.forward, count.dgrad, count.wgrad) == (6, 3, 3)


class _Looks(TorchDispatchMode):
    """Counts what would make the host wait for a device: numbers and shapes that depend on a tensor's."""

    WAITS = ("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op._schema.name in self.WAITS
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_steps_do_not_wait_for_the_device(dtype, penalty):
    """A step reads no number of a tensor on the host, but for the overflow of fp16 without a scaler."""
    discriminator, scaler = critic(), torch.amp.GradScaler("cpu", init_scale=2.0**8)
    real, fake = pictures(2, torch.float32), pictures(2, torch.float32, seed=1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        with _Looks() as looks:
            d_step(discriminator, real, fake, penalty=penalty, scaler=scaler)
        assert looks.count == 0
        with _Looks() as looks:
            gankernels.gradient_penalty(discriminator, real, fake, kind=penalty)
        assert (looks.count > 0) == (dtype == torch.float16)


def test_nothing_of_the_forward_outlives_the_call():
    """No cycles: what is saved goes with the last reference, without the garbage collector."""
    seen = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(weakref.ref(x.untyped_storage()))
            return x

    discriminator = critic(Watch(), nn.Tanh())
    gc.collect()
    gc.disable()
    try:
        value = gankernels.gradient_penalty(discriminator, pictures(2, torch.float32))
        d_step(discriminator, pictures(2, torch.float32), pictures(2, torch.float32, seed=1))
        tape = weakref.ref(record(discriminator, pictures(2, torch.float32).requires_grad_(), keep_mixed=True))
        assert tape() is None
    finally:
        gc.enable()
    value.backward()


def test_per_sample():
    discriminator = critic().double()
    x = pictures(3)
    each = gankernels.gradient_penalty(discriminator, x, kind="r1", per_sample=True)
    want = torch.stack([double.penalty(discriminator, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(each, want.detach())
    assert not each.requires_grad


@pytest.mark.parametrize("kind", ["wgan-gp", "wgan-lp", "dragan"])
def test_no_nan_where_the_gradient_is_zero(kind):
    discriminator = critic().double()
    with torch.no_grad():
        discriminator[-1].weight.zero_()
    value = gankernels.gradient_penalty(discriminator, pictures(2), pictures(2, seed=1), kind=kind)
    assert value.item() == (0 if kind == "wgan-lp" else 1)
    assert double.gradient(value, discriminator).count_nonzero() == 0


def test_lazy():
    discriminator = critic().double()
    real, fake = pictures(2), pictures(2, seed=1)
    assert d_step(discriminator, real, fake, lazy=4, step=3).penalty.item() == 0
    discriminator.zero_grad()
    d_step(discriminator, real, fake, weight=1.0, lazy=4, step=8)
    lazy = double.accumulated(discriminator)
    discriminator.zero_grad()
    value, total = double.step(discriminator, real, fake, loss="hinge", penalty="r1", weight=4.0)
    assert double.relative_error(lazy, double.gradient(value + 4 * total, discriminator)) <= 1e-12


class _Flip(torch.autograd.Function):
    """The identity with another gradient, as gradient reversal has it."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        return -2 * g


class Calls(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def _into_a_view(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, ::2] = x[:, ::2]
    return out + x


def _through_another_view(x: Tensor) -> Tensor:
    x = x * 1.0
    view = x.view(-1)
    view.mul_(2.0)
    return x + 1


def _times_hidden(x: Tensor) -> Tensor:
    return x * _Flip.apply(x).cos()


@pytest.mark.parametrize("function", [_Flip.apply, _into_a_view, _through_another_view, _times_hidden])
def test_what_cannot_be_followed_goes_to_double_backward(function, caplog):
    torch.manual_seed(3)
    discriminator = critic(Calls(function)).double()
    twin = copy.deepcopy(discriminator)
    x = pictures(3)
    caplog.set_level("INFO", "gankernels")
    exact = double.penalty(twin, x)
    value = gankernels.gradient_penalty(discriminator, x)
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12
    with pytest.raises(InputError, match="outside the class"):
        gankernels.gradient_penalty(discriminator, x, method="fused")


def test_detached_branches_are_constants():
    discriminator = critic(Calls(lambda x: x + F.relu(x.detach()).mean(0) * x)).double()
    twin = copy.deepcopy(discriminator)
    exact = double.penalty(twin, pictures(3))
    value = gankernels.gradient_penalty(discriminator, pictures(3), method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12


class LabelPlane(nn.Module):
    """The label as one more plane of the picture: a concatenated embedding, and a learned one."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.learned = nn.Embedding(3, 64), nn.Parameter(torch.randn(1, 1, 8, 8))
        self.body = critic(width=5)
        self.body[0] = conv(5, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        planes = self.embedding(y).view(-1, 1, 8, 8)
        return self.body(torch.cat([planes, x, self.learned.expand(len(x), -1, -1, -1)], 1))


def test_concatenated_labels():
    discriminator = LabelPlane().double()
    twin, y = copy.deepcopy(discriminator), torch.tensor([0, 2, 2])
    real, fake = pictures(3), pictures(3, seed=1)
    exact = double.penalty(twin, real, y)
    value = gankernels.gradient_penalty(discriminator, real, y=y, method="fused")
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, twin)) <= 1e-12
    value, total = double.step(twin, real, fake, y, loss="rpgan", penalty="r1", weight=2.0)
    d_step(discriminator, real, fake, y, loss="rpgan", weight=2.0, method="fused")
    want = double.gradient(value + 2 * total, twin)
    assert double.relative_error(double.accumulated(discriminator), want) <= 1e-12


def test_cached_parametrizations():
    """As the trainer calls its discriminator: spectral norms computed before, and cached."""
    discriminator = critic().double()
    for layer in (discriminator[0], discriminator[2]):
        gankernels.nn.spectral_norm(layer)
    discriminator.eval()
    with parametrize.cached():
        _ = discriminator[0].weight
        value = gankernels.gradient_penalty(discriminator, pictures(3), method="fused")
    exact = double.penalty(discriminator, pictures(3))
    assert double.relative_error(double.gradient(value, discriminator), double.gradient(exact, discriminator)) <= 1e-12


def test_given_points_take_the_place_of_drawn_ones():
    discriminator = critic().double()
    real, fake = pictures(3), pictures(3, seed=1)
    rng = torch.Generator().manual_seed(5)
    drawn = d_step(discriminator, real, fake, penalty="wgan-gp", generator=torch.Generator().manual_seed(5))
    alpha = torch.rand(3, 1, 1, 1, generator=rng, dtype=torch.float64)
    given = d_step(discriminator, real, fake, penalty="wgan-gp", points=torch.lerp(fake, real, alpha))
    assert drawn == given


OURS = {
    "conv2d": lambda: gankernels.nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "conv2d, strided": lambda: gankernels.nn.Conv2d(6, 4, 4, stride=2, padding=1, bias=False),
    "conv2d_downsample": lambda: gankernels.nn.DownsampleConv2d(6, 4, 3, padding=1),
    "residual block": lambda: gankernels.nn.ResBlockDown(6, 4),
    "with spectral norm": lambda: gankernels.nn.ResBlockDown(6, 4, wrap=gankernels.nn.spectral_norm),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("penalty", ["r1", "wgan-gp"])
def test_our_convolutions_are_in_the_class(name, penalty):
    torch.manual_seed(0)
    layers = gankernels.nn.Conv2d(3, 6, 3, padding=1), nn.LeakyReLU(0.2), OURS[name](), nn.Flatten(), nn.LazyLinear(1)
    discriminator = nn.Sequential(*layers)
    discriminator(pictures(1, torch.float32))
    discriminator.double().eval()
    real, fake = pictures(3), pictures(3, seed=1)
    points = {"points": (real + fake) / 2} if penalty == "wgan-gp" else {}
    d_step(discriminator, real, fake, penalty=penalty, weight=3.0, method="fused", **points)
    got = double.accumulated(discriminator)
    loss = double.LOSSES["hinge"](discriminator(real), discriminator(fake))
    value = double.penalty(discriminator, points.get("points", real), kind=penalty)
    assert double.relative_error(got, double.gradient(loss + 3 * value, discriminator)) <= 1e-12


def test_bad_input():
    discriminator = critic()
    x = pictures(2, torch.float32)
    for arguments, message in [
        ({"kind": "r3"}, "^kind: got 'r3', expected one of r1, r2"),
        ({"method": "fast"}, "^method: got 'fast', expected one of auto"),
        ({"kind": "r2"}, "^fake: got None, expected generated pictures for r2"),
        ({"kind": "wgan-gp", "fake": x[:1]}, "^fake: got shape"),
    ]:
        with pytest.raises(InputError, match=message):
            gankernels.gradient_penalty(discriminator, x, **arguments)
    with pytest.raises(InputError, match=r"^real: got shape \(0, 3, 8, 8\), expected at least one picture"):
        gankernels.gradient_penalty(discriminator, x[:0])
    with pytest.raises(InputError, match="does not depend on the pictures"):
        gankernels.gradient_penalty(Calls(lambda x: x.detach().sum(1)), x)
    for arguments, message in [
        ({"loss": "best"}, "^loss: got 'best', expected one of minimax"),
        ({"penalty": "r3"}, "^penalty: got 'r3', expected None or one of r1"),
        ({"lazy": 0}, "^lazy: got 0"),
        ({"fake": x[:1], "loss": "rpgan"}, "^fake: got logits"),
        ({"fake": x[..., 1:]}, "^fake: got pictures"),
        ({"points": x}, "^points: got some with penalty='r1', expected None"),
    ]:
        with pytest.raises(InputError, match=message):
            d_step(discriminator, x, **({"fake": x} | arguments))


def test_transforms_are_refused():
    discriminator = critic()
    x = pictures(2, torch.float32)
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.grad(lambda x: gankernels.gradient_penalty(discriminator, x))(x)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        gankernels.gradient_penalty(discriminator, torch.autograd.forward_ad.make_dual(x, x))


_COMPILED = """
import torch, gankernels
from torch import nn

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
