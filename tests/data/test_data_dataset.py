"""Opening prepared data: splits, conversion, memory mapping, labels, and the errors."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from picture_files import class_folders, gradient, png, save, write_zip

from gankernels.data import ImageDataset, open_dataset, prepare, storage
from gankernels.data.layout import picture_name
from gankernels.data.parallel import grouped, ordered_map
from gankernels.errors import InputError


def stylegan_zip(path, count=12, *, size=6, channels=3, labels=None, extra=None):
    """A zip as the StyleGAN tools write it, made without the package."""
    files = {f"00000/img{i:08d}.png": png(gradient(size, size, channels, seed=i)) for i in range(count)}
    entries = [[name, i % 3] for i, name in enumerate(files)] if labels is None else labels
    return write_zip(path, files | {"dataset.json": json.dumps({"labels": entries}).encode()} | (extra or {}))


def test_a_zip_of_the_stylegan_tools(tmp_path):
    data = open_dataset(stylegan_zip(tmp_path / "theirs.zip"))
    assert isinstance(data, ImageDataset)
    assert (data.name, data.resolution, data.channels, data.num_classes, len(data)) == ("theirs", 6, 3, 3, 12)
    assert data.class_names == ("0", "1", "2")
    assert data.labels.tolist() == [0, 1, 2] * 4
    for i in range(12):
        assert np.array_equal(data.images[i].permute(1, 2, 0).numpy(), gradient(6, 6, seed=i))


def test_an_unpacked_folder_is_the_same_data(tmp_path):
    archive = stylegan_zip(tmp_path / "theirs.zip")
    with zipfile.ZipFile(archive) as file:
        file.extractall(tmp_path / "unpacked")
    one, two = open_dataset(archive), open_dataset(tmp_path / "unpacked")
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert one.fingerprint() == two.fingerprint()


def test_names_sort_as_they_are_numbered():
    names = [picture_name(i) for i in (0, 999, 1000, 123_456, 99_999_999)]
    assert names[2:4] == ["00001/img00001000.png", "00123/img00123456.png"]
    assert sorted(names) == names


def test_batch_and_dtypes(tmp_path):
    data = open_dataset(stylegan_zip(tmp_path / "set.zip"))
    images, labels = data.batch(torch.tensor([5, 0, 5]))
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.shape == (3, 3, 6, 6)
    assert torch.equal(images[0], data.images[5])
    assert labels.tolist() == [2, 0, 2]


def test_splits_of_a_zip(tmp_path):
    archive = stylegan_zip(tmp_path / "set.zip", 25)
    everything = open_dataset(archive)
    test, holdout = open_dataset(archive, split="test"), open_dataset(archive, split="train-holdout")
    assert (len(everything), len(test), len(holdout)) == (25, 2, 23)
    assert torch.equal(test.images, everything.images[9::10])
    assert test.labels.tolist() == [0, 1]
    assert test.num_classes == 3
    kept = torch.tensor([i for i in range(25) if i % 10 != 9])
    assert torch.equal(holdout.images, everything.images[kept])


def test_resolution_and_channels_are_converted(tmp_path):
    archive = stylegan_zip(tmp_path / "set.zip", size=8)
    for resolution, channels in ((4, 1), (16, 3), (8, 1), (5, None)):
        data = open_dataset(archive, resolution=resolution, channels=channels)
        assert data.images.shape == (12, channels or 3, resolution, resolution)
        assert data.images.is_contiguous()
    grey = stylegan_zip(tmp_path / "grey.zip", size=8, channels=1)
    assert open_dataset(grey).channels == 1
    rgb = open_dataset(grey, channels=3).images
    assert torch.equal(rgb[:, 0], rgb[:, 2])


def test_a_constant_picture_stays_constant(tmp_path):
    save(tmp_path / "set" / "a" / "0.png", np.full((28, 28), 77, dtype=np.uint8))
    save(tmp_path / "set" / "b" / "0.png", np.full((28, 28), 77, dtype=np.uint8))
    prepare(tmp_path / "set", tmp_path / "set.zip")
    for resolution in (7, 20, 64):
        assert (open_dataset(tmp_path / "set.zip", resolution=resolution).images == 77).all()
    assert (open_dataset(tmp_path / "set.zip", resolution=32).images[:, :, 2:30, 2:30] == 77).all()


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(storage, "available_memory", lambda: 0)


def test_a_large_set_is_memory_mapped_once(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    archive = stylegan_zip(tmp_path / "set.zip")
    held = open_dataset(archive, resolution=4)
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(storage, "available_memory", lambda: 2 * held.images.nbytes - 1)
    mapped = open_dataset(archive, resolution=4)
    assert torch.equal(held.images, mapped.images)
    assert torch.equal(held.batch(torch.tensor([3, 1]))[0], mapped.batch(torch.tensor([3, 1]))[0])
    assert held.fingerprint() == mapped.fingerprint()
    (path,) = (tmp_path / "cache" / "datasets").iterdir()
    before = path.stat().st_mtime_ns
    mapped.images[0] = 0
    assert torch.equal(open_dataset(archive, resolution=4).images, held.images), "the file on disk changed"
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(storage, "available_memory", lambda: 2 * held.images.nbytes)
    open_dataset(archive, resolution=4)
    assert [path] == list((tmp_path / "cache" / "datasets").iterdir())


@pytest.mark.usefixtures("no_memory")
def test_the_cache_knows_its_source(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    archive = stylegan_zip(tmp_path / "set.zip")
    sizes = {open_dataset(archive, **kind).images.shape for kind in ({}, {"resolution": 4}, {"channels": 1})}
    open_dataset(archive, split="train-holdout")
    assert len(sizes) == 3
    stylegan_zip(tmp_path / "set.zip", 11)
    assert len(open_dataset(archive)) == 11
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 5


@pytest.mark.usefixtures("no_memory")
def test_built_in_sets_are_mapped_too(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    mapped = open_dataset("synthetic:8x3x150")
    monkeypatch.setattr(storage, "available_memory", lambda: 1 << 30)
    assert torch.equal(open_dataset("synthetic:8x3x150").images, mapped.images)
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 1


@pytest.mark.usefixtures("no_memory")
def test_a_failed_decoding_leaves_no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "cache"))
    archive = stylegan_zip(tmp_path / "set.zip", extra={"00000/img00000007.png": b"broken"})
    with pytest.raises(InputError, match="img00000007"):
        open_dataset(archive)
    assert not list((tmp_path / "cache" / "datasets").iterdir())


@pytest.mark.usefixtures("no_memory")
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="GANKERNELS_CACHE"):
        open_dataset(stylegan_zip(tmp_path / "set.zip"))


def test_available_memory_is_a_sensible_figure():
    assert 1 << 20 < storage.available_memory() < 1 << 50


def test_labels_missing_open_but_do_not_train(tmp_path):
    archive = stylegan_zip(tmp_path / "null.zip", labels=[])
    bare = write_zip(tmp_path / "bare.zip", {"a.png": png(gradient(4, 4))})
    for path in (archive, bare):
        data = open_dataset(path)
        assert (data.num_classes, data.class_names) == (0, ())
        assert data.labels.tolist() == [0] * len(data)
        with pytest.raises(InputError, match="labels missing"):
            data.require_labels()


def test_one_class_opens_but_does_not_train(tmp_path):
    class_folders(tmp_path / "set", classes=("cat",))
    prepare(tmp_path / "set", tmp_path / "set.zip")
    data = open_dataset(tmp_path / "set.zip")
    assert data.require_labels(min_classes=1) is data
    with pytest.raises(InputError, match="1 class, expected pictures of 2 or more"):
        data.require_labels()


def test_labels_missing_for_some_are_counted(tmp_path):
    archive = stylegan_zip(tmp_path / "set.zip", 5, labels=[["00000/img00000000.png", 0]])
    with pytest.raises(InputError, match="missing for 4 of 5"):
        open_dataset(archive)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"README.txt": b"hello"}, "README.txt"),
        ({"00000/img00000003.png": b"broken"}, "img00000003.png cannot be read"),
        ({"00000/img00000003.png": png(gradient(7, 7))}, "is 7x7, expected 6x6"),
        ({"00000/img00000003.png": png(gradient(6, 4))}, "is 6x4"),
        ({"00000/img00000003.png": png(gradient(6, 6, 1))}, "1 channel"),
        ({"dataset.json": b"{"}, "not JSON"),
    ],
)
def test_what_is_not_prepared_is_one_line(tmp_path, extra, message):
    archive = stylegan_zip(tmp_path / "set.zip", extra=extra)
    with pytest.raises(InputError, match=message) as caught:
        open_dataset(archive)
    assert "\n" not in str(caught.value)


def test_litter_in_a_prepared_zip_is_ignored(tmp_path):
    archive = stylegan_zip(tmp_path / "set.zip", extra={"__MACOSX/._x.png": b"", ".DS_Store": b""})
    assert len(open_dataset(archive)) == 12


def test_mixed_channels_open_where_the_caller_chooses(tmp_path):
    archive = stylegan_zip(tmp_path / "set.zip", extra={"00000/img00000003.png": png(gradient(6, 6, 1))})
    assert open_dataset(archive, channels=3).channels == 3


def test_sources_that_cannot_be_opened(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("hello")
    (tmp_path / "file.npz").write_text("hello")
    whole = stylegan_zip(tmp_path / "whole.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "missing": "does not exist",
        "empty": "without a picture",
        "text.zip": "not a zip",
        "half.zip": "cut short",
        "file.npz": "data prepare",
    }.items():
        with pytest.raises(InputError, match=message):
            open_dataset(tmp_path / name)


@pytest.mark.parametrize(
    "arguments", [{"split": "dev"}, {"channels": 2}, {"resolution": 0}, {"resolution": 2.5}, {"split": "test"}]
)
def test_bad_arguments(tmp_path, arguments):
    with pytest.raises(InputError):
        open_dataset(stylegan_zip(tmp_path / "set.zip", 9), **arguments)


def test_the_fingerprint_follows_the_content(tmp_path):
    first = open_dataset(stylegan_zip(tmp_path / "one.zip"))
    assert first.fingerprint() == open_dataset(stylegan_zip(tmp_path / "two.zip")).fingerprint()
    others = [
        open_dataset(stylegan_zip(tmp_path / "three.zip", 11)),
        open_dataset(tmp_path / "one.zip", resolution=5),
        open_dataset(stylegan_zip(tmp_path / "four.zip", extra={"00000/img00000004.png": png(gradient(6, 6, 3, 99))})),
    ]
    assert len({first.fingerprint(), *(other.fingerprint() for other in others)}) == 4


def test_the_package_imports_without_pillow_and_its_friends():
    code = (
        "import sys\n"
        "for name in ('PIL', 'rich', 'scipy', 'sklearn', 'tyro'): sys.modules[name] = None\n"
        "import gankernels.data\n"
        "print(gankernels.data.open_dataset('synthetic:8x2x4').images.shape[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


def test_the_ordered_map_keeps_order_and_passes_errors_on():
    assert list(ordered_map(lambda n: n * n, range(50), threads=3)) == [n * n for n in range(50)]
    assert list(grouped(range(5), 2)) == [[0, 1], [2, 3], [4]]
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda n: 1 / (n - 7), range(50), threads=2))
