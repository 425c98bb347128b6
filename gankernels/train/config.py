"""What a run is: frozen dataclasses, and which of it may change on resuming."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gankernels import models
from gankernels.errors import InputError
from gankernels.losses import LOSSES
from gankernels.penalties import PENALTIES

#: How a scheduled value moves.
Shape = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True)
class NetworkConfig:
    """A network's width and its Adam."""

    ch: int
    """Unit of width."""
    widths: tuple[float, ...] = (1, 1, 1, 1)
    """Width of each stage, in units of ch: the generator's from 4 px up, the discriminator's from the picture down."""
    lr: float = 2e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.0, 0.9)
    """Adam's decay rates of the first and second moment."""
    eps: float = 1e-8
    """Adam's epsilon."""


@dataclass(frozen=True)
class ArchitectureConfig:
    """What else a preset lets one choose; None is its own choice, or that there is none."""

    shared_embedding: bool | None = None
    """One embedding of the class for all norms of the generator, not a table in each."""
    shared_dim: int | None = None
    """Length of that embedding."""
    hierarchical_z: bool | None = None
    """A chunk of the latent goes to each block of the generator."""
    attention: int | None = None
    """Resolution of the self-attention; 0 for none."""


@dataclass(frozen=True)
class EMAConfig:
    """The averaged generator that is sampled from."""

    kimg: float = 10.0
    """Half-life of the average, in thousands of images; 0 copies the generator."""
    ramp_up: float | None = 0.05
    """While a run is young, the half-life is at most this share of the images seen; None switches that off."""
    statistics_images: int = 1024
    """Pictures from which the average's batch-norm statistics are estimated anew before it is sampled or saved."""


@dataclass(frozen=True)
class ScheduleConfig:
    """Values that move during a run. Each begins with its own option, such as --g.lr, and ends with the one here.

    None: it stays. Where both networks move alike, both have to be given.
    """

    shape: Shape = "cosine"
    """On half a cosine, on a line, or, with constant, none of them."""
    start: int = 0
    """Real images that go by before they move."""
    images: int = 0
    """Real images in which they then move; after that they stay."""
    g_lr: float | None = None
    """Last learning rate of the generator."""
    d_lr: float | None = None
    """Last learning rate of the discriminator."""
    g_beta2: float | None = None
    """Last of the second of --g.betas."""
    d_beta2: float | None = None
    """Last of the second of --d.betas."""
    penalty_weight: float | None = None
    """Last weight of the penalty."""
    ema_kimg: float | None = None
    """Last half-life of the average, in thousands of images."""


@dataclass(frozen=True)
class TickConfig:
    """What happens at regular distances, and at the end."""

    images: int = 20_000
    """Images between two ticks: a line of statistics, a sample grid and a checkpoint each."""
    grid_columns: int = 8
    """Samples of each class in the grid."""
    grid_rows: int = 32
    """The grid shows at most this many classes."""
    keep: int = 3
    """Checkpoints kept; older ones are removed."""


@dataclass(frozen=True)
class Config:
    """A run, complete: two runs of one config on one machine give the same bits."""

    preset: str
    """The network: one of gankernels.models.presets()."""
    data: str = ""
    """A built-in data set's name, or the path of a prepared zip or folder."""
    out: str = ""
    """The run's folder."""
    images: int = 1_000_000
    """Real images to train on, counted every time the discriminator is shown one."""
    batch: int = 64
    """Images in a step of the discriminator, and samples in a step of the generator."""
    n_dis: int = 1
    """Discriminator steps per generator step."""
    loss: Literal["minimax", "non-saturating", "least-squares", "hinge", "wasserstein", "rsgan", "ragan", "rpgan"] = (
        "hinge"
    )
    """The game."""
    penalty: Literal["r1", "r2", "r1+r2", "wgan-gp", "wgan-lp", "dragan"] | None = None
    """A gradient penalty on the discriminator, without double backprop; None for none."""
    penalty_weight: float = 10.0
    """Of the penalty: gamma of r1, r2 and r1+r2, which penalise |g|^2 / 2; lambda of the others."""
    penalty_every: int = 1
    """Take the penalty in every so many discriminator steps, with as many times the weight."""
    dim_z: int = 128
    """Length of the latent vector."""
    seed: int = 0
    """Of the initial weights, the latents and the order of the data."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the convolutions; auto is bf16 where the hardware computes in it, else fp32. Weights are always fp32."""
    tf32: bool = True
    """TF32 in the fp32 convolutions on CUDA."""
    deterministic: bool = False
    """On CUDA, keep to algorithms that give the same bits each time."""
    device: str = "auto"
    """cuda, cuda:1, cpu; auto is the first GPU where there is one."""
    impl: Literal["auto", "reference", "cpu", "triton", "cuda"] = "auto"
    """Force one implementation of every op."""
    tensorboard: bool = False
    """Write TensorBoard event files beside stats.jsonl."""
    g: NetworkConfig = field(default_factory=lambda: NetworkConfig(ch=64))
    """The generator."""
    d: NetworkConfig = field(default_factory=lambda: NetworkConfig(ch=64))
    """The discriminator."""
    net: ArchitectureConfig = field(default_factory=ArchitectureConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    tick: TickConfig = field(default_factory=TickConfig)

    def check(self) -> None:
        """Raise an :class:`InputError` that names the first field out of its range."""
        if self.preset not in models.presets():
            raise InputError(f"--preset: got {self.preset!r}, expected one of {', '.join(models.presets())}")
        if self.loss not in LOSSES:
            raise InputError(f"--loss: got {self.loss}, expected one of {', '.join(LOSSES)}")
        if self.penalty is not None and self.penalty not in PENALTIES:
            raise InputError(f"--penalty: got {self.penalty}, expected None or one of {', '.join(PENALTIES)}")
        for name in ("data", "out"):
            if not getattr(self, name):
                raise InputError(f"--{name}: got nothing, expected {_EXPECTED[name]}")
        values = flatten(self)
        for name in _AT_LEAST_ONE:
            if values[name] < 1:
                raise InputError(f"{_option(name)}: got {values[name]}, expected at least 1")
        for name in ("g.lr", "d.lr", "g.eps", "d.eps", "ema.ramp_up", "penalty_weight"):
            if values[name] is not None and not values[name] > 0:
                raise InputError(f"{_option(name)}: got {values[name]}, expected a number above 0")
        for name in ("g.betas", "d.betas"):
            if not all(0 <= beta < 1 for beta in values[name]):
                raise InputError(f"{_option(name)}: got {values[name]}, expected two numbers in [0, 1)")
        if not 0 <= self.ema.kimg < math.inf:
            raise InputError(f"--ema.kimg: got {self.ema.kimg}, expected a number from 0")
        self._check_schedule()

    def _check_schedule(self) -> None:
        schedule = self.schedule
        if schedule.shape not in get_args(Shape):
            raise InputError(f"--schedule.shape: got {schedule.shape}, expected one of {', '.join(get_args(Shape))}")
        for name in ("start", "images"):
            if getattr(schedule, name) < 0:
                raise InputError(f"--schedule.{name}: got {getattr(schedule, name)}, expected at least 0")
        for name, limit in SCHEDULED.items():
            last = getattr(schedule, name)
            if last is None:
                continue
            if not 0 <= last < limit:
                expected = "a number from 0" if limit == math.inf else f"a number in [0, {limit:g})"
                raise InputError(f"{_option('schedule.' + name)}: got {last}, expected {expected}")
            if schedule.images == 0 and schedule.shape != "constant":
                raise InputError(
                    f"--schedule.images: got 0, expected how many {_option('schedule.' + name)} takes to come to {last}"
                )


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted field name -> value, as the command line spells them: ``{"batch": 64, "g.lr": 0.0002, ...}``."""
    values: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        nested = flatten(value, f"{prefix}{f.name}.") if dataclasses.is_dataclass(value) else {prefix + f.name: value}
        values.update(nested)
    return values


def from_dict(values: Mapping[str, Any], cls: type = Config) -> Any:
    """The inverse of ``dataclasses.asdict``, also behind a trip through JSON. A field that is missing has its default.

    Raises:
        InputError: a field that ``cls`` does not have, or one without a default missing.
    """
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}
    arguments: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            raise InputError(f"config: got the field {name!r}, expected one of {', '.join(sorted(fields))}")
        if dataclasses.is_dataclass(hints[name]):
            value = from_dict(value, typing.cast(type, hints[name]))
        elif typing.get_origin(hints[name]) is tuple:
            value = tuple(value)
        arguments[name] = value
    try:
        return cls(**arguments)
    except TypeError as error:
        raise InputError(f"config: {error}") from None


#: What can be scheduled, and the number that a last value stays below.
SCHEDULED = {
    "g_lr": math.inf,
    "d_lr": math.inf,
    "g_beta2": 1.0,
    "d_beta2": 1.0,
    "penalty_weight": math.inf,
    "ema_kimg": math.inf,
}

#: Fields that change nothing in what was trained so far; a resumed run may have them otherwise.
FREE_ON_RESUME = frozenset(
    {
        "out",
        "images",
        "impl",
        "device",
        "tensorboard",
        "ema.statistics_images",
        *(f"tick.{f.name}" for f in dataclasses.fields(TickConfig)),
    }
)


def differences(saved: Config, now: Config) -> Iterator[tuple[str, Any, Any]]:
    """``(option, saved value, new value)`` of the fields on which a run cannot be resumed, in the config's order."""
    before = flatten(saved)
    for name, value in flatten(now).items():
        if name not in FREE_ON_RESUME and value != before[name]:
            yield _option(name), before[name], value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


_EXPECTED = {
    "data": "fashion-mnist, digits, synthetic:<resolution>x<classes>, or the path of a prepared zip or folder",
    "out": "the folder to write the run to",
}
_AT_LEAST_ONE = (
    *("images", "batch", "n_dis", "dim_z", "g.ch", "d.ch", "ema.statistics_images", "penalty_every"),
    *("tick.images", "tick.grid_columns", "tick.grid_rows", "tick.keep"),
)
