"""A data set of three classes in memory, and the smallest config that trains on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gankernels.errors import InputError
from gankernels.train import Config, EMAConfig, NetworkConfig, TickConfig


class TinyDataset:
    """24 grey pictures, each a block of brightness that tells its class."""

    name = "tiny"
    resolution = 32
    channels = 1

    def __init__(self, num_images: int = 24, num_classes: int = 3) -> None:
        self.num_classes = num_classes
        self.class_names = tuple(f"class {i}" for i in range(num_classes))
        self.labels = torch.arange(num_images) % max(num_classes, 1)
        noise = torch.randint(0, 60, (num_images, 1, 32, 32), generator=torch.Generator().manual_seed(1))
        self.images = (noise + 60 * self.labels[:, None, None, None]).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]

    def require_labels(self) -> TinyDataset:
        if self.num_classes < 2:
            raise InputError(f"data: got {self.name} with {self.num_classes} class, expected 2 or more")
        return self

    def fingerprint(self) -> str:
        return f"tiny-{len(self)}-{self.num_classes}"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def dataset() -> TinyDataset:
    return TinyDataset()


@pytest.fixture
def make_dataset() -> type[TinyDataset]:
    return TinyDataset


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """``make_config(out=..., images=...)``: 8 images a batch, 4 channels, fp32."""

    def make(**changes: object) -> Config:
        config = Config(
            preset="sngan-32",
            data="tiny",
            out=str(tmp_path / "run"),
            images=48,
            batch=8,
            dim_z=8,
            precision="fp32",
            device="cpu",
            g=NetworkConfig(ch=4),
            d=NetworkConfig(ch=4),
            ema=EMAConfig(kimg=0.05, statistics_images=16),
            tick=TickConfig(images=16, grid_columns=2),
        )
        return dataclasses.replace(config, **changes)

    return make
