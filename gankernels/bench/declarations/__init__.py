"""One declaration an op, in the order of ``gankernels.ops``."""

from gankernels.bench.declaration import Benchmark
from gankernels.bench.declarations import (
    bias_act,
    conditional_batch_norm,
    conv2d,
    conv2d_downsample,
    conv_transpose2d,
    spectral_norm,
    upsample_conv2d,
)

ALL: tuple[Benchmark, ...] = (
    bias_act.BENCHMARK,
    conditional_batch_norm.BENCHMARK,
    conv2d.BENCHMARK,
    conv2d_downsample.BENCHMARK,
    conv_transpose2d.BENCHMARK,
    spectral_norm.BENCHMARK,
    upsample_conv2d.BENCHMARK,
)

__all__ = ["ALL"]
