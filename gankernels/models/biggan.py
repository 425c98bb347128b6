"""BigGAN: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", arXiv 1809.11096.

SAGAN's networks, wider, with one embedding of the class for all batch norms ("shared", section 3), the latent in chunks
to every block ("hierarchical", section 3 and figure 15) and orthogonal initial weights (appendix C). Beside it stand
truncation (``gankernels sample --truncation``), standing statistics (:func:`gankernels.nn.standing_statistics`) and
:func:`gankernels.models.orthogonal_regularization_`.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gankernels.models import residual
from gankernels.models.initialisation import orthogonal
from gankernels.models.interface import require_classes
from gankernels.nn import spectral_norm

_IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "channels": 3,
    "g_ch": 96,
    "d_ch": 96,
    "d_wide": True,
    "shared_embedding": True,
    "shared_dim": 128,
    "hierarchical_z": True,
    "attention": 64,
}

#: Widths are multiples of ch: the generator's at 4 px and behind each block, the discriminator's behind each block.
PRESETS: dict[str, dict[str, Any]] = {
    # CIFAR-10, section 4.1 and appendix C: one width, no attention, a table of gains and biases in each norm.
    "biggan-32": {
        "resolution": 32,
        "num_classes": 10,
        "channels": 3,
        "dim_z": 128,
        "g_ch": 64,
        "g_widths": (4, 4, 4, 4),
        "d_ch": 64,
        "d_widths": (4, 4, 4, 4),
        "d_downsamples": 2,
        "d_wide": True,
        "shared_embedding": False,
        "shared_dim": 128,
        "hierarchical_z": False,
        "attention": 0,
    },
    # ImageNet, appendix B. The paper has no 64 px; attention is at half the resolution there too.
    "biggan-64": {
        "resolution": 64,
        "dim_z": 120,
        "g_widths": (16, 16, 8, 4, 2),
        "d_widths": (1, 2, 4, 8, 16),
        "d_downsamples": 4,
        **_IMAGENET,
        "attention": 32,
    },
    "biggan-128": {  # table 4
        "resolution": 128,
        "dim_z": 120,
        "g_widths": (16, 16, 8, 4, 2, 1),
        "d_widths": (1, 2, 4, 8, 16, 16),
        "d_downsamples": 5,
        **_IMAGENET,
    },
    "biggan-256": {  # table 5
        "resolution": 256,
        "dim_z": 140,
        "g_widths": (16, 16, 8, 8, 4, 2, 1),
        "d_widths": (1, 2, 4, 8, 8, 16, 16),
        "d_downsamples": 6,
        **_IMAGENET,
    },
    "biggan-512": {  # table 6
        "resolution": 512,
        "dim_z": 160,
        "g_widths": (16, 16, 8, 8, 4, 2, 1, 1),
        "d_widths": (1, 1, 2, 4, 8, 8, 16, 16),
        "d_downsamples": 7,
        **_IMAGENET,
    },
}


def build(**settings: Any) -> tuple[residual.Generator, residual.Discriminator]:
    """The networks of a row of :data:`PRESETS`: both are spectrally normed, but for the shared embedding."""
    require_classes(settings["num_classes"])
    return residual.build(g_layer=_generator_layer, d_layer=_normed, **settings)


def _normed(layer: nn.Module, gain: float) -> nn.Module:
    return spectral_norm(orthogonal(layer))


def _generator_layer(layer: nn.Module, gain: float) -> nn.Module:
    return orthogonal(layer) if isinstance(layer, nn.Embedding) else _normed(layer, gain)
