"""WGAN-GP: Gulrajani et al., "Improved Training of Wasserstein GANs", arXiv 1704.00028.

The residual networks of appendix F: batch norm in the generator, and no norm in the critic, whose penalty is taken
sample by sample (section 4). With ``num_classes`` the generator's norms become conditional and the critic projects the
class, as SNGAN does; the paper has an auxiliary classifier there.
"""

from __future__ import annotations

from typing import Any

from gankernels.models import residual
from gankernels.models.initialisation import he

#: Widths are multiples of ch: the generator's at 4 px and behind each block, the critic's behind each block.
PRESETS: dict[str, dict[str, Any]] = {
    # CIFAR-10: appendix F, "CIFAR ResNet". Of the critic's blocks the last two stay at 8 px.
    "wgan-gp-32": {
        "resolution": 32,
        "num_classes": 0,
        "channels": 3,
        "dim_z": 128,
        "g_ch": 128,
        "g_widths": (1, 1, 1, 1),
        "d_ch": 128,
        "d_widths": (1, 1, 1, 1),
        "d_downsamples": 2,
    },
    # The same scheme one octave up, with the widths of the authors' networks for 64 px.
    "wgan-gp-64": {
        "resolution": 64,
        "num_classes": 0,
        "channels": 3,
        "dim_z": 128,
        "g_ch": 64,
        "g_widths": (8, 8, 4, 2, 1),
        "d_ch": 64,
        "d_widths": (2, 4, 8, 8),
        "d_downsamples": 4,
    },
}


def build(**settings: Any) -> tuple[residual.Generator, residual.Discriminator]:
    """The networks of a row of :data:`PRESETS`."""
    return residual.build(g_layer=he, d_layer=he, d_wide=False, d_pool="mean", **settings)
