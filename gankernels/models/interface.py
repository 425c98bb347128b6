"""What every generator here has, whichever system it is of."""

from __future__ import annotations

from torch import nn


class GeneratorModule(nn.Module):
    """``generator(z [N, dim_z], y int64 [N]) -> pictures [N, channels, resolution, resolution]`` in [-1, 1]."""

    dim_z: int
    resolution: int
    channels: int
    num_classes: int
