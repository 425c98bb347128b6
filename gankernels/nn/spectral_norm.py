"""Spectral normalisation of a module's weight, interchangeable with PyTorch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from gankernels.errors import InputError
from gankernels.ops.spectral_norm import reference
from gankernels.ops.spectral_norm.op import functional

if TYPE_CHECKING:
    from gankernels.nn.spectral_norm_group import SpectralNormGroup

# torch.nn.utils.parametrizations.spectral_norm's start, so that both begin with the same u and v.
_FIRST_ITERATIONS = 15


class SpectralNorm(nn.Module):
    """The parametrization behind :func:`spectral_norm`: maps a weight to ``weight / sigma``.

    In training every call iterates, as PyTorch's does, unless a :class:`SpectralNormGroup` serves the weight.

    Args:
        weight: the tensor that is normalised, of at least one dimension; a vector is divided by its norm.
        n_power_iterations: per forward.
        dim: the weight's dimension of outputs.
        eps: the least norm that is divided by.

    State:
        _u [h] and _v [w], in the weight's dtype, as in ``torch.nn.utils.parametrizations.spectral_norm``.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12) -> None:
        super().__init__()
        if weight.layout != torch.strided:
            raise InputError(f"weight: got layout {weight.layout}, expected a dense tensor")
        if not weight.is_floating_point():
            raise InputError(f"weight: got dtype {weight.dtype}, expected a real floating one")
        if not -weight.dim() <= dim < weight.dim():
            raise InputError(f"dim: got {dim}, expected one of the {weight.dim()} dimensions of the weight")
        if n_power_iterations < 1:
            raise InputError(f"n_power_iterations: got {n_power_iterations}, expected at least 1")
        self.n_power_iterations, self.dim, self.eps = n_power_iterations, dim % weight.dim(), eps
        self._group: SpectralNormGroup | None = None
        self._held: Tensor | None = None
        if weight.dim() > 1:
            matrix = reference.matrix(weight.detach(), self.dim)
            u, v = (F.normalize(weight.detach().new_empty(size).normal_(), dim=0, eps=eps) for size in matrix.shape)
            first = 0 if weight.is_meta else _FIRST_ITERATIONS  # on the meta device they are a second a network
            _, u, v, _ = reference.spectral_norm(weight.detach(), u, v, dim=self.dim, n_power_iterations=first, eps=eps)
            self.register_buffer("_u", u.to(weight.dtype))
            self.register_buffer("_v", v.to(weight.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        if self._held is not None:
            return self._held
        if weight.dim() == 1:
            return F.normalize(weight, dim=0, eps=self.eps)
        if self._group is not None and not torch.compiler.is_compiling():
            served = self._group._serve(self, weight)
            if served is not None:
                return served
        y, u, v, _ = functional(
            [weight],
            [self._u],
            [self._v],
            dims=[self.dim],
            n_power_iterations=self.n_power_iterations if self.training else 0,
            eps=self.eps,
            out_dtype=None,
            impl=None,
        )
        if self.training:
            with torch.no_grad():
                self._u.copy_(u[0])
                self._v.copy_(v[0])
        return y[0]

    def right_inverse(self, value: Tensor) -> Tensor:
        """Assigning to the parametrized weight sets the weight before normalisation, as in PyTorch."""
        return value

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to another model, and what a group holds belongs to this one's graph.
        return self.__dict__ | {"_group": None, "_held": None}

    @classmethod
    def from_torch(cls, theirs: nn.Module) -> SpectralNorm:
        """Ours with the numbers and the buffers of PyTorch's parametrization."""
        ours = cls.__new__(cls)
        nn.Module.__init__(ours)
        ours.dim, ours.eps = theirs.dim, theirs.eps  # type: ignore[assignment]
        ours.n_power_iterations = getattr(theirs, "n_power_iterations", 1)  # a vector's has none
        ours._group = ours._held = None
        for name, buffer in theirs.named_buffers():
            ours.register_buffer(name, buffer)
        return ours.train(theirs.training)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, n_power_iterations={self.n_power_iterations}, eps={self.eps}"


def spectral_norm(
    module: nn.Module, name: str = "weight", n_power_iterations: int = 1, eps: float = 1e-12, dim: int | None = None
) -> nn.Module:
    """Replace the parameter ``name`` of ``module`` by itself divided by its largest singular value.

    A drop-in for ``torch.nn.utils.parametrizations.spectral_norm``: the same meaning, start, state names
    (``parametrizations.weight.original``, ``parametrizations.weight.0._u`` and ``._v``) and checkpoints, on the fused
    op. A :class:`SpectralNormGroup` over the model makes it one call for all weights.

    Args:
        module: a linear, convolution, transposed convolution or embedding layer, or any with such a parameter.
        name: of the parameter.
        n_power_iterations: in each forward in training.
        eps: the least norm that is divided by.
        dim: the dimension of outputs; None for 1 in transposed convolutions and 0 elsewhere.

    Returns:
        ``module``, changed in place. Undo it with ``torch.nn.utils.parametrize.remove_parametrizations``.

    Raises:
        InputError: there is no such parameter, it is complex or sparse, or a number is out of range.

    Example:
        >>> layer = gankernels.nn.spectral_norm(torch.nn.Linear(20, 40))
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise InputError(f"name: got {name!r}, expected a parameter of {type(module).__name__}")
    if dim is None:
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        dim = 1 if isinstance(module, transposed) else 0
    parametrize.register_parametrization(module, name, SpectralNorm(weight, n_power_iterations, dim, eps))
    return module


def find_spectral_norms(model: nn.Module) -> Iterator[tuple[str, parametrize.ParametrizationList]]:
    """The names and parametrizations of the weights that a group can serve. PyTorch's become ours on the way.

    Raises:
        InputError: a module uses the older ``torch.nn.utils.spectral_norm``.
    """
    for prefix, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if type(hook).__module__ == "torch.nn.utils.spectral_norm":
                raise InputError(
                    f"model: {prefix or 'it'} uses torch.nn.utils.spectral_norm, "
                    "expected torch.nn.utils.parametrizations.spectral_norm or gankernels.nn.spectral_norm"
                )
        if not parametrize.is_parametrized(module):
            continue
        for name, norms in module.parametrizations.items():
            for i, norm in enumerate(norms):
                if isinstance(norm, parametrizations._SpectralNorm):
                    norms[i] = SpectralNorm.from_torch(norm)
            if isinstance(norms[0], SpectralNorm) and norms.original.dim() > 1:
                yield f"{prefix}.{name}" if prefix else name, norms
