"""One declaration an op, in the order of ``gankernels.ops``."""

from gankernels.bench.declaration import Benchmark
from gankernels.bench.declarations import bias_act, conditional_batch_norm, spectral_norm

ALL: tuple[Benchmark, ...] = (bias_act.BENCHMARK, conditional_batch_norm.BENCHMARK, spectral_norm.BENCHMARK)

__all__ = ["ALL"]
