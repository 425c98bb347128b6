"""One declaration an op, in the order of ``gankernels.ops``."""

from gankernels.bench.declaration import Benchmark
from gankernels.bench.declarations.conditional_batch_norm import CONDITIONAL_BATCH_NORM

ALL: tuple[Benchmark, ...] = (CONDITIONAL_BATCH_NORM,)

__all__ = ["ALL"]
