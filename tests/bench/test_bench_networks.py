from __future__ import annotations

import itertools

import pytest
import torch

from gankernels import models
from gankernels.bench import architectures, networks
from gankernels.errors import InputError


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"ch": 64, "shared": None, "hierarchical": False, "dim_z": 128}, 42_017_412),
        ({"ch": 96, "shared": None, "hierarchical": False, "dim_z": 128}, 85_556_164),
        ({"ch": 96, "hierarchical": False}, 72_595_908),
        ({"ch": 96}, 70_433_988),
        ({"ch": 64}, 31_978_628),
    ],
)
def test_biggan_generators_have_the_published_parameters(settings, count):
    assert networks.parameters(architectures.biggan_128_g(**settings)) == count


def test_the_other_networks_have_the_published_parameters():
    assert networks.parameters(architectures.biggan_128_d(64)) == 39_448_258
    counts = {name: networks.parameters(layers) for name, layers in networks.NETWORKS.items()}
    assert counts["BigGAN-128 G"] == 70_433_988
    assert counts["BigGAN-128 D"] == 87_982_370
    assert counts["BigGAN-32 G"] == 4_304_387
    assert counts["BigGAN-32 D"] == 4_207_361
    assert counts["StyleGAN2-256 D"] == 28_864_129


def test_dcgan_and_r3gan_have_the_parameters_of_their_tables():
    counts = {name: networks.parameters(layers) for name, layers in networks.NETWORKS.items()}
    g_convs = 16 * (100 * 1024 + 1024 * 512 + 512 * 256 + 256 * 128 + 128 * 3)
    assert counts["DCGAN-64 G"] == g_convs + 2 * (1024 + 512 + 256 + 128)
    assert counts["DCGAN-64 D"] == 16 * (3 * 128 + 128 * 256 + 256 * 512 + 512 * 1024 + 1024) + 2 * (256 + 512 + 1024)
    # Two inverted bottlenecks a stage: 1x1 to twice the width, 3x3 in groups of 16 channels, 1x1 back, two biases.
    wide, narrow = (2 * (2 * c * 2 * c + 9 * 16 * 2 * c + 2 * 2 * c) for c in (768, 384))
    trunk = 4 * wide + narrow + 768 * 384 + 3 * 384
    assert counts["R3GAN-64 G"] == trunk + 16 * 768 + 64 * 768
    assert counts["R3GAN-64 D"] == trunk + 16 * 768 + 768


@pytest.mark.parametrize("system", ["DCGAN-64", "SNGAN-32", "BigGAN-32", "BigGAN-128", "R3GAN-64"])
def test_what_is_benchmarked_is_what_the_preset_builds(system):
    with torch.device("meta"):
        pair = models.build(system.lower())
    for name, net in zip("GD", pair, strict=True):
        layers = networks.NETWORKS[f"{system} {name}"]
        assert networks.parameters(layers) == sum(p.numel() for p in net.parameters())
        shapes = sorted(tuple(p.shape) for p in net.parameters() if p.dim() > 1)
        shared = any(layer.kind == "embedding" for layer in layers)
        weights = []
        for layer in layers:
            table = layer.kind == "conditional_batch_norm" and not shared  # a label's row
            weights += [shape[::-1] if table else shape for shape in layer.weights if len(shape) > 1]
        assert sorted(weights) == shapes


def test_spectrally_normed_weights():
    weights = {name: networks.spectral_norm_weights(name) for name in networks.NETWORKS}
    counts = {name: len(shapes) for name, shapes in weights.items() if shapes}
    assert counts == {
        "SNGAN-32 D": 12,
        "BigGAN-32 G": 11,
        "BigGAN-32 D": 12,
        "BigGAN-128 G": 41,
        "BigGAN-128 D": 23,
    }
    assert weights["BigGAN-128 G"][0] == (16 * 1536, 20)
    assert (148, 1536)[::-1] in weights["BigGAN-128 G"]
    assert weights["BigGAN-128 D"][-1] == (1000, 1536)
    with pytest.raises(InputError, match="SNGAN-32 D"):
        networks.spectral_norm_weights("SNGAN")


def test_each_layer_takes_what_the_one_before_gives():
    aside = ("skip", "theta", "phi", ", g", ", o")
    for name, layers in networks.NETWORKS.items():
        trunk = [x for x in layers if x.kind in ("conv", "conv_transpose") and not x.position.endswith(aside)]
        for before, after in itertools.pairwise(trunk):
            sizes, channels = {before.size_out}, {before.c_out}
            if "R3GAN" in name:
                # Where the width stays, nothing but the filter stands between two resolutions.
                sizes |= {2 * before.size_out} if name.endswith("G") else {before.size_out // 2}
            if after.position == "block 4, conv":
                channels = {before.c_out + 1}  # StyleGAN2's standard deviation over the batch
            assert after.size in sizes, (name, after)
            assert after.c_in in channels, (name, after)


def test_conditional_batch_norm_cases():
    cases = {case.position: case for case in networks.conditional_batch_norm_cases("cpu")}
    assert cases["batch 64, 192 channels, 32 px"].shape == (64, 192, 32, 32)
    assert cases["one sample, 1536 channels, 4 px"].shape == (1, 1536, 4, 4)
    assert cases["SNGAN-32 G block 3, norm 2"].shape == (64, 256, 32, 32)
    assert cases["BigGAN-128 G block 3, norm 1"].shape == (16, 768, 16, 16)
    assert cases["BigGAN-128 G block 5, norm 2"].shape == (16, 96, 128, 128)
    assert [name for name, case in cases.items() if case.quick] == list(networks.QUICK["conditional_batch_norm"])
    shapes = [case.shape for case in cases.values()]
    assert len(shapes) == len(set(shapes)) == 12
    (large,) = [
        c for c in networks.conditional_batch_norm_cases("cuda") if c.position.endswith("128 G block 5, norm 2")
    ]
    assert large.shape == (64, 96, 128, 128)


def test_convolution_cases():
    cases = {kind: networks.convolution_cases(kind, "cpu") for kind in networks.CONVOLUTIONS}
    found = {case.position: case for of_kind in cases.values() for case in of_kind}
    assert found["DCGAN-64 G conv 3"].shape == (64, 512, 8, 8)
    assert found["DCGAN-64 G conv 3"].arguments["out_channels"] == 256
    assert found["R3GAN-64 G stage 3, block 2, conv 2"].arguments["groups"] == 96
    assert found["BigGAN-128 G block 1, skip"].shape == (16, 1536, 4, 4), "a 1x1 convolution runs on the small side"
    assert found["BigGAN-128 D block 5, skip"].shape == (16, 768, 4, 4)
    assert found["StyleGAN2-256 D block 256, conv 2"].shape == (4, 128, 257, 257), "padded by the filter"
    assert len(cases["conv_transpose2d"]) == 5
    assert all(case.arguments["kernel_size"] == 3 for case in cases["upsample_conv2d"] + cases["conv2d_downsample"])
    with pytest.raises(InputError, match="conv_transpose2d"):
        networks.convolution_cases("conv3d")


def test_bias_act_cases():
    cases = {case.position: case for case in networks.bias_act_cases("cpu")}
    assert cases["StyleGAN2-256 D block 64, conv 1"].arguments == {"activation": "lrelu", "slope": 0.2, "gain": 2**0.5}
    assert cases["StyleGAN2-256 D block 4, linear 1"].shape == (4, 512)
    assert cases["DCGAN-64 D conv 1"].shape == (64, 128, 32, 32)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_no_case_is_there_twice_and_all_quick_ones_exist(device):
    lists = {kind: networks.convolution_cases(kind, device) for kind in networks.CONVOLUTIONS}
    lists["bias_act"] = networks.bias_act_cases(device)
    lists["conditional_batch_norm"] = networks.conditional_batch_norm_cases(device)
    for op, cases in lists.items():
        assert len({(case.shape, *case.arguments.items()) for case in cases}) == len(cases)
        assert len({case.position for case in cases}) == len(cases)
        assert {case.position for case in cases if case.quick} == set(networks.QUICK[op])


def test_an_fp64_reference_fits_a_small_machine():
    """A dozen tensors of the largest case in fp64 take at most 4 GiB on the CPU."""
    for cases in (networks.conditional_batch_norm_cases("cpu"), networks.bias_act_cases("cpu")):
        assert max(case.passes(12, 8) for case in cases) < 4 * 2**30
