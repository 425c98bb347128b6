"""The built-in data sets: where they are looked for, what they hold, and that they stay the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from picture_files import write_idx

from gankernels.data import builtin, open_dataset, synthetic
from gankernels.errors import InputError


@pytest.fixture
def fashion_files(tmp_path):
    """A folder of four small idx files under Fashion-MNIST's names."""
    folder = tmp_path / "files"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = (np.arange(20) % 10).astype(np.uint8)
    for prefix, count in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images[:count])
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels[:count])
    return folder


@pytest.fixture(autouse=True)
def _no_system_files(tmp_path, monkeypatch):
    monkeypatch.setattr(builtin, "DEBIAN_FOLDER", tmp_path / "debian")
    monkeypatch.delenv("GANKERNELS_DATA", raising=False)
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("place", ["given", "given/fashion-mnist", "debian", "cache/fashion-mnist"])
def test_fashion_mnist_is_found(tmp_path, monkeypatch, fashion_files, place):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    fashion_files.rename(tmp_path / place)
    if place.startswith("given"):
        monkeypatch.setenv("GANKERNELS_DATA", str(tmp_path / "given"))
    train, test = open_dataset("fashion-mnist"), open_dataset("fashion-mnist", split="test")
    assert train.images.shape == (20, 1, 28, 28)
    assert len(test) == 10
    assert train.class_names[9] == "ankle boot"
    assert train.num_classes == 10


def test_fashion_mnist_is_padded_to_32(monkeypatch, fashion_files):
    monkeypatch.setenv("GANKERNELS_DATA", str(fashion_files))
    small, large = open_dataset("fashion-mnist"), open_dataset("fashion-mnist", resolution=32, channels=3)
    assert large.images.shape == (20, 3, 32, 32)
    assert torch.equal(large.images[:, 1:2, 2:30, 2:30], small.images)
    assert large.images[:, :, :2].sum() == 0


def test_fashion_mnist_missing_names_the_places_and_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError) as caught:
        open_dataset("fashion-mnist")
    for part in ("nowhere", "debian", "cache", "apt-get install dataset-fashion-mnist"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_fashion_mnist_damaged_is_one_line(monkeypatch, fashion_files):
    monkeypatch.setenv("GANKERNELS_DATA", str(fashion_files))
    path = fashion_files / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="train-images"):
        open_dataset("fashion-mnist")


def test_digits_has_a_fixed_split():
    pytest.importorskip("sklearn")
    train, test = open_dataset("digits"), open_dataset("digits", split="test")
    assert (len(train), len(test)) == (1438, 359)
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    assert test.labels.tolist()[:3] == [4, 9, 4]
    assert len(train.labels.unique()) == len(test.labels.unique()) == 10


def test_digits_without_scikit_learn_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        open_dataset("digits")


def test_synthetic_is_exact_balanced_and_repeatable():
    one, two = open_dataset("synthetic:16x7x70"), open_dataset("synthetic:16x7x70")
    assert one.images.shape == (70, 3, 16, 16)
    assert torch.equal(one.images, two.images)
    assert one.labels.bincount().tolist() == [10] * 7
    assert one.num_classes == len(set(one.class_names)) == 7
    test = open_dataset("synthetic:16x7x70", split="test")
    assert len(test) == 14
    assert not torch.equal(test.images, one.images[:14])


def test_synthetic_is_a_prefix_of_a_longer_one():
    short, long = open_dataset("synthetic:8x5x50"), open_dataset("synthetic:8x5x150")
    assert torch.equal(short.images, long.images[:50])


def test_synthetic_defaults_to_ten_thousand():
    assert builtin.load("synthetic:64x10", "train").shape == (10_000, 3, 64, 64)
    assert builtin.load("synthetic:64x10", "test").shape == (2_000, 3, 64, 64)


@pytest.mark.parametrize("resolution", [4, 5, 33])
def test_synthetic_of_any_size(resolution):
    assert open_dataset(f"synthetic:{resolution}x3x6").images.shape == (6, 3, resolution, resolution)


def test_synthetic_classes_all_differ():
    """No two of all classes share shape, hue and stripes."""
    names = {synthetic.class_name(label) for label in range(synthetic.MAX_CLASSES)}
    assert len(names) == synthetic.MAX_CLASSES


def test_synthetic_classes_can_be_told_apart():
    """The mean picture of its class is the nearest one for most pictures of another seed."""
    train, test = open_dataset("synthetic:16x4x800"), open_dataset("synthetic:16x4x800", split="test")
    means = torch.stack([train.images[train.labels == k].float().mean(0).flatten() for k in range(4)])
    nearest = torch.cdist(test.images.flatten(1).float(), means).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.7


@pytest.mark.parametrize(
    "name", ["synthetic:", "synthetic:64", "synthetic:64x", "synthetic:0x10", "synthetic:64x0", "synthetic:64x10x0"]
)
def test_bad_synthetic_names(name):
    with pytest.raises(InputError, match="synthetic"):
        open_dataset(name)
    with pytest.raises(InputError, match="expected 1 to"):
        open_dataset(f"synthetic:64x{synthetic.MAX_CLASSES + 1}")
