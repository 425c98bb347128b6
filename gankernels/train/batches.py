"""The order in which a run sees its data, and the data as the networks want it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Dataset(Protocol):
    """What the trainer asks of a data set: a :class:`gankernels.data.ImageDataset`, or anything that looks like one."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def num_classes(self) -> int: ...

    @property
    def resolution(self) -> int: ...

    @property
    def channels(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures uint8 [B, C, H, W] and labels int64 [B] at ``indices`` [B]."""
        ...

    def require_labels(self) -> object:
        """Raise an InputError where there are no labels or only one class."""

    def fingerprint(self) -> str:
        """A short hash of the content."""
        ...


class Batch(NamedTuple):
    """Pictures and their labels on the run's device."""

    x: Tensor  # fp32 [N, C, H, W] in [-1, 1], channels_last
    y: Tensor  # int64 [N]


class Sampler:
    """Indices of an endless stream of epochs, each a fresh permutation of the data set.

    A batch at the end of an epoch takes its rest from the next one, so every image comes exactly once an epoch. The
    permutation is a function of (seed, epoch): three numbers say where a run stands.
    """

    def __init__(self, num_images: int, *, seed: int) -> None:
        self.num_images, self.seed = num_images, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def next(self, count: int) -> Tensor:
        """The next ``count`` indices, int64 [count] on the CPU."""
        pieces = []
        while count > 0:
            if self.position == self.num_images:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
            piece = self._order[self.position : self.position + count]
            self.position += len(piece)
            count -= len(piece)
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def state_dict(self) -> dict[str, int]:
        """Seed, epoch and position."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        # Large, odd strides keep (seed, epoch) pairs apart.
        generator = torch.Generator().manual_seed((self.seed * 0x9E3779B1 + self.epoch * 0x85EBCA77) % 2**63)
        return torch.randperm(self.num_images, generator=generator)


class Batches:
    """Batches of a data set on a device, in the order of a :class:`Sampler`."""

    def __init__(self, dataset: Dataset, batch: int, device: torch.device, *, seed: int) -> None:
        self.dataset, self.batch, self.device = dataset, batch, device
        self.sampler = Sampler(len(dataset), seed=seed)

    def next(self) -> Batch:
        """The next batch."""
        images, labels = self.dataset.batch(self.sampler.next(self.batch))
        if self.device.type == "cuda":  # copies from pinned memory do not hold up the host
            images, labels = images.pin_memory(), labels.pin_memory()
        images = images.to(self.device, non_blocking=True)
        x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
        return Batch(x, labels.to(self.device, non_blocking=True))
