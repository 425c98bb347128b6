"""Values that move during a run: where they are, who follows them, and that a resumed run has them too."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from gankernels import cli, models
from gankernels.errors import InputError
from gankernels.train import EMAConfig, NetworkConfig, ScheduleConfig, checkpoint, load_generator, preset, train
from gankernels.train.batches import Batches
from gankernels.train.config import SCHEDULED, differences, from_dict
from gankernels.train.ema import decay
from gankernels.train.schedule import in_force, moving
from gankernels.train.step import Player, d_step, g_step, new_state
from gankernels.train.telemetry import read_stats

CPU = torch.device("cpu")
LAST = {"g_lr": 5e-5, "d_lr": 1e-4, "g_beta2": 0.99, "d_beta2": 0.95, "penalty_weight": 0.1, "ema_kimg": 0.04}


@pytest.fixture
def make(make_config):
    """``make(...)``: R3GAN's game on narrow networks, the penalty lazy; all that can be moves in 64 images."""

    def make(**changes: object):
        fields = {
            "preset": "wgan-gp-32",
            "g": NetworkConfig(ch=4, lr=2e-4),
            "d": NetworkConfig(ch=4, lr=4e-4),
            "loss": "rpgan",
            "penalty": "r1+r2",
            "penalty_weight": 1.0,
            "penalty_every": 2,
            "ema": EMAConfig(kimg=0.0, ramp_up=None, statistics_images=16),
            "schedule": ScheduleConfig(images=64, **LAST),
        }
        return make_config(**(fields | changes))

    return make


@pytest.mark.parametrize(
    ("shape", "images", "ahead"),
    [
        ("cosine", 0, 1.0),
        ("cosine", 1000, 1.0),
        ("cosine", 2000, 0.8535533905932737),  # (2 + sqrt(2)) / 4
        ("cosine", 3000, 0.5),
        ("cosine", 5000, 0.0),
        ("cosine", 10**9, 0.0),
        ("linear", 0, 1.0),
        ("linear", 2000, 0.75),
        ("linear", 3000, 0.5),
        ("linear", 5000, 0.0),
        ("linear", 5001, 0.0),
    ],
)
def test_values_on_their_way(make, shape, images, ahead):
    config = make(schedule=ScheduleConfig(shape=shape, start=1000, images=4000, **LAST))
    first = {"g_lr": 2e-4, "d_lr": 4e-4, "g_beta2": 0.9, "d_beta2": 0.9, "penalty_weight": 1.0, "ema_kimg": 0.0}
    want = {name: last + (first[name] - last) * ahead for name, last in LAST.items()}
    got = moving(config, images)
    assert got == pytest.approx(want, rel=1e-12)
    if ahead in (0.0, 1.0):
        assert got == (first if ahead else LAST)
    now = in_force(config, images)
    assert (now.g.lr, now.d.lr, now.penalty_weight, now.ema.kimg) == tuple(
        got[name] for name in ("g_lr", "d_lr", "penalty_weight", "ema_kimg")
    )
    assert (now.g.betas, now.d.betas) == ((0.0, got["g_beta2"]), (0.0, got["d_beta2"]))


def test_a_step_has_the_values_of_its_images(make, dataset):
    """The bits of a step that the values in force were configured for."""
    half = {"g": (1.25e-4, 0.945), "d": (2.5e-4, 0.925)}
    plain = make(
        **{name: NetworkConfig(ch=4, lr=lr, betas=(0.0, beta2)) for name, (lr, beta2) in half.items()},
        penalty_weight=0.55,
        schedule=ScheduleConfig(),
    )
    batch = Batches(dataset, 8, CPU, seed=0).next()
    results = []
    for config in (make(), plain):
        state = new_state(config, dataset, CPU, None)
        state.images = 32
        scalars = d_step(state, batch)
        assert "penalty" in scalars
        state.images = 32
        scalars |= g_step(state, batch)
        results.append((scalars, state))
    (scalars, state), (expected, other) = results
    assert all(torch.equal(scalars[name], expected[name]) for name in expected)
    for player, twin in ((state.g, other.g), (state.d, other.d)):
        torch.testing.assert_close(player.net.state_dict(), twin.net.state_dict(), rtol=1e-6, atol=0)
        (group,), (want,) = player.optimizer.param_groups, twin.optimizer.param_groups
        assert (group["lr"], *group["betas"]) == pytest.approx((want["lr"], *want["betas"]), rel=1e-12)


def test_adam_follows_a_beta2_that_moves():
    """Kingma and Ba, algorithm 1, with the beta2 of each step in both its average and the correction of its bias."""
    net = nn.Linear(3, 1, bias=False)
    weight = net.weight.detach().double().clone()
    player = Player(net, NetworkConfig(ch=1), CPU)
    x = torch.randn(3, generator=torch.Generator().manual_seed(0))
    moment = torch.zeros(1, 3, dtype=torch.float64)
    for step, (lr, beta2) in enumerate([(0.1, 0.9), (0.05, 0.95), (0.02, 0.99)], start=1):
        player.follow(NetworkConfig(ch=1, lr=lr, betas=(0.0, beta2)))
        gradient = step * x.double()[None]
        moment = beta2 * moment + (1 - beta2) * gradient**2
        weight -= lr * gradient / ((moment / (1 - beta2**step)).sqrt() + 1e-8)
        player.update(step * net(x).sum())
        torch.testing.assert_close(net.weight.detach().double(), weight, rtol=1e-5, atol=1e-6)


def test_an_average_of_no_half_life_is_a_copy(make, dataset):
    state = new_state(make(), dataset, CPU, None)
    with torch.no_grad():
        for p in state.g.net.parameters():
            p.add_(torch.randn_like(p))
    kept = decay(in_force(state.config, 0).ema, images=8, images_per_update=8)
    assert kept == 0
    state.ema.update(kept)
    for a, b in zip(state.ema.generator.parameters(), state.g.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_resumed_on_the_way_reaches_the_same_bits(make, dataset, tmp_path, capsys):
    whole = make(out=str(tmp_path / "whole"), images=80)
    train(whole, dataset=dataset)
    shown = [line for line in capsys.readouterr().err.splitlines() if "d_loss" in line]
    broken = dataclasses.replace(whole, out=str(tmp_path / "broken"))
    train(dataclasses.replace(broken, images=32), dataset=dataset)
    train(broken, dataset=dataset, resume=True)
    a, b = (checkpoint.load_newest(Path(config.out)) for config in (whole, broken))
    for player in ("g", "d"):
        torch.testing.assert_close(a[player], b[player], rtol=0, atol=0)
    torch.testing.assert_close(a["ema"], b["ema"], rtol=0, atol=0)
    assert not torch.equal(a["ema"]["conv.weight"], a["g"]["net"]["conv.weight"])  # a copy no longer
    lines = [read_stats(Path(config.out) / "stats.jsonl") for config in (whole, broken)]
    names = ("images", "d_loss", "g_loss", "penalty", "d_grad_norm", *SCHEDULED)
    assert [[line[name] for name in names] for line in lines[0]] == [
        [line[name] for name in names] for line in lines[1]
    ]
    assert [line["images"] for line in lines[0]] == [16, 32, 48, 64, 80]
    assert {name: lines[0][1][name] for name in SCHEDULED} == moving(whole, 32)
    assert all({name: line[name] for name in SCHEDULED} == LAST for line in lines[0][3:])
    assert "g_lr 0.000125  d_lr 0.00025  g_beta2 0.945  d_beta2 0.925  penalty_weight 0.55  ema_kimg 0.02" in shown[1]


def test_without_a_schedule_nothing_moves(make, make_config, dataset, tmp_path, capsys):
    config = make_config(images=16)
    assert in_force(config, 10**9) is config
    assert moving(config, 10**9) == {}
    switched_off = make(images=16, schedule=ScheduleConfig(shape="constant", **LAST))
    assert in_force(switched_off, 10**9) is switched_off
    state = new_state(config, dataset, CPU, None)
    state.d.optimizer.param_groups[0]["lr"] = 0.125  # by a loop of one's own
    batch = Batches(dataset, 8, CPU, seed=0).next()
    d_step(state, batch)
    g_step(state, batch)
    assert state.d.optimizer.param_groups[0]["lr"] == 0.125
    train(config, dataset=dataset)
    (line,) = read_stats(Path(config.out) / "stats.jsonl")
    assert not SCHEDULED.keys() & line.keys()
    assert "g_lr" not in capsys.readouterr().err


def test_a_run_from_before_schedules_goes_on(make_config, dataset):
    config = make_config(images=16)
    train(config, dataset=dataset)
    run = Path(config.out)
    fields = dataclasses.asdict(config)
    del fields["schedule"]
    (run / "config.json").write_text(json.dumps(fields))
    content = checkpoint.load_newest(run)
    content["config"] = fields
    torch.save(content, checkpoint.path_of(run, 16))
    assert load_generator(run).config == config
    assert train(dataclasses.replace(config, images=32), dataset=dataset, resume=True).images == 32


def test_the_presets_move_what_their_papers_move():
    iteration = 5 * 64  # images a step of the generator
    falling = {"g_lr": 0.0, "d_lr": 0.0}
    r3gan = {"g_lr": 5e-5, "d_lr": 5e-5, "g_beta2": 0.99, "d_beta2": 0.99}
    expected = {
        "r3gan-32": ("cosine", 0, 20_000_000, {**r3gan, "penalty_weight": 0.005, "ema_kimg": 5000}),
        "r3gan-64": ("cosine", 0, 20_000_000, {**r3gan, "penalty_weight": 0.2, "ema_kimg": 500}),
        "r3gan-256": ("cosine", 0, 20_000_000, {**r3gan, "penalty_weight": 15.0, "ema_kimg": 500}),
        "sngan-32": ("linear", 0, 50_000 * iteration, falling),
        "sngan-128": ("linear", 400_000 * iteration, 50_000 * iteration, falling),
        "wgan-gp-32": ("linear", 0, 100_000 * iteration, falling),
    }
    for name in models.presets():
        recipe = preset(name)
        schedule = recipe.schedule
        ends = moving(recipe, 10**12)
        if name not in expected:
            assert ends == {}
            continue
        assert (schedule.shape, schedule.start, schedule.images, ends) == expected[name]
        assert recipe.images >= schedule.start + schedule.images
    first = moving(preset("r3gan-32"), 0)
    assert first == {"g_lr": 2e-4, "d_lr": 2e-4, "g_beta2": 0.9, "d_beta2": 0.9, "penalty_weight": 0.05, "ema_kimg": 0}
    half = moving(preset("r3gan-32"), 10_000_000)
    assert half["g_lr"] == pytest.approx(1.25e-4)
    assert half["ema_kimg"] == pytest.approx(2500)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--schedule.g-momentum 0.5", "--schedule.g-momentum"),
        ("--schedule.shape sine", "sine"),
        ("--schedule.g-lr soon", "--schedule.g-lr"),
        ("--schedule.g-lr 0", "--schedule.images: got 0, expected how many --schedule.g-lr takes to come to 0.0"),
        ("--schedule.images -5", "--schedule.images: got -5, expected at least 0"),
        ("--schedule.start -1", "--schedule.start: got -1, expected at least 0"),
        ("--schedule.images 9 --schedule.d-lr -0.1", "--schedule.d-lr: got -0.1, expected a number from 0"),
        ("--schedule.images 9 --schedule.d-lr nan", "--schedule.d-lr: got nan, expected a number from 0"),
        ("--schedule.images 9 --schedule.g-beta2 1", "--schedule.g-beta2: got 1.0, expected a number in [0, 1)"),
        ("--schedule.images 9 --schedule.penalty-weight -1", "--schedule.penalty-weight: got -1.0"),
        ("--schedule.images 9 --schedule.ema-kimg inf", "--schedule.ema-kimg: got inf"),
        ("--ema.kimg -1", "--ema.kimg: got -1.0, expected a number from 0"),
    ],
)
def test_bad_schedules_get_one_line_and_exit_code_2(options, said, capsys, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["train", "--preset", "biggan-32", "--data", "digits", "--out", str(out), *options.split()]) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not out.exists()


def test_a_schedule_is_part_of_the_run(make):
    config = make()
    with pytest.raises(InputError, match=r"--schedule\.shape: got sine"):
        make(schedule=ScheduleConfig(shape="sine")).check()
    later = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, images=128))
    assert list(differences(config, later)) == [("--schedule.images", 64, 128)]
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config
