"""Path-length regularisation against double backprop, written out."""

from __future__ import annotations

import copy
import math

import double_backprop as double
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gankernels import InputError, models
from gankernels.penalties import path_length_penalty
from gankernels.verification import errors

DECAY = 0.25


def noise_of(pictures: Tensor) -> Tensor:
    """The noise that the seed 5 draws: in fp64 for fp64, else in fp32."""
    wide = torch.promote_types(pictures.dtype, torch.float32)
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(5), dtype=wide)
    return (noise / math.sqrt(pictures[0, 0].numel())).to(pictures.dtype)


def path_length(
    synthesis: nn.Module, w: Tensor, mean: float, y: Tensor | None = None, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The penalty, differentiable, and the lengths [N]."""
    w = w.clone() if w.requires_grad else w.clone().requires_grad_()
    pictures = synthesis(w) if y is None else synthesis(w, y)
    noise = noise_of(pictures) if noise is None else noise.to(pictures.dtype)
    (g,) = torch.autograd.grad((pictures * noise).sum(), w, create_graph=True)
    lengths = torch.linalg.vector_norm(g, dim=tuple(range(1, g.dim()))) / math.sqrt(w[0].numel() / w.shape[-1])
    a = (mean + DECAY * (lengths.mean() - mean)).detach()
    return (lengths - a).square().mean(), lengths.detach()


def ours(synthesis: nn.Module, w: Tensor, mean: Tensor, y: Tensor | None = None, **arguments) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return path_length_penalty(synthesis, w, mean, y, decay=DECAY, generator=rng, **arguments)


class Plain(nn.Sequential):
    """Piecewise linear in the latent."""

    def __init__(self, *middle: nn.Module) -> None:
        super().__init__(
            nn.Linear(5, 32), nn.Unflatten(1, (2, 4, 4)), nn.LeakyReLU(0.2), nn.ConvTranspose2d(2, 4, 4, 2, 1),
            nn.ReLU(), *middle, nn.Upsample(scale_factor=2), nn.Conv2d(4, 3, 3, padding=1),
        )  # fmt: skip


class Modulated(nn.Module):
    """Two layers of styles on a learned constant, demodulated, as a grouped convolution and as scaled activations."""

    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, 4, 4, 4))
        self.styles = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.weights = nn.ParameterList([torch.randn(4, 4, 3, 3), torch.randn(4, 4, 3, 3)])
        self.rgb = nn.Parameter(torch.randn(3, 4, 1, 1))

    def forward(self, w: Tensor) -> Tensor:
        n, h = len(w), self.constant.expand(len(w), -1, -1, -1)
        weight = self.weights[0] * (1 + self.styles[0](w[:, 0])).view(n, 1, 4, 1, 1)
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        h = F.conv2d(h.reshape(1, 4 * n, 4, 4), weight.flatten(0, 1), padding=1, groups=n).view(n, 4, 4, 4)
        h = F.interpolate(F.leaky_relu(h, 0.2), scale_factor=2.0, mode="bilinear")
        style = 1 + self.styles[1](w[:, 1])
        demodulation = (self.weights[1].square().sum((2, 3)) @ style.square().T + 1e-8).rsqrt().T
        h = F.conv2d(h * style[:, :, None, None], self.weights[1], padding=1) * demodulation[:, :, None, None]
        return F.conv2d(F.leaky_relu(h, 0.2) * self.styles[2](w[:, 2])[:, :, None, None], self.rgb)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, g):
        return -g


class Unfollowed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Reversed.apply(x) * x


NETWORKS = {
    "plain": (Plain, (5,)),
    "R3GAN": (lambda: models.build("r3gan-32", ch=16, blocks=1, num_classes=0, dim_z=5)[0], (5,)),
    "modulated": (Modulated, (3, 6)),
    "batch norm, tanh": (lambda: Plain(nn.BatchNorm2d(4), nn.Tanh()), (5,)),
    "not followed": (lambda: Plain(Unfollowed()), (5,)),
}


@pytest.mark.parametrize("method", ["auto", "double_backward"])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_double_backprop(name, method):
    """In the parameters of the synthesis, and in those of the mapping that made w."""
    torch.manual_seed(1)
    make, shape = NETWORKS[name]
    synthesis = make().double()
    for p in synthesis.parameters():
        nn.init.normal_(p, std=0.5)
    mapping = nn.Sequential(nn.Linear(2, math.prod(shape)), nn.LeakyReLU(0.2), nn.Unflatten(1, shape)).double()
    both = nn.ModuleList([mapping, synthesis])
    twin = copy.deepcopy(both)
    z = torch.randn(3, 2, dtype=torch.float64)
    exact, lengths = path_length(twin[1], twin[0](z), 0.3)

    mean = torch.tensor(0.3, dtype=torch.float64)
    w = mapping(z)
    value = ours(synthesis, w, mean, method="fused" if (name, method) == ("plain", "auto") else method)
    torch.autograd.grad(w.sum(), mapping[0].bias, retain_graph=True)  # the mapping's graph is there still
    torch.testing.assert_close(value, exact)
    torch.testing.assert_close(mean, 0.3 + DECAY * (lengths.mean() - 0.3))
    got, want = double.gradient(3 * value, both), double.gradient(3 * exact, twin)
    assert double.relative_error(got, want) <= 1e-10

    each = ours(synthesis, w.detach(), mean, method=method, per_sample=True)
    torch.testing.assert_close(each, lengths)
    assert not each.requires_grad


def test_labels_and_latents_without_a_mapping():
    generator = models.build("r3gan-32", ch=16, blocks=1, num_classes=3, dim_z=5)[0].double()
    for p in generator.parameters():
        nn.init.normal_(p, std=0.5)
    twin = copy.deepcopy(generator)
    z, y = torch.randn(2, 5, dtype=torch.float64), torch.tensor([0, 2])
    exact, _ = path_length(twin, z, 0.0, y)
    value = ours(generator, z, torch.zeros((), dtype=torch.float64), y, method="fused")
    assert double.relative_error(double.gradient(value, generator), double.gradient(exact, twin)) <= 1e-10
    assert not z.requires_grad


@pytest.mark.parametrize("method", ["fused", "double_backward"])
def test_no_nan_at_length_zero(method):
    synthesis = Plain().double()
    with torch.no_grad():
        synthesis[-1].weight.zero_()
    mean = torch.ones((), dtype=torch.float64)
    value = ours(synthesis, torch.randn(2, 5, dtype=torch.float64), mean, method=method)
    assert value.item() == (1 - DECAY) ** 2
    assert double.gradient(value, synthesis).count_nonzero() == 0


@pytest.mark.parametrize("name", ["plain", "modulated"])
def test_bf16_autocast(name):
    """At most twice the error of eager double backprop under the same autocast."""
    torch.manual_seed(2)
    make, shape = NETWORKS[name]
    synthesis = make()
    w, mean = torch.randn(64, *shape), torch.tensor(0.1)
    exact = copy.deepcopy(synthesis).double()
    with torch.autocast("cpu", torch.bfloat16):
        noise = noise_of(synthesis(w))
        assert noise.dtype == torch.bfloat16
        eager = double.gradient(path_length(synthesis, w, 0.1, noise=noise)[0], synthesis)
        value = ours(synthesis, w, mean)
    want = double.gradient(path_length(exact, w.double(), 0.1, noise=noise)[0], exact)
    assert value.dtype == torch.float32
    for error, bound in zip(errors(double.gradient(value, synthesis), want), errors(eager, want), strict=True):
        assert error <= 2 * bound


def test_bad_input_and_transforms():
    synthesis, w, mean = Plain(), torch.randn(2, 5), torch.zeros(())
    for arguments, message in [
        ({"w": w[0]}, r"^w: got shape \(5,\), expected \[N, D\] or \[N, L, D\]"),
        ({"w": w[:0]}, r"^w: got shape \(0, 5\), expected at least one latent"),
        ({"mean": torch.zeros(1)}, r"^mean: got shape \(1,\) in torch.float32, expected a buffer"),
        ({"method": "fast"}, "^method: got 'fast'"),
        ({"synthesis": nn.Linear(5, 3)}, r"^synthesis: got pictures \[2, 3\] of 2 latents, expected \[2, C, ...\]"),
        ({"synthesis": Plain(nn.Tanh()), "method": "fused"}, r"outside the class of the closed form \(5 \(Tanh\)"),
    ]:
        with pytest.raises(InputError, match=message):
            path_length_penalty(**{"synthesis": synthesis, "w": w, "mean": mean} | arguments)
    with pytest.raises(RuntimeError, match=r"path_length_penalty: torch\.func"):
        torch.func.grad(lambda w: path_length_penalty(synthesis, w, mean))(w)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="path_length_penalty: forward-mode"):
        path_length_penalty(synthesis, torch.autograd.forward_ad.make_dual(w, w), mean)
