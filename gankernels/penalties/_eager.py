"""Code that dispatch modes and autograd's graph are handled in, which torch.compile must not trace."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def eager(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """``function``, at which a graph of torch.compile breaks, and which runs eagerly with all that it calls."""

    @functools.cache
    def disabled() -> Callable[_P, _T]:
        return torch.compiler.disable(function)

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # torch.compiler.disable imports the compiler, which takes longer than all of gankernels
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        return disabled()(*args, **kwargs)

    return wrapper
