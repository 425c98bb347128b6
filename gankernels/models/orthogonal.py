"""BigGAN's orthogonal regularisation, as a gradient."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def orthogonal_regularization_(
    parameters: Iterable[nn.Parameter], weight: float = 1e-4, *, exclude: Iterable[nn.Parameter] = ()
) -> None:
    """Add the gradient of ``weight * R(W)`` to ``.grad`` of each parameter of two dimensions or more, in place.

    ``R(W) = || W W^T * (1 - I) ||_F^2``, W the weight as a matrix, dimension 0 by the rest: Brock et al., arXiv
    1809.11096, equation 3, of the filters, with the paper's weight. The gradient ``4 (W W^T * (1 - I)) W`` is two
    matrix products, and no graph: call it between ``backward`` and the optimizer's step.

    Args:
        parameters: with ``.grad``, or without: it is created. Those of fewer dimensions have no W.
        weight: of the penalty.
        exclude: parameters that are left as they are, such as the class embedding.

    Example:
        >>> loss.backward()
        >>> gankernels.models.orthogonal_regularization_(generator.parameters())
        >>> optimizer.step()
    """
    left_out = {id(parameter) for parameter in exclude}
    for parameter in parameters:
        if parameter.dim() < 2 or id(parameter) in left_out:
            continue
        w = parameter.flatten(1)  # [outputs, rest]
        off_diagonal = (w @ w.mT).fill_diagonal_(0)
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_((off_diagonal @ w).view_as(parameter), alpha=4 * weight)
