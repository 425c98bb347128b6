"""The published recipes: what each preset is trained with where the command line does not say otherwise.

Every number is its paper's or its authors' script's, but for those that a function names as ours. Where a paper lets a
number move in the course of a run, it has here the value that it starts with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from gankernels import models
from gankernels.errors import InputError
from gankernels.train.config import Config, EMAConfig, NetworkConfig, TickConfig


def preset(name: str) -> Config:
    """The config called ``name``, without data set and folder.

    Raises:
        InputError: there is no such preset.
    """
    if name not in PRESETS:
        raise InputError(f"--preset: got {name!r}, expected one of {', '.join(PRESETS)}")
    return PRESETS[name](name)


def dcgan(name: str) -> Config:
    """1511.06434, section 4; the number of images and the average are ours."""
    adam = {"lr": 2e-4, "betas": (0.5, 0.999)}
    return _config(
        name, images=10_000_000, batch=128, n_dis=1, loss="non-saturating", g=adam, d=adam, ema=EMAConfig(kimg=20)
    )


def wgan_gp(name: str) -> Config:
    """1704.00028, algorithm 1; the average is ours."""
    adam = {"lr": 1e-4, "betas": (0.0, 0.9)}
    return _config(
        name,
        images=64_000_000,
        batch=64,
        n_dis=5,
        loss="wasserstein",
        penalty="wgan-gp",
        penalty_weight=10.0,
        g=adam,
        d=adam,
        ema=EMAConfig(kimg=50),
    )


def sngan(name: str) -> Config:
    """1802.05957, appendices B.4 and C, for CIFAR-10; 1802.05637, section 4, for ImageNet. The average is ours.

    The papers give the generator twice the discriminator's batch and let the learning rate fall to zero; here both have
    one batch, and the average of the weights takes the place of the falling rate.
    """
    adam = {"lr": 2e-4, "betas": (0.0, 0.9)}
    size: dict[str, Any] = {"images": 16_000_000, "batch": 64}
    if name != "sngan-32":
        size = {"images": 450_000 * 5 * 64, "batch": 64}
    return _config(name, **size, n_dis=5, loss="hinge", g=adam, d=adam, ema=EMAConfig(kimg=50))


def sagan(name: str) -> Config:
    """1805.08318, section 5, with two learning rates; the average is ours."""
    betas = (0.0, 0.9)
    return _config(
        name,
        images=256_000_000,
        batch=256,
        n_dis=1,
        loss="hinge",
        g={"lr": 1e-4, "betas": betas},
        d={"lr": 4e-4, "betas": betas},
        ema=EMAConfig(kimg=500),
    )


def biggan_32(name: str) -> Config:
    """1809.11096, appendix C.2, with the batch of the authors' script for CIFAR-10."""
    adam = {"lr": 2e-4, "betas": (0.0, 0.999)}
    return _config(
        name, images=25_000_000, batch=50, n_dis=4, loss="hinge", g=adam, d=adam, ema=_average(0.9999, 4 * 50)
    )


def biggan(name: str) -> Config:
    """1809.11096, section 3 and appendix C, as at 128 px."""
    betas = (0.0, 0.999)
    return _config(
        name,
        images=150_000 * 2 * 2048,
        batch=2048,
        n_dis=2,
        loss="hinge",
        g={"lr": 5e-5, "betas": betas},
        d={"lr": 2e-4, "betas": betas},
        ema=_average(0.9999, 2 * 2048),
    )


def r3gan(name: str, *, batch: int, gamma: float, average_kimg: float, images: int) -> Config:
    """2501.05441, section 5 and appendix: what its schedules begin with. The number of images is ours."""
    adam = {"lr": 2e-4, "betas": (0.0, 0.9)}
    return _config(
        name,
        images=images,
        batch=batch,
        n_dis=1,
        loss="rpgan",
        penalty="r1+r2",
        penalty_weight=gamma,
        g=adam,
        d=adam,
        ema=EMAConfig(kimg=average_kimg),
    )


#: By name, in the order of :func:`gankernels.models.presets`.
PRESETS: dict[str, Callable[[str], Config]] = {
    "dcgan-32": dcgan,
    "dcgan-64": dcgan,
    "dcgan-128": dcgan,
    "wgan-gp-32": wgan_gp,
    "wgan-gp-64": wgan_gp,
    "sngan-32": sngan,
    "sngan-128": sngan,
    "sagan-128": sagan,
    "biggan-32": biggan_32,
    "biggan-64": biggan,
    "biggan-128": biggan,
    "biggan-256": biggan,
    "biggan-512": biggan,
    "biggan-deep-128": biggan,
    "r3gan-32": functools.partial(r3gan, batch=512, gamma=0.05, average_kimg=5000, images=100_000_000),
    "r3gan-64": functools.partial(r3gan, batch=256, gamma=2.0, average_kimg=500, images=50_000_000),
    "r3gan-256": functools.partial(r3gan, batch=256, gamma=150.0, average_kimg=500, images=50_000_000),
}


def _config(name: str, *, g: dict[str, Any], d: dict[str, Any], **fields: Any) -> Config:
    """A config with the preset's own widths and latent."""
    network = models.settings(name)
    return Config(
        preset=name,
        dim_z=network["dim_z"],
        g=NetworkConfig(ch=network["g_ch"], widths=network["g_widths"], **g),
        d=NetworkConfig(ch=network["d_ch"], widths=network["d_widths"], **d),
        tick=TickConfig(images=100_000),
        **fields,
    )


def _average(decay: float, images_per_update: int) -> EMAConfig:
    """The average whose old value keeps the share ``decay`` in each of the generator's steps, as a half-life."""
    return EMAConfig(kimg=round(images_per_update * math.log(0.5) / math.log(decay) / 1000, 1))
