"""What every preset keeps: the interface, the range, the layout, the gradients; and how bad settings are named."""

from __future__ import annotations

import functools
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gankernels import cli, models
from gankernels.errors import InputError
from gankernels.train.presets import PRESETS, preset

#: The least widths that each system allows.
TINY = {
    "dcgan-32": {"ch": 2},
    "dcgan-64": {"ch": 2, "num_classes": 3},
    "dcgan-128": {"ch": 2},
    "wgan-gp-32": {"ch": 2},
    "wgan-gp-64": {"ch": 2, "num_classes": 3},
    "sngan-32": {"ch": 2, "num_classes": 3},
    "sngan-128": {"ch": 2, "num_classes": 3},
    "sagan-128": {"g_ch": 4, "d_ch": 8, "d_widths": (1,) * 6, "num_classes": 3},
    "biggan-32": {"ch": 1, "num_classes": 3},
    "biggan-64": {"g_ch": 2, "d_ch": 8, "d_widths": (1,) * 5, "num_classes": 3},
    "biggan-128": {"g_ch": 4, "d_ch": 8, "d_widths": (1,) * 6, "num_classes": 3},
    "biggan-256": {"g_ch": 2, "d_ch": 4, "d_widths": (1, 2, 2, 2, 2, 2, 2), "num_classes": 3},
    "biggan-512": {"g_ch": 2, "d_ch": 4, "d_widths": (1, 1, 2, 2, 2, 2, 2, 2), "num_classes": 3},
    "biggan-deep-128": {"ch": 4, "g_widths": (2,) * 6, "d_widths": (1, 2, 2, 2, 2, 2), "num_classes": 3},
    "r3gan-32": {"ch": 16, "num_classes": 3},
    "r3gan-64": {"ch": 16},
    "r3gan-256": {"ch": 64},
}
every_preset = pytest.mark.parametrize("name", models.presets())


@functools.cache
def networks(name):
    torch.manual_seed(0)
    return models.build(name, **TINY[name])


@every_preset
def test_interface_and_gradients(name):
    generator, discriminator = networks(name)
    settings = models.settings(name)
    assert generator.resolution == models.resolution(name) == settings["resolution"]
    assert generator.dim_z == settings["dim_z"]
    assert generator.channels == 3
    assert generator.num_classes == TINY[name].get("num_classes", 0)
    z = torch.randn(2, generator.dim_z)
    labels = [torch.tensor([1, 2])] if generator.num_classes else []
    pictures = generator(z, *labels)
    assert pictures.shape == (2, 3, generator.resolution, generator.resolution)
    logits = discriminator(pictures, *labels)
    assert logits.shape == (2,)
    logits.sum().backward()
    for net in (generator, discriminator):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        net.zero_grad()
    with torch.no_grad():
        assert generator.eval()(z, *labels).abs().max() <= 1
    generator.train()


@every_preset
def test_sixteen_bits_and_channels_last_throughout(name):
    """Under autocast no convolution is given fp32, which a residual sum would carry on, nor another layout."""
    generator, discriminator = networks(name)
    seen = []

    def watch(module, inputs, output):
        for x in (*inputs, output):
            one = min(x.shape[1:]) == 1  # a latent, a logit: both layouts are the same
            is_latent = x is inputs[0] and x.shape[2:] == (1, 1)
            dtype = torch.bfloat16 if is_latent else x.dtype
            seen.append((dtype, one or x.is_contiguous(memory_format=torch.channels_last)))

    convs = [m for m in itertools.chain(generator.modules(), discriminator.modules()) if _is_conv(m)]
    hooks = [m.register_forward_hook(watch) for m in convs]
    labels = [torch.tensor([1, 2])] if generator.num_classes else []
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        x = generator(torch.randn(2, generator.dim_z), *labels)
        discriminator(x, *labels)
    for hook in hooks:
        hook.remove()
    assert set(seen) == {(torch.bfloat16, True)}
    assert len(seen) == 2 * len(convs)


def _is_conv(module):
    return isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))


@every_preset
def test_dry_run(name, capsys):
    assert cli.main(["train", "--preset", name, "--data", "digits", "--out", "nowhere", "--dry-run"]) == 0
    config = json.loads(capsys.readouterr().out)
    settings = models.settings(name)
    assert config["preset"] == name
    assert config["dim_z"] == settings["dim_z"]
    for network in ("g", "d"):
        assert config[network]["ch"] == settings[f"{network}_ch"]
        assert tuple(config[network]["widths"]) == settings[f"{network}_widths"]


def test_every_preset_has_a_recipe():
    assert tuple(PRESETS) == models.presets() == tuple(TINY)
    recipe = preset("biggan-128")
    assert (recipe.batch, recipe.n_dis, recipe.loss) == (2048, 2, "hinge")
    assert (recipe.g.lr, recipe.d.lr, recipe.d.betas) == (5e-5, 2e-4, (0.0, 0.999))
    # 0.9999 a step of the generator, which sees two batches of real pictures go by.
    assert 0.5 ** (2 * 2048 / (1000 * recipe.ema.kimg)) == pytest.approx(0.9999, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "overrides", "said"),
    [
        ("biggan-9", {}, "preset: got 'biggan-9', expected one of dcgan-32"),
        ("biggan-32", {"depth": 3}, "depth: got 3 for biggan-32, expected one of its settings: attention, ch"),
        ("biggan-32", {"resolution": 64}, "resolution: got 64 for biggan-32, expected one of its settings"),
        ("biggan-32", {"num_classes": 0}, "num_classes: got 0, expected at least 1"),
        ("dcgan-32", {"num_classes": -1}, "num_classes: got -1, expected at least 0"),
        ("biggan-32", {"channels": 0}, "channels: got 0, expected at least 1"),
        ("biggan-32", {"ch": 0}, "g_ch: got 0, expected at least 1"),
        ("biggan-32", {"g_widths": (1, 1)}, "g_widths: got 2 numbers, expected 4"),
        ("biggan-32", {"d_widths": (1, 1, 0.001, 1)}, r"d_ch, d_widths: got widths \[64, 64, 0, 64\], expected each"),
        ("biggan-128", {"dim_z": 128}, "dim_z: got 128, expected a multiple of 6"),
        ("biggan-128", {"shared_embedding": False}, "hierarchical_z: got True with shared_embedding=False"),
        ("biggan-128", {"attention": 48}, r"attention: got 48, expected 0 for none, or one of \[8, 16, 32, 64, 128\]"),
        ("biggan-128", {"d_ch": 4}, "attention: got it on 4 channels, expected at least 8"),
        ("biggan-deep-128", {"ch": 2}, "ch: got a width of 2, expected at least 4"),
        ("biggan-deep-128", {"attention": 4}, "attention: got 4"),
        (
            "biggan-deep-128",
            {"d_widths": (1, 2, 1, 8, 16, 16)},
            r"d_widths: got widths \[128, 256, 128, 1024, .*, expected none below",
        ),
        (
            "biggan-deep-128",
            {"g_widths": (1, 2, 1, 1, 1, 1)},
            r"g_widths: got widths \[128, 256, .*, expected none above",
        ),
        ("r3gan-32", {"ch": 20}, "ch: got a width of 20, expected multiples of 8"),
    ],
)
def test_bad_settings_are_named(name, overrides, said):
    with torch.device("meta"), pytest.raises(InputError, match=said):
        models.build(name, **overrides)


def test_settings_cannot_be_written():
    with pytest.raises(TypeError):
        models.settings("biggan-32")["g_ch"] = 3


@pytest.mark.parametrize("name", ["biggan-64", "r3gan-32"])
def test_what_the_class_reaches_through_one_embedding(name):
    generator = networks(name)[0].eval()
    with torch.no_grad():
        for p in generator.parameters():  # some start with zeros
            p.add_(torch.randn_like(p), alpha=0.1)
    z = torch.randn(1, generator.dim_z).expand(3, -1)
    with torch.no_grad():
        pictures = generator(z, torch.arange(3))
    generator.train()
    assert min((a - b).abs().max() for a, b in itertools.combinations(pictures, 2)) > 1e-3


def test_every_chunk_of_a_hierarchical_latent_matters():
    generator = networks("biggan-64")[0]
    z = torch.randn(2, generator.dim_z, requires_grad=True)
    (gradient,) = torch.autograd.grad(generator(z, torch.tensor([0, 1])).square().sum(), z)
    assert (gradient != 0).all()


def test_biggan_starts_orthogonal():
    torch.manual_seed(0)
    for net in models.build("biggan-64", **TINY["biggan-64"]):
        for name, weight in net.named_parameters():
            if weight.dim() > 1:
                w = weight.flatten(1)
                gram = w @ w.mT if len(w) <= w.shape[1] else w.mT @ w
                torch.testing.assert_close(gram, torch.eye(len(gram)), msg=name)


def test_r3gan_starts_as_its_skips():
    torch.manual_seed(0)
    generator, _ = models.build("r3gan-64", ch=128)
    block = generator.stages[0][0]
    x = torch.randn(2, 128, 4, 4)
    assert torch.equal(block(x), x)
    # 10 blocks of 3 layers: L^(-1 / (2 m - 2)) = 10^(-1/4), behind a gain of a leaky ReLU.
    gain = (2 / 1.04) ** 0.5 * 10**-0.25
    assert block.conv1.weight.std().item() == pytest.approx(gain / 128**0.5, rel=0.02)
    assert block.conv2.weight.std().item() == pytest.approx(gain / (9 * 16) ** 0.5, rel=0.02)
    assert block.conv2.groups == 256 // 16


def test_wgan_gp_starts_with_the_variance_of_he():
    torch.manual_seed(0)
    _, critic = models.build("wgan-gp-32", ch=32)
    block = critic.blocks[1]
    assert block.conv1.weight.std().item() == pytest.approx((2 / (9 * 32)) ** 0.5, rel=0.05)
    assert block.skip.weight.std().item() == pytest.approx((1 / 32) ** 0.5, rel=0.05)


def test_attention_is_the_identity_at_first_and_takes_maps_of_any_size():
    attention = models.attention.SelfAttention(8, lambda layer: layer)
    x = torch.randn(2, 8, 6, 10)
    assert torch.equal(attention(x), x)
    nn.init.ones_(attention.gamma)
    theta, phi, g = (getattr(attention, name)(x) for name in ("theta", "phi", "g"))
    beta = torch.einsum("nchw,ncij->nhwij", theta, F.max_pool2d(phi, 2)).flatten(3).softmax(3)
    o = torch.einsum("nhwk,nck->nchw", beta, F.max_pool2d(g, 2).flatten(2))
    torch.testing.assert_close(attention(x), x + attention.o(o))
