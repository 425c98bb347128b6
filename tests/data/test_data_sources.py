"""What ``prepare`` understands as a source, and what it says of the rest."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
from picture_files import class_folders, gradient, png, save, write_idx, write_zip

from gankernels.data.sources import open_source
from gankernels.errors import InputError


def labels_of(source) -> list:
    return [item.label for item in source.items]


def test_class_folders_are_numbered_in_order(tmp_path):
    source = open_source(class_folders(tmp_path / "set", classes=("dog", "ant", "cat"), count=2))
    assert source.class_names == ("ant", "cat", "dog")
    assert labels_of(source) == [0, 0, 1, 1, 2, 2]
    assert [item.name for item in source.items[:2]] == ["ant/0.png", "ant/1.png"]


def test_folders_named_by_numbers_keep_their_numeric_order(tmp_path):
    source = open_source(class_folders(tmp_path / "set", classes=[str(i) for i in range(12)], count=1))
    assert source.class_names == tuple(str(i) for i in range(12))


def test_a_class_is_the_topmost_folder(tmp_path):
    for name in ("cat/indoor/1.png", "cat/outdoor/2.png", "dog/3.png"):
        save(tmp_path / "set" / name, gradient(4, 4))
    assert labels_of(open_source(tmp_path / "set")) == [0, 0, 1]


def test_one_folder_around_all_classes_is_not_a_class(tmp_path):
    class_folders(tmp_path / "set" / "flowers")
    assert open_source(tmp_path / "set").class_names == ("cat", "dog")


def test_folders_of_splits_are_refused(tmp_path):
    for split in ("train", "test"):
        class_folders(tmp_path / "set" / split)
    with pytest.raises(InputError, match="splits test, train"):
        open_source(tmp_path / "set")


def test_litter_is_ignored_and_text_is_named(tmp_path):
    root = class_folders(tmp_path / "set")
    for name in ("cat/.DS_Store", "cat/Thumbs.db", "__MACOSX/cat/._0.png", "dog/._0.png", "cat/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    source = open_source(root)
    assert [(file.name, file.reason) for file in source.skipped] == [("cat/notes.txt", "not a picture")]
    assert len(source.items) == 6


def test_pictures_outside_the_class_folders_are_skipped(tmp_path):
    root = class_folders(tmp_path / "set")
    save(root / "cover.png", gradient(4, 4))
    assert [(file.name, file.reason) for file in open_source(root).skipped] == [("cover.png", "in no class folder")]


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        save(tmp_path / "set" / f"{i}.png", gradient(4, 4))
    source = open_source(tmp_path / "set")
    assert labels_of(source) == [None] * 3
    assert "labels are null" in source.notes[0]


def test_a_linked_folder_is_followed_once(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "loop").symlink_to(root)
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "0.png", gradient(4, 4))
    (root / "owl").symlink_to(tmp_path / "elsewhere")
    assert open_source(root).class_names == ("cat", "dog", "owl")


def test_the_output_is_left_out_of_the_listing(tmp_path):
    root = class_folders(tmp_path / "set")
    (root / "out.zip").write_bytes(b"old")
    assert not open_source(root, exclude=root / "out.zip").skipped


@pytest.mark.parametrize("prefix", ["", "inner/"])
def test_a_zip_with_dataset_json(tmp_path, prefix):
    files = {f"{prefix}00000/img0000000{i}.png": png(gradient(4, 4, seed=i)) for i in range(3)}
    labels = [[f"00000/img0000000{i}.png", 2 - i] for i in range(3)]
    files[f"{prefix}dataset.json"] = json.dumps({"labels": labels}).encode()
    source = open_source(write_zip(tmp_path / "set.zip", files))
    assert labels_of(source) == [2, 1, 0]
    assert source.items[0].read() == files[f"{prefix}00000/img00000000.png"]
    assert not source.skipped


def test_null_and_one_hot_labels(tmp_path):
    files = {"a.png": png(gradient(4, 4)), "b.png": png(gradient(4, 4))}
    files["dataset.json"] = b'{"labels": null}'
    assert labels_of(open_source(write_zip(tmp_path / "null.zip", files))) == [None, None]
    files["dataset.json"] = b'{"labels": [["a.png", [0.0, 1.0]], ["b.png", [1.0, 0.0]]]}'
    assert labels_of(open_source(write_zip(tmp_path / "hot.zip", files))) == [1, 0]


def test_a_picture_without_a_label_is_skipped(tmp_path):
    files = {"a.png": png(gradient(4, 4)), "b.png": png(gradient(4, 4)), "dataset.json": b'{"labels": [["b.png", 0]]}'}
    source = open_source(write_zip(tmp_path / "set.zip", files))
    assert labels_of(source) == [0]
    assert source.skipped[0].name == "a.png"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"labels": 3}',
        '{"labels": ["a.png"]}',
        '{"labels": [["a.png", -1]]}',
        '{"labels": [["a.png", 1.5]]}',
        '{"labels": [["a.png", "cat"]]}',
        '{"labels": [["a.png", true]]}',
        '{"labels": [["a.png", [0.2, 0.8]]]}',
        '{"labels": [["a.png", Infinity]]}',
        '{"labels": [["a.png", NaN]]}',
        '{"labels": [["a.png", 1e15]]}',
        '{"labels": [["a.png", 1]], "class_names": ["one"]}',
        '{"labels": [["a.png", 1]], "class_names": 7}',
        '{"labels": [["other.png", 1]]}',
    ],
)
def test_bad_metadata_is_one_line(tmp_path, content):
    archive = write_zip(tmp_path / "set.zip", {"a.png": png(gradient(4, 4)), "dataset.json": content.encode()})
    with pytest.raises(InputError) as caught:
        open_source(archive)
    assert "\n" not in str(caught.value)


def test_idx_files_plain_and_compressed(tmp_path):
    images, labels = gradient(6, 5, 4).transpose(2, 0, 1).copy(), np.array([3, 1, 0, 2], dtype=np.uint8)
    for suffix in ("", ".gz"):
        folder = tmp_path / f"idx{suffix}"
        folder.mkdir()
        path = write_idx(folder / f"train-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"train-labels-idx1-ubyte{suffix}", labels)
        write_idx(folder / f"t10k-images-idx3-ubyte{suffix}", images[:2])
        write_idx(folder / f"t10k-labels-idx1-ubyte{suffix}", labels[:2])
        for given in (path, folder):
            source = open_source(given)
            assert labels_of(source) == [3, 1, 0, 2]
            assert np.array_equal(source.items[1].read()[..., 0], images[1])
        assert labels_of(open_source(folder / f"t10k-images-idx3-ubyte{suffix}")) == [3, 1]


def test_idx_without_labels_and_damaged(tmp_path):
    path = write_idx(tmp_path / "images-idx3-ubyte", gradient(6, 5, 4).transpose(2, 0, 1).copy())
    source = open_source(path)
    assert labels_of(source) == [None] * 4
    write_idx(tmp_path / "labels-idx1-ubyte", np.zeros(3, dtype=np.uint8))
    with pytest.raises(InputError, match="3 labels"):
        open_source(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="expected 120"):
        open_source(path)
    cut = tmp_path / "cut-images-idx3-ubyte.gz"
    cut.write_bytes(gzip.compress(path.read_bytes())[:60])
    with pytest.raises(InputError):
        open_source(cut)


@pytest.mark.parametrize(
    ("images_key", "labels_key"),
    [
        ("images", "labels"),
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("data", "target"),
        ("arr_0", "arr_1"),
    ],
)
def test_npz_keys(tmp_path, images_key, labels_key):
    images = np.stack([gradient(5, 5, 3, seed=i) for i in range(4)])
    np.savez(tmp_path / "set.npz", **{images_key: images, labels_key: np.array([[0], [1], [2], [1]])})
    source = open_source(tmp_path / "set.npz")
    assert labels_of(source) == [0, 1, 2, 1]
    assert np.array_equal(source.items[2].read(), images[2])


def test_npz_layouts_and_types(tmp_path):
    images = np.stack([gradient(6, 5, 3, seed=i) for i in range(2)])
    forms = {
        "planes": images.transpose(0, 3, 1, 2),
        "float": images / np.float32(255),
        "int": images.astype(np.int64),
    }
    for name, form in forms.items():
        np.savez_compressed(tmp_path / f"{name}.npz", images=form, labels=np.array(["b", "a"]))
        source = open_source(tmp_path / f"{name}.npz")
        assert np.array_equal(source.items[1].read(), images[1]), name
        assert (labels_of(source), source.class_names) == ([1, 0], ("a", "b"))
    np.savez(tmp_path / "grey.npz", images=images[..., 0], labels=np.eye(2))
    source = open_source(tmp_path / "grey.npz")
    assert source.items[0].read().shape == (5, 6, 1)
    assert labels_of(source) == [0, 1]


@pytest.mark.parametrize(
    "arrays",
    [
        {"weights": np.zeros(3)},
        {"images": np.zeros((2, 4), dtype=np.uint8)},
        {"images": np.full((2, 4, 4), 300)},
        {"images": np.full((2, 4, 4), np.nan)},
        {"images": np.array([None, None])},
        {"images": np.zeros((2, 4, 4), dtype=np.uint8), "labels": np.zeros(3)},
        {"images": np.zeros((2, 4, 4), dtype=np.uint8), "labels": np.array([0, -1])},
        {"images": np.zeros((2, 4, 4), dtype=np.uint8), "labels": np.array([0.5, 1])},
        {"images": np.zeros((2, 4, 4), dtype=np.uint8), "labels": np.zeros((2, 3))},
    ],
)
def test_a_bad_npz_is_one_line(tmp_path, arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    with pytest.raises(InputError) as caught:
        open_source(tmp_path / "set.npz")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    for name in ("set.zip", "set.npz", "set.bin"):
        (tmp_path / name).write_text("hello")
        with pytest.raises(InputError, match=name):
            open_source(tmp_path / name)


def test_a_built_in_name_is_a_source():
    source = open_source("synthetic:8x3x6")
    assert labels_of(source) == [0, 1, 2, 0, 1, 2]
    assert source.items[0].read().shape == (8, 8, 3)
