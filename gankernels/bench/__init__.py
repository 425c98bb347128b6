"""Side-by-side measurement of every kernel and every step: declarations, ceilings, providers, timing and rows.

``gankernels bench`` is its command line. From Python, declare an op as in :mod:`gankernels.bench.declaration` and call
:func:`run`.
"""

from gankernels.bench.declaration import DOUBLE_BACKWARD, FORWARD, FORWARD_BACKWARD, MODES, STEP, Benchmark, Case
from gankernels.bench.runner import run

__all__ = ["DOUBLE_BACKWARD", "FORWARD", "FORWARD_BACKWARD", "MODES", "STEP", "Benchmark", "Case", "run"]
