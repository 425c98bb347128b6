"""Whatever ends a run, going on from its folder gives the bits of a run that nothing ended."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gankernels import cli
from gankernels.errors import InputError
from gankernels.train import checkpoint, load_generator, train
from gankernels.train.telemetry import read_stats

pytestmark = pytest.mark.timeout(120)


def newest(run: str | Path) -> dict:
    content = checkpoint.load_newest(Path(run))
    assert content is not None
    return content


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal to the bit, through all nesting. Times, the run's folder and what it is made for are let off."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "tick_seconds", "phases", "config"}:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def images_in_stats(run: str | Path) -> list[int]:
    return [line["images"] for line in read_stats(Path(run) / "stats.jsonl")]


class InterruptingDataset:
    """Sends a signal to this process when its n-th batch is asked for."""

    def __init__(self, dataset, after: int, number: int = signal.SIGINT) -> None:
        self.dataset, self.left, self.number = dataset, after, number

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def __len__(self):
        return len(self.dataset)

    def batch(self, indices):
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return self.dataset.batch(indices)


def test_one_seed_one_run(make_config, dataset, tmp_path):
    for name in ("a", "b", "c"):
        train(make_config(out=str(tmp_path / name), seed=int(name == "c")), dataset=dataset)
    assert_same(newest(tmp_path / "a"), newest(tmp_path / "b"))
    a, c = (newest(tmp_path / name)["ema"]["conv.weight"] for name in "ac")
    assert not torch.equal(a, c)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_the_run_goes_on(make_config, dataset, tmp_path, number):
    whole = make_config(out=str(tmp_path / "whole"), n_dis=2, images=96)
    train(whole, dataset=dataset)
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    handler = signal.getsignal(number)
    # In the middle of an iteration and of a tick, and past the first epoch.
    outcome = train(broken, dataset=InterruptingDataset(dataset, 5, number))
    assert outcome.interrupted
    assert outcome.images == 48
    assert signal.getsignal(number) is handler
    assert not train(broken, dataset=dataset, resume=True).interrupted
    assert_same(newest(whole.out), newest(broken.out))
    assert images_in_stats(whole.out) == images_in_stats(broken.out)


def test_a_mean_over_a_tick_survives_the_break(make_config, dataset, tmp_path):
    whole = make_config(out=str(tmp_path / "whole"), images=32)
    whole = dataclasses.replace(whole, tick=dataclasses.replace(whole.tick, images=32))
    train(whole, dataset=dataset)
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    train(broken, dataset=InterruptingDataset(dataset, 2))
    train(broken, dataset=dataset, resume=True)
    a, b = (read_stats(Path(c.out) / "stats.jsonl")[-1] for c in (whole, broken))
    assert [a[k] for k in ("d_loss", "g_loss", "d_real", "g_grad_norm")] == [
        b[k] for k in ("d_loss", "g_loss", "d_real", "g_grad_norm")
    ]


def test_a_finished_run_goes_on_to_more_images(make_config, dataset, tmp_path):
    train(make_config(out=str(tmp_path / "once"), images=64), dataset=dataset)
    train(make_config(out=str(tmp_path / "twice"), images=32), dataset=dataset)
    outcome = train(make_config(out=str(tmp_path / "twice"), images=64), dataset=dataset, resume=True)
    assert outcome.images == 64
    assert_same(newest(tmp_path / "once"), newest(tmp_path / "twice"))
    stats = (tmp_path / "twice" / "stats.jsonl").read_bytes()
    train(make_config(out=str(tmp_path / "twice"), images=64), dataset=dataset, resume=True)
    assert (tmp_path / "twice" / "stats.jsonl").read_bytes() == stats


def test_a_damaged_checkpoint_is_passed_over(make_config, dataset, tmp_path, capsys):
    config = make_config()
    train(config, dataset=dataset)
    whole = newest(config.out)
    paths = checkpoint.existing(Path(config.out))
    assert len(paths) == 3
    truncate(paths[0])
    # What a process killed while writing leaves behind.
    leftover = paths[0].with_name(".000000064.pt.tmp")
    leftover.write_bytes(b"half")
    capsys.readouterr()
    train(config, dataset=dataset, resume=True)
    damaged = [line for line in capsys.readouterr().err.splitlines() if "damaged" in line]
    assert len(damaged) == 1
    assert paths[0].name in damaged[0]
    assert not leftover.exists()
    assert_same(whole, newest(config.out))
    assert images_in_stats(config.out) == [16, 32, 48]


def test_no_whole_checkpoint_is_an_error_that_names_it(make_config, dataset):
    config = make_config(images=16)
    train(config, dataset=dataset)
    (path,) = checkpoint.existing(Path(config.out))
    truncate(path)
    with pytest.raises(InputError, match=path.name):
        train(config, dataset=dataset, resume=True)
    with pytest.raises(InputError, match=path.name):
        load_generator(config.out)
    assert path.exists()


def test_half_a_line_of_statistics_is_tolerated(make_config, dataset):
    config = make_config(images=32)
    train(config, dataset=dataset)
    stats = Path(config.out) / "stats.jsonl"
    line = json.dumps({"images": 40, "d_loss": 1.0})
    stats.write_text(stats.read_text() + line + "\n" + line[:20])
    train(dataclasses.replace(config, images=48), dataset=dataset, resume=True)
    assert images_in_stats(config.out) == [16, 32, 48]
    assert all(json.loads(text) for text in stats.read_text().splitlines())


def test_the_newest_checkpoints_are_kept(make_config, dataset):
    config = make_config(images=80)
    train(config, dataset=dataset)
    assert [int(path.stem) for path in checkpoint.existing(Path(config.out))] == [80, 64, 48]


def test_a_checkpoint_holds_every_generator_of_random_numbers(make_config, dataset):
    import random

    import numpy as np

    config = make_config(images=16)
    train(config, dataset=dataset)

    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002

    train(dataclasses.replace(config, images=32), dataset=dataset, resume=True)
    first = draw()
    draw()
    train(dataclasses.replace(config, images=32), dataset=dataset, resume=True)
    assert draw() == first


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def prepared(dataset, tmp_path) -> Path:
    from PIL import Image

    from gankernels.data.layout import ArchiveWriter
    from gankernels.data.pictures import encode_png

    with ArchiveWriter(tmp_path / "tiny.zip") as writer:
        for picture, label in zip(dataset.images, dataset.labels.tolist(), strict=True):
            writer.add(encode_png(Image.fromarray(picture[0].numpy())), label)
        writer.commit(dataset.class_names)
    return tmp_path / "tiny.zip"


@pytest.mark.parametrize("after", [0, 1])
def test_kill_at_any_moment(prepared, tmp_path, after):
    """SIGKILL during training, before or after the first checkpoint; ``--resume`` reaches the same bits."""
    options = "--preset sngan-32 --batch 8 --n-dis 1 --dim-z 8 --g.ch 4 --d.ch 4 --tick.images 32"
    options += f" --ema.statistics-images 16 --precision fp32 --device cpu --data {prepared}"
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "gankernels", "train", *options.split(), "--images", "1000000", "--out", str(killed)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (
        (killed / "config.json").exists() and len(checkpoint.existing(killed)) >= after
    ):
        time.sleep(0.002)
    time.sleep(0.03)
    process.kill()
    assert process.wait() == -signal.SIGKILL

    saved = checkpoint.load_newest(killed)
    images = (saved["images"] if saved else 0) + 64
    assert cli.main(["train", *options.split(), "--images", str(images), "--out", str(tmp_path / "whole")]) == 0
    assert cli.main(["train", "--images", str(images), "--out", str(killed), "--resume"]) == 0
    assert newest(killed)["images"] == images
    assert_same(newest(tmp_path / "whole"), newest(killed))
    assert images_in_stats(killed) == images_in_stats(tmp_path / "whole")
