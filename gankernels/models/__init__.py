"""Published generators and discriminators, one file a system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Any

import torch
from torch import nn

from gankernels.errors import InputError
from gankernels.models import biggan, biggan_deep, dcgan, r3gan, sagan, sngan, wgan_gp
from gankernels.models.interface import GeneratorModule
from gankernels.models.orthogonal import orthogonal_regularization_

__all__ = [
    "GeneratorModule",
    "build",
    "orthogonal_regularization_",
    "presets",
    "resolution",
    "settings",
]

_SYSTEMS: dict[str, ModuleType] = {
    preset: system for system in (dcgan, wgan_gp, sngan, sagan, biggan, biggan_deep, r3gan) for preset in system.PRESETS
}
_MAY_BE_ZERO = ("num_classes", "attention")


def presets() -> tuple[str, ...]:
    """The names that :func:`build` knows."""
    return tuple(_SYSTEMS)


def settings(preset: str) -> Mapping[str, Any]:
    """What a preset is built with, by name: the paper's numbers, each of which :func:`build` takes another for.

    ``resolution`` alone is fixed.

    Raises:
        InputError: no such preset.
    """
    if preset not in _SYSTEMS:
        raise InputError(f"preset: got {preset!r}, expected one of {', '.join(presets())}")
    return MappingProxyType(_SYSTEMS[preset].PRESETS[preset])


def resolution(preset: str) -> int:
    """Side in pixels of the pictures that a preset makes.

    Raises:
        InputError: no such preset.
    """
    return int(settings(preset)["resolution"])


def build(
    preset: str, *, num_classes: int | None = None, channels: int | None = None, **overrides: Any
) -> tuple[GeneratorModule, nn.Module]:
    """A generator and its discriminator, freshly initialised, in fp32, with their weights in channels_last.

    Args:
        preset: one of :func:`presets`.
        num_classes: the number of labels; None takes the paper's; 0, where a system can do without, none.
        channels: of the pictures; None takes the paper's.
        overrides: the network's own :func:`settings`: ``dim_z``; ``g_ch`` and ``d_ch``, units of width (``ch`` is
            both); ``g_widths`` and ``d_widths``, of each stage in those units; ``shared_embedding``, ``attention``, ...

    Returns:
        ``generator(z [N, dim_z], y int64 [N]) -> [N, C, H, W]`` in [-1, 1], with the attributes ``dim_z``,
        ``resolution``, ``channels`` and ``num_classes``, and ``discriminator(x [N, C, H, W], y) -> logits [N]``.
        ``y`` may be left out, and is not looked at, where ``num_classes`` is 0.

    Raises:
        InputError: no such preset, or a setting that it does not have or that is out of its range.

    Example:
        >>> generator, discriminator = gankernels.models.build("biggan-128", num_classes=10, ch=64)
    """
    defaults = settings(preset)
    given = {"num_classes": num_classes, "channels": channels}
    given = {name: value for name, value in given.items() if value is not None}
    if "ch" in overrides:
        ch = overrides.pop("ch")
        overrides = {"g_ch": ch, "d_ch": ch} | overrides
    for name in overrides:
        if name not in defaults or name == "resolution":
            known = ", ".join(sorted({"ch", *defaults} - {"resolution"}))
            raise InputError(f"{name}: got {overrides[name]!r} for {preset}, expected one of its settings: {known}")
    chosen = {**defaults, **given, **overrides}
    for name, value in chosen.items():
        if type(value) is int and value < (name not in _MAY_BE_ZERO):
            raise InputError(f"{name}: got {value}, expected at least {int(name not in _MAY_BE_ZERO)}")
    for network in ("g", "d"):
        ch, multipliers = chosen.pop(f"{network}_ch"), chosen[f"{network}_widths"]
        chosen[f"{network}_widths"] = _widths(network, ch, multipliers, count=len(defaults[f"{network}_widths"]))
    generator, discriminator = _SYSTEMS[preset].build(**chosen)
    return (
        generator.to(memory_format=torch.channels_last),
        discriminator.to(memory_format=torch.channels_last),
    )


def _widths(network: str, ch: int, multipliers: Sequence[float], *, count: int) -> list[int]:
    """Channels of each stage."""
    widths = [round(ch * multiplier) for multiplier in multipliers]
    if len(widths) != count:
        raise InputError(f"{network}_widths: got {len(widths)} numbers, expected {count}")
    if min(widths) < 1:
        raise InputError(f"{network}_ch, {network}_widths: got widths {widths}, expected each to be at least 1")
    return widths
