"""What our registered ops promise: one schema in every family, an error where torch would be silently wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from gankernels.ops._registration import families


def assert_one_schema(schemas: Mapping[str, str]) -> None:
    """Every family of registered ops that is here has these: name -> signature."""
    for name, signature in schemas.items():
        for namespace in families():
            schema = str(getattr(getattr(torch.ops, namespace), name).default._schema)
            assert schema == f"{namespace}::{name}{signature}"


def assert_raises_where_torch_would_be_silently_wrong(function: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """torch.func, forward mode and third-order gradients; ``x`` requires no gradient yet."""
    with pytest.raises(RuntimeError, match=r"torch\.func"):
        torch.func.jvp(function, (x,), (x,))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward-mode"):
        function(torch.autograd.forward_ad.make_dual(x, x))
    x.requires_grad_()
    (dx,) = torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="third-order"):
        ddx.sum().backward()
