"""A norm and the transposed convolution behind it: one op on Triton, the two layers elsewhere, and always the same."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gankernels
from gankernels import models, selfcheck
from gankernels.errors import InputError
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, ConvTranspose2d, NormConvTranspose2d
from gankernels.nn import norm_conv_transpose2d as routing
from gankernels.ops.conv_transpose2d.normalised import conditional_batch_norm_conv_transpose2d
from implementations import kernels_of

ROUTES = ["default", *(p.values[1] for p in kernels_of("conv_transpose2d") if p.values == ("cpu", "triton"))]
every_route = pytest.mark.parametrize("route", ROUTES)
needs_triton = pytest.mark.skipif("triton" not in ROUTES, reason="Triton's interpreter cannot run here")
LABELS = torch.tensor([2, 0, 2])
EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Of the block's op."""
    seen = []

    def watched(*args):
        seen.append(args)
        return conditional_batch_norm_conv_transpose2d(*args)

    monkeypatch.setattr(routing, "conditional_batch_norm_conv_transpose2d", watched)
    monkeypatch.setattr(routing, "LEAST_PIXELS", 1)  # the interpreter takes a millisecond a program
    return seen


def forced(route):
    return contextlib.nullcontext() if route == "default" else gankernels.use(route)


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def randomised(module):
    for p in module.parameters():
        nn.init.normal_(p)
    return module.double()


def stage(norm, activation="none"):
    conv = ConvTranspose2d(4, 3, 4, stride=2, padding=1, activation=activation)
    return randomised(NormConvTranspose2d(norm, conv))


class Stock:
    """The same from the same parameters in stock PyTorch, with running statistics of its own."""

    def __init__(self, ours):
        self.ours, norm = ours, ours.norm
        self.norm = nn.BatchNorm2d(
            4, norm.eps, norm.momentum, affine=False, track_running_stats=norm.running_mean is not None
        )
        self.norm.double()
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None:
                nn.init.uniform_(statistic, 0.5, 2)
        self.norm.load_state_dict({name: buffer.clone() for name, buffer in norm.named_buffers()})

    def __call__(self, x, *condition):
        norm, conv = self.ours.norm, self.ours.conv
        if isinstance(norm, BatchNorm2d):
            gain, bias = (p.expand(len(x), -1) for p in (norm.weight, norm.bias))
        else:
            gain, bias = norm.gain(*condition), norm.bias(*condition)
            gain = gain if norm.num_classes else 1 + gain
        h = self.norm.train(norm.training)(x) * gain[:, :, None, None] + bias[:, :, None, None]
        y = F.conv_transpose2d(torch.relu(h), conv.weight, conv.bias, conv.stride, conv.padding)
        return F.leaky_relu(y, 0.2) if conv.activation == "lrelu" else y


def results(function, x, parameters, *condition):
    """The output, its gradients, and those of a penalty on the first of them."""
    y = function(x, *condition)
    gradients = torch.autograd.grad(y.square().sum(), [x, *parameters], create_graph=True)
    again = torch.autograd.grad(gradients[0].sin().sum(), [x, *parameters], allow_unused=True, materialize_grads=True)
    return [y, *gradients, *again]


@every_route
@pytest.mark.parametrize(
    ("norm", "condition", "activation", "memory_format", "modes"),
    [
        (ConditionalBatchNorm2d(4, 3, activation="relu"), (LABELS,), "none", torch.channels_last, (True,)),
        (
            ConditionalBatchNorm2d(4, cond_features=2, activation="relu", momentum=None),
            (torch.randn(3, 2).double(),),
            "lrelu",
            torch.contiguous_format,
            (True, True),
        ),
        (BatchNorm2d(4, activation="relu"), (), "none", torch.contiguous_format, (False,)),
        (
            ConditionalBatchNorm2d(4, 3, activation="relu", track_running_stats=False),
            (LABELS,),
            "none",
            torch.channels_last,
            (False,),
        ),
    ],
    ids=["labels", "vectors", "plain", "untracked"],
)
def test_as_stock_pytorch(route, norm, condition, activation, memory_format, modes, calls, poisoned):
    ours = stage(copy.deepcopy(norm), activation).to(memory_format=memory_format)
    stock = Stock(ours)
    with forced(route):
        for training in modes:
            ours.train(training)
            x = drawn(3, 4, 1, 2).detach().contiguous(memory_format=memory_format).requires_grad_()
            got = results(ours, x, list(ours.parameters()), *condition)
            for mine, want in zip(got, results(stock, x, list(ours.parameters()), *condition), strict=True):
                torch.testing.assert_close(mine, want, **EXACT)
            assert got[0].is_contiguous(memory_format=memory_format)
    state = dict(ours.norm.named_buffers())
    for name, want in stock.norm.named_buffers():
        torch.testing.assert_close(state[name].to(want.dtype), want, **EXACT)
    assert len(calls) == (len(modes) if route == "triton" else 0)


def test_state_is_that_of_the_layers():
    ours = stage(ConditionalBatchNorm2d(4, 3))
    both = nn.ModuleDict({"norm": ConditionalBatchNorm2d(4, 3), "conv": nn.ConvTranspose2d(4, 3, 4, 2, 1)}).double()
    assert list(ours.state_dict()) == list(both.state_dict())
    ours.load_state_dict(both.state_dict())
    other = copy.deepcopy(ours)
    x = drawn(3, 4, 1, 2)
    assert torch.equal(other(x, LABELS), ours(x, LABELS))


@needs_triton
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: setattr(s, "conv", ConvTranspose2d(4, 4, 4, groups=2).double()), "groups 1, not 2"),
        (lambda s: setattr(s.conv, "activation", "silu"), "silu"),
        (lambda s: setattr(routing, "LEAST_PIXELS", 3), "2 pixels a picture"),
        (lambda s: s.norm.register_forward_hook(lambda *_: None), "hook"),
        (lambda s: setattr(s, "norm", nn.BatchNorm2d(4).double()), "the norm is a BatchNorm2d"),
        (lambda s: setattr(s, "conv", nn.ConvTranspose2d(4, 4, 4).double()), "the convolution is a ConvTranspose2d"),
    ],
    ids=["groups", "activation", "pixels", "hook", "stock norm", "stock convolution"],
)
def test_what_the_op_cannot_do_runs_apart(change, reason, calls):
    ours = stage(BatchNorm2d(4))
    x = drawn(3, 4, 1, 2)
    with gankernels.use("triton"):
        assert routing.why_apart(ours.norm, ours.conv, x) is None
        change(ours)
        assert reason in routing.why_apart(ours.norm, ours.conv, x)
        torch.testing.assert_close(ours(x), ours.conv(ours.norm(x)), **EXACT)
    assert calls == []
    assert routing.why_apart(BatchNorm2d(4), ConvTranspose2d(4, 4, 4), x).startswith("transposed convolutions run on")


@needs_triton
def test_spectral_norm_and_autocast(calls):
    ours = stage(ConditionalBatchNorm2d(4, 3, activation="relu"))
    gankernels.nn.spectral_norm(ours.conv)
    other = copy.deepcopy(ours)
    x = drawn(3, 4, 1, 2)
    with gankernels.use("triton"):
        torch.testing.assert_close(ours(x, LABELS), other.conv(other.norm(x, LABELS)), **EXACT)
        for name, buffer in other.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer, msg=f"{name}: one iteration, one batch")
        half = ours.float()
        with torch.autocast("cpu", torch.float16):
            assert half(x.half(), LABELS).dtype == torch.float16
            assert len(calls) == 2, "all in fp16"
            assert half(x.float(), LABELS).dtype == torch.float16
    assert len(calls) == 2, "a norm in fp32 stays one"
    ours.double().conv.float()
    with gankernels.use("triton"), pytest.raises(InputError, match="weight: got dtype"):
        ours(x, LABELS)


@needs_triton
def test_compiles_in_one_graph():
    ours = stage(ConditionalBatchNorm2d(4, 3, activation="relu"))
    x = drawn(3, 4, 1, 2)
    torch._dynamo.reset()
    with gankernels.use("triton"):
        got = torch.compile(ours, fullgraph=True, backend="aot_eager")(x, LABELS)
        ours.norm.reset_running_stats()
        torch.testing.assert_close(got, ours(x, LABELS), **EXACT)


def test_dcgans_generator_runs_on_it(monkeypatch):
    generator, _ = models.build("dcgan-32", num_classes=3, ch=2, dim_z=4)
    seen = []
    monkeypatch.setattr(routing, "why_apart", lambda norm, conv, x: seen.append((norm, conv)) or "watched")
    generator(torch.randn(3, 4), LABELS)
    assert seen == list(zip(generator.norms, generator.convs, strict=True))


@needs_triton
def test_checks_of_tune():
    blocks = [check for check in selfcheck.checks_of("conv_transpose2d") if check.name.startswith("batch norm")]
    assert len(blocks) == 2
    for check in blocks:
        for impl in ("triton", "library"):
            assert (why := selfcheck.verify(check, impl, torch.device("cpu"), torch.float32)) is None, why


def test_errors():
    conv = ConvTranspose2d(4, 4, 4)
    with pytest.raises(InputError, match="norm: got BatchNorm2d, expected BatchNorm2d or ConditionalBatchNorm2d"):
        NormConvTranspose2d(nn.BatchNorm2d(4), conv)
    with pytest.raises(InputError, match="conv: got Conv2d, expected"):
        NormConvTranspose2d(BatchNorm2d(4), nn.Conv2d(4, 4, 4))
    with pytest.raises(InputError, match="conv: got 4 channels in, expected 5"):
        NormConvTranspose2d(BatchNorm2d(5), conv)
    ours = NormConvTranspose2d(ConditionalBatchNorm2d(4, 3), conv)
    for context in (contextlib.nullcontext(), *([gankernels.use("triton")] if "triton" in ROUTES else [])):
        with context, pytest.raises(InputError, match="x: got shape"):
            ours(torch.randn(4, 4, 4), LABELS)
