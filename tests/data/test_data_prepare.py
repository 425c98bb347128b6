"""The conversion: what comes out, what is skipped, and what is left alone when it fails."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from picture_files import (
    class_folders,
    damaged_folder,
    gradient,
    half_a_zip,
    one_picture,
    png,
    read_as_stylegan,
    save,
    write,
    write_idx,
)
from PIL import Image

from gankernels.data import conversion as conversion_module
from gankernels.data import open_dataset, prepare
from gankernels.data.layout import ArchiveWriter
from gankernels.data.parallel import THREADS
from gankernels.errors import InputError


def mixed_folder(root):
    """Pictures of every awkward kind in two classes; each is readable."""
    save(root / "a" / "grey.png", gradient(8, 8, 1))
    save(root / "a" / "grey_alpha.png", gradient(8, 8, 2))
    save(root / "a" / "rgb.png", gradient(8, 8, 3))
    save(root / "a" / "rgba.png", gradient(8, 8, 4))
    Image.fromarray(gradient(8, 8, 3)).quantize(16).save(root / "a" / "palette.png", transparency=3)
    save(root / "b" / "wide.jpg", gradient(20, 8, 3))
    save(root / "b" / "tall.bmp", gradient(8, 20, 3))
    save(root / "b" / "deep.png", gradient(8, 8, 1).astype(np.uint16) * 257)
    Image.new("CMYK", (8, 8), (0, 128, 255, 0)).save(root / "b" / "cmyk.tif")
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(gradient(12, 8, 3)).save(root / "b" / "rotated.jpg", exif=exif)
    return root


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_every_kind_of_picture_is_converted(tmp_path, fit, channels):
    prepared = prepare(mixed_folder(tmp_path / "set"), tmp_path / "out.zip", size=8, fit=fit, channels=channels)
    assert (prepared.num_images, prepared.skipped, prepared.num_classes) == (10, (), 2)
    pixels, labels = read_as_stylegan(tmp_path / "out.zip")
    assert pixels.shape == (10, channels or 3, 8, 8)
    assert labels.tolist() == [0] * 5 + [1] * 5
    data = open_dataset(tmp_path / "out.zip")
    assert np.array_equal(data.images.numpy(), pixels)
    assert data.labels.tolist() == labels.tolist()
    assert data.class_names == ("a", "b")


def test_channels_are_one_where_all_pictures_are_grey(tmp_path):
    prepared = prepare(class_folders(tmp_path / "set", channels=1), tmp_path / "out.zip")
    assert prepared.channels == 1
    assert open_dataset(tmp_path / "out.zip").channels == 1


def test_names_and_metadata_are_those_of_the_layout(tmp_path):
    prepare(class_folders(tmp_path / "set", count=1), tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist() == ["00000/img00000000.png", "00000/img00000001.png", "dataset.json"]
        assert json.loads(archive.read("dataset.json")) == {
            "labels": [["00000/img00000000.png", 0], ["00000/img00000001.png", 1]],
            "class_names": ["cat", "dog"],
        }


def test_preparing_a_prepared_zip_changes_nothing(tmp_path):
    prepare(class_folders(tmp_path / "set"), tmp_path / "one.zip")
    prepare(tmp_path / "one.zip", tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        prepare(class_folders(tmp_path / name), tmp_path / f"{name}.zip", size=6)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_unlabelled_pictures_get_null_labels(tmp_path):
    save(tmp_path / "set" / "x.png", gradient(4, 4))
    prepared = prepare(tmp_path / "set", tmp_path / "out.zip")
    assert read_as_stylegan(tmp_path / "out.zip")[1] is None
    assert (prepared.num_classes, prepared.class_names) == (0, ())
    assert "labels are null" in prepared.notes[0]


def test_idx_and_npz_keep_their_pixels(tmp_path):
    images = np.stack([gradient(6, 6, 1, seed=i) for i in range(4)])
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 2, 1], dtype=np.uint8))
    np.savez(tmp_path / "set.npz", images=images, labels=[0, 1, 2, 1])
    for source in ("train-images-idx3-ubyte", "set.npz"):
        prepare(tmp_path / source, tmp_path / "out.zip")
        pixels, labels = read_as_stylegan(tmp_path / "out.zip")
        assert np.array_equal(pixels[:, 0], images)
        assert labels.tolist() == [0, 1, 2, 1]


def test_without_a_size_the_first_picture_decides_and_it_is_said(tmp_path):
    save(tmp_path / "set" / "a" / "0.png", gradient(12, 10))
    save(tmp_path / "set" / "b" / "1.png", gradient(30, 40))
    prepared = prepare(tmp_path / "set", tmp_path / "out.zip")
    assert prepared.size == 10
    assert any("took the first picture's, 10; 1 of 2" in note for note in prepared.notes)
    assert not prepare(tmp_path / "set", tmp_path / "out.zip", size=10).notes


def test_what_cannot_be_read_is_named_and_skipped(tmp_path):
    seen = []
    prepared = prepare(damaged_folder(tmp_path / "set"), tmp_path / "out.zip", on_skip=seen.append)
    assert prepared.num_images == 6
    assert sorted(file.name for file in seen) == ["cat/cut.png", "dog/empty.jpg", "dog/text.png", "notes.txt"]
    assert list(prepared.skipped) == seen
    # Numbers run on: a skipped picture leaves no gap.
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.namelist()[:-1] == [f"00000/img0000000{i}.png" for i in range(6)]


@pytest.mark.parametrize("broken", ["cat/cut.png", "notes.txt"])
def test_strict_fails_and_touches_nothing(tmp_path, broken):
    root = damaged_folder(tmp_path / "set")
    for name in {"cat/cut.png", "dog/empty.jpg", "dog/text.png", "notes.txt"} - {broken}:
        (root / name).unlink()
    (tmp_path / "old.zip").write_bytes(b"old")
    for out in ("new.zip", "old.zip"):
        with pytest.raises(InputError, match=broken):
            prepare(root, tmp_path / out, strict=True)
    assert (tmp_path / "old.zip").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.zip", "set"]


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "out.zip").write_bytes(b"old")
    write = ArchiveWriter.add

    def interrupted(self, data, label):
        write(self, data, label)
        if len(self) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(ArchiveWriter, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(class_folders(tmp_path / "set"), tmp_path / "out.zip")
    assert (tmp_path / "out.zip").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zip", "set"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(self, data, label):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArchiveWriter, "add", full)
    with pytest.raises(InputError, match="No space left"):
        prepare(class_folders(tmp_path / "set"), tmp_path / "out.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_damaged_member_of_a_zip_is_skipped(tmp_path):
    files = {f"{c}/{i}.png": png(gradient(16, 16, seed=i)) for c in "ab" for i in range(3)}
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        offset = archive.getinfo("a/1.png").header_offset
    data = bytearray(path.read_bytes())
    data[offset + 200] ^= 0xFF
    path.write_bytes(data)
    prepared = prepare(path, tmp_path / "out.zip")
    assert [file.name for file in prepared.skipped] == ["a/1.png"]
    assert "CRC" in prepared.skipped[0].reason


def test_classes_that_end_up_empty_are_noted(tmp_path):
    root = class_folders(tmp_path / "set", count=1)
    (root / "dog" / "0.png").write_bytes(b"broken")
    notes = prepare(root, tmp_path / "out.zip").notes
    assert any("1 of 2 classes: dog" in note for note in notes)
    assert any("only one class" in note for note in notes)
    with pytest.raises(InputError, match="1 class,"):
        open_dataset(tmp_path / "out.zip").require_labels()


def test_few_results_are_held_at_a_time(tmp_path, monkeypatch):
    """Pictures are encoded only a window ahead of the writer, however many there are."""
    np.savez(tmp_path / "set.npz", images=np.zeros((2000, 4, 4), dtype=np.uint8), labels=np.arange(2000) % 2)
    encoded, lead = [0], [0]
    encode, add = conversion_module.encode_png, ArchiveWriter.add

    def counting(image):
        encoded[0] += 1
        return encode(image)

    def watching(self, data, label):
        lead[0] = max(lead[0], encoded[0] - len(self))
        add(self, data, label)

    monkeypatch.setattr(conversion_module, "encode_png", counting)
    monkeypatch.setattr(ArchiveWriter, "add", watching)
    prepare(tmp_path / "set.npz", tmp_path / "out.zip")
    assert lead[0] <= 16 * (2 * THREADS + 1)


def test_half_a_zip_is_told_from_no_zip(tmp_path):
    with pytest.raises(InputError, match="cut short"):
        prepare(half_a_zip(tmp_path), tmp_path / "out.zip")
    with pytest.raises(InputError, match="not a zip"):
        prepare(write(tmp_path / "s.zip", b"hello"), tmp_path / "out.zip")


@pytest.mark.parametrize(
    "argument", [{"size": 2.5}, {"size": True}, {"fit": "x"}, {"channels": 4}, {"background": "red"}]
)
def test_bad_arguments_of_the_function(tmp_path, argument):
    with pytest.raises(InputError, match=next(iter(argument))):
        prepare(one_picture(tmp_path / "set"), tmp_path / "out.zip", **argument)
