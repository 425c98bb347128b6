"""A run's generator, ready to be sampled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gankernels.errors import InputError
from gankernels.models.interface import GeneratorModule
from gankernels.train import checkpoint
from gankernels.train.config import Config, from_dict
from gankernels.train.step import build


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in eval mode and where it comes from."""

    generator: GeneratorModule
    config: Config
    images: int
    """Real images that its run had seen."""
    class_names: tuple[str, ...]
    data: str
    """The data set that the run was trained on, as it was named."""


def load_generator(run: str | Path, *, ema: bool = True, device: str | torch.device = "cpu") -> TrainedGenerator:
    """The generator of a run's newest checkpoint.

    Args:
        run: the run's folder.
        ema: the averaged weights; False takes those of the last step.
        device: where to put it.

    Raises:
        InputError: there is no run, no checkpoint yet, or none that can be read.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"--run: got {run}, expected the folder of a run")
    content = checkpoint.load_newest(run)
    if content is None:
        raise InputError(f"--run: got {run}, which has no checkpoint, expected the folder of a run")
    config: Config = from_dict(content["config"])
    facts = content["dataset"]
    generator, _ = build(config, num_classes=facts["num_classes"], channels=facts["channels"])
    generator.load_state_dict(content["ema"] if ema else content["g"]["net"])
    return TrainedGenerator(
        generator=generator.to(device).requires_grad_(False).eval(),
        config=config,
        images=content["images"],
        class_names=tuple(facts["class_names"]),
        data=config.data,
    )
