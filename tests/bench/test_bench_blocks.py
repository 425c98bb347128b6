from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from gankernels.bench import block_step
from gankernels.bench.block_step import BLOCKS
from gankernels.verification import another_function_between_kinks

UP, DOWN, DCGAN = BLOCKS
TINY = {
    "up_block": block_step._case("tiny", block_step._up, 6, 4, 4, 3),
    "down_block": block_step._case("tiny", block_step.ResBlockDown, 4, 6, 8, 3),
    "dcgan_block": block_step._case("tiny", block_step._dcgan, 6, 4, 4, 3),
}
every_block = pytest.mark.parametrize("declared", BLOCKS, ids=[b.op for b in BLOCKS])


def placed(declared, case, dtype=torch.float64, memory_format=torch.contiguous_format):
    drawn = declared.inputs(case, torch.Generator().manual_seed(0))
    return [t.requires_grad_() if t.is_floating_point() else t for t in declared.place(drawn, dtype, memory_format)]


class UpBlock(nn.Module):
    """As BigGAN's published code has it."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(c_in, affine=False), nn.BatchNorm2d(c_out, affine=False)])
        self.maps = nn.ModuleList(nn.Linear(148, c, bias=False) for c in (c_in, c_in, c_out, c_out))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in ((c_in, c_out, 3), (c_out, c_out, 3), (c_in, c_out, 1))
        )
        self.order = ["maps.0", "maps.1", "convs.0", "maps.2", "maps.3", "convs.1", "convs.2"]

    def forward(self, x, condition):
        def norm(i, h):
            gain, bias = (m(condition)[:, :, None, None] for m in self.maps[2 * i : 2 * i + 2])
            return torch.relu(self.norms[i](h) * (1 + gain) + bias)

        up = nn.Upsample(scale_factor=2)
        h = self.convs[1](norm(1, self.convs[0](up(norm(0, x)))))
        return h + self.convs[2](up(x))


class DownBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in ((c_in, c_out, 3), (c_out, c_out, 3), (c_in, c_out, 1))
        )
        self.order = ["convs.0", "convs.1", "convs.2"]

    def forward(self, x, condition):
        h = self.convs[1](torch.relu(self.convs[0](torch.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.convs[2](x), 2)


class DCGANBlock(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in, affine=False)
        self.gain, self.bias = nn.Embedding(10, c_in), nn.Embedding(10, c_in)
        self.conv = nn.ConvTranspose2d(c_in, c_out, 4, 2, 1)
        self.order = ["gain", "bias", "conv"]

    def forward(self, x, labels):
        gain, bias = (table(labels)[:, :, None, None] for table in (self.gain, self.bias))
        return self.conv(torch.relu(self.norm(x) * gain + bias))


MODULES = {"up_block": UpBlock, "down_block": DownBlock, "dcgan_block": DCGANBlock}


def expected(declared, case, tensors):
    """The block as modules, with PyTorch's spectral norms, and backward()."""
    net = MODULES[declared.op](case.shape[1], case.arguments["c_out"]).double()
    x, dy, condition, *state = (t.detach().clone() for t in tensors)
    parameters = [p for name in net.order for p in net.get_submodule(name).parameters()]
    with torch.no_grad():
        for parameter, given in zip(parameters, state, strict=False):
            parameter.copy_(given)
    if declared.op != "dcgan_block":
        vectors = state[len(parameters) :]
        for i, conv in enumerate(net.convs):
            parametrizations.spectral_norm(conv, eps=1e-6)
            norm = conv.parametrizations.weight[0]
            norm._u, norm._v = vectors[i], vectors[3 + i]
    wanted = [x] + ([condition] if condition.is_floating_point() else [])
    for t in wanted:
        t.requires_grad_()
    y = net(x, condition)
    y.backward(dy)
    wanted += [p for name in net.order for p in parameters_of(net.get_submodule(name))]
    return [y.detach(), *(torch.zeros_like(t) if t.grad is None else t.grad for t in wanted)]


def parameters_of(layer):
    """The weight, before its norm, and the bias."""
    weight = layer.parametrizations.weight.original if hasattr(layer, "parametrizations") else layer.weight
    return [weight] + ([layer.bias] if isinstance(getattr(layer, "bias", None), nn.Parameter) else [])


@every_block
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_all_compute_the_published_block(declared, memory_format):
    case = TINY[declared.op]
    tensors = placed(declared, case, memory_format=memory_format)
    before = [t.clone() for t in tensors]
    want = expected(declared, case, tensors)
    for results in (declared.stock(case, *tensors), declared.ours(case, *tensors, impl="auto")):
        assert not any(t.requires_grad for t in results)
        for got, exact in zip(results, want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-10)
    assert all(torch.equal(now, then) for now, then in zip(tensors, before, strict=True)), "no input is changed"


@every_block
def test_bf16_rows_run_under_autocast_with_fp32_weights(declared):
    case = TINY[declared.op]
    tensors = placed(declared, case, torch.bfloat16, torch.channels_last)
    x, dy, condition, *state = tensors
    assert x.dtype == dy.dtype == torch.bfloat16
    assert {t.dtype for t in (condition, *state) if t.is_floating_point()} == {torch.float32}
    exact = declared.judged(declared.stock(case, *(t.double() if t.is_floating_point() else t for t in tensors)))
    for results in (declared.stock(case, *tensors), declared.ours(case, *tensors, impl="auto")):
        assert results[0].dtype == torch.bfloat16
        for got, want in zip(declared.judged(results), exact, strict=True):
            assert F.cosine_similarity(got.flatten().double(), want.flatten(), dim=0) > 0.98


@every_block
def test_floors(declared):
    case = TINY[declared.op]
    twice = dataclasses.replace(case, shape=(2 * case.shape[0], *case.shape[1:]))
    assert declared.flops(twice, "step") == 2 * declared.flops(case, "step")
    parameters = 8 * sum(p.numel() for p in case.arguments["block"].parameters())
    assert declared.bytes(twice, "step", 2) - parameters == 2 * (declared.bytes(case, "step", 2) - parameters)
    # Three times what a forward multiplies, with the box filter and the skip on the small side.
    products = {
        "up_block": 3 * 16 * (9 * 6 * 4 + 4 * 9 * 4 * 4 + 6 * 4),
        "down_block": 3 * 16 * (4 * 9 * 4 * 6 + 9 * 6 * 6 + 4 * 6),
        "dcgan_block": 3 * 16 * 16 * 6 * 4,
    }
    assert declared.flops(case, "step") == 3 * 2 * products[declared.op]


def test_a_relu_that_flips_is_no_other_function():
    exact = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flipped = exact.clone()
    flipped[7] = 3.0
    assert another_function_between_kinks([flipped], [exact], torch.float32) is None
    for other in (1.01 * exact, exact.roll(1), exact.where(exact > -2, 0), exact * torch.nan, exact[1:]):
        assert "result 0" in another_function_between_kinks([other], [exact], torch.float32)
