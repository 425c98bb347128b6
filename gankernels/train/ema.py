"""The exponential moving average of the generator: what is sampled, evaluated and exported."""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gankernels.models.interface import GeneratorModule
from gankernels.train.config import EMAConfig


def decay(config: EMAConfig, *, images: int, images_per_update: int) -> float:
    """The weight that the average keeps in one update: ``0.5 ** (images_per_update / half_life)``.

    Counted in images, so that it means the same at every batch size. In a young run the half-life is at most
    ``ramp_up * images``, and the first pictures are not those of the initial weights. A half-life of 0 keeps nothing.
    """
    half_life = config.kimg * 1000
    if config.ramp_up is not None:
        half_life = min(half_life, config.ramp_up * images)
    return 0.5 ** (images_per_update / max(half_life, 1e-8))


class EMA:
    """An averaged copy of a generator.

    The weights are averaged. Batch-norm statistics are not: an average of the statistics of past weights is not that
    of the averaged weights. They are estimated from the averaged generator itself, before it is used, by
    :meth:`estimate_statistics` ("standing statistics": Brock et al., arXiv 1809.11096, section 4.1 and appendix B).
    """

    def __init__(self, generator: GeneratorModule, config: EMAConfig) -> None:
        self.config = config
        self.generator = copy.deepcopy(generator).requires_grad_(False).eval()
        self._pairs = [list(self.generator.parameters()), list(generator.parameters())]

    @torch.no_grad()
    def update(self, kept: float) -> None:
        """Move the average towards the generator. It keeps the weight ``kept``, of :func:`decay`; at 0 it is a copy."""
        get_ema_multi_avg_fn(kept)(*self._pairs, None)

    @torch.no_grad()
    def estimate_statistics(self, *, batch: int, seed: int) -> None:
        """Replace the batch-norm statistics by the mean over fresh batches. A function of weights and seed alone."""
        g = self.generator
        device = next(g.parameters()).device
        rng = torch.Generator().manual_seed(seed)
        norms = [m for m in g.modules() if getattr(m, "running_mean", None) is not None]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.num_batches_tracked.zero_()  # type: ignore[operator]
        g.train()
        for i in range(-(-self.config.statistics_images // batch)):
            for norm in norms:
                norm.momentum = 1 / (i + 1)  # type: ignore[assignment]  # the running value becomes the plain mean
            z = torch.randn(batch, g.dim_z, generator=rng)
            y = torch.randint(g.num_classes, (batch,), generator=rng)
            g(z.to(device), y.to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        g.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged generator's state."""
        return self.generator.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the averaged generator's state."""
        self.generator.load_state_dict(state)
