"""How good a conditional generator's samples are, against the real data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gankernels.data import ImageDataset
from gankernels.errors import InputError
from gankernels.metrics import classifier as classifiers
from gankernels.metrics.classifier import Classifier
from gankernels.metrics.features import (
    CLASSIFIER,
    FEATURES,
    ClassifierFeatures,
    EfficientNetLite0Features,
    Extractor,
    why_no_efficientnet,
)
from gankernels.metrics.frechet import FeatureStatistics, frechet_distance
from gankernels.metrics.reference import reference_statistics

METRICS = ("fd", "accuracy")

#: Real training pictures that the reference statistics are taken from, if there are as many.
REFERENCE_IMAGES = 10_000

_SAMPLE_CHUNK = 1024  # Part of what a seed means: each chunk of samples has a seed of its own.

Progress = Callable[[str], None]


def evaluate(
    generator: nn.Module,
    dataset_source: str | Path,
    *,
    num_samples: int = 2048,
    seed: int = 0,
    metrics: Sequence[str] = METRICS,
    features: str | None = None,
    batch_size: int = 256,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Sample a class-conditional generator and hold the samples against real data.

    ``accuracy`` is the share of samples in which a classifier, trained on the real training split, sees the class that
    was asked for. ``fd`` is the Frechet distance to the real training split in the features that ``fd_features``
    names; it is not the FID of Inception features and compares only with figures of the same features, resolution and
    number of samples. Classes are sampled in the proportions of the training split.

    Args:
        generator: ``generator(z, y) -> [N, C, H, W]`` in [-1, 1], in eval mode, with ``resolution``, ``channels`` and
            ``num_classes``, as ``gankernels.train.load_generator`` gives; the metrics run on its device.
        dataset_source: what ``gankernels.data.open_dataset`` takes, with labels.
        num_samples: pictures to make. Frechet distances need at least 2, and more than features to be of use.
        seed: of the samples.
        metrics: of ``"fd"`` and ``"accuracy"``.
        features: ``"efficientnet-lite0"``, ``"classifier"``, or None: the first where its packages are installed,
            else the second.
        batch_size: pictures at a time.
        progress: called with one line of text now and then.

    Returns:
        A dict ready for JSON: ``data, num_classes, resolution, channels, samples, seed`` and

        - accuracy: ``accuracy``, ``accuracy_per_class`` (by class name; None where no sample fell to a class),
          ``seen_per_class`` (by class name; in how many samples the classifier sees it, whatever was asked for),
          ``classifier_test_accuracy`` (of the judge, on the real test split);
        - fd: ``fd``, ``fd_features``, ``fd_num_features``, ``fd_reference_images``, ``fd_floor`` (the distance of
          ``fd_floor_images`` pictures of the real test split: what samples as good as real would score);
        - ``warnings``: lines that qualify the figures.

    Raises:
        InputError: an argument that is out of range, a data set without labels or with other classes than the
            generator's, or features that are not installed.
    """
    _check(num_samples, seed, metrics, features, batch_size)
    device = next((parameter.device for parameter in generator.parameters()), torch.device("cpu"))
    resolution, channels = int(generator.resolution), int(generator.channels)  # type: ignore[arg-type]
    train, test = classifiers.open_splits(dataset_source, resolution, channels)
    if train.num_classes != generator.num_classes:
        raise InputError(
            f"data: got {train.num_classes} classes in {train.name}, expected the generator's {generator.num_classes}"
        )

    extractor: Extractor | None = None
    if "fd" in metrics and features != CLASSIFIER and (features or why_no_efficientnet() is None):
        extractor = EfficientNetLite0Features(resolution, device)
    judges: list[_Accuracy | _Frechet] = []
    if "accuracy" in metrics or extractor is None:
        classifier = classifiers.for_splits(train, test, device=device, progress=progress)
        extractor = extractor or ClassifierFeatures(classifier)
        if "accuracy" in metrics:
            judges.append(_Accuracy(classifier, train))
    if "fd" in metrics:
        judges.append(_Frechet(extractor, train, test, num_samples, batch_size, progress))

    done = 0
    labels = proportional_labels(train.labels, train.num_classes, num_samples)
    for images, asked in _samples(generator, labels, seed, batch_size):
        for part, part_asked in zip(images.split(batch_size), asked.split(batch_size), strict=True):
            for judge in judges:
                judge.update(part, part_asked)
        done += len(images)
        if progress is not None:
            progress(f"judging samples: {done} of {num_samples}")

    result: dict[str, Any] = {
        "data": train.name,
        "num_classes": train.num_classes,
        "resolution": resolution,
        "channels": channels,
        "samples": num_samples,
        "seed": seed,
    }
    warnings: list[str] = []
    for judge in judges:
        result |= judge.result()
        warnings += judge.warnings()
    return {**result, "warnings": warnings}


def proportional_labels(labels: Tensor, num_classes: int, count: int) -> Tensor:
    """``count`` labels, int64, in the proportions of ``labels`` [N] by largest remainders, in a fixed order."""
    share = torch.bincount(labels, minlength=num_classes).double() * count / len(labels)
    allotted = share.floor().long()
    # A stable sort: equal remainders go to the lower class.
    order = (allotted - share).sort(stable=True).indices
    allotted[order[: count - int(allotted.sum())]] += 1
    made = torch.repeat_interleave(torch.arange(num_classes), allotted)
    return made[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


class _Accuracy:
    """Counts the samples in which the classifier sees the class that was asked for."""

    def __init__(self, classifier: Classifier, train: ImageDataset) -> None:
        self._classifier = classifier
        self._class_names = train.class_names
        self._asked = torch.zeros(train.num_classes, dtype=torch.int64)
        self._right = torch.zeros(train.num_classes, dtype=torch.int64)
        self._seen = torch.zeros(train.num_classes, dtype=torch.int64)

    def update(self, images: Tensor, labels: Tensor) -> None:
        seen = self._classifier.predict(images)
        self._asked += torch.bincount(labels, minlength=len(self._asked))
        self._right += torch.bincount(labels[seen == labels], minlength=len(self._right))
        self._seen += torch.bincount(seen, minlength=len(self._seen))

    def result(self) -> dict[str, Any]:
        counts = zip(self._class_names, self._right.tolist(), self._asked.tolist(), strict=True)
        return {
            "accuracy": int(self._right.sum()) / int(self._asked.sum()),
            "accuracy_per_class": {name: right / asked if asked else None for name, right, asked in counts},
            "seen_per_class": dict(zip(self._class_names, self._seen.tolist(), strict=True)),
            "classifier_test_accuracy": self._classifier.test_accuracy,
        }

    def warnings(self) -> list[str]:
        empty = int((self._asked == 0).sum())
        return [f"accuracy: {empty} classes were given no sample; take more samples"] if empty else []


class _Frechet:
    """The distance of the samples, and of as many real test pictures, to the real training pictures."""

    def __init__(
        self,
        extractor: Extractor,
        train: ImageDataset,
        test: ImageDataset,
        num_samples: int,
        batch_size: int,
        progress: Progress | None,
    ) -> None:
        self._extractor = extractor
        self._samples = FeatureStatistics(extractor.num_features)
        self._train = reference_statistics(train, extractor, REFERENCE_IMAGES, batch_size=batch_size, progress=progress)
        self._test = reference_statistics(test, extractor, num_samples, batch_size=batch_size, progress=progress)
        for name, statistics in (("training", self._train), ("test", self._test)):
            if statistics.count < 2:
                raise InputError(f"data: got {statistics.count} {name} picture in {train.name}, expected 2 or more")
        self._asked_for = num_samples

    def update(self, images: Tensor, labels: Tensor) -> None:
        self._samples.update(self._extractor(images))

    def result(self) -> dict[str, Any]:
        return {
            "fd": self._to_train(self._samples),
            "fd_features": self._extractor.name,
            "fd_num_features": self._extractor.num_features,
            "fd_reference_images": self._train.count,
            "fd_floor": self._to_train(self._test),
            "fd_floor_images": self._test.count,
        }

    def warnings(self) -> list[str]:
        lines = []
        features = self._extractor.num_features
        if self._asked_for <= features:
            lines.append(
                f"fd: the covariance of {self._asked_for} samples in {features} features is rank-deficient and the "
                f"distance biased upwards; take more than {features} samples"
            )
        if self._test.count < self._asked_for:
            lines.append(
                f"fd_floor: the test split has only {self._test.count} pictures, so the floor is biased upwards"
            )
        return lines

    def _to_train(self, statistics: FeatureStatistics) -> float:
        reference = self._train
        return frechet_distance(statistics.mean, statistics.covariance(), reference.mean, reference.covariance())


def _check(num_samples: int, seed: int, metrics: Sequence[str], features: str | None, batch_size: int) -> None:
    if not metrics:
        raise InputError(f"metrics: got none, expected some of {', '.join(METRICS)}")
    for metric in metrics:
        if metric not in METRICS:
            raise InputError(f"metrics: got {metric!r}, expected some of {', '.join(METRICS)}")
    if features is not None and features not in FEATURES:
        raise InputError(f"features: got {features!r}, expected one of {', '.join(FEATURES)}")
    least = 2 if "fd" in metrics else 1
    for name, value, lowest in (("samples", num_samples, least), ("seed", seed, 0), ("batch", batch_size, 1)):
        if value < lowest:
            raise InputError(f"{name}: got {value}, expected {lowest} or more")


def _samples(generator: nn.Module, labels: Tensor, seed: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pictures and their labels, a chunk at a time: never all of a large set at once."""
    from gankernels.train import generate

    for i, part in enumerate(labels.split(_SAMPLE_CHUNK)):
        chunk_seed = int(np.random.SeedSequence([seed, i]).generate_state(1, np.uint32)[0])
        yield generate(generator, part, seed=chunk_seed, batch_size=batch_size), part
