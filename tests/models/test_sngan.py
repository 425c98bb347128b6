from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gankernels import losses, models
from gankernels.errors import InputError

TINY = {"num_classes": 3, "channels": 1, "g_ch": 4, "d_ch": 4, "dim_z": 8}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return models.build("sngan-32", **TINY)


def test_interface(networks):
    generator, discriminator = networks
    z, y = torch.randn(5, generator.dim_z), torch.arange(5) % 3
    x = generator(z, y)
    assert x.shape == (5, 1, 32, 32)
    assert x.abs().max() <= 1
    assert (generator.dim_z, generator.resolution, generator.channels, generator.num_classes) == (8, 32, 1, 3)
    assert discriminator(x, y).shape == (5,)
    assert "sngan-32" in models.presets()
    assert models.resolution("sngan-32") == 32


def test_parameter_counts_are_the_papers():
    # Worked out by hand from the table of residual networks for CIFAR-10 (1802.05957, appendix B.4), 10 classes.
    generator, discriminator = models.build("sngan-32")
    up_block = 2 * (9 * 256 * 256 + 256) + (256 * 256 + 256) + 2 * (2 * 10 * 256)
    assert count(generator) == (128 + 1) * 16 * 256 + 3 * up_block + 2 * 256 + (9 * 256 * 3 + 3)
    c = 128
    conv = 9 * c * c + c
    first = (9 * 3 * c + c) + conv + (3 * c + c)
    assert count(discriminator) == first + (2 * conv + c * c + c) + 2 * (2 * conv) + (c + 1) + 10 * c


def test_names_of_saved_runs(networks):
    generator, discriminator = networks
    norms = [f"norm{i}.{name}" for i in (1, 2) for name in ("gain.weight", "bias.weight", *STATISTICS)]
    convs = [f"{conv}.{name}" for conv in ("conv1", "conv2", "skip") for name in ("weight", "bias")]
    names = {f"blocks.{i}.{name}" for i in range(3) for name in norms + convs}
    names |= {f"{layer}.{name}" for layer in ("linear", "norm", "conv") for name in ("weight", "bias")}
    assert set(generator.state_dict()) == names | {f"norm.{name}" for name in STATISTICS}
    layers = [f"blocks.{i}.{conv}" for i in range(4) for conv in ("conv1", "conv2", "skip")]
    layers = [layer for layer in layers if layer not in ("blocks.2.skip", "blocks.3.skip")] + ["linear"]
    normed = [f"parametrizations.weight.{name}" for name in ("original", "0._u", "0._v")]
    names = {f"{layer}.{name}" for layer in layers for name in ("bias", *normed)}
    assert set(discriminator.state_dict()) == names | {f"embedding.{name}" for name in normed}


def test_activations_and_weights_are_channels_last():
    # Of one channel the two layouts are the same, and torch calls it contiguous: colour tells them apart.
    networks = models.build("sngan-32", **{**TINY, "channels": 3})
    strides = []
    for net in networks:
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda m, i, o: strides.append(o.is_contiguous(memory_format=torch.channels_last))
                )
    generator, discriminator = networks
    y = torch.arange(6) % 3
    discriminator(generator(torch.randn(6, 8), y), y)
    assert len(strides) == 20
    assert all(strides)
    assert generator.blocks[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_class_reaches_both_networks(networks):
    generator, discriminator = networks
    with torch.no_grad():
        for block in generator.blocks:
            nn.init.normal_(block.norm1.bias.weight)
    z = torch.randn(1, 8).expand(3, -1)
    pictures = generator.eval()(z, torch.arange(3))
    assert (pictures[0] - pictures[1]).abs().max() > 1e-3
    logits = discriminator.eval()(pictures[:1].expand(3, -1, -1, -1), torch.arange(3))
    assert logits.unique().numel() == 3


def test_blocks_equal_the_papers_order(networks):
    """Folded resampling, and skips on the small side of it: the same function as the published order."""
    generator, discriminator = (net.eval() for net in networks)

    def conv(layer, x):
        return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)

    block = generator.blocks[0]
    x, y = torch.randn(2, 4, 4, 4), torch.tensor([0, 1])
    up = nn.Upsample(scale_factor=2)
    published = conv(block.conv2, block.norm2(conv(block.conv1, up(block.norm1(x, y))), y)) + conv(block.skip, up(x))
    torch.testing.assert_close(block(x, y), published)
    block, x, pool = discriminator.blocks[0], torch.randn(2, 1, 32, 32), nn.AvgPool2d(2)
    published = pool(conv(block.conv2, torch.relu(conv(block.conv1, x)))) + pool(conv(block.skip, x))
    torch.testing.assert_close(block(x), published)


def test_discriminator_is_spectrally_normed():
    torch.manual_seed(0)
    _, discriminator = models.build("sngan-32", **TINY)
    for _ in range(30):
        discriminator(torch.randn(2, 1, 32, 32), torch.tensor([0, 1]))
    layers = [m for m in discriminator.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(layers) == 12
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1, abs=1e-3)


def test_plain_batch_norm_and_relu_equals_torchs(networks):
    ours = networks[0].norm
    theirs = nn.BatchNorm2d(4)
    x = torch.randn(6, 4, 8, 8) * 2 + 1
    torch.testing.assert_close(ours(x), torch.relu(theirs(x)))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(x), torch.relu(theirs.eval()(x)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"g_ch": 0}, "g_ch"),
        ({"d_widths": (1, 1)}, "d_widths"),
        ({"num_classes": 0}, "num_classes"),
        ({"dim_z": 0}, "dim_z"),
    ],
)
def test_bad_settings_are_named(changes, named):
    with pytest.raises(InputError, match=named):
        models.build("sngan-32", **{**TINY, **changes})


def test_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="sngan-32"):
        models.build("stylegan")


def test_hinge_loss():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert losses.hinge_d(real, fake).item() == pytest.approx(0.25 + 1.0)
    assert losses.hinge_g(fake).item() == pytest.approx(1.0)


def test_non_saturating_loss():
    real, fake = torch.randn(7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    expected = -(real.sigmoid().log().mean() + (1 - fake.sigmoid()).log().mean())
    torch.testing.assert_close(losses.non_saturating_d(real, fake), expected)
    torch.testing.assert_close(losses.non_saturating_g(fake), -fake.sigmoid().log().mean())


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())
