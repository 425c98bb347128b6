"""Figures of a trained generator: class accuracy and Frechet distance, with what is needed to read them."""

from gankernels.metrics.evaluation import evaluate
from gankernels.metrics.frechet import FeatureStatistics, frechet_distance

__all__ = ["FeatureStatistics", "evaluate", "frechet_distance"]
