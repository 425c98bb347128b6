"""Values that move while a run goes on: functions of the config and of the images seen, and of nothing else.

A resumed run therefore needs nothing of them in its checkpoint.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gankernels.train.config import SCHEDULED, Config, NetworkConfig, ScheduleConfig


def remaining(schedule: ScheduleConfig, images: int) -> float:
    """The share of the way that lies ahead of a value after ``images`` images: 1 up to the start, 0 from the end on."""
    t = min(max(images - schedule.start, 0) / max(schedule.images, 1), 1.0)
    if schedule.shape == "cosine":
        # (1 + cos(pi t)) / 2: Loshchilov and Hutter, arXiv 1608.03983, equation 5, with no restart
        return (1 + math.cos(math.pi * t)) / 2
    return 1 - t


def moving(config: Config, images: int) -> dict[str, float]:
    """The scheduled values as they are after ``images`` images, by their names in :class:`ScheduleConfig`."""
    schedule = config.schedule
    if schedule.shape == "constant":
        return {}
    first = {
        "g_lr": config.g.lr,
        "d_lr": config.d.lr,
        "g_beta2": config.g.betas[1],
        "d_beta2": config.d.betas[1],
        "penalty_weight": config.penalty_weight,
        "ema_kimg": config.ema.kimg,
    }
    last = {name: getattr(schedule, name) for name in SCHEDULED}
    ahead = remaining(schedule, images)
    # first at ahead = 1 and last at ahead = 0, both to the bit
    return {name: ahead * first[name] + (1 - ahead) * end for name, end in last.items() if end is not None}


def in_force(config: Config, images: int) -> Config:
    """``config`` with its scheduled values as they are after ``images`` images; itself where nothing is scheduled."""
    values = moving(config, images)
    if not values:
        return config
    return replace(
        config,
        g=_network(config.g, values.get("g_lr"), values.get("g_beta2")),
        d=_network(config.d, values.get("d_lr"), values.get("d_beta2")),
        penalty_weight=values.get("penalty_weight", config.penalty_weight),
        ema=replace(config.ema, kimg=values.get("ema_kimg", config.ema.kimg)),
    )


def _network(config: NetworkConfig, lr: float | None, beta2: float | None) -> NetworkConfig:
    beta1, first_beta2 = config.betas
    return replace(config, lr=config.lr if lr is None else lr, betas=(beta1, first_beta2 if beta2 is None else beta2))
