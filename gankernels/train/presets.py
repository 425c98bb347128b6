"""The published recipes: what each preset is trained with where the command line does not say otherwise.

Every number is its paper's or its authors' script's, but for those that a function names as ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from gankernels import models
from gankernels.errors import InputError
from gankernels.train.config import Config, EMAConfig, NetworkConfig, ScheduleConfig, TickConfig


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
    """1704.00028, algorithm 1; for CIFAR-10 appendix F, where the learning rate falls to 0. The average is ours."""
    cifar = name == "wgan-gp-32"
    images = (100_000 if cifar else 200_000) * 5 * 64
    adam = {"lr": 2e-4 if cifar else 1e-4, "betas": (0.0, 0.9)}
    return _config(
        name,
        images=images,
        batch=64,
        n_dis=5,
        loss="wasserstein",
        penalty="wgan-gp",
        penalty_weight=10.0,
        g=adam,
        d=adam,
        ema=EMAConfig(kimg=50),
        schedule=_to_zero(images) if cifar else ScheduleConfig(),
    )


def sngan(name: str) -> Config:
    """1802.05957, appendices B.2 (CIFAR-10) and B.3 (ImageNet); 1802.05637, section 4. The average is ours.

    The learning rate falls to zero: for CIFAR-10 over all of the 50,000 steps of the generator (the authors' script),
    for ImageNet over the last 50,000 of 450,000. The papers give the generator twice the discriminator's batch; here
    both have one.
    """
    adam = {"lr": 2e-4, "betas": (0.0, 0.9)}
    constant = 0 if name == "sngan-32" else 400_000 * 5 * 64
    falling = 50_000 * 5 * 64
    return _config(
        name,
        images=constant + falling,
        batch=64,
        n_dis=5,
        loss="hinge",
        g=adam,
        d=adam,
        ema=EMAConfig(kimg=50),
        schedule=_to_zero(falling, start=constant),
    )


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
    """2501.05441, section 5 and appendix, and the authors' script: all four values move over 20 million images.

    The number of images is ours. The script augments what the discriminator sees, more and more; nothing does here.
    """
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
        ema=EMAConfig(kimg=0.0, ramp_up=None),
        schedule=ScheduleConfig(
            shape="cosine",
            images=20_000_000,
            g_lr=5e-5,
            d_lr=5e-5,
            g_beta2=0.99,
            d_beta2=0.99,
            penalty_weight=gamma / 10,
            ema_kimg=average_kimg,
        ),
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


def _to_zero(images: int, *, start: int = 0) -> ScheduleConfig:
    """Both learning rates on a line to 0."""
    return ScheduleConfig(shape="linear", start=start, images=images, g_lr=0.0, d_lr=0.0)


def _average(decay: float, images_per_update: int) -> EMAConfig:
    """The average whose old value keeps the share ``decay`` in each of the generator's steps, as a half-life."""
    return EMAConfig(kimg=round(images_per_update * math.log(0.5) / math.log(decay) / 1000, 1))
