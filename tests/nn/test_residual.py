"""Resampled convolution layers and the residual blocks, against the same networks in stock PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from gankernels.nn import (
    BatchNorm2d,
    ConditionalBatchNorm2d,
    DownsampleConv2d,
    ResBlockDown,
    ResBlockUp,
    UpsampleConv2d,
)
from gankernels.nn import spectral_norm as fused_spectral_norm
from implementations import needs_extension

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def conditional(channels: int) -> nn.Module:
    return ConditionalBatchNorm2d(channels, 5, activation="relu")


def results(function, block: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of x and of every parameter."""
    y = function(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
    return [y, *torch.autograd.grad(y, (x, *block.parameters()), dy, retain_graph=True)]


def assert_same(got: list[torch.Tensor], want: list[torch.Tensor]) -> None:
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, msg=lambda m, i=index: f"{i}: {m}")


def stock_conv(conv: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=conv.kernel_size[0] // 2)


def stock_up(block: ResBlockUp, x: torch.Tensor, *condition: torch.Tensor) -> torch.Tensor:
    """The block as the papers draw it, at full resolution."""

    def up(t):
        return F.interpolate(t, scale_factor=2.0, mode="nearest") if block.upsample else t

    h = stock_conv(block.conv1, up(block.norm1(x, *condition)))
    h = stock_conv(block.conv2, block.norm2(h, *condition))
    return h + (x if isinstance(block.skip, nn.Identity) else stock_conv(block.skip, up(x)))


def stock_down(block: ResBlockDown, x: torch.Tensor) -> torch.Tensor:
    """The block as the papers draw it, at full resolution."""
    h = stock_conv(block.conv1, F.relu(x) if block.activate_input else x)
    h = stock_conv(block.conv2, F.relu(h))
    h = h + (x if isinstance(block.skip, nn.Identity) else stock_conv(block.skip, x))
    return F.avg_pool2d(h, 2) if block.downsample else h


# ---- Layers ----


@layouts
@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_layers_load_a_stock_checkpoint(layout, activation, kernel):
    stock = nn.Conv2d(3, 4, kernel, padding=kernel // 2).double()
    behind = F.relu if activation == "relu" else nn.Identity()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    for layer, by_stock in (
        (
            UpsampleConv2d(3, 4, kernel, activation=activation),
            lambda x: behind(stock(F.interpolate(x, scale_factor=2.0))),
        ),
        (DownsampleConv2d(3, 4, kernel, activation=activation), lambda x: behind(F.avg_pool2d(stock(x), 2))),
    ):
        layer.double().load_state_dict(stock.state_dict())
        layer.to(memory_format=LAYOUTS[layout])
        assert_same(results(layer, layer, x), results(by_stock, stock, x))
        assert layer(x).is_contiguous(memory_format=LAYOUTS[layout])


def test_layers_start_as_torchs():
    torch.manual_seed(0)
    stock = nn.Conv2d(3, 4, 3, padding=1)
    torch.manual_seed(0)
    layer = UpsampleConv2d(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(stock.parameters(), layer.parameters(), strict=True))
    assert repr(DownsampleConv2d(3, 4, 5, padding=(1, 2, 0, 1), bias=False)) == (
        "DownsampleConv2d(3, 4, kernel_size=5, padding=(1, 2, 0, 1), bias=False, activation=none)"
    )


def test_a_changed_weight_is_seen_at_once():
    """No fold is kept: also what leaves no trace, a write through .data, counts at the next call."""
    layer, x = UpsampleConv2d(2, 2), torch.randn(1, 2, 4, 4)
    layer(x)
    layer.weight.data.zero_()
    torch.testing.assert_close(layer(x), layer.bias[None, :, None, None].expand(1, 2, 8, 8))


# ---- Blocks ----


@layouts
@pytest.mark.parametrize("upsample", [True, False])
@pytest.mark.parametrize(("c_in", "c_out", "c_hidden"), [(3, 5, None), (4, 4, 2)], ids=str)
def test_up_block(layout, upsample, c_in, c_out, c_hidden):
    block = ResBlockUp(c_in, c_out, norm=conditional, upsample=upsample, c_hidden=c_hidden).double()
    block.to(memory_format=LAYOUTS[layout])
    x = torch.randn(3, c_in, 4, 5, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    y = torch.tensor([0, 3, 3])
    got, want = (results(f, block, x) for f in (lambda x: block(x, y), lambda x: stock_up(block, x, y)))
    assert_same(got, want)
    assert got[0].is_contiguous(memory_format=LAYOUTS[layout])
    assert isinstance(block.skip, nn.Identity) == (not upsample and c_in == c_out)


@layouts
@pytest.mark.parametrize("downsample", [True, False])
@pytest.mark.parametrize("activate_input", [True, False])
@pytest.mark.parametrize(("c_in", "c_out", "c_hidden"), [(3, 5, None), (4, 4, 2)], ids=str)
def test_down_block(layout, downsample, activate_input, c_in, c_out, c_hidden):
    block = ResBlockDown(c_in, c_out, activate_input=activate_input, downsample=downsample, c_hidden=c_hidden).double()
    block.to(memory_format=LAYOUTS[layout])
    # An odd width: both means drop the last column.
    x = torch.randn(2, c_in, 6, 7, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    got, want = (results(f, block, x) for f in (block, lambda x: stock_down(block, x)))
    assert_same(got, want)
    assert got[0].is_contiguous(memory_format=LAYOUTS[layout])
    assert isinstance(block.skip, nn.Identity) == (not downsample and c_in == c_out)


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, fused_spectral_norm, torch.nn.utils.spectral_norm])
def test_wrapped_convolutions(norm):
    """Spectral norm acts on the 3x3 weight, whichever way it gets there."""
    sizes = []

    def wrap(conv):
        sizes.append(conv.kernel_size)
        return norm(conv)

    blocks = (
        ResBlockUp(3, 4, norm=lambda c: BatchNorm2d(c, activation="relu"), wrap=wrap),
        ResBlockDown(3, 4, wrap=wrap),
    )
    assert sizes == [(3, 3), (3, 3), (1, 1)] * 2
    for block, stock in zip(blocks, (stock_up, stock_down), strict=True):
        block.double().eval()
        assert block.conv1.weight.shape == (4, 3, 3, 3)
        x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        assert_same(results(block, block, x), results(lambda x, b=block, s=stock: s(b, x), block, x))


def test_without_biases():
    block = ResBlockDown(3, 4, wrap=lambda conv: conv.register_parameter("bias", None) or conv).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert_same(results(block, block, x), results(lambda x: stock_down(block, x), block, x))


def test_names_of_the_state():
    up = ResBlockUp(3, 4, norm=conditional)
    assert [name for name, _ in up.named_children()] == ["norm1", "conv1", "norm2", "conv2", "skip"]
    down = ResBlockDown(3, 4)
    assert list(down.state_dict()) == [f"{c}.{p}" for c in ("conv1", "conv2", "skip") for p in ("weight", "bias")]


def test_a_penalty_through_down_blocks():
    """The gradient of the squared input gradient, as R1 takes it, against stock PyTorch's double backward."""
    blocks = nn.ModuleList(
        [ResBlockDown(2, 3, activate_input=False), ResBlockDown(3, 3), ResBlockDown(3, 3, downsample=False)]
    )
    blocks.double()
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, requires_grad=True)
    gradients = []
    for forward in (lambda b, x: b(x), stock_down):
        h = x
        for block in blocks:
            h = forward(block, h)
        (dx,) = torch.autograd.grad(h.square().sum(), x, create_graph=True)
        gradients.append(
            torch.autograd.grad(dx.square().sum(), (x, *blocks.parameters()), materialize_grads=True, allow_unused=True)
        )
    assert_same(*(list(g) for g in gradients))


def test_compile_fullgraph():
    up = ResBlockUp(3, 4, norm=conditional).to(memory_format=torch.channels_last)
    down = ResBlockDown(4, 5).to(memory_format=torch.channels_last)
    x, y = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_(), torch.tensor([1, 4])
    both = nn.ModuleList([up, down])
    compiled = torch.compile(lambda x: down(up(x, y)), fullgraph=True, backend="aot_eager")
    for got, want in zip(results(compiled, both, x), results(lambda x: down(up(x, y)), both, x), strict=True):
        torch.testing.assert_close(got, want)


@needs_extension
def test_the_up_block_saves_no_picture_twice():
    """Behind the two norms and convolutions: their inputs, and neither the up-sampled picture nor a sum."""
    block = ResBlockUp(8, 8, norm=conditional).to(memory_format=torch.channels_last)
    x = torch.randn(3, 8, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t.numel()) and t, lambda t: t
    ):
        block(x, torch.tensor([0, 1, 1]))
    pictures = sorted(numel for numel in kept.values() if numel >= x.numel())
    # x, norm1's output; conv1's output and norm2's output at four times the pixels.
    assert pictures == [x.numel()] * 2 + [4 * x.numel()] * 2
