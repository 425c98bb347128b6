"""gankernels: fused kernels for generative adversarial networks, and a lean trainer on them.

``gankernels.ops`` has the functions, ``gankernels.nn`` the drop-in modules, ``gankernels.gradient_penalty`` and
``gankernels.penalties`` exact penalties without double backprop; ``gankernels.use`` and ``gankernels.doctor`` say what
runs. The trainer, the data tools and the metrics are imported when they are asked for.
"""

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
