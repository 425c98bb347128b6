"""A small classifier of the real data, trained once and cached: it judges whether a sample shows its class."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gankernels.data import ImageDataset, open_dataset
from gankernels.metrics import cache

#: Changes with anything that changes the weights: a cached classifier of another version is not read.
VERSION = 1

_WIDTH = 128
_LEARNING_RATE = 5e-3
_WEIGHT_DECAY = 5e-2
_BATCH = 128
_EVAL_BATCH = 512


class Classifier(nn.Module):
    """A plain convolutional network on pictures of any size, brought to 32 or 64 px inside.

    Args:
        num_classes: K.
        channels: of the pictures.
        resolution: of the pictures; up to 48 px are seen at 32 px, larger ones at 64 px.
        generator: draws the starting weights; the global one is left alone.

    Attributes:
        test_accuracy: share of the real test split that it names correctly; NaN before training.
        num_features: length of the penultimate activations.
    """

    num_features = _WIDTH

    def __init__(self, num_classes: int, channels: int, resolution: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.channels = channels
        self.resolution = resolution
        self.input_size = 32 if resolution <= 48 else 64
        self.test_accuracy = float("nan")
        with torch.device("meta"):
            stem = [_block(channels, 16, stride=2)]
            if self.input_size == 64:
                stem.append(_block(16, 16, stride=2))
            self.trunk = nn.Sequential(
                *stem,
                _block(16, 32),
                nn.MaxPool2d(2),
                _block(32, 64),
                nn.MaxPool2d(2),
                _block(64, 64),
                nn.Flatten(),
                nn.Linear(64 * 4 * 4, _WIDTH),
                nn.ReLU(),
            )
            self.head = nn.Linear(_WIDTH, num_classes)
        self.to_empty(device="cpu")
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=5**0.5, generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.reset_parameters()
        self.to(torch.float32, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, images: Tensor) -> Tensor:
        """The penultimate activations [N, 128] fp32 of uint8 pictures [N, C, H, W], on the classifier's device."""
        x = images.to(self.head.weight.device).float() / 127.5 - 1
        if x.shape[-2:] != (self.input_size, self.input_size):
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        return self.trunk(x.contiguous(memory_format=torch.channels_last))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, K] fp32 of uint8 pictures [N, C, H, W]."""
        return self.head(self.features(images))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """The most likely class, int64 [N] on the CPU, of uint8 pictures [N, C, H, W]."""
        parts = [self(part).argmax(1).cpu() for part in images.split(_EVAL_BATCH)]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def digest(self) -> str:
        """A hash of the weights: what was computed from this classifier's features belongs to it alone."""
        digest = hashlib.sha256()
        for name, value in self.state_dict().items():
            digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def train_or_load(
    source: str | Path,
    *,
    resolution: int,
    channels: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Classifier:
    """The classifier of a data set's real pictures, from the cache or trained now and cached.

    It is trained in fp32 on the training split (where a data set has no split of its own: on the pictures outside
    every tenth) and tested on the test split. The seed fixes order and weights; the global generators are not drawn
    from.

    Args:
        source: what ``gankernels.data.open_dataset`` takes.
        resolution, channels: of the pictures to be judged; the real ones are converted to them.
        device: where to train, and where the result is.
        progress: called with one line of text now and then.

    Returns:
        The classifier in eval mode, with ``test_accuracy``; its parameters do not require gradients.

    Raises:
        InputError: there is no such data set, or it has no labels.

    Example:
        >>> classifier = train_or_load("fashion-mnist", resolution=32, channels=1)
        >>> classifier.predict(images), classifier.test_accuracy
    """
    train, test = open_splits(source, resolution, channels)
    return for_splits(train, test, seed=seed, device=device, progress=progress)


def open_splits(source: str | Path, resolution: int, channels: int) -> tuple[ImageDataset, ImageDataset]:
    """The real training and test pictures, which have none in common, as labelled data sets.

    Raises:
        InputError: there is no such data set, or it has no labels.
    """
    train, test = (
        open_dataset(source, split=split, resolution=resolution, channels=channels).require_labels(1)
        for split in ("train-holdout", "test")
    )
    return train, test


def for_splits(
    train: ImageDataset,
    test: ImageDataset,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] | None = None,
) -> Classifier:
    """:func:`train_or_load` for splits that are open already."""
    resolution, channels = train.resolution, train.channels
    key = (VERSION, train.fingerprint(), test.fingerprint(), train.num_classes, seed)
    name = cache.file_name("classifier", train.name, *key)
    generator = torch.Generator().manual_seed(seed)
    classifier = Classifier(train.num_classes, channels, resolution, generator)
    if not _restore(classifier, name):
        _fit(classifier, train, generator, torch.device(device), progress)
        classifier.eval()
        right = 0
        for part in torch.arange(len(test)).split(_EVAL_BATCH):
            images, labels = test.batch(part)
            right += int((classifier.predict(images) == labels).sum())
        classifier.test_accuracy = right / len(test)
        weights = {key: value.cpu() for key, value in classifier.state_dict().items()}
        cache.store(name, {"weights": weights, "test_accuracy": classifier.test_accuracy})
    return classifier.to(device).eval().requires_grad_(False)


def _restore(classifier: Classifier, name: str) -> bool:
    state = cache.load(name)
    if state is None:
        return False
    try:
        classifier.load_state_dict(state["weights"])
        classifier.test_accuracy = float(state["test_accuracy"])
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        logging.getLogger("gankernels").warning("cache %s: %s, making it again", cache.folder() / name, reason)
        return False
    return True


def _fit(
    classifier: Classifier,
    dataset: ImageDataset,
    generator: torch.Generator,
    device: torch.device,
    progress: Callable[[str], None] | None,
) -> None:
    """Two passes over a large set, up to thirty over a small one, with one cycle of the learning rate."""
    classifier.to(device).train()
    count = len(dataset)
    batch = min(_BATCH, count)
    steps = max(1, max(2 * count, min(30 * count, 12_000)) // batch)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps + 1, pct_start=0.25)
    order = _endless_permutations(count, batch, generator)
    start = time.monotonic()
    deterministic = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False), deterministic:
        for step in range(steps):
            images, labels = dataset.batch(next(order))
            loss = F.cross_entropy(classifier(images), labels.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None and step % 100 == 0:
                left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
                estimate = f", {left:.0f} s left" if step else ""
                progress(f"training the classifier of {dataset.name}, once: step {step} of {steps}{estimate}")


def _endless_permutations(count: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (order[i : i + batch] for i in range(0, count - batch + 1, batch))


def _block(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
