"""Sizes of the networks as published, to the parameter. Buffers are not counted, and nothing is allocated."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

from gankernels import models

TABLES = {"shared_embedding": False, "hierarchical_z": False, "dim_z": 128}


@pytest.mark.parametrize(
    ("preset", "overrides", "generator", "discriminator"),
    [
        # BigGAN's table 1: 81.5 M and 173.5 M together.
        pytest.param("sagan-128", {}, 42_017_412, 39_448_258, id="SA-GAN baseline"),
        pytest.param("biggan-128", {**TABLES, "ch": 64}, 42_017_412, 39_448_258, id="ch 64, tables"),
        pytest.param("biggan-128", TABLES, 85_556_164, 87_982_370, id="ch 96, tables"),
        pytest.param("biggan-128", {"hierarchical_z": False}, 72_595_908, 87_982_370, id="ch 96, shared"),
        pytest.param("biggan-128", {}, 70_433_988, 87_982_370, id="ch 96, shared, hierarchical"),
        pytest.param("biggan-128", {"ch": 64}, 31_978_628, 39_448_258, id="ch 64, shared, hierarchical"),
        pytest.param("biggan-64", {}, 70_377_348, 45_511_970, id="64 px"),
        pytest.param("biggan-256", {}, 82_235_844, 99_225_890, id="256 px"),
        pytest.param("biggan-32", {}, 4_304_387, 4_207_361, id="CIFAR-10"),
        pytest.param("sngan-128", {}, 41_996_931, 39_443_137, id="SNGAN-128"),
        pytest.param("biggan-deep-128", {}, 50_244_484, 34_590_210, id="BigGAN-deep"),
        # R3GAN's table for FFHQ-256: 23.06 M and 23.01 M.
        pytest.param("r3gan-256", {}, 23_057_952, 23_009_568, id="R3GAN FFHQ-256"),
    ],
)
def test_published_sizes(preset, overrides, generator, discriminator):
    assert sizes(preset, **overrides) == (generator, discriminator)


def test_dcgan_and_wgan_gp_have_the_parameters_of_their_tables():
    convs = 16 * (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
    d_convs = 16 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024)
    assert sizes("dcgan-64") == (convs + 2 * (1024 + 512 + 256 + 128), d_convs + 2 * (256 + 512 + 1024))
    c = 128  # 1704.00028, appendix F: every layer is as wide
    conv, skip, norm = 9 * c * c + c, c * c + c, 2 * c
    up = 2 * (norm + conv) + skip
    first = (9 * 3 * c + c) + conv + (3 * c + c)
    generator = (c + 1) * 16 * c + 3 * up + norm + (9 * 3 * c + 3)
    assert sizes("wgan-gp-32") == (generator, first + (2 * conv + skip) + 2 * 2 * conv + (c + 1))


def test_biggan_512_is_256_and_a_block_more():
    g, d = sizes("biggan-512")
    assert (g, d) == (82_468_068, 99_401_282)
    smaller_g, smaller_d = sizes("biggan-256")
    ch, condition = 96, 148
    up = 2 * (9 * ch * ch + ch) + (ch * ch + ch) + 2 * 2 * condition * ch
    assert g - smaller_g == up
    down = 2 * (9 * ch * ch + ch) + (ch * ch + ch)
    assert d - smaller_d == down


def test_the_docs_have_every_preset_and_its_size():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\w+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert tuple(row[0] for row in rows) == models.presets()
    for preset, classes, dim_z, generator, discriminator in rows:
        settings = models.settings(preset)
        assert (0 if classes == "none" else int(classes), int(dim_z)) == (settings["num_classes"], settings["dim_z"])
        assert sizes(preset) == (int(generator.replace(",", "")), int(discriminator.replace(",", "")))


@functools.cache
def sizes(preset, **overrides):
    with torch.device("meta"):
        networks = models.build(preset, **overrides)
    return tuple(sum(p.numel() for p in net.parameters()) for net in networks)
