"""Path-length regularisation of a generator.

Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", arXiv 1912.04958, section 3.2 and appendix B.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from gankernels.errors import InputError
from gankernels.penalties._eager import eager
from gankernels.penalties.penalty import check, with_its_gradients
from gankernels.penalties.run import Block, Run


@eager
def path_length_penalty(
    synthesis: nn.Module,
    w: Tensor,  # [N, D] or [N, L, D]
    mean: Tensor,  # []
    y: Any = None,
    *,
    decay: float = 0.01,
    method: str = "auto",
    generator: torch.Generator | None = None,
    per_sample: bool = False,
) -> Tensor:
    """The mean over samples of ``(|J^T y| - a)^2``, with exact gradients and, in its class, no double backprop.

    J is the Jacobian of the pictures in the latents w, y are pictures of independent normal pixels of deviation
    ``1 / sqrt(H W)``, and a is the moving mean of the lengths ``|J^T y|`` (1912.04958, equation 4). For latents of L
    layers, the square of a length is the mean over the layers of the squares of theirs.

    Args:
        synthesis: from latents to pictures [N, C, ...]; called once, as ``synthesis(w)`` or, where y is given,
            ``synthesis(w, y)``. Compiled or in DDP it is treated as :func:`gankernels.gradient_penalty` treats a
            discriminator. Where it is piecewise linear in w for each sample, this is the closed form; what multiplies
            two functions of w, as modulated convolutions do, is differentiated twice, op by op.
        w: the latents. Where they require grad, as the outputs of a mapping network do, the penalty is differentiable
            in them.
        mean: a, in fp32 (or fp64), zero before the first call: moved in place, by ``decay`` towards the mean length of
            these samples, and then a constant of the penalty. Save it with the model, as a buffer say.
        y: labels, or whatever else ``synthesis`` takes.
        decay: the weight of these samples in the moving mean.
        method, generator: as for :func:`gankernels.gradient_penalty`; ``generator`` draws y.
        per_sample: return the N lengths instead, as numbers without gradients; ``mean`` moves all the same.

    Returns:
        A scalar in fp32 (fp64 for fp64) whatever autocast says, to be weighted with the paper's
        ``ln 2 / (R^2 (ln R - ln 2))`` for R pixels of a side, times the k of a penalty that is taken every k steps.
        Differentiable once (by double_backward, as often as ``synthesis`` is). The gradient of a length that is 0 is 0.

    Raises:
        InputError, RuntimeError: as :func:`gankernels.gradient_penalty`; or ``mean`` is not a floating scalar.

    Example:
        >>> w = mapping(z)
        >>> penalty = gankernels.penalties.path_length_penalty(synthesis, w, mean)
        >>> (4 * weight * penalty).backward()  # every 4 steps
    """
    check("path_length_penalty", synthesis, method, item="latent", w=w)
    if w.dim() not in (2, 3):
        raise InputError(f"w: got shape {tuple(w.shape)}, expected [N, D] or [N, L, D]")
    if mean.dim() != 0 or mean.dtype not in (torch.float32, torch.float64) or mean.requires_grad:
        got = f"shape {tuple(mean.shape)} in {mean.dtype}{', requiring grad' if mean.requires_grad else ''}"
        raise InputError(f"mean: got {got}, expected a buffer [] in float32 or float64")
    if mean.device != w.device:
        raise InputError(f"mean: got a tensor on {mean.device}, expected {w.device}, where w is")
    layers = w.shape[1] if w.dim() == 3 else 1
    lengths = torch.empty(0)

    def target(norms: Tensor) -> Tensor:
        """In units of ``|J^T y| sqrt(L)``, the norm of all layers' gradients together."""
        nonlocal lengths
        lengths = norms / math.sqrt(layers)
        with torch.no_grad():
            mean.lerp_(lengths.mean().to(mean.dtype), decay)
        return mean.to(norms.dtype) * math.sqrt(layers)

    def noise(pictures: Tensor) -> Tensor:
        if pictures.dim() < 3 or len(pictures) != len(w):
            got = f"pictures {list(pictures.shape)} of {len(w)} latents"
            raise InputError(f"synthesis: got {got}, expected [{len(w)}, C, ...]")
        wide = torch.promote_types(pictures.dtype, torch.float32)
        drawn = torch.randn(pictures.shape, generator=generator, device=pictures.device, dtype=wide)
        return (drawn / math.sqrt(math.prod(pictures.shape[2:]))).to(pictures.dtype)

    # (|g| / sqrt(L) - a)^2 = (|g| - sqrt(L) a)^2 / L, WGAN-GP's penalty with a target of its own
    block = Block(w, y, "wgan-gp", 1 / layers, target)
    run = Run(synthesis, [block], method, with_loss=False, cotangent=noise, with_input=w.requires_grad)
    if run.way == "double backward":
        value = run.penalty_with_graph()
        return lengths if per_sample else value
    roots, factor = run.roots(None)
    value = run.each[0].mean() / layers
    return lengths if per_sample else with_its_gradients(value, run, roots, factor, w if w.requires_grad else None)
