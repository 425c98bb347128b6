"""BatchNorm2d and InstanceNorm2d against torch's, and standing statistics."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gankernels
from gankernels.errors import InputError
from gankernels.nn import BatchNorm2d, ConditionalBatchNorm2d, InstanceNorm2d, standing_statistics
from implementations import crossed, kernels_of

KERNELS = [p for p in kernels_of("conditional_batch_norm") if p.values[0] == "cpu"]
IMPLEMENTATIONS = ["reference", *[p.values[1] for p in KERNELS]]
PAIRS = {"batch": (BatchNorm2d, nn.BatchNorm2d), "instance": (InstanceNorm2d, nn.InstanceNorm2d)}

implementations = pytest.mark.parametrize("impl", IMPLEMENTATIONS)
pairs = pytest.mark.parametrize("kind", PAIRS)


def randomise(norm: nn.Module) -> nn.Module:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@crossed(
    [pytest.param("cpu", "reference", id="reference"), *KERNELS],
    kind=PAIRS,
    layout=(torch.contiguous_format, torch.channels_last),
    affine=(True, False),
    track_running_stats=(True, False),
    momentum=(0.1, None),
)
def test_as_torchs(device, impl, kind, layout, affine, track_running_stats, momentum):
    """Output, gradients and state, in training and in eval, over several batches."""
    settings = {"affine": affine, "track_running_stats": track_running_stats, "momentum": momentum}
    ours, theirs = (norm(5, **settings).double() for norm in PAIRS[kind])
    ours.load_state_dict(randomise(theirs).state_dict())
    with gankernels.use(impl):
        for training, n in ((True, 3), (True, 1), (False, 2), (True, 2)):
            batch = (torch.randn(n, 5, 4, 3, dtype=torch.float64) * 2 + 1).contiguous(memory_format=layout)
            results = []
            for norm in (ours, theirs):
                x = batch.clone().requires_grad_()
                y = norm.train(training)(x)
                inputs = [x, *norm.parameters()]
                results.append([y, *torch.autograd.grad(y.square().sum(), inputs)])
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b)
            assert results[0][0].is_contiguous(memory_format=layout)
            assert ours.state_dict().keys() == theirs.state_dict().keys()
            for name, value in theirs.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-6)


@implementations
@pairs
def test_activation(impl, kind):
    ours, theirs = (randomise(norm(4, affine=True)) for norm in PAIRS[kind])
    ours.activation, ours.slope = "lrelu", 0.3
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 5, 5)
    with gankernels.use(impl):
        torch.testing.assert_close(ours(x), F.leaky_relu(theirs(x), 0.3))


@implementations
def test_instance_norm_is_differentiable_twice(impl):
    norm = randomise(InstanceNorm2d(2, affine=True, activation="lrelu")).double()
    x = torch.randn(2, 2, 3, 2, dtype=torch.float64).contiguous(memory_format=torch.channels_last).requires_grad_()
    with gankernels.use(impl):
        assert torch.autograd.gradgradcheck(norm, x, fast_mode=impl == "triton")


def test_one_picture_without_a_batch():
    x = torch.randn(3, 4, 4)
    torch.testing.assert_close(InstanceNorm2d(3)(x), nn.InstanceNorm2d(3)(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_stay_fp32_under_16_bit_input(dtype):
    for norm in (BatchNorm2d(4), InstanceNorm2d(4, affine=True)):
        x = torch.randn(3, 4, 4, 4).to(dtype)
        y = norm(x)
        y.float().square().sum().backward()
        assert y.dtype == dtype
        assert norm.weight.grad.dtype == torch.float32


@pairs
def test_compile_fullgraph(kind):
    norm = PAIRS[kind][0](3, affine=True, momentum=None, track_running_stats=True, activation="relu")
    x = torch.randn(2, 3, 4, 4)
    want = copy.deepcopy(norm)(x)
    torch.testing.assert_close(torch.compile(norm, fullgraph=True, backend="aot_eager")(x), want)


def test_bad_input():
    with pytest.raises(ValueError, match="expected 4D"):
        BatchNorm2d(3)(torch.zeros(2, 3))
    with pytest.raises(InputError, match=r"expected \[N, 3, H, W\]"):
        InstanceNorm2d(3)(torch.zeros(2, 4, 2, 2))
    with pytest.raises(InputError, match="more than one pixel"):
        InstanceNorm2d(3)(torch.zeros(2, 3, 1, 1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conditional = ConditionalBatchNorm2d(3, num_classes=2, momentum=0.3)
        self.plain = BatchNorm2d(3, activation="relu")
        self.torchs = nn.BatchNorm2d(3, momentum=None)
        self.unused = BatchNorm2d(3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, y):
        return self.dropout(self.torchs(self.plain(self.conditional(x, y))))


def test_standing_statistics():
    net = Net()
    batches = [(torch.randn(6, 3, 4, 4) * 2 + i, torch.arange(6) % 2) for i in range(4)]
    for batch in batches:
        net(*batch)
    net.unused.running_mean.fill_(3)
    net.eval()
    with torch.no_grad(), standing_statistics(net):
        assert not net.dropout.training
        for batch in batches:
            net(*batch)
    moments = [torch.var_mean(x, (0, 2, 3)) for x, _ in batches]
    torch.testing.assert_close(net.conditional.running_mean, torch.stack([m for _, m in moments]).mean(0))
    torch.testing.assert_close(net.conditional.running_var, torch.stack([v for v, _ in moments]).mean(0))
    assert [net.conditional.momentum, net.plain.momentum, net.torchs.momentum] == [0.3, 0.1, None]
    assert not any(m.training for m in net.modules())
    assert net.plain.num_batches_tracked == 4
    torch.testing.assert_close(net.unused.running_mean, torch.full((3,), 3.0))


def test_standing_statistics_that_fail_change_nothing():
    net = Net()
    net(torch.randn(6, 3, 4, 4), torch.zeros(6, dtype=torch.long))
    before = copy.deepcopy(net.state_dict())

    def fail():
        with standing_statistics(net):
            net(torch.randn(6, 3, 4, 4), torch.zeros(6, dtype=torch.long))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    with pytest.raises(InputError, match="without a batch norm"), standing_statistics(nn.Identity()):
        pass
