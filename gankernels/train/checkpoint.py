"""Checkpoints: everything that a run is, in one file that ``torch.load(weights_only=True)`` reads."""

from __future__ import annotations

import dataclasses
import pickle
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gankernels import _files
from gankernels.errors import InputError
from gankernels.train.batches import Dataset, Sampler
from gankernels.train.step import State

FORMAT = 1
FOLDER = "checkpoints"


def path_of(run: Path, images: int) -> Path:
    """Where the checkpoint after ``images`` images lies."""
    return run / FOLDER / f"{images:09d}.pt"


def save(
    run: Path, state: State, sampler: Sampler, telemetry: Mapping[str, Any], dataset: Dataset, *, keep: int
) -> Path:
    """Write the checkpoint atomically, then remove all but the newest ``keep``. Returns its path."""
    content = {
        "format": FORMAT,
        "config": dataclasses.asdict(state.config),
        "dataset": describe(dataset),
        "device": state.device.type,
        "images": state.images,
        "g": _player(state.g),
        "d": _player(state.d),
        "ema": state.ema.state_dict(),
        "sampler": sampler.state_dict(),
        "telemetry": dict(telemetry),
        "rng": {"latents": state.rng.get_state(), **_global_rng()},
    }
    path = path_of(run, state.images)
    with _files.replacing(path) as file:
        torch.save(content, file)
    for old in existing(run)[keep:]:
        old.unlink(missing_ok=True)
    return path


def existing(run: Path) -> list[Path]:
    """The run's checkpoints, newest first."""
    return sorted((run / FOLDER).glob("[0-9]*.pt"), key=lambda path: int(path.stem), reverse=True)


def load_newest(run: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The newest checkpoint of a run that can be read; None if it has none.

    One that is cut short (a full disk, a copy broken off) is passed over in favour of an older one, and said so.

    Raises:
        InputError: there are checkpoints, and none can be read.
    """
    paths = existing(run)
    for path in paths:
        content = _load(path, device)
        if content is not None:
            return content
        print(f"gankernels: {path} is damaged; looking for an older checkpoint", file=sys.stderr)
    if paths:
        raise InputError(f"{paths[0]}: got a damaged checkpoint and no older one that is whole, expected a checkpoint")
    return None


def restore(content: dict[str, Any], state: State, sampler: Sampler, dataset: Dataset) -> None:
    """Put a checkpoint's content back; the next step gives the bits that it would have given without the break.

    Raises:
        InputError: the checkpoint is of another device type or another data set.
    """
    if content["device"] != state.device.type:
        raise InputError(f"--device: got {state.device.type}, expected {content['device']}, on which the run began")
    for name, value in describe(dataset).items():
        if content["dataset"][name] != value:
            raise InputError(
                f"--data: got a data set whose {name} is {_short(value)}, "
                f"expected the run's, {_short(content['dataset'][name])}"
            )
    for player, saved in ((state.g, content["g"]), (state.d, content["d"])):
        player.net.load_state_dict(saved["net"])
        player.optimizer.load_state_dict(saved["optimizer"])
        player.scaler.load_state_dict(saved["scaler"])
    state.ema.load_state_dict(content["ema"])
    state.images = content["images"]
    sampler.load_state_dict(content["sampler"])
    state.rng.set_state(content["rng"]["latents"].cpu())
    _set_global_rng(content["rng"])


def describe(dataset: Dataset) -> dict[str, Any]:
    """The facts of a data set that a checkpoint keeps."""
    return {
        "num_classes": dataset.num_classes,
        "channels": dataset.channels,
        "resolution": dataset.resolution,
        "class_names": list(dataset.class_names),
        "fingerprint": dataset.fingerprint(),
    }


def _load(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        return None
    if not isinstance(content, dict) or "format" not in content:
        return None
    if content["format"] != FORMAT:
        raise InputError(f"{path}: got checkpoint format {content['format']}, expected {FORMAT}")
    return content


def _player(player: Any) -> dict[str, Any]:
    return {
        "net": player.net.state_dict(),
        "optimizer": player.optimizer.state_dict(),
        "scaler": player.scaler.state_dict(),
    }


def _global_rng() -> dict[str, Any]:
    # Training draws from none of these; a data set or a hook of the user's may.
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (kind, np.asarray(keys).tolist(), position, has_gauss, gauss),
        "python": random.getstate(),
    }


def _set_global_rng(rng: dict[str, Any]) -> None:
    torch.set_rng_state(rng["torch"].cpu())
    if torch.cuda.is_available() and len(rng["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in rng["cuda"]])
    kind, keys, position, has_gauss, gauss = rng["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    random.setstate(rng["python"])


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
