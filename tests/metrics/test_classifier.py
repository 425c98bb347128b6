import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gankernels.data.builtin import DEBIAN_FOLDER
from gankernels.errors import InputError
from gankernels.metrics import cache, classifier


def load_digits(**options):
    return classifier.train_or_load("digits", resolution=32, channels=1, **options)


def test_names_most_real_digits(trained_cache):
    judge = trained_cache[1]
    assert judge.test_accuracy > 0.9
    assert not judge.training
    _, test = classifier.open_splits("digits", 32, 1)
    assert float((judge.predict(test.images) == test.labels).double().mean()) == judge.test_accuracy


def test_training_leaves_the_global_generator_alone(trained_cache):
    assert trained_cache[1].left_global_rng_alone


def test_training_is_deterministic(tmp_path, monkeypatch):
    digests = []
    for name in ("one", "two"):
        monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path / name))
        torch.manual_seed(len(digests))
        digests.append(classifier.train_or_load("synthetic:8x3x40", resolution=8, channels=1).digest())
    assert digests[0] == digests[1]


def test_cache_hit_gives_the_same_bits_without_training(trained_cache, digits_cache, no_training):
    before = torch.get_rng_state()
    judge = load_digits()
    assert no_training == []
    assert judge.digest() == trained_cache[1].digest()
    assert judge.test_accuracy == trained_cache[1].test_accuracy
    assert torch.equal(before, torch.get_rng_state())


def test_other_inputs_are_other_entries(digits_cache, no_training):
    load_digits(seed=1)
    classifier.train_or_load("digits", resolution=16, channels=1)
    classifier.train_or_load("digits", resolution=32, channels=3)
    assert len(no_training) == 3
    assert len(list(digits_cache.glob("classifier-digits-*.pt"))) == 4


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_cache_is_rebuilt_and_said(harm, trained_cache, digits_cache, no_training, caplog):
    (path,) = digits_cache.glob("classifier-*.pt")
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "cut": content[:middle],
            "flip": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "empty": b"",
            "foreign": b"not one of ours",
        }[harm]
    )
    with caplog.at_level(logging.WARNING, "gankernels"):
        load_digits()
    assert no_training == ["digits"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(path) in line
    assert line.endswith("making it again")
    assert "\n" not in line
    load_digits()
    assert len(no_training) == 1, "the rebuilt file is whole"


def test_a_cache_of_other_content_is_rebuilt(digits_cache, no_training, caplog):
    (path,) = digits_cache.glob("classifier-*.pt")
    for payload in ({"weights": {}}, {"weights": {}, "test_accuracy": 1.0}, {}):
        cache.store(path.name, payload)
        load_digits()
    assert len(no_training) == 3
    assert len(caplog.records) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, no_training, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("GANKERNELS_CACHE", str(blocked))
    assert load_digits().num_classes == 10
    assert "going on without" in caplog.text


def test_nothing_is_left_beside_the_cache_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path))

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    cache.store("name.pt", {"value": 1})
    assert list(Path(tmp_path, "metrics").iterdir()) == []


@pytest.mark.parametrize(
    ("resolution", "channels", "num_classes"), [(8, 1, 2), (28, 1, 1), (32, 3, 1000), (64, 3, 5), (256, 3, 7)]
)
def test_takes_pictures_of_any_size(resolution, channels, num_classes):
    judge = classifier.Classifier(num_classes, channels, resolution, torch.Generator().manual_seed(0)).eval()
    assert judge.input_size == (32 if resolution <= 48 else 64)
    images = torch.randint(256, (3, channels, resolution, resolution), dtype=torch.uint8)
    assert judge.features(images).shape == (3, judge.num_features)
    assert judge(images).shape == (3, num_classes)
    assert judge.predict(images[:0]).shape == (0,)


def test_data_without_labels_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="does not exist"):
        classifier.train_or_load(tmp_path / "none.zip", resolution=32, channels=1)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed")
    for i in range(20):
        image.new("L", (8, 8), i).save(pictures / f"{i:02}.png")
    with pytest.raises(InputError, match="labels missing"):
        classifier.train_or_load(pictures, resolution=32, channels=1)


needs_fashion_mnist = pytest.mark.skipif(
    not DEBIAN_FOLDER.is_dir(), reason="the package dataset-fashion-mnist is not installed"
)


@needs_fashion_mnist
def test_a_tenth_of_fashion_mnist_teaches_most(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path))
    train, test = (
        replace(split, images=split.images[:count], labels=split.labels[:count])
        for split, count in zip(classifier.open_splits("fashion-mnist", 32, 1), (6000, 2000), strict=True)
    )
    assert classifier.for_splits(train, test).test_accuracy >= 0.82


@pytest.mark.slow
@needs_fashion_mnist
def test_reaches_88_percent_on_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setenv("GANKERNELS_CACHE", str(tmp_path))
    assert classifier.train_or_load("fashion-mnist", resolution=32, channels=1).test_accuracy >= 0.88
