"""gankernels: fused kernels for generative adversarial networks, and a lean trainer on them.

``gankernels.ops`` has the functions, ``gankernels.nn`` the drop-in modules, ``gankernels.gradient_penalty`` and
``gankernels.penalties`` exact penalties without double backprop; ``gankernels.use`` and ``gankernels.doctor`` say what
runs. ``gankernels.models``, ``losses``, ``train``, ``data``, ``metrics`` and ``bench`` are imported when they are asked
for.
"""

import importlib
from types import ModuleType

from gankernels import nn, ops, penalties
from gankernels._version import __version__
from gankernels.dispatch import use
from gankernels.doctor import doctor
from gankernels.errors import ImplementationUnavailable, InputError
from gankernels.ops._weight_gradients import no_weight_gradients
from gankernels.penalties import gradient_penalty

__all__ = [
    "ImplementationUnavailable",
    "InputError",
    "__version__",
    "doctor",
    "gradient_penalty",
    "nn",
    "no_weight_gradients",
    "ops",
    "penalties",
    "use",
]

_WHEN_ASKED_FOR = ("bench", "data", "losses", "metrics", "models", "train")


def __getattr__(name: str) -> ModuleType:
    if name in _WHEN_ASKED_FOR:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
