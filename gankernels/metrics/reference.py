"""Statistics of the real data's features: computed once, cached."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gankernels.data import ImageDataset
from gankernels.metrics import cache
from gankernels.metrics.features import Extractor
from gankernels.metrics.frechet import FeatureStatistics

#: Changes with anything that changes what is cached.
_VERSION = 1


def reference_statistics(
    dataset: ImageDataset,
    extractor: Extractor,
    limit: int,
    *,
    batch_size: int = 256,
    progress: Callable[[str], None] | None = None,
) -> FeatureStatistics:
    """The statistics of at most ``limit`` of the data set's pictures, always the same ones.

    Args:
        dataset: real pictures.
        extractor: makes the features.
        limit: pictures to take, drawn once with a fixed seed where there are more.
        batch_size: pictures at a time.
        progress: called with one line of text now and then.
    """
    count = min(limit, len(dataset))
    name = cache.file_name("features", dataset.name, _VERSION, extractor.key, dataset.fingerprint(), count)
    state = cache.load(name)
    if state is not None:
        return FeatureStatistics.from_state_dict(state)
    # Sorted, so that a memory-mapped set is read front to back.
    indices = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:count].sort().values
    statistics = FeatureStatistics(extractor.num_features)
    for part in indices.split(batch_size):
        statistics.update(extractor(dataset.batch(part)[0]))
        if progress is not None:
            progress(f"features of real pictures of {dataset.name}, once: {statistics.count} of {count}")
    cache.store(name, statistics.state_dict())
    return statistics
