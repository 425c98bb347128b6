"""Published generators and discriminators, one file a system, and the losses they are trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from gankernels.errors import InputError
from gankernels.models import losses, sngan
from gankernels.models.interface import GeneratorModule

__all__ = ["GeneratorModule", "build", "losses", "presets", "resolution"]


class _Preset(NamedTuple):
    build: Callable[..., tuple[GeneratorModule, nn.Module]]
    resolution: int


_PRESETS = {"sngan-32": _Preset(sngan.sngan_32, 32)}


def presets() -> tuple[str, ...]:
    """The names that :func:`build` knows."""
    return tuple(_PRESETS)


def resolution(preset: str) -> int:
    """Side in pixels of the pictures that a preset makes.

    Raises:
        InputError: no such preset.
    """
    return _find(preset).resolution


def build(
    preset: str, *, num_classes: int | None = None, channels: int | None = None, **overrides: Any
) -> tuple[GeneratorModule, nn.Module]:
    """A generator and its discriminator, freshly initialised, in fp32, with their weights in channels_last.

    Args:
        preset: one of :func:`presets`.
        num_classes: the number of labels; None takes the paper's.
        channels: of the pictures; None takes the paper's.
        overrides: the network's own settings (``g_ch``, ``d_ch``, ``dim_z``, ...), passed to the preset's function.

    Returns:
        ``generator(z [N, dim_z], y int64 [N]) -> [N, C, H, W]`` in [-1, 1], with the attributes ``dim_z``,
        ``resolution``, ``channels`` and ``num_classes``, and ``discriminator(x [N, C, H, W], y) -> logits [N]``.

    Raises:
        InputError: no such preset, or a setting out of its range.

    Example:
        >>> generator, discriminator = gankernels.models.build("sngan-32", num_classes=10, channels=1, g_ch=64)
    """
    given = {"num_classes": num_classes, "channels": channels}
    return _find(preset).build(**{name: value for name, value in given.items() if value is not None}, **overrides)


def _find(preset: str) -> _Preset:
    if preset not in _PRESETS:
        raise InputError(f"preset: got {preset!r}, expected one of {', '.join(presets())}")
    return _PRESETS[preset]
