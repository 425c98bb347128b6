"""The lean trainer: a config, two steps and a loop; and what is made from a finished run."""

from gankernels.train.config import ArchitectureConfig, Config, EMAConfig, NetworkConfig, ScheduleConfig, TickConfig
from gankernels.train.images import generate, save_grid
from gankernels.train.loop import Outcome, train
from gankernels.train.presets import preset
from gankernels.train.telemetry import Diverged
from gankernels.train.trained import TrainedGenerator, load_generator

__all__ = [
    "ArchitectureConfig",
    "Config",
    "Diverged",
    "EMAConfig",
    "NetworkConfig",
    "Outcome",
    "ScheduleConfig",
    "TickConfig",
    "TrainedGenerator",
    "generate",
    "load_generator",
    "preset",
    "save_grid",
    "train",
]
