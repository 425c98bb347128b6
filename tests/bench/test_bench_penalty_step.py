"""The price of a penalty: one function for every provider, and the networks that their names say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gankernels import models
from gankernels.bench import architectures, penalised_networks
from gankernels.bench.flops import count_flops
from gankernels.bench.penalty_step import PENALTY_STEP, make_cases

KINDS = ("no penalty", "R1", "R1 + R2", "R1 + R2, peers apart", "R1 + R2 apart", "WGAN-GP")
SMALL = {
    "strided": penalised_networks.Network(64, 0, lambda: penalised_networks.Strided((3, 4, 4, 4, 4))),
    "StyleGAN2": penalised_networks.stylegan2(16, base=64, most=8),
    "R3GAN": penalised_networks.preset("r3gan-32", ch=16, blocks=1),
    "WGAN-GP": penalised_networks.preset("wgan-gp-32", ch=4),
    "BigGAN": penalised_networks.preset("biggan-32", ch=2, num_classes=3),
}


def placed(case, dtype=torch.float64):
    drawn = PENALTY_STEP.inputs(case, torch.Generator().manual_seed(0))
    tensors = PENALTY_STEP.place(drawn, dtype, torch.channels_last)
    return [t.requires_grad_() if t.is_floating_point() else t for t in tensors]


@pytest.mark.parametrize("name", SMALL)
def test_it_is_asked_of_one_function(name):
    kinds = KINDS if name == "strided" else ("R1", "R1 + R2", "WGAN-GP")
    for case in make_cases(name, SMALL[name], 2, kinds, loss="rpgan", our_layers=["R1"]):
        tensors = placed(case)
        before = [t.clone() for t in tensors]
        (got,) = PENALTY_STEP.judged(PENALTY_STEP.ours(case, *tensors, impl="auto"))
        (want,) = PENALTY_STEP.judged(PENALTY_STEP.stock(case, *tensors))
        assert (got - want).norm() <= 1e-12 * want.norm()
        assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "no input is changed"


def test_state_stays_in_fp32_beside_pictures_in_bf16():
    (case,) = make_cases("tiny", SMALL["BigGAN"], 2, ["R1"], loss="hinge")
    tensors = placed(case, torch.bfloat16)
    assert [t.dtype for t in tensors[:4]] == [torch.bfloat16, torch.bfloat16, torch.int64, torch.bfloat16]
    assert {t.dtype for t in tensors[4:]} == {torch.float32}
    assert {t.dtype for t in PENALTY_STEP.ours(case, *tensors, impl="auto")} == {torch.float32}


def test_the_cases_differ_by_the_penalty_alone():
    """The losses as a training loop has them, on a module of stock layers."""
    cases = make_cases("tiny", SMALL["strided"], 2, KINDS, loss="non-saturating")
    real, fake, _, alpha, *weights = (t.detach() for t in placed(cases[0], torch.float32))
    layers = [nn.Conv2d(w.shape[1], w.shape[0], 4, 2, 1, bias=False) for w in weights[:-1]]
    net = nn.Sequential(
        *(layer for conv in layers for layer in (conv, nn.LeakyReLU(0.2))), nn.Flatten(), nn.Linear(64, 1, bias=False)
    )
    net.load_state_dict(dict(zip(net.state_dict(), weights, strict=True)))
    losses = [PENALTY_STEP.stock(case, *placed(case, torch.float32))[0] for case in cases]

    def norms(x):
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(net(x).sum(), x)
        return torch.linalg.vector_norm(gradient, dim=(1, 2, 3))

    loss = F.softplus(-net(real)).mean() + F.softplus(net(fake)).mean()
    r1, r2 = (norms(x).square().mean() / 2 for x in (real, fake))
    both = loss + 5 * (r1 + r2)
    between = (norms(alpha * real + (1 - alpha) * fake) - 1).square().mean()
    expected = [loss, loss + 5 * r1, both, both, both, loss + 5 * between]
    torch.testing.assert_close(torch.stack(losses), torch.stack(expected).detach())


def test_declared_networks_are_the_published_ones():
    parts = {case.position.removesuffix(", no penalty"): case.arguments["parts"].value for case in PENALTY_STEP.cases}
    biggan, r3gan = parts["BigGAN D, 32 px"], parts["R3GAN D, 64 px"]
    assert set(r3gan.parameters) == set(dict(models.build("r3gan-64")[1].named_parameters()))
    convs = [layer for layer in r3gan.module.modules() if isinstance(layer, nn.Conv2d)]
    assert max(conv.groups for conv in convs if conv.kernel_size == (3, 3)) == 96
    assert len(biggan.norms) == sum(name.endswith("original") for name in biggan.parameters) > 10
    stylegan2 = next(part for name, part in parts.items() if name.startswith("StyleGAN2"))
    # the list of published layers has one more channel, for the standard deviation
    published = sum(layer.parameters for layer in architectures.stylegan2_d(256, 8192, 256)) - 9 * 256
    assert sum(p.numel() for p in stylegan2.parameters.values()) == published
    assert sum(case.quick for case in PENALTY_STEP.cases) == 1


@pytest.mark.parametrize("transposed", [False, True])
def test_flops_of_a_grouped_convolution(transposed):
    """y and both gradients take the same: torch counts a weight gradient as a dense one's."""
    x, weight = torch.randn(2, 12, 5, 4, requires_grad=True), torch.randn(12, 4, 3, 3, requires_grad=True)
    run = F.conv_transpose2d if transposed else F.conv2d
    y = 2 * 2 * 5 * 4 * weight.numel()
    assert count_flops(lambda: run(x, weight, padding=1, groups=3)) == y
    assert count_flops(lambda: run(x, weight, padding=1, groups=3).sum().backward()) == 3 * y


def test_flops_are_those_of_the_closed_form():
    plain, r1, both, *_, between = make_cases("tiny", SMALL["strided"], 2, KINDS, loss="hinge")
    forward = 2 * sum(2 * 16 * c_in * 4 * side**2 for c_in, side in ((3, 32), (4, 16), (4, 8), (4, 4))) + 2 * 2 * 64
    assert [PENALTY_STEP.flops(case, "step") / forward for case in (plain, r1, both, between)] == [6, 7, 8, 10]
