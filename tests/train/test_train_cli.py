"""``gankernels train`` and ``gankernels sample``, as typed."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("tyro", reason="the train command needs tyro")

from gankernels import cli, models
from gankernels.errors import InputError
from gankernels.train import Config, Diverged, generate, load_generator, preset, save_grid, train
from gankernels.train.cli import parse
from gankernels.train.config import differences, flatten, from_dict
from gankernels.train.images import latents
from gankernels.train.sample import slerp
from gankernels.train.telemetry import read_stats


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run on a built-in data set."""
    out = tmp_path_factory.mktemp("runs") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = f"--preset sngan-32 --data digits --out {out} --images 32 --batch 16 --n-dis 1 --dim-z 8 --precision fp32"
    options += " --g.ch 4 --d.ch 4 --tick.images 16 --tick.grid-columns 3 --ema.statistics-images 16 --device cpu"
    assert cli.main(["train", *options.split()]) == 0
    torch.set_num_threads(threads)
    return out


def last_line(capsys) -> str:
    """What was said last; and that an error is one line, with no traceback."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.splitlines()[-1]


def test_dry_run_prints_the_resolved_config(capsys, tmp_path):
    argv = "train --preset sngan-32 --data digits --g.lr 0.001 --d.betas 0.5 0.99 --batch 7 --dry-run --out"
    assert cli.main([*argv.split(), str(tmp_path / "run")]) == 0
    config = from_dict(json.loads(capsys.readouterr().out))
    assert (config.g.lr, config.d.betas, config.batch, config.d.lr) == (0.001, (0.5, 0.99), 7, 2e-4)
    assert not (tmp_path / "run").exists()


def test_every_field_is_an_option():
    defaults = flatten(preset("sngan-32"))
    for name, value in defaults.items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            command = parse(["--preset", "sngan-32", option.replace("--", "--no-") if value else option])
            assert flatten(command.config)[name] is not value
        elif isinstance(value, int):
            command = parse(["--preset", "sngan-32", option, "77"])
            assert flatten(command.config)[name] == 77


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "--help"])
    assert end.value.code == 0
    assert "--g.lr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--preset biggan-9000", "expected one of dcgan-32"),
        ("", "--preset"),
        ("--preset", "--preset"),
        ("--preset sngan-32 --out OUT", "--data: got nothing"),
        ("--preset sngan-32 --data digits", "--out: got nothing"),
        ("--preset sngan-32 --data digits --out OUT --batch 0", "--batch: got 0"),
        ("--preset sngan-32 --data digits --out OUT --batch -3", "--batch: got -3"),
        ("--preset sngan-32 --data digits --out OUT --images 0", "--images: got 0"),
        ("--preset sngan-32 --data digits --out OUT --g.lr -1", "--g.lr: got -1"),
        ("--preset sngan-32 --data digits --out OUT --g.lr fast", "--g.lr"),
        ("--preset sngan-32 --data digits --out OUT --g.widths 1 2", "g_widths: got 2 numbers, expected 4"),
        ("--preset sngan-32 --data digits --out OUT --precision fp8", "'fp8'"),
        ("--preset sngan-32 --data digits --out OUT --precision fp16 --device cpu", "--precision: got fp16 on cpu"),
        ("--preset sngan-32 --data digits --out OUT --device tpu", "--device: got 'tpu'"),
        ("--preset sngan-32 --data digits --out OUT --nonsense 3", "--nonsense"),
        ("--preset sngan-32 --data no/such/file.zip --out OUT", "no/such/file.zip"),
        ("--preset sngan-32 --data digits --out FILE", "which is a file"),
    ],
)
def test_bad_options_get_one_line_and_exit_code_2(options, said, capsys, tmp_path):
    (tmp_path / "file").touch()
    options = options.replace("OUT", str(tmp_path / "out")).replace("FILE", str(tmp_path / "file"))
    assert cli.main(["train", *options.split()]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--preset sngan-32 --data digits", "holds a run already"),
        ("--resume --g.lr 0.5", "--g.lr: got 0.5, expected 0.0002"),
        ("--resume --batch 8", "--batch: got 8, expected 16"),
        ("--resume --data fashion-mnist", "--data: got fashion-mnist, expected digits"),
    ],
)
def test_a_run_is_not_lost_to_another(run, options, said, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert cli.main(["train", "--out", str(run), *options.split()]) == 2
    assert said in last_line(capsys)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_resume_from_another_preset_names_it(make_config, dataset, monkeypatch):
    config = make_config(images=8)
    train(config, dataset=dataset)
    other = dataclasses.replace(config, preset="other")
    assert list(differences(config, other)) == [("--preset", "sngan-32", "other")]


def test_resume_with_another_data_set_is_refused(make_config, dataset, make_dataset):
    train(make_config(images=8), dataset=dataset)
    with pytest.raises(InputError, match="num_classes is 4, expected the run's, 3"):
        train(make_config(images=16), dataset=make_dataset(num_classes=4), resume=True)


@pytest.mark.parametrize("num_classes", [0, 1])
def test_labels_are_required(make_config, make_dataset, num_classes):
    config = make_config()
    with pytest.raises(InputError, match="class"):
        train(config, dataset=make_dataset(num_classes=num_classes))
    assert not Path(config.out).exists()


def test_the_data_set_must_fit_the_network(make_config, dataset):
    dataset.resolution = 16
    with pytest.raises(InputError, match="got 16 px, expected 32"):
        train(make_config(), dataset=dataset)


def test_resume_of_an_empty_folder_starts_fresh(make_config, dataset):
    config = make_config(images=8)
    Path(config.out).mkdir()
    assert train(config, dataset=dataset, resume=True).images == 8


def test_the_run_folder(run):
    config = from_dict(json.loads((run / "config.json").read_text()))
    assert (config.data, config.images) == ("digits", 32)
    lines = read_stats(run / "stats.jsonl")
    assert [line["images"] for line in lines] == [16, 32]
    expected = (
        "seconds d_loss g_loss d_real d_fake d_grad_norm g_grad_norm images_per_second s_per_kimg peak_memory_mib"
    )
    assert all(line[name] is not None for line in lines for name in expected.split())
    assert lines[0]["phase_ms"].keys() == {"data", "d_step", "g_step", "ema"}
    grid = Image.open(run / "samples" / "000000032.png")
    assert (grid.size, grid.mode) == ((3 * 32, 10 * 32), "L")


def test_tensorboard_only_when_asked(run, make_config, dataset):
    assert not (run / "tensorboard").exists()
    config = make_config(images=8, tensorboard=True)
    train(config, dataset=dataset)
    assert list((Path(config.out) / "tensorboard").iterdir())


def test_divergence_stops_before_anything_is_saved_over(make_config, dataset, capsys):
    config = make_config(images=16)
    train(config, dataset=dataset)
    checkpoints = Path(config.out) / "checkpoints"

    class Poisoned(type(dataset)):
        def batch(self, indices):
            images, labels = super().batch(indices)
            return images.float() * float("nan"), labels

    with pytest.raises(Diverged, match="d_loss"):
        train(dataclasses.replace(config, images=32), dataset=Poisoned(), resume=True)
    assert [path.stem for path in checkpoints.iterdir()] == ["000000016"]
    assert read_stats(Path(config.out) / "stats.jsonl")[-1]["d_loss"] is None


def test_config_survives_json():
    for name in models.presets():
        config = preset(name)
        assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
    with pytest.raises(InputError, match="nonsense"):
        from_dict({"preset": "sngan-32", "nonsense": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.batch = 3
    assert isinstance(config, Config)


def test_only_the_command_line_imports_tyro():
    code = (
        "import gankernels.train, sys; sys.exit(any(m in sys.modules for m in ('tyro', 'PIL', 'rich', 'tensorboard')))"
    )
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 0


def test_sample_grid(run, tmp_path):
    out = tmp_path / "grid.png"
    assert cli.main(["sample", "--run", str(run), "--out", str(out), "--classes", "3", "7", "--per-class", "5"]) == 0
    assert Image.open(out).size == (5 * 32, 2 * 32)
    again = tmp_path / "again.png"
    assert cli.main(["sample", "--run", str(run), "--out", str(again), "--classes", "3", "7", "--per-class", "5"]) == 0
    assert again.read_bytes() == out.read_bytes()


def test_sample_zip_is_a_data_set(run, tmp_path):
    from gankernels.data import open_dataset

    out = tmp_path / "made.zip"
    argv = ["sample", "--run", str(run), "--out", str(out), "--per-class", "2", "--format", "zip", "--seed", "4"]
    assert cli.main(argv) == 0
    made = open_dataset(out)
    assert made.labels.tolist() == [label for label in range(10) for _ in range(2)]
    trained = load_generator(run)
    assert made.class_names == trained.class_names
    assert torch.equal(made.images, generate(trained.generator, made.labels, seed=4))


def test_interpolation_starts_and_ends_at_classes(run, tmp_path):
    out = tmp_path / "between.png"
    argv = ["sample", "--run", str(run), "--out", str(out), "--classes", "1", "4", "--per-class", "6", "--interpolate"]
    assert cli.main(argv) == 0
    sheet = torch.from_numpy(np.array(Image.open(out)))
    trained = load_generator(run)
    z = latents(3, 8, seed=0)
    with torch.no_grad():
        ends = trained.generator(z[[0, 1, 1, 2]], torch.tensor([1, 4, 4, 1]))
    pictures = ((ends + 1) * 127.5).round().to(torch.uint8)[:, 0]
    for cell, (row, column) in zip(pictures, [(0, 0), (0, 5), (1, 0), (1, 5)], strict=True):
        got = sheet[row * 32 : row * 32 + 32, column * 32 : column * 32 + 32]
        assert (got.int() - cell.int()).abs().max() <= 1


def test_great_circle_keeps_the_length():
    a, b = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    a, b = a / a.norm(), b / b.norm()
    points = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(points.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(points[[0, -1]], torch.stack([a, b]))
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


def test_truncation_bounds_the_latents():
    z = latents(500, 8, seed=0, truncation=0.5)
    assert z.abs().max() <= 0.5
    assert z.abs().max() > 0.49
    assert latents(500, 8, seed=0).abs().max() > 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--classes 10", "--classes: got '10'"),
        ("--classes zebra", "expected a number from 0 to 9"),
        ("--per-class 0", "--per-class: got 0"),
        ("--truncation 0", "truncation: got 0.0"),
        ("--format gif", "gif"),
        ("--format zip --interpolate", "--interpolate"),
        ("--run nowhere", "--run: got nowhere"),
        ("--out nowhere/grid.png", "--out: got nowhere/grid.png"),
    ],
)
def test_bad_sample_options(run, options, said, capsys, tmp_path):
    argv = ["sample", "--run", str(run), "--out", str(tmp_path / "grid.png"), *options.split()]
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "grid.png").exists()


def test_a_run_without_checkpoints_cannot_be_sampled(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        load_generator(tmp_path)


def test_averaged_and_last_weights(run):
    averaged, last = load_generator(run), load_generator(run, ema=False)
    assert not averaged.generator.training
    assert (averaged.images, averaged.data, averaged.config.g.ch) == (32, "digits", 4)
    assert not torch.equal(averaged.generator.conv.weight, last.generator.conv.weight)


def test_pictures_do_not_depend_on_the_batch_size(run):
    generator = load_generator(run).generator
    labels = torch.arange(10)
    whole, parts = (generate(generator, labels, seed=1, batch_size=size) for size in (10, 3))
    assert (whole.int() - parts.int()).abs().max() <= 1  # a convolution may round otherwise in another batch
    assert not torch.equal(whole, generate(generator, labels, seed=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_is_row_by_row_and_filled_up(tmp_path, channels):
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, channels, 2, 2)
    save_grid(images, tmp_path / "grid.png", columns=3)
    sheet = np.array(Image.open(tmp_path / "grid.png")).reshape(4, 6, channels)
    assert sheet[::2, ::2, 0].tolist() == [[1, 2, 3], [4, 5, 0]]
    assert sheet.shape == (4, 6, channels)
