"""The activations by name, in plain PyTorch: the definition that csrc/activation.h and the Triton kernels follow."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Whose second derivative is zero wherever it exists. ``"none"`` is the identity.
PIECEWISE_LINEAR = ("none", "relu", "lrelu")
#: All activations, in the order of the table in C++.
ACTIVATIONS = (*PIECEWISE_LINEAR, "tanh", "sigmoid", "silu", "softplus", "gelu")


def activate(z: Tensor, activation: str, slope: float) -> Tensor:
    """``act(z)``, with PyTorch's derivatives: at a kink, that of the negative side. ``slope`` is lrelu's below zero."""
    match activation:
        case "relu":
            return F.relu(z)
        case "lrelu":
            return F.leaky_relu(z, slope)
        case "tanh":
            return torch.tanh(z)
        case "sigmoid":
            return torch.sigmoid(z)
        case "silu":
            return F.silu(z)
        case "softplus":
            return F.softplus(z)
        case "gelu":
            return F.gelu(z)
    return z
