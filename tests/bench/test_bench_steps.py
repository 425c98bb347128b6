from __future__ import annotations

import functools
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

import gankernels
from gankernels import models
from gankernels.bench import functional_step, steps
from gankernels.losses import hinge_d, hinge_g

TINY = {"channels": 3, "num_classes": 4, "g_ch": 4, "d_ch": 4, "dim_z": 8}
CASE = steps.make_case("tiny", "sngan-32", 6, **TINY)
TINY_STEPS = {step.op: steps.make_benchmark(step, [CASE]) for step in steps.CASES}
every_step = pytest.mark.parametrize("declared", TINY_STEPS.values(), ids=TINY_STEPS)


def placed(declared, dtype=torch.float64, memory_format=torch.contiguous_format, seed=0):
    drawn = declared.inputs(CASE, torch.Generator().manual_seed(seed))
    return [t.requires_grad_() if t.is_floating_point() else t for t in declared.place(drawn, dtype, memory_format)]


def networks_of(tensors):
    """Networks that hold the state that is among a step's inputs."""
    nets = nn.ModuleList(models.build("sngan-32", **TINY)).double()
    state = [*nets.parameters(), *nets.buffers()]
    with torch.no_grad():
        for mine, given in zip(state, tensors[4:], strict=True):
            mine.copy_(given)
    return nets


def expected(op, tensors):
    """The step as a training loop has it: modules, backward()."""
    real, y, z, alpha = (t.detach() for t in tensors[:4])
    generator, discriminator = networks_of(tensors)
    updated = generator if op == "g_step" else discriminator
    with parametrize.cached():
        if op == "g_step":
            loss = hinge_g(discriminator(generator(z, y), y))
        else:
            fake = generator(z, y).detach()
            points = {
                "d_step_wgan_gp": alpha * real + (1 - alpha) * fake,
                "d_step_r3gan": torch.cat([real, fake]),
            }
            x = points.get(op, real).requires_grad_()
            d_real, d_fake = discriminator(real, y), discriminator(fake, y)
            d_x = discriminator(x, y.repeat(len(x) // len(y)))
            (gradient,) = torch.autograd.grad(d_x.sum(), x, create_graph=True)
            norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3))
            loss = {
                "d_step": lambda: hinge_d(d_real, d_fake),
                "d_step_r1": lambda: hinge_d(d_real, d_fake) + 10 * (norm**2).mean() / 2,
                "d_step_wgan_gp": lambda: d_fake.mean() - d_real.mean() + 10 * ((norm - 1) ** 2).mean(),
                "d_step_r3gan": lambda: F.softplus(d_fake - d_real).mean() + 0.05 * (norm**2).sum() / 6 / 2,
            }[op]()
        loss.backward()
    return [loss.detach(), *(p.grad for p in updated.parameters())]


@every_step
def test_a_step_is_what_a_training_loop_does(declared):
    tensors = placed(declared)
    for got, want in zip(declared.stock(CASE, *tensors), expected(declared.op, tensors), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@every_step
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_stock_and_ours_agree_and_every_repetition_is_the_same(declared, memory_format):
    tensors = placed(declared, memory_format=memory_format)
    before = [t.clone() for t in tensors]
    stock = declared.stock(CASE, *tensors)
    for impl in ("auto", "reference"):
        for got, want in zip(declared.ours(CASE, *tensors, impl=impl), stock, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    again = declared.stock(CASE, *tensors)
    assert all(torch.equal(got, want) for got, want in zip(again, stock, strict=True))
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "no input is changed"
    assert not any(t.requires_grad for t in stock)


@pytest.mark.parametrize("op", ["d_step", "g_step", "d_step_r1", "d_step_wgan_gp"])
def test_spectral_norms_are_taken_once_and_not_held(op, monkeypatch):
    case = steps.make_case("tiny", "biggan-32", 2, **TINY)
    step = next(step for step in steps.CASES if step.op == op)
    declared = steps.make_benchmark(step, [case])
    drawn = declared.place(
        declared.inputs(case, torch.Generator().manual_seed(0)), torch.float64, torch.contiguous_format
    )
    taken, alive = {}, []
    take, grad = functional_step.take_spectral_norms, torch.autograd.grad

    def watched(own, norms):
        take(own, norms)
        (player,) = {name.partition(".")[0] for name in norms}
        assert player not in taken
        taken[player] = [weakref.ref(own[name]) for name in norms]

    def asked(*args, **keywords):
        alive.append([player for player, normalised in taken.items() if any(ref() is not None for ref in normalised)])
        return grad(*args, **keywords)

    monkeypatch.setattr(functional_step, "take_spectral_norms", watched)
    monkeypatch.setattr(torch.autograd, "grad", asked)
    declared.stock(case, *drawn)
    assert set(taken) == {"generator", "discriminator"}
    assert ("generator" in alive[-1]) is (op == "g_step"), "what the graph of the update keeps"


@every_step
def test_bf16_rows_run_under_autocast_with_fp32_weights(declared):
    tensors = placed(declared, torch.bfloat16, torch.channels_last)
    assert {t.dtype for t in tensors[4:] if t.is_floating_point()} == {torch.float32}
    weights = [t for t in tensors[4:] if t.dim() == 4]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in weights)
    exact = declared.stock(CASE, *[t.detach().double() if t.is_floating_point() else t for t in tensors])
    seen = []
    conv2d = F.conv2d

    def watched(*args, **keywords):
        y = conv2d(*args, **keywords)
        seen.append(y.dtype)
        return y

    for provider in (declared.stock, functools.partial(declared.ours, impl="auto")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(F, "conv2d", watched)
            outputs = provider(CASE, *tensors)
        assert {t.dtype for t in outputs} == {torch.float32}
        got, want = (declared.judged(results)[0].double() for results in (outputs, exact))
        assert F.cosine_similarity(got, want, dim=0) > 0.98
    assert set(seen) == {torch.bfloat16}


@every_step
def test_what_is_judged_is_one_vector(declared):
    tensors = placed(declared)
    (vector,) = declared.judged(declared.stock(CASE, *tensors))
    updated = networks_of(tensors)[0 if declared.op == "g_step" else 1]
    assert vector.shape == (1 + sum(p.numel() for p in updated.parameters()),)


@pytest.mark.parametrize(
    ("name", "loss", "ops", "overrides"),
    [
        (
            "biggan-32",
            "hinge",
            ["d_step", "g_step", "d_step_r1"],
            {"ch": 1, "num_classes": 3, "dim_z": 8, "shared_embedding": True, "hierarchical_z": True},
        ),
        ("dcgan-32", "non-saturating", ["d_step", "g_step", "d_step_r1"], {"ch": 2, "dim_z": 8}),
        ("wgan-gp-32", "wasserstein", ["g_step", "d_step_wgan_gp"], {"ch": 4, "dim_z": 8}),
        ("r3gan-32", "rpgan", ["g_step", "d_step_r3gan"], {"ch": 16, "num_classes": 3, "dim_z": 8}),
    ],
)
def test_other_systems_step_as_their_stock_twins(name, loss, ops, overrides):
    case = steps.make_case("tiny", name, 3, loss=loss, **overrides)
    for kind in (kind for kind in steps.CASES if kind.op in ops):
        declared = steps.make_benchmark(kind, [case])
        drawn = declared.inputs(case, torch.Generator().manual_seed(0))
        tensors = [
            t.requires_grad_() if t.is_floating_point() else t
            for t in declared.place(drawn, torch.float64, torch.channels_last)
        ]
        for got, want in zip(declared.ours(case, *tensors, impl="auto"), declared.stock(case, *tensors), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_floors():
    d_step, g_step, r1, *_ = TINY_STEPS.values()
    counts = [sum(p.numel() for p in net.parameters()) for net in models.build("sngan-32", **TINY)]
    pictures = 6 * 3 * 32 * 32
    assert d_step.bytes(CASE, "step", 2) == 4 * (sum(counts) + counts[1]) + 2 * pictures
    assert g_step.bytes(CASE, "step", 4) == 4 * (sum(counts) + counts[0]) + 4 * pictures
    assert r1.flops(CASE, "step") > 1.2 * d_step.flops(CASE, "step")
    half = steps.make_case("half the batch", "sngan-32", 3, **TINY)
    assert 2 * d_step.flops(half, "step") == pytest.approx(d_step.flops(CASE, "step"), rel=1e-3)


def test_flops_are_those_of_the_convolutions():
    def convolutions(net, out_of):
        total = 0

        def count(module, inputs, output):
            nonlocal total
            pooled = 4 if isinstance(module, gankernels.nn.DownsampleConv2d) else 1  # stock convolves, then pools
            total += 2 * output.numel() // len(output) * module.weight[0].numel() * pooled

        hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        out_of(net)
        for hook in hooks:
            hook.remove()
        return total

    generator, discriminator = models.build("sngan-32", **TINY)
    y = torch.zeros(2, dtype=torch.long)
    g = convolutions(generator, lambda net: net(torch.randn(2, 8), y))
    d = convolutions(discriminator, lambda net: net(torch.randn(2, 3, 32, 32), y))
    # A forward of G; of D, on twice the pictures, the forward and both gradients, but none in the pictures.
    first = 2 * 32 * 32 * 4 * 3 * 9 + 2 * 16 * 16 * 4 * 3
    assert TINY_STEPS["d_step"].flops(CASE, "step") == 6 * (g + 2 * (3 * d - first))


def test_declared_steps():
    shapes = {declared.op: {case.position: case.shape for case in declared.cases} for declared in steps.STEPS}
    of_presets = ["d_step", "g_step", "d_step_r1", "d_step_wgan_gp", "d_step_r3gan"]
    assert list(shapes) == [*of_presets, "penalty_step", "up_block", "down_block", "dcgan_block"]
    assert shapes["d_step"]["sngan-32"] == (64, 3, 32, 32), "the paper's widths"
    assert shapes["d_step"]["dcgan-64"] == (128, 3, 64, 64)
    assert shapes["d_step_wgan_gp"]["wgan-gp-64"] == (16, 3, 64, 64)
    assert shapes["d_step_r3gan"]["r3gan-32"] == (16, 3, 32, 32)
    for declared in steps.STEPS:
        assert list(declared.modes) == ["step"]
        assert sum(case.quick for case in declared.cases) == 1


def test_ours_takes_a_penalty_without_double_backprop(monkeypatch):
    """Its only calls of ``autograd.grad`` make no graph."""
    graphs = []
    grad = torch.autograd.grad

    def watched(*args, **keywords):
        graphs.append(bool(keywords.get("create_graph")))
        return grad(*args, **keywords)

    monkeypatch.setattr(torch.autograd, "grad", watched)
    for declared in (TINY_STEPS[op] for op in ("d_step_r1", "d_step_wgan_gp", "d_step_r3gan")):
        graphs.clear()
        declared.ours(CASE, *placed(declared), impl="auto")
        assert graphs
        assert not any(graphs)
        declared.stock(CASE, *placed(declared))
        assert any(graphs)


def test_a_whole_penalised_step_compiles_in_one_graph():
    declared = TINY_STEPS["d_step_r1"]
    tensors = placed(declared)
    want = declared.stock(CASE, *tensors)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        step = torch.compile(functools.partial(declared.stock, CASE), backend="aot_eager", fullgraph=True)
        for got, expect in zip(step(*tensors), want, strict=True):
            torch.testing.assert_close(got, expect, rtol=1e-9, atol=1e-11)
