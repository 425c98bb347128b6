"""The scope in which our convolutions make no weight gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gankernels import _native

# Process-wide, as dispatch's switch is: autograd runs backward formulas in threads of its own.
_depth = 0


@contextlib.contextmanager
def no_weight_gradients() -> Iterator[None]:
    """Make no gradients of convolution weights and biases in the backward passes that run in this block.

    For a first-order pass that asks for input gradients alone, as a gradient penalty's does, where autograd cannot see
    that for itself: ``backward()`` into inputs and frozen copies, compiled autograd. ``autograd.grad(out, x)`` makes
    none in any case. What the pass records is complete: a backward through it *outside* the block gives weight
    gradients.

    Holds for :func:`gankernels.ops.conv2d` and the ops of its family, on any thread of the process; PyTorch's own
    layers do not know of it. Where a convolution's weight is itself computed from the input, its part of the input's
    gradient is left out too.

    Example:
        >>> scores = discriminator(x.requires_grad_())
        >>> with gankernels.no_weight_gradients():
        ...     (dx,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        >>> dx.square().sum().backward()  # gradients of the weights
    """
    _enter(1)
    try:
        yield
    finally:
        _enter(-1)


def _enter(by: int) -> None:
    global _depth
    _depth += by
    if _native.extension is not None:
        _native.extension.want_weight_gradients(_depth == 0)


def weight_gradients_wanted() -> bool:
    """Whether a backward formula that runs now makes weight gradients."""
    return _depth == 0
