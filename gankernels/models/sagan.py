"""SAGAN: Zhang et al., "Self-Attention Generative Adversarial Networks", arXiv 1805.08318.

SNGAN's networks with spectral norm in the generator too (section 4.1) and self-attention at 64 px in both (section 3;
table 1, "feat64"). Its parameters are those of the baseline in BigGAN's table 1.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gankernels.models import residual
from gankernels.models.initialisation import xavier
from gankernels.models.interface import require_classes
from gankernels.nn import spectral_norm

#: Widths are multiples of ch: the generator's at 4 px and behind each block, the discriminator's behind each block.
PRESETS: dict[str, dict[str, Any]] = {
    "sagan-128": {
        "resolution": 128,
        "num_classes": 1000,
        "channels": 3,
        "dim_z": 128,
        "g_ch": 64,
        "g_widths": (16, 16, 8, 4, 2, 1),
        "d_ch": 64,
        "d_widths": (1, 2, 4, 8, 16, 16),
        "d_downsamples": 5,
        "d_wide": True,
        "shared_embedding": False,
        "shared_dim": 128,
        "hierarchical_z": False,
        "attention": 64,
    },
}


def build(**settings: Any) -> tuple[residual.Generator, residual.Discriminator]:
    """The networks of a row of :data:`PRESETS`: both are spectrally normed."""
    require_classes(settings["num_classes"])
    return residual.build(g_layer=_normed, d_layer=_normed, **settings)


def _normed(layer: nn.Module, gain: float) -> nn.Module:
    # Tables of the class in the generator's norms are not weights of a layer, and stay as they are.
    return spectral_norm(xavier(layer, gain))
