"""SNGAN with projection.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks", arXiv 1802.05957 (the residual networks of
appendix B.4); Miyato and Koyama, "cGANs with Projection Discriminator", arXiv 1802.05637 (conditional batch norm in the
generator, the class projected onto the discriminator's features).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gankernels.models import residual
from gankernels.models.initialisation import xavier
from gankernels.models.interface import require_classes
from gankernels.nn import spectral_norm

_BOTH: dict[str, Any] = {
    "channels": 3,
    "dim_z": 128,
    "shared_embedding": False,
    "shared_dim": 128,
    "hierarchical_z": False,
    "attention": 0,
}

#: Widths are multiples of ch: the generator's at 4 px and behind each block, the discriminator's behind each block.
PRESETS: dict[str, dict[str, Any]] = {
    # CIFAR-10: 1802.05957, table 4. Of the discriminator's blocks the last two stay at 8 px.
    "sngan-32": {
        "resolution": 32,
        "num_classes": 10,
        "g_ch": 256,
        "g_widths": (1, 1, 1, 1),
        "d_ch": 128,
        "d_widths": (1, 1, 1, 1),
        "d_downsamples": 2,
        "d_wide": False,
        **_BOTH,
    },
    # ImageNet: 1802.05637, figure 14.
    "sngan-128": {
        "resolution": 128,
        "num_classes": 1000,
        "g_ch": 64,
        "g_widths": (16, 16, 8, 4, 2, 1),
        "d_ch": 64,
        "d_widths": (1, 2, 4, 8, 16, 16),
        "d_downsamples": 5,
        "d_wide": True,
        **_BOTH,
    },
}


def build(**settings: Any) -> tuple[residual.Generator, residual.Discriminator]:
    """The networks of a row of :data:`PRESETS`: the discriminator alone is spectrally normed."""
    require_classes(settings["num_classes"])
    return residual.build(g_layer=xavier, d_layer=_normed, **settings)


def _normed(layer: nn.Module, gain: float) -> nn.Module:
    return spectral_norm(xavier(layer, gain))
