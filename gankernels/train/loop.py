"""The training loop and the folder it writes to."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from gankernels import _files, dispatch, models
from gankernels._memory import keep_freed_memory
from gankernels.errors import InputError
from gankernels.train import checkpoint, precision
from gankernels.train.batches import Batches, Dataset
from gankernels.train.config import Config, differences, from_dict
from gankernels.train.ema import decay
from gankernels.train.images import generate, save_grid
from gankernels.train.schedule import in_force, moving
from gankernels.train.step import Networks, State, build, d_step, g_step, new_state
from gankernels.train.telemetry import Progress, Telemetry


@dataclass(frozen=True)
class Outcome:
    """How a call of :func:`train` ended."""

    run: Path
    images: int
    interrupted: bool
    """A signal ended it before ``config.images``; everything is saved."""


def train(
    config: Config, *, dataset: Dataset | None = None, networks: Networks = build, resume: bool = False
) -> Outcome:
    """Train ``config.preset`` on ``config.data`` into the folder ``config.out``.

    The folder gets ``config.json``, ``stats.jsonl``, ``samples/<images>.png`` and ``checkpoints/<images>.pt``. SIGINT
    and SIGTERM end the run after the step at hand, with a checkpoint; a second signal ends it at once.
    The global random generators of torch, numpy and Python are seeded with ``config.seed``.

    Args:
        config: the run.
        dataset: takes the place of ``gankernels.data.open_dataset(config.data)``.
        networks: takes the place of ``gankernels.models.build``: ``networks(config, num_classes=..., channels=...)``
            gives generator and discriminator. What samples or evaluates the run later builds the preset's networks, and
            needs the names and shapes of their state.
        resume: go on from the newest checkpoint in the folder, to the same bits as without the break.

    Raises:
        InputError: the config, the data set or the folder cannot be used.
        Diverged: a loss is no longer finite; the checkpoints from before stay.
    """
    config.check()
    device = pick_device(config.device)
    dtype, reason = precision.resolve(config.precision, device)
    run = _check_run(config, resume=resume)
    content = checkpoint.load_newest(run) if resume else None
    dataset = _check_dataset(config, _open_dataset(config) if dataset is None else dataset)
    _seed_everything(config.seed)
    if device.type == "cpu":
        keep_freed_memory()
    state = new_state(config, dataset, device, dtype, networks)
    batches = Batches(dataset, config.batch, device, seed=config.seed)
    _make_folders(run)
    shown = config.n_dis * config.batch
    telemetry = Telemetry(run, device, tensorboard=config.tensorboard)
    if content is not None:
        checkpoint.restore(content, state, batches.sampler, dataset)
        telemetry.load_state_dict(content["telemetry"])
    telemetry.rewind(state.images)
    _write_config(run, config)

    with (
        Progress(state.images, config.images) as progress,
        _interruption() as interrupted,
        _backend(config),
        contextlib.closing(telemetry),
    ):
        progress.note(f"{config.preset} on {dataset.name} ({len(dataset):,} images), {device}, {reason}")
        telemetry.start()
        while state.images < config.images and not interrupted.is_set():
            for _ in range(config.n_dis):
                with telemetry.phase("data"):
                    batch = batches.next()
                with telemetry.phase("d_step"):
                    telemetry.add(d_step(state, batch))
            with telemetry.phase("g_step"):
                telemetry.add(g_step(state, batch))
            with telemetry.phase("ema"):
                average = in_force(config, state.images).ema
                state.ema.update(decay(average, images=state.images, images_per_update=shown))
            progress.advance(state.images)

            if state.images % config.tick.images < shown or state.images >= config.images:
                scheduled = moving(config, state.images)
                progress.tick(telemetry.tick(state.images, scheduled), scheduled)
                _save(run, state, batches, telemetry)
                _save_samples(run, state)
                telemetry.start()
        if interrupted.is_set():
            _save(run, state, batches, telemetry)
    return Outcome(run, state.images, interrupted.is_set() and state.images < config.images)


def pick_device(name: str) -> torch.device:
    """The device called ``name``; ``"auto"`` is the first GPU, or the CPU where there is none.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: got {name!r}, expected auto, cpu, cuda or cuda:<index>") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        raise InputError(
            f"--device: got {name!r}, expected auto, cpu or one of the {torch.cuda.device_count()} GPUs here"
        )
    return device


def read_config(run: Path) -> Config:
    """The config that ``run`` was trained with.

    Raises:
        InputError: the folder holds no run, or its config.json cannot be read.
    """
    path = run / "config.json"
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise InputError(f"{run}: got a folder without config.json, expected the folder of a run") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the config of a run ({error})") from None


def _check_run(config: Config, *, resume: bool) -> Path:
    run = Path(config.out)
    if run.exists() and not run.is_dir():
        raise InputError(f"--out: got {run}, which is a file, expected a folder")
    holds_run = (run / "config.json").exists() or bool(checkpoint.existing(run)) or (run / "stats.jsonl").exists()
    if holds_run and not resume:
        raise InputError(f"--out: got {run}, which holds a run already, expected a new folder, or --resume to go on")
    if holds_run:
        for option, saved, now in differences(read_config(run), config):
            raise InputError(f"{option}: got {now}, expected {saved}, with which the run in {run} began")
    return run


def _make_folders(run: Path) -> None:
    try:
        for folder in (run, run / checkpoint.FOLDER, run / "samples"):
            folder.mkdir(parents=True, exist_ok=True)
            _files.remove_leftovers(folder)
    except OSError as error:
        raise InputError(f"--out: got {run}, expected a folder that can be written ({error.strerror})") from None


def _open_dataset(config: Config) -> Dataset:
    from gankernels.data import open_dataset

    return open_dataset(config.data, resolution=models.resolution(config.preset))


def _check_dataset(config: Config, dataset: Dataset) -> Dataset:
    dataset.require_labels()
    if dataset.resolution != models.resolution(config.preset):
        raise InputError(
            f"dataset: got {dataset.resolution} px, expected {models.resolution(config.preset)} for {config.preset}"
        )
    return dataset


def _write_config(run: Path, config: Config) -> None:
    with _files.replacing(run / "config.json") as file:
        file.write(json.dumps(dataclasses.asdict(config), indent=2).encode() + b"\n")


def _save(run: Path, state: State, batches: Batches, telemetry: Telemetry) -> None:
    state.ema.estimate_statistics(batch=state.config.batch, seed=state.config.seed)
    checkpoint.save(run, state, batches.sampler, telemetry.state_dict(), batches.dataset, keep=state.config.tick.keep)


def _save_samples(run: Path, state: State) -> None:
    tick = state.config.tick
    generator = state.ema.generator
    rows = min(generator.num_classes, tick.grid_rows)
    labels = torch.arange(rows).repeat_interleave(tick.grid_columns)
    images = generate(generator, labels, seed=state.config.seed)
    save_grid(images, run / "samples" / f"{state.images:09d}.png", columns=tick.grid_columns)


def _seed_everything(seed: int) -> None:
    # The steps draw from a generator of their own; a data set or a hook of the user's may draw from these.
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it always does."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield event
        return
    outer = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in outer.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        event.set()
        restore()
        print("gankernels: finishing this step and saving; once more to stop at once", file=sys.stderr)

    for number in outer:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        restore()


@contextlib.contextmanager
def _backend(config: Config) -> Iterator[None]:
    """torch's switches, and the implementation of our ops, as the config has them."""
    with contextlib.ExitStack() as stack:
        if config.impl != "auto":
            stack.enter_context(dispatch.use(config.impl))
        stack.enter_context(
            torch.backends.cudnn.flags(
                enabled=True,
                benchmark=not config.deterministic,
                deterministic=config.deterministic,
                allow_tf32=config.tf32,
            )
        )
        yield
