"""One step of the discriminator and one of the generator: state and batch in, updated state and scalars out."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from gankernels import models, penalties
from gankernels.losses import LOSSES
from gankernels.models.interface import GeneratorModule
from gankernels.nn import BatchNorm2d
from gankernels.nn.spectral_norm import find_spectral_norms
from gankernels.nn.spectral_norm_group import SpectralNormGroup
from gankernels.train.batches import Batch, Dataset
from gankernels.train.config import Config, NetworkConfig
from gankernels.train.ema import EMA
from gankernels.train.schedule import in_force

#: ``networks(config, num_classes=..., channels=...)`` makes a generator and a discriminator, as :func:`build` does.
Networks = Callable[..., tuple[GeneratorModule, nn.Module]]


class Player:
    """A network, its Adam and its gradient scaler (which does nothing but in fp16).

    Spectral norms, ours or PyTorch's, become one group, whose weights come in ``dtype``, that of autocast. The names in
    ``net.state_dict()`` stay as they are.
    """

    def __init__(
        self, net: nn.Module, config: NetworkConfig, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.net = net
        normed = any(True for _ in find_spectral_norms(net))
        self.spectral_norms = SpectralNormGroup(net, out_dtype=dtype) if normed else None
        self.optimizer = torch.optim.Adam(
            net.parameters(), lr=config.lr, betas=config.betas, eps=config.eps, fused=device.type in ("cpu", "cuda")
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def follow(self, config: NetworkConfig) -> None:
        """Step with the learning rate and the betas of ``config`` from here on."""
        for group in self.optimizer.param_groups:
            # Adam reads both in each step. Its correction of the bias, 1 - beta2^step, has the beta2 of that step,
            # whatever the steps before had: R3GAN was trained so.
            group["lr"], group["betas"] = config.lr, config.betas

    def hold(self) -> contextlib.AbstractContextManager[None]:
        """Take every spectral-normed weight once, iterating once, for all forwards in the block.

        Nothing of it outlives the block but u and v, which are in the state: a resumed run goes on to the same bits.
        """
        return contextlib.nullcontext() if self.spectral_norms is None else self.spectral_norms.hold()

    def update(self, loss: Tensor) -> Tensor:
        """Step down ``loss``; the norm of its gradient, as an fp32 scalar on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        return self.step()

    def step(self) -> Tensor:
        """Step down the gradients in ``.grad``, which the scaler has multiplied; their norm, as :meth:`update`."""
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.net.parameters() if p.grad is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return norm


@dataclass
class State:
    """All that training changes, but for the position in the data."""

    config: Config
    device: torch.device
    dtype: torch.dtype | None  # of autocast; None stays in fp32
    g: Player
    d: Player
    ema: EMA
    rng: torch.Generator  # draws the latents, and where a penalty is taken
    images: int = 0  # real images shown to the discriminator so far

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def latents(self, count: int) -> Tensor:
        return torch.randn(count, self.config.dim_z, generator=self.rng, device=self.device)


def build(config: Config, *, num_classes: int, channels: int) -> tuple[GeneratorModule, nn.Module]:
    """The networks of a config."""
    return models.build(
        config.preset,
        num_classes=num_classes,
        channels=channels,
        dim_z=config.dim_z,
        g_ch=config.g.ch,
        g_widths=config.g.widths,
        d_ch=config.d.ch,
        d_widths=config.d.widths,
        **{name: value for name, value in dataclasses.asdict(config.net).items() if value is not None},
    )


def new_state(
    config: Config, dataset: Dataset, device: torch.device, dtype: torch.dtype | None, networks: Networks = build
) -> State:
    """The state before the first step: a function of the config and of the data set's classes and channels.

    Raises:
        InputError: a setting does not fit the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        generator, discriminator = networks(config, num_classes=dataset.num_classes, channels=dataset.channels)
    generator, discriminator = generator.to(device), discriminator.to(device)
    return State(
        config=config,
        device=device,
        dtype=dtype,
        g=Player(generator, config.g, device, dtype),
        d=Player(discriminator, config.d, device, dtype),
        ema=EMA(generator, config.ema),
        rng=torch.Generator(device).manual_seed(config.seed),
    )


def d_step(state: State, batch: Batch) -> dict[str, Tensor]:
    """Update the discriminator on a real batch and as many fakes of the same labels, and count its images.

    What is scheduled has its value after the images seen before this batch.

    One forward takes both. Where a batch norm would tell it the share of fakes in its batch, which is another in the
    generator's step, each goes alone, as DCGAN is trained.

    Returns:
        Detached fp32 scalars on the device: the loss, without penalty; the mean logits of real and fake; the norm of
        the gradient; and in the steps that take one, the penalty, before its weight.
    """
    config = _scheduled(state)
    with torch.no_grad(), state.g.hold(), state.autocast():
        fake = state.g.net(state.latents(len(batch.y)), batch.y)
    fake = fake.to(batch.x.dtype)
    step = state.images // config.batch
    state.images += len(batch.y)
    if config.penalty is None or step % config.penalty_every:
        return _plain_d_step(state, batch, fake)
    return _penalised_d_step(state, batch, fake, config.penalty_weight * config.penalty_every)


def _plain_d_step(state: State, batch: Batch, fake: Tensor) -> dict[str, Tensor]:
    with state.d.hold():
        if _mixes_samples(state.d.net):
            real, fake = _logits(state, batch.x, batch.y), _logits(state, fake, batch.y)
        else:
            real, fake = _logits(state, torch.cat([batch.x, fake]), batch.y.repeat(2)).chunk(2)
    loss = LOSSES[state.config.loss].d(real, fake)
    norm = state.d.update(loss)
    return {
        "d_loss": loss.detach(),
        "d_real": real.detach().mean(),
        "d_fake": fake.detach().mean(),
        "d_grad_norm": norm,
    }


def _penalised_d_step(state: State, batch: Batch, fake: Tensor, weight: float) -> dict[str, Tensor]:
    config = state.config
    state.d.optimizer.zero_grad(set_to_none=True)
    with state.d.hold(), state.autocast():
        scalars = penalties.d_step(
            state.d.net,
            batch.x,
            fake,
            batch.y,
            loss=config.loss,
            penalty=config.penalty,
            weight=weight,
            generator=state.rng,
            scaler=state.d.scaler if state.d.scaler.is_enabled() else None,
            joint=not _mixes_samples(state.d.net),
        )
    norm = state.d.step()
    return {
        "d_loss": scalars.loss,
        "d_real": scalars.real,
        "d_fake": scalars.fake,
        "d_grad_norm": norm,
        "penalty": scalars.penalty,
    }


def g_step(state: State, batch: Batch) -> dict[str, Tensor]:
    """Update the generator on as many samples, of the same labels, as the batch has.

    Only the relativistic losses look at the batch's pictures. What is scheduled has its value after the images that the
    discriminator has seen, this batch's among them.

    Returns:
        Detached fp32 scalars on the device: the loss and the norm of the gradient.
    """
    config = _scheduled(state)
    game = LOSSES[config.loss]
    state.d.net.requires_grad_(False)  # no weight gradients in the discriminator: a third of its backward
    with state.g.hold(), state.autocast():
        fake = state.g.net(state.latents(len(batch.y)), batch.y)
    real = None
    with state.d.hold():
        logits = _logits(state, fake, batch.y)
        if game.relativistic:
            with torch.no_grad():
                real = _logits(state, batch.x, batch.y)
    loss = game.g(logits, real)
    norm = state.g.update(loss)
    state.d.net.requires_grad_(True)
    return {"g_loss": loss.detach(), "g_grad_norm": norm}


def _scheduled(state: State) -> Config:
    """The config in force, which both optimizers follow from here on."""
    config = in_force(state.config, state.images)
    if config is not state.config:  # with no schedule the optimizers are left alone: a loop of one's own may set them
        state.g.follow(config.g)
        state.d.follow(config.d)
    return config


def _mixes_samples(discriminator: nn.Module) -> bool:
    return any(isinstance(module, BatchNorm2d) for module in discriminator.modules())


def _logits(state: State, x: Tensor, y: Tensor) -> Tensor:
    """D(x, y) in fp32 [N], where the caller holds D. Spectral norms are taken outside autocast: sigma is fp32."""
    with state.autocast():
        return state.d.net(x, y).float()
