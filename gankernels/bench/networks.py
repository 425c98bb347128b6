"""The shapes that networks have, by the position of the layer: where the benchmarks here take their cases from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from gankernels.bench import architectures
from gankernels.bench.architectures import Layer, Network
from gankernels.bench.declaration import Case
from gankernels.errors import InputError


class Batch(NamedTuple):
    """Images in a batch, by device: on the CPU, what an fp64 reference of the largest layer takes stays under 4 GiB."""

    cpu: int
    cuda: int


BATCHES = {
    "DCGAN-64": Batch(64, 128),
    "SNGAN-32": Batch(64, 128),
    "BigGAN-32": Batch(64, 128),
    "BigGAN-128": Batch(16, 64),
    "R3GAN-64": Batch(8, 32),
    "StyleGAN2-256": Batch(4, 16),
}

#: All leaky ReLUs in these networks have this slope.
SLOPE = 0.2

_R3GAN_64: dict[str, Any] = {"widths": (768, 768, 768, 768, 384), "groups": (96, 96, 96, 96, 48)}

#: The networks that are benchmarked. BigGAN-128 is the paper's: ch 96, a shared embedding, a hierarchical latent.
NETWORKS: dict[str, Network] = {
    "DCGAN-64 G": architectures.dcgan_g(),
    "DCGAN-64 D": architectures.dcgan_d(),
    "SNGAN-32 G": architectures.residual_g((256,) * 4, num_classes=10, dim_z=128),
    "SNGAN-32 D": architectures.residual_d((128,) * 4, resolution=32, downsamples=2, num_classes=10),
    "BigGAN-32 G": architectures.residual_g((256,) * 4, num_classes=10, dim_z=128, spectral_norm=True),
    "BigGAN-32 D": architectures.residual_d((256,) * 4, resolution=32, downsamples=2, num_classes=10),
    "BigGAN-128 G": architectures.biggan_128_g(96),
    "BigGAN-128 D": architectures.biggan_128_d(96),
    "R3GAN-64 G": architectures.r3gan_g(**_R3GAN_64),
    "R3GAN-64 D": architectures.r3gan_d(**{name: tuple(reversed(values)) for name, values in _R3GAN_64.items()}),
    "StyleGAN2-256 D": architectures.stylegan2_d(256),
}

#: By op, the positions that ``--quick`` keeps.
QUICK = {
    "conditional_batch_norm": ("batch 64, 192 channels, 32 px", "BigGAN-128 G block 1, norm 1"),
    "bias_act": ("SNGAN-32 D block 2, conv 1", "R3GAN-64 G stage 3, block 2, conv 2"),
    "conv2d": ("SNGAN-32 D block 2, conv 1", "R3GAN-64 G stage 3, block 2, conv 2"),
    "conv_transpose2d": ("DCGAN-64 G conv 3",),
    "upsample_conv2d": ("SNGAN-32 G block 3, conv 1",),
    "conv2d_downsample": ("SNGAN-32 D block 2, conv 2",),
}


def conditional_batch_norm_cases(device: str | None = None) -> list[Case]:
    """Every distinct conditional batch norm, ReLU behind it, and the first of BigGAN-128 for one sample.

    The shape is that of its input, [N, C, H, W].

    Args:
        device: the device type whose batch is taken; None takes CUDA's where there is a GPU. So for all cases here.
    """
    named = [
        Case("batch 64, 192 channels, 32 px", (64, 192, 32, 32), quick=True),
        Case("one sample, 1536 channels, 4 px", (1, 1536, 4, 4)),
    ]

    def case(layer: Layer, batch: int) -> tuple[tuple[int, ...], dict[str, Any]] | None:
        if layer.kind != "conditional_batch_norm":
            return None
        return (batch, layer.c_out, layer.size, layer.size), {}

    return [*named, *_cases("conditional_batch_norm", case, device)]


def bias_act_cases(device: str | None = None) -> list[Case]:
    """Every distinct activation behind a layer without a norm; shape [N, C, H, W] or [N, C] of the layer's output.

    The arguments are those of the op: activation, slope and gain.
    """

    def case(layer: Layer, batch: int) -> tuple[tuple[int, ...], dict[str, Any]] | None:
        if not layer.activation or layer.kind not in ("conv", "conv_transpose", "linear"):
            return None
        pixels = () if layer.kind == "linear" else (layer.size_out,) * 2
        return (batch, layer.c_out, *pixels), {"activation": layer.activation, "slope": SLOPE, "gain": layer.gain}

    return _cases("bias_act", case, device)


def convolution_cases(kind: str, device: str | None = None) -> list[Case]:
    """Every distinct convolution that is the work of one op; shape [N, C_in, H, W] of its input.

    Args:
        kind: ``conv2d`` (also grouped and strided ones, and the 1x1 ones on the small side of their resampling),
            ``conv_transpose2d``, ``upsample_conv2d`` (3x3 behind nearest x2) or ``conv2d_downsample`` (3x3 in front of
            a 2x2 mean).

    Returns:
        Cases whose arguments are ``out_channels``, ``kernel_size``, ``stride``, ``padding``, ``groups``, ``bias`` and
        ``activation`` ("" where none follows at once).

    Raises:
        InputError: no such kind.
    """
    if kind not in CONVOLUTIONS:
        raise InputError(f"kind: got {kind!r}, expected one of {', '.join(CONVOLUTIONS)}")

    def case(layer: Layer, batch: int) -> tuple[tuple[int, ...], dict[str, Any]] | None:
        if _convolution(layer) != kind:
            return None
        return (batch, layer.c_in, layer.convolved, layer.convolved), {
            "out_channels": layer.c_out,
            "kernel_size": layer.kernel,
            "stride": layer.stride,
            "padding": layer.padding,
            "groups": layer.groups,
            "bias": layer.bias,
            "activation": layer.activation,
        }

    return _cases(kind, case, device)


def spectral_norm_weights(network: str) -> list[tuple[int, ...]]:
    """Shapes of the weights that are spectrally normed, all of them, in the network's order.

    Args:
        network: a key of :data:`NETWORKS`.

    Raises:
        InputError: no such network.
    """
    if network not in NETWORKS:
        raise InputError(f"network: got {network!r}, expected one of {', '.join(NETWORKS)}")
    return [shape for layer in NETWORKS[network] if layer.spectral_norm for shape in layer.weights]


def parameters(network: Network) -> int:
    """Numbers that a network learns."""
    return sum(layer.parameters for layer in network)


CONVOLUTIONS = ("conv2d", "conv_transpose2d", "upsample_conv2d", "conv2d_downsample")


def _convolution(layer: Layer) -> str | None:
    """The op that a layer's convolution is the work of."""
    if layer.kind == "conv_transpose":
        return "conv_transpose2d"
    if layer.kind != "conv":
        return None
    if layer.kernel == 1:
        return "conv2d"
    return {"up": "upsample_conv2d", "down": "conv2d_downsample"}.get(layer.resample, "conv2d")


def _cases(
    op: str, case: Callable[[Layer, int], tuple[tuple[int, ...], dict[str, Any]] | None], device: str | None
) -> list[Case]:
    """The cases of all networks. What has one shape and one set of arguments is one case.

    Its name is the last position that has it in the first network that has it: "block 3, norm 1" rather than "block 2,
    norm 2", as the field counts.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    seen: dict[Any, Case] = {}
    for network, layers in NETWORKS.items():
        here: dict[Any, Case] = {}
        batches = BATCHES[network.rpartition(" ")[0]]
        for layer in layers:
            found = case(layer, batches.cuda if device == "cuda" else batches.cpu)
            if found is not None:
                shape, arguments = found
                position = f"{network} {layer.position}"
                quick = position in QUICK[op]
                here[shape, tuple(arguments.items())] = Case(position, shape, arguments, quick)
        for key, value in here.items():
            seen.setdefault(key, value)
    return list(seen.values())
