"""What every generator and discriminator here has, whichever system it is of."""

from __future__ import annotations

from torch import nn

from gankernels.errors import InputError


class GeneratorModule(nn.Module):
    """``generator(z [N, dim_z], y int64 [N]) -> pictures [N, channels, resolution, resolution]`` in [-1, 1].

    One that is unconditional has ``num_classes`` 0, and needs no ``y``.
    """

    dim_z: int
    resolution: int
    channels: int
    num_classes: int


def require_classes(num_classes: int) -> None:
    """Refuse to build a conditional system for no class.

    Raises:
        InputError: ``num_classes`` is 0.
    """
    if num_classes < 1:
        raise InputError(f"num_classes: got {num_classes}, expected at least 1: the system is conditional")
