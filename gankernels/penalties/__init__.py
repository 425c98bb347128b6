"""Gradient penalties with exact gradients and no double backprop.

:func:`gradient_penalty` is a differentiable scalar for a loop of one's own; :func:`d_step` computes loss and penalty
together, which is cheaper; :func:`path_length_penalty` is StyleGAN2's regularisation of a generator.
"""

from gankernels.penalties.kinds import KINDS
from gankernels.penalties.path_length import path_length_penalty
from gankernels.penalties.penalty import gradient_penalty
from gankernels.penalties.step import PENALTIES, DStep, d_step

__all__ = ["KINDS", "PENALTIES", "DStep", "d_step", "gradient_penalty", "path_length_penalty"]
