"""The Frechet distance between two Gaussians, and the streaming statistics that feed it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gankernels.errors import InputError


class FeatureStatistics:
    """Mean and covariance of feature vectors that arrive in batches, in float64.

    Batches are joined by the pairwise update of Chan, Golub and LeVeque (1983), so the result does not depend on how
    the vectors were split (up to rounding) and a large mean costs no precision. Memory is D * D, whatever the count.

    Args:
        num_features: D, the length of a feature vector.

    Attributes:
        count: the number of vectors seen.
        mean: [D] float64 on the CPU.

    Example:
        >>> statistics = FeatureStatistics(128)
        >>> for batch in batches:  # [N, 128]
        ...     statistics.update(batch)
        >>> frechet_distance(statistics.mean, statistics.covariance(), reference_mean, reference_covariance)
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64)
        self._scatter = torch.zeros(num_features, num_features, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    def update(self, features: Tensor) -> None:
        """Add a batch of vectors [N, D], any floating dtype and device; N may be 0.

        Raises:
            InputError: the shape is not [N, D].
        """
        if features.ndim != 2 or features.shape[1] != self.num_features:
            raise InputError(f"features: got shape {tuple(features.shape)}, expected [N, {self.num_features}]")
        if len(features) == 0:
            return
        features = features.detach().to("cpu", torch.float64)
        mean = features.mean(0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> None:
        """Add all that ``other`` has seen.

        Raises:
            InputError: the two have different ``num_features``.
        """
        if other.num_features != self.num_features:
            raise InputError(f"other: got {other.num_features} features, expected {self.num_features}")
        if other.count:
            self._join(other.count, other.mean, other._scatter)

    def covariance(self) -> Tensor:
        """The unbiased covariance [D, D] float64.

        Raises:
            InputError: fewer than 2 vectors were seen.
        """
        if self.count < 2:
            raise InputError(f"covariance: got {self.count} feature vectors, expected at least 2")
        return self._scatter / (self.count - 1)

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`from_state_dict` needs: an int and two tensors."""
        return {"count": self.count, "mean": self.mean, "scatter": self._scatter}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> FeatureStatistics:
        """The statistics that :meth:`state_dict` described."""
        statistics = cls(len(state["mean"]))
        statistics.count, statistics.mean, statistics._scatter = state["count"], state["mean"], state["scatter"]
        return statistics

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.count * count / total)
        self.count = total


def frechet_distance(mu1: Any, cov1: Any, mu2: Any, cov2: Any) -> float:
    """The squared Frechet (2-Wasserstein) distance between two Gaussians (Dowson and Landau, 1982).

    ``|mu1 - mu2|^2 + tr(cov1) + tr(cov2) - 2 tr((cov1 cov2)^(1/2))``

    The last trace is the sum of the singular values of ``F1^T F2``, where ``cov = F F^T``. That is real, finite and
    not negative for every pair of covariances, rank-deficient ones too, and loses no digits to a square root of
    rounding noise, which a general matrix square root of the product does.

    Args:
        mu1, mu2: means [D]; tensors or anything that ``torch.as_tensor`` takes.
        cov1, cov2: symmetric positive semi-definite covariances [D, D].

    Returns:
        The distance, computed in float64; never below 0.

    Raises:
        InputError: shapes that do not match, or a value that is not finite.
    """
    mu1, cov1, mu2, cov2 = (torch.as_tensor(value, dtype=torch.float64).cpu() for value in (mu1, cov1, mu2, cov2))
    num_features = mu1.numel()
    for name, value, shape in (
        ("mu1", mu1, (num_features,)),
        ("cov1", cov1, (num_features, num_features)),
        ("mu2", mu2, (num_features,)),
        ("cov2", cov2, (num_features, num_features)),
    ):
        if tuple(value.shape) != shape:
            raise InputError(f"{name}: got shape {tuple(value.shape)}, expected {shape}")
        if not value.isfinite().all():
            raise InputError(f"{name}: got values that are not finite, expected finite ones")
    cross = torch.linalg.svdvals(_factor(cov1).T @ _factor(cov2)).sum()
    difference = mu1 - mu2
    return max(0.0, float(difference @ difference + cov1.trace() + cov2.trace() - 2 * cross))


def _factor(cov: Tensor) -> Tensor:
    """F [D, r] with ``cov = F F^T``, r its numerical rank."""
    values, vectors = torch.linalg.eigh((cov + cov.T) / 2)
    # What lies below is rounding of the largest eigenvalue; its square root would not be negligible.
    keep = values > values[-1:].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, keep] * values[keep].sqrt()
